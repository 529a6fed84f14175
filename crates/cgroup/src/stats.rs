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
    /// Of that, in programs and in the kernel, in nanoseconds.
    pub cpu_user_ns: Option<u64>,
    /// See there.
    pub cpu_system_ns: Option<u64>,
    /// Periods of the processor limit in which something ran.
    pub cpu_periods: Option<u64>,
    /// Of them, those in which the limit was reached.
    pub cpu_throttled_periods: Option<u64>,
    /// How long processes waited because of the limit, in nanoseconds.
    pub cpu_throttled_ns: Option<u64>,
    /// Bytes of memory charged, page cache included.
    pub memory_usage: Option<u64>,
    /// Bytes that cannot easily be reclaimed: usage without inactive page cache.
    pub memory_working_set: Option<u64>,
    /// Bytes of anonymous memory.
    pub memory_rss: Option<u64>,
    /// Bytes of page cache.
    pub memory_cache: Option<u64>,
    /// Of them, those that are mapped.
    pub memory_mapped_file: Option<u64>,
    /// Of the page cache, what was used lately.
    pub memory_active_file: Option<u64>,
    /// Of the page cache, what was not.
    pub memory_inactive_file: Option<u64>,
    /// Bytes that are swapped out.
    pub memory_swap: Option<u64>,
    /// How many may be; `None` also if there is no limit.
    pub memory_swap_limit: Option<u64>,
    /// Bytes that the kernel uses for the group; on v2 from Linux 5.18 on.
    pub memory_kernel: Option<u64>,
    /// The most bytes that were ever charged; on v2 from Linux 5.19 on.
    pub memory_peak: Option<u64>,
    /// How often the limit was reached.
    pub memory_failures: Option<u64>,
    /// How often processes were slowed down because usage was above `memory.high`;
    /// v2 only.
    pub memory_high_events: Option<u64>,
    /// The limit in bytes; `None` also if there is no limit.
    pub memory_limit: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Page faults that needed IO.
    pub major_page_faults: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// The most that there may be of them; `None` also if there is no limit.
    pub pids_limit: Option<u64>,
    /// How processes had to wait for a processor; here and below only where the kernel keeps it, in
    /// the cgroup2 hierarchy.
    pub cpu_pressure: Option<Pressure>,
    /// How they had to wait for memory.
    pub memory_pressure: Option<Pressure>,
    /// How they had to wait for IO.
    pub io_pressure: Option<Pressure>,
}

/// How much time was lost to waiting (the kernel's PSI).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// While some process waited.
    pub some: Stall,
    /// While all of them did; older kernels do not keep it for processors.
    pub full: Option<Stall>,
}

/// Time in which processes waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// Of the last 10 seconds, in hundredths of a percent.
    pub average_10: u32,
    /// Of the last minute, in hundredths of a percent.
    pub average_60: u32,
    /// Of the last five minutes, in hundredths of a percent.
    pub average_300: u32,
    /// Since the group was made, in microseconds.
    pub total_micros: u64,
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
        self.processor_stats(&mut stats)?;
        let v1 = self.is_v1("memory");
        let files = if v1 {
            ["memory.usage_in_bytes", "memory.limit_in_bytes"]
        } else {
            ["memory.current", "memory.max"]
        };
        let keys = if v1 {
            [
                "total_inactive_file",
                "total_rss",
                "total_pgfault",
                "total_pgmajfault",
                "total_cache",
                "total_mapped_file",
                "total_active_file",
            ]
        } else {
            ["inactive_file", "anon", "pgfault", "pgmajfault", "file", "file_mapped", "active_file"]
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
            stats.memory_cache = value(keys[4]);
            stats.memory_mapped_file = value(keys[5]);
            stats.memory_inactive_file = value(keys[0]);
            stats.memory_active_file = value(keys[6]);
            let beside = |file: &str| path.with_file_name(file);
            if v1 {
                stats.memory_swap = value("total_swap");
                stats.memory_failures = number(&beside("memory.failcnt")).ok();
            } else {
                let events = read(&beside("memory.events")).unwrap_or_default();
                stats.memory_failures = find(&events, "max");
                stats.memory_high_events = find(&events, "high");
                stats.memory_swap = number(&beside("memory.swap.current")).ok();
                // "max" is no number.
                stats.memory_swap_limit = number(&beside("memory.swap.max")).ok();
            }
            (stats.memory_kernel, stats.memory_peak) = if v1 {
                let kernel = number(&beside("memory.kmem.usage_in_bytes")).ok();
                (kernel, number(&beside("memory.max_usage_in_bytes")).ok())
            } else {
                (value("kernel"), number(&beside("memory.peak")).ok())
            };
            let limit = read(&path.with_file_name(files[1]))?;
            // v1 shows "no limit" as the largest page-aligned number.
            stats.memory_limit = limit.trim().parse().ok().filter(|limit| *limit < 1 << 62);
            if v1 {
                // Of memory and swap together.
                let both = number(&beside("memory.memsw.limit_in_bytes")).ok();
                let both = both.filter(|limit| *limit < 1 << 62).zip(stats.memory_limit);
                stats.memory_swap_limit = both.map(|(both, memory)| both.saturating_sub(memory));
            }
        }
        if let Some(path) = self.control("pids", "pids.current", "pids.current") {
            stats.pids = Some(number(&path)?);
            stats.pids_limit = number(&path.with_file_name("pids.max")).ok();
        }
        stats.cpu_pressure = self.pressure("cpu.pressure");
        stats.memory_pressure = self.pressure("memory.pressure");
        stats.io_pressure = self.pressure("io.pressure");
        Ok(stats)
    }

    fn processor_stats(&self, stats: &mut Stats) -> Result<(), Error> {
        if let Some(directory) = self.v1_directory("cpuacct") {
            stats.cpu_usage_ns = Some(number(&directory.join("cpuacct.usage"))?);
            stats.cpu_user_ns = number(&directory.join("cpuacct.usage_user")).ok();
            stats.cpu_system_ns = number(&directory.join("cpuacct.usage_sys")).ok();
        }
        let Some(path) = self.control("cpu", "cpu.stat", "cpu.stat") else {
            return Ok(());
        };
        let text = read(&path)?;
        let nanoseconds = |key| find(&text, key).map(|micros| micros.saturating_mul(1000));
        stats.cpu_periods = find(&text, "nr_periods");
        stats.cpu_throttled_periods = find(&text, "nr_throttled");
        stats.cpu_throttled_ns = find(&text, "throttled_time").or_else(|| nanoseconds("throttled_usec"));
        if stats.cpu_usage_ns.is_none() {
            stats.cpu_usage_ns = nanoseconds("usage_usec");
            stats.cpu_user_ns = nanoseconds("user_usec");
            stats.cpu_system_ns = nanoseconds("system_usec");
        }
        Ok(())
    }

    /// `None` also where the kernel has it switched off: then reading is refused.
    fn pressure(&self, file: &str) -> Option<Pressure> {
        pressure(&read(&self.unified_directory()?.join(file)).ok()?)
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

fn pressure(text: &str) -> Option<Pressure> {
    let line = |kind: &str| text.lines().find_map(|line| line.strip_prefix(kind)).and_then(stall);
    Some(Pressure { some: line("some ")?, full: line("full ") })
}

/// `avg10=1.23 avg60=0.00 avg300=0.00 total=45`
fn stall(line: &str) -> Option<Stall> {
    let value = |key: &str| line.split(' ').find_map(|field| field.strip_prefix(key));
    let average = |key| {
        let (whole, hundredths) = value(key)?.split_once('.')?;
        Some(whole.parse::<u32>().ok()?.saturating_mul(100).saturating_add(hundredths.parse().ok()?))
    };
    Some(Stall {
        average_10: average("avg10=")?,
        average_60: average("avg60=")?,
        average_300: average("avg300=")?,
        total_micros: value("total=")?.parse().ok()?,
    })
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
