//! A simulator of Apple's `container` command, to test against on Linux.
//!
//! It has the command line, the output and the error texts of apple/container, runs images in
//! namespaces of this kernel or in virtual machines of QEMU's where Apple's runs them in its own,
//! and can be told to go wrong in the ways in which Apple's does. The README says how it is used
//! and what it leaves out.
//!
//! ```text
//! container … ──▶ apiserver ──▶ runtime (one per container) ──▶ the container's processes
//!   client/        server/        runtime/   │  guard: clears away what it leaves
//!                                            └▶ network: bridges in a namespace of its own
//! ```
//!
//! All of these are this one program, started again.
#![cfg(target_os = "linux")]

pub mod arguments;
mod client;
pub mod commands;
pub mod error;
pub mod images;
pub mod place;
mod process;
pub mod programs;
pub mod protocol;
pub mod resources;
mod runtime;
mod server;
pub mod settings;
pub mod shape;
pub mod swift_json;
pub mod values;
mod vmnet;
pub mod wire;

use std::path::Path;
use std::process::ExitCode;

pub use client::host_platform;

/// Runs the program. Must be called first thing in `main`, with one thread.
pub fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let texts: Vec<&str> = words.iter().map(String::as_str).collect();
    match texts.as_slice() {
        ["__launch", ..] => kina_launch::helper_main(),
        ["__apiserver", root] => server::run(Path::new(root)),
        ["__runtime", root, id] => runtime::run(Path::new(root), id),
        ["__guard", group] => runtime::guard(group),
        ["__network", root] => vmnet::run(Path::new(root)),
        // As kina's init starts what is in place of a guest.
        ["serve", "--pod", _, "--listen", _] => runtime::inside(),
        _ => client::main(&words),
    }
}
