//! Processes that never outlive whoever started them.

use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

/// Between two looks at whether a condition holds.
const PAUSE: Duration = Duration::from_millis(2);

/// A child with a process group of its own. Dropped, it is killed with all of
/// the group; and it is killed when the thread that started it ends, so that a
/// killed test leaves nothing.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts `command`; `name` is for messages.
    ///
    /// # Errors
    /// When the program cannot be started.
    #[allow(unsafe_code, reason = "only between fork and exec can a process ask to die with its parent")]
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).process_group(0);
        // SAFETY: one system call, and no memory of the parent is touched.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into)
            });
        }
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The pipe of its standard output, once, if it has one.
    pub(super) fn take_output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("wait for {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                bail!("{} has not ended after {patience:?}", self.name);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Kills it with all of its group, and waits for its end.
    pub fn kill(&mut self) {
        if let Some(group) = self.group() {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        drop(self.child.wait());
    }

    /// Whether a process of its group is left, itself included.
    pub fn is_left(&self) -> bool {
        self.group().is_some_and(|group| rustix::process::test_kill_process_group(group).is_ok())
    }

    fn group(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until `holds` says so, in vain for at most `patience`.
pub(super) fn wait_until(
    what: &str,
    patience: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let end = Instant::now() + patience;
    while !holds()? {
        if Instant::now() >= end {
            bail!("{what}: not after {patience:?}");
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_group_outlives_it() {
        let mut process =
            Process::start("shell", Command::new("/bin/sh").args(["-c", "sleep 1000 & wait"])).unwrap();
        assert!(process.is_left());
        assert!(process.wait(Duration::from_millis(1)).is_err());
        process.kill();
        wait_until("the group is gone", Duration::from_secs(10), || Ok(!process.is_left())).unwrap();
    }
}
