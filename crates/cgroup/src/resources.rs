//! Limits of a group.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::group::{read, write};
use crate::{DeviceRule, Error, Group};

/// Limits to set. What is `None` (or empty) is left as it is.
///
/// The fields mean what they mean in the OCI runtime specification, which speaks in v1 terms;
/// for v2 they are converted as its reference implementation does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative share of processor time, 2 to 262144; v2: `cpu.weight`.
    pub cpu_shares: Option<u64>,
    /// Processor time per period in microseconds; -1 for no limit.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds.
    pub cpu_period: Option<u64>,
    /// Unused quota that may be saved up, in microseconds.
    pub cpu_burst: Option<u64>,
    /// 1 makes the group run only when nothing else does.
    pub cpu_idle: Option<i64>,
    /// Processors, as in `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, as in `0-1`.
    pub cpuset_mems: Option<String>,
    /// Bytes of memory; -1 for no limit.
    pub memory_limit: Option<i64>,
    /// Bytes of memory and swap together; -1 for no limit.
    pub memory_swap_limit: Option<i64>,
    /// Bytes of memory that the kernel tries to leave to the group; v2: `memory.low`.
    pub memory_reservation: Option<i64>,
    /// 0 to 100; v1 only.
    pub memory_swappiness: Option<u64>,
    /// Let processes wait instead of killing one when memory is out; v1 only.
    pub oom_kill_disable: Option<bool>,
    /// How many processes and threads; 0 or less for no limit.
    pub pids_limit: Option<i64>,
    /// Limits of huge pages.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Relative share of block IO, 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// Bytes read per second.
    pub throttle_read_bps: Vec<ThrottleDevice>,
    /// Bytes written per second.
    pub throttle_write_bps: Vec<ThrottleDevice>,
    /// Reads per second.
    pub throttle_read_iops: Vec<ThrottleDevice>,
    /// Writes per second.
    pub throttle_write_iops: Vec<ThrottleDevice>,
    /// Which devices may be used: later rules outrank earlier ones. Empty: no restriction is set.
    pub devices: Vec<DeviceRule>,
    /// v2 files and what to write into them, after all else.
    pub unified: BTreeMap<String, String>,
}

/// A limit of one size of huge pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugepageLimit {
    /// The size as the kernel names it, as in `2MB`.
    pub page_size: String,
    /// Bytes; -1 for no limit.
    pub limit: i64,
}

/// A rate limit of one block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottleDevice {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes or operations per second; 0 for no limit.
    pub rate: u64,
}

impl Group {
    /// Sets limits. They are set in turn: after an error those before it are in force.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a field without a control on this kernel,
    /// [`Error::InvalidValue`], [`Error::Set`] if the kernel refuses a value.
    pub fn set(&self, resources: &Resources) -> Result<(), Error> {
        Change { group: self, before: None }.set(resources)
    }

    /// Sets limits, all or none: after an error what was changed before it is changed back, as far
    /// as the kernel allows.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn change(&self, resources: &Resources) -> Result<(), Error> {
        let change = Change { group: self, before: Some(RefCell::default()) };
        let result = change.set(resources);
        if result.is_err() {
            change.undo();
        }
        result
    }
}

/// Limits being set.
struct Change<'a> {
    group: &'a Group,
    /// What was changed and what was there before, if that is to be known.
    before: Option<RefCell<Vec<(PathBuf, String)>>>,
}

impl Change<'_> {
    /// Puts back what was there before, the latest change first.
    fn undo(self) {
        for (path, value) in self.before.into_iter().flat_map(RefCell::into_inner).rev() {
            let now = read(&path).unwrap_or_default();
            for line in to_put_back(&path, &value, &now) {
                // What cannot be put back stays; the caller is told of the first failure.
                drop(write(&path, &format!("{line}\n")));
            }
        }
    }

    fn set(&self, resources: &Resources) -> Result<(), Error> {
        self.set_processor(resources)?;
        self.set_memory(resources)?;
        if let Some(limit) = resources.pids_limit {
            let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
            self.put("pids_limit", "pids", "pids.max", "pids.max", &value)?;
        }
        for limit in &resources.hugepage_limits {
            self.set_hugepages(limit)?;
        }
        self.set_block_io(resources)?;
        if !resources.devices.is_empty() {
            self.group.set_devices(&resources.devices)?;
        }
        for (file, value) in &resources.unified {
            if file.contains('/') || !file.contains('.') {
                return Err(Error::InvalidValue { field: "unified", value: file.clone() });
            }
            let path = self
                .group
                .unified_directory()
                .map(|directory| directory.join(file))
                .filter(|path| path.is_file())
                .ok_or_else(|| Error::Unsupported { field: "unified", file: file.clone() })?;
            self.put_at("unified", path, value)?;
        }
        Ok(())
    }

    fn set_processor(&self, resources: &Resources) -> Result<(), Error> {
        if let Some(idle) = resources.cpu_idle {
            self.put("cpu_idle", "cpu", "cpu.idle", "cpu.idle", &idle.to_string())?;
        }
        if let Some(shares) = resources.cpu_shares.filter(|shares| *shares != 0) {
            if self.group.is_v1("cpu") {
                self.put("cpu_shares", "cpu", "cpu.shares", "", &shares.to_string())?;
            } else {
                let weight = weight_of_shares(shares).to_string();
                self.put("cpu_shares", "cpu", "", "cpu.weight", &weight)?;
            }
        }
        let quota = resources.cpu_quota.filter(|quota| *quota != 0);
        let period = resources.cpu_period.filter(|period| *period != 0);
        if self.group.is_v1("cpu") {
            let put_quota = |quota: i64| {
                let quota = quota.max(-1).to_string();
                self.put("cpu_quota", "cpu", "cpu.cfs_quota_us", "", &quota)
            };
            if let Some(period) = period {
                let value = period.to_string();
                let put_period = || self.put("cpu_period", "cpu", "cpu.cfs_period_us", "", &value);
                // The parent's limit may forbid the new period with the old quota.
                match (put_period(), quota) {
                    (Ok(()), _) => {}
                    (Err(Error::Set { .. }), Some(quota)) => {
                        put_quota(quota)?;
                        put_period()?;
                    }
                    (Err(error), _) => return Err(error),
                }
            }
            if let Some(quota) = quota {
                put_quota(quota)?;
            }
        } else if quota.is_some() || period.is_some() {
            let quota = match quota {
                Some(quota) if quota > 0 => quota.to_string(),
                Some(_) => "max".to_owned(),
                None => {
                    let path = self.found("cpu_period", "cpu", "", "cpu.max")?;
                    let now = read(&path)?;
                    now.split_whitespace().next().unwrap_or("max").to_owned()
                }
            };
            let value = match period {
                Some(period) => format!("{quota} {period}"),
                None => quota,
            };
            self.put("cpu_quota", "cpu", "", "cpu.max", &value)?;
        }
        if let Some(burst) = resources.cpu_burst {
            let burst = burst.to_string();
            self.put("cpu_burst", "cpu", "cpu.cfs_burst_us", "cpu.max.burst", &burst)?;
        }
        let sets = [
            ("cpuset_cpus", "cpuset.cpus", &resources.cpuset_cpus),
            ("cpuset_mems", "cpuset.mems", &resources.cpuset_mems),
        ];
        for (field, file, value) in sets {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                self.put(field, "cpuset", file, file, value)?;
            }
        }
        Ok(())
    }

    fn set_memory(&self, resources: &Resources) -> Result<(), Error> {
        // 0 means "not set" in the specification.
        let limit = resources.memory_limit.filter(|limit| *limit != 0);
        let swap = resources.memory_swap_limit.filter(|limit| *limit != 0);
        if self.group.is_v1("memory") {
            let put_limit = |limit: i64| {
                let value = limit.max(-1).to_string();
                self.put("memory_limit", "memory", "memory.limit_in_bytes", "", &value)
            };
            let put_swap = |limit: i64| {
                let file = "memory.memsw.limit_in_bytes";
                let value = limit.max(-1).to_string();
                self.put("memory_swap_limit", "memory", file, "", &value)
            };
            match (limit, swap) {
                // Each must stay below the other all the time, so the order depends on whether
                // the limits grow or shrink: if one order fails, the other is right.
                (Some(limit), Some(swap)) => {
                    if put_limit(limit).is_ok() {
                        put_swap(swap)?;
                    } else {
                        put_swap(swap)?;
                        put_limit(limit)?;
                    }
                }
                (Some(limit), None) => put_limit(limit)?,
                (None, Some(swap)) => put_swap(swap)?,
                (None, None) => {}
            }
        } else {
            if let Some(limit) = limit {
                self.put("memory_limit", "memory", "", "memory.max", &or_max(limit))?;
            }
            if let Some(swap) = swap {
                let limit = match limit {
                    Some(limit) => Some(limit),
                    // "max" is no number.
                    None => read(&self.found("memory_swap_limit", "memory", "", "memory.max")?)?
                        .trim()
                        .parse()
                        .ok(),
                };
                let value = match (swap, limit) {
                    (..0, _) => "max".to_owned(),
                    (swap, Some(limit)) if limit >= 0 && swap >= limit => (swap - limit).to_string(),
                    _ => {
                        return Err(Error::InvalidValue {
                            field: "memory_swap_limit",
                            value: swap.to_string(),
                        });
                    }
                };
                match self.put("memory_swap_limit", "memory", "", "memory.swap.max", &value) {
                    // Nothing is swapped out that is not counted.
                    Err(Error::Unsupported { .. }) if matches!(value.as_str(), "max" | "0") => {}
                    done => done?,
                }
            }
        }
        if let Some(reservation) = resources.memory_reservation.filter(|value| *value != 0) {
            let value = if self.group.is_v1("memory") {
                reservation.max(-1).to_string()
            } else {
                or_max(reservation)
            };
            let (v1, v2) = ("memory.soft_limit_in_bytes", "memory.low");
            self.put("memory_reservation", "memory", v1, v2, &value)?;
        }
        if let Some(swappiness) = resources.memory_swappiness {
            let value = swappiness.to_string();
            self.put("memory_swappiness", "memory", "memory.swappiness", "", &value)?;
        }
        // v2 cannot disable it, so there "do not" is already so.
        if let Some(disable) =
            resources.oom_kill_disable.filter(|disable| *disable || self.group.is_v1("memory"))
        {
            let value = if disable { "1" } else { "0" };
            self.put("oom_kill_disable", "memory", "memory.oom_control", "", value)?;
        }
        Ok(())
    }

    fn set_hugepages(&self, limit: &HugepageLimit) -> Result<(), Error> {
        let size = &limit.page_size;
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Error::InvalidValue { field: "hugepage_limits", value: size.clone() });
        }
        let (value, v1, v2) =
            (or_max(limit.limit), format!("hugetlb.{size}.limit_in_bytes"), format!("hugetlb.{size}.max"));
        let value = if self.group.is_v1("hugetlb") { limit.limit.max(-1).to_string() } else { value };
        match self.put("hugepage_limits", "hugetlb", &v1, &v2, &value) {
            // A kernel that does not count them; the kubelet forbids every size of the node's to
            // every container that asks for none.
            Err(Error::Unsupported { .. }) if limit.limit == 0 => Ok(()),
            done => done,
        }
    }

    fn set_block_io(&self, resources: &Resources) -> Result<(), Error> {
        if let Some(weight) = resources.blkio_weight.filter(|weight| *weight != 0) {
            let names = [
                ("blkio.weight", "io.bfq.weight", u64::from(weight)),
                ("blkio.bfq.weight", "io.weight", weight_of_blkio(weight)),
            ];
            let mut done = false;
            for (v1, v2, converted) in names {
                if self.group.control("blkio", v1, "").is_some() {
                    self.put("blkio_weight", "blkio", v1, "", &weight.to_string())?;
                    done = true;
                    break;
                }
                if !self.group.is_v1("blkio") && self.group.control("io", "", v2).is_some() {
                    self.put("blkio_weight", "io", "", v2, &converted.to_string())?;
                    done = true;
                    break;
                }
            }
            if !done {
                return Err(Error::Unsupported {
                    field: "blkio_weight",
                    file: "blkio.weight, blkio.bfq.weight, io.bfq.weight or io.weight".to_owned(),
                });
            }
        }
        let rates = [
            ("throttle_read_bps", "read_bps", "rbps", &resources.throttle_read_bps),
            ("throttle_write_bps", "write_bps", "wbps", &resources.throttle_write_bps),
            ("throttle_read_iops", "read_iops", "riops", &resources.throttle_read_iops),
            ("throttle_write_iops", "write_iops", "wiops", &resources.throttle_write_iops),
        ];
        for (field, v1, v2, devices) in rates {
            for ThrottleDevice { major, minor, rate } in devices {
                if self.group.is_v1("blkio") {
                    let file = format!("blkio.throttle.{v1}_device");
                    self.put(field, "blkio", &file, "", &format!("{major}:{minor} {rate}"))?;
                } else {
                    let rate = match rate {
                        0 => "max".to_owned(),
                        rate => rate.to_string(),
                    };
                    let value = format!("{major}:{minor} {v2}={rate}");
                    self.put(field, "io", "", "io.max", &value)?;
                }
            }
        }
        Ok(())
    }

    /// The file of a control, or the error that names what is missing.
    fn found(&self, field: &'static str, controller: &str, v1: &str, v2: &str) -> Result<PathBuf, Error> {
        self.group.control(controller, v1, v2).ok_or_else(|| Error::Unsupported {
            field,
            file: match (v1, v2, self.group.is_v1(controller)) {
                ("", name, _) | (name, "", _) | (name, _, true) | (_, name, false) => name.to_owned(),
            },
        })
    }

    fn put(
        &self,
        field: &'static str,
        controller: &str,
        v1: &str,
        v2: &str,
        value: &str,
    ) -> Result<(), Error> {
        self.put_at(field, self.found(field, controller, v1, v2)?, value)
    }

    fn put_at(&self, field: &'static str, path: PathBuf, value: &str) -> Result<(), Error> {
        // One that cannot be read cannot be put back either.
        let before = self.before.as_ref().and_then(|before| Some((before, read(&path).ok()?)));
        put_at(field, path.clone(), value)?;
        if let Some((before, old)) = before {
            before.borrow_mut().push((path, old));
        }
        Ok(())
    }
}

pub(crate) fn put_at(field: &'static str, path: PathBuf, value: &str) -> Result<(), Error> {
    match write(&path, value) {
        Err(Error::Write { path, source }) => {
            Err(Error::Set { field, value: value.to_owned(), path, source })
        }
        done => done,
    }
}

/// What to write into a file that held `before` and holds `now`, so that it holds `before` again.
fn to_put_back(path: &Path, before: &str, now: &str) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(none) = no_limit(path) {
        // A device is listed only if it is limited: one that was not then is freed of its limits.
        let device = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let known: Vec<String> = before.lines().map(device).collect();
        let new = now.lines().map(device).filter(|device| device.contains(':') && !known.contains(device));
        lines.extend(new.map(|device| format!("{device} {none}")));
    } else if before.trim().is_empty() {
        // A set of processors, say.
        return vec![String::new()];
    }
    lines.extend(before.lines().map(str::to_owned));
    lines
}

/// What takes the limits off a device, in a file with one line for each device that has some.
fn no_limit(path: &Path) -> Option<&'static str> {
    match path.file_name()?.to_str()? {
        "io.max" => Some("rbps=max wbps=max riops=max wiops=max"),
        "io.latency" => Some("target=0"),
        "io.weight" | "io.bfq.weight" => Some("default"),
        name if name.starts_with("blkio.throttle.") => Some("0"),
        _ => None,
    }
}

fn or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// Shares (2 to 262144) to v2 weight (1 to 10000): the linear mapping of the OCI runtimes.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// v1 block IO weight (10 to 1000) to v2 weight (1 to 10000).
fn weight_of_blkio(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_span_the_whole_range() {
        assert_eq!(weight_of_shares(2), 1);
        assert_eq!(weight_of_shares(1024), 39);
        assert_eq!(weight_of_shares(262_144), 10_000);
        assert_eq!(weight_of_shares(0), 1);
        assert_eq!(weight_of_blkio(10), 1);
        assert_eq!(weight_of_blkio(1000), 10_000);
    }

    #[test]
    fn what_was_there_is_put_back() {
        const FREE: &str = "rbps=max wbps=max riops=max wiops=max";
        let old = "8:0 rbps=1000 wbps=max riops=max wiops=max";
        let new = "8:16 rbps=max wbps=max riops=max wiops=5";
        let cases: [(&str, &str, String, Vec<String>); 8] = [
            ("io.max", "", new.to_owned(), vec![format!("8:16 {FREE}")]),
            ("io.max", old, format!("{old}\n{new}\n"), vec![format!("8:16 {FREE}"), old.to_owned()]),
            ("io.max", old, "8:0 rbps=7\n".to_owned(), vec![old.to_owned()]),
            ("blkio.throttle.read_bps_device", "", "8:0 7\n".to_owned(), vec!["8:0 0".to_owned()]),
            ("io.weight", "default 100\n", "default 5\n8:0 7\n".to_owned(), {
                vec!["8:0 default".to_owned(), "default 100".to_owned()]
            }),
            ("io.latency", "", "8:0 target=10\n".to_owned(), vec!["8:0 target=0".to_owned()]),
            ("cpuset.cpus", "\n", "0-1\n".to_owned(), vec![String::new()]),
            ("memory.high", "max\n", "7\n".to_owned(), vec!["max".to_owned()]),
        ];
        for (file, before, now, expected) in cases {
            let path = Path::new("/sys/fs/cgroup/a").join(file);
            assert_eq!(to_put_back(&path, before, &now), expected, "{file} {before:?}");
        }
    }
}
