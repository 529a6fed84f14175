//! The simulator as its users see it: its command line, and what it does to the machine.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;
mod guest;
mod images;
mod life;
mod network;
mod place;
mod relay;
mod restart;
mod shape;
mod traps;
mod vm;
