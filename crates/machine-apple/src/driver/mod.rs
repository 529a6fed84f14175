//! The driver.

mod boot;
mod ended;
mod look;
mod machines;
mod queue;
mod record;
mod shares;

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

use crate::command::Container;
use crate::pod_image::PodImage;
use crate::{AppleConfig, Error, Unavailable, Version};
use machines::Machines;

/// The driver's name.
const NAME: &str = "apple";

/// Longest path of a unix socket on macOS in bytes: `sun_path` holds 104 with its
/// end mark.
const SOCKET_PATH_LIMIT: usize = 103;

/// What a socket's path has beyond its directory: a slash, a pod's id, an ending.
const SOCKET_NAME: usize = "/0123456789abcdef0123456789abcdef.sock".len();

/// The driver `apple`.
///
/// One change of a machine happens at a time and runs to its end even when its
/// caller goes away; so a stop that follows a dropped start finds the machine.
#[derive(Clone)]
pub struct AppleDriver {
    machines: Arc<Machines>,
    capabilities: Arc<Capabilities>,
}

impl AppleDriver {
    /// Looks for Apple's program, of which version it is, and for the machines'
    /// image. The service need not run: calls say so while it does not. The node is
    /// this computer: its files are those that the program is told of.
    ///
    /// # Errors
    /// When something is missing, in words for the user.
    pub async fn open(node: Arc<dyn Node>, config: AppleConfig) -> Result<Self, Unavailable> {
        Self::prepare(node, config).await.map_err(|error| Unavailable { reason: chain(&error) })
    }

    async fn prepare(node: Arc<dyn Node>, config: AppleConfig) -> Result<Self, Error> {
        let directory = &config.socket_directory;
        let length = directory.as_os_str().len() + SOCKET_NAME;
        if length > SOCKET_PATH_LIMIT {
            let (directory, limit) = (directory.clone(), SOCKET_PATH_LIMIT);
            return Err(Error::SocketPath { directory, length, limit });
        }
        shares::check(directory)?;
        if let Some(kernel) = &config.kernel {
            let found = tokio::fs::metadata(kernel).await;
            found.map_err(|source| Error::file("use the kernel", kernel, source))?;
        }
        let container = Container::new(&config);
        let version = container.version().await?;
        if version < Version::OLDEST {
            return Err(Error::TooOld { found: version });
        }
        let archive = config.image.clone();
        let opened = tokio::task::spawn_blocking(move || PodImage::open(&archive)).await;
        let image = opened.map_err(|broken| {
            Error::file("look at", &config.image, std::io::Error::other(broken.to_string()))
        })??;
        private_directory(directory).await?;
        let machines = Machines::new(node, config, container, version, image);
        Ok(Self {
            machines: Arc::new(machines),
            capabilities: Arc::new(Capabilities {
                shares: Shares::AtBoot,
                layers: LayerAccess::ImageFile,
                network: NetworkAttachment::Machine,
                guest_writes_logs: false,
                resize: false,
                own_kernel: true,
                boot_files: None,
            }),
        })
    }

    /// Which version of Apple's `container` makes the machines.
    #[must_use]
    pub fn version(&self) -> Version {
        self.machines.version
    }

    /// Where a pod's machine keeps its files.
    #[must_use]
    pub fn machine_directory(&self, pod: &PodId) -> PathBuf {
        self.machines.directory(pod)
    }
}

/// Makes a directory that nobody else may look into: whoever can open a guest's
/// socket may do everything in its machine.
async fn private_directory(directory: &std::path::Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |source| Error::file("make", directory, source);
    tokio::fs::create_dir_all(directory).await.map_err(failed)?;
    tokio::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).await.map_err(failed)
}

/// An error with all of its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[async_trait]
impl Driver for AppleDriver {
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
        // Before its turn: a stop that comes meanwhile finds it.
        let cancel = self.machines.begin_start(pod);
        let owned = pod.clone();
        self.machines
            .change(pod, "start", move |machines| async move { machines.start(&owned, &cancel).await })
            .await
    }

    async fn stop(&self, pod: &PodId, grace: Duration) -> Result<(), MachineError> {
        self.machines.cancel_start(pod);
        self.machines.wait_for_end(pod, grace).await?;
        let owned = pod.clone();
        self.machines.change(pod, "stop", move |machines| async move { machines.stop(&owned).await }).await
    }

    async fn destroy(&self, pod: &PodId) -> Result<(), MachineError> {
        self.machines.cancel_start(pod);
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

    async fn unshare(&self, _pod: &PodId, _container: &ContainerId) -> Result<(), MachineError> {
        // What volumes are parts of is shared until the machine ends.
        Ok(())
    }

    async fn attach_network(&self, pod: &PodId) -> Result<Attachment, MachineError> {
        self.machines.attach_network(pod).await
    }

    async fn resize(&self, _pod: &PodId, _memory_bytes: u64, _cpus: u32) -> Result<(), MachineError> {
        // Apple's machines have no balloon and take no processor while they run.
        Err(MachineError::Unsupported { driver: NAME, operation: "resize" })
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
