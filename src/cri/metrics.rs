//! The metrics that the kubelet passes on under cAdvisor's names. CRI carries
//! whole numbers only, so seconds are whole seconds.

use std::collections::BTreeMap;

use kina_guest_api::v1 as guest;
use v1::MetricType::{Counter, Gauge};

use super::stats::is_running;
use super::{v1, views};
use crate::pod::view::{ContainerView, PodView};
use crate::stats::PodUsage;

/// What every metric is labelled with, first: cAdvisor's labels as the kubelet
/// has them.
const LABELS: [&str; 6] = ["id", "name", "image", "namespace", "pod", "container"];

/// One family of metrics over a `T`.
struct Family<T: 'static> {
    name: &'static str,
    help: &'static str,
    kind: v1::MetricType,
    /// Further labels with their values: the same for every one.
    labels: &'static [(&'static str, &'static str)],
    value: fn(&T) -> Option<u64>,
}

const SECOND: u64 = 1_000_000_000;
const MICROS: u64 = 1_000_000;

fn seconds(nanos: Option<u64>) -> Option<u64> {
    nanos.map(|nanos| nanos / SECOND)
}

fn since_epoch(nanos: i64) -> Option<u64> {
    seconds(u64::try_from(nanos).ok())
}

/// Limits that are none are negative.
fn positive(limit: Option<i64>) -> Option<u64> {
    limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0)
}

/// The period that the kernel takes where none is asked for, in microseconds.
const KERNEL_PERIOD: u64 = 100_000;

/// What of memory a container keeps whatever others need (`memory.min`).
fn reservation(unified: &BTreeMap<String, String>) -> u64 {
    unified.get("memory.min").and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0)
}

/// A kernel with control groups of version 1 slows nobody down for its memory.
const NEVER: Option<u64> = Some(0);

fn stalled(pressure: Option<&guest::Pressure>) -> Option<u64> {
    Some(pressure?.full.as_ref()?.total_micros / MICROS)
}

fn waiting(pressure: Option<&guest::Pressure>) -> Option<u64> {
    Some(pressure?.some.as_ref()?.total_micros / MICROS)
}

macro_rules! family {
    ($kind:ident $name:literal $help:literal [$($key:literal = $label:literal),*] $value:expr) => {
        Family { name: $name, help: $help, kind: $kind, labels: &[$(($key, $label)),*], value: $value }
    };
}

/// Of containers, and of pods as a whole.
const USAGE: &[Family<guest::Usage>] = &[
    family!(Counter "container_cpu_usage_seconds_total" "Processor time used in seconds." ["cpu" = "total"]
        |used| seconds(used.cpu_nanos)),
    family!(Counter "container_cpu_user_seconds_total" "Processor time used by programs in seconds." []
        |used| seconds(used.cpu_user_nanos)),
    family!(Counter "container_cpu_system_seconds_total" "Processor time used by the kernel in seconds." []
        |used| seconds(used.cpu_system_nanos)),
    family!(Counter "container_cpu_cfs_periods_total" "Periods of the processor limit." []
        |used| used.cpu_periods),
    family!(Counter "container_cpu_cfs_throttled_periods_total" "Periods in which the processor limit was reached." []
        |used| used.cpu_throttled_periods),
    family!(Counter "container_cpu_cfs_throttled_seconds_total" "Time spent waiting for the next period in seconds." []
        |used| seconds(used.cpu_throttled_nanos)),
    family!(Gauge "container_memory_usage_bytes" "Memory used in bytes, page cache included." []
        |used| used.memory_bytes),
    family!(Gauge "container_memory_working_set_bytes" "Memory used in bytes without inactive page cache." []
        |used| used.memory_working_set_bytes),
    family!(Gauge "container_memory_rss" "Anonymous memory in bytes." []
        |used| used.memory_rss_bytes),
    family!(Gauge "container_memory_cache" "Page cache in bytes." []
        |used| used.memory_cache_bytes),
    family!(Gauge "container_memory_total_active_file_bytes" "Page cache in bytes that was used lately." []
        |used| used.memory_active_file_bytes),
    family!(Gauge "container_memory_total_inactive_file_bytes" "Page cache in bytes that was not used lately." []
        |used| used.memory_inactive_file_bytes),
    family!(Gauge "container_memory_mapped_file" "Memory mapped from files in bytes." []
        |used| used.memory_mapped_file_bytes),
    family!(Gauge "container_memory_swap" "Swap used in bytes." []
        |used| used.memory_swap_bytes),
    family!(Counter "container_memory_failcnt" "How often the memory limit was reached." []
        |used| used.memory_failures),
    family!(Counter "container_memory_events_high_total" "How often processes were slowed down because of much memory." []
        |used| used.memory_high_events.or(used.memory_bytes.and(NEVER))),
    family!(Counter "container_memory_events_max_total" "How often usage was about to exceed the memory limit." []
        |used| used.memory_failures),
    family!(Counter "container_memory_failures_total" "Page faults." ["failure_type" = "pgfault", "scope" = "container"]
        |used| used.page_faults),
    family!(Counter "container_memory_failures_total" "Page faults." ["failure_type" = "pgmajfault", "scope" = "container"]
        |used| used.major_page_faults),
    family!(Gauge "container_spec_memory_limit_bytes" "Memory limit in bytes; 0 is none." []
        |used| used.memory_bytes.map(|_| used.memory_limit_bytes.unwrap_or(0))),
    family!(Gauge "container_memory_kernel_usage" "Memory that the kernel uses for it in bytes." []
        |used| used.memory_kernel_bytes),
    family!(Gauge "container_memory_max_usage_bytes" "The most memory that was ever used in bytes." []
        |used| used.memory_peak_bytes),
    family!(Counter "container_oom_events_total" "Processes that were killed for want of memory." []
        |used| used.oom_kills),
    family!(Gauge "container_threads" "Processes and threads." []
        |used| used.pids),
    family!(Gauge "container_threads_max" "The most processes and threads that there may be; 0 is no limit." []
        |used| used.pids.map(|_| used.pids_limit.unwrap_or(0))),
    family!(Gauge "container_last_seen" "When it was measured, in seconds since the epoch." []
        |used| since_epoch(used.timestamp_nanos)),
    family!(Counter "container_pressure_cpu_stalled_seconds_total" "Time in which no task could run for want of a processor in seconds." []
        |used| stalled(used.cpu_pressure.as_ref())),
    family!(Counter "container_pressure_cpu_waiting_seconds_total" "Time in which tasks waited for a processor in seconds." []
        |used| waiting(used.cpu_pressure.as_ref())),
    family!(Counter "container_pressure_memory_stalled_seconds_total" "Time in which no task could run for want of memory in seconds." []
        |used| stalled(used.memory_pressure.as_ref())),
    family!(Counter "container_pressure_memory_waiting_seconds_total" "Time in which tasks waited for memory in seconds." []
        |used| waiting(used.memory_pressure.as_ref())),
    family!(Counter "container_pressure_io_stalled_seconds_total" "Time in which no task could run for want of input and output in seconds." []
        |used| stalled(used.io_pressure.as_ref())),
    family!(Counter "container_pressure_io_waiting_seconds_total" "Time in which tasks waited for input and output in seconds." []
        |used| waiting(used.io_pressure.as_ref())),
];

/// Of containers only, as all below up to [`NETWORK`].
const LAYER: &[Family<guest::DiskUsage>] = &[
    family!(Gauge "container_fs_usage_bytes" "Bytes of the writable layer." ["device" = "writable"]
        |layer| Some(layer.used_bytes)),
    family!(Gauge "container_fs_limit_bytes" "Size of the writable layer's file system in bytes." ["device" = "writable"]
        |layer| layer.filesystem_bytes),
    family!(Gauge "container_fs_inodes_total" "Inodes of the writable layer's file system." ["device" = "writable"]
        |layer| layer.filesystem_inodes),
    family!(Gauge "container_fs_inodes_free" "Free inodes of the writable layer's file system." ["device" = "writable"]
        |layer| layer.filesystem_free_inodes),
];

const PROCESSES: &[Family<guest::ProcessCount>] = &[
    family!(Gauge "container_processes" "Processes." [] |count| Some(count.processes)),
    family!(Gauge "container_file_descriptors" "Open descriptors of the processes." []
        |count| Some(count.descriptors)),
    family!(Gauge "container_sockets" "Descriptors that are sockets." [] |count| Some(count.sockets)),
    family!(Gauge "container_ulimits_soft" "Soft limit of the container's own process." ["ulimit" = "max_open_files"]
        |count| count.descriptors_limit),
];

/// Per device.
const DEVICE_BYTES: &[Family<guest::BlockDeviceStats>] = &[
    family!(Counter "container_blkio_device_usage_total" "Bytes that went to or came from a block device." ["operation" = "Read"]
        |device| Some(device.read_bytes)),
    family!(Counter "container_blkio_device_usage_total" "Bytes that went to or came from a block device." ["operation" = "Write"]
        |device| Some(device.written_bytes)),
];

/// The further labels of [`DEVICE_BYTES`]; [`DEVICES`] has the first.
const DEVICE_LABELS: [&str; 3] = ["device", "major", "minor"];

/// Per device.
const DEVICES: &[Family<guest::BlockDeviceStats>] = &[
    family!(Counter "container_fs_reads_bytes_total" "Bytes read from a block device." []
        |device| Some(device.read_bytes)),
    family!(Counter "container_fs_reads_total" "Reads from a block device." [] |device| Some(device.reads)),
    family!(Counter "container_fs_writes_bytes_total" "Bytes written to a block device." []
        |device| Some(device.written_bytes)),
    family!(Counter "container_fs_writes_total" "Writes to a block device." [] |device| Some(device.writes)),
];

/// Of containers, and of pods as a whole, per size of huge pages.
const HUGE_PAGES: &[Family<guest::HugePages>] = &[
    family!(Gauge "container_hugetlb_usage_bytes" "Huge pages used in bytes." [] |pages| Some(pages.bytes)),
    family!(Gauge "container_hugetlb_max_usage_bytes" "The most huge pages that were ever used in bytes." []
        |pages| pages.peak_bytes),
];

/// The further label of [`HUGE_PAGES`].
const PAGE_SIZE_LABEL: &str = "pagesize";

/// What the daemon knows by itself. A limit that was not asked for has no value, but where 0 says
/// so.
const KNOWN: &[Family<ContainerView>] = &[
    family!(Gauge "container_creation_time_seconds" "When it was made, in seconds since the epoch." []
        |container| since_epoch(container.created_at)),
    family!(Gauge "container_start_time_seconds" "When it was started, in seconds since the epoch." []
    |container| match container.state {
        kina_model::ContainerState::Running(running) => since_epoch(running.started_at),
        _ => None,
    }),
    family!(Gauge "container_spec_cpu_period" "Period of the processor limit in microseconds." []
        |container| Some(container.spec.resources.cpu_period_micros.unwrap_or(KERNEL_PERIOD))),
    family!(Gauge "container_spec_cpu_quota" "Processor limit in microseconds of each period." []
        |container| positive(container.spec.resources.cpu_quota_micros)),
    family!(Gauge "container_spec_cpu_shares" "Weight for the processor." []
        |container| container.spec.resources.cpu_shares),
    family!(Gauge "container_spec_memory_reservation_limit_bytes" "Memory that is kept for it in bytes; 0 is none." []
        |container| Some(reservation(&container.spec.resources.unified))),
    family!(Gauge "container_spec_memory_swap_limit_bytes" "Limit of memory and swap together in bytes; 0 is none." []
        |container| Some(positive(container.spec.resources.memory_swap_limit_bytes).unwrap_or(0))),
];

/// Of pods only, per interface.
const NETWORK: &[Family<guest::InterfaceStats>] = &[
    family!(Counter "container_network_receive_bytes_total" "Bytes received." [] |one| Some(one.rx_bytes)),
    family!(Counter "container_network_receive_packets_total" "Packets received." [] |one| Some(one.rx_packets)),
    family!(Counter "container_network_receive_errors_total" "Errors while receiving." [] |one| Some(one.rx_errors)),
    family!(Counter "container_network_receive_packets_dropped_total" "Packets dropped while receiving." []
        |one| Some(one.rx_dropped)),
    family!(Counter "container_network_transmit_bytes_total" "Bytes sent." [] |one| Some(one.tx_bytes)),
    family!(Counter "container_network_transmit_packets_total" "Packets sent." [] |one| Some(one.tx_packets)),
    family!(Counter "container_network_transmit_errors_total" "Errors while sending." [] |one| Some(one.tx_errors)),
    family!(Counter "container_network_transmit_packets_dropped_total" "Packets dropped while sending." []
        |one| Some(one.tx_dropped)),
];

/// The timestamp of what is read when it is asked for, as the CRI has it. A time of its
/// own keeps Prometheus from noticing that a container has gone, and would be of the
/// machine's clock.
const LIVE: i64 = 0;

/// The further label of [`NETWORK`].
const INTERFACE_LABEL: &str = "interface";

/// All metrics, once each.
#[must_use]
pub fn descriptors() -> Vec<v1::MetricDescriptor> {
    fn all<'a, T>(
        families: &'a [Family<T>],
        more: &'a [&'a str],
    ) -> impl Iterator<Item = v1::MetricDescriptor> + 'a {
        families.iter().map(move |family| {
            let own = family.labels.iter().map(|(key, _)| *key);
            v1::MetricDescriptor {
                name: family.name.to_owned(),
                help: family.help.to_owned(),
                label_keys: LABELS
                    .into_iter()
                    .chain(own)
                    .chain(more.iter().copied())
                    .map(str::to_owned)
                    .collect(),
            }
        })
    }
    let mut descriptors: Vec<_> = all(USAGE, &[])
        .chain(all(LAYER, &[]))
        .chain(all(PROCESSES, &[]))
        .chain(all(DEVICE_BYTES, &DEVICE_LABELS))
        .chain(all(DEVICES, &DEVICE_LABELS[..1]))
        .chain(all(HUGE_PAGES, &[PAGE_SIZE_LABEL]))
        .chain(all(KNOWN, &[]))
        .chain(all(NETWORK, &[INTERFACE_LABEL]))
        .collect();
    descriptors.dedup_by(|one, other| one.name == other.name);
    descriptors
}

/// A pod's metrics with those of its running containers.
#[must_use]
pub fn pod_metrics(usage: &PodUsage) -> v1::PodSandboxMetrics {
    let pod = &usage.pod;
    let answer = usage.usage.as_ref();
    let mut metrics = Vec::new();
    let labels = labels(pod, None);
    if let Some(used) = answer.and_then(|answer| answer.pod.as_ref()) {
        add(&mut metrics, USAGE, used, LIVE, &labels, &[]);
        for pages in answer.iter().flat_map(|answer| &answer.huge_pages) {
            add(&mut metrics, HUGE_PAGES, pages, LIVE, &labels, &[&pages.page_size]);
        }
        let interfaces =
            answer.filter(|_| !pod.spec.namespaces.host_network).map(|answer| &answer.interfaces);
        for interface in interfaces.into_iter().flatten() {
            add(&mut metrics, NETWORK, interface, LIVE, &labels, &[&interface.name]);
        }
    }
    let running = pod.containers.values().filter(|container| is_running(container));
    v1::PodSandboxMetrics {
        pod_sandbox_id: pod.id.to_string(),
        metrics,
        container_metrics: running.map(|container| container_metrics(container, usage)).collect(),
    }
}

fn container_metrics(container: &ContainerView, usage: &PodUsage) -> v1::ContainerMetrics {
    let id = container.id.as_str();
    let mut metrics = Vec::new();
    let labels = labels(&usage.pod, Some(container));
    if let Some(stats) = usage.container(id)
        && let Some(used) = &stats.usage
    {
        add(&mut metrics, USAGE, used, LIVE, &labels, &[]);
        for pages in &stats.huge_pages {
            add(&mut metrics, HUGE_PAGES, pages, LIVE, &labels, &[&pages.page_size]);
        }
        add(&mut metrics, KNOWN, container, LIVE, &labels, &[]);
        if let Some(layer) = &stats.writable_layer {
            // Measured some seconds ago as a rule.
            add(&mut metrics, LAYER, layer, layer.timestamp_nanos, &labels, &[]);
        }
        if let Some(count) = &stats.processes {
            add(&mut metrics, PROCESSES, count, LIVE, &labels, &[]);
        }
        for device in &stats.block_devices {
            let (major, minor) = (device.major.to_string(), device.minor.to_string());
            let name = if device.name.is_empty() {
                format!("{major}:{minor}")
            } else {
                format!("/dev/{}", device.name)
            };
            add(&mut metrics, DEVICE_BYTES, device, LIVE, &labels, &[&name, &major, &minor]);
            add(&mut metrics, DEVICES, device, LIVE, &labels, &[&name]);
        }
    }
    v1::ContainerMetrics { container_id: id.to_owned(), metrics }
}

/// The values of [`LABELS`]; a pod as a whole has no image and no container.
fn labels(pod: &PodView, container: Option<&ContainerView>) -> [String; 6] {
    let id = container.map_or(pod.id.as_str(), |container| container.id.as_str());
    let metadata = &pod.spec.metadata;
    [
        id.to_owned(),
        id.to_owned(),
        // The kubelet asks for an image by its id.
        container.map(|container| views::image_name(container).to_owned()).unwrap_or_default(),
        metadata.namespace.clone(),
        metadata.name.clone(),
        container.map(|container| container.spec.metadata.name.clone()).unwrap_or_default(),
    ]
}

fn add<T>(
    metrics: &mut Vec<v1::Metric>,
    families: &[Family<T>],
    of: &T,
    timestamp: i64,
    labels: &[String; 6],
    more: &[&str],
) {
    for family in families {
        let Some(value) = (family.value)(of) else {
            continue;
        };
        let own = family.labels.iter().map(|(_, value)| (*value).to_owned());
        metrics.push(v1::Metric {
            name: family.name.to_owned(),
            timestamp,
            metric_type: family.kind.into(),
            label_values: labels
                .iter()
                .cloned()
                .chain(own)
                .chain(more.iter().map(|&value| value.to_owned()))
                .collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};
    use std::sync::Arc;

    use kina_model::{ContainerId, ContainerState, PodId, PodState, Running};

    use super::*;
    use crate::pod::view::test_support;

    /// Everything that can be counted, counted.
    fn usage() -> PodUsage {
        let pod: PodId = "a".repeat(32).parse().unwrap();
        let id: ContainerId = "c".repeat(32).parse().unwrap();
        let state = ContainerState::Running(Running { started_at: 5_000_000_000 });
        let mut container = test_support::container(id.clone(), pod.clone(), state);
        let resources = kina_model::Resources {
            cpu_period_micros: Some(100_000),
            cpu_quota_micros: Some(20_000),
            cpu_shares: Some(1024),
            memory_swap_limit_bytes: Some(-1),
            unified: BTreeMap::from([("memory.min".to_owned(), "4096".to_owned())]),
            ..kina_model::Resources::default()
        };
        let spec = kina_model::ContainerSpec { resources, ..(*container.spec).clone() };
        container.spec = Arc::new(spec);
        container.image.user_specified = "files:1".to_owned();
        let container = Arc::new(container);
        let pod = test_support::pod(pod, PodState::Starting, BTreeMap::from([(id.clone(), container)]));
        let stall = guest::Stall { total_micros: 3_500_000, ..guest::Stall::default() };
        let pressure = Some(guest::Pressure { some: Some(stall), full: Some(stall) });
        let used = guest::Usage {
            timestamp_nanos: 9,
            cpu_nanos: Some(2_900_000_000),
            cpu_user_nanos: Some(1),
            cpu_system_nanos: Some(2),
            cpu_periods: Some(3),
            cpu_throttled_periods: Some(4),
            cpu_throttled_nanos: Some(5),
            memory_bytes: Some(100),
            memory_working_set_bytes: Some(90),
            memory_rss_bytes: Some(80),
            memory_cache_bytes: Some(70),
            memory_mapped_file_bytes: Some(60),
            memory_swap_bytes: Some(50),
            memory_limit_bytes: None,
            memory_failures: Some(6),
            page_faults: Some(7),
            major_page_faults: Some(8),
            pids: Some(9),
            memory_kernel_bytes: Some(40),
            memory_peak_bytes: Some(120),
            oom_kills: Some(1),
            pids_limit: None,
            memory_active_file_bytes: Some(30),
            memory_inactive_file_bytes: Some(10),
            memory_high_events: Some(12),
            memory_swap_limit_bytes: Some(500),
            cpu_pressure: pressure,
            memory_pressure: pressure,
            io_pressure: pressure,
        };
        let layer = guest::DiskUsage {
            timestamp_nanos: 8,
            used_bytes: 10,
            inodes: 2,
            incomplete: false,
            filesystem_bytes: Some(1_000),
            filesystem_inodes: Some(100),
            filesystem_free_inodes: Some(50),
        };
        let block_devices = [("vda", 0), ("", 16)].map(|(name, minor)| guest::BlockDeviceStats {
            name: name.to_owned(),
            major: 8,
            minor,
            read_bytes: 4096,
            ..guest::BlockDeviceStats::default()
        });
        let huge_pages =
            |size: &str| guest::HugePages { page_size: size.to_owned(), bytes: 13, peak_bytes: Some(14) };
        let container = guest::ContainerStats {
            id: id.to_string(),
            usage: Some(used),
            writable_layer: Some(layer),
            processes: Some(guest::ProcessCount {
                processes: 2,
                descriptors: 7,
                sockets: 3,
                descriptors_limit: Some(1024),
            }),
            block_devices: block_devices.to_vec(),
            huge_pages: vec![huge_pages("2MB"), huge_pages("1GB")],
        };
        let interfaces = ["eth0", "net1"].map(|name| guest::InterfaceStats {
            name: name.to_owned(),
            rx_bytes: 11,
            ..guest::InterfaceStats::default()
        });
        let answer = guest::StatsResponse {
            containers: vec![container],
            pod: Some(used),
            interfaces: interfaces.to_vec(),
            huge_pages: vec![huge_pages("2MB")],
        };
        let (nano_cores, container_nano_cores) = (None, HashMap::new());
        PodUsage { pod: Arc::new(pod), usage: Some(answer), nano_cores, container_nano_cores }
    }

    /// The kubelet refuses a metric whose labels are not its descriptor's, and
    /// two of the same name and labels.
    #[test]
    fn metrics_fit_their_descriptors() {
        let descriptors = descriptors();
        let keys: BTreeMap<&str, usize> =
            descriptors.iter().map(|one| (one.name.as_str(), one.label_keys.len())).collect();
        assert_eq!(keys.len(), descriptors.len(), "a name is there twice");
        let metrics = pod_metrics(&usage());
        let of_containers = metrics.container_metrics.iter().flat_map(|container| &container.metrics);
        let (mut seen, mut names) = (BTreeSet::new(), BTreeSet::new());
        for metric in metrics.metrics.iter().chain(of_containers) {
            assert_eq!(metric.label_values.len(), keys[metric.name.as_str()], "{metric:?}");
            // What is read when it is asked for has none; a writable layer was measured before.
            let measured = LAYER.iter().any(|family| family.name == metric.name);
            assert_eq!(metric.timestamp, if measured { 8 } else { 0 }, "{metric:?}");
            assert!(seen.insert((&metric.name, &metric.label_values)), "{metric:?} is there twice");
            names.insert(metric.name.as_str());
        }
        assert_eq!(names, keys.keys().copied().collect(), "of some metric there is never a value");
    }

    #[test]
    fn values_are_what_was_counted() {
        let metrics = pod_metrics(&usage());
        let value = |name: &str| {
            let found = metrics.container_metrics[0].metrics.iter().find(|metric| metric.name == name);
            found.and_then(|metric| metric.value).map(|value| value.value)
        };
        assert_eq!(
            metrics.container_metrics[0].metrics[0].label_values[2], "files:1",
            "not what it was asked by"
        );
        assert_eq!(value("container_cpu_usage_seconds_total"), Some(2));
        assert_eq!(value("container_memory_working_set_bytes"), Some(90));
        assert_eq!(value("container_spec_memory_limit_bytes"), Some(0));
        assert_eq!(value("container_pressure_io_waiting_seconds_total"), Some(3));
        assert_eq!(value("container_start_time_seconds"), Some(5));
        assert_eq!(value("container_threads_max"), Some(0), "there is no limit");
        assert_eq!(value("container_sockets"), Some(3));
        assert_eq!(value("container_spec_cpu_quota"), Some(20_000));
        assert_eq!(value("container_spec_memory_reservation_limit_bytes"), Some(4096));
        assert_eq!(value("container_ulimits_soft"), Some(1024));
        assert_eq!(value("container_memory_events_high_total"), Some(12));
        assert_eq!(value("container_memory_events_max_total"), Some(6));
        assert_eq!(value("container_spec_memory_swap_limit_bytes"), Some(0), "there is no limit");
        let read = metrics.container_metrics[0].metrics.iter();
        let read: Vec<_> =
            read.filter(|metric| metric.name == "container_blkio_device_usage_total").collect();
        assert_eq!(read[0].label_values[LABELS.len()..], ["Read", "/dev/vda", "8", "0"]);
        assert_eq!(
            read[2].label_values[LABELS.len()..],
            ["Read", "8:16", "8", "16"],
            "its name is not known"
        );
        let pages = metrics.container_metrics[0].metrics.iter();
        let pages: Vec<_> = pages.filter(|metric| metric.name.starts_with("container_hugetlb_")).collect();
        let told =
            |at: usize| (pages[at].label_values.last().unwrap().as_str(), pages[at].value.unwrap().value);
        assert_eq!((told(0), told(1), told(2)), (("2MB", 13), ("2MB", 14), ("1GB", 13)));
        // Without an answer there is nothing to tell, and nobody is told zero.
        let silent = PodUsage { usage: None, ..usage() };
        let metrics = pod_metrics(&silent);
        assert_eq!((metrics.metrics.len(), metrics.container_metrics[0].metrics.len()), (0, 0));
    }

    /// The same of the calls about usage.
    #[test]
    fn what_is_not_counted_is_absent() {
        use crate::cri::stats::{Disk, pod_stats};
        let stats = pod_stats(&usage(), Disk("/disk")).linux.unwrap();
        let memory = stats.memory.unwrap();
        assert_eq!(memory.working_set_bytes.unwrap().value, 90);
        assert_eq!(memory.available_bytes, None, "there is no limit");
        assert_eq!(stats.cpu.unwrap().usage_nano_cores, None, "asked for the first time");
        // In nanoseconds, whatever the kernel counts in.
        assert_eq!(stats.io.unwrap().psi.unwrap().some.unwrap().total, 3_500_000_000);
        let swap = stats.containers[0].swap.unwrap();
        assert_eq!(
            (swap.swap_usage_bytes.unwrap().value, swap.swap_available_bytes.unwrap().value),
            (50, 450)
        );
        let network = stats.network.unwrap();
        assert_eq!(network.default_interface.unwrap().name, "eth0");
        assert_eq!(network.interfaces.len(), 1);
        assert_eq!(stats.containers[0].writable_layer.as_ref().unwrap().used_bytes.unwrap().value, 10);
        let mut alone = usage();
        alone.usage.as_mut().unwrap().interfaces.retain(|one| one.name != "eth0");
        let stats = pod_stats(&alone, Disk("/disk")).linux.unwrap();
        assert_eq!(stats.network, None, "an answer without the default interface kills the kubelet");
        let silent = PodUsage { usage: None, ..usage() };
        let stats = pod_stats(&silent, Disk("/disk")).linux.unwrap();
        assert!(stats.memory.is_none() && stats.network.is_none());
        assert_eq!(stats.containers, [], "to the kubelet an absent counter is at zero");
    }
}
