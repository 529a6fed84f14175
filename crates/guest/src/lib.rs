//! The process that runs a pod's containers: `kina-guest`.
//!
//! One per pod, in every machine: a daemon of its own on the node's kernel, or
//! a child of the first process of a VM. It serves the guest protocol and
//! outlives whoever speaks to it; when that goes away nothing happens.
//!
//! ```text
//! serve ──▶ service ──▶ guest ──┬─▶ pod        namespaces, files, /dev/shm
//!   │       (decode,            ├─▶ container  state; spec, rootfs, layers, user
//!   │        encode)            ├─▶ exec       one more process, its streams
//!   └─ unix | vsock             └─▶ events     exits, bounded
//! init   the first process of a VM: mounts, orphans, power
//! entry  the same in a VM that has an init of its own, which runs it as a container
//! relay  a stream to the guest, for whoever can run a program beside it only
//! pause  the first process of a PID namespace that containers share
//! inside makes what a pod's user namespace is to own, for the guest
//! ```
//!
//! Everything runs on one thread, but for what blocks (mounts, launches), which
//! runs on few short-lived ones. An operation, once begun, is carried through
//! even if its caller goes away. Nothing of a pod is pinned on disk: namespaces
//! and mounts are descriptors that end with the guest.
#![cfg(target_os = "linux")]

mod apparmor;
mod arguments;
mod attach;
mod build;
mod clock;
mod console;
mod container;
mod demo;
mod disk_usage;
mod entry;
mod error;
mod events;
mod exec;
mod features;
mod forward;
mod guest;
mod ids;
mod image_volume;
mod init;
mod inside;
mod journal;
mod layers;
mod memory;
mod namespaces;
mod network;
mod pause;
mod pod;
mod process;
mod process_count;
mod relay;
mod resources;
mod rootfs;
mod selinux;
mod serve;
mod service;
mod spec;
mod streams;
mod unattached;
mod user;
mod volumes;

use std::io::{self, Write};
use std::process::ExitCode;

pub use error::Error;
pub use user::{Accounts, Identity};

use arguments::Command;

/// Runs the program. Must be called first thing in `main`, with one thread.
pub fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let (program, rest) = match arguments.split_first() {
        Some((program, rest)) => (Some(program.as_str()), rest),
        None => (None, &[][..]),
    };
    if rest.first().is_some_and(|command| command == "launch") {
        kina_launch::helper_main();
    }
    if init::started_by_kernel(program) {
        return fail(&init::run());
    }
    match arguments::parse(rest) {
        Ok(Command::Serve(options)) => serve::run(&options),
        Ok(Command::Entry(options)) => entry::run(&options),
        Ok(Command::Relay(socket)) => match relay::run(&socket) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Ok(Command::Pause) => pause::run(),
        Ok(Command::Inside) => inside::run(),
        Ok(Command::Console(options)) => match console::run(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Ok(Command::Demo(arguments)) => demo::run(&arguments),
        Ok(Command::Version) => {
            let version = env!("CARGO_PKG_VERSION");
            match writeln!(io::stdout(), "kina-guest {version}") {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(mistake) => {
            drop(writeln!(io::stderr(), "kina-guest: {mistake}\n{}", arguments::USAGE));
            ExitCode::from(2)
        }
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    drop(writeln!(io::stderr(), "kina-guest: {error}"));
    ExitCode::FAILURE
}
