//! An in-memory driver for tests: its machines are entries of a table, its
//! guests are what the test makes of the other ends of the streams.
//!
//! Failures are ordered per operation ([`FakeDriver::fail_next`]), and a call
//! can be held where it is ([`FakeDriver::gate`]) to see what happens meanwhile.
//! A dropped call that has not passed its gate does nothing.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kina_model::{ContainerId, PodId};
use tokio::io::DuplexStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::{
    Attachment, Capabilities, Details, Driver, Ended, Error, Found, LayerAccess, MachineSpec, MachineState,
    NetworkAttachment, Overhead, Share, Shares, Stream,
};

/// The name of the fake.
const NAME: &str = "fake";

/// Bytes in flight on a stream, each way.
const BUFFER: usize = 64 * 1024;

/// A method of [`Driver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Driver::create`]
    Create,
    /// [`Driver::start`]
    Start,
    /// [`Driver::stop`]
    Stop,
    /// [`Driver::destroy`]
    Destroy,
    /// [`Driver::list`]
    List,
    /// [`Driver::status`]
    Status,
    /// [`Driver::wait`]
    Wait,
    /// [`Driver::connect`]
    Connect,
    /// [`Driver::share`]
    Share,
    /// [`Driver::unshare`]
    Unshare,
    /// [`Driver::attach_network`]
    AttachNetwork,
    /// [`Driver::resize`]
    Resize,
    /// [`Driver::overhead`]
    Overhead,
    /// [`Driver::console`]
    Console,
    /// [`Driver::inspect`]
    Inspect,
}

/// Takes the guest's end of each stream.
type Acceptor = dyn Fn(PodId, DuplexStream) + Send + Sync;

/// The in-memory driver. Clones share their machines: a clone is what a driver
/// is to the daemon after a restart.
#[derive(Clone)]
pub struct FakeDriver {
    world: Arc<World>,
    capabilities: Capabilities,
}

struct World {
    accept: Box<Acceptor>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    machines: HashMap<PodId, Machine>,
    failures: HashMap<Operation, VecDeque<Failure>>,
    gates: HashMap<Operation, VecDeque<Arc<Hold>>>,
    calls: Vec<(Operation, Option<PodId>)>,
}

struct Failure {
    error: Error,
    after_effect: bool,
}

struct Machine {
    spec: MachineSpec,
    state: MachineState,
    /// Why it has ended.
    ended: watch::Sender<Option<String>>,
    /// One per open stream; dropping it cuts them all.
    streams: JoinSet<()>,
}

impl Machine {
    fn end(&mut self, reason: &str) {
        self.state = MachineState::Stopped;
        self.streams = JoinSet::new();
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert_with(|| reason.to_owned());
            first
        });
    }
}

struct Hold {
    reached: Semaphore,
    opened: Semaphore,
}

/// Holds one call of the fake. Dropping it lets the call pass.
pub struct Gate {
    hold: Arc<Hold>,
}

impl Gate {
    /// Waits until a call stands at the gate.
    pub async fn reached(&self) {
        // The semaphore is never closed.
        drop(self.hold.reached.acquire().await);
    }

    /// Lets the call pass.
    pub fn open(self) {}
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.hold.opened.add_permits(1);
    }
}

impl FakeDriver {
    /// A driver without machines, with the capabilities of the host driver.
    /// `accept` is given the guest's end of each new stream; it is called
    /// within the runtime and must not block.
    #[must_use]
    pub fn new(accept: impl Fn(PodId, DuplexStream) + Send + Sync + 'static) -> Self {
        Self {
            world: Arc::new(World { accept: Box::new(accept), table: Mutex::new(Table::default()) }),
            capabilities: Capabilities {
                shares: Shares::Dynamic,
                layers: LayerAccess::Mounted,
                network: NetworkAttachment::Netns,
                guest_writes_logs: true,
                resize: false,
                own_kernel: false,
                boot_files: None,
            },
        }
    }

    /// The same machines, with other capabilities.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// The next call of an operation that has no failure ordered yet fails with
    /// this error and does nothing.
    pub fn fail_next(&self, operation: Operation, error: Error) {
        self.order(operation, Failure { error, after_effect: false });
    }

    /// Likewise, but the call takes effect before it fails.
    pub fn fail_next_after_effect(&self, operation: Operation, error: Error) {
        self.order(operation, Failure { error, after_effect: true });
    }

    fn order(&self, operation: Operation, failure: Failure) {
        self.table().failures.entry(operation).or_default().push_back(failure);
    }

    /// Holds the next call of an operation that is not held yet, before it does
    /// anything.
    #[must_use]
    pub fn gate(&self, operation: Operation) -> Gate {
        let hold = Arc::new(Hold { reached: Semaphore::new(0), opened: Semaphore::new(0) });
        self.table().gates.entry(operation).or_default().push_back(Arc::clone(&hold));
        Gate { hold }
    }

    /// Cuts every stream to a pod's guest. The machine does not notice.
    pub fn cut(&self, pod: &PodId) {
        if let Some(machine) = self.table().machines.get_mut(pod) {
            machine.streams = JoinSet::new();
        }
    }

    /// Ends a running machine as if its guest had crashed: its streams break
    /// and [`Driver::wait`] returns. Whether there was one.
    pub fn kill(&self, pod: &PodId) -> bool {
        self.kill_because(pod, "it has ended")
    }

    /// The same, for a reason.
    pub fn kill_because(&self, pod: &PodId, reason: &str) -> bool {
        match self.table().machines.get_mut(pod) {
            Some(machine) if machine.state == MachineState::Running => {
                machine.end(reason);
                true
            }
            _ => false,
        }
    }

    /// What a machine was made from, in its present size.
    #[must_use]
    pub fn spec(&self, pod: &PodId) -> Option<MachineSpec> {
        self.table().machines.get(pod).map(|machine| machine.spec.clone())
    }

    /// The calls so far in order, failed and held ones too.
    #[must_use]
    pub fn calls(&self) -> Vec<(Operation, Option<PodId>)> {
        self.table().calls.clone()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.world.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call, stands at its gate, then fails or does its work.
    async fn perform<T>(
        &self,
        operation: Operation,
        pod: Option<&PodId>,
        work: impl FnOnce(&mut Table) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let hold = {
            let mut table = self.table();
            table.calls.push((operation, pod.cloned()));
            table.gates.get_mut(&operation).and_then(VecDeque::pop_front)
        };
        if let Some(hold) = hold {
            hold.reached.add_permits(1);
            drop(hold.opened.acquire().await);
        }
        let mut table = self.table();
        match table.failures.get_mut(&operation).and_then(VecDeque::pop_front) {
            Some(Failure { error, after_effect: false }) => Err(error),
            Some(Failure { error, after_effect: true }) => {
                work(&mut table)?;
                Err(error)
            }
            None => work(&mut table),
        }
    }
}

impl Table {
    fn machine(&mut self, pod: &PodId) -> Result<&mut Machine, Error> {
        self.machines.get_mut(pod).ok_or_else(|| Error::NotFound { pod: pod.clone() })
    }
}

fn wrong_state(pod: &PodId, operation: &'static str, state: MachineState) -> Error {
    let state = match state {
        MachineState::Created => "created",
        MachineState::Running => "running",
        MachineState::Stopped => "stopped",
    };
    Error::WrongState { pod: pod.clone(), operation, state }
}

#[async_trait]
impl Driver for FakeDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn create(&self, spec: &MachineSpec) -> Result<(), Error> {
        self.perform(Operation::Create, Some(&spec.pod), |table| match table.machines.get(&spec.pod) {
            None => {
                let machine = Machine {
                    spec: spec.clone(),
                    state: MachineState::Created,
                    ended: watch::Sender::new(None),
                    streams: JoinSet::new(),
                };
                table.machines.insert(spec.pod.clone(), machine);
                Ok(())
            }
            Some(machine) if machine.state == MachineState::Created && machine.spec == *spec => Ok(()),
            Some(machine) => Err(wrong_state(&spec.pod, "create", machine.state)),
        })
        .await
    }

    async fn start(&self, pod: &PodId) -> Result<(), Error> {
        self.perform(Operation::Start, Some(pod), |table| {
            let machine = table.machine(pod)?;
            match machine.state {
                MachineState::Created | MachineState::Running => {
                    machine.state = MachineState::Running;
                    Ok(())
                }
                MachineState::Stopped => Err(wrong_state(pod, "start", machine.state)),
            }
        })
        .await
    }

    async fn stop(&self, pod: &PodId, grace: Duration) -> Result<(), Error> {
        let ended = self
            .perform(Operation::Stop, Some(pod), |table| {
                Ok(table
                    .machines
                    .get(pod)
                    .filter(|machine| machine.state == MachineState::Running)
                    .map(|machine| machine.ended.subscribe()))
            })
            .await?;
        if let Some(mut ended) = ended
            && !grace.is_zero()
        {
            // Ended, destroyed, or out of time: all the same here.
            drop(tokio::time::timeout(grace, ended.wait_for(Option::is_some)).await);
        }
        if let Some(machine) = self.table().machines.get_mut(pod) {
            machine.end("it was stopped");
        }
        Ok(())
    }

    async fn destroy(&self, pod: &PodId) -> Result<(), Error> {
        self.perform(Operation::Destroy, Some(pod), |table| {
            if let Some(mut machine) = table.machines.remove(pod) {
                machine.end("it was destroyed");
            }
            Ok(())
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Found>, Error> {
        self.perform(Operation::List, None, |table| {
            Ok(table
                .machines
                .iter()
                .map(|(pod, machine)| Found { pod: pod.clone(), state: machine.state })
                .collect())
        })
        .await
    }

    async fn status(&self, pod: &PodId) -> Result<MachineState, Error> {
        self.perform(Operation::Status, Some(pod), |table| Ok(table.machine(pod)?.state)).await
    }

    async fn wait(&self, pod: &PodId) -> Result<Ended, Error> {
        let mut ended = self
            .perform(Operation::Wait, Some(pod), |table| {
                let machine = table.machine(pod)?;
                match machine.state {
                    MachineState::Created => Err(wrong_state(pod, "wait", machine.state)),
                    MachineState::Running | MachineState::Stopped => Ok(machine.ended.subscribe()),
                }
            })
            .await?;
        let reason = match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The last reason is never taken back.
            Err(_) => "it was destroyed".to_owned(),
        };
        Ok(Ended { reason })
    }

    async fn connect(&self, pod: &PodId) -> Result<Box<dyn Stream>, Error> {
        let (ours, guests) = self
            .perform(Operation::Connect, Some(pod), |table| {
                let machine = table.machine(pod)?;
                if machine.state != MachineState::Running {
                    let source = io::Error::from(io::ErrorKind::ConnectionRefused);
                    return Err(Error::Connect { pod: pod.clone(), source });
                }
                while machine.streams.try_join_next().is_some() {}
                let (ours, mut near) = tokio::io::duplex(BUFFER);
                let (mut far, guests) = tokio::io::duplex(BUFFER);
                machine.streams.spawn(async move {
                    // A broken stream ends the copying, and with it both ends.
                    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                });
                Ok((ours, guests))
            })
            .await?;
        (self.world.accept)(pod.clone(), guests);
        Ok(Box::new(ours))
    }

    async fn share(&self, pod: &PodId, share: &Share) -> Result<PathBuf, Error> {
        self.perform(Operation::Share, Some(pod), |table| {
            table.machine(pod)?;
            match share.source.try_exists() {
                Ok(true) => Ok(share.source.clone()),
                Ok(false) => Err(io::Error::from(io::ErrorKind::NotFound)),
                Err(error) => Err(error),
            }
            .map_err(|source| Error::Share {
                pod: pod.clone(),
                path: share.source.clone(),
                source,
            })
        })
        .await
    }

    async fn unshare(&self, pod: &PodId, _container: &ContainerId) -> Result<(), Error> {
        self.perform(Operation::Unshare, Some(pod), |_table| Ok(())).await
    }

    async fn attach_network(&self, pod: &PodId) -> Result<Attachment, Error> {
        let enters = self.capabilities.network == NetworkAttachment::Netns;
        self.perform(Operation::AttachNetwork, Some(pod), |table| {
            let network = &table.machine(pod)?.spec.network;
            let namespace = network.as_ref().map(|network| network.namespace.clone());
            Ok(namespace.filter(|_| enters).map_or(Attachment::Loopback, Attachment::Namespace))
        })
        .await
    }

    async fn resize(&self, pod: &PodId, memory_bytes: u64, cpus: u32) -> Result<(), Error> {
        let can = self.capabilities.resize;
        self.perform(Operation::Resize, Some(pod), |table| {
            if !can {
                return Err(Error::Unsupported { driver: NAME, operation: "resize" });
            }
            let machine = table.machine(pod)?;
            machine.spec.memory_bytes = memory_bytes;
            machine.spec.cpus = cpus;
            Ok(())
        })
        .await
    }

    async fn overhead(&self, pod: &PodId) -> Result<Overhead, Error> {
        self.perform(Operation::Overhead, Some(pod), |table| {
            let running = table.machine(pod)?.state == MachineState::Running;
            let memory_bytes = if running { 1 << 20 } else { 0 };
            Ok(Overhead { memory_bytes, cpu_nanos: 0 })
        })
        .await
    }

    async fn console(&self, pod: &PodId, limit: usize) -> Result<Vec<u8>, Error> {
        self.perform(Operation::Console, Some(pod), |table| {
            table.machine(pod)?;
            let words = format!("the console of {pod}\n").into_bytes();
            Ok(words[words.len().saturating_sub(limit)..].to_vec())
        })
        .await
    }

    async fn inspect(&self, pod: &PodId) -> Result<Details, Error> {
        self.perform(Operation::Inspect, Some(pod), |table| {
            table.machine(pod)?;
            Ok(Details { processes: Vec::new(), facts: vec![("kernel", "none".to_owned())] })
        })
        .await
    }
}
