//! The command line. All but `serve` are clients of the daemon: they never
//! open the store or touch layers.

mod config;
mod demo;
mod doctor;
mod elf;
mod image;
mod serve;
mod socket;
mod text;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::chain;

/// Exit code for a bad command line or configuration (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;

/// Gives every Kubernetes pod a machine of its own.
#[derive(Debug, Parser)]
#[command(name = "kina", version = env!("KINA_VERSION"))]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground.
    Serve(serve::Arguments),
    /// Show or check the configuration.
    #[command(subcommand)]
    Config(config::Command),
    /// Pull, list, remove, import and export the daemon's images.
    Image(image::Arguments),
    /// Show kina at work: a pod, from nothing to nothing.
    Demo(demo::Arguments),
    /// Say what this machine can and cannot do, and how to mend it.
    Doctor(doctor::Arguments),
    /// Print the version of this command, and the daemon's if one answers.
    Version(socket::Arguments),
    /// Print the names of all failpoints (debug builds).
    #[command(hide = true)]
    Failpoints,
}

/// A mistake of the caller: exit code 64.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way, too.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match arguments.command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Config(command) => config::run(&command),
        Command::Image(arguments) => image::run(arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Version(arguments) => version(&arguments),
        Command::Failpoints => {
            crate::failpoint::all().iter().for_each(|name| print_line(name));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&chain(error.as_ref()));
            let usage = error.is::<UsageError>() || error.is::<crate::config::ConfigError>();
            if usage { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// Both versions; a daemon that does not answer is no failure.
fn version(arguments: &socket::Arguments) -> anyhow::Result<()> {
    print_line(&format!("kina {}", env!("KINA_VERSION")));
    socket::block_on(async {
        match arguments.connect().await {
            Ok(mut client) => {
                let info = client.admin.info(crate::admin::v1::InfoRequest {}).await?.into_inner();
                print_line(&format!("daemon {} (process {})", info.version, info.pid));
            }
            Err(error) => print_line(&format!("daemon: {error}")),
        }
        Ok(())
    })
}

#[allow(clippy::print_stdout, reason = "a command's answer goes to standard output")]
fn print_line(line: &str) {
    println!("{line}");
}

#[allow(clippy::print_stderr, reason = "a command's error goes to standard error")]
fn print_error(message: &str) {
    eprintln!("kina: {message}");
}
