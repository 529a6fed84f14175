//! Test images, fakes, machines in software, places for tests.

pub mod fake_cni;
pub mod fake_guest;
pub mod fake_node;
#[cfg(target_os = "linux")]
pub mod ground;
pub mod images;
pub mod ping;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod vm;

pub use kina_model::test_support as spec;
