//! The command line's side: what each command asks of the server, in the order of Apple's, and
//! what it prints.

mod configure;
mod container;
mod image;
mod network;
mod output;
mod simulator;
mod system;
mod volume;

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitCode};
use std::time::Duration;

use crate::arguments::{Matches, parse, usage};
use crate::commands;
use crate::error::{Code, Failure, Problem};
use crate::place::Place;
use crate::process;
use crate::protocol::{Answer, Request, route};
use crate::resources::Platform;
use crate::settings::{Release, Settings, Trap};
use crate::{shape, wire};

/// The name of the server, in error texts.
const SERVICE: &str = "com.apple.container.apiserver";
/// How long a server that launchd starts may take to be there.
const LAUNCH: Duration = Duration::from_secs(10);

/// The usual time limit of requests (`XPCClient.xpcRegistrationTimeout`).
pub(crate) const MINUTE: Option<Duration> = Some(Duration::from_secs(60));
/// That of lists and of health checks.
pub(crate) const TEN_SECONDS: Option<Duration> = Some(Duration::from_secs(10));

/// What a command works with.
pub(crate) struct Client {
    pub(crate) place: Place,
    pub(crate) settings: Settings,
    stream: RefCell<Option<UnixStream>>,
}

/// The platform that this machine runs.
#[must_use]
pub fn host_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        "x86_64" => "amd64",
        other => other,
    };
    Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
}

/// Runs a command line, without the program's name.
pub(crate) fn main(words: &[String]) -> ExitCode {
    let place = Place::from_environment();
    let settings = match Settings::load(&place.root) {
        Ok(settings) => settings,
        Err(mistake) => {
            drop(writeln!(io::stderr(), "simulator: {mistake}"));
            return ExitCode::from(2);
        }
    };
    let client = Client { place, settings, stream: RefCell::new(None) };
    match client.run(words) {
        Ok(code) => ExitCode::from(code),
        Err((failure, usage)) => report(&failure, &usage),
    }
}

fn report(failure: &Failure, usage: &str) -> ExitCode {
    let mut stderr = io::stderr().lock();
    let (text, code) = match failure {
        Failure::Help(text) => {
            drop(writeln!(io::stdout(), "{text}"));
            return ExitCode::SUCCESS;
        }
        Failure::Usage { message, help } => {
            let help = if help.is_empty() { String::new() } else { format!("Help:  {help}\n") };
            (format!("Error: {message}\n{help}{usage}"), 64)
        }
        Failure::Problem(problem) => (format!("Error: {}", text_of(problem)), 1),
        Failure::Plain(text) => (format!("Error: {}", with_hint(text, text)), 1),
        Failure::Exit(code) => return ExitCode::from(*code),
    };
    // Nobody is left to be told.
    drop(writeln!(stderr, "{text}"));
    ExitCode::from(code)
}

/// The short form, or what `Application.main` makes of it without a connection.
fn text_of(problem: &Problem) -> String {
    with_hint(&problem.to_string(), &problem.short())
}

fn with_hint(long: &str, short: &str) -> String {
    if long.contains("XPC connection error") {
        format!("{long}\nEnsure container system service has been started with `container system start`.")
    } else {
        short.to_owned()
    }
}

/// A failure, and the usage that goes with it if it is one of the command line.
type Ended = (Failure, String);

impl Client {
    pub(crate) fn release(&self) -> Release {
        self.settings.version
    }

    fn run(&self, words: &[String]) -> Result<u8, Ended> {
        let root_usage = || {
            "Usage: container [--debug] <subcommand>\n  See 'container --help' for more information."
                .to_owned()
        };
        let plain = |failure: Failure| (failure, root_usage());
        // `--debug` may stand before everything.
        let skip = words.iter().take_while(|word| *word == "--debug").count();
        let words = &words[skip..];
        match words.first().map(String::as_str) {
            None | Some("--help" | "-h" | "help") => return Err(plain(Failure::Help(root_usage()))),
            Some("--version") => {
                let line = format!("{}\n", shape::version_line("container CLI", self.release()));
                return output::print(&line).map(|()| 0).map_err(|problem| plain(problem.into()));
            }
            Some("simulator") => return simulator::run(self, &words[1..]).map(|()| 0).map_err(plain),
            Some(_) => {}
        }
        let Some((command, own)) = commands::find(words) else {
            return Err(plain(self.unknown(words)));
        };
        let ended = |failure| (failure, usage(command, self.release()));
        let matches = parse(command, &words[own..], self.release()).map_err(ended)?;
        self.dispatch(command.path, &matches).map_err(ended)
    }

    /// A first word that is no command: a group without its command, or a plugin's name.
    fn unknown(&self, words: &[String]) -> Failure {
        let first = words.first().map(String::as_str).unwrap_or_default();
        let is_group =
            commands::COMMANDS.iter().any(|command| command.path.len() > 1 && command.path[0] == first);
        match words.get(1) {
            None if is_group => Failure::Help(format!("Usage: container {first} <subcommand>")),
            Some(word) if is_group => match word.starts_with('-') {
                true if matches!(word.as_str(), "-h" | "--help") => {
                    Failure::Help(format!("Usage: container {first} <subcommand>"))
                }
                true => Failure::usage(format!("Unknown option '{word}'")),
                false => Failure::usage(format!("Unexpected argument '{word}'")),
            },
            Some(_) | None if first.is_empty() => Failure::usage("unknown argument ''"),
            Some(_) | None if first.starts_with('-') => Failure::usage(format!("unknown option '{first}'")),
            Some(_) | None => match self.ping(TEN_SECONDS) {
                Ok(_) => Failure::usage(format!("Plugin 'container-{first}' not found.")),
                Err(_) => Failure::usage(
                    "Plugins are unavailable. Start the container system services and retry:\n\n    container system start",
                ),
            },
        }
    }

    fn dispatch(&self, path: &[&str], matches: &Matches) -> Result<u8, Failure> {
        match path {
            ["run"] => return container::run(self, matches),
            ["exec"] => return container::exec(self, matches),
            ["start"] => return container::start(self, matches),
            ["system", "status"] => return system::status(self, matches),
            ["create"] => container::create(self, matches)?,
            ["stop"] => container::stop(self, matches)?,
            ["kill"] => container::kill(self, matches)?,
            ["delete"] => container::delete(self, matches)?,
            ["list"] => container::list(self, matches)?,
            ["inspect"] => container::inspect(self, matches)?,
            ["logs"] => container::logs(self, matches)?,
            ["stats"] => container::stats(self, matches)?,
            ["system", "start"] => system::start(self, matches)?,
            ["system", "stop"] => system::stop(self)?,
            ["system", "version"] => system::version(self, matches)?,
            ["system", "kernel", "set"] => system::kernel_set(self, matches)?,
            ["network", "create"] => network::create(self, matches)?,
            ["network", "delete"] => network::delete(self, matches)?,
            ["network", "list"] => network::list(self, matches)?,
            ["network", "inspect"] => network::inspect(self, matches)?,
            ["image", "list"] => image::list(self, matches)?,
            ["image", "inspect"] => image::inspect(self, matches)?,
            ["image", "load"] => image::load(self, matches)?,
            ["image", "pull"] => image::pull(self, matches)?,
            ["image", "delete"] => image::delete(self, matches)?,
            ["image", "tag"] => image::tag(self, matches)?,
            ["volume", "create"] => volume::create(self, matches)?,
            ["volume", "delete"] => volume::delete(self, matches)?,
            ["volume", "list"] => volume::list(self, matches)?,
            ["volume", "inspect"] => volume::inspect(self, matches)?,
            other => return Err(Failure::Plain(format!("the simulator lacks {}", other.join(" ")))),
        }
        Ok(0)
    }

    /// Asks the server for something, and waits so long for its answer.
    pub(crate) fn ask(&self, request: &Request, limit: Option<Duration>) -> Result<Answer, Problem> {
        self.ask_with(request, &[], limit).map(|(answer, _)| answer)
    }

    /// The same, with descriptors both ways.
    pub(crate) fn ask_with(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        limit: Option<Duration>,
    ) -> Result<(Answer, Vec<OwnedFd>), Problem> {
        let mut stream = self.stream.borrow_mut();
        let connected = match stream.take() {
            Some(connected) => connected,
            None => self.connect()?,
        };
        let interrupted = || connection_error("Connection interrupted");
        connected.set_read_timeout(limit.map(|limit| self.settings.patience(limit)))?;
        wire::send(&connected, request, descriptors).map_err(|_| interrupted())?;
        let received = wire::receive(&connected);
        match received {
            Ok(Some((Answer::Failed(problem), _))) => {
                *stream = Some(connected);
                Err(problem)
            }
            Ok(Some((answer, files))) => {
                *stream = Some(connected);
                Ok((answer, files))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let route = route(request);
                Err(Problem::internal(format!("XPC timeout for request to {SERVICE}/{route}")))
            }
            Ok(None) | Err(_) => Err(interrupted()),
        }
    }

    /// Asks whether the server is there.
    pub(crate) fn ping(&self, limit: Option<Duration>) -> Result<Answer, Problem> {
        self.ask(&Request::Ping, limit)
    }

    pub(crate) fn is_registered(&self) -> bool {
        self.place.apiserver("registered").exists()
    }

    /// Connects to the server. One that is registered and does not run is started, as launchd
    /// does with the first message.
    fn connect(&self) -> Result<UnixStream, Problem> {
        let invalid = || connection_error("Connection invalid");
        if !self.is_registered() || self.settings.trapped(Trap::ServerDown) {
            return Err(invalid());
        }
        let socket = self.place.apiserver("api.sock");
        if let Ok(stream) = wire::connect(&socket) {
            return Ok(stream);
        }
        // Not waited for: it outlives this command.
        let _server = self.launch()?;
        let mut stream = None;
        process::wait_until(LAUNCH, || {
            stream = wire::connect(&socket).ok();
            stream.is_some()
        });
        stream.ok_or_else(invalid)
    }

    /// Held by who starts the server or ends it for good.
    fn launch_lock(place: &Place) -> io::Result<File> {
        let lock = File::create(place.apiserver("launch.lock"))?;
        lock.lock()?;
        Ok(lock)
    }

    /// Starts the server, unless somebody else has, or has ended it for good.
    fn launch(&self) -> Result<Option<Child>, Problem> {
        let _lock = Self::launch_lock(&self.place)?;
        let record = self.place.apiserver("pid");
        if process::recorded(&record).is_some() {
            return Ok(None);
        }
        if !self.is_registered() {
            return Err(connection_error("Connection invalid"));
        }
        drop(fs::remove_file(self.place.apiserver("api.sock")));
        let root = self.place.root.to_string_lossy().into_owned();
        let words = ["__apiserver", root.as_str()];
        Ok(Some(process::spawn(&words, &self.place.apiserver("log"), &record)?))
    }
}

fn connection_error(what: &str) -> Problem {
    Problem::new(Code::Interrupted, format!("XPC connection error: {what}"))
}
