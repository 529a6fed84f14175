//! What is there now: pods, containers, the daemon's own process.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use rustix::process::Resource;
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::PREFIX;
use crate::pod::view::PodView;

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct StateLabels {
    handler: &'static str,
    state: &'static str,
}

/// Pods and containers, by handler and state. Those that one waits for are there
/// even when there are none, so that a series does not come and go.
pub(super) fn of_pods(pods: &[Arc<PodView>], handlers: &[&'static str]) -> Registry {
    let count = |always: &'static str, states: Vec<StateLabels>| {
        let mut counts: BTreeMap<StateLabels, i64> =
            handlers.iter().map(|&handler| (StateLabels { handler, state: always }, 0)).collect();
        for labels in states {
            *counts.entry(labels).or_default() += 1;
        }
        let family: Family<StateLabels, Gauge> = Family::default();
        for (labels, number) in counts {
            family.get_or_create(&labels).set(number);
        }
        family
    };
    let labels = |pod: &PodView, state| StateLabels { handler: pod.spec.placement.handler(), state };
    let of_pods = pods.iter().map(|pod| labels(pod, pod.state.name())).collect();
    let of_containers = pods
        .iter()
        .flat_map(|pod| pod.containers.values().map(|container| labels(pod, container.state.name())))
        .collect();
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register("pods", "Pods that are there", count("ready", of_pods));
    registry.register("containers", "Containers that are there", count("running", of_containers));
    registry
}

/// The process, by the names that Prometheus' client libraries have agreed on.
/// What the operating system does not tell is absent. Reads files.
pub(super) fn of_process() -> Registry {
    let mut registry = Registry::with_prefix("process");
    let cpu: Counter<f64, AtomicU64> = Counter::default();
    let used = clock_gettime(ClockId::ProcessCPUTime);
    cpu.inc_by(seconds(used));
    registry.register("cpu_seconds", "Processor time of the daemon", cpu);
    let mut gauge = |name: &str, help: &str, value: Option<u64>| {
        if let Some(value) = value {
            registry.register(name, help, ConstGauge::new(value));
        }
    };
    gauge("resident_memory_bytes", "Memory of the daemon that is resident", resident_bytes());
    gauge("open_fds", "Descriptors that the daemon has open", open_descriptors());
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    gauge("max_fds", "Descriptors that it may have open", limit);
    gauge("threads", "Threads of the daemon", threads());
    registry
}

fn seconds(time: Timespec) -> f64 {
    let whole = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    (whole + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))).as_secs_f64()
}

/// From the process file system (proc(5)), where there is one.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

fn threads() -> Option<u64> {
    count(Path::new("/proc/self/task"))
}

/// `/dev/fd` is on Linux and on macOS; the one that lists it is not counted.
fn open_descriptors() -> Option<u64> {
    Some(count(Path::new("/dev/fd"))?.saturating_sub(1))
}

fn count(directory: &Path) -> Option<u64> {
    Some(std::fs::read_dir(directory).ok()?.count() as u64)
}

/// When this runtime was opened, in seconds since 1970.
pub(super) fn of_start(at: SystemTime) -> Registry {
    let mut registry = Registry::with_prefix("process");
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    registry.register(
        "start_time_seconds",
        "When the daemon began to serve, since 1970",
        ConstGauge::new(since),
    );
    registry
}
