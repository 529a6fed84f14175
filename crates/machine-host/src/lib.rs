//! The machine driver that runs a pod on the node's own kernel: one
//! `kina-guest` process per pod, started as a daemon of its own in the pod's
//! cgroup.
//!
//! ```text
//! <pods>/<pod id>/machine/machine.json   the driver's record; the machine exists while it does
//!                         guest.sock     where the guest listens
//!                         guest.log      what the guest has to say
//! <pod cgroup>/guest                     the guest's own processes
//! ```
//!
//! What is running is asked of the kernel: a recorded guest by its process
//! identity, an unrecorded one (the daemon was killed between starting it and
//! writing it down) by the cgroup that the record named beforehand. A machine
//! whose record is damaged counts as ended, and is found by its pod's cgroup.

mod error;
mod record;
mod state;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kina_machine::{
    Attachment, Capabilities, Details, Driver, Ended, Error as MachineError, Found, LayerAccess, MachineSpec,
    MachineState, NetworkAttachment, Overhead, Share, Shares, Stream,
};
use kina_model::{ContainerId, PodId};
use kina_node::Node;

pub use error::Error;

use state::Machines;

/// How the driver is set up.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The `kina-guest` executable on the node.
    pub guest_program: PathBuf,
    /// The directory of the pods: [`MachineSpec::directory`] must be
    /// `<pods_directory>/<pod id>/machine`, where [`Driver::list`] looks.
    pub pods_directory: PathBuf,
    /// How long killing a machine's processes may take.
    pub kill_deadline: Duration,
}

impl HostConfig {
    /// With ten seconds for a kill: what takes longer waits for a device that
    /// does not answer.
    #[must_use]
    pub fn new(guest_program: PathBuf, pods_directory: PathBuf) -> Self {
        Self { guest_program, pods_directory, kill_deadline: Duration::from_secs(10) }
    }
}

/// The driver `host`.
///
/// One change of a machine happens at a time and runs to its end even when its
/// caller goes away; so a stop that follows a dropped start finds the guest.
#[derive(Clone)]
pub struct HostDriver {
    machines: Arc<Machines>,
    capabilities: Arc<Capabilities>,
}

impl HostDriver {
    /// Touches nothing yet.
    #[must_use]
    pub fn new(node: Arc<dyn Node>, config: HostConfig) -> Self {
        Self {
            machines: Arc::new(Machines::new(node, config)),
            capabilities: Arc::new(Capabilities {
                shares: Shares::Dynamic,
                layers: LayerAccess::Mounted,
                network: NetworkAttachment::Netns,
                guest_writes_logs: true,
                resize: false,
                own_kernel: false,
                boot_files: None,
            }),
        }
    }

    /// Where a pod's machine keeps its files.
    #[must_use]
    pub fn machine_directory(&self, pod: &PodId) -> PathBuf {
        self.machines.directory(pod)
    }
}

#[async_trait]
impl Driver for HostDriver {
    fn name(&self) -> &'static str {
        state::NAME
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
        self.machines.wait(pod).await?;
        Ok(Ended { reason: "its guest process has ended".to_owned() })
    }

    async fn connect(&self, pod: &PodId) -> Result<Box<dyn Stream>, MachineError> {
        self.machines.connect(pod).await
    }

    async fn share(&self, pod: &PodId, share: &Share) -> Result<PathBuf, MachineError> {
        self.machines.share(pod, share).await
    }

    async fn unshare(&self, _pod: &PodId, _container: &ContainerId) -> Result<(), MachineError> {
        // Every guest sees the node's files anyway.
        Ok(())
    }

    async fn attach_network(&self, pod: &PodId) -> Result<Attachment, MachineError> {
        let netns = self.machines.known(pod).await?.netns;
        Ok(netns.map_or(Attachment::Loopback, Attachment::Namespace))
    }

    async fn resize(&self, _pod: &PodId, _memory_bytes: u64, _cpus: u32) -> Result<(), MachineError> {
        Err(MachineError::Unsupported { driver: state::NAME, operation: "resize" })
    }

    async fn overhead(&self, pod: &PodId) -> Result<Overhead, MachineError> {
        self.machines.overhead(pod).await
    }

    async fn console(&self, pod: &PodId, limit: usize) -> Result<Vec<u8>, MachineError> {
        self.machines.console(pod, limit).await
    }

    async fn inspect(&self, pod: &PodId) -> Result<Details, MachineError> {
        self.machines.inspect(pod).await
    }
}
