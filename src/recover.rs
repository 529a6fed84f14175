//! What a starting daemon does about the pods of an earlier one: it reads the
//! records, looks at what is there, and adopts or cleans. The decisions are the
//! model's ([`PodState::recover`], [`ContainerState::recover`]).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use kina_guest_api::{GuestClient, v1};
use kina_machine::{Driver, MachineState};
use kina_model::{
    ContainerEffect, ContainerEvent, ContainerId, ContainerState, Exit, ExitReason, PodId, PodState, Reality,
    Running, Seen,
};
use kina_store::{Batch, Store};
use tracing::{info, warn};

use crate::error::{Error, chain};
use crate::pod::context::{CGROUP_DEADLINE, now};
use crate::pod::logs::LogRecord;
use crate::pod::record::{ContainerRecord, PodRecord};
use crate::pod::{PodHandle, Recovered, RecoveredContainer, connect_guest};
use crate::runtime::Runtime;

/// How long an adopted guest may take to answer.
const ADOPT_DEADLINE: Duration = Duration::from_secs(10);

/// The records of an earlier daemon.
pub struct Records {
    pods: Vec<PodRecord>,
    containers: BTreeMap<PodId, Vec<ContainerRecord>>,
}

impl Records {
    /// Which layers the recorded containers use. Those of a stopped pod use
    /// none: it has given them back.
    pub fn layer_users(&self) -> Vec<(ContainerId, Vec<String>)> {
        let stopped = self.pods.iter().filter(|pod| matches!(pod.state, PodState::Stopped(_)));
        let stopped: HashSet<&PodId> = stopped.map(|pod| &pod.id).collect();
        let containers = self.containers.values().flatten();
        containers
            .filter(|container| !stopped.contains(&container.pod))
            .map(|container| {
                (container.id.clone(), container.layers.iter().map(ToString::to_string).collect())
            })
            .collect()
    }
}

/// Reads all records. One that cannot be understood is left alone and named in
/// the log: the rest must still come up.
///
/// # Errors
/// When the store cannot be read.
pub fn read(store: &Store) -> Result<Records, Error> {
    let mut pods = Vec::new();
    for (key, record) in store.table::<PodRecord>().list_each()? {
        match record {
            Ok(record) => pods.push(record),
            Err(error) => warn!(pod = key, error = chain(&error), "a pod's record cannot be understood"),
        }
    }
    let mut containers: BTreeMap<PodId, Vec<ContainerRecord>> = BTreeMap::new();
    for (key, record) in store.table::<ContainerRecord>().list_each()? {
        match record {
            Ok(record) => containers.entry(record.pod.clone()).or_default().push(record),
            Err(error) => {
                warn!(container = key, error = chain(&error), "a container's record cannot be understood");
            }
        }
    }
    Ok(Records { pods, containers })
}

/// Adopts or cleans the recorded pods, and cleans what no record explains.
///
/// # Errors
/// When the node or the store cannot be asked.
pub async fn run(runtime: &Runtime, mut records: Records) -> Result<(), Error> {
    let context = runtime.context();
    let recorded_boot = context.store.meta_get(BOOT_ID)?;
    let same_boot = recorded_boot.as_deref().is_none_or(|boot| boot == runtime.boot_id());
    if !same_boot {
        info!("the node was rebooted since the daemon last ran");
    }

    context.network.end_strays().await?;
    let pods = std::mem::take(&mut records.pods);
    let known: HashSet<PodId> = pods.iter().map(|pod| pod.id.clone()).collect();
    let found = pods.into_iter().map(|pod| {
        let containers = records.containers.remove(&pod.id).unwrap_or_default();
        find(runtime, pod, containers, same_boot)
    });
    for (record, driver, recovered) in join_all(found).await.into_iter().flatten() {
        info!(pod = %record.id, from = record.state.name(), to = recovered.state.name(), "pod found again");
        let ids: Vec<ContainerId> =
            recovered.containers.iter().map(|container| container.record.id.clone()).collect();
        let metadata = record.spec.metadata.clone();
        let (handle, task) = PodHandle::recover(Arc::clone(context), driver, recovered);
        runtime.registry().adopt(handle.clone(), metadata, ids);
        runtime.spawn(&handle, task);
    }
    clean_unknown(runtime, &known).await?;
    // Containers whose pod has no record: what it held is gone now, but for the
    // layers that the record counts as used.
    for container in records.containers.into_values().flatten() {
        context.layers.release(&container.id).await?;
        let mut batch = Batch::new();
        batch.delete::<ContainerRecord>(container.id.as_str());
        batch.delete::<LogRecord>(container.id.as_str());
        context.store.commit(batch).await?;
    }
    context.store.meta_put(BOOT_ID, runtime.boot_id()).await?;
    Ok(())
}

/// Under which key the store keeps the boot that its records are of.
const BOOT_ID: &str = "boot-id";

/// Looks for one recorded pod.
async fn find(
    runtime: &Runtime,
    record: PodRecord,
    containers: Vec<ContainerRecord>,
    same_boot: bool,
) -> Option<(PodRecord, Arc<dyn Driver>, Recovered)> {
    let context = runtime.context();
    let Some(driver) = context.driver(record.spec.placement).cloned() else {
        warn!(pod = %record.id, placement = ?record.spec.placement, "no machine driver for a recorded pod; it is left alone");
        containers.iter().flat_map(ContainerRecord::images).for_each(|id| runtime.keep_image(id));
        return None;
    };
    let guest = if same_boot && record.state.is_ready() { answers(&driver, &record).await } else { None };
    let reality = match (same_boot, &guest) {
        (false, _) => Reality::OtherBoot,
        (true, Some(_)) => Reality::MachineLives,
        (true, None) => Reality::MachineGone(end_of(&driver, &record.id).await),
    };
    let (state, effects) = record.state.recover(reality);
    let alive = state.is_ready();
    let seen: BTreeMap<&str, &v1::ContainerStatus> = match &guest {
        Some((_, list)) => list.containers.iter().map(|status| (status.id.as_str(), status)).collect(),
        None => BTreeMap::new(),
    };
    let containers = containers
        .into_iter()
        .map(|mut container| {
            let mut ended = None;
            let effects = if alive {
                let status = seen.get(container.id.as_str());
                if let (Some(identity), Some(status)) = (&mut container.identity, status) {
                    identity.pid = status.pid;
                }
                let mut seen = status.and_then(|status| as_seen(status));
                if container.log_path.is_some() && !driver.capabilities().guest_writes_logs {
                    (seen, ended) = end_held_back(seen);
                }
                let (state, effects) = container.state.recover(seen.as_ref(), now());
                container.state = state;
                effects
            } else {
                recover_ended(&mut container, &state)
            };
            let leases = container.images().filter_map(|id| runtime.images().lease(id)).collect();
            RecoveredContainer { record: container, leases, effects, ended }
        })
        .collect();
    let recovered = Recovered {
        id: record.id.clone(),
        spec: record.spec.clone(),
        created_at: record.created_at,
        state,
        effects,
        containers,
        guest: guest.map(|(guest, list)| (guest, list.sequence)).filter(|_| alive),
    };
    Some((record, driver, recovered))
}

/// Why a recorded pod's machine is of no use any more, as far as can be told.
async fn end_of(driver: &Arc<dyn Driver>, pod: &PodId) -> String {
    const UNSEEN: &str = "it ended while the daemon was not running";
    match driver.status(pod).await {
        Ok(MachineState::Running) => "its guest no longer answers".to_owned(),
        // One that has ended says so at once.
        Ok(MachineState::Stopped) => match driver.wait(pod).await {
            Ok(ended) => format!("{UNSEEN}: {}", ended.reason),
            Err(_) => UNSEEN.to_owned(),
        },
        Ok(MachineState::Created) | Err(_) => UNSEEN.to_owned(),
    }
}

/// The guest of a recorded pod with its containers, if its machine runs and it
/// answers.
async fn answers(
    driver: &Arc<dyn Driver>,
    record: &PodRecord,
) -> Option<(GuestClient, v1::ListContainersResponse)> {
    match driver.status(&record.id).await {
        Ok(MachineState::Running) => {}
        Ok(MachineState::Created | MachineState::Stopped) => return None,
        Err(error) => {
            warn!(pod = %record.id, error = chain(&error), "ask for the machine of a recorded pod");
            return None;
        }
    }
    let guest = match connect_guest(driver, &record.id, ADOPT_DEADLINE).await {
        Ok(guest) => guest,
        Err(error) => {
            warn!(pod = %record.id, error = chain(&error), "the guest of a recorded pod does not answer");
            return None;
        }
    };
    match guest.list_containers().await {
        Ok(list) => Some((guest, list)),
        Err(error) => {
            warn!(pod = %record.id, error = chain(&error), "the guest of a recorded pod does not list its containers");
            None
        }
    }
}

/// A container whose machine is gone has ended; one that was half made or on
/// its way out goes on its way.
fn recover_ended(container: &mut ContainerRecord, pod: &PodState) -> Vec<ContainerEffect> {
    // The pod's own teardown takes all containers along.
    if *pod == PodState::Removing {
        return Vec::new();
    }
    match container.state {
        ContainerState::Creating | ContainerState::Removing(_) => {
            let (state, effects) = container.state.recover(None, now());
            container.state = state;
            effects
        }
        // Their end is reported when the teardown has made sure of it.
        ContainerState::Created | ContainerState::Starting | ContainerState::Running(_) if !is_over(pod) => {
            Vec::new()
        }
        ContainerState::Created | ContainerState::Starting | ContainerState::Running(_) => {
            let ended = ContainerEvent::MachineEnded(now(), "the pod was stopped".to_owned());
            match container.state.step(ended) {
                Ok((state, effects)) => {
                    container.state = state;
                    effects
                }
                Err(_) => Vec::new(),
            }
        }
        ContainerState::Exited(_) | ContainerState::Gone => Vec::new(),
    }
}

fn is_over(pod: &PodState) -> bool {
    matches!(pod, PodState::Stopped(_))
}

/// What the guest says of a container, in the model's words. The guest is not
/// trusted: what makes no sense counts as not said.
fn as_seen(status: &v1::ContainerStatus) -> Option<Seen> {
    match status.state() {
        v1::ContainerState::Created => Some(Seen::Created),
        v1::ContainerState::Running => Some(Seen::Running(Running { started_at: status.started_at_nanos })),
        v1::ContainerState::Exited => {
            let exit = status.exit.as_ref()?;
            let reason = match (exit.oom_killed, exit.code) {
                (true, _) => ExitReason::OutOfMemory,
                (false, 0) => ExitReason::Completed,
                (false, _) => ExitReason::Error,
            };
            Some(Seen::Exited(Exit {
                code: exit.code.clamp(0, 255),
                started_at: status.started_at_nanos,
                finished_at: exit.finished_at_nanos,
                reason,
                message: String::new(),
            }))
        }
        v1::ContainerState::Unspecified => None,
    }
}

/// Parts the end of a container from what came before: its log may not be complete,
/// and is to be when the end is told.
fn end_held_back(seen: Option<Seen>) -> (Option<Seen>, Option<ContainerEvent>) {
    match seen {
        Some(Seen::Exited(Exit { code, started_at, finished_at, reason, .. })) => {
            let before = if started_at == 0 { Seen::Created } else { Seen::Running(Running { started_at }) };
            let oom_killed = reason == ExitReason::OutOfMemory;
            (Some(before), Some(ContainerEvent::ExitSeen { code, finished_at, oom_killed }))
        }
        other => (other, None),
    }
}

/// Destroys the machines that no record explains; the pods of those that do not
/// go are known, too.
async fn with_those_that_stay(runtime: &Runtime, known: &HashSet<PodId>) -> Result<HashSet<PodId>, Error> {
    let context = runtime.context();
    let mut stay = known.clone();
    for driver in context.vm.iter().chain(&context.shared) {
        for machine in driver.list().await? {
            if known.contains(&machine.pod) {
                continue;
            }
            warn!(pod = %machine.pod, driver = driver.name(), "destroying a machine without a record");
            let destroyed = match driver.stop(&machine.pod, Duration::ZERO).await {
                Ok(()) => driver.destroy(&machine.pod).await,
                refused => refused,
            };
            if let Err(error) = destroyed {
                warn!(pod = %machine.pod, error = chain(&error), "it stays for the next daemon to destroy");
                stay.insert(machine.pod);
            }
        }
    }
    Ok(stay)
}

/// Machines, networks, processes and directories of pods that have no record.
/// There are none unless the record file was lost. A machine that does not go
/// keeps all that its pod has, for the next daemon, and this one from nothing.
async fn clean_unknown(runtime: &Runtime, known: &HashSet<PodId>) -> Result<(), Error> {
    let context = runtime.context();
    let known = &with_those_that_stay(runtime, known).await?;
    // Their own records of machines may be lost, too, or there is no such driver any more.
    let namespaces = context.node.network_namespaces().await?;
    let namespaces: BTreeSet<PodId> = namespaces.into_iter().filter(|pod| !known.contains(pod)).collect();
    let mut strangers = namespaces.clone();
    for directory in [context.paths.pods(), context.paths.run_pods()] {
        let names = context.node.list_directory(&directory).await?;
        let pods = names.iter().filter_map(|name| name.parse().ok());
        strangers.extend(pods.filter(|pod| !known.contains(pod)));
    }
    for pod in &strangers {
        if let Some(cgroup) = kina_node::find_cgroup(&*context.node, pod).await? {
            warn!(%pod, cgroup, "ending the processes of a pod without a record");
            context.node.kill_cgroup(&cgroup, CGROUP_DEADLINE).await?;
        }
    }
    context.network.tunnels().release_unknown(known).await?;
    context.network.detach_unknown(known).await?;
    for pod in namespaces {
        warn!(%pod, "removing a network namespace without a record");
        context.node.remove_network_namespace(&pod).await?;
    }
    context.remove_discarded().await?;
    for pod in strangers {
        warn!(%pod, "removing what lies in the directories of a pod without a record");
        for directory in [context.paths.run_pod(&pod), context.paths.pod(&pod)] {
            context.remove_directory(&directory).await?;
        }
    }
    Ok(())
}
