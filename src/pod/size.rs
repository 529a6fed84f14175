//! How large a machine of its own is made for a pod.
//!
//! ```text
//! the machine's memory = what the containers may use + the rest of the machine
//! ```
//!
//! Containers may use the pod's limit, or the configured default. The rest is
//! the pod's overhead (RuntimeClass) less what the machine's processes take on
//! the node outside of that memory: the kubelet's cgroup for the pod counts
//! both. It is never less than a kernel with a guest needs.

use kina_model::{MachineSize, PodSpec, Resources};
use kina_node::Node;

/// Bytes of a MiB, in which machines are measured.
const MIB: u64 = 1 << 20;

/// The kernel's period of CPU quotas where none is named, in microseconds.
const CPU_PERIOD_MICROS: u64 = 100_000;

/// What sizes depend on beside the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizePolicy {
    /// Memory for the containers of a pod without a limit, in bytes.
    pub memory_bytes: u64,
    /// Virtual CPUs of such a pod.
    pub cpus: u32,
    /// What the kernel and the guest in a machine need, in bytes.
    pub kernel_bytes: u64,
    /// What the processes of a machine take beside its memory, in bytes.
    pub process_bytes: u64,
    /// The least memory of a machine in which a kernel boots, in bytes.
    pub minimum_bytes: u64,
}

/// What the node has, which no machine may exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSize {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// CPUs.
    pub cpus: u32,
}

impl NodeSize {
    /// Asks a node. What it does not say is unbounded.
    pub async fn of(node: &dyn Node) -> Self {
        let read = async |path: &str| {
            let bytes = node.read_file(path.as_ref(), FILE_LIMIT).await.unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Self {
            memory_bytes: total_memory(&read("/proc/meminfo").await).unwrap_or(u64::MAX),
            cpus: cpus_in(&read("/sys/devices/system/cpu/online").await).unwrap_or(u32::MAX),
        }
    }
}

/// The longest file of the kernel that is read, in bytes.
const FILE_LIMIT: usize = 64 << 10;

/// `MemTotal` of `/proc/meminfo`, which counts in KiB.
fn total_memory(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    value.trim().trim_end_matches(" kB").parse::<u64>().ok()?.checked_mul(1024)
}

/// How many a list as `0-3,7` names.
fn cpus_in(list: &str) -> Option<u32> {
    list.trim().split(',').try_fold(0_u32, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// How large a machine is made for a pod with these resources.
#[must_use]
pub fn machine_size(
    resources: Option<&Resources>,
    overhead: Option<&Resources>,
    policy: &SizePolicy,
    node: NodeSize,
) -> MachineSize {
    let memory = |resources: Option<&Resources>| {
        let bytes = resources.and_then(|resources| resources.memory_limit_bytes);
        bytes.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0)
    };
    let containers = memory(resources).unwrap_or(policy.memory_bytes);
    let rest = memory(overhead).unwrap_or(0).saturating_sub(policy.process_bytes).max(policy.kernel_bytes);
    let bytes = containers.saturating_add(rest).max(policy.minimum_bytes);
    // Whole MiB; more than the node has would only be swapped or killed.
    let bytes = bytes.div_ceil(MIB).min(node.memory_bytes / MIB).saturating_mul(MIB);

    let cpus = match milli_cpus(resources) {
        Some(limit) => {
            let all = limit.saturating_add(milli_cpus(overhead).unwrap_or(0));
            u32::try_from(all.div_ceil(1000)).unwrap_or(u32::MAX)
        }
        None => policy.cpus,
    };
    MachineSize { memory_bytes: bytes, cpus: cpus.min(node.cpus).max(1) }
}

/// The same for a pod as it was asked for.
#[must_use]
pub fn size_of(pod: &PodSpec, policy: &SizePolicy, node: NodeSize) -> MachineSize {
    machine_size(pod.resources.as_ref(), pod.overhead.as_ref(), policy, node)
}

/// Thousandths of CPUs that a quota allows; `None` if it is unlimited.
fn milli_cpus(resources: Option<&Resources>) -> Option<u64> {
    let resources = resources?;
    let quota = u64::try_from(resources.cpu_quota_micros?).ok()?;
    let period = resources.cpu_period_micros.unwrap_or(CPU_PERIOD_MICROS).max(1);
    Some(quota.saturating_mul(1000).div_ceil(period))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: SizePolicy = SizePolicy {
        memory_bytes: 512 * MIB,
        cpus: 2,
        kernel_bytes: 48 * MIB,
        process_bytes: 64 * MIB,
        minimum_bytes: 128 * MIB,
    };
    const NODE: NodeSize = NodeSize { memory_bytes: 4096 * MIB + 5, cpus: 8 };

    fn resources(memory_mib: i64, quota: i64) -> Option<Resources> {
        Some(Resources {
            memory_limit_bytes: (memory_mib != 0).then_some(memory_mib * (1 << 20)),
            cpu_quota_micros: (quota != 0).then_some(quota),
            cpu_period_micros: Some(100_000),
            ..Resources::default()
        })
    }

    #[test]
    fn sizes() {
        // What the pod asks for, its overhead, memory in MiB, CPUs.
        for (pod, overhead, memory_mib, cpus) in [
            (None, None, 560, 2),
            (resources(0, 0), None, 560, 2),
            (resources(-1, -1), None, 560, 2),
            (resources(256, 50_000), None, 304, 1),
            (resources(16, 0), None, 128, 2),
            (resources(256, 250_000), resources(160, 25_000), 352, 3),
            (resources(256, 250_000), resources(160, 60_000), 352, 4),
            (resources(256, 100_000), resources(80, 0), 304, 1),
            // An overhead alone limits no containers.
            (None, resources(160, 25_000), 608, 2),
            (resources(100_000, 100_000_000), None, 4096, 8),
        ] {
            let size = machine_size(pod.as_ref(), overhead.as_ref(), &POLICY, NODE);
            let expected = MachineSize { memory_bytes: memory_mib * MIB, cpus };
            assert_eq!(size, expected, "{pod:?} {overhead:?}");
        }
        let odd = Resources { memory_limit_bytes: Some((200 << 20) + 1), ..Resources::default() };
        assert_eq!(machine_size(Some(&odd), None, &POLICY, NODE).memory_bytes, 249 * MIB);
    }

    #[test]
    fn nodes() {
        assert_eq!(total_memory("MemTotal:       16314456 kB\nMemFree: 1 kB\n"), Some(16_314_456 * 1024));
        assert_eq!(total_memory(""), None);
        for (list, count) in [("0\n", Some(1)), ("0-3,7", Some(5)), ("", None), ("3-1", None)] {
            assert_eq!(cpus_in(list), count, "{list:?}");
        }
    }
}
