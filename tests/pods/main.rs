//! Pod actors against a fake node, fake machines and fake guests: failure
//! injected at every step, calls given up, stops that overtake starts, restarts
//! of the daemon.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod confinement;
mod hostile;
mod lifecycle;
mod logs;
mod logs_killed;
mod network;
mod recovery;
mod support;
mod vm;
