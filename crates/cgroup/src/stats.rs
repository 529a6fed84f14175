//! What a group uses, and whether the kernel killed something in it for want of memory.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::group::{children, read, write};
use crate::{Error, Group};

/// Usage of a group. A value is `None` where the controller is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Processor time used, in nanoseconds.
    pub cpu_usage_ns: Option<u64>,
    /// Bytes of memory charged, page cache included.
    pub memory_usage: Option<u64>,
    /// Bytes that cannot easily be reclaimed: usage without inactive page cache.
    pub memory_working_set: Option<u64>,
    /// Bytes of anonymous memory.
    pub memory_rss: Option<u64>,
    /// The limit in bytes; `None` also if there is no limit.
    pub memory_limit: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Page faults that needed IO.
    pub major_page_faults: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// Becomes readable when the group runs out of memory, and also when it is removed: read
/// [`Group::oom_kill_count`] then.
#[derive(Debug)]
pub struct OomWatch {
    descriptor: OwnedFd,
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl From<OomWatch> for OwnedFd {
    fn from(watch: OomWatch) -> Self {
        watch.descriptor
    }
}

impl Group {
    /// How often the kernel killed a process of the group, or of one below it, because its memory
    /// was out. `None` without a memory controller.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Content`].
    pub fn oom_kill_count(&self) -> Result<Option<u64>, Error> {
        if let Some(directory) = self.v1_directory("memory") {
            return sum_oom_kills(&directory, 64).map(Some);
        }
        match self.control("memory", "", "memory.events") {
            // Counts groups below as well.
            Some(path) => keyed(&path, "oom_kill").map(Some),
            None => Ok(None),
        }
    }

    /// Watches for the group being out of memory. `None` without a memory controller.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Write`].
    pub fn watch_oom(&self) -> Result<Option<OomWatch>, Error> {
        if let Some(directory) = self.v1_directory("memory") {
            let control = directory.join("memory.oom_control");
            let file =
                File::open(&control).map_err(|source| Error::Read { path: control.clone(), source })?;
            let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
            let descriptor = rustix::event::eventfd(0, flags)
                .map_err(|error| Error::Read { path: control, source: error.into() })?;
            let line = format!("{} {}", descriptor.as_raw_fd(), file.as_raw_fd());
            write(&directory.join("cgroup.event_control"), &line)?;
            return Ok(Some(OomWatch { descriptor }));
        }
        let Some(path) = self.control("memory", "", "memory.events") else {
            return Ok(None);
        };
        let failed = |error: rustix::io::Errno| Error::Read { path: path.clone(), source: error.into() };
        let flags = rustix::fs::inotify::CreateFlags::CLOEXEC | rustix::fs::inotify::CreateFlags::NONBLOCK;
        let descriptor = rustix::fs::inotify::init(flags).map_err(failed)?;
        let events = rustix::fs::inotify::WatchFlags::MODIFY;
        rustix::fs::inotify::add_watch(&descriptor, &path, events).map_err(failed)?;
        Ok(Some(OomWatch { descriptor }))
    }

    /// Reads what the group uses.
    ///
    /// # Errors
    /// [`Error::Read`] if the group is gone, [`Error::Content`].
    pub fn stats(&self) -> Result<Stats, Error> {
        let mut stats = Stats::default();
        if let Some(directory) = self.v1_directory("cpuacct") {
            stats.cpu_usage_ns = Some(number(&directory.join("cpuacct.usage"))?);
        } else if let Some(path) = self.control("cpu", "", "cpu.stat") {
            stats.cpu_usage_ns = Some(keyed(&path, "usage_usec")?.saturating_mul(1000));
        }
        let v1 = self.is_v1("memory");
        let files = if v1 {
            ["memory.usage_in_bytes", "memory.limit_in_bytes"]
        } else {
            ["memory.current", "memory.max"]
        };
        let keys = if v1 {
            ["total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault"]
        } else {
            ["inactive_file", "anon", "pgfault", "pgmajfault"]
        };
        if let Some(path) = self.control("memory", files[0], files[0]) {
            let usage = number(&path)?;
            let detail = path.with_file_name("memory.stat");
            let text = read(&detail)?;
            let value = |key: &str| find(&text, key);
            stats.memory_usage = Some(usage);
            stats.memory_working_set = Some(usage.saturating_sub(value(keys[0]).unwrap_or(0)));
            stats.memory_rss = value(keys[1]);
            stats.page_faults = value(keys[2]);
            stats.major_page_faults = value(keys[3]);
            let limit = read(&path.with_file_name(files[1]))?;
            // v1 shows "no limit" as the largest page-aligned number.
            stats.memory_limit = limit.trim().parse().ok().filter(|limit| *limit < 1 << 62);
        }
        if let Some(path) = self.control("pids", "pids.current", "pids.current") {
            stats.pids = Some(number(&path)?);
        }
        Ok(stats)
    }
}

fn sum_oom_kills(directory: &Path, depth: usize) -> Result<u64, Error> {
    let mut sum = keyed(&directory.join("memory.oom_control"), "oom_kill")?;
    if depth > 0 {
        for child in children(directory).unwrap_or_default() {
            match sum_oom_kills(&child, depth - 1) {
                Ok(more) => sum += more,
                // Removed while we looked.
                Err(Error::Read { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(sum)
}

fn number(path: &Path) -> Result<u64, Error> {
    read(path)?.trim().parse().map_err(|_| Error::Content { path: path.to_owned() })
}

fn find(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
}

fn keyed(path: &Path, key: &str) -> Result<u64, Error> {
    find(&read(path)?, key).ok_or_else(|| Error::Content { path: path.to_owned() })
}
