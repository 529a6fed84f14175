//! Pods and the plugins of their network, both in memory.

use std::time::Duration;

use kina::error::Error;
use kina::network::Readiness;
use kina::runtime::Runtime;
use kina_machine::fake::Operation;
use kina_model::{PodState, PortMapping};
use kina_testkit::fake_cni::PLUGIN;

use crate::support::{World, eventually, kill, pod_spec};

/// Waits until the network is as wanted.
async fn network(daemon: &Runtime, what: &str, wanted: impl Fn(&kina::network::NetworkState) -> bool) {
    let waiting = async {
        while !wanted(&daemon.network().state()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    waited.unwrap_or_else(|_| panic!("{what}: {:?}", daemon.network().state()));
}

fn calls(world: &World, command: &str) -> usize {
    world.node.world().network.calls.iter().filter(|(called, _)| called == command).count()
}

fn addresses(daemon: &Runtime, pod: &kina_model::PodId) -> Vec<String> {
    match &daemon.find_pod(pod.as_str()).unwrap().state {
        PodState::Ready(ready) => ready.addresses.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pod_gets_addresses_and_gives_them_back() {
    let world = World::new();
    world.add_network("pods");
    let daemon = world.daemon().await;
    network(&daemon, "ready", |state| state.is_ready()).await;
    assert!(daemon.conditions().network.ready, "{:?}", daemon.conditions());
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    // The plugin names the other family first.
    assert_eq!(addresses(&daemon, &pod), ["10.99.0.1", "fd00::5"]);
    daemon.stop_pod(pod.as_str()).await.unwrap();
    assert!(world.node.world().network.addresses.is_empty());
    daemon.stop_pod(pod.as_str()).await.unwrap();
    daemon.remove_pod(pod.as_str()).await.unwrap();
    assert_eq!(calls(&world, "DEL"), 1, "{:?}", world.node.world().network.calls);
    let mut counted = String::new();
    daemon.metrics().write(&mut counted).unwrap();
    for operation in ["ADD", "DEL"] {
        let labels = format!("plugin=\"{PLUGIN}\",operation=\"{operation}\",result=\"done\"");
        let sample = format!("kina_cni_call_duration_seconds_count{{{labels}}} 1\n");
        assert!(counted.contains(&sample), "{sample} is not in {counted}");
    }
    let sample = "kina_machine_boot_duration_seconds_count{driver=\"fake\",result=\"ready\"} 1\n";
    assert!(counted.contains(sample), "{counted}");
    world.assert_empty().await;
}

#[tokio::test]
async fn pods_on_the_nodes_network_have_no_plugin() {
    let world = World::new();
    world.add_network("pods");
    let daemon = world.daemon().await;
    let mut spec = pod_spec("p");
    spec.namespaces.host_network = true;
    let pod = daemon.run_pod(spec).await.unwrap();
    assert_eq!(addresses(&daemon, &pod), [""; 0]);
    daemon.remove_pod(pod.as_str()).await.unwrap();
    assert_eq!((calls(&world, "ADD"), calls(&world, "DEL")), (0, 0));
}

/// Without a configuration pods get loopback, or are refused: where that is
/// configured, and once there has been one.
#[tokio::test]
async fn without_a_network() {
    let world = World::new();
    let daemon = world.daemon().await;
    let condition = daemon.conditions().network;
    assert_eq!((condition.ready, condition.reason.as_str()), (false, "NetworkPluginNotReady"));
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    assert_eq!(addresses(&daemon, &pod), [""; 0]);
    let mut mapped = pod_spec("mapped");
    mapped.port_mappings.push(PortMapping {
        protocol: "tcp".into(),
        container_port: 80,
        host_port: 8080,
        host_ip: String::new(),
    });
    let error = daemon.run_pod(mapped.clone()).await.unwrap_err();
    assert!(error.to_string().contains("config.port_mappings[0].host_port"), "{error}");
    assert!(matches!(daemon.network().collect().await, Err(Error::NetworkUnavailable { .. })));
    assert!(matches!(daemon.network().check(&pod, &pod_spec("p")).await, Err(Error::NotAttached { .. })));

    world.add_network("pods");
    daemon.network().look();
    network(&daemon, "a configuration", |state| state.in_force.is_some()).await;
    let error = daemon.run_pod(mapped).await.unwrap_err();
    assert!(error.to_string().contains("the network \"pods\" has none"), "{error}");
    let connected = daemon.run_pod(pod_spec("connected")).await.unwrap();
    world.remove_networks();
    daemon.network().look();
    network(&daemon, "its end", |state| state.in_force.is_none()).await;
    let error = daemon.run_pod(pod_spec("late")).await.unwrap_err();
    assert!(matches!(&error, Error::NetworkUnavailable { .. }), "{error}");
    // What was made is undone with the configuration that made it.
    daemon.remove_pod(connected.as_str()).await.unwrap();
    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_empty().await;

    kill(daemon).await;
    let required = kina::config::Network { required: true, ..world.network() };
    let daemon = world.daemon_with(required).await;
    let error = daemon.run_pod(pod_spec("p")).await.unwrap_err();
    assert!(error.to_string().contains("no usable network configuration"), "{error}");
    assert!(daemon.pods().is_empty());
}

/// A failed ADD fails the pod with the plugin's words and leaves nothing.
#[tokio::test]
async fn a_failed_add() {
    let world = World::new();
    world.add_network("pods");
    let daemon = world.daemon().await;
    world.node.fail_plugin("ADD", 1);
    let error = daemon.run_pod(pod_spec("p")).await.unwrap_err();
    assert!(matches!(&error, Error::StartFailed { .. }), "{error}");
    for words in ["pod-attach-network", "no ADD today", "fake"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    world.assert_empty().await;

    // The DEL after it fails, too, and then succeeds.
    world.node.fail_plugin("ADD", 1);
    world.node.fail_plugin("DEL", 1);
    daemon.run_pod(pod_spec("p")).await.unwrap_err();
    world.assert_empty().await;
    daemon.run_pod(pod_spec("p")).await.unwrap();
}

/// While a plugin cannot undo what it has made, the pod stays to be seen, with
/// its namespace, and can be stopped again.
#[tokio::test(start_paused = true)]
async fn a_failed_del_is_repeated() {
    let world = World::new();
    world.add_network("pods");
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    // Overcome without anybody's help.
    world.node.fail_plugin("DEL", 2);
    daemon.stop_pod(pod.as_str()).await.unwrap();
    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_empty().await;

    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    world.node.fail_plugin("DEL", 3);
    let error = daemon.stop_pod(pod.as_str()).await.unwrap_err();
    assert!(error.to_string().contains("pod-detach-network"), "{error}");
    assert!(error.to_string().contains("no DEL today"), "{error}");
    world.assert_no_machines().await;
    let left = world.node.world();
    assert_eq!((left.namespaces.len(), left.network.addresses.len()), (1, 1));
    world.node.fail_plugin("DEL", 3);
    daemon.remove_pod(pod.as_str()).await.unwrap_err();
    assert_eq!(daemon.pods().len(), 1);
    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_empty().await;
}

/// A start that fails after the pod was connected disconnects it.
#[tokio::test]
async fn a_start_that_fails_later() {
    let world = World::new();
    world.add_network("pods");
    let daemon = world.daemon().await;
    let failure =
        kina_machine::Error::Boot { pod: kina_model::PodId::random(), reason: "ordered by the test".into() };
    world.driver.fail_next(Operation::Start, failure);
    daemon.run_pod(pod_spec("p")).await.unwrap_err();
    assert_eq!(calls(&world, "ADD"), 1);
    world.assert_empty().await;
}

/// Addresses, and whom they belong to, outlive the daemon; so do attachments
/// of pods that end meanwhile, or with the node.
#[tokio::test]
async fn a_new_daemon_knows_the_network() {
    let world = World::new();
    world.add_network("pods");
    let daemon = world.daemon().await;
    let lives = daemon.run_pod(pod_spec("lives")).await.unwrap();
    let dies = daemon.run_pod(pod_spec("dies")).await.unwrap();
    kill(daemon).await;
    world.driver.kill(&dies);
    // Another network by now; each pod is disconnected from its own.
    world.add_network("other");
    let daemon = world.daemon().await;
    assert_eq!(addresses(&daemon, &lives), ["10.99.0.1", "fd00::5"]);
    eventually(&daemon, dies.as_str(), "the teardown", |view| matches!(view.state, PodState::Stopped(_)))
        .await;
    assert_eq!(world.node.world().network.addresses.len(), 1);
    kill(daemon).await;

    world.node.reboot();
    world.driver.kill(&lives);
    world.remove_networks();
    let daemon = world.daemon().await;
    eventually(&daemon, lives.as_str(), "the teardown", |view| matches!(view.state, PodState::Stopped(_)))
        .await;
    for pod in [lives, dies] {
        daemon.remove_pod(pod.as_str()).await.unwrap();
    }
    world.assert_empty().await;
}

/// What is left of pods that no record explains is undone by the cache.
#[tokio::test]
async fn lost_records() {
    let world = World::new();
    world.add_network("pods");
    let daemon = world.daemon().await;
    daemon.run_pod(pod_spec("p")).await.unwrap();
    kill(daemon).await;
    std::fs::remove_file(world.directory.path().join("root/records.redb")).unwrap();
    let _daemon = world.daemon().await;
    assert!(world.node.world().network.addresses.is_empty());
    assert!(world.node.world().namespaces.is_empty());
}

/// What no pod has is collected once the network is ready, and on demand.
#[tokio::test]
async fn leftovers_are_collected() {
    let world = World::new();
    world.add_network("pods");
    world.node.leak_address("pods/somebody", [10, 99, 0, 77]);
    let daemon = world.daemon().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    let waiting = async {
        while world.node.world().network.addresses.contains_key("pods/somebody") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
    world.node.leak_address("pods/somebody", [10, 99, 0, 78]);
    let collected = daemon.network().collect().await.unwrap();
    assert!(collected.plugins_told && collected.errors.is_empty(), "{collected:?}");
    assert_eq!(world.node.world().network.addresses.len(), 1);
    assert_eq!(daemon.network().check(&pod, &pod_spec("p")).await.unwrap(), kina_cni::Check::Passed);
    world.node.fail_plugin("CHECK", 1);
    daemon.network().check(&pod, &pod_spec("p")).await.unwrap_err();
    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_empty().await;
}

/// The network is as ready as its plugins say, in their words.
#[tokio::test]
async fn readiness_is_the_plugins() {
    let world = World::new();
    world.add_network("pods");
    world.node.fail_plugin("STATUS", 1);
    let daemon = world.daemon().await;
    network(&daemon, "the refusal", |state| matches!(state.readiness, Readiness::NotReady(_))).await;
    let condition = daemon.conditions().network;
    assert!(!condition.ready && condition.message.contains("no STATUS today"), "{condition:?}");
    network(&daemon, "ready", |state| state.is_ready()).await;

    // A broken file is named, and what it said holds on.
    world.write_network("10-net.conflist", "{");
    daemon.network().look();
    network(&daemon, "the broken file", |state| state.kept).await;
    let condition = daemon.conditions().network;
    assert!(condition.ready && condition.message.contains("10-net.conflist"), "{condition:?}");
    daemon.run_pod(pod_spec("p")).await.unwrap();

    // A plugin that is not there.
    world
        .write_network("05-net.conflist", r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"none"}]}"#);
    daemon.network().look();
    network(&daemon, "the missing plugin", |state| matches!(state.readiness, Readiness::NotReady(_))).await;
    let condition = daemon.conditions().network;
    assert!(condition.message.contains("plugin none is not in"), "{condition:?}");
}

/// A plugin that hangs keeps no other pod waiting, and a stop interrupts it.
#[tokio::test]
async fn a_hanging_plugin() {
    let world = World::new();
    world.add_network("pods");
    let daemon = world.daemon().await;
    world.node.hang_plugin("ADD", true);
    let run = tokio::spawn({
        let daemon = daemon.clone();
        async move { daemon.run_pod(pod_spec("hangs")).await }
    });
    let hanging = async {
        loop {
            if let Some(pod) = world.node.world().namespaces.first().filter(|_| calls(&world, "ADD") > 0) {
                return pod.clone();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let hanging = tokio::time::timeout(Duration::from_secs(20), hanging).await.unwrap();
    world.node.hang_plugin("ADD", false);
    let other = daemon.run_pod(pod_spec("other")).await.unwrap();
    assert!(matches!(daemon.network().collect().await, Err(Error::PluginsBusy)));
    daemon.remove_pod(hanging.as_str()).await.unwrap();
    run.await.unwrap().unwrap_err();
    daemon.remove_pod(other.as_str()).await.unwrap();
    world.assert_empty().await;
}
