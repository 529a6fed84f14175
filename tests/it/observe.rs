//! What the kubelet watches: events and lists in pieces.

use std::time::Duration;

use kina::cri::v1;
use tokio_stream::StreamExt;
use tonic::{Code, Streaming};

use crate::harness::{Daemon, script};

const PATIENCE: Duration = Duration::from_secs(30);

async fn next<T>(stream: &mut Streaming<T>) -> Option<Result<T, tonic::Status>> {
    tokio::time::timeout(PATIENCE, stream.next()).await.expect("something comes")
}

/// The events of a pod's life, in order, each with the statuses of its time.
#[tokio::test]
async fn events_tell_a_pods_life() {
    use v1::ContainerEventType::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
        ContainerStoppedEvent as Stopped,
    };
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let request = v1::GetEventsRequest {};
    let mut events = cri.client.runtime.clone().get_container_events(request).await.unwrap().into_inner();
    let pod = cri.make_pod("p").await;
    let container = cri.run(&pod, script("c", "exit 7")).await;
    cri.wait_exit(&container).await;
    cri.remove(&container).await.unwrap();
    cri.stop_pod(&pod).await.unwrap();
    cri.remove_pod(&pod).await.unwrap();

    let mut before = 0;
    for (id, kind) in [
        (&pod, Created),
        (&pod, Started),
        (&container, Created),
        (&container, Started),
        (&container, Stopped),
        (&container, Deleted),
        (&pod, Stopped),
        (&pod, Deleted),
    ] {
        let event = next(&mut events).await.unwrap().unwrap();
        assert_eq!((&event.container_id, event.container_event_type()), (id, kind), "{event:?}");
        assert!(event.created_at >= before);
        before = event.created_at;
        let status = event.pod_sandbox_status.unwrap();
        assert_eq!((status.id.as_str(), status.metadata.unwrap().uid.as_str()), (pod.as_str(), "uid-of-p"));
        let containers: Vec<_> = event.containers_statuses.iter().map(|one| one.id.clone()).collect();
        let expected = if *id == container && kind != Deleted { vec![container.clone()] } else { Vec::new() };
        assert_eq!(containers, expected, "{kind:?}");
        if (id, kind) == (&container, Stopped) {
            assert_eq!(event.containers_statuses[0].exit_code, 7);
        }
    }
    // A daemon that stops says so, and does not wait for listeners.
    let stopped = tokio::spawn(async move {
        let end = next(&mut events).await.unwrap().unwrap_err();
        assert_eq!(end.code(), Code::Unavailable, "{end:?}");
        assert!(next(&mut events).await.is_none());
    });
    drop(cri);
    daemon.leave_nothing().await;
    stopped.await.unwrap();
}

#[tokio::test]
async fn lists_in_pieces_are_the_lists() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pods = [cri.make_pod("p").await, cri.make_pod("q").await];
    for name in ["a", "b"] {
        cri.create(&pods[0], script(name, "true")).await.unwrap();
    }
    let mut runtime = cri.client.runtime.clone();
    let all = v1::StreamPodSandboxesRequest { filter: None };
    let mut stream = runtime.stream_pod_sandboxes(all).await.unwrap().into_inner();
    let mut found = Vec::new();
    while let Some(piece) = next(&mut stream).await {
        found.extend(piece.unwrap().pod_sandboxes);
    }
    assert_eq!(found, cri.pods(None).await);

    let all = v1::StreamContainersRequest { filter: None };
    let mut stream = runtime.stream_containers(all).await.unwrap().into_inner();
    let mut found = Vec::new();
    while let Some(piece) = next(&mut stream).await {
        found.extend(piece.unwrap().containers);
    }
    assert_eq!(found.len(), 2);
    assert_eq!(found, cri.containers(None).await);

    // A filter that nothing passes is an empty list, which has no piece.
    let filter = v1::ContainerFilter { pod_sandbox_id: pods[1].clone(), ..v1::ContainerFilter::default() };
    let none = v1::StreamContainersRequest { filter: Some(filter) };
    let mut stream = runtime.stream_containers(none).await.unwrap().into_inner();
    assert!(next(&mut stream).await.is_none());

    let all = v1::StreamImagesRequest { filter: None };
    let mut stream = cri.client.images.clone().stream_images(all).await.unwrap().into_inner();
    let images = next(&mut stream).await.unwrap().unwrap().images;
    let listed = cri.client.images.clone().list_images(v1::ListImagesRequest { filter: None }).await;
    assert_eq!(images, listed.unwrap().into_inner().images);
    drop((runtime, stream, cri));
    daemon.leave_nothing().await;
}
