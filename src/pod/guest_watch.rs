//! Listens to a pod's guest for as long as it lives, and tells the actor.

use std::time::Duration;

use kina_guest_api::{GuestClient, v1};
use kina_model::{ContainerId, Nanos};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tracing::{debug, warn};

use super::start::Subject;
use crate::error::chain;

/// What the watch tells.
pub(super) enum GuestNews {
    /// A container has ended.
    Exited { id: ContainerId, code: i32, finished_at: Nanos, oom_killed: bool },
    /// The connection was lost and is there again.
    Reconnected(GuestClient),
    /// The machine has ended, or its guest no longer answers.
    MachineEnded(String),
}

/// How long a guest whose connection was lost may take to answer again.
const RECONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Watches until the machine ends. `sequence` is the last event known.
pub(super) async fn run(
    subject: Subject,
    mut guest: GuestClient,
    mut sequence: u64,
    news: mpsc::Sender<GuestNews>,
) {
    let machine = subject.driver.wait(&subject.id);
    tokio::pin!(machine);
    let reason = loop {
        let reason = tokio::select! {
            ended = &mut machine => match ended {
                Ok(ended) => break ended.reason,
                Err(error) => break chain(&error),
            },
            reason = listen(&guest, &mut sequence, &news) => reason,
        };
        debug!(pod = %subject.id, reason, "connection to the guest lost");
        let again = tokio::select! {
            ended = &mut machine => match ended {
                Ok(ended) => break ended.reason,
                Err(error) => break chain(&error),
            },
            again = subject.connect(RECONNECT_DEADLINE) => again,
        };
        match again {
            Ok(again) => {
                guest = again;
                if news.send(GuestNews::Reconnected(guest.clone())).await.is_err() {
                    return;
                }
            }
            Err(error) => break format!("its guest no longer answers: {}", chain(&error)),
        }
    };
    let _ = news.send(GuestNews::MachineEnded(reason)).await;
}

/// Passes events on until the stream breaks; returns why.
async fn listen(guest: &GuestClient, sequence: &mut u64, news: &mpsc::Sender<GuestNews>) -> String {
    let mut events = match guest.events(*sequence).await {
        Ok(events) => events,
        Err(error) => return chain(&error),
    };
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => return chain(&error),
        };
        *sequence = (*sequence).max(event.sequence);
        let told = match event.what {
            Some(v1::event::What::Exited(exited)) => tell_exit(news, &exited.id, exited.exit).await,
            // Too far behind: the list has all that matters.
            Some(v1::event::What::Lost(_)) => match guest.list_containers().await {
                Ok(list) => tell_exits(news, list).await,
                Err(error) => return chain(&error),
            },
            // The exit says it, too.
            Some(v1::event::What::Oom(_)) | None => true,
        };
        if !told {
            return "the pod's actor has ended".to_owned();
        }
    }
    "the guest ended its events".to_owned()
}

async fn tell_exits(news: &mpsc::Sender<GuestNews>, list: v1::ListContainersResponse) -> bool {
    for container in list.containers {
        if container.exit.is_some() && !tell_exit(news, &container.id, container.exit).await {
            return false;
        }
    }
    true
}

async fn tell_exit(news: &mpsc::Sender<GuestNews>, id: &str, exit: Option<v1::Exit>) -> bool {
    let (Ok(id), Some(exit)) = (id.parse::<ContainerId>(), exit) else {
        warn!(id, "the guest reports the end of something that is no container");
        return true;
    };
    let exited = GuestNews::Exited {
        id,
        code: exit.code.clamp(0, 255),
        finished_at: exit.finished_at_nanos,
        oom_killed: exit.oom_killed,
    };
    news.send(exited).await.is_ok()
}
