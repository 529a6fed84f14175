//! What the kubelet watches: events, lists in pieces, and what is used.

use std::collections::BTreeMap;
use std::time::Duration;

use kina::cri::v1;
use tokio_stream::StreamExt;
use tonic::{Code, Streaming};

use crate::harness::machine::{also_in_apple, also_in_vm, handler, is_apple, is_vm};
use crate::harness::{Daemon, script, wait_until};

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

    // What runs ends before its pod, however it ends.
    for stopped in [true, false] {
        let pod = cri.make_pod("q").await;
        let container = cri.run(&pod, script("c", "sleep 1000")).await;
        if stopped {
            cri.stop_pod(&pod).await.unwrap();
        }
        cri.remove_pod(&pod).await.unwrap();
        let mut told = Vec::new();
        while !told.contains(&(pod.clone(), Deleted)) {
            let event = next(&mut events).await.unwrap().unwrap();
            told.push((event.container_id.clone(), event.container_event_type()));
        }
        let stops = told.into_iter().filter(|(_, kind)| *kind == Stopped).map(|(id, _)| id);
        assert_eq!(stops.collect::<Vec<_>>(), [container, pod]);
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

/// What a container uses, asked in every way there is.
#[tokio::test]
async fn usage_is_told() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let mut runtime = cri.client.runtime.clone();
    let pod = cri.make_pod("p").await;
    let busy = "dd if=/dev/zero of=/file bs=1M count=4 2>/dev/null; echo written; while :; do :; done";
    let container = cri.run(&pod, script("busy", busy)).await;
    let ended = cri.run(&pod, script("ended", "true")).await;
    cri.wait_exit(&ended).await;
    cri.wait_output(&container, "written").await;

    let ask = |id: &str| v1::ContainerStatsRequest { container_id: id.to_owned() };
    let stats = runtime.container_stats(ask(&container)).await.unwrap().into_inner().stats.unwrap();
    let attributes = stats.attributes.unwrap();
    assert_eq!((attributes.id, attributes.metadata.unwrap().name), (container.clone(), "busy".to_owned()));
    let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
    assert!(cpu.timestamp > 0 && cpu.usage_core_nano_seconds.unwrap().value > 0, "{cpu:?}");
    assert!(memory.working_set_bytes.unwrap().value > 0, "{memory:?}");
    // How busy it is takes two looks.
    let mut last = None;
    wait_until("a rate and the written file", async || {
        let stats = runtime.container_stats(ask(&container)).await.unwrap().into_inner().stats.unwrap();
        let rate = stats.cpu.unwrap().usage_nano_cores.map_or(0, |rate| rate.value);
        let layer = stats.writable_layer.unwrap();
        let found = rate > 0 && layer.used_bytes.unwrap().value >= 4 << 20;
        last = Some((rate, layer.fs_id.unwrap().mountpoint));
        found
    })
    .await;
    let (rate, mountpoint) = last.unwrap();
    assert!(rate < 100_000_000_000, "{rate}");
    let disks =
        cri.client.images.clone().image_fs_info(v1::ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(Some(mountpoint), disks.container_filesystems[0].fs_id.clone().map(|id| id.mountpoint));
    // One that has ended uses nothing, and is in no list.
    let stats = runtime.container_stats(ask(&ended)).await.unwrap().into_inner().stats.unwrap();
    assert_eq!(stats.attributes.unwrap().id, ended);
    assert_eq!(runtime.container_stats(ask("missing")).await.unwrap_err().code(), Code::NotFound);

    let all = v1::ListContainerStatsRequest { filter: None };
    let listed = runtime.list_container_stats(all).await.unwrap().into_inner().stats;
    let ids: Vec<_> = listed.into_iter().map(|stats| stats.attributes.unwrap().id).collect();
    assert_eq!(ids, std::slice::from_ref(&container));
    let all = v1::StreamContainerStatsRequest { filter: None };
    let mut stream = runtime.stream_container_stats(all).await.unwrap().into_inner();
    let streamed = next(&mut stream).await.unwrap().unwrap().container_stats;
    assert_eq!(streamed[0].attributes.as_ref().unwrap().id, container);
    assert!(next(&mut stream).await.is_none());

    let ask = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
    let stats = runtime.pod_sandbox_stats(ask).await.unwrap().into_inner().stats.unwrap();
    assert_eq!(stats.attributes.unwrap().metadata.unwrap().uid, "uid-of-p");
    let linux = stats.linux.unwrap();
    assert!(linux.process.unwrap().process_count.unwrap().value > 0);
    assert!(linux.memory.unwrap().usage_bytes.unwrap().value > 0);
    assert_eq!(linux.containers.len(), 1);
    let all = v1::ListPodSandboxStatsRequest { filter: None };
    assert_eq!(runtime.list_pod_sandbox_stats(all).await.unwrap().into_inner().stats.len(), 1);
    let all = v1::StreamPodSandboxStatsRequest { filter: None };
    let mut stream = runtime.stream_pod_sandbox_stats(all).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().unwrap().pod_sandbox_stats.len(), 1);

    let descriptors = runtime.list_metric_descriptors(v1::ListMetricDescriptorsRequest {}).await.unwrap();
    let descriptors = descriptors.into_inner().descriptors;
    let metrics = runtime.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}).await.unwrap();
    let metrics = metrics.into_inner().pod_metrics;
    assert_eq!(metrics[0].pod_sandbox_id, pod);
    let of_container = &metrics[0].container_metrics[0];
    assert_eq!(of_container.container_id, container);
    let name = "container_memory_working_set_bytes";
    let metric = of_container.metrics.iter().find(|metric| metric.name == name).unwrap();
    assert!(metric.value.unwrap().value > 0);
    let descriptor = descriptors.iter().find(|one| one.name == name).unwrap();
    assert_eq!(descriptor.label_keys.len(), metric.label_values.len());
    // What is described has values, but for what this pod or a kernel need not have.
    let told = metrics[0].metrics.iter().chain(&of_container.metrics);
    let told: BTreeMap<_, _> = told.map(|one| (&one.name, one.label_values.len())).collect();
    let optional = [
        "container_blkio",
        "container_fs_",
        "container_hugetlb",
        "container_network",
        "container_pressure",
        "container_spec_cpu_",
    ];
    for described in &descriptors {
        match told.get(&described.name) {
            Some(labels) => assert_eq!(*labels, described.label_keys.len(), "{}", described.name),
            None => assert!(
                optional.iter().any(|prefix| described.name.starts_with(prefix)),
                "{}",
                described.name
            ),
        }
    }
    let at = descriptor.label_keys.iter().position(|key| key == "pod").unwrap();
    assert_eq!(metric.label_values[at], "p");
    let all = v1::StreamPodSandboxMetricsRequest {};
    let mut stream = runtime.stream_pod_sandbox_metrics(all).await.unwrap().into_inner();
    assert_eq!(next(&mut stream).await.unwrap().unwrap().pod_sandbox_metrics.len(), 1);
    drop((runtime, stream, cri));
    daemon.leave_nothing().await;
}

/// What the daemon counts of all that.
#[tokio::test]
async fn the_daemon_counts() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let container = cri.run(&pod, script("c", "echo line; exec sleep 1000")).await;
    cri.wait_output(&container, "line").await;
    cri.exec("missing", crate::harness::shell("true"), 0).await.unwrap_err();
    let ended = cri.run(&pod, script("ended", "true")).await;
    cri.wait_exit(&ended).await;
    let (handler, is_vm) = (handler(), is_vm());
    let driver = match is_vm {
        true if is_apple() => "apple",
        true => "qemu",
        false => "host",
    };
    for (sample, value) in [
        (format!("kina_pods{{handler=\"{handler}\",state=\"ready\"}}"), 1.0),
        (format!("kina_containers{{handler=\"{handler}\",state=\"running\"}}"), 1.0),
        (format!("kina_containers{{handler=\"{handler}\",state=\"exited\"}}"), 1.0),
        (
            "kina_calls_total{service=\"runtime.v1.RuntimeService\",method=\"ExecSync\",code=\"NOT_FOUND\"}"
                .to_owned(),
            1.0,
        ),
        (format!("kina_machine_boot_duration_seconds_count{{driver=\"{driver}\",result=\"ready\"}}"), 1.0),
        ("kina_logs_waiting".to_owned(), 0.0),
    ] {
        assert_eq!(daemon.metric(&sample).await, value, "{sample}: {}", daemon.metrics().await);
    }
    // The guest writes the logs on the node's own kernel.
    assert_eq!(daemon.metric("kina_log_written_bytes_total").await > 0.0, is_vm);
    let resident = daemon.metric("process_resident_memory_bytes").await / 1024.0;
    let status = crate::harness::memory_kib(daemon.pid(), "VmRSS") as f64;
    assert!(resident > status / 2.0 && resident < status * 2.0, "{resident} {status}");
    assert!(daemon.metric("process_open_fds").await >= 10.0);
    cri.stop_pod(&pod).await.unwrap();
    cri.remove_pod(&pod).await.unwrap();
    let pods = format!("kina_pods{{handler=\"{handler}\",state=\"ready\"}}");
    assert!(daemon.metrics().await.contains(&format!("{pods} 0\n")));
    drop(cri);
    daemon.leave_nothing().await;
}

also_in_vm! {
    the_daemon_counts,
    events_tell_a_pods_life,
    usage_is_told,
}

also_in_apple! {
    the_daemon_counts,
    events_tell_a_pods_life,
    usage_is_told,
}
