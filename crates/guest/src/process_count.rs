//! How many processes a container has, and what they hold open. They are a container's:
//! they may be many, hold very much, and come and go while they are counted.

use std::time::Instant;

use kina_cgroup::Group;
use kina_guest_api::v1;

/// More descriptors of one container are not counted.
const DESCRIPTORS_LIMIT: u64 = 50_000;

/// Counts until `end`. `None` if that was not enough, or there is too much: part of a sum
/// would look like the whole. Blocks.
pub(crate) fn of(group: &Group, end: Instant) -> Option<v1::ProcessCount> {
    let processes = group.processes().ok()?;
    let mut count =
        v1::ProcessCount { processes: u64::try_from(processes.len()).ok()?, ..v1::ProcessCount::default() };
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
