//! One boot with a deadline.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::{Accelerator, Outcome, ProbeConfig};
use crate::Error;
use crate::boot::CommandLine;

/// What the guest says once it listens (see its `init`).
const PASSED: &str = "kina-guest: probe: ";
/// Memory of the machine, in MiB.
const MEMORY: u32 = 256;
/// The longest line looked at, how many wait, and how many are kept for the reason.
const LINE_LIMIT: u64 = 1024;
const LINES_WAITING: usize = 64;
const LINES_KEPT: usize = 3;
/// How long a killed process may take to be gone, and between two looks.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);
/// How long QEMU may take to say its version.
const VERSION_PATIENCE: Duration = Duration::from_secs(20);

/// Boots once.
pub(super) fn run(config: &ProbeConfig<'_>, accelerator: Accelerator) -> Result<Outcome, Error> {
    let end = Instant::now() + config.deadline;
    let line = CommandLine::new(accelerator).pod("probe").probe().build()?;
    let mut command = Command::new(config.qemu);
    command
        .args(["-machine", &accelerator.machine(), "-cpu", accelerator.cpu()])
        .args(["-smp", "1", "-m", &format!("{MEMORY}M")])
        .args(["-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&config.files.kernel)
        .arg("-initrd")
        .arg(&config.files.initramfs)
        .args(["-append", &line]);
    let mut qemu = Qemu::start(&mut command, config.qemu)?;
    let lines = qemu.lines()?;
    let mut last = VecDeque::new();
    let mut passed = false;
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                passed |= line.contains(PASSED);
                if last.len() == LINES_KEPT {
                    last.pop_front();
                }
                last.push_back(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                qemu.kill()?;
                let reason = format!("a kernel did not boot on it in {} s", config.deadline.as_secs_f64());
                return Ok(Outcome::Failed { reason: reason + &told(&last) });
            }
        }
    }
    // Its output has ended: it is on its way.
    match qemu.wait(end.saturating_duration_since(Instant::now()).max(PAUSE))? {
        Some(status) if status.success() && passed => Ok(Outcome::Booted),
        Some(status) => Ok(Outcome::Failed {
            reason: format!("the machine ended ({status}) without a guest{}", told(&last)),
        }),
        None => {
            qemu.kill()?;
            Ok(Outcome::Failed { reason: format!("QEMU did not end{}", told(&last)) })
        }
    }
}

fn told(lines: &VecDeque<String>) -> String {
    if lines.is_empty() {
        return ", and it said nothing".to_owned();
    }
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    format!("; its last words: {}", lines.join(" / "))
}

/// The first line of `qemu --version`.
pub(super) fn qemu_version(path: &Path) -> Result<String, Error> {
    let mut qemu = Qemu::start(Command::new(path).arg("--version"), path)?;
    let line = qemu.lines()?.recv_timeout(VERSION_PATIENCE);
    qemu.kill()?;
    line.map_err(|_| Error::Probe {
        program: path.to_owned(),
        operation: "say its version",
        source: io::ErrorKind::TimedOut.into(),
    })
}

/// A process that does not outlive this one, nor its drop.
struct Qemu<'a> {
    child: Child,
    path: &'a Path,
}

impl<'a> Qemu<'a> {
    #[allow(unsafe_code, reason = "only between fork and exec can a process ask to die with its parent")]
    fn start(command: &mut Command, path: &'a Path) -> Result<Self, Error> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // SAFETY: one system call, and no memory of the parent is touched.
        unsafe {
            command.pre_exec(|| {
                let kill = Some(rustix::process::Signal::KILL);
                rustix::process::set_parent_process_death_signal(kill).map_err(Into::into)
            });
        }
        let child = command.spawn().map_err(|source| Error::Probe {
            program: path.to_owned(),
            operation: "start",
            source,
        })?;
        Ok(Self { child, path })
    }

    /// What it prints, line by line, until it ends. A reader that is not asked
    /// any more lets it go on printing.
    fn lines(&mut self) -> Result<Receiver<String>, Error> {
        let (sender, receiver) = sync_channel(LINES_WAITING);
        let output = self.child.stdout.take().ok_or(io::ErrorKind::NotFound.into());
        let output = output.map_err(|source| self.failed("be listened to", source))?;
        std::thread::Builder::new()
            .name("probe-console".to_owned())
            .spawn(move || read_lines(output, &sender))
            .map_err(|source| self.failed("be listened to", source))?;
        Ok(receiver)
    }

    fn wait(&mut self, patience: Duration) -> Result<Option<ExitStatus>, Error> {
        let end = Instant::now() + patience;
        loop {
            let status = self.child.try_wait().map_err(|source| self.failed("be waited for", source))?;
            if status.is_some() || Instant::now() >= end {
                return Ok(status);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Kills it and waits for its end.
    fn kill(&mut self) -> Result<(), Error> {
        self.child.kill().map_err(|source| self.failed("be killed", source))?;
        match self.wait(KILL_PATIENCE)? {
            Some(_) => Ok(()),
            None => Err(self.failed("end", io::ErrorKind::TimedOut.into())),
        }
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Probe { program: self.path.to_owned(), operation, source }
    }
}

impl Drop for Qemu<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(%error, pid = self.child.id(), "a probe is left");
        }
    }
}

fn read_lines(output: impl Read, lines: &SyncSender<String>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    let mut listening = true;
    loop {
        line.clear();
        match output.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                listening = listening && (text.is_empty() || lines.send(text).is_ok());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_while_somebody_listens_and_to_their_end() {
        let (sender, receiver) = sync_channel(LINES_WAITING);
        let long = "x".repeat(2 * LINE_LIMIT as usize);
        read_lines(format!("first\r\n\nlast\n{long}").as_bytes(), &sender);
        drop(sender);
        let lines: Vec<String> = receiver.iter().collect();
        assert_eq!(lines[..2], ["first", "last"]);
        assert_eq!(lines[2].len(), LINE_LIMIT as usize);
        let (sender, _) = sync_channel(1);
        read_lines(&b"nobody\nlistens\n"[..], &sender);
    }

    #[test]
    fn the_last_words_are_told() {
        assert_eq!(told(&VecDeque::new()), ", and it said nothing");
        let lines = VecDeque::from(["one".to_owned(), "two".to_owned()]);
        assert_eq!(told(&lines), "; its last words: one / two");
    }
}
