//! The command line. All but `serve` are clients of the daemon: they never
//! open the store or touch layers.

mod config;
mod demo;
mod doctor;
mod image;
mod machine;
mod network;
mod program;
mod serve;
mod service;
mod socket;
mod text;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Context as _;
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
    /// Pull, list, remove, verify, import and export the daemon's images.
    Image(image::Arguments),
    /// Show, check, collect and try the pods' network.
    Network(network::Arguments),
    /// List and examine the pods' machines, and read their consoles.
    Machine(machine::Arguments),
    /// Have the daemon started by launchd or systemd.
    Service(service::Arguments),
    /// Show kina at work: a pod, from nothing to nothing.
    Demo(demo::Arguments),
    /// Say what this machine can and cannot do, and how to mend it.
    Doctor(doctor::Arguments),
    /// Print the version of this command, and the daemon's if one answers.
    Version(socket::DaemonSocket),
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
        Command::Network(arguments) => network::run(arguments),
        Command::Machine(arguments) => machine::run(arguments),
        Command::Service(arguments) => service::run(arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Version(arguments) => version(&arguments),
        Command::Failpoints => crate::failpoint::all().iter().try_for_each(|name| print_line(name)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&describe(&error));
            let usage = error.is::<UsageError>() || error.is::<crate::config::ConfigError>();
            if usage { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// Both versions; a daemon that does not answer is no failure.
fn version(arguments: &socket::DaemonSocket) -> anyhow::Result<()> {
    print_line(&format!("kina {}", env!("KINA_VERSION")))?;
    socket::block_on(async {
        match arguments.connect().await {
            Ok(mut client) => {
                let info = client.admin.info(crate::admin::v1::InfoRequest {}).await?.into_inner();
                print_line(&format!("daemon {} (process {})", info.version, info.pid))?;
            }
            Err(error) => print_line(&format!("daemon: {error}"))?,
        }
        Ok(())
    })
}

/// An error with its causes in one line. What a daemon says stands for itself,
/// without gRPC's words around it.
fn describe(error: &anyhow::Error) -> String {
    let said = error.chain().position(|cause| cause.is::<tonic::Status>());
    let Some(said) = said else { return chain(error.as_ref()) };
    let texts = error.chain().take(said + 1).map(|cause| match cause.downcast_ref::<tonic::Status>() {
        Some(status) if status.message().is_empty() => status.code().to_string(),
        Some(status) => status.message().to_owned(),
        None => cause.to_string(),
    });
    texts.collect::<Vec<_>>().join(": ")
}

/// Prints a line of a command's answer.
fn print_line(line: &str) -> anyhow::Result<()> {
    write_line(&mut std::io::stdout().lock(), line).context("write to standard output")
}

/// A reader that has enough (`kina image ls | head -1`) is no failure: the command goes
/// on, and ends as it would have.
fn write_line(out: &mut impl Write, line: &str) -> std::io::Result<()> {
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Prints an answer: as JSON for programs, or as text for people.
fn show(as_json: bool, value: &serde_json::Value, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    print_line(&if as_json { format!("{value:#}") } else { text() })
}

fn print_error(message: &str) {
    // There is nobody to be told that there is nobody to be told.
    let _ = writeln!(std::io::stderr().lock(), "kina: {message}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_is_understood_and_what_is_not() {
        for (line, understood) in [
            ("serve", true),
            ("serve --root /r --run /s --socket /t --log-format json --log-level debug", true),
            ("serve --log-format xml", false),
            ("config default", true),
            ("config check /etc/kina.toml", true),
            ("doctor --json", true),
            ("doctor --first-run --run", true),
            ("doctor --run", false),
            ("demo --keep --json --guest /g --directory /d", true),
            ("version --socket /s", true),
            ("version --socket unix:///s", true),
            ("version --socket unix://", false),
            ("image ls --json", true),
            ("image list", true),
            ("image --socket /s ls", true),
            ("image ls --socket /s", true),
            ("image pull busybox --creds user:password --json", true),
            ("image pull busybox --creds a:b --creds-file /f", false),
            ("image pull", false),
            ("image rm", false),
            ("image rm a b", true),
            ("image import - --name a/b:1", true),
            ("image tag a b/c:1", true),
            ("image tag a", false),
            ("image inspect a b", true),
            ("image inspect", false),
            ("image du --json", true),
            ("image prune --all --until 36h --dry-run --json", true),
            ("image prune --until soon", false),
            ("image verify", true),
            ("image verify a b --repair --json", true),
            ("image export a", false),
            ("image export a -", true),
            ("service install --dry-run --manager launchd --config /c --program /p --wait 0", true),
            ("service --manager initd status", false),
            ("service uninstall --unit-directory /d", true),
            ("service status --json --socket /s", true),
            ("service logs -n 5 -f", true),
            ("service", false),
            ("network ls --json", true),
            ("network --socket /s status", true),
            ("network check a", true),
            ("network gc", true),
            ("network test --from a --to b:80", true),
            ("network test --to b", false),
            ("network test --from a --json=xml", false),
            ("", false),
            ("image", false),
        ] {
            let parsed = Arguments::try_parse_from(std::iter::once("kina").chain(line.split_whitespace()));
            assert_eq!(
                parsed.is_ok(),
                understood,
                "{line}: {:?}",
                parsed.err().map(|error| error.to_string())
            );
        }
    }

    #[test]
    fn what_a_daemon_says_stands_for_itself() {
        let said = tonic::Status::not_found("image \"a\" not found");
        let error = anyhow::Error::new(said).context("remove a");
        assert_eq!(describe(&error), "remove a: image \"a\" not found");
        let error = anyhow::Error::new(std::io::Error::other("inner")).context("outer");
        assert_eq!(describe(&error), "outer: inner");
        assert!(!describe(&tonic::Status::unknown("").into()).is_empty());
    }

    #[test]
    fn a_reader_that_has_enough_is_no_failure() {
        struct Out(ErrorKind);
        impl Write for Out {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        assert!(write_line(&mut Out(ErrorKind::BrokenPipe), "a").is_ok());
        let error = write_line(&mut Out(ErrorKind::StorageFull), "a").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }

    #[test]
    fn no_password_is_shown_by_the_help() {
        // The variable may be set where the help is asked for.
        let mut command = Arguments::command();
        let pull = command.find_subcommand_mut("image").and_then(|image| image.find_subcommand_mut("pull"));
        let pull = pull.unwrap();
        let creds = pull.get_arguments().find(|argument| argument.get_id() == "creds").unwrap();
        assert!(creds.is_hide_env_values_set());
    }
}
