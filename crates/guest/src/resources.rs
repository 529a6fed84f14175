//! Limits of running containers, and what they use.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kina_cgroup::{Group, Pressure, Stats};
use kina_guest_api::v1;

use crate::container::{Container, now_nanos};
use crate::error::Error;
use crate::guest::{Guest, blocking, cgroup_error};
use crate::namespaces::{enter_network, in_thread};
use crate::pod::Pod;
use crate::process_count;
use crate::spec;

/// How long writable layers may be measured for one answer.
const MEASURE_PATIENCE: Duration = Duration::from_secs(2);
/// A pod has a few interfaces; more are not told.
const INTERFACES_LIMIT: usize = 64;
/// That much of the kernel's list of interfaces is read, in bytes.
const LIST_LIMIT: u64 = 64 << 10;

impl Guest {
    /// Changes a container's limits.
    pub(crate) async fn update(self: Arc<Self>, id: String, asked: v1::Resources) -> Result<(), Error> {
        let container = self.container(&id)?;
        let _turn = container.turn.lock().await;
        let group = container.require_alive("update")?.group.clone();
        let limits = spec::limits(&asked, group.hierarchy())?;
        blocking("update a container", move || {
            group.change(&limits).map_err(|source| cgroup_error(&group, source))
        })
        .await
    }

    /// What the pod and its containers use: those of that ids, or all.
    pub(crate) async fn stats(self: Arc<Self>, ids: Vec<String>) -> Result<v1::StatsResponse, Error> {
        let pod = self.pod().await?;
        let containers = if ids.is_empty() {
            self.all()
        } else {
            ids.iter().map(|id| self.container(id)).collect::<Result<_, _>>()?
        };
        // One at a time: what is measured for one answer serves the next.
        let _turn = self.measuring.lock().await;
        blocking("read what is used", move || {
            let end = Instant::now() + MEASURE_PATIENCE;
            let mut each = Vec::with_capacity(containers.len());
            for container in containers {
                each.extend(container_stats(&container, end)?);
            }
            let used = pod.group.stats().map_err(|source| cgroup_error(&pod.group, source))?;
            Ok(v1::StatsResponse {
                containers: each,
                pod: Some(usage(&pod.group, &used)),
                interfaces: interfaces(&pod)?,
                huge_pages: huge_pages(&pod.group),
            })
        })
        .await
    }
}

/// `None` for a container that is being created or deleted, or that has no process.
fn container_stats(container: &Container, end: Instant) -> Result<Option<v1::ContainerStats>, Error> {
    let (Ok(made), Ok(process)) = (container.made("measure"), container.process("measure")) else {
        return Ok(None);
    };
    if !made.group.exists() {
        return Ok(None);
    }
    let used = match made.group.stats() {
        Ok(used) => used,
        Err(_) if !made.group.exists() => return Ok(None),
        Err(source) => return Err(cgroup_error(&made.group, source)),
    };
    Ok(Some(v1::ContainerStats {
        id: container.id.clone(),
        usage: Some(usage(&made.group, &used)),
        // Bounded by itself; a large layer may take all of the time.
        processes: process_count::of(&made.group, process.pid, end),
        writable_layer: Some(made.writable.usage(end)),
        block_devices: block_devices(&made.group),
        huge_pages: huge_pages(&made.group),
    }))
}

fn usage(group: &Group, used: &Stats) -> v1::Usage {
    v1::Usage {
        timestamp_nanos: now_nanos(),
        cpu_nanos: used.cpu_usage_ns,
        cpu_user_nanos: used.cpu_user_ns,
        cpu_system_nanos: used.cpu_system_ns,
        cpu_periods: used.cpu_periods,
        cpu_throttled_periods: used.cpu_throttled_periods,
        cpu_throttled_nanos: used.cpu_throttled_ns,
        memory_bytes: used.memory_usage,
        memory_working_set_bytes: used.memory_working_set,
        memory_rss_bytes: used.memory_rss,
        memory_cache_bytes: used.memory_cache,
        memory_mapped_file_bytes: used.memory_mapped_file,
        memory_swap_bytes: used.memory_swap,
        memory_limit_bytes: used.memory_limit,
        memory_failures: used.memory_failures,
        page_faults: used.page_faults,
        major_page_faults: used.major_page_faults,
        pids: used.pids,
        pids_limit: used.pids_limit,
        memory_kernel_bytes: used.memory_kernel,
        memory_peak_bytes: used.memory_peak,
        memory_active_file_bytes: used.memory_active_file,
        memory_inactive_file_bytes: used.memory_inactive_file,
        memory_high_events: used.memory_high_events,
        memory_swap_limit_bytes: used.memory_swap_limit,
        // Older kernels do not count them.
        oom_kills: group.oom_kill_count().ok().flatten(),
        cpu_pressure: used.cpu_pressure.as_ref().map(pressure),
        memory_pressure: used.memory_pressure.as_ref().map(pressure),
        io_pressure: used.io_pressure.as_ref().map(pressure),
    }
}

fn pressure(measured: &Pressure) -> v1::Pressure {
    let stall = |stall: kina_cgroup::Stall| v1::Stall {
        average_10: f64::from(stall.average_10) / 100.0,
        average_60: f64::from(stall.average_60) / 100.0,
        average_300: f64::from(stall.average_300) / 100.0,
        total_micros: stall.total_micros,
    };
    v1::Pressure { some: Some(stall(measured.some)), full: measured.full.map(stall) }
}

/// What went to and from block devices; nothing of a group that is going.
fn block_devices(group: &Group) -> Vec<v1::BlockDeviceStats> {
    let devices = group.block_devices().unwrap_or_default();
    let told = devices.into_iter().map(|device| v1::BlockDeviceStats {
        name: block_device_name(device.major, device.minor),
        major: device.major,
        minor: device.minor,
        read_bytes: device.read_bytes,
        written_bytes: device.written_bytes,
        reads: device.reads,
        writes: device.writes,
    });
    told.collect()
}

/// What is used of huge pages; nothing of a group that is going.
fn huge_pages(group: &Group) -> Vec<v1::HugePages> {
    let pages = group.huge_pages().unwrap_or_default();
    let told = pages.into_iter().map(|pages| v1::HugePages {
        page_size: pages.page_size,
        bytes: pages.bytes,
        peak_bytes: pages.peak_bytes,
    });
    told.collect()
}

/// As the kernel calls it: sysfs has a link of its numbers to the directory of its name.
fn block_device_name(major: u32, minor: u32) -> String {
    let target = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
    let name = target.as_deref().and_then(Path::file_name);
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The counters of the pod's own interfaces; none for one on a network that others use, too.
fn interfaces(pod: &Arc<Pod>) -> Result<Vec<v1::InterfaceStats>, Error> {
    if !pod.namespaces.owns_network {
        return Ok(Vec::new());
    }
    const LIST: &str = "/proc/thread-self/net/dev";
    let pod = Arc::clone(pod);
    let text = in_thread("read the pod's interfaces", move || {
        if let Some(namespace) = &pod.namespaces.network {
            enter_network(namespace)?;
        }
        let mut text = String::new();
        File::open(LIST)
            .and_then(|file| file.take(LIST_LIMIT).read_to_string(&mut text))
            .map_err(|source| Error::file("read", LIST, source))?;
        Ok(text)
    })?;
    Ok(text.lines().filter_map(interface).filter(|one| one.name != "lo").take(INTERFACES_LIMIT).collect())
}

/// A line of /proc/net/dev: the name, eight counters of what came, eight of what went
/// (proc_pid_net(5)). The two lines of headings are none.
fn interface(line: &str) -> Option<v1::InterfaceStats> {
    let (name, counters) = line.split_once(':')?;
    let counters: Vec<u64> = counters.split_whitespace().map_while(|number| number.parse().ok()).collect();
    let [
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        _,
        _,
        _,
        _,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..,
    ] = counters[..]
    else {
        return None;
    };
    Some(v1::InterfaceStats {
        name: name.trim().to_owned(),
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read() {
        let text = "Inter-|   Receive                  |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n\
                    \x20   lo:  10  1 0 0 0 0 0 0  10  1 0 0 0 0 0 0\n  \
                    eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  \
                    cut0: 1 2 3\n";
        let seen: Vec<_> = text.lines().filter_map(interface).collect();
        assert_eq!(seen.len(), 2);
        let eth0 = &seen[1];
        assert_eq!(eth0.name, "eth0");
        assert_eq!((eth0.rx_bytes, eth0.rx_packets, eth0.rx_errors, eth0.rx_dropped), (1, 2, 3, 4));
        assert_eq!((eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped), (9, 10, 11, 12));
    }
}
