//! Where the daemons live: one directory, one cgroup, both named after this
//! process, so that a later run finds what a killed one has left.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::json;

use crate::memory;

const PREFIX: &str = "kina-bench-";

/// How long killed processes, and the cgroups that they were in, may take to go.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// How much of a log is shown after a failure, in bytes.
const LOG_END: u64 = 4000;

/// A place; dropping it ends all that runs in it and removes it.
pub(crate) struct Place {
    directory: PathBuf,
    cgroup: String,
    connected: bool,
}

impl Place {
    /// A fresh one, after cleaning up the places of runs that were killed.
    pub(crate) fn new(connected: bool) -> Result<Self> {
        let parent = std::env::temp_dir();
        for entry in fs::read_dir(&parent).with_context(|| format!("read {}", parent.display()))? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok())
            else {
                continue;
            };
            if !Path::new(&format!("/proc/{pid}")).exists() {
                eprintln!("lifecycle: cleaning up after process {pid}");
                Self::of(&parent, pid, false).clean()?;
            }
        }
        let place = Self::of(&parent, std::process::id(), connected);
        fs::create_dir(&place.directory).with_context(|| format!("create {}", place.directory.display()))?;
        if connected {
            let networks = place.make("net.d")?;
            let list = json!({"cniVersion": "1.0.0", "name": "bench", "plugins": [{
                "type": "bridge", "bridge": "bench0", "isGateway": true,
                "ipam": {
                    "type": "host-local", "dataDir": place.directory.join("ipam"),
                    "ranges": [[{"subnet": "10.235.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
                },
            }]});
            let file = networks.join("10-bench.conflist");
            fs::write(&file, list.to_string()).with_context(|| format!("write {}", file.display()))?;
        }
        Ok(place)
    }

    /// Whether pods are connected by network plugins.
    pub(crate) fn connected(&self) -> bool {
        self.connected
    }

    /// Where both daemons have their network configuration; empty unless pods
    /// are connected.
    pub(crate) fn networks(&self) -> PathBuf {
        self.directory.join("net.d")
    }

    fn of(parent: &Path, pid: u32, connected: bool) -> Self {
        let directory = parent.join(format!("{PREFIX}{pid}"));
        Self { directory, cgroup: format!("/{PREFIX}{pid}"), connected }
    }

    /// The cgroup below which all pods are.
    pub(crate) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// A new directory.
    pub(crate) fn make(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// A daemon's log.
    pub(crate) fn log(&self, daemon: &str) -> PathBuf {
        self.directory.join(format!("{daemon}.log"))
    }

    /// Shows how the logs end.
    pub(crate) fn show_logs(&self) {
        for daemon in ["kina", "containerd"] {
            let Ok(mut file) = fs::File::open(self.log(daemon)) else { continue };
            let length = file.metadata().map_or(0, |metadata| metadata.len());
            let mut text = Vec::new();
            let read = file
                .seek(SeekFrom::Start(length.saturating_sub(LOG_END)))
                .and_then(|_| file.take(LOG_END).read_to_end(&mut text));
            if read.is_ok() && !text.is_empty() {
                eprintln!("--- the end of {daemon}'s log\n{}", String::from_utf8_lossy(&text));
            }
        }
    }

    fn clean(&self) -> Result<()> {
        let sockets = self.shim_sockets();
        self.kill()?;
        for socket in sockets {
            let _ = fs::remove_file(socket);
        }
        self.unmount()?;
        self.remove_cgroups()?;
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done.with_context(|| format!("remove {}", self.directory.display())),
        }
    }

    /// containerd's shims listen outside of its directories.
    fn shim_sockets(&self) -> Vec<PathBuf> {
        let tasks = self.directory.join("c/state/io.containerd.runtime.v2.task/k8s.io");
        let Ok(entries) = fs::read_dir(tasks) else { return Vec::new() };
        entries
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("address")).ok())
            .filter_map(|address| address.trim().strip_prefix("unix://").map(PathBuf::from))
            .collect()
    }

    fn kill(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let alive = memory::processes(&self.directory, &self.cgroup)?;
            // The daemons are this process's children, and nobody else waits for them.
            while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {}
            if alive.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > END_DEADLINE {
                bail!("processes {alive:?} do not die");
            }
            for pid in alive {
                if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
                    // Already gone is as good.
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn unmount(&self) -> Result<()> {
        let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
        let points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        // The latest first: what stands on others goes before them.
        for point in points.into_iter().rev().filter(|point| Path::new(point).starts_with(&self.directory)) {
            unmount(point, UnmountFlags::DETACH).with_context(|| format!("unmount {point}"))?;
        }
        Ok(())
    }

    fn remove_cgroups(&self) -> Result<()> {
        let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
        let roots: BTreeSet<&str> = table
            .lines()
            .filter(|line| line.contains(" - cgroup"))
            .filter_map(|line| line.split(' ').nth(4))
            .collect();
        for root in roots {
            let group = Path::new(root).join(self.cgroup.trim_start_matches('/'));
            let begun = Instant::now();
            // The kernel lets go of what was killed a moment later.
            while let Err(error) = remove_cgroup(&group) {
                if begun.elapsed() > END_DEADLINE {
                    return Err(error).with_context(|| format!("remove {}", group.display()));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }
}

fn remove_cgroup(group: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.clean() {
            eprintln!("lifecycle: clean up: {error:#}");
        }
    }
}
