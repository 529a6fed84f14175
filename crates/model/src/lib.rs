//! Ids, specs, states and pure transitions of pods and containers. No IO, no
//! async, no clock: a time comes in as data.

mod id;

pub use id::{ContainerId, Digest, ParseIdError, PodId};
