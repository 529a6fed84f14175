//! A real daemon with real pods on this machine, asked through its socket as
//! the kubelet asks: what pods do, and what is left when something dies.
//!
//! The tests need root, the static guest (`cargo xtask guest`) and Debian's
//! busybox-static. Each has a daemon of its own, and checks at its end that
//! nothing is left.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a test says why it failed, and its figures")]

mod apple;
mod harness;
mod images;
mod kill;
mod kubelet;
mod lifecycle;
mod logs;
mod network;
mod observe;
mod recovery;
mod scale;
mod spans;
mod streaming;
mod vm;
