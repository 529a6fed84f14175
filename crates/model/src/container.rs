//! The life of a container, as a pure transition function.
//!
//! ```text
//!   Creating ──Created──▶ Created ──StartAsked──▶ Starting ──Started──▶ Running
//!      │                     │                       │ StartFailed        │
//!      │ CreateFailed        │ ExitSeen              ▼         ExitSeen   │
//!      │                     └──────────────────▶ Exited ◀────────────────┘
//!      ▼                                             │ RemoveAsked (from any but Creating, Starting)
//!   Removing ◀───────────────────────────────────────┘
//!      │ Removed
//!      ▼
//!    Gone
//! ```

use serde::{Deserialize, Serialize};

/// A moment, in nanoseconds since the epoch, as the machine's clock gave it.
pub type Nanos = i64;

/// A running container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// When it was started.
    pub started_at: Nanos,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0 to 255; 128 plus the number of the signal that ended it.
    pub code: i32,
    /// When it was started; 0 if it never was.
    pub started_at: Nanos,
    /// When it ended.
    pub finished_at: Nanos,
    /// Why.
    pub reason: ExitReason,
    /// More about it, for people.
    pub message: String,
}

/// Why a container ended, in the words that Kubernetes' users know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// With code 0.
    Completed,
    /// With another code.
    Error,
    /// Killed for want of memory.
    OutOfMemory,
    /// It could not be started.
    StartError,
    /// Nobody saw its end: its machine ended.
    Unknown,
}

impl ExitReason {
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OutOfMemory => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "ContainerStatusUnknown",
        }
    }
}

/// Exit code of a container that could not be started.
pub const START_ERROR_CODE: i32 = 128;

/// Exit code of a container whose end nobody saw: as if killed.
pub const UNKNOWN_CODE: i32 = 137;

/// Where a container stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// Being made.
    Creating,
    /// Made, not started.
    Created,
    /// Being started.
    Starting,
    /// Runs.
    Running(Running),
    /// Has ended.
    Exited(Exit),
    /// Being removed.
    Removing(Exit),
    /// Forgotten.
    Gone,
}

/// What happens to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerEvent {
    /// The guest has made it.
    Created,
    /// It cannot be made.
    CreateFailed,
    /// StartContainer.
    StartAsked,
    /// The guest has started it.
    Started(Nanos),
    /// It cannot be started: when, and why.
    StartFailed(Nanos, String),
    /// The guest saw it end: code, when, whether for want of memory.
    ExitSeen {
        /// 0 to 255.
        code: i32,
        /// When.
        finished_at: Nanos,
        /// Killed for want of memory.
        oom_killed: bool,
    },
    /// Its machine ended: when, and why.
    MachineEnded(Nanos, String),
    /// RemoveContainer.
    RemoveAsked(Nanos),
    /// It is removed.
    Removed,
    /// Something of it is left.
    RemoveFailed,
}

/// What is to be done, in the order given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContainerEffect {
    /// Write the state to the store.
    Record,
    /// Have its layers mounted.
    MountLayers,
    /// Have the guest make it.
    GuestCreate,
    /// Have the guest start it.
    GuestStart,
    /// Have the guest kill and delete it.
    GuestDelete,
    /// Give its layers back.
    ReleaseLayers,
    /// Remove its writable layer.
    RemoveFiles,
    /// Forget it.
    DeleteRecord,
}

impl ContainerEffect {
    /// Every effect; each has a failpoint before and after it.
    pub const ALL: [Self; 8] = [
        Self::Record,
        Self::MountLayers,
        Self::GuestCreate,
        Self::GuestStart,
        Self::GuestDelete,
        Self::ReleaseLayers,
        Self::RemoveFiles,
        Self::DeleteRecord,
    ];

    /// Its name in failpoints, spans and errors.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Record => "container-record",
            Self::MountLayers => "container-mount-layers",
            Self::GuestCreate => "container-guest-create",
            Self::GuestStart => "container-guest-start",
            Self::GuestDelete => "container-guest-delete",
            Self::ReleaseLayers => "container-release-layers",
            Self::RemoveFiles => "container-remove-files",
            Self::DeleteRecord => "container-delete-record",
        }
    }
}

/// Why an event changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContainerDenied {
    /// Something is under way; the event is to be repeated when it has ended.
    #[error("the container is being worked on")]
    Later,
    /// It has ended and cannot be started again.
    #[error("the container has already run")]
    AlreadyRan,
    /// The event cannot happen in this state: a bug.
    #[error("the container is not in a state where that can happen")]
    Impossible,
}

/// What makes a container.
pub const CREATE: [ContainerEffect; 3] =
    [ContainerEffect::Record, ContainerEffect::MountLayers, ContainerEffect::GuestCreate];

/// What frees everything that it holds. The record goes last.
const REMOVE: [ContainerEffect; 4] = [
    ContainerEffect::GuestDelete,
    ContainerEffect::ReleaseLayers,
    ContainerEffect::RemoveFiles,
    ContainerEffect::DeleteRecord,
];

fn killed(started_at: Nanos, finished_at: Nanos, message: &str) -> Exit {
    Exit {
        code: UNKNOWN_CODE,
        started_at,
        finished_at,
        reason: ExitReason::Unknown,
        message: message.to_owned(),
    }
}

impl ContainerState {
    /// The next state and what is to be done.
    ///
    /// # Errors
    /// [`ContainerDenied`], and nothing changes.
    pub fn step(&self, event: ContainerEvent) -> Result<(Self, Vec<ContainerEffect>), ContainerDenied> {
        use ContainerEffect::Record;
        use ContainerEvent as Event;

        let unchanged = || Ok((self.clone(), Vec::new()));
        let removing = |exit: Exit| Ok((Self::Removing(exit), [&[Record][..], &REMOVE].concat()));
        let started_at = match self {
            Self::Running(running) => running.started_at,
            Self::Exited(exit) | Self::Removing(exit) => exit.started_at,
            Self::Creating | Self::Created | Self::Starting | Self::Gone => 0,
        };
        match (self, event) {
            (Self::Creating, Event::Created) => Ok((Self::Created, vec![Record])),
            (Self::Creating, Event::CreateFailed) => {
                Ok((Self::Removing(killed(0, 0, "it could not be made")), REMOVE.to_vec()))
            }

            (Self::Created, Event::StartAsked) => Ok((Self::Starting, vec![ContainerEffect::GuestStart])),
            (Self::Running(_), Event::StartAsked) => unchanged(),
            (Self::Exited(_) | Self::Gone, Event::StartAsked) => Err(ContainerDenied::AlreadyRan),

            (Self::Starting, Event::Started(started_at)) => {
                Ok((Self::Running(Running { started_at }), vec![Record]))
            }
            // Its end was seen before the answer to the start came.
            (Self::Exited(exit), Event::Started(started_at)) if exit.started_at == 0 => {
                Ok((Self::Exited(Exit { started_at, ..exit.clone() }), vec![Record]))
            }
            (Self::Exited(_) | Self::Removing(_) | Self::Gone, Event::Started(_)) => unchanged(),
            (Self::Starting, Event::StartFailed(now, message)) => Ok((
                Self::Exited(Exit {
                    code: START_ERROR_CODE,
                    started_at: 0,
                    finished_at: now,
                    reason: ExitReason::StartError,
                    message,
                }),
                vec![Record],
            )),
            (Self::Exited(_) | Self::Removing(_) | Self::Gone, Event::StartFailed(..)) => unchanged(),

            (
                Self::Created | Self::Starting | Self::Running(_),
                Event::ExitSeen { code, finished_at, oom_killed },
            ) => {
                let reason = match (oom_killed, code) {
                    (true, _) => ExitReason::OutOfMemory,
                    (false, 0) => ExitReason::Completed,
                    (false, _) => ExitReason::Error,
                };
                let exit = Exit { code, started_at, finished_at, reason, message: String::new() };
                Ok((Self::Exited(exit), vec![Record]))
            }
            (Self::Created | Self::Starting | Self::Running(_), Event::MachineEnded(now, message)) => {
                Ok((Self::Exited(killed(started_at, now, &message)), vec![Record]))
            }
            (
                Self::Creating | Self::Exited(_) | Self::Removing(_) | Self::Gone,
                Event::ExitSeen { .. } | Event::MachineEnded(..),
            ) => unchanged(),

            (Self::Created | Self::Running(_), Event::RemoveAsked(now)) => {
                removing(killed(started_at, now, "removed before it had ended"))
            }
            // Its record says already that it has ended, and finds the rest. Should the daemon die
            // of this, the container is there to be removed again.
            (Self::Exited(exit), Event::RemoveAsked(_)) => {
                Ok((Self::Removing(exit.clone()), REMOVE.to_vec()))
            }
            (Self::Gone, Event::RemoveAsked(_)) => unchanged(),

            (Self::Removing(_), Event::Removed) => Ok((Self::Gone, Vec::new())),
            (Self::Removing(exit), Event::RemoveFailed) => Ok((Self::Exited(exit.clone()), vec![Record])),

            (
                Self::Creating | Self::Starting | Self::Removing(_),
                Event::StartAsked | Event::RemoveAsked(_),
            ) => Err(ContainerDenied::Later),

            (_, Event::Created | Event::CreateFailed | Event::Removed | Event::RemoveFailed)
            | (
                Self::Creating | Self::Created | Self::Running(_),
                Event::Started(_) | Event::StartFailed(..),
            ) => Err(ContainerDenied::Impossible),
        }
    }

    /// What a starting daemon makes of a recorded state when the machine
    /// lives; `seen` is what the guest says, `None` if it does not know the
    /// container.
    #[must_use]
    pub fn recover(&self, seen: Option<&Seen>, now: Nanos) -> (Self, Vec<ContainerEffect>) {
        use ContainerEffect::Record;
        let recorded = |state: Self| {
            let effects = if state == *self { Vec::new() } else { vec![Record] };
            (state, effects)
        };
        match (self, seen) {
            // Nobody was told its id, or it was on its way out.
            (Self::Creating, _) => (Self::Removing(killed(0, now, "half made")), REMOVE.to_vec()),
            (Self::Removing(exit), _) => (Self::Removing(exit.clone()), REMOVE.to_vec()),
            (Self::Exited(_) | Self::Gone, _) => (self.clone(), Vec::new()),
            (_, Some(Seen::Created)) => recorded(Self::Created),
            (_, Some(Seen::Running(running))) => recorded(Self::Running(*running)),
            (_, Some(Seen::Exited(exit))) => recorded(Self::Exited(exit.clone())),
            (Self::Running(running), None) => {
                recorded(Self::Exited(killed(running.started_at, now, "the guest does not know it")))
            }
            (Self::Created | Self::Starting, None) => {
                recorded(Self::Exited(killed(0, now, "the guest does not know it")))
            }
        }
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<&Exit> {
        match self {
            Self::Exited(exit) | Self::Removing(exit) => Some(exit),
            Self::Creating | Self::Created | Self::Starting | Self::Running(_) | Self::Gone => None,
        }
    }

    /// The state in a word, for errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Running(_) => "running",
            Self::Exited(_) => "exited",
            Self::Removing(_) => "being removed",
            Self::Gone => "gone",
        }
    }
}

/// A container as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Made, not started.
    Created,
    /// Runs.
    Running(Running),
    /// Has ended.
    Exited(Exit),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(state: &ContainerState, event: ContainerEvent) -> ContainerState {
        state.step(event).unwrap().0
    }

    fn exit_seen(code: i32, oom_killed: bool) -> ContainerEvent {
        ContainerEvent::ExitSeen { code, finished_at: 9, oom_killed }
    }

    #[test]
    fn reasons_are_true() {
        let running = ContainerState::Running(Running { started_at: 5 });
        for (code, oom, reason) in
            [(0, false, "Completed"), (3, false, "Error"), (137, true, "OOMKilled"), (0, true, "OOMKilled")]
        {
            let state = step(&running, exit_seen(code, oom));
            let exit = state.exit().unwrap();
            assert_eq!(
                (exit.reason.as_str(), exit.code, exit.started_at, exit.finished_at),
                (reason, code, 5, 9)
            );
        }
        let failed = step(&ContainerState::Starting, ContainerEvent::StartFailed(7, "no such file".into()));
        assert_eq!(failed.exit().unwrap().code, START_ERROR_CODE);
    }

    #[test]
    fn start_may_be_repeated_but_not_after_the_end() {
        let running = ContainerState::Running(Running { started_at: 5 });
        assert_eq!(running.step(ContainerEvent::StartAsked).unwrap(), (running.clone(), vec![]));
        let exited = step(&running, exit_seen(0, false));
        assert_eq!(exited.step(ContainerEvent::StartAsked), Err(ContainerDenied::AlreadyRan));
    }

    #[test]
    fn an_exit_seen_before_the_start_was_answered() {
        let exited = step(&ContainerState::Starting, exit_seen(0, false));
        let told = step(&exited, ContainerEvent::Started(4));
        assert_eq!(told.exit().unwrap().started_at, 4);
        assert_eq!(step(&told, ContainerEvent::Started(6)), told);
    }

    #[test]
    fn recovery_takes_the_guests_word() {
        let exit = Exit {
            code: 2,
            started_at: 1,
            finished_at: 2,
            reason: ExitReason::Error,
            message: String::new(),
        };
        let running = ContainerState::Running(Running { started_at: 1 });
        let (state, effects) = running.recover(Some(&Seen::Exited(exit.clone())), 9);
        assert_eq!((state.exit(), effects), (Some(&exit), vec![ContainerEffect::Record]));
        assert_eq!(
            running.recover(Some(&Seen::Running(Running { started_at: 1 })), 9),
            (running.clone(), vec![])
        );
        assert_eq!(running.recover(None, 9).0.exit().unwrap().code, UNKNOWN_CODE);
        assert_eq!(ContainerState::Creating.recover(Some(&Seen::Created), 9).0.name(), "being removed");
        let (state, _) = ContainerState::Created.recover(Some(&Seen::Running(Running { started_at: 3 })), 9);
        assert_eq!(state.name(), "running");
    }

    fn event() -> impl Strategy<Value = ContainerEvent> {
        prop_oneof![
            Just(ContainerEvent::Created),
            Just(ContainerEvent::CreateFailed),
            Just(ContainerEvent::StartAsked),
            Just(ContainerEvent::Started(3)),
            Just(ContainerEvent::StartFailed(3, "x".into())),
            Just(exit_seen(1, false)),
            Just(ContainerEvent::MachineEnded(4, "x".into())),
            Just(ContainerEvent::RemoveAsked(5)),
            Just(ContainerEvent::Removed),
            Just(ContainerEvent::RemoveFailed),
        ]
    }

    proptest! {
        /// An exit once seen is never unseen or changed (but for the start
        /// time that was not known yet), and what is gone stays gone.
        #[test]
        fn an_exit_is_final(events in proptest::collection::vec(event(), 0..40)) {
            let mut state = ContainerState::Creating;
            for event in events {
                let before = state.clone();
                if let Ok((next, _)) = state.step(event) {
                    state = next;
                }
                match (&before, &state) {
                    (ContainerState::Gone, after) => prop_assert_eq!(after, &ContainerState::Gone),
                    (ContainerState::Exited(old), ContainerState::Exited(new) | ContainerState::Removing(new)) => {
                        prop_assert_eq!((old.code, old.finished_at, old.reason), (new.code, new.finished_at, new.reason));
                    }
                    (ContainerState::Exited(_), after) => prop_assert!(false, "exited became {}", after.name()),
                    _ => {}
                }
            }
        }
    }
}
