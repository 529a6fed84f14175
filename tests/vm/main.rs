//! The seam to virtual machines: the guest that runs pods on the node's kernel
//! boots as the first process of an emulated machine, is reached over vsock,
//! mounts a layer that the host shares as a file, runs a container, and loses
//! nothing when the daemon that writes its log is killed.
//!
//! Not a driver: a proof that the guest, the channel and the layers are right.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

mod arm64;
mod daemon;
mod pod;
mod resources;
mod seam;
mod selinux;
