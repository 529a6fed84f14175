//! Calls that answer with a stream: lists in pieces, and events.

use futures::StreamExt;
use prost::Message;
use tonic::Status;
use tonic::codegen::BoxStream;

use super::runtime::Service;
use super::status;
use crate::cri::{self, v1};
use crate::error::{Error, chain};
use crate::events::{Event, EventKind};
use crate::metrics::Metrics;

/// Bytes of one piece of a list, but for its last item: well below the
/// kubelet's limit for a message, whatever a single item holds.
const PIECE_BYTES: usize = 1 << 20;

/// A list in pieces. They are made when the reader is there for them; the items
/// are as of the call.
pub(super) fn pieces<T, M>(
    items: impl Iterator<Item = T> + Send + 'static,
    wrap: fn(Vec<T>) -> M,
) -> BoxStream<M>
where
    T: Message + 'static,
    M: Send + 'static,
{
    let mut items = items;
    let pieces = std::iter::from_fn(move || {
        let (mut piece, mut bytes) = (Vec::new(), 0);
        while bytes < PIECE_BYTES
            && let Some(item) = items.next()
        {
            bytes += item.encoded_len();
            piece.push(item);
        }
        if piece.is_empty() { None } else { Some(Ok(wrap(piece))) }
    });
    Box::pin(futures::stream::iter(pieces))
}

impl Service {
    pub(super) fn pods_in_pieces(
        &self,
        request: v1::StreamPodSandboxesRequest,
    ) -> BoxStream<v1::StreamPodSandboxesResponse> {
        let filter = request.filter;
        let pods = self.runtime.pods().into_iter();
        let listed = pods.filter(move |pod| cri::pod_listed(pod, filter.as_ref()));
        pieces(listed.map(|pod| cri::views::pod(&pod)), |pod_sandboxes| v1::StreamPodSandboxesResponse {
            pod_sandboxes,
        })
    }

    pub(super) fn containers_in_pieces(
        &self,
        request: v1::StreamContainersRequest,
    ) -> BoxStream<v1::StreamContainersResponse> {
        let filter = request.filter;
        let pods = self.runtime.pods().into_iter();
        let all = pods.flat_map(|pod| pod.containers.values().cloned().collect::<Vec<_>>());
        let listed = all.filter(move |container| cri::container_listed(container, filter.as_ref()));
        pieces(listed.map(|container| cri::views::container(&container)), |containers| {
            v1::StreamContainersResponse { containers }
        })
    }

    pub(super) fn events(&self) -> BoxStream<v1::ContainerEventResponse> {
        let events = self.runtime.context().events.listen();
        let metrics = self.runtime.metrics().clone();
        Box::pin(events.map(move |event| event.map(message).map_err(|error| ended(&metrics, &error))))
    }
}

/// The end of a reader's events, told to it and to the log.
fn ended(metrics: &Metrics, error: &Error) -> Status {
    if matches!(error, Error::EventsLost { .. }) {
        metrics.events_lost();
    }
    tracing::info!(error = chain(error), "a stream of events ends");
    status::status(error)
}

fn message(event: Event) -> v1::ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => v1::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => v1::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
    };
    let containers = event.pod.containers.values();
    let there = containers.filter(|container| container.state != kina_model::ContainerState::Gone);
    v1::ContainerEventResponse {
        container_id: event.id,
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: Some(cri::views::pod_status(&event.pod)),
        containers_statuses: there.map(|container| cri::views::container_status(container)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ten_thousand_containers_fit_messages() {
        let make = |number: usize| v1::Container {
            id: format!("{number:032x}"),
            labels: [("key".to_owned(), "x".repeat(number % 5_000))].into(),
            ..v1::Container::default()
        };
        // One as large as a message may be is alone in its own.
        let huge = v1::Container { image_ref: "x".repeat(2 * PIECE_BYTES), ..v1::Container::default() };
        let items = (0..10_000).map(make).chain([huge]);
        let pieces = pieces(items, |containers| v1::StreamContainersResponse { containers });
        let pieces: Vec<_> = pieces.map(Result::unwrap).collect().await;
        let ids = pieces.iter().flat_map(|piece| piece.containers.iter().map(|container| &container.id));
        assert!(ids.take(10_000).eq((0..10_000).map(|number| make(number).id).collect::<Vec<_>>().iter()));
        assert_eq!(pieces.iter().map(|piece| piece.containers.len()).sum::<usize>(), 10_001);
        assert!(pieces.iter().all(|piece| piece.encoded_len() < 4 * PIECE_BYTES));
        assert!((10..100).contains(&pieces.len()), "{}", pieces.len());
    }

    #[tokio::test]
    async fn an_empty_list_has_no_piece() {
        let none = pieces(std::iter::empty::<v1::PodSandbox>(), |pod_sandboxes| {
            v1::StreamPodSandboxesResponse { pod_sandboxes }
        });
        assert_eq!(none.count().await, 0);
    }
}
