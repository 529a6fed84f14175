//! Tasks of the project, run as `cargo xtask COMMAND`.
//!
//! A task may assume Rust and nothing else: what it needs beyond that it
//! installs itself, on Debian, from the package registries that the machine's
//! own clients are configured for.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks to its terminal")]

mod bench;
mod debian;
mod demo;
mod fuzz;
mod guest;
mod kernel;
mod mach_o;
mod macos;
mod package;
mod pod_image;
mod rust_source;
mod setup;
mod shell;
mod sizes;
mod steps;
mod test;
mod tools;

use std::process::ExitCode;

use anyhow::{Result, bail};
use shell::Workspace;

/// A task: how it is called, what it does, and the function that does it.
struct Task {
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
    run: fn(&Workspace, &[String]) -> Result<()>,
}

impl Task {
    /// How it is called.
    fn call(&self) -> String {
        format!("{} {}", self.name, self.arguments).trim_end().to_owned()
    }
}

const TASKS: &[Task] = &[
    Task {
        name: "demo",
        arguments: "[ARGUMENTS OF kina demo]",
        about: "Install what is missing, build kina and its guest, run `kina demo`",
        run: demo::run,
    },
    Task {
        name: "test",
        arguments: "[--only STEPS] [--skip STEPS] [-- FILTERS]",
        about: "Install what is missing and run everything that CI runs",
        run: test::run,
    },
    Task {
        name: "bench",
        arguments: "[ARGUMENTS OF THE BENCH: --json, --profile, ...]",
        about: "Install what is missing and measure kina beside containerd and runc",
        run: bench::run,
    },
    Task {
        name: "fuzz",
        arguments: "[TARGET]... [--seconds N]",
        about: "Fuzz what reads strangers' input, each target for so long (60 seconds)",
        run: fuzz::run,
    },
    Task {
        name: "setup",
        arguments: "[demo|test|bench|macos|arm64-compiler|arm64-machine]...",
        about: "Install what the named tasks need, and nothing that is there already",
        run: setup::run,
    },
    Task {
        name: "guest",
        arguments: "[--target x86_64|aarch64]",
        about: "Build the static guest and print its path",
        run: guest::run,
    },
    Task {
        name: "pod-image",
        arguments: "",
        about: "Make the image that Apple's container boots machines from, of the guests built, and print its path",
        run: pod_image::run,
    },
    Task {
        name: "macos",
        arguments: "",
        about: "Type-check and link kina for macOS, on Linux",
        run: macos::run,
    },
    Task {
        name: "package",
        arguments: "[--dev] [--url URL] [--skip linux,macos]",
        about: "Make archives for Linux and macOS, a Debian package and Homebrew's formula",
        run: package::run,
    },
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next();
    let arguments: Vec<String> = arguments.collect();
    match dispatch(name.as_deref(), &arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(name: Option<&str>, arguments: &[String]) -> Result<()> {
    let Some(name) = name else {
        print!("{}", help());
        bail!("no command given");
    };
    if matches!(name, "help" | "--help" | "-h") {
        print!("{}", help());
        return Ok(());
    }
    // That of `test` says more.
    let asks = name != "test" && arguments.iter().any(|word| matches!(word.as_str(), "--help" | "-h"));
    match TASKS.iter().find(|task| task.name == name) {
        Some(task) if asks => {
            print!("Usage: cargo xtask {}\n\n{}\n", task.call(), task.about);
            Ok(())
        }
        Some(task) => (task.run)(&Workspace::locate()?, arguments),
        None => bail!("unknown command `{name}`; `cargo xtask --help` lists them"),
    }
}

/// The list of commands, from the table that also dispatches them.
fn help() -> String {
    let mut text = String::from("Usage: cargo xtask COMMAND [ARGUMENTS]\n\n");
    for task in TASKS {
        text.push_str(&format!("  {}\n      {}\n", task.call(), task.about));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_commands_are_refused_by_name() {
        let error = dispatch(Some("tset"), &[]).unwrap_err();
        assert!(error.to_string().contains("`tset`"), "{error}");
    }

    /// Without doing a step of it: most begin with installing what is missing.
    #[test]
    fn every_command_tells_of_itself() {
        for task in TASKS {
            for word in ["--help", "-h"] {
                dispatch(Some(task.name), &[word.to_owned()]).unwrap();
            }
        }
    }

    #[test]
    fn the_help_names_every_command() {
        let help = help();
        for task in TASKS {
            assert!(help.contains(&format!("\n  {}", task.name)), "{help}");
        }
    }
}
