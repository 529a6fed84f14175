//! Test images, fakes and an in-process daemon.
