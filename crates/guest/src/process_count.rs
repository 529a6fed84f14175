//! How many processes a container has, and what they hold open. They are a container's:
//! they may be many, hold very much, and come and go while they are counted.

use std::time::Instant;

use kina_cgroup::Group;
use kina_guest_api::v1;

/// More descriptors of one container are not counted.
const DESCRIPTORS_LIMIT: u64 = 50_000;

/// Counts until `end`. `None` if that was not enough, or there is too much: part of a sum
/// would look like the whole. Blocks. `first` is the container's own process.
pub(crate) fn of(group: &Group, first: u32, end: Instant) -> Option<v1::ProcessCount> {
    let processes = group.processes().ok()?;
    // Another process may have its number once it has ended.
    let is_there = processes.iter().any(|process| u32::try_from(*process) == Ok(first));
    let mut count = v1::ProcessCount {
        processes: u64::try_from(processes.len()).ok()?,
        descriptors_limit: if is_there { descriptors_limit(first) } else { None },
        ..v1::ProcessCount::default()
    };
    for process in processes {
        // One that has ended meanwhile holds nothing.
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{process}/fd")) else { continue };
        for descriptor in descriptors.filter_map(Result::ok) {
            if count.descriptors >= DESCRIPTORS_LIMIT || Instant::now() >= end {
                return None;
            }
            // Closed since the directory was read.
            let Ok(target) = std::fs::read_link(descriptor.path()) else { continue };
            count.descriptors += 1;
            count.sockets += u64::from(target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
        }
    }
    Some(count)
}

/// How many descriptors a process may open, unless it may open any number of them.
fn descriptors_limit(process: u32) -> Option<u64> {
    soft_limit(&std::fs::read_to_string(format!("/proc/{process}/limits")).ok()?, "Max open files")
}

/// The first number behind a limit's name (proc_pid_limits(5)).
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let values = limits.lines().find_map(|line| line.strip_prefix(name))?;
    values.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             unlimited            unlimited            processes \n\
                      Max open files            1024                 1048576              files     \n";
        assert_eq!(soft_limit(limits, "Max open files"), Some(1024));
        assert_eq!(soft_limit(limits, "Max processes"), None);
        assert_eq!(soft_limit(limits, "Max stack size"), None);
        let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        assert_eq!(descriptors_limit(std::process::id()), own);
    }
}
