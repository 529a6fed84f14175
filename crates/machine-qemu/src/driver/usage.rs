//! What a machine costs the node, and what it is made of.

use kina_machine::{Details, Error as MachineError, Overhead, Process};
use kina_model::PodId;

use super::machines::{Machines, Now, node_error};
use super::record::Phase;

impl Machines {
    /// The living processes of a machine.
    async fn processes(&self, pod: &PodId) -> Result<Vec<Process>, MachineError> {
        let record = self.known(pod).await?;
        let Now::Running(started) = self.now(pod, &record).await? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for (role, process) in started.processes() {
            let usage = self.node.process_usage(process).await;
            let usage = usage.map_err(|source| node_error(pod, "measure the machine", source))?;
            // One may have ended meanwhile.
            found.extend(usage.map(|usage| Process {
                role,
                pid: process.pid,
                memory_bytes: usage.memory_bytes,
                cpu_nanos: usage.cpu_nanos,
            }));
        }
        Ok(found)
    }

    /// All memory of the machine's processes, the guest's own included: what of
    /// it is the containers' only the guest can tell.
    pub(super) async fn overhead(&self, pod: &PodId) -> Result<Overhead, MachineError> {
        let processes = self.processes(pod).await?;
        Ok(Overhead {
            memory_bytes: processes.iter().map(|process| process.memory_bytes).sum(),
            cpu_nanos: processes.iter().map(|process| process.cpu_nanos).sum(),
        })
    }

    pub(super) async fn inspect(&self, pod: &PodId) -> Result<Details, MachineError> {
        let processes = self.processes(pod).await?;
        let record = self.known(pod).await?;
        let mut facts = Vec::new();
        match &record.phase {
            Phase::Created => {}
            Phase::Started(started) => {
                facts.push(("accelerator", started.accelerator.name().to_owned()));
                facts.extend(started.kernel.clone().map(|kernel| ("kernel", kernel)));
                facts.push(("boot files", started.boot_files.clone()));
                let disk = match started.disk_bytes {
                    0 => "none: containers write into memory".to_owned(),
                    bytes => format!("{} MiB", bytes >> 20),
                };
                facts.push(("disk", disk));
            }
            Phase::Stopped { reason } => facts.push(("ended", reason.clone())),
        }
        facts.push(("processors", record.cpus.to_string()));
        facts.push(("memory", format!("{} MiB", record.memory_bytes >> 20)));
        facts.push(("user", record.uid.to_string()));
        facts.push(("cgroup", record.cgroup.clone()));
        if let Some(network) = &record.network {
            facts.push(("network namespace", network.namespace.display().to_string()));
        }
        facts.push(("directory", self.directory(pod).display().to_string()));
        facts.push(("storage", record.storage_directory.display().to_string()));
        Ok(Details { processes, facts })
    }
}
