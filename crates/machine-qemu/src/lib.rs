//! The machine driver that boots a virtual machine for every pod: QEMU with a
//! kernel of the node's, an initramfs made here, and `kina-guest` as the first
//! process in it.
#![cfg(target_os = "linux")]

pub mod accelerator;
pub mod boot;
mod error;

pub use accelerator::Accelerator;
pub use error::Error;
