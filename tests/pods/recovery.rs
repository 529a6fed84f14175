use kina_machine::fake::Operation;
use kina_machine::{Driver as _, Error as MachineError};
use kina_model::{ContainerState, PodState, StopCause};

use crate::support::{World, container_spec, eventually, kill, pod_spec, state_of};

#[tokio::test]
async fn a_running_pod_is_adopted() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    let running = daemon.create_container(pod.as_str(), container_spec("running")).await.unwrap();
    daemon.start_container(running.as_str()).await.unwrap();
    let ending = daemon.create_container(pod.as_str(), container_spec("ending")).await.unwrap();
    daemon.start_container(ending.as_str()).await.unwrap();
    kill(daemon).await;

    // It ends while nobody looks.
    world.guests.exit(&pod, ending.as_str(), 4, false);
    let daemon = world.daemon().await;
    assert!(daemon.find_pod(pod.as_str()).unwrap().state.is_ready());
    assert!(matches!(state_of(&daemon, running.as_str()), ContainerState::Running(_)));
    assert_eq!(state_of(&daemon, ending.as_str()).exit().unwrap().code, 4);
    assert_eq!(
        world.node.world().layers.values().copied().collect::<Vec<_>>(),
        [2],
        "no layer is mounted anew"
    );

    // The adopted pod is as alive as any.
    assert_eq!(daemon.run_pod(pod_spec("p")).await.unwrap(), pod);
    world.guests.exit(&pod, running.as_str(), 0, false);
    eventually(&daemon, pod.as_str(), "the exit", |view| view.containers[&running].state.exit().is_some())
        .await;
    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_empty().await;
}

#[tokio::test]
async fn a_pod_whose_machine_is_gone_is_torn_down() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    let container = daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
    daemon.start_container(container.as_str()).await.unwrap();
    kill(daemon).await;
    world.driver.kill(&pod);

    let daemon = world.daemon().await;
    eventually(&daemon, pod.as_str(), "the teardown", |view| {
        matches!(&view.state, PodState::Stopped(StopCause::MachineEnded(_)))
    })
    .await;
    assert_eq!(state_of(&daemon, container.as_str()).exit().unwrap().code, 137);
    assert!(world.node.world().namespaces.is_empty());
    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_empty().await;
}

#[tokio::test]
async fn a_reboot_ends_all_pods() {
    let world = World::new();
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    let container = daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
    daemon.start_container(container.as_str()).await.unwrap();
    kill(daemon).await;
    world.node.reboot();
    world.driver.kill(&pod);

    let daemon = world.daemon().await;
    eventually(&daemon, pod.as_str(), "the end", |view| view.state == PodState::Stopped(StopCause::Rebooted))
        .await;
    let exit = state_of(&daemon, container.as_str()).exit().cloned().unwrap();
    assert!(exit.message.contains("rebooted"), "{}", exit.message);
    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_empty().await;
}

/// What no record explains is cleaned away.
#[tokio::test]
async fn strangers_are_cleaned() {
    use kina_node::Node;
    let world = World::new();
    let daemon = world.daemon().await;
    kill(daemon).await;
    let stranger = kina_model::PodId::random();
    world.node.create_network_namespace(&stranger, None).await.unwrap();
    std::fs::create_dir_all(world.directory.path().join("root/pods").join(stranger.as_str())).unwrap();
    let _daemon = world.daemon().await;
    world.assert_empty().await;
}

/// A machine without a record that does not go keeps no daemon from starting, and nothing of
/// its pod is taken away from under it.
#[tokio::test]
async fn a_stranger_that_does_not_go_is_left_to_the_next_daemon() {
    for operation in [Operation::Stop, Operation::Destroy] {
        let world = World::new();
        let daemon = world.daemon().await;
        let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
        kill(daemon).await;
        world.lose_record(&pod).await;
        let error = MachineError::Survives { pod: pod.clone(), survivors: "it".to_owned() };
        world.driver.fail_next(operation, error);

        let daemon = world.daemon().await;
        assert!(daemon.find_pod(pod.as_str()).is_err());
        assert_eq!(world.driver.list().await.unwrap().len(), 1, "{operation:?}");
        assert_eq!(world.node.world().namespaces.len(), 1, "{operation:?}");
        assert!(world.directory.path().join("root/pods").join(pod.as_str()).exists(), "{operation:?}");
        // It can make others.
        let other = daemon.run_pod(pod_spec("q")).await.unwrap();
        daemon.remove_pod(other.as_str()).await.unwrap();
        kill(daemon).await;

        let _daemon = world.daemon().await;
        world.assert_no_machines().await;
        world.assert_empty().await;
    }
}

#[tokio::test]
async fn what_a_dead_daemon_did_not_get_to_remove_goes() {
    let world = World::new();
    for directory in ["root/pods", "run/pods"] {
        let left = world.directory.path().join(directory).join(".discarded-0123/containers/one");
        std::fs::create_dir_all(&left).unwrap();
        std::fs::write(left.join("file"), "").unwrap();
    }
    let _daemon = world.daemon().await;
    for directory in ["root/pods", "run/pods"] {
        let left = world.directory.path().join(directory).join(".discarded-0123");
        assert!(!left.exists(), "{directory}");
    }
}
