//! What is shown of pods and containers, and which of them a filter wants.

use super::*;

fn pod_view(state: PodState) -> PodView {
    PodView {
        id: PodId::random(),
        spec: Arc::new(pod()),
        state,
        created_at: 5,
        machine: "host",
        containers: BTreeMap::new(),
    }
}

fn ready() -> PodState {
    PodState::Ready(Ready {
        network: None,
        addresses: vec!["10.1.0.4".parse().unwrap(), "fd00::4".parse().unwrap()],
        boot_id: "b".into(),
        kernel: "6".into(),
        size: None,
    })
}

fn container_view(state: ContainerState) -> ContainerView {
    let spec = convert_container(container_request()).unwrap();
    ContainerView {
        id: kina_model::ContainerId::random(),
        pod: PodId::random(),
        image: ContainerImage {
            requested: spec.image.clone(),
            user_specified: spec.user_specified_image.clone(),
            annotations: spec.image_annotations.clone(),
            id: Digest::from_sha256([1; 32]),
            reference: "busybox@sha256:2".into(),
            volumes: Vec::new(),
        },
        image_volumes: Vec::new(),
        spec: Arc::new(spec),
        process: Process {
            args: vec!["sh".into()],
            env: Vec::new(),
            cwd: "/".into(),
            user: User::Uid(1002),
            stop_signal: Signal::TERM,
        },
        log_path: Some("/var/log/pods/web/app/1.log".into()),
        state,
        created_at: 6,
        identity: Some(Identity { pid: 1, uid: 1002, gid: 1003, supplemental_groups: vec![7] }),
    }
}

fn exited() -> ContainerState {
    ContainerState::Exited(Exit {
        code: 137,
        started_at: 7,
        finished_at: 8,
        reason: ExitReason::OutOfMemory,
        message: "m".into(),
    })
}

#[test]
fn pods_are_shown() {
    let view = pod_view(ready());
    let status = views::pod_status(&view);
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    let network = status.network.unwrap();
    assert_eq!((network.ip.as_str(), network.additional_ips[0].ip.as_str()), ("10.1.0.4", "fd00::4"));
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options.pid(), v1::NamespaceMode::Container);
    assert_eq!(status.metadata, pod_request().config.unwrap().metadata);
    assert_eq!((status.created_at, status.runtime_handler.as_str()), (5, "shared"));
    let listed = views::pod(&view);
    assert_eq!(
        (listed.id, listed.labels, listed.annotations),
        (view.id.to_string(), status.labels, status.annotations)
    );

    for state in
        [PodState::Stopped(StopCause::Asked), PodState::Stopping(StopCause::Asked), PodState::Removing]
    {
        let status = views::pod_status(&pod_view(state));
        assert_eq!(status.state(), v1::PodSandboxState::SandboxNotready);
        assert_eq!(status.network.unwrap().ip, "");
    }
}

#[test]
fn containers_are_shown() {
    let view = container_view(exited());
    let status = views::container_status(&view);
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert_eq!((status.created_at, status.started_at, status.finished_at), (6, 7, 8));
    assert_eq!((status.exit_code, status.reason.as_str(), status.message.as_str()), (137, "OOMKilled", "m"));
    assert_eq!(status.image_id, Digest::from_sha256([1; 32]).to_string());
    assert_eq!(status.image_ref, "busybox@sha256:2");
    assert_eq!(status.log_path, "/var/log/pods/web/app/1.log");
    assert_eq!(status.stop_signal(), v1::Signal::Sigterm);
    assert_eq!(status.resources.clone().unwrap().linux.unwrap(), limits());
    assert_eq!(status.mounts, container_request().config.unwrap().mounts);
    let user = status.user.clone().unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1002, 1003, vec![7]));
    let listed = views::container(&view);
    assert_eq!((listed.image_id, listed.image_ref), (status.image_id, status.image_ref));
    let (listed, told) = (listed.image.unwrap(), status.image.unwrap());
    assert_eq!((listed.image.as_str(), listed.user_specified_image.as_str()), ("sha256:0", "busybox:1"));
    assert_eq!(told, v1::ImageSpec { image: "busybox:1".into(), ..listed });

    let running =
        views::container_status(&container_view(ContainerState::Running(Running { started_at: 9 })));
    assert_eq!(running.state(), v1::ContainerState::ContainerRunning);
    assert_eq!((running.started_at, running.finished_at, running.reason.as_str()), (9, 0, ""));
    let created = views::container_status(&container_view(ContainerState::Created));
    assert_eq!((created.state(), created.started_at), (v1::ContainerState::ContainerCreated, 0));
}

#[test]
fn filters_narrow_together() {
    let pod = pod_view(ready());
    let id = pod.id.as_str();
    let state = |state: v1::PodSandboxState| Some(v1::PodSandboxStateValue { state: state.into() });
    let ready = || state(v1::PodSandboxState::SandboxReady);
    for (id, state, labels, expected) in [
        ("", None, map(&[]), true),
        (id, None, map(&[]), true),
        (&id[..6], ready(), map(&[("app", "web")]), true),
        ("nothing", ready(), map(&[("app", "web")]), false),
        (id, state(v1::PodSandboxState::SandboxNotready), map(&[]), false),
        (id, ready(), map(&[("app", "db")]), false),
        ("", None, map(&[("app", "web"), ("tier", "1")]), false),
    ] {
        let filter = v1::PodSandboxFilter { id: id.to_owned(), state, label_selector: labels };
        assert_eq!(pod_listed(&pod, Some(&filter)), expected, "{filter:?}");
    }
    assert!(pod_listed(&pod, None));

    let container = container_view(exited());
    let (id, pod_id) = (container.id.as_str(), container.pod.as_str());
    let state = |state: v1::ContainerState| Some(v1::ContainerStateValue { state: state.into() });
    let exited = || state(v1::ContainerState::ContainerExited);
    for (id, state, pod_sandbox_id, labels, expected) in [
        ("", None, "", map(&[]), true),
        (&id[..4], exited(), &pod_id[..4], map(&[("c", "app")]), true),
        (id, exited(), "other", map(&[]), false),
        ("other", None, pod_id, map(&[]), false),
        (id, state(v1::ContainerState::ContainerRunning), pod_id, map(&[]), false),
        (id, exited(), pod_id, map(&[("c", "x")]), false),
    ] {
        let filter = v1::ContainerFilter {
            id: id.to_owned(),
            state,
            pod_sandbox_id: pod_sandbox_id.to_owned(),
            label_selector: labels,
        };
        assert_eq!(container_listed(&container, Some(&filter)), expected, "{filter:?}");
    }
    assert!(container_listed(&container, None));
}
