//! Machines: their driver, their size, and what can be told of them.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kina_machine::{Details, Driver, MachineState};
use kina_model::{MachineSize, PodId, PodState, Resources};
use kina_node::Node;

use crate::elf::Verdict;
use crate::error::{Error, chain};
use crate::pod::size::machine_size;
use crate::pod::view::PodView;
use crate::runtime::{Runtime, RuntimeConfig};

/// Machines that are examined at the same time.
const AT_ONCE: usize = 16;

/// How long examining one may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pod's machine.
#[derive(Clone, Debug)]
pub struct MachineReport {
    /// The pod.
    pub pod: Arc<PodView>,
    /// What it does; `None` when there is none any more.
    pub state: Option<MachineState>,
    /// What it is made of.
    pub details: Details,
    /// Why there is nothing to tell.
    pub problem: String,
}

/// The driver of virtual machines, or why there is none.
pub(crate) async fn vm_driver(
    node: &Arc<dyn Node>,
    config: &RuntimeConfig,
) -> Result<Arc<dyn Driver>, String> {
    if let Some(apple) = config.machine.apple.clone() {
        let opened = kina_machine_apple::open(Arc::clone(node), apple).await;
        return opened.map_err(|unavailable| unavailable.reason);
    }
    let Some(qemu) = config.machine.qemu.clone() else {
        return Err("machine.qemu.enabled is false in the configuration".to_owned());
    };
    let guest = config.guest_program.clone();
    let verdict = tokio::task::spawn_blocking(move || crate::elf::look_at(&guest)).await;
    let guest = config.guest_program.display();
    match verdict {
        Ok(Ok(Verdict::Static)) => {}
        Ok(Ok(Verdict::Dynamic)) => {
            return Err(format!(
                "{guest} needs a dynamic linker, which no machine has: install the static kina-guest that \
                 comes with kina (`cargo xtask guest` builds it), or set guest.program"
            ));
        }
        Ok(Ok(Verdict::NotElf)) => return Err(format!("{guest} is no program; see guest.program")),
        Ok(Err(error)) => return Err(format!("{guest} cannot be read: {error}; see guest.program")),
        Err(_) => return Err("the daemon is stopping".to_owned()),
    }
    kina_machine_qemu::open(Arc::clone(node), qemu).await.map_err(|unavailable| unavailable.reason)
}

impl Runtime {
    /// Takes other limits of a pod, and makes its machine larger where they ask
    /// for more than it has. The limits of its containers hold inside; on the
    /// node's own kernel the kubelet itself limits the pod.
    ///
    /// # Errors
    /// [`Error::MachineTooSmall`] if it would have to grow and cannot.
    pub async fn update_pod(
        &self,
        id: &str,
        resources: Option<Resources>,
        overhead: Option<Resources>,
    ) -> Result<(), Error> {
        let handle = self.registry().pod(id)?;
        let view = handle.view();
        let PodState::Ready(ready) = &view.state else {
            let (pod, state) = (view.id.clone(), view.state.name());
            return Err(Error::PodState { pod, state, operation: "change its resources" });
        };
        let context = self.context();
        let (Some(has), Some(driver)) = (ready.size, context.driver(view.spec.placement)) else {
            return Ok(());
        };
        let limits = resources.as_ref().or(view.spec.resources.as_ref());
        let overhead = overhead.as_ref().or(view.spec.overhead.as_ref());
        let mut wanted = machine_size(limits, overhead, &context.sizes, context.node_size);
        // The kubelet repeats what the pod's cgroup has: no limit, if one container
        // has none. That asks for nothing; what is there stays.
        let unlimited = |limit: Option<i64>| limit.is_none_or(|limit| limit <= 0);
        if let Some(resources) = &resources {
            if unlimited(resources.memory_limit_bytes) {
                wanted.memory_bytes = has.memory_bytes;
            }
            if unlimited(resources.cpu_quota_micros) {
                wanted.cpus = has.cpus;
            }
        }
        if wanted.memory_bytes <= has.memory_bytes && wanted.cpus <= has.cpus {
            return Ok(());
        }
        if !driver.capabilities().resize {
            return Err(Error::MachineTooSmall { pod: view.id.clone(), has, wanted });
        }
        let size = MachineSize {
            memory_bytes: wanted.memory_bytes.max(has.memory_bytes),
            cpus: wanted.cpus.max(has.cpus),
        };
        handle.resize(size).await
    }

    /// Changes the limits of a container that has not ended. What is not named
    /// stays.
    ///
    /// # Errors
    /// [`Error::ContainerState`] if it has ended; [`Error::Guest`] if its kernel
    /// does not take them.
    pub async fn update_container(&self, id: &str, resources: Resources) -> Result<(), Error> {
        let (container, pod) = self.registry().container(id)?;
        pod.update_container(container, resources).await
    }

    /// The machines of all pods that have one.
    pub async fn machines(&self) -> Vec<MachineReport> {
        let reports = self.pods().into_iter().map(|pod| self.examine(pod));
        let reports: Vec<MachineReport> = futures::stream::iter(reports).buffered(AT_ONCE).collect().await;
        reports.into_iter().filter(|report| report.state.is_some() || !report.problem.is_empty()).collect()
    }

    /// The machine of one pod.
    ///
    /// # Errors
    /// [`Error::PodNotFound`], [`Error::AmbiguousId`].
    pub async fn machine(&self, pod: &str) -> Result<MachineReport, Error> {
        let pod = self.find_pod(pod)?;
        Ok(self.examine(pod).await)
    }

    async fn examine(&self, pod: Arc<PodView>) -> MachineReport {
        let mut report =
            MachineReport { pod, state: None, details: Details::default(), problem: String::new() };
        let (id, placement) = (&report.pod.id, report.pod.spec.placement);
        let Some(driver) = self.context().driver(placement) else {
            report.problem = "this daemon has no driver for it now".to_owned();
            return report;
        };
        let look = async {
            let state = driver.status(id).await?;
            Ok::<_, kina_machine::Error>((state, driver.inspect(id).await?))
        };
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(Ok((state, details))) => {
                report.state = Some(state);
                report.details = details;
            }
            Ok(Err(kina_machine::Error::NotFound { .. })) => {}
            Ok(Err(error)) => report.problem = chain(&error),
            Err(_) => report.problem = format!("it was not examined within {PATIENCE:?}"),
        }
        report
    }

    /// The last words of a pod's machine, at most `limit` bytes of them; those
    /// that were kept once it is gone.
    ///
    /// # Errors
    /// When there is no such pod, or nothing was kept.
    pub async fn machine_console(&self, pod: &str, limit: usize) -> Result<(PodId, Vec<u8>), Error> {
        let pod = self.find_pod(pod)?;
        let context = self.context();
        let console = match context.driver(pod.spec.placement) {
            Some(driver) => driver.console(&pod.id, limit).await,
            None => Err(kina_machine::Error::NotFound { pod: pod.id.clone() }),
        };
        match console {
            Ok(words) => Ok((pod.id.clone(), words)),
            Err(error @ kina_machine::Error::NotFound { .. }) => {
                match context.node.read_end(&context.paths.console(&pod.id), limit).await {
                    Ok(words) => Ok((pod.id.clone(), words)),
                    Err(missing) if missing.is_not_found() => Err(error.into()),
                    Err(unread) => Err(unread.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}
