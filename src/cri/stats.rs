//! What pods and containers use, as CRI tells it. What a kernel does not count
//! is absent, not zero.

use kina_guest_api::v1 as guest;

use super::{v1, views};
use crate::network::INTERFACE;
use crate::pod::view::{ContainerView, PodView};
use crate::stats::PodUsage;

/// Where writable layers lie, as CRI names a file system.
#[derive(Clone, Copy, Debug)]
pub struct Disk<'a>(pub &'a str);

/// A container. Of one that its guest says nothing about there are the
/// attributes only.
#[must_use]
pub fn container_stats(container: &ContainerView, usage: &PodUsage, disk: Disk<'_>) -> v1::ContainerStats {
    let id = container.id.as_str();
    let stats = usage.container(id);
    let used = stats.and_then(|stats| stats.usage.as_ref());
    let rate = usage.container_nano_cores.get(id).copied();
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: id.to_owned(),
            metadata: Some(views::container_metadata(container)),
            labels: container.spec.labels.clone(),
            annotations: container.spec.annotations.clone(),
        }),
        cpu: used.map(|used| cpu(used, rate)),
        memory: used.map(memory),
        writable_layer: stats.and_then(|stats| stats.writable_layer).map(|layer| v1::FilesystemUsage {
            timestamp: layer.timestamp_nanos,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: disk.0.to_owned() }),
            used_bytes: number(Some(layer.used_bytes)),
            inodes_used: number(Some(layer.inodes)),
        }),
        swap: used.and_then(swap),
        io: used.and_then(io),
    }
}

/// A container in a list; none of one that its guest says nothing about, because the
/// kubelet takes an absent counter for one that is at zero.
#[must_use]
pub fn listed(container: &ContainerView, usage: &PodUsage, disk: Disk<'_>) -> Option<v1::ContainerStats> {
    usage.container(container.id.as_str())?.usage.as_ref()?;
    Some(container_stats(container, usage, disk))
}

/// A pod with its running containers.
#[must_use]
pub fn pod_stats(usage: &PodUsage, disk: Disk<'_>) -> v1::PodSandboxStats {
    let pod = &usage.pod;
    let used = usage.usage.as_ref().and_then(|usage| usage.pod.as_ref());
    let running = pod.containers.values().filter(|container| is_running(container));
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: pod.id.to_string(),
            metadata: Some(views::pod_metadata(pod)),
            labels: pod.spec.labels.clone(),
            annotations: pod.spec.annotations.clone(),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: used.map(|used| cpu(used, usage.nano_cores)),
            memory: used.map(memory),
            network: usage.usage.as_ref().and_then(|answer| network(pod, answer)),
            process: used.map(|used| v1::ProcessUsage {
                timestamp: used.timestamp_nanos,
                process_count: number(used.pids),
            }),
            containers: running.filter_map(|container| listed(container, usage, disk)).collect(),
            io: used.and_then(io),
        }),
        windows: None,
    }
}

/// Whether a container is in the lists of what runs.
#[must_use]
pub fn is_running(container: &ContainerView) -> bool {
    views::container_state(container) == v1::ContainerState::ContainerRunning
}

fn number(value: Option<u64>) -> Option<v1::UInt64Value> {
    value.map(|value| v1::UInt64Value { value })
}

fn cpu(used: &guest::Usage, nano_cores: Option<u64>) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: used.timestamp_nanos,
        usage_core_nano_seconds: number(used.cpu_nanos),
        usage_nano_cores: number(nano_cores),
        psi: used.cpu_pressure.as_ref().map(pressure),
    }
}

fn memory(used: &guest::Usage) -> v1::MemoryUsage {
    let available = used.memory_limit_bytes.zip(used.memory_working_set_bytes);
    v1::MemoryUsage {
        timestamp: used.timestamp_nanos,
        working_set_bytes: number(used.memory_working_set_bytes),
        available_bytes: number(available.map(|(limit, working_set)| limit.saturating_sub(working_set))),
        usage_bytes: number(used.memory_bytes),
        rss_bytes: number(used.memory_rss_bytes),
        page_faults: number(used.page_faults),
        major_page_faults: number(used.major_page_faults),
        psi: used.memory_pressure.as_ref().map(pressure),
    }
}

fn swap(used: &guest::Usage) -> Option<v1::SwapUsage> {
    used.memory_swap_bytes.map(|bytes| v1::SwapUsage {
        timestamp: used.timestamp_nanos,
        swap_available_bytes: number(used.memory_swap_limit_bytes.map(|limit| limit.saturating_sub(bytes))),
        swap_usage_bytes: number(Some(bytes)),
    })
}

fn io(used: &guest::Usage) -> Option<v1::IoUsage> {
    let psi = used.io_pressure.as_ref().map(pressure)?;
    Some(v1::IoUsage { timestamp: used.timestamp_nanos, psi: Some(psi) })
}

fn pressure(pressure: &guest::Pressure) -> v1::PsiStats {
    // A guest may write what it likes; no reader expects a percentage that is no number.
    let percent = |value: f64| if value.is_finite() { value.clamp(0.0, 100.0) } else { 0.0 };
    let data = |stall: &guest::Stall| v1::PsiData {
        total: stall.total_micros.saturating_mul(1_000),
        avg10: percent(stall.average_10),
        avg60: percent(stall.average_60),
        avg300: percent(stall.average_300),
    };
    v1::PsiStats { some: pressure.some.as_ref().map(data), full: pressure.full.as_ref().map(data) }
}

/// `None` for a pod on the node's network, whose traffic is not its own, and for one
/// that has loopback only: the kubelet dies of an answer without the default interface.
fn network(pod: &PodView, answer: &guest::StatsResponse) -> Option<v1::NetworkUsage> {
    if pod.spec.namespaces.host_network {
        return None;
    }
    let timestamp = answer.pod.as_ref().map(|used| used.timestamp_nanos)?;
    let interface = |one: &guest::InterfaceStats| v1::NetworkInterfaceUsage {
        name: one.name.clone(),
        rx_bytes: number(Some(one.rx_bytes)),
        rx_errors: number(Some(one.rx_errors)),
        tx_bytes: number(Some(one.tx_bytes)),
        tx_errors: number(Some(one.tx_errors)),
    };
    let (main, others): (Vec<_>, Vec<_>) = answer.interfaces.iter().partition(|one| one.name == INTERFACE);
    Some(v1::NetworkUsage {
        timestamp,
        default_interface: Some(interface(main.first()?)),
        interfaces: others.into_iter().map(interface).collect(),
    })
}
