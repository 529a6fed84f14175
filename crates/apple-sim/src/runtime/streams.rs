//! The standard streams of processes, and where what they say goes.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use kina_launch::Stdio;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::Problem;

/// The streams that a client has given; what it has not given is nothing.
pub(super) struct Given {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// What copies the output until there is none any more. Each tells its end by the end of a channel.
pub(super) struct Copies(Vec<Receiver<Infallible>>);

/// How long a process that has ended waits for a client that does not read
/// (`LinuxProcess.swift`, `waitIoComplete`).
const UNREAD: Duration = Duration::from_secs(3);

impl Given {
    /// From what came with a message.
    pub(super) fn new(stdin: bool, descriptors: Vec<OwnedFd>) -> Self {
        let mut descriptors = descriptors.into_iter();
        Self {
            stdin: if stdin { descriptors.next() } else { None },
            stdout: descriptors.next(),
            stderr: descriptors.next(),
        }
    }

    fn input(&mut self) -> Result<OwnedFd, Problem> {
        Ok(match self.stdin.take() {
            Some(stdin) => stdin,
            None => File::open("/dev/null")?.into(),
        })
    }

    /// The client's own descriptors as a process' streams.
    pub(super) fn directly(mut self) -> Result<Stdio, Problem> {
        let null =
            || -> Result<OwnedFd, Problem> { Ok(OpenOptions::new().write(true).open("/dev/null")?.into()) };
        Ok(Stdio::Files {
            stdin: self.input()?,
            stdout: self.stdout.map_or_else(null, Ok)?,
            stderr: self.stderr.map_or_else(null, Ok)?,
        })
    }

    /// Streams whose output also goes to a log: both into the same one, as they come.
    pub(super) fn logged(mut self, log: &Path) -> Result<(Stdio, Copies), Problem> {
        let log = Arc::new(OpenOptions::new().append(true).open(log)?);
        let stdin = self.input()?;
        let (out_end, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (error_end, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let copies = vec![
            copy(out_end, self.stdout.map(File::from), Some(Arc::clone(&log))),
            copy(error_end, self.stderr.map(File::from), Some(log)),
        ];
        Ok((Stdio::Files { stdin, stdout, stderr }, Copies(copies)))
    }

    /// Joins a terminal to the client's streams, and to a log if there is one.
    pub(super) fn terminal(self, terminal: OwnedFd, log: Option<&Path>) -> Result<Copies, Problem> {
        let log = match log {
            Some(log) => Some(Arc::new(OpenOptions::new().append(true).open(log)?)),
            None => None,
        };
        if let Some(stdin) = self.stdin {
            // Ends with the terminal or the client, whichever ends first; nobody waits for it.
            drop(copy(stdin, Some(File::from(terminal.try_clone()?)), None));
        }
        Ok(Copies(vec![copy(terminal, self.stdout.map(File::from), log)]))
    }
}

impl Copies {
    /// What is carried elsewhere.
    #[cfg(feature = "microvm")]
    pub(super) fn of(carried: Vec<Receiver<Infallible>>) -> Self {
        Self(carried)
    }

    /// Waits for the end of the output, but not for ever.
    pub(super) fn wait(self) {
        let deadline = Instant::now() + UNREAD;
        for copy in self.0 {
            // Nothing is ever sent.
            let _ = copy.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }
}

/// Copies until the end; a reader that has gone away is forgotten.
fn copy(from: OwnedFd, mut to: Option<File>, log: Option<Arc<File>>) -> Receiver<Infallible> {
    let (running, ended) = mpsc::sync_channel(0);
    std::thread::spawn(move || {
        let _running: SyncSender<Infallible> = running;
        let mut from = File::from(from);
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // How a terminal ends.
                Err(_) => return,
            };
            if let Some(log) = &log {
                drop((&**log).write_all(&buffer[..count]));
            }
            if to.as_mut().is_some_and(|to| to.write_all(&buffer[..count]).is_err()) {
                to = None;
            }
        }
    });
    ended
}
