//! The simulator's own processes: how one is started, found again and ended. They take the place
//! of launchd's jobs.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

/// How long an ended process may take to be gone.
const GONE: Duration = Duration::from_secs(10);
/// Between two looks at something that nothing tells about.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);

/// Starts this program again as something else, in a process group of its own, with its output in
/// a file. Its process id is written into `record`.
pub(crate) fn spawn<S: AsRef<OsStr>>(arguments: &[S], log: &Path, record: &Path) -> io::Result<Child> {
    let log: File = OpenOptions::new().create(true).append(true).open(log)?;
    let child = Command::new("/proc/self/exe")
        .arg0("container")
        .args(arguments)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    write_record(record, child.id())?;
    Ok(child)
}

/// Records a process, so that it is found again.
pub(crate) fn write_record(record: &Path, id: u32) -> io::Result<()> {
    fs::write(record, format!("{id} {}", start_time(id).unwrap_or_default()))
}

/// A process that was recorded and is still there.
pub(crate) fn recorded(record: &Path) -> Option<(i32, OwnedFd)> {
    let text = fs::read_to_string(record).ok()?;
    let (id, started) = text.split_once(' ')?;
    let number: i32 = id.parse().ok()?;
    let pidfd = rustix::process::pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()?;
    // The number may be another's by now.
    let known = started.parse().ok();
    let same = start_time(id.parse().ok()?) == known && known.is_some();
    // A process whose first thread has ended still has its descriptors until all of them have.
    (same && !ends(&pidfd, Duration::ZERO)).then_some((number, pidfd))
}

/// When a process was started, in ticks since the boot.
fn start_time(id: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Kills a recorded process and waits for its end. Nothing to do is fine.
pub(crate) fn end(record: &Path, signal: Signal) {
    if let Some((_, pidfd)) = recorded(record) {
        kill(&pidfd, signal);
    }
}

/// Kills the processes of an application root that no record names: whoever started one may have
/// been killed before it wrote that.
pub(crate) fn end_unrecorded(root: &Path) -> io::Result<()> {
    let own = |id: &str| {
        let words = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        words.next() == Some(b"container")
            && words.next().is_some_and(|word| word.starts_with(b"__"))
            && words.next() == Some(root.as_os_str().as_encoded_bytes())
    };
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().filter(|id| own(id)) else { continue };
        let opened = id.parse().ok().and_then(Pid::from_raw);
        let opened = opened.and_then(|id| rustix::process::pidfd_open(id, PidfdFlags::empty()).ok());
        // The number may be another's by now.
        if let Some(pidfd) = opened.filter(|_| own(id)) {
            kill(&pidfd, Signal::KILL);
        }
    }
    Ok(())
}

fn kill(pidfd: &OwnedFd, signal: Signal) {
    if rustix::process::pidfd_send_signal(pidfd, signal).is_ok() && !ends(pidfd, GONE) {
        // Fails only if it has ended meanwhile.
        let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        ends(pidfd, GONE);
    }
}

/// Waits for a recorded process to end by itself.
pub(crate) fn await_end(record: &Path) {
    if let Some((_, pidfd)) = recorded(record) {
        ends(&pidfd, GONE);
    }
}

/// Whether a process ends within some time.
pub(crate) fn ends(pidfd: &OwnedFd, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec::try_from(left).ok();
        let mut poll = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut poll, timeout.as_ref()) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Waits for something that nothing tells about.
pub(crate) fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_that_was_recorded_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().join("pid");
        let own = std::process::id();
        fs::write(&record, format!("{own} {}", start_time(own).unwrap())).unwrap();
        assert!(recorded(&record).is_some());
        fs::write(&record, format!("{own} 1")).unwrap();
        assert!(recorded(&record).is_none());
        assert!(recorded(&directory.path().join("none")).is_none());
    }
}
