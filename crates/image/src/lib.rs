//! Registry client, content store and layer images.
//!
//! [`Images`] is the whole of it. A pull streams each layer once: from the
//! registry through its digest into the store's OCI layout, and at the same time
//! uncompressed through its diff id into one read-only EROFS image. Memory stays
//! constant whatever a registry sends; sizes, counts and waits are bounded by
//! [`Config`].
//!
//! What the store guarantees:
//! - A file under its final name is complete and matches its digest.
//! - An image in the list has all its files, until it is removed and its last
//!   [`Lease`] is dropped; unless something else than kina took one away, which
//!   makes it [incomplete](Image::complete) until it is pulled again.
//! - A crash at any point leaves temporary files, which opening sweeps, and
//!   complete files that nothing names, which [`Images::gc`] frees.
//! - Credentials are sent to the host they are for and to the token server that
//!   it names: those that a caller gives to the image's registry, not to its
//!   mirrors; those of a docker configuration to the host that it names. They go
//!   neither to where a host redirects, nor into errors or logs.
//! - A transfer that breaks off goes on where it was, at the same host or the
//!   next. A pull that is given up, or ended by a crash, starts its unfinished
//!   layers anew; the finished ones are there until [`Images::gc`].

mod config;
mod credentials;
mod error;
mod export;
mod failpoint;
mod files;
mod flight;
#[doc(hidden)]
pub mod fuzzing;
mod images;
mod import;
mod layout;
mod manifest;
mod pipe;
mod platform;
mod progress;
mod pull;
mod records;
mod reference;
mod registry;
mod seal;
mod transfer;
mod unpack;
mod usage;
mod verify;

pub use crate::config::{Config, Limits, Timeouts};
pub use crate::credentials::{AuthFields, Credentials};
pub use crate::error::{Attempt, Error};
pub use crate::failpoint::{Failpoint, STEPS};
pub use crate::images::{Images, Lease, Removed};
pub use crate::layout::Usage;
pub use crate::manifest::ImageConfig;
pub use crate::platform::Platform;
pub use crate::progress::{LayerProgress, LayerState, Progress};
pub use crate::records::{Image, Layer};
pub use crate::reference::{DEFAULT_REGISTRY, Reference};
pub use crate::registry::check_hosts;
pub use crate::usage::{DiskUse, ImageUse, PruneFilter, Pruned};
pub use crate::verify::{Finding, Problem, Repair, Report, VerifyProgress};
pub use kina_model::Digest;
