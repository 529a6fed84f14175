//! The kina daemon and its command line.

pub mod admin;
pub mod cdi;
pub mod cli;
pub mod client;
pub mod config;
pub mod cri;
mod elf;
pub mod error;
pub mod events;
pub mod failpoint;
#[doc(hidden)]
pub mod fuzzing;
pub mod layers;
pub mod machines;
pub mod metrics;
pub mod network;
pub mod oci;
pub mod placement;
pub mod pod;
pub mod recover;
pub mod registry;
pub mod runtime;
pub mod service;
pub mod spans;
pub mod stats;
pub mod streaming;
pub mod telemetry;
pub mod traces;
