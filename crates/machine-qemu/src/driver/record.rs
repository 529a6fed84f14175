//! The driver's only memory: `qemu.json` in a machine's directory.
//!
//! It is written whole (temporary file, rename) before the first effect, so
//! that it names the cgroup in which everything of the machine is found.

use std::path::PathBuf;

use kina_model::UserNamespace;
use kina_node::ProcessIdentity;
use serde::{Deserialize, Serialize};

use super::streams::Streams;
use crate::Accelerator;

/// What is known of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Absolute cgroup path of the pod.
    pub(super) cgroup: String,
    /// Where its layers and its disk are.
    pub(super) storage_directory: PathBuf,
    /// The pod's network namespace, and the interface that plugins made in it.
    pub(super) network: Option<Network>,
    /// The user and group that QEMU runs as. No other machine has it, nor the one after
    /// it, which is its helpers'.
    pub(super) uid: u32,
    /// Bytes of memory, without QEMU's own.
    pub(super) memory_bytes: u64,
    /// Processors.
    pub(super) cpus: u32,
    /// The user namespace of the pod, by which what is shared is mapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<UserNamespace>,
    /// The boot in which this was written. Nothing outlives its boot.
    pub(super) boot_id: String,
    /// How far it has come.
    pub(super) phase: Phase,
}

impl Record {
    /// The user of the processes beside QEMU, but for virtiofsd.
    pub(super) fn helper_uid(&self) -> u32 {
        self.uid.saturating_add(1)
    }
}

/// A pod's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Network {
    /// Path of the namespace.
    pub(super) namespace: PathBuf,
    /// The interface, if there is more than loopback.
    pub(super) interface: Option<String>,
}

/// How far a machine has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Made. Processes may nevertheless run: their daemon was killed before it
    /// could write them down. Starting begins anew then.
    Created,
    /// It was started.
    Started(Box<Started>),
    /// It has ended and must not be started again.
    Stopped {
        /// Why.
        reason: String,
    },
}

/// What was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Started {
    pub(super) qemu: Process,
    pub(super) virtiofsd: Process,
    #[serde(rename = "vsock")]
    pub(super) streams: Streams,
    /// Keeps the console; the machine runs without it.
    pub(super) console: Process,
    pub(super) accelerator: Accelerator,
    /// What `uname -r` says in it, where that is known.
    pub(super) kernel: Option<String>,
    /// Of everything that it has booted from.
    pub(super) boot_files: String,
    /// Size of its disk; 0 without one.
    pub(super) disk_bytes: u64,
}

impl Started {
    /// Its processes, with what each is to it.
    pub(super) fn processes(&self) -> Vec<(&'static str, ProcessIdentity)> {
        let mut processes = vec![("qemu", self.qemu.identity())];
        processes.extend(self.helpers());
        processes.push(("console", self.console.identity()));
        processes
    }

    /// Those of them without which it is of no use, QEMU left out.
    pub(super) fn helpers(&self) -> Vec<(&'static str, ProcessIdentity)> {
        let mut helpers = vec![("virtiofsd", self.virtiofsd.identity())];
        match self.streams {
            Streams::Device(process) => helpers.push(("kina-vsock", process.identity())),
            Streams::Kernel { .. } => {}
        }
        helpers
    }
}

/// A process, as it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// Its process id.
    pub(super) pid: u32,
    /// Its start time in clock ticks since boot.
    pub(super) start_ticks: u64,
}

impl Process {
    pub(super) fn identity(self) -> ProcessIdentity {
        ProcessIdentity { pid: self.pid, start_ticks: self.start_ticks }
    }
}

impl From<ProcessIdentity> for Process {
    fn from(process: ProcessIdentity) -> Self {
        Self { pid: process.pid, start_ticks: process.start_ticks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_form_is_stable() {
        let text = r#"{"cgroup":"/k/p","storage_directory":"/s","network":{"namespace":"/n","interface":"eth0"},"uid":7,"memory_bytes":9,"cpus":1,"boot_id":"b","phase":{"stopped":{"reason":"r"}}}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!(record.phase, Phase::Stopped { reason: "r".to_owned() });
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        assert_eq!(serde_json::from_str::<Phase>(r#""created""#).unwrap(), Phase::Created);
    }
}
