//! Guests that do not behave: what the caller is told and how soon, and that
//! nothing is left. Where time is paused it is not measured: it runs ahead while
//! the store's thread works. The words say which deadline it was.

use std::time::{Duration, Instant};

use kina::error::{Error, chain};
use kina::pod::view::PodView;
use kina_model::{Placement, PodSpec, PodState, Resources};

use crate::support::{World, container_spec, eventually, pod_spec, state_of};

/// What the worlds here allow for a handshake, with the attempt that is under way.
const HANDSHAKE: Duration = Duration::from_secs(11);

fn vm_spec(name: &str) -> PodSpec {
    PodSpec { placement: Placement::Vm, handler: "vm".into(), ..pod_spec(name) }
}

/// A start that fails in time, with these words, and leaves nothing.
async fn fails_to_start(world: &World, words: &[&str]) {
    let daemon = world.daemon_with_vm().await;
    let begin = Instant::now();
    let error = daemon.run_pod(vm_spec("p")).await.unwrap_err();
    assert!(matches!(error, Error::StartFailed { .. }), "{error:?}");
    assert!(begin.elapsed() <= HANDSHAKE, "{:?}: {error}", begin.elapsed());
    let text = chain(&error);
    for word in words {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
    assert!(text.len() < 1000, "{} bytes", text.len());
    assert!(daemon.pods().is_empty());
    world.assert_empty().await;
    world.assert_no_machines().await;
}

#[tokio::test]
async fn garbage_for_a_handshake() {
    let lines = b"HTTP/1.1 200 OK\r\nServer: none\r\n\r\n";
    // HTTP/2: a frame of 16 MiB, and settings that are none.
    let (frame, settings) = ([0xff; 64], [0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5]);
    for garbage in [&lines[..], &[0; 4096], &frame, &settings] {
        let world = World::new();
        world.guests.talk_garbage(garbage);
        fails_to_start(&world, &["pod-handshake", "guest"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_handshake() {
    let silent = World::new();
    silent.guests.be_silent();
    fails_to_start(&silent, &["pod-handshake", "does not answer Hello in time"]).await;
    let mute = World::new();
    mute.guests.ignore("hello");
    fails_to_start(&mute, &["pod-handshake", "does not answer Hello in time"]).await;
    let mute = World::new();
    mute.guests.ignore("setup_pod");
    fails_to_start(&mute, &["pod-setup", "does not answer SetupPod in time"]).await;
}

#[tokio::test]
async fn a_handshake_without_end() {
    let world = World::new();
    world.guests.boast(300);
    fails_to_start(&world, &["guest breaks the protocol in Hello: a text is too long"]).await;
    let world = World::new();
    world.guests.boast(5 << 20);
    fails_to_start(&world, &["guest breaks the protocol in Hello: a message is too large"]).await;
}

/// Each call that is never answered ends at its deadline, and the pod can be removed.
#[tokio::test(start_paused = true)]
async fn no_answer() {
    for (call, name) in [
        ("create_container", "CreateContainer"),
        ("start_container", "StartContainer"),
        ("update_container", "UpdateContainer"),
    ] {
        let world = World::new();
        let daemon = world.daemon_with_vm().await;
        let pod = daemon.run_pod(vm_spec("p")).await.unwrap();
        world.guests.ignore(call);
        let created = daemon.create_container(pod.as_str(), container_spec("c")).await;
        let error = match (call, created) {
            (_, Err(error)) => error,
            ("start_container", Ok(container)) => {
                daemon.start_container(container.as_str()).await.unwrap_err()
            }
            (_, Ok(container)) => {
                let more = Resources { memory_limit_bytes: Some(1 << 27), ..Resources::default() };
                daemon.update_container(container.as_str(), more).await.unwrap_err()
            }
        };
        let text = chain(&error);
        assert!(text.contains(&format!("does not answer {name} in time")), "{call}: {text}");
        daemon.remove_pod(pod.as_str()).await.unwrap();
        world.assert_empty().await;
        world.assert_no_machines().await;
    }
}

/// What a stop needs of the guest it does without, after two seconds.
#[tokio::test]
async fn a_stop_does_not_depend_on_the_guest() {
    let world = World::new();
    let daemon = world.daemon_with_vm().await;
    let pod = daemon.run_pod(vm_spec("p")).await.unwrap();
    let container = daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
    daemon.start_container(container.as_str()).await.unwrap();
    for call in ["signal_container", "delete_container", "list_containers", "shutdown", "stats"] {
        world.guests.ignore(call);
    }
    let begin = Instant::now();
    let error = daemon.stop_container(container.as_str(), Duration::from_secs(1)).await.unwrap_err();
    assert!(chain(&error).contains("does not answer SignalContainer in time"), "{}", chain(&error));
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    let begin = Instant::now();
    daemon.stop_pod(pod.as_str()).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(state_of(&daemon, container.as_str()).exit().is_some());
    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_empty().await;
    world.assert_no_machines().await;
}

/// A guest that tells nonsense without end gets no memory and stops nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_events() {
    let world = World::new();
    world.guests.flood_events();
    let daemon = world.daemon_with_vm().await;
    let pod = daemon.run_pod(vm_spec("p")).await.unwrap();
    let answered = async {
        let container = daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
        daemon.start_container(container.as_str()).await.unwrap();
        let other = daemon.run_pod(pod_spec("other")).await.unwrap();
        assert_eq!(daemon.pods().len(), 2);
        for pod in [&pod, &other] {
            let seen: fn(&PodView) -> bool = |view| matches!(view.state, PodState::Stopped(_));
            daemon.stop_pod(pod.as_str()).await.unwrap();
            eventually(&daemon, pod.as_str(), "the stop", seen).await;
            daemon.remove_pod(pod.as_str()).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), answered).await.unwrap();
    world.assert_empty().await;
    world.assert_no_machines().await;
}
