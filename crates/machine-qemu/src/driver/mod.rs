//! The driver.

mod ended;
mod machines;
mod record;
mod shares;
mod start;
mod streams;
mod usage;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kina_machine::{
    Attachment, Capabilities, Details, Driver, Ended, Error as MachineError, Found, LayerAccess, MachineSpec,
    MachineState, NetworkAttachment, Overhead, Share, Shares, Stream,
};
use kina_model::{ContainerId, PodId};
use kina_node::Node;

use crate::accelerator::{self, ProbeConfig};
use crate::boot::{self, BootConfig};
use crate::{Accelerator, QemuConfig, Unavailable, Vsock, disk};
use machines::{Machines, Ready};

/// The driver `qemu`.
///
/// One change of a machine happens at a time and runs to its end even when its
/// caller goes away; so a stop that follows a dropped start finds the machine.
#[derive(Clone)]
pub struct QemuDriver {
    machines: Arc<Machines>,
    capabilities: Arc<Capabilities>,
}

/// The driver's name.
const NAME: &str = "qemu";

impl QemuDriver {
    /// Looks for everything that machines take, makes what they boot from, and
    /// finds out by a probe boot which accelerator they get, unless an earlier
    /// one has (seconds, and [`QemuConfig::probe_deadline`] when it fails).
    ///
    /// # Errors
    /// When something is missing, in words for the user.
    pub async fn open(node: Arc<dyn Node>, config: QemuConfig) -> Result<Self, Unavailable> {
        let looked = config.clone();
        let (boot, accelerator) = tokio::task::spawn_blocking(move || prepare(&looked))
            .await
            .map_err(|broken| Unavailable { reason: broken.to_string() })??;
        let template = if config.disk_bytes == 0 {
            None
        } else {
            disk::template(&*node, &config.cache_directory, config.disk_bytes).await.map_err(unavailable)?
        };
        // On a disk a machine can do more than in memory.
        let disk = if template.is_some() { "disk" } else { "memory" };
        let boot_files = format!("{} {disk}", boot.digest);
        let machines = Machines::new(node, config, Ready { boot, accelerator, template });
        Ok(Self {
            machines: Arc::new(machines),
            capabilities: Arc::new(Capabilities {
                shares: Shares::Dynamic,
                layers: LayerAccess::ImageFile,
                network: NetworkAttachment::Tap,
                guest_writes_logs: false,
                resize: false,
                own_kernel: true,
                boot_files: Some(boot_files),
            }),
        })
    }

    /// The accelerator that machines run with.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.machines.ready().accelerator
    }

    /// What `uname -r` says in machines, where the kernel's image tells.
    #[must_use]
    pub fn kernel_version(&self) -> Option<&str> {
        self.machines.ready().boot.kernel_version.as_deref()
    }

    /// Whether machines have a disk; without one (it is not wanted, or the node
    /// has no `mke2fs`) their containers write into memory.
    #[must_use]
    pub fn has_disk(&self) -> bool {
        self.machines.ready().template.is_some()
    }

    /// Where a pod's machine keeps its files.
    #[must_use]
    pub fn machine_directory(&self, pod: &PodId) -> PathBuf {
        self.machines.directory(pod)
    }
}

fn unavailable(error: impl std::error::Error) -> Unavailable {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        reason = format!("{reason}: {error}");
        source = error.source();
    }
    Unavailable { reason }
}

/// What can block: programs, boot files, the probe boot.
fn prepare(config: &QemuConfig) -> Result<(boot::BootFiles, Accelerator), Unavailable> {
    let programs = [
        (&config.qemu, "QEMU (Debian: qemu-system-x86)", "machine.qemu.program"),
        (&config.virtiofsd, "virtiofsd (`cargo install virtiofsd`)", "machine.qemu.virtiofsd"),
        (&config.vsock, "kina-vsock, which comes with kina", "machine.qemu.vsock"),
        (&config.guest, "kina-guest, which comes with kina", "machine.guest_program"),
    ];
    for (path, what, name) in programs {
        if let Err(error) = fs::metadata(path) {
            let reason = format!(
                "{} is missing ({error}): install {what}, or say where it is with {name}",
                path.display()
            );
            return Err(Unavailable { reason });
        }
    }
    if config.streams == Vsock::Kernel
        && let Err(error) = fs::OpenOptions::new().read(true).write(true).open(streams::DEVICE)
    {
        let reason = format!(
            "{} cannot be opened ({error}): load the kernel's module vhost_vsock, or set machine.qemu.streams = \"kina\"",
            streams::DEVICE
        );
        return Err(Unavailable { reason });
    }
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        let reason = format!("/dev/net/tun cannot be opened ({error}): load the kernel's module tun");
        return Err(Unavailable { reason });
    }
    let made = fs::create_dir_all(&config.cache_directory);
    made.map_err(|source| unavailable(crate::Error::Cache { path: config.cache_directory.clone(), source }))?;
    let files = boot::prepare(&BootConfig {
        kernel: config.kernel.clone(),
        modules: config.modules.clone(),
        guest: config.guest.clone(),
        cache: config.cache_directory.join("boot"),
    })
    .map_err(unavailable)?;
    let accelerator = accelerator::choose(
        config.accelerator,
        &ProbeConfig {
            qemu: &config.qemu,
            files: &files,
            device: Path::new("/dev/kvm"),
            result: &config.cache_directory.join("accelerator.json"),
            deadline: config.probe_deadline,
        },
    )
    .map_err(unavailable)?;
    Ok((files, accelerator))
}

#[async_trait]
impl Driver for QemuDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn create(&self, spec: &MachineSpec) -> Result<(), MachineError> {
        let spec = spec.clone();
        let pod = spec.pod.clone();
        self.machines
            .change(&pod, "create", move |machines| async move { machines.create(&spec).await })
            .await
    }

    async fn start(&self, pod: &PodId) -> Result<(), MachineError> {
        let owned = pod.clone();
        self.machines.change(pod, "start", move |machines| async move { machines.start(&owned).await }).await
    }

    async fn stop(&self, pod: &PodId, grace: Duration) -> Result<(), MachineError> {
        self.machines.wait_for_end(pod, grace).await?;
        let owned = pod.clone();
        self.machines.change(pod, "stop", move |machines| async move { machines.stop(&owned).await }).await
    }

    async fn destroy(&self, pod: &PodId) -> Result<(), MachineError> {
        let owned = pod.clone();
        self.machines
            .change(pod, "destroy", move |machines| async move { machines.destroy(&owned).await })
            .await
    }

    async fn list(&self) -> Result<Vec<Found>, MachineError> {
        self.machines.list().await
    }

    async fn status(&self, pod: &PodId) -> Result<MachineState, MachineError> {
        self.machines.status(pod).await
    }

    async fn wait(&self, pod: &PodId) -> Result<Ended, MachineError> {
        self.machines.wait(pod).await
    }

    async fn connect(&self, pod: &PodId) -> Result<Box<dyn Stream>, MachineError> {
        self.machines.connect(pod).await
    }

    async fn share(&self, pod: &PodId, share: &Share) -> Result<PathBuf, MachineError> {
        let (owned, share) = (pod.clone(), share.clone());
        self.machines
            .change(pod, "share", move |machines| async move { machines.share(&owned, &share).await })
            .await
    }

    async fn unshare(&self, pod: &PodId, container: &ContainerId) -> Result<(), MachineError> {
        let (owned, container) = (pod.clone(), container.clone());
        self.machines
            .change(pod, "unshare", move |machines| async move { machines.unshare(&owned, &container).await })
            .await
    }

    async fn attach_network(&self, pod: &PodId) -> Result<Attachment, MachineError> {
        self.machines.attach_network(pod).await
    }

    async fn resize(&self, _pod: &PodId, _memory_bytes: u64, _cpus: u32) -> Result<(), MachineError> {
        // QEMU's microvm has no slots to plug anything into.
        Err(MachineError::Unsupported { driver: NAME, operation: "resize" })
    }

    async fn overhead(&self, pod: &PodId) -> Result<Overhead, MachineError> {
        self.machines.overhead(pod).await
    }

    async fn console(&self, pod: &PodId, limit: usize) -> Result<Vec<u8>, MachineError> {
        self.machines.known(pod).await?;
        self.machines.console(pod, limit).await
    }

    async fn inspect(&self, pod: &PodId) -> Result<Details, MachineError> {
        self.machines.inspect(pod).await
    }
}
