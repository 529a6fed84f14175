//! The Container Runtime Interface, version 1: its generated types, and what
//! they mean in kina's own. Everything here is pure.
//!
//! No field of a request is ignored in silence: it is kept in the model, or
//! refused with an error that names it, or has no meaning here.

mod check;
mod container;
mod filters;
mod image;
pub mod metrics;
mod mounts;
mod pod;
mod resources;
mod security;
pub mod stats;
pub mod support;
#[cfg(test)]
mod tests;
mod user_namespace;
pub mod views;

use std::fmt;

pub use container::{container_spec, seccomp_file};
pub use filters::{container_listed, container_stats_listed, pod_listed, pod_stats_listed};
pub use image::{credentials, image, image_name, info as image_info};
pub use pod::pod_spec;
pub use resources::resources;
pub use security::Kernel;

/// The generated messages, clients and servers of the CRI.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::unwrap_used,
    clippy::doc_markdown,
    reason = "generated code; the interface's own documentation is the place to look"
)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

impl fmt::Debug for v1::AuthConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AuthConfig").finish_non_exhaustive()
    }
}

/// Environment variables hold secrets too.
impl fmt::Debug for v1::KeyValue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("KeyValue").field("key", &self.key).finish_non_exhaustive()
    }
}
