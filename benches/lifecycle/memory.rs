//! What idle pods cost in memory: shared pages are counted once, divided among
//! those that map them (Pss of proc(5)).

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::calls;
use crate::daemons::Daemon;

/// Memory of one process, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) rss: u64,
    pub(crate) pss: u64,
}

impl Usage {
    fn read(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Ok(Self { rss: field("Rss:"), pss: field("Pss:") })
    }

    pub(crate) fn json(self) -> Value {
        json!({ "rss_kib": self.rss, "pss_kib": self.pss })
    }
}

/// A daemon's own.
pub(crate) fn of_daemon(daemon: &Daemon) -> Result<Usage> {
    Usage::read(daemon.pid)
}

/// The most that a daemon's own Rss has been, in KiB.
pub(crate) fn peak_of_daemon(daemon: &Daemon) -> Result<u64> {
    let path = format!("/proc/{}/status", daemon.pid);
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
        .with_context(|| format!("no VmHWM in {path}"))
}

/// What many idle pods cost.
pub(crate) struct Memory {
    pub(crate) pods: usize,
    /// The daemon before there were any, and with them.
    pub(crate) daemon: [Usage; 2],
    /// Pss in KiB without containers.
    pub(crate) bare: Parts,
    /// Pss in KiB with one container in each pod.
    pub(crate) with_container: Parts,
}

/// Pss in KiB of all pods.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parts {
    /// By how much the daemon has grown.
    pub(crate) daemon: i64,
    /// Guests, or shims.
    pub(crate) helpers: u64,
    /// All other processes: sandboxes' and containers' own.
    pub(crate) others: u64,
}

impl Parts {
    /// In KiB.
    pub(crate) fn per_pod(&self, pods: usize) -> f64 {
        (self.daemon as f64 + (self.helpers + self.others) as f64) / pods.max(1) as f64
    }

    fn json(&self, pods: usize) -> Value {
        json!({
            "daemon_growth_pss_kib": self.daemon,
            "helpers_pss_kib": self.helpers,
            "others_pss_kib": self.others,
            "per_pod_pss_kib": self.per_pod(pods),
        })
    }
}

impl Memory {
    pub(crate) fn json(&self) -> Value {
        json!({
            "pods": self.pods,
            "daemon_before": self.daemon[0].json(),
            "daemon_with_pods": self.daemon[1].json(),
            "pods_only": self.bare.json(self.pods),
            "with_one_container_each": self.with_container.json(self.pods),
        })
    }
}

/// Makes pods, measures, gives each a container, measures, and removes all.
pub(crate) async fn measure(daemon: &Daemon, pods: usize) -> Result<Memory> {
    let before = of_daemon(daemon)?;
    let mut made = Vec::with_capacity(pods);
    for number in 0..pods {
        let config = calls::pod(daemon, &format!("memory-{number}"));
        made.push((calls::run_pod(daemon, &config).await?, config));
    }
    let with_pods = of_daemon(daemon)?;
    let bare = parts(daemon, before)?;
    for (pod, config) in &made {
        let container = calls::create_container(daemon, pod, config).await?;
        calls::start_container(daemon, &container).await?;
    }
    let with_container = parts(daemon, before)?;
    for (pod, _) in &made {
        calls::end_pod(daemon, pod).await?;
    }
    Ok(Memory { pods, daemon: [before, with_pods], bare, with_container })
}

fn parts(daemon: &Daemon, before: Usage) -> Result<Parts> {
    let now = of_daemon(daemon)?;
    let mut parts = Parts { daemon: now.pss.cast_signed() - before.pss.cast_signed(), ..Parts::default() };
    for pid in processes(&daemon.directory, &daemon.cgroup)? {
        // Whoever has ended meanwhile costs nothing.
        let Ok(usage) = Usage::read(pid) else { continue };
        if pid == daemon.pid {
            continue;
        }
        if is_helper(pid) {
            parts.helpers += usage.pss;
        } else {
            parts.others += usage.pss;
        }
    }
    Ok(parts)
}

/// Whether a process is a pod's guest, which has a cgroup of its own, or its shim.
fn is_helper(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    // The kernel keeps 15 characters of a name.
    name.starts_with("containerd-shim") || groups.lines().any(|group| group.ends_with("/guest"))
}

/// Processes that are in a cgroup or below it, or have the directory on their
/// command line.
pub(crate) fn processes(directory: &Path, cgroup: &str) -> Result<Vec<u32>> {
    let directory = directory.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let Some(pid) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) else {
            continue;
        };
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let in_group = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|group| {
            group.strip_prefix(cgroup).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let named = command.windows(directory.len()).any(|window| window == directory);
        if (in_group || named) && pid != std::process::id() {
            found.push(pid);
        }
    }
    Ok(found)
}
