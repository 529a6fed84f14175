//! What happens to pods and containers, told to whoever listens.
//!
//! Events are the differences between the snapshots that a pod's actor
//! publishes, so that they can say nothing that a list would not. The queue is
//! bounded and no actor waits for a reader: one that is `CAPACITY` events
//! behind is told so, loses its stream, and has to list.

use std::sync::Arc;

use futures::Stream;
use kina_model::{ContainerState, Nanos, PodState};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::pod::view::{ContainerView, PodView};

/// Events that a reader may be behind. Each keeps a snapshot of its pod, most of
/// which it shares with the pod's other snapshots.
const CAPACITY: usize = 4096;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It is made.
    Created,
    /// It runs.
    Started,
    /// It has ended.
    Stopped,
    /// It is removed.
    Deleted,
}

/// Something that happened to a pod or one of its containers.
#[derive(Clone, Debug)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// The container, or the pod itself.
    pub id: String,
    /// The pod afterwards.
    pub pod: Arc<PodView>,
    /// When.
    pub at: Nanos,
}

/// Where events come from and go to. Clones are the same.
#[derive(Clone, Debug)]
pub struct Events {
    sender: broadcast::Sender<Event>,
    closed: CancellationToken,
}

impl Default for Events {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl Events {
    fn with_capacity(capacity: usize) -> Self {
        Self { sender: broadcast::Sender::new(capacity), closed: CancellationToken::new() }
    }

    /// Tells what is different now.
    pub(crate) fn changed(&self, old: &PodView, new: &Arc<PodView>, at: Nanos) {
        if self.sender.receiver_count() == 0 {
            return;
        }
        for (kind, id) in differences(old, new) {
            // Nobody may be left by now.
            let _ = self.sender.send(Event { kind, id, pod: Arc::clone(new), at });
        }
    }

    /// What happens from now on. Ends with [`Error::EventsLost`] for a reader
    /// that is too slow, and with [`Error::ShuttingDown`].
    pub fn listen(&self) -> impl Stream<Item = Result<Event, Error>> + Send + use<> {
        let listener = Some((self.sender.subscribe(), self.closed.clone()));
        futures::stream::unfold(listener, |listener| async move {
            let (mut receiver, closed) = listener?;
            let received = tokio::select! {
                biased;
                received = receiver.recv() => received,
                () = closed.cancelled() => Err(RecvError::Closed),
            };
            Some(match received {
                Ok(event) => (Ok(event), Some((receiver, closed))),
                Err(RecvError::Lagged(count)) => (Err(Error::EventsLost { count }), None),
                Err(RecvError::Closed) => (Err(Error::ShuttingDown), None),
            })
        })
    }

    /// Ends every stream, and those to come: the daemon stops.
    pub fn close(&self) {
        self.closed.cancel();
    }
}

/// How far something has come; it only goes up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Unseen,
    Created,
    Running,
    Ended,
    Gone,
}

fn pod_stage(pod: &PodView) -> Stage {
    match pod.state {
        PodState::Starting => Stage::Unseen,
        PodState::Ready(_) => Stage::Running,
        // It has ended when its containers have.
        PodState::Stopping(_) | PodState::StopFailed { .. } | PodState::Stopped(_) | PodState::Removing => {
            let runs = |container: &Arc<ContainerView>| {
                matches!(container.state, ContainerState::Starting | ContainerState::Running(_))
            };
            if pod.containers.values().any(runs) { Stage::Running } else { Stage::Ended }
        }
        PodState::Removed => Stage::Gone,
    }
}

fn container_stage(container: &ContainerView) -> Stage {
    match container.state {
        ContainerState::Creating | ContainerState::Created | ContainerState::Starting => Stage::Created,
        ContainerState::Running(_) => Stage::Running,
        ContainerState::Exited(_) | ContainerState::Removing(_) => Stage::Ended,
        ContainerState::Gone => Stage::Gone,
    }
}

/// Whether a container that has ended has run before.
fn has_run(container: Option<&Arc<ContainerView>>) -> bool {
    container.and_then(|container| container.state.exit()).is_some_and(|exit| exit.started_at != 0)
}

/// What happened between two snapshots of a pod, in an order that makes sense:
/// a pod before its containers when it comes, after them when it goes.
fn differences(old: &PodView, new: &PodView) -> Vec<(EventKind, String)> {
    let (before, after) = (pod_stage(old), pod_stage(new));
    let mut events = Vec::new();
    if after == Stage::Running {
        passed(before, after, true, &new.id.to_string(), &mut events);
    }
    let ids =
        old.containers.keys().chain(new.containers.keys().filter(|id| !old.containers.contains_key(id)));
    for id in ids {
        let stage = |pod: &PodView, absent| pod.containers.get(id).map_or(absent, |c| container_stage(c));
        let before = if before == Stage::Gone { Stage::Gone } else { stage(old, Stage::Unseen) };
        let after = if after == Stage::Gone { Stage::Gone } else { stage(new, Stage::Gone) };
        let ran = before == Stage::Running || has_run(new.containers.get(id));
        passed(before, after, ran, id.as_str(), &mut events);
    }
    // A pod that never was ready was never seen.
    if after != Stage::Running && before != Stage::Unseen {
        passed(before, after, true, &new.id.to_string(), &mut events);
    }
    events
}

/// The events from one stage to a later one. What goes without having been seen
/// is not told; of what has ended only some has run.
fn passed(before: Stage, after: Stage, ran: bool, id: &str, events: &mut Vec<(EventKind, String)>) {
    if before == Stage::Unseen && after == Stage::Gone {
        return;
    }
    for (stage, kind) in [
        (Stage::Created, EventKind::Created),
        (Stage::Running, EventKind::Started),
        (Stage::Ended, EventKind::Stopped),
        (Stage::Gone, EventKind::Deleted),
    ] {
        let never_was = match stage {
            Stage::Running => after != Stage::Running && !ran,
            // Removed before it was seen to end: it was never started.
            Stage::Ended => after == Stage::Gone && !ran,
            Stage::Unseen | Stage::Created | Stage::Gone => false,
        };
        if before < stage && stage <= after && !never_was {
            events.push((kind, id.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::pin::pin;

    use futures::StreamExt;
    use kina_model::{ContainerId, Exit, ExitReason, PodId, Ready, Running, StopCause};

    use super::*;
    use crate::pod::view::test_support;

    fn ready() -> PodState {
        PodState::Ready(Ready {
            addresses: Vec::new(),
            network: None,
            boot_id: String::new(),
            kernel: String::new(),
            size: None,
        })
    }

    fn exit(started_at: Nanos) -> Exit {
        let (finished_at, reason) = (2, ExitReason::Completed);
        Exit { code: 0, started_at, finished_at, reason, message: String::new() }
    }

    fn pod(state: PodState, container: Option<ContainerState>) -> Arc<PodView> {
        let pod: PodId = "a".repeat(32).parse().unwrap();
        let id: ContainerId = "c".repeat(32).parse().unwrap();
        let containers =
            container.map(|state| (id.clone(), Arc::new(test_support::container(id, pod.clone(), state))));
        Arc::new(test_support::pod(pod, state, BTreeMap::from_iter(containers)))
    }

    fn told(old: &PodView, new: &PodView) -> String {
        let one = |(kind, id): (EventKind, String)| format!("{}{kind:?}", &id[..1]);
        differences(old, new).into_iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_change_is_told_once_and_in_order() {
        let running = || Some(ContainerState::Running(Running { started_at: 1 }));
        let stopping = || PodState::Stopping(StopCause::Asked);
        let stopped = || PodState::Stopped(StopCause::Asked);
        let starting = || PodState::Starting;
        let created = || Some(ContainerState::Created);
        let exited = || Some(ContainerState::Exited(exit(1)));
        let removing = || Some(ContainerState::Removing(exit(1)));
        let never_ran = || Some(ContainerState::Removing(exit(0)));
        for (old, new, expected) in [
            (pod(starting(), None), pod(ready(), None), "aCreated aStarted"),
            (pod(starting(), None), pod(stopping(), None), ""),
            (pod(starting(), None), pod(PodState::Removed, None), ""),
            (pod(ready(), None), pod(ready(), None), ""),
            (pod(ready(), None), pod(ready(), created()), "cCreated"),
            (pod(ready(), created()), pod(ready(), Some(ContainerState::Starting)), ""),
            (pod(ready(), created()), pod(ready(), running()), "cStarted"),
            (pod(ready(), running()), pod(ready(), exited()), "cStopped"),
            // So short that nobody saw it run.
            (pod(ready(), created()), pod(ready(), exited()), "cStarted cStopped"),
            (pod(ready(), exited()), pod(ready(), removing()), ""),
            (pod(ready(), removing()), pod(ready(), exited()), ""),
            (pod(ready(), removing()), pod(ready(), Some(ContainerState::Gone)), "cDeleted"),
            (pod(ready(), Some(ContainerState::Gone)), pod(ready(), None), ""),
            (pod(ready(), created()), pod(ready(), never_ran()), "cStopped"),
            (pod(ready(), None), pod(stopping(), None), "aStopped"),
            (pod(ready(), created()), pod(stopping(), created()), "aStopped"),
            (pod(ready(), running()), pod(stopping(), running()), ""),
            (pod(stopping(), running()), pod(stopping(), exited()), "cStopped aStopped"),
            (pod(stopping(), exited()), pod(stopped(), exited()), ""),
            (pod(ready(), created()), pod(stopping(), Some(ContainerState::Starting)), ""),
            (pod(stopping(), Some(ContainerState::Starting)), pod(stopping(), running()), "cStarted"),
            (pod(stopping(), running()), pod(stopped(), exited()), "cStopped aStopped"),
            (pod(ready(), running()), pod(stopped(), exited()), "cStopped aStopped"),
            (pod(stopped(), exited()), pod(PodState::Removing, exited()), ""),
            (pod(PodState::Removing, exited()), pod(PodState::Removed, exited()), "cDeleted aDeleted"),
            (pod(ready(), running()), pod(PodState::Removing, running()), ""),
            (
                pod(PodState::Removing, running()),
                pod(PodState::Removed, running()),
                "cStopped cDeleted aStopped aDeleted",
            ),
            (pod(PodState::Removed, exited()), pod(PodState::Removed, None), ""),
        ] {
            assert_eq!(told(&old, &new), expected, "{:?} to {:?}", old.state, new.state);
        }
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_and_ends() {
        let events = Events::with_capacity(4);
        let (unready, is_ready) = (pod(PodState::Starting, None), pod(ready(), None));
        let mut slow = pin!(events.listen());
        let mut quick = pin!(events.listen());
        for _ in 0..4 {
            events.changed(&unready, &is_ready, 7);
            for kind in [EventKind::Created, EventKind::Started] {
                let event = quick.next().await.unwrap().unwrap();
                assert_eq!((event.kind, event.at), (kind, 7));
            }
        }
        assert!(matches!(slow.next().await, Some(Err(Error::EventsLost { count: 4 }))));
        assert!(slow.next().await.is_none());
        // A new reader sees what happens from now on, to the end.
        let mut new = pin!(events.listen());
        events.changed(&unready, &is_ready, 8);
        events.close();
        assert_eq!(new.next().await.unwrap().unwrap().at, 8);
        assert_eq!(new.next().await.unwrap().unwrap().kind, EventKind::Started);
        assert!(matches!(new.next().await, Some(Err(Error::ShuttingDown))));
        assert!(new.next().await.is_none());
    }
}
