//! The actor's dealings with the logs that the daemon writes.

use super::super::logs::{LogRecord, LogSource};
use super::*;

/// How long a container's end waits for the rest of its log before it is told.
/// Longer only on a disk that takes nothing; the log goes on then.
const LOG_PATIENCE: Duration = Duration::from_secs(10);

impl Subject {
    /// Where a container's log goes if the daemon writes it.
    pub(in crate::pod) fn log_source(&self, guest: &GuestClient, view: &ContainerView) -> Option<LogSource> {
        if self.driver.capabilities().guest_writes_logs {
            return None;
        }
        view.log_path.as_ref().map(|path| LogSource {
            store: self.context.store.clone(),
            guest: guest.clone(),
            container: view.id.to_string(),
            path: path.clone(),
            metrics: self.context.metrics.clone(),
        })
    }
}

impl Pod {
    /// Goes on with the logs of an earlier daemon.
    pub(super) fn resume_logs(&mut self, guest: &GuestClient) {
        let cursors = self.subject.context.store.table::<LogRecord>();
        for (id, container) in &mut self.containers {
            let Some(source) = self.subject.log_source(guest, &container.view) else {
                continue;
            };
            match container.view.state {
                ContainerState::Creating | ContainerState::Removing(_) | ContainerState::Gone => continue,
                ContainerState::Created
                | ContainerState::Starting
                | ContainerState::Running(_)
                | ContainerState::Exited(_) => {}
            }
            match cursors.get(id.as_str()) {
                Ok(Some(LogRecord { complete: true, .. })) => {}
                // The guest still has what is not recorded, all of it if nothing is.
                Ok(_) => container.log = Some(ContainerLog::resume(source)),
                Err(error) => {
                    warn!(container = %id, error = chain(&error), "the log's cursor cannot be read; the log ends");
                }
            }
        }
    }

    /// A container has ended. Who reads its log once that is known must find
    /// all of it, so the log comes first.
    pub(super) async fn container_ended(&mut self, id: ContainerId, event: ContainerEvent) {
        let known = self.containers.get_mut(&id);
        let waits_for = known.and_then(|container| match &container.log {
            Some(log) if !log.is_over() => {
                Some((log.clone(), std::mem::replace(&mut container.ending, true)))
            }
            Some(_) | None => None,
        });
        match waits_for {
            None => self.exit_seen(&id, event).await,
            Some((_, true)) => {}
            Some((log, false)) => {
                self.spawn(async move {
                    if !log.over(LOG_PATIENCE).await {
                        warn!(container = %id, "the container has ended, its log is not complete yet");
                    }
                    Done::LogWritten(id, event)
                });
            }
        }
    }

    /// The guest says that a container has ended, perhaps before it says that it
    /// has started it.
    pub(super) async fn exit_seen(&mut self, id: &ContainerId, event: ContainerEvent) {
        match self.containers.get_mut(id) {
            Some(container) if container.view.state == ContainerState::Starting => {
                container.early_end = Some(event);
            }
            Some(_) | None => self.container_event(id, event).await,
        }
    }

    pub(super) fn reopen_log(&mut self, id: &ContainerId, reply: Reply<()>) {
        let Some(container) = self.containers.get(id) else {
            let _ = reply.send(Err(Error::ContainerNotFound { id: id.to_string() }));
            return;
        };
        match container.log.clone() {
            Some(log) => {
                self.spawn(async move { Done::Answer(log.reopen().await, reply) });
            }
            None => {
                let state = container.view.state.name();
                let (container, operation) = (id.clone(), "reopen its log");
                let _ = reply.send(Err(Error::ContainerState { container, state, operation }));
            }
        }
    }
}
