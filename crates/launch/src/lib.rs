//! Starts one process in namespaces, a cgroup and a root filesystem, confined by an OCI runtime
//! spec.
//!
//! # How it works
//!
//! The caller is a long-lived process with many threads, in which namespaces cannot be changed
//! safely. So each operation runs the caller's own program again as a *helper* that has one
//! thread: [`Launcher`] starts it, and the program's `main` calls [`helper_main`] first thing when
//! it finds itself started so.
//!
//! ```text
//! caller ──fork, exec──▶ helper: enters the cgroup, opens what the mounts need,
//!    │                      │    joins namespaces
//!    │                      └─clone(CLONE_PARENT)─▶ init: waits for the caller to know it
//!    │◀───────────────── pid ───────────────────────┤
//!    │── id maps, go ──────────────────────────────▶│ root filesystem, terminal, user
//!    │◀──────────────── ready ──────────────────────┤
//!    │── start ────────────────────────────────────▶│ seccomp, capabilities, execve
//! ```
//!
//! The init (or the exec'd process) is a **child of the caller**, who waits for it. The helper is
//! reaped by the launcher. All of them talk over one socket; when it closes before the start,
//! whoever still waits on it ends. So a caller that dies leaves nothing half made behind.
//!
//! The helper's program file is executed through a read-only mount that belongs to no namespace
//! (or a sealed copy), so that a container cannot write to it through `/proc/<pid>/exe`.
//!
//! # What is refused
//!
//! Every field of the spec is honoured, or refused with an error that names it
//! ([`Error::Refused`]). The exceptions are annotations, and `linux.cgroupsPath`: the caller gives
//! the [`Group`](kina_cgroup::Group).
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "clone, execve, capset and the newer mount calls have no safe wrapper")]

mod capabilities;
mod check;
pub mod defaults;
mod error;
mod final_stage;
mod forker;
mod helper;
mod launcher;
mod mounts;
mod order;
mod plan;
mod resources;
mod seccomp;
mod spawn;
mod sys;
mod terminal;
mod wire;

pub use error::{Error, Operation};
pub use helper::helper_main;
pub use launcher::{Created, Launcher, LimitedPlan, StartHandle};
pub use order::Warning;
pub use plan::{ExecPlan, Plan, RootFs, Stdio};
pub use resources::resources;
