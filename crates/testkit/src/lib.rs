//! Test images, fakes and an in-process daemon.

pub mod fake_guest;
pub mod fake_node;
pub mod images;
