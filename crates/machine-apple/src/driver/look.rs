//! What a machine does now.

use std::sync::Arc;
use std::time::Duration;

use kina_machine::{Ended, Error as MachineError, MachineState};
use kina_model::PodId;

use super::NAME;
use super::ended::reason;
use super::machines::Machines;
use super::record::{Phase, Record};
use crate::Error;
use crate::command::{HOME_LABEL, Listed, POD_LABEL, State, container_name};
use crate::greeting::{Greeting, greet, until_end};

/// How long a guest may take to answer, before the list is believed.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// Pauses between two looks at a machine that does not answer.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);

const OPERATION: &str = "look for the machine";

/// What a machine does, with what is there in that state.
#[derive(Debug)]
pub(super) enum Now {
    Created,
    Running,
    /// Why it has ended.
    Stopped(String),
}

pub(super) fn state_of(now: &Now) -> MachineState {
    match now {
        Now::Created => MachineState::Created,
        Now::Running => MachineState::Running,
        Now::Stopped(_) => MachineState::Stopped,
    }
}

impl Machines {
    /// The pod of a container that is this daemon's.
    pub(super) fn own(&self, container: &Listed) -> Option<PodId> {
        let home = container.labels.get(HOME_LABEL)?;
        let pod: PodId = container.labels.get(POD_LABEL)?.parse().ok()?;
        (*home == self.home && container.id == container_name(&pod)).then_some(pod)
    }

    /// A machine's container as the list has it.
    pub(super) async fn listed(&self, pod: &PodId) -> Result<Option<Listed>, Error> {
        let name = container_name(pod);
        Ok(self.container.list().await?.into_iter().find(|container| container.id == name))
    }

    /// Compares a record with what runs.
    pub(super) async fn now(&self, pod: &PodId, record: &Record) -> Result<Now, MachineError> {
        if let Some(now) = self.now_unlisted(pod, record).await {
            return Ok(now);
        }
        // Whatever kept the list from being read, it says nothing of the machine.
        let unlisted =
            |error| MachineError::Unavailable { driver: NAME, operation: OPERATION, source: Box::new(error) };
        let listed = self.listed(pod).await.map_err(unlisted)?;
        Ok(self.judge(pod, listed.as_ref()).await)
    }

    /// The same with a list that is there already, or cannot be had.
    pub(super) async fn now_listed(&self, pod: &PodId, record: &Record, listed: Option<&[Listed]>) -> Now {
        let Some(listed) = listed else {
            return self.now_unlisted(pod, record).await.unwrap_or(Now::Running);
        };
        let name = container_name(pod);
        let listed = listed.iter().find(|container| container.id == name);
        let runs = listed.is_some_and(|container| container.state == State::Running);
        if runs && matches!(record.phase, Phase::Started(_)) {
            return Now::Running;
        }
        match self.now_unlisted(pod, record).await {
            Some(now) => now,
            None => self.judge(pod, listed).await,
        }
    }

    /// What needs no list: what the record says, and that the guest answers.
    async fn now_unlisted(&self, pod: &PodId, record: &Record) -> Option<Now> {
        match &record.phase {
            Phase::Created | Phase::Booting => Some(Now::Created),
            Phase::Stopped { reason, .. } => Some(Now::Stopped(reason.clone())),
            Phase::Started(_) => self.answers(pod).await.then_some(Now::Running),
        }
    }

    /// Whether a machine's guest answers. Who holds the connection without a word is
    /// there, too, and may be busy: Apple's relay ends with the machine.
    async fn answers(&self, pod: &PodId) -> bool {
        match greet(&self.socket(pod), ANSWER_PATIENCE).await {
            Greeting::Answered(_) | Greeting::Silent => true,
            Greeting::Nobody => false,
        }
    }

    /// What the list says of a machine whose guest does not answer.
    async fn judge(&self, pod: &PodId, listed: Option<&Listed>) -> Now {
        match listed.map(|container| container.state) {
            // It boots, or its relay is gone.
            Some(State::Running | State::Stopping | State::Unknown) => Now::Running,
            Some(State::Stopped) => Now::Stopped(reason(&self.words(pod).await)),
            None => {
                Now::Stopped("its container is gone: it was deleted, or the Mac was started anew".to_owned())
            }
        }
    }

    /// Waits until a started machine has ended, by holding a stream to its guest.
    pub(super) async fn wait(self: &Arc<Self>, pod: &PodId) -> Result<Ended, MachineError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.known(pod).await?.phase {
                Phase::Created | Phase::Booting => {
                    return Err(MachineError::wrong_state(pod, "wait", "created"));
                }
                Phase::Stopped { reason, .. } => return Ok(Ended { reason }),
                Phase::Started(_) => {}
            }
            if let Greeting::Answered(stream) = greet(&self.socket(pod), ANSWER_PATIENCE).await {
                pause = FIRST_PAUSE;
                until_end(stream).await;
            }
            let owned = pod.clone();
            let noted = self
                .change(pod, "wait", move |machines| async move { machines.note_end(&owned).await })
                .await;
            match noted {
                Ok(Some(reason)) => return Ok(Ended { reason }),
                // It goes on; or Apple's service does not answer, and neither does the guest.
                Ok(None) | Err(MachineError::Unavailable { .. }) => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Writes down that a machine has ended, if it has, and why.
    async fn note_end(&self, pod: &PodId) -> Result<Option<String>, MachineError> {
        let mut record = self.known(pod).await?;
        match (&record.phase, self.now(pod, &record).await?) {
            (Phase::Started(_), Now::Stopped(reason)) => {
                self.keep_words(pod).await;
                record.phase = Phase::Stopped { reason: reason.clone(), remains: true };
                self.write(pod, &record).await?;
                Ok(Some(reason))
            }
            (_, Now::Stopped(reason)) => Ok(Some(reason)),
            (_, Now::Created | Now::Running) => Ok(None),
        }
    }
}
