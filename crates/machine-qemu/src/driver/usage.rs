//! What a machine costs the node, and what it is made of.

use kina_machine::{Details, Error as MachineError, Overhead, Process};
use kina_model::PodId;

use super::machines::{Machines, Now};
use super::record::Phase;
use super::streams::Streams;

impl Machines {
    /// The living processes of a machine, each with its own memory; and the
    /// bytes of the guest's that the node has given.
    async fn processes(&self, pod: &PodId) -> Result<(Vec<Process>, u64), MachineError> {
        let record = self.known(pod).await?;
        let Now::Running(started) = self.now(pod, &record).await? else {
            return Ok((Vec::new(), 0));
        };
        let (mut found, mut guest_bytes) = (Vec::new(), 0);
        for (role, process) in started.processes() {
            let usage = self.node.process_usage(process).await;
            let usage = usage.map_err(|source| MachineError::node(pod, "measure the machine", source))?;
            // One may have ended meanwhile.
            let Some(usage) = usage else { continue };
            guest_bytes += usage.shared_memory_bytes;
            found.push(Process {
                role,
                pid: process.pid,
                memory_bytes: usage.memory_bytes.saturating_sub(usage.shared_memory_bytes),
                cpu_nanos: usage.cpu_nanos,
            });
        }
        Ok((found, guest_bytes))
    }

    /// What QEMU and the processes beside it hold. The guest's memory is left
    /// out, since its containers are in it: how much they are only the guest can
    /// tell. Their processor time cannot be told apart from QEMU's.
    pub(super) async fn overhead(&self, pod: &PodId) -> Result<Overhead, MachineError> {
        let (processes, _) = self.processes(pod).await?;
        Ok(Overhead {
            memory_bytes: processes.iter().map(|process| process.memory_bytes).sum(),
            cpu_nanos: processes.iter().map(|process| process.cpu_nanos).sum(),
        })
    }

    pub(super) async fn inspect(&self, pod: &PodId) -> Result<Details, MachineError> {
        let (processes, guest_bytes) = self.processes(pod).await?;
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
                let streams = match started.streams {
                    Streams::Device(_) => "kina-vsock".to_owned(),
                    Streams::Kernel { cid } => format!("the kernel's vsock, address {cid}"),
                };
                facts.push(("streams", streams));
                facts.push(("memory in use", format!("{} MiB", guest_bytes >> 20)));
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
