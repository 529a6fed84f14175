//! Test images, fakes, machines in software.

pub mod fake_cni;
pub mod fake_guest;
pub mod fake_node;
pub mod images;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod vm;
