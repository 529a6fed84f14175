//! `[machine]`

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, absolute, at_least_one, mib};
use crate::pod::size::SizePolicy;
use crate::pod::volumes::VolumeRoots;
use crate::runtime::MachineConfig;

/// Virtual machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// Memory for the containers of a pod without a limit, in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs of such a pod.
    pub cpus: u32,
    /// What a machine's kernel and guest need of its memory, in MiB.
    pub kernel_mib: u64,
    /// What a machine's processes take on the node beside its memory, in MiB.
    pub process_mib: u64,
    /// The least memory of a machine, in MiB.
    pub minimum_mib: u64,
    /// The kubelet's directory, of which a machine sees its pod's part.
    pub kubelet_root: PathBuf,
    /// What pods in machines of their own may mount by a path of the node.
    pub share_roots: Vec<PathBuf>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            memory_mib: 512,
            cpus: 1,
            kernel_mib: 48,
            process_mib: 64,
            minimum_mib: 128,
            kubelet_root: "/var/lib/kubelet".into(),
            share_roots: Vec::new(),
        }
    }
}

impl Machine {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("machine.memory_mib", self.memory_mib),
            ("machine.cpus", self.cpus.into()),
            ("machine.minimum_mib", self.minimum_mib),
        ])?;
        absolute("machine.kubelet_root", [&self.kubelet_root])?;
        absolute("machine.share_roots", &self.share_roots)
    }

    /// What the daemon makes machines by.
    pub(crate) fn runtime(&self) -> MachineConfig {
        MachineConfig {
            sizes: SizePolicy {
                memory_bytes: mib(self.memory_mib),
                cpus: self.cpus,
                kernel_bytes: mib(self.kernel_mib),
                process_bytes: mib(self.process_mib),
                minimum_bytes: mib(self.minimum_mib),
            },
            volumes: VolumeRoots { kubelet: self.kubelet_root.clone(), shared: self.share_roots.clone() },
        }
    }
}
