use std::time::Duration;

use kina::error::Error;
use kina_machine::Error as MachineError;
use kina_machine::fake::Operation;
use kina_model::{ContainerState, ExitReason, PodState, StopCause};

use crate::support::{World, container_spec, eventually, pod_spec, state_of};

fn boot_failure() -> kina_machine::Error {
    kina_machine::Error::Boot { pod: kina_model::PodId::random(), reason: "ordered by the test".into() }
}

#[tokio::test]
async fn a_pod_lives_and_leaves_nothing() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    let container = daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
    assert_eq!(state_of(&daemon, container.as_str()), ContainerState::Created);
    assert_eq!(world.node.world().layers.len(), 1);
    daemon.start_container(container.as_str()).await.unwrap();
    assert!(matches!(state_of(&daemon, container.as_str()), ContainerState::Running(_)));

    world.guests.exit(&pod, container.as_str(), 3, false);
    let id = container.clone();
    eventually(&daemon, pod.as_str(), "the exit", |view| view.containers[&id].state.exit().is_some()).await;
    let exit = state_of(&daemon, container.as_str()).exit().cloned().unwrap();
    assert_eq!((exit.code, exit.reason, exit.started_at), (3, ExitReason::Error, 1_500));

    daemon.stop_pod(pod.as_str()).await.unwrap();
    assert_eq!(daemon.find_pod(pod.as_str()).unwrap().state, PodState::Stopped(StopCause::Asked));
    assert!(world.node.world().namespaces.is_empty());
    world.assert_no_machines().await;
    daemon.remove_pod(pod.as_str()).await.unwrap();
    assert!(daemon.pods().is_empty());
    world.assert_empty().await;
}

/// What is quick ends before its start is answered.
#[tokio::test]
async fn an_end_is_told_after_its_start() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    let quick = daemon.create_container(pod.as_str(), container_spec("quick")).await.unwrap();
    let other = daemon.create_container(pod.as_str(), container_spec("other")).await.unwrap();
    daemon.start_container(other.as_str()).await.unwrap();

    let hold = world.guests.hold("start_container");
    let start = tokio::spawn({
        let (daemon, quick) = (daemon.clone(), quick.clone());
        async move { daemon.start_container(quick.as_str()).await }
    });
    let starting =
        |view: &kina::pod::view::PodView| view.containers[&quick].state == ContainerState::Starting;
    eventually(&daemon, pod.as_str(), "the start", starting).await;
    world.guests.exit(&pod, quick.as_str(), 3, false);
    world.guests.exit(&pod, other.as_str(), 0, false);
    // News come in order: the other's end has been heard after this one's.
    eventually(&daemon, pod.as_str(), "the exit", |view| view.containers[&other].state.exit().is_some())
        .await;
    assert_eq!(state_of(&daemon, quick.as_str()), ContainerState::Starting);

    drop(hold);
    start.await.unwrap().unwrap();
    eventually(&daemon, pod.as_str(), "the exit", |view| view.containers[&quick].state.exit().is_some())
        .await;
    let exit = state_of(&daemon, quick.as_str()).exit().cloned().unwrap();
    assert_eq!((exit.code, exit.started_at), (3, 1_500));

    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_empty().await;
}

/// Every call may be repeated.
#[tokio::test]
async fn calls_may_be_repeated() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    assert_eq!(daemon.run_pod(pod_spec("p")).await.unwrap(), pod);
    let other = kina_model::PodSpec { hostname: "other".into(), ..pod_spec("p") };
    assert!(matches!(daemon.run_pod(other).await, Err(Error::NameTaken { .. })));

    let container = daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
    assert_eq!(daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap(), container);
    for _ in 0..2 {
        daemon.start_container(container.as_str()).await.unwrap();
    }
    assert!(matches!(
        daemon.create_container(pod.as_str(), container_spec("c")).await,
        Err(Error::NameTaken { .. })
    ));
    for _ in 0..2 {
        daemon.stop_container(container.as_str(), Duration::ZERO).await.unwrap();
    }
    assert!(matches!(daemon.start_container(container.as_str()).await, Err(Error::ContainerState { .. })));
    for _ in 0..2 {
        daemon.remove_container(container.as_str()).await.unwrap();
    }
    for _ in 0..2 {
        daemon.stop_pod(pod.as_str()).await.unwrap();
    }
    for _ in 0..2 {
        daemon.remove_pod(pod.as_str()).await.unwrap();
    }
    world.assert_empty().await;
}

/// Whatever start effect fails, the caller hears which, and nothing is left.
#[tokio::test]
async fn a_failed_start_leaves_nothing() {
    type Order = fn(&World);
    let orders: [(&str, Order); 7] = [
        ("pod-make-directories", |world| world.node.fail("create_directory", 1)),
        ("pod-create-network", |world| world.node.fail("create_network_namespace", 1)),
        ("pod-create-machine", |world| world.driver.fail_next(Operation::Create, boot_failure())),
        ("pod-create-machine", |world| {
            world.driver.fail_next_after_effect(Operation::Create, boot_failure())
        }),
        ("pod-start-machine", |world| world.driver.fail_next_after_effect(Operation::Start, boot_failure())),
        ("pod-setup", |world| world.driver.fail_next(Operation::AttachNetwork, boot_failure())),
        ("pod-setup", |world| world.guests.refuse("setup_pod", 1)),
    ];
    for (step, order) in orders {
        let world = World::new();
        let daemon = world.daemon().await;
        order(&world);
        let error = daemon.run_pod(pod_spec("p")).await.unwrap_err();
        assert!(matches!(&error, Error::StartFailed { .. }), "{step}: {error}");
        assert!(error.to_string().contains(step), "{step}: {error}");
        world.assert_empty().await;
        world.assert_no_machines().await;
        // The name is free again.
        daemon.run_pod(pod_spec("p")).await.unwrap();
    }
}

/// A caller that gives up leaves a whole pod, not half of one.
#[tokio::test]
async fn a_dropped_call_changes_nothing() {
    let world = World::new();
    let daemon = world.daemon().await;
    let gate = world.driver.gate(Operation::Start);
    {
        let run = daemon.run_pod(pod_spec("p"));
        tokio::pin!(run);
        tokio::select! {
            _ = &mut run => panic!("the gate is closed"),
            () = gate.reached() => {}
        }
    }
    assert!(daemon.pods().is_empty(), "a pod is not shown before it is ready");
    gate.open();
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    assert!(daemon.find_pod(pod.as_str()).unwrap().state.is_ready());
    assert_eq!(daemon.pods().len(), 1);
}

/// Neither a boot that takes its time nor a guest that never answers keeps a pod from
/// being stopped and removed.
#[tokio::test]
async fn stop_and_remove_interrupt_a_start() {
    for operation in [Operation::Start, Operation::Connect] {
        for removed in [false, true] {
            let world = World::new();
            let daemon = world.daemon().await;
            world.guests.be_silent();
            let gate = world.driver.gate(operation);
            let run = tokio::spawn({
                let daemon = daemon.clone();
                async move { daemon.run_pod(pod_spec("p")).await }
            });
            gate.reached().await;
            let pod = world.driver.calls().into_iter().find_map(|(_, pod)| pod).unwrap();
            if !removed {
                daemon.stop_pod(pod.as_str()).await.unwrap();
            }
            daemon.remove_pod(pod.as_str()).await.unwrap();
            let error = run.await.unwrap().unwrap_err();
            assert!(error.to_string().contains("stopped while it started"), "{error}");
            world.assert_empty().await;
            world.assert_no_machines().await;
            gate.open();
        }
    }
}

/// A machine that ends while one waits for its guest fails the start at once.
#[tokio::test]
async fn a_machine_that_ends_at_once_fails_the_start() {
    let world = World::new();
    let daemon = world.daemon().await;
    world.guests.be_silent();
    let gate = world.driver.gate(Operation::Connect);
    let run = tokio::spawn({
        let daemon = daemon.clone();
        async move { daemon.run_pod(pod_spec("p")).await }
    });
    gate.reached().await;
    let pod = world.driver.calls().into_iter().find_map(|(_, pod)| pod).unwrap();
    assert!(world.driver.kill(&pod));
    let error = run.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("ended before its guest answered"), "{error}");
    world.assert_empty().await;
}

/// A guest of a protocol that this daemon does not speak is refused at once,
/// and both versions are named.
#[tokio::test]
async fn a_guest_of_another_protocol_fails_the_start() {
    let world = World::new();
    let daemon = world.daemon().await;
    world.guests.speak(99);
    let begin = std::time::Instant::now();
    let error = daemon.run_pod(pod_spec("p")).await.unwrap_err();
    assert!(error.to_string().contains("guest speaks protocol version 99, this daemon 1 to 1"), "{error}");
    // The deadline of the handshake.
    assert!(begin.elapsed() < Duration::from_secs(5), "it does not become another by waiting");
    world.assert_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_guest_fails_the_start_in_time() {
    let world = World::new();
    let daemon = world.daemon().await;
    world.guests.be_silent();
    let error = daemon.run_pod(pod_spec("p")).await.unwrap_err();
    assert!(error.to_string().contains("pod-handshake"), "{error}");
    world.assert_empty().await;
}

#[tokio::test]
async fn a_failed_container_leaves_nothing() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    for order in ["mount_layer", "create_container"] {
        match order {
            "mount_layer" => world.node.fail("mount_layer", 1),
            _ => world.guests.refuse("create_container", 1),
        }
        daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap_err();
        eventually(&daemon, pod.as_str(), "the end of the container", |view| view.containers.is_empty())
            .await;
        assert!(world.node.world().layers.is_empty());
    }
    daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
}

#[tokio::test]
async fn a_container_that_cannot_start_has_ended() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    let container = daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
    world.guests.refuse("start_container", 1);
    daemon.start_container(container.as_str()).await.unwrap_err();
    let exit = state_of(&daemon, container.as_str()).exit().cloned().unwrap();
    assert_eq!((exit.code, exit.reason), (128, ExitReason::StartError));
    assert!(exit.message.contains("ordered by the test"), "{}", exit.message);
}

/// The machine's end is the pod's, and its containers'.
#[tokio::test]
async fn a_machine_that_ends() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    let container = daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
    daemon.start_container(container.as_str()).await.unwrap();
    assert!(world.driver.kill(&pod));
    eventually(&daemon, pod.as_str(), "the end", |view| {
        matches!(&view.state, PodState::Stopped(StopCause::MachineEnded(_)))
    })
    .await;
    let exit = state_of(&daemon, container.as_str()).exit().cloned().unwrap();
    assert_eq!((exit.code, exit.reason), (137, ExitReason::Unknown));
    world.assert_no_machines().await;
    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_empty().await;
}

/// A teardown that fails says so, leaves the pod to be seen, and can be repeated.
#[tokio::test]
async fn a_failed_teardown_is_repeated() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    world.node.fail("remove_network_namespace", 1);
    let error = daemon.stop_pod(pod.as_str()).await.unwrap_err();
    assert!(error.to_string().contains("pod-remove-network"), "{error}");
    world.assert_no_machines().await;
    assert!(!daemon.find_pod(pod.as_str()).unwrap().state.is_ready());
    daemon.stop_pod(pod.as_str()).await.unwrap();
    assert!(world.node.world().namespaces.is_empty());

    world.node.fail("rename", 2);
    daemon.remove_pod(pod.as_str()).await.unwrap_err();
    // Its directories are out of the way then, and removed even if that fails at first.
    world.node.fail("remove_tree", 2);
    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_empty().await;
}

/// What a driver knows of a machine that does not go is in the pod's directories.
#[tokio::test]
async fn a_machine_that_does_not_go_keeps_the_pods_directories() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    let survives = MachineError::Survives { pod: pod.clone(), survivors: "it".to_owned() };
    world.driver.fail_next(Operation::Destroy, survives);
    let error = daemon.remove_pod(pod.as_str()).await.unwrap_err();
    assert!(error.to_string().contains("pod-destroy-machine"), "{error}");
    for directory in ["root/pods", "run/pods"] {
        assert!(world.directory.path().join(directory).join(pod.as_str()).exists(), "{directory}");
    }
    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_no_machines().await;
    world.assert_empty().await;
}

/// SIGKILL comes after the timeout, to a container that ignores its stop signal.
#[tokio::test]
async fn a_stubborn_container_is_killed() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    let container = daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
    daemon.start_container(container.as_str()).await.unwrap();
    daemon.stop_container(container.as_str(), Duration::from_millis(20)).await.unwrap();
    assert_eq!(state_of(&daemon, container.as_str()).exit().unwrap().code, 137);
}

/// A running container is ended by its removal.
#[tokio::test]
async fn a_running_container_is_removed() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    let container = daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
    daemon.start_container(container.as_str()).await.unwrap();
    daemon.remove_container(container.as_str()).await.unwrap();
    assert!(matches!(daemon.find_container(container.as_str()), Err(Error::ContainerNotFound { .. })));
    assert!(world.guests.containers(&pod).is_empty());
    assert!(world.node.world().layers.is_empty());
}

#[tokio::test]
async fn fifty_pods_share_their_layers() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pods = futures::future::join_all((0..50).map(|number| {
        let daemon = daemon.clone();
        async move {
            let pod = daemon.run_pod(pod_spec(&format!("p{number}"))).await.unwrap();
            daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
            pod
        }
    }))
    .await;
    assert_eq!(world.node.world().layers.len(), 1);
    for pod in pods {
        daemon.remove_pod(pod.as_str()).await.unwrap();
    }
    world.assert_empty().await;
}
