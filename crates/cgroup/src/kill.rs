//! Freezing a group and killing everything in it.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};

use crate::group::{read, write};
use crate::{Error, Group};

impl Group {
    /// Stops every process of the group, and waits until the kernel says so or `deadline` passes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a freezer, [`Error::NotEmpty`] if some would not freeze (the
    /// group is then thawed again).
    pub fn freeze(&self, deadline: Duration) -> Result<(), Error> {
        let begin = Instant::now();
        let Some(control) = self.control("freezer", "freezer.state", "cgroup.freeze") else {
            return Err(Error::Unsupported {
                field: "freeze",
                file: "freezer.state or cgroup.freeze".to_owned(),
            });
        };
        let v1 = self.is_v1("freezer");
        write(&control, if v1 { "FROZEN" } else { "1" })?;
        loop {
            let frozen = if v1 {
                read(&control)?.trim() == "FROZEN"
            } else {
                flag(&control.with_file_name("cgroup.events"), "frozen")?
            };
            if frozen {
                return Ok(());
            }
            if begin.elapsed() >= deadline {
                self.thaw()?;
                return Err(Error::NotEmpty {
                    path: self.path().to_owned(),
                    count: self.processes()?.len(),
                    waited: begin.elapsed(),
                });
            }
            std::thread::sleep(Duration::from_millis(1));
            if v1 {
                // v1 wants to be asked again for processes forked meanwhile.
                write(&control, "FROZEN")?;
            }
        }
    }

    /// Lets the processes of a frozen group go on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a freezer, [`Error::Write`].
    pub fn thaw(&self) -> Result<(), Error> {
        let Some(control) = self.control("freezer", "freezer.state", "cgroup.freeze") else {
            return Err(Error::Unsupported {
                field: "thaw",
                file: "freezer.state or cgroup.freeze".to_owned(),
            });
        };
        let value = if self.is_v1("freezer") { "THAWED" } else { "0" };
        write(&control, value)
    }

    /// Kills every process of the group and of those below it, and waits until none is left or
    /// `deadline` has passed. A group that is empty or gone is done at once. What was killed is
    /// still to be waited for by its parent.
    ///
    /// # Errors
    /// [`Error::NotEmpty`] if processes are left (uninterruptible ones), [`Error::Read`].
    pub fn kill_all(&self, deadline: Duration) -> Result<(), Error> {
        let begin = Instant::now();
        let unified = self.unified_directory();
        if self.is_v1("freezer") {
            // Frozen processes of v1 do not die of a signal.
            self.release()?;
        }
        if let Some(directory) = &unified {
            kill_unified(directory, deadline)?;
        }
        let mut pause = Duration::from_micros(200);
        let mut rounds = 0_u32;
        loop {
            let processes = self.processes()?;
            if processes.is_empty() {
                return Ok(());
            }
            // Processes that fork faster than they are killed: hold them still. Not in the first
            // rounds, since nearly always one signal each is all that it takes.
            let frozen =
                rounds >= 2 && self.is_v1("freezer") && self.freeze(Duration::from_millis(50)).is_ok();
            let targets = if frozen { self.processes()? } else { processes };
            for pid in &targets {
                if let Some(pid) = Pid::from_raw(*pid) {
                    // Already gone is as good; what stays is seen in the next round.
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            if self.is_v1("freezer") {
                self.release()?;
            }
            if begin.elapsed() >= deadline {
                return Err(Error::NotEmpty {
                    path: self.path().to_owned(),
                    count: targets.len(),
                    waited: begin.elapsed(),
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
            rounds += 1;
        }
    }

    /// Thaws a v1 group that may be gone.
    fn release(&self) -> Result<(), Error> {
        match self.thaw() {
            Ok(()) | Err(Error::Write { .. } | Error::Unsupported { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Uses `cgroup.kill` (Linux 5.14) and waits for `populated 0`. Does nothing if the group is gone
/// or the kernel older; leftovers are found by the caller.
fn kill_unified(directory: &Path, deadline: Duration) -> Result<(), Error> {
    let begin = Instant::now();
    match write(&directory.join("cgroup.kill"), "1") {
        Ok(()) => {}
        Err(Error::Write { source, .. }) if is_gone(&source) => return Ok(()),
        Err(error) => return Err(error),
    }
    let path = directory.join("cgroup.events");
    let failed = |source| Error::Read { path: path.clone(), source };
    let mut events = match File::open(&path) {
        Ok(events) => events,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    loop {
        let mut text = String::new();
        let read = events.rewind().and_then(|()| (&mut events).take(4096).read_to_string(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        if !text.lines().any(|line| line.trim() == "populated 1") {
            return Ok(());
        }
        let left = deadline.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        // The kernel wakes POLLPRI when the content changes.
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs().min(1)).unwrap_or(1),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut entry = [PollFd::new(&events, PollFlags::PRI)];
        match poll(&mut entry, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Whether a file of a group could not be had because somebody removed the group: its name is
/// gone, or it is on its way out, which any step with the file may find.
fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Reads a `key 0|1` line.
fn flag(path: &Path, key: &str) -> Result<bool, Error> {
    Ok(read(path)?
        .lines()
        .filter_map(|line| line.split_once(' '))
        .any(|(name, value)| name == key && value.trim() == "1"))
}
