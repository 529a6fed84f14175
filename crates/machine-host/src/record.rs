//! The driver's only memory: `machine.json` in a machine's directory.
//!
//! It is written whole (temporary file, rename) before the first effect, so
//! that it names the cgroup in which everything of the machine is found.

use std::path::PathBuf;

use kina_node::ProcessIdentity;
use serde::{Deserialize, Serialize};

/// What is known of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Absolute cgroup path of the pod.
    pub(crate) cgroup: String,
    /// Path of the pod's network namespace, if it has one of its own.
    #[serde(default)]
    pub(crate) netns: Option<PathBuf>,
    /// The boot in which this was written. Nothing outlives its boot.
    pub(crate) boot_id: String,
    /// How far it has come.
    pub(crate) phase: Phase,
}

/// How far a machine has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Made. A guest may nevertheless run: its daemon was killed after it
    /// started it and before it could say so here.
    Created,
    /// This guest was started.
    Started {
        /// Its process id.
        pid: u32,
        /// Its start time in clock ticks since boot.
        start_ticks: u64,
    },
    /// It was stopped and must not be started again.
    Stopped,
}

impl Phase {
    pub(crate) fn started(guest: ProcessIdentity) -> Self {
        Self::Started { pid: guest.pid, start_ticks: guest.start_ticks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_form_is_stable() {
        let record = Record {
            cgroup: "/kina/pod".to_owned(),
            netns: Some("/n".into()),
            boot_id: "b".to_owned(),
            phase: Phase::Started { pid: 7, start_ticks: 9 },
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(
            text,
            r#"{"cgroup":"/kina/pod","netns":"/n","boot_id":"b","phase":{"started":{"pid":7,"start_ticks":9}}}"#
        );
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        let created = r#"{"cgroup":"/c","boot_id":"b","phase":"created"}"#;
        assert_eq!(serde_json::from_str::<Record>(created).unwrap().phase, Phase::Created);
    }
}
