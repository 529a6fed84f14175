//! What a machine boots from: a kernel, and an initramfs made here.

mod cpio;
mod modules;

pub use cpio::{Archive, Kind};
pub use modules::{Dependencies, Lookup};
