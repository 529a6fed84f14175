//! Processes by their identity: number and start time.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{Error, ProcessIdentity, ProcessUsage};

/// Linux counts processor time for user space in hundredths of a second on
/// every architecture that it runs on (`USER_HZ`).
const NANOS_PER_TICK: u64 = 10_000_000;

/// What `/proc/<pid>/stat` says (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    state: u8,
    /// Of user space and of the kernel.
    cpu_ticks: u64,
    start_ticks: u64,
}

impl Stat {
    /// Zombies and dead processes run no more.
    fn lives(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }
}

fn parse_stat(stat: &str) -> Option<Stat> {
    // The command's name may hold spaces and parentheses; the last one ends it.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // State is field 3, the processor times 14 and 15, the start time 22.
    let user: u64 = fields.nth(10)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let start_ticks = fields.nth(6)?.parse().ok()?;
    Some(Stat { state, cpu_ticks: user.checked_add(system)?, start_ticks })
}

fn stat(pid: u32) -> Result<Option<Stat>, Error> {
    let failed = |source| Error::Process { operation: "inspect", pid, source };
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(text) => {
            parse_stat(&text).map(Some).ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidData)))
        }
        // ESRCH: it went between open and read.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(failed(error)),
    }
}

/// The identity of a process that exists, also of a zombie.
pub(crate) fn identity(pid: u32) -> Result<Option<ProcessIdentity>, Error> {
    Ok(stat(pid)?.map(|stat| ProcessIdentity { pid, start_ticks: stat.start_ticks }))
}

/// Whether that very process runs.
pub(crate) fn lives(process: ProcessIdentity) -> Result<bool, Error> {
    Ok(stat(process.pid)?.is_some_and(|stat| stat.start_ticks == process.start_ticks && stat.lives()))
}

/// See [`crate::Node::process_usage`].
pub(crate) fn usage(process: ProcessIdentity) -> Result<Option<ProcessUsage>, Error> {
    let pid = process.pid;
    let rollup = match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        Ok(rollup) => rollup,
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            return Ok(None);
        }
        Err(source) => return Err(Error::Process { operation: "measure", pid, source }),
    };
    // Looked at after the memory: if it is the one asked for now, it was then.
    let found = stat(pid)?.filter(|stat| stat.start_ticks == process.start_ticks && stat.lives());
    Ok(found.map(|stat| ProcessUsage {
        memory_bytes: proportional_set_size(&rollup, "Pss:").unwrap_or(0),
        // Linux 6.0 and later tell.
        shared_memory_bytes: proportional_set_size(&rollup, "Pss_Shmem:").unwrap_or(0),
        cpu_nanos: stat.cpu_ticks.saturating_mul(NANOS_PER_TICK),
    }))
}

/// `Pss:` or a part of it in `/proc/<pid>/smaps_rollup`, in bytes (the file
/// counts in KiB).
fn proportional_set_size(rollup: &str, name: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Waits until that very process runs no more.
#[allow(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
pub(crate) async fn wait(process: ProcessIdentity) -> Result<(), Error> {
    let pid = process.pid;
    let failed = |source| Error::Process { operation: "wait for", pid, source };
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let pidfd = match rustix::process::pidfd_open(number, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(failed(error.into())),
    };
    // Looked at after the descriptor is had: if it is ours now, the descriptor
    // is of ours.
    if !lives(process)? {
        return Ok(());
    }
    // SAFETY: an OwnedFd is open and the same until it is dropped, which the
    // AsyncFd does.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
        .map_err(|error| failed(error.into()))?;
    let _readable = pidfd.readable().await.map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_parsed() {
        let line = "42 (a ) R) S 1 42 42 0 -1 4194560 1 0 0 0 2 3 0 0 20 0 1 0 987654 1000 2 184";
        assert_eq!(parse_stat(line), Some(Stat { state: b'S', cpu_ticks: 5, start_ticks: 987_654 }));
        for bad in ["", "42 (x", "42 (x) S 1 2 3", "42 (x) "] {
            assert_eq!(parse_stat(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn memory_is_parsed() {
        let rollup =
            "00400000-7ff000 ---p 00000000 00:00 0 [rollup]\nRss: 10 kB\nPss: 7 kB\nPss_Shmem: 1 kB\n";
        assert_eq!(proportional_set_size(rollup, "Pss:"), Some(7 * 1024));
        assert_eq!(proportional_set_size(rollup, "Pss_Shmem:"), Some(1024));
        assert_eq!(proportional_set_size("Rss: 10 kB", "Pss:"), None);
    }

    #[test]
    fn another_start_time_is_another_process() {
        let own = identity(std::process::id()).unwrap().unwrap();
        assert!(lives(own).unwrap());
        let other = ProcessIdentity { start_ticks: own.start_ticks + 1, ..own };
        assert!(!lives(other).unwrap());
    }

    #[tokio::test]
    async fn waiting_ends_with_the_process_and_not_before() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = identity(child.id()).unwrap().unwrap();
        let waiting = tokio::spawn(wait(process));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        child.kill().unwrap();
        // A zombie counts as gone: it is not reaped yet.
        waiting.await.unwrap().unwrap();
        assert!(!lives(process).unwrap());
        child.wait().unwrap();
        wait(process).await.unwrap();
    }

    #[tokio::test]
    async fn a_reused_number_is_not_waited_for() {
        let own = identity(std::process::id()).unwrap().unwrap();
        wait(ProcessIdentity { start_ticks: own.start_ticks + 1, ..own }).await.unwrap();
        wait(ProcessIdentity { pid: u32::MAX, start_ticks: 1 }).await.unwrap();
    }
}
