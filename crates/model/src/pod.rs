//! The life of a pod sandbox, as a pure transition function.
//!
//! ```text
//!               Started
//!   Starting ───────────▶ Ready ──────┐ StopAsked, MachineEnded
//!      │ StopAsked          │         ▼
//!      ├────────────────────┼──▶ Stopping ──TornDown──▶ Stopped
//!      │ RemoveAsked,       │      │ TeardownFailed       │
//!      │ StartFailed        │      ▼                      │
//!      │                    │   StopFailed ◀─────────┐    │ RemoveAsked
//!      ▼                    ▼      │ RemoveAsked     │    │
//!   Removing ◀──────────────┴──────┴─────────────────│────┘
//!      │ TornDown                                    │
//!      ▼            TeardownFailed ──────────────────┘
//!   Removed
//! ```
//!
//! The functions here decide; the pod's actor performs the effects, in order,
//! and reports back with an event.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What a ready pod has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Its addresses, the preferred one first; none on the node's network.
    pub addresses: Vec<IpAddr>,
    /// The network that gave them; `None` on the node's network, and with
    /// loopback only.
    #[serde(default)]
    pub network: Option<String>,
    /// Boot id of the kernel that runs it.
    pub boot_id: String,
    /// Release of that kernel.
    pub kernel: String,
    /// How large its machine is; `None` for one without memory of its own.
    #[serde(default)]
    pub size: Option<MachineSize>,
}

/// How large a machine is that has memory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSize {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Virtual CPUs.
    pub cpus: u32,
}

impl fmt::Display for MachineSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpus = if self.cpus == 1 { "CPU" } else { "CPUs" };
        write!(formatter, "{} MiB and {} {cpus}", self.memory_bytes >> 20, self.cpus)
    }
}

/// Why a pod ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// The caller asked.
    Asked,
    /// It did not come up.
    StartFailed(String),
    /// Its machine ended by itself.
    MachineEnded(String),
    /// The node was rebooted.
    Rebooted,
}

/// Where a pod stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// Being made; anything of it may exist already.
    Starting,
    /// Runs containers.
    Ready(Ready),
    /// Being torn down, to be kept as a stopped one.
    Stopping(StopCause),
    /// Teardown left something behind; stop or remove repeats it.
    StopFailed {
        /// Why it was to end.
        cause: StopCause,
        /// What could not be undone.
        reason: String,
    },
    /// Holds nothing but its record and its containers' records.
    Stopped(StopCause),
    /// Being torn down, to be forgotten.
    Removing,
    /// Forgotten.
    Removed,
}

/// What happens to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodEvent {
    /// All start effects are done.
    Started(Ready),
    /// One of them failed.
    StartFailed(String),
    /// StopPodSandbox.
    StopAsked,
    /// RemovePodSandbox.
    RemoveAsked,
    /// The machine ended by itself.
    MachineEnded(String),
    /// All teardown effects are done.
    TornDown,
    /// Some failed; the rest was done all the same.
    TeardownFailed(String),
}

/// What is to be done, in the order given.
///
/// Start effects stop at the first failure. Teardown effects are all tried but
/// for those that wait for another one; each succeeds when there is nothing to
/// undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PodEffect {
    /// Write the state to the store.
    Record,
    /// Make the pod's directories.
    MakeDirectories,
    /// Make its network namespace, unless it uses the node's.
    CreateNetwork,
    /// Have the network plugins connect it, unless it uses the node's.
    AttachNetwork,
    /// Make its machine.
    CreateMachine,
    /// Boot it.
    StartMachine,
    /// Shake hands with the guest.
    Handshake,
    /// Tell the guest what the containers share.
    SetupPod,
    /// Interrupt the start effects and wait until they have ended.
    CancelStart,
    /// End all containers and the machine; its guest is asked first where it has
    /// a kernel of its own.
    StopMachine,
    /// Remove what the machine held.
    DestroyMachine,
    /// Have the network plugins disconnect it and give back its addresses.
    DetachNetwork,
    /// Remove the network namespace.
    RemoveNetwork,
    /// Give back the layers of the containers.
    ReleaseLayers,
    /// Remove the pod's directories.
    RemoveDirectories,
    /// Forget the pod and its containers.
    DeleteRecords,
}

impl PodEffect {
    /// Every effect; each has a failpoint before and after it.
    pub const ALL: [Self; 16] = [
        Self::Record,
        Self::MakeDirectories,
        Self::CreateNetwork,
        Self::AttachNetwork,
        Self::CreateMachine,
        Self::StartMachine,
        Self::Handshake,
        Self::SetupPod,
        Self::CancelStart,
        Self::StopMachine,
        Self::DestroyMachine,
        Self::DetachNetwork,
        Self::RemoveNetwork,
        Self::ReleaseLayers,
        Self::RemoveDirectories,
        Self::DeleteRecords,
    ];

    /// Its name in failpoints, spans and errors.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Record => "pod-record",
            Self::MakeDirectories => "pod-make-directories",
            Self::CreateNetwork => "pod-create-network",
            Self::AttachNetwork => "pod-attach-network",
            Self::CreateMachine => "pod-create-machine",
            Self::StartMachine => "pod-start-machine",
            Self::Handshake => "pod-handshake",
            Self::SetupPod => "pod-setup",
            Self::CancelStart => "pod-cancel-start",
            Self::StopMachine => "pod-stop-machine",
            Self::DestroyMachine => "pod-destroy-machine",
            Self::DetachNetwork => "pod-detach-network",
            Self::RemoveNetwork => "pod-remove-network",
            Self::ReleaseLayers => "pod-release-layers",
            Self::RemoveDirectories => "pod-remove-directories",
            Self::DeleteRecords => "pod-delete-records",
        }
    }

    /// The teardown effect without whose success this one must not happen: what
    /// it takes away is what a repetition needs.
    #[must_use]
    pub fn waits_for(self) -> Option<Self> {
        match self {
            // A plugin that could not disconnect the pod looks into its
            // namespace again when it is asked again.
            Self::RemoveNetwork => Some(Self::DetachNetwork),
            // Drivers keep there what they know of the machine.
            Self::RemoveDirectories => Some(Self::DestroyMachine),
            Self::Record
            | Self::MakeDirectories
            | Self::CreateNetwork
            | Self::AttachNetwork
            | Self::CreateMachine
            | Self::StartMachine
            | Self::Handshake
            | Self::SetupPod
            | Self::CancelStart
            | Self::StopMachine
            | Self::DestroyMachine
            | Self::DetachNetwork
            | Self::ReleaseLayers
            | Self::DeleteRecords => None,
        }
    }
}

/// Why an event changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodDenied {
    /// The present phase must end first; the event is to be repeated then.
    #[error("the pod is being torn down")]
    Later,
    /// The event cannot happen in this state: a bug.
    #[error("the pod is not in a state where that can happen")]
    Impossible,
}

/// What makes a pod, in order. The record comes first: whatever the effects
/// after it leave behind can be found again by the pod's id.
pub const START: [PodEffect; 8] = [
    PodEffect::Record,
    PodEffect::MakeDirectories,
    PodEffect::CreateNetwork,
    PodEffect::AttachNetwork,
    PodEffect::CreateMachine,
    PodEffect::StartMachine,
    PodEffect::Handshake,
    PodEffect::SetupPod,
];

/// What frees everything that a pod holds.
///
/// The namespace goes after the plugins have seen it for the last time, and
/// only if they have succeeded ([`PodEffect::waits_for`]).
const TEARDOWN: [PodEffect; 5] = [
    PodEffect::StopMachine,
    PodEffect::DestroyMachine,
    PodEffect::DetachNetwork,
    PodEffect::RemoveNetwork,
    PodEffect::ReleaseLayers,
];

/// What makes it forgotten. The record goes last.
const FORGET: [PodEffect; 2] = [PodEffect::RemoveDirectories, PodEffect::DeleteRecords];

fn effects(parts: &[&[PodEffect]]) -> Vec<PodEffect> {
    parts.concat()
}

impl PodState {
    /// The next state and what is to be done.
    ///
    /// # Errors
    /// [`PodDenied`], and nothing changes.
    pub fn step(&self, event: PodEvent) -> Result<(Self, Vec<PodEffect>), PodDenied> {
        use PodEffect::{CancelStart, Record};
        use PodEvent::{
            MachineEnded, RemoveAsked, StartFailed, Started, StopAsked, TeardownFailed, TornDown,
        };

        let unchanged = || Ok((self.clone(), Vec::new()));
        match (self, event) {
            (Self::Starting, Started(ready)) => Ok((Self::Ready(ready), vec![Record])),
            (Self::Starting, StartFailed(_)) => {
                Ok((Self::Removing, effects(&[&[Record], &TEARDOWN, &FORGET])))
            }
            (Self::Starting, StopAsked) => {
                Ok((Self::Stopping(StopCause::Asked), effects(&[&[CancelStart, Record], &TEARDOWN])))
            }
            (Self::Starting, RemoveAsked) => {
                Ok((Self::Removing, effects(&[&[CancelStart, Record], &TEARDOWN, &FORGET])))
            }
            // The start effects notice that by themselves.
            (Self::Starting, MachineEnded(_)) => unchanged(),

            (Self::Ready(_), StopAsked) => {
                Ok((Self::Stopping(StopCause::Asked), effects(&[&[Record], &TEARDOWN])))
            }
            (Self::Ready(_), MachineEnded(reason)) => {
                Ok((Self::Stopping(StopCause::MachineEnded(reason)), effects(&[&[Record], &TEARDOWN])))
            }

            (Self::Stopping(cause), TornDown) => Ok((Self::Stopped(cause.clone()), vec![Record])),
            (Self::Stopping(cause), TeardownFailed(reason)) => {
                Ok((Self::StopFailed { cause: cause.clone(), reason }, vec![Record]))
            }
            (Self::Stopping(_) | Self::Removing, StopAsked | RemoveAsked) => Err(PodDenied::Later),

            (Self::StopFailed { cause, .. }, StopAsked) => {
                Ok((Self::Stopping(cause.clone()), effects(&[&[Record], &TEARDOWN])))
            }
            (Self::Ready(_) | Self::StopFailed { .. }, RemoveAsked) => {
                Ok((Self::Removing, effects(&[&[Record], &TEARDOWN, &FORGET])))
            }

            (Self::Stopped(_), StopAsked) => unchanged(),
            // The record says already that nothing of it runs, and finds the rest. Should the daemon
            // die of this, the pod is there to be removed again.
            (Self::Stopped(_), RemoveAsked) => Ok((Self::Removing, effects(&[&FORGET]))),

            (Self::Removing, TornDown) => Ok((Self::Removed, Vec::new())),
            (Self::Removing, TeardownFailed(reason)) => {
                Ok((Self::StopFailed { cause: StopCause::Asked, reason }, vec![Record]))
            }

            (Self::Removed, StopAsked | RemoveAsked) => unchanged(),

            // News that comes late: the state already says so.
            (
                Self::Stopping(_)
                | Self::StopFailed { .. }
                | Self::Stopped(_)
                | Self::Removing
                | Self::Removed,
                MachineEnded(_) | Started(_) | StartFailed(_),
            ) => unchanged(),

            (Self::Ready(_), Started(_) | StartFailed(_))
            | (
                Self::Starting | Self::Ready(_) | Self::StopFailed { .. } | Self::Stopped(_) | Self::Removed,
                TornDown | TeardownFailed(_),
            ) => Err(PodDenied::Impossible),
        }
    }

    /// What a starting daemon makes of a recorded state, given what it finds:
    /// adopt what runs, clean what is half made.
    #[must_use]
    pub fn recover(&self, found: Reality) -> (Self, Vec<PodEffect>) {
        let record = &[PodEffect::Record][..];
        match (self, found) {
            // Nobody was ever told this pod's id.
            (Self::Starting, _) | (Self::Removing, _) => {
                (Self::Removing, effects(&[record, &TEARDOWN, &FORGET]))
            }
            (Self::Ready(_), Reality::MachineLives) => (self.clone(), Vec::new()),
            (Self::Ready(_), Reality::MachineGone(reason)) => {
                (Self::Stopping(StopCause::MachineEnded(reason)), effects(&[record, &TEARDOWN]))
            }
            (Self::Ready(_), Reality::OtherBoot) => {
                (Self::Stopping(StopCause::Rebooted), effects(&[record, &TEARDOWN]))
            }
            (Self::Stopping(cause) | Self::StopFailed { cause, .. }, _) => {
                (Self::Stopping(cause.clone()), effects(&[record, &TEARDOWN]))
            }
            (Self::Stopped(_) | Self::Removed, _) => (self.clone(), Vec::new()),
        }
    }

    /// Whether it can run containers.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready(_))
    }

    /// The state in a word, for status and errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready(_) => "ready",
            Self::Stopping(_) => "stopping",
            Self::StopFailed { .. } => "stop failed",
            Self::Stopped(_) => "stopped",
            Self::Removing => "removing",
            Self::Removed => "removed",
        }
    }
}

/// What a starting daemon finds of a recorded pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reality {
    /// Its machine runs and the guest answers.
    MachineLives,
    /// Its machine does not run, or its guest does not answer; why.
    MachineGone(String),
    /// The record is of another boot of the node: nothing of it runs.
    OtherBoot,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ready() -> Ready {
        Ready { addresses: Vec::new(), network: None, boot_id: "b".into(), kernel: "k".into(), size: None }
    }

    fn event() -> impl Strategy<Value = PodEvent> {
        prop_oneof![
            Just(PodEvent::Started(ready())),
            Just(PodEvent::StartFailed("x".into())),
            Just(PodEvent::StopAsked),
            Just(PodEvent::RemoveAsked),
            Just(PodEvent::MachineEnded("x".into())),
            Just(PodEvent::TornDown),
            Just(PodEvent::TeardownFailed("x".into())),
        ]
    }

    /// What a pod may hold, by the effects performed so far.
    #[derive(Default, Debug, PartialEq)]
    struct Held {
        directories: bool,
        network: bool,
        attached: bool,
        machine: bool,
        record: bool,
    }

    impl Held {
        fn perform(&mut self, effect: PodEffect) {
            match effect {
                PodEffect::Record => self.record = true,
                PodEffect::MakeDirectories => self.directories = true,
                PodEffect::CreateNetwork => self.network = true,
                PodEffect::AttachNetwork => {
                    assert!(self.network, "plugins need the namespace");
                    self.attached = true;
                }
                PodEffect::DetachNetwork => {
                    assert!(!self.machine, "the network goes after whoever uses it");
                    self.attached = false;
                }
                PodEffect::CreateMachine | PodEffect::StartMachine => self.machine = true,
                PodEffect::DestroyMachine => self.machine = false,
                PodEffect::RemoveNetwork => {
                    assert!(!self.attached, "plugins need the namespace");
                    self.network = false;
                }
                PodEffect::RemoveDirectories => self.directories = false,
                PodEffect::DeleteRecords => self.record = false,
                PodEffect::Handshake
                | PodEffect::SetupPod
                | PodEffect::CancelStart
                | PodEffect::StopMachine
                | PodEffect::ReleaseLayers => {}
            }
        }
    }

    #[test]
    fn the_happy_path() {
        let (state, effects) = PodState::Starting.step(PodEvent::Started(ready())).unwrap();
        assert_eq!((state.name(), effects), ("ready", vec![PodEffect::Record]));
        let (state, effects) = state.step(PodEvent::StopAsked).unwrap();
        assert_eq!(state, PodState::Stopping(StopCause::Asked));
        assert_eq!(effects[0], PodEffect::Record, "intent first");
        let (state, _) = state.step(PodEvent::TornDown).unwrap();
        assert_eq!(state.step(PodEvent::StopAsked).unwrap(), (state.clone(), vec![]), "stop may be repeated");
        let (state, effects) = state.step(PodEvent::RemoveAsked).unwrap();
        assert_eq!(*effects.last().unwrap(), PodEffect::DeleteRecords, "the record goes last");
        let (state, _) = state.step(PodEvent::TornDown).unwrap();
        assert_eq!(state, PodState::Removed);
        assert_eq!(state.step(PodEvent::RemoveAsked).unwrap(), (PodState::Removed, vec![]));
    }

    #[test]
    fn stop_interrupts_start() {
        let (state, effects) = PodState::Starting.step(PodEvent::StopAsked).unwrap();
        assert_eq!(effects[0], PodEffect::CancelStart);
        let (after, _) = state.step(PodEvent::Started(ready())).unwrap();
        assert_eq!(after, state, "a start that ends late does not bring the pod back");
    }

    #[test]
    fn a_failed_start_leaves_no_pod() {
        let (state, effects) = PodState::Starting.step(PodEvent::StartFailed("no".into())).unwrap();
        let mut held = Held { directories: true, network: true, attached: true, machine: true, record: true };
        effects.into_iter().for_each(|effect| held.perform(effect));
        assert!(held == Held::default(), "{held:?}");
        assert_eq!(state.step(PodEvent::TornDown).unwrap().0, PodState::Removed);
    }

    #[test]
    fn recovery_adopts_or_cleans() {
        use Reality::{MachineLives, OtherBoot};
        let gone = || Reality::MachineGone("why".into());
        for (state, reality, expected) in [
            (PodState::Starting, MachineLives, "removing"),
            (PodState::Ready(ready()), MachineLives, "ready"),
            (PodState::Ready(ready()), gone(), "stopping"),
            (PodState::Ready(ready()), OtherBoot, "stopping"),
            (PodState::Stopping(StopCause::Asked), MachineLives, "stopping"),
            (PodState::Stopped(StopCause::Asked), OtherBoot, "stopped"),
            (PodState::Removing, gone(), "removing"),
        ] {
            let (recovered, _) = state.recover(reality.clone());
            assert_eq!(recovered.name(), expected, "{state:?} {reality:?}");
        }
    }

    proptest! {
        /// Whatever happens, in whatever order: nothing that was made is
        /// forgotten while it exists, no pod comes back, and remove always
        /// ends in removed.
        #[test]
        fn nothing_leaks_and_nothing_rises(events in proptest::collection::vec(event(), 0..40)) {
            let mut held = Held::default();
            START.into_iter().for_each(|effect| held.perform(effect));
            let mut state = PodState::Starting;
            for event in events {
                let gone = state == PodState::Removed;
                // The actor reports the end of a teardown only while one runs.
                let teardown = matches!(event, PodEvent::TornDown | PodEvent::TeardownFailed(_));
                if teardown && !matches!(state, PodState::Stopping(_) | PodState::Removing) {
                    continue;
                }
                if let Ok((next, effects)) = state.step(event) {
                    effects.into_iter().for_each(|effect| held.perform(effect));
                    state = next;
                }
                prop_assert!(!gone || state == PodState::Removed);
                if matches!(state, PodState::Stopped(_) | PodState::Removed) {
                    prop_assert!(!held.machine && !held.network && !held.attached, "{held:?}");
                }
            }
            for event in [PodEvent::TornDown, PodEvent::RemoveAsked, PodEvent::TornDown] {
                if let Ok((next, effects)) = state.step(event) {
                    effects.into_iter().for_each(|effect| held.perform(effect));
                    state = next;
                }
            }
            prop_assert_eq!(state, PodState::Removed);
            prop_assert!(held == Held::default(), "{:?}", held);
        }
    }
}
