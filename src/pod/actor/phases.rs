//! A pod's start and its teardown: the effects in a task of their own, and what follows.

use super::*;

impl Pod {
    pub(super) fn begin_start(&mut self, effects: Vec<PodEffect>) {
        let cancel = CancellationToken::new();
        self.starting = Some(cancel.clone());
        let subject = self.subject.clone();
        self.spawn(async move { Done::Start(subject.start(&effects, &cancel).await) });
    }

    pub(super) fn begin_teardown(&mut self, effects: Vec<PodEffect>) {
        self.guest_watch.cancel();
        let guest = self.guest.take();
        self.publish_guest.send_replace(None);
        let subject = self.subject.clone();
        let containers: Vec<ContainerId> = self.containers.keys().cloned().collect();
        let logs: Vec<ContainerLog> =
            self.containers.values().filter_map(|known| known.log.clone()).collect();
        let container_work = Arc::clone(&self.container_work);
        self.spawn(async move {
            let mut failures = Vec::new();
            let mut failed = Vec::new();
            for effect in effects {
                // A record is what finds the rest again: it goes only when all else is gone.
                if effect == PodEffect::DeleteRecords && !failures.is_empty() {
                    break;
                }
                if effect.waits_for().is_some_and(|before| failed.contains(&before)) {
                    continue;
                }
                if effect != PodEffect::StopMachine {
                    // Whoever still works on a container notices that the guest is gone.
                    drop(container_work.write().await);
                }
                match subject.teardown_effect(effect, &containers, guest.as_ref()).await {
                    // Nothing more comes; nothing is written when the records go.
                    Ok(()) if effect == PodEffect::StopMachine => {
                        join_all(logs.iter().map(|log| log.finish(Duration::ZERO))).await;
                    }
                    Ok(()) => {}
                    Err(failure) => {
                        failures.push(failure);
                        failed.push(effect);
                    }
                }
            }
            Done::Teardown(if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) })
        });
    }

    pub(super) async fn start_ended(&mut self, result: Result<(GuestClient, Ready), StartError>) {
        self.starting = None;
        match result {
            Ok((guest, ready)) => {
                if self.state == PodState::Starting {
                    self.adopt_guest(guest, 0);
                }
                self.happen(PodEvent::Started(ready)).await;
            }
            Err(StartError::Cancelled) => {}
            Err(error @ (StartError::Failed(_) | StartError::Refused(_))) => {
                let reason = error.reason();
                warn!(pod = %self.subject.id, reason, "the pod did not start");
                self.failure = Some(error);
                self.happen(PodEvent::StartFailed(reason)).await;
            }
        }
        if self.state.is_ready() {
            self.start_waiters.drain(..).for_each(|waiter| drop(waiter.send(Ok(()))));
        }
        let (cause, interrupted) = std::mem::take(&mut self.after_start);
        if !interrupted.is_empty() {
            cause.carry(self.perform(interrupted)).await;
        }
    }

    pub(super) async fn teardown_ended(&mut self, result: Result<(), String>) {
        // A removed pod's containers are forgotten with it; writing their end
        // would bring their records back.
        if self.state != PodState::Removing || result.is_err() {
            self.containers_ended_with_pod().await;
        }
        let failure = result.as_ref().err().cloned();
        match result {
            Ok(()) => self.happen(PodEvent::TornDown).await,
            Err(reason) => {
                warn!(pod = %self.subject.id, reason, "the pod is not torn down");
                self.happen(PodEvent::TeardownFailed(reason)).await;
            }
        }
        for waiter in std::mem::take(&mut self.start_waiters) {
            let error = match self.failure.as_ref().unwrap_or(&StartError::Cancelled) {
                StartError::Refused(error) => error.clone().into(),
                error @ (StartError::Failed(_) | StartError::Cancelled) => {
                    Error::StartFailed { pod: self.subject.id.clone(), reason: error.reason() }
                }
            };
            let _ = waiter.send(Err(error));
        }
        for waiter in std::mem::take(&mut self.teardown_waiters) {
            let answer = match &failure {
                None => Ok(()),
                Some(reason) => {
                    Err(Error::TeardownFailed { pod: self.subject.id.clone(), reason: reason.clone() })
                }
            };
            let _ = waiter.send(answer);
        }
        for request in std::mem::take(&mut self.waiting) {
            self.obey_again(request).await;
        }
    }

    /// The machine is gone: containers that were not seen to end have ended now.
    pub(super) async fn containers_ended_with_pod(&mut self) {
        let finished_at = now();
        let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
        for id in ids {
            let event = match &self.state {
                PodState::Stopping(StopCause::MachineEnded(reason)) => {
                    ContainerEvent::MachineEnded(finished_at, format!("the pod's machine ended: {reason}"))
                }
                PodState::Stopping(StopCause::Rebooted) => {
                    ContainerEvent::MachineEnded(finished_at, "the node was rebooted".to_owned())
                }
                // Killed with its pod, as asked.
                PodState::Stopping(_)
                | PodState::Starting
                | PodState::Ready(_)
                | PodState::StopFailed { .. }
                | PodState::Stopped(_)
                | PodState::Removing
                | PodState::Removed => ContainerEvent::ExitSeen { code: 137, finished_at, oom_killed: false },
            };
            self.container_event(&id, event).await;
        }
    }
}
