//! Boots: their order, their number, and why one may fail.

use std::time::{Duration, Instant};

use kina_machine::conformance::Subject as _;
use kina_machine::{Driver as _, Error, MachineState};

use crate::place::{DEADLINE, Place};

#[tokio::test]
async fn what_keeps_a_machine_from_booting_is_said() {
    let place = Place::new().await;
    for (refusal, expected) in [
        ("default kernel not configured for architecture arm64", "container system kernel set --recommended"),
        ("network nowhere not found", "machine.apple.network"),
        ("minimum memory amount allowed is 200 MiB (got 1 bytes)", "minimum memory amount"),
    ] {
        place.set("refuse", refusal);
        let pod = place.created().await;
        match place.driver.start(&pod).await {
            Err(Error::Boot { reason, .. }) => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Created);
        place.unset("refuse");
        // It may be tried again.
        place.driver.start(&pod).await.unwrap();
        place.driver.destroy(&pod).await.unwrap();
    }
    for (trap, content, expected) in [
        ("dies-at-once", "kina-guest: the guest has ended: exit status: 3\n", "exit status: 3"),
        ("idle", "", "`container run` succeeded, and `container list --all` shows no such machine"),
        ("nonsense", "1\n", "`container list --all --format` ended with code 1 and said nothing"),
    ] {
        place.set(trap, content);
        let pod = place.created().await;
        match place.driver.start(&pod).await {
            Err(Error::Boot { reason, .. }) => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{trap}: {other:?}"),
        }
        place.unset(trap);
        assert_eq!(place.containers(), 0, "{trap}");
    }
}

/// Apple may find more words for what a container does; that its guest answers is what counts.
#[tokio::test]
async fn a_state_without_a_meaning_is_no_end() {
    let place = Place::new().await;
    place.set("new-words", "");
    let pod = place.started().await;
    assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Running);
    assert_eq!(place.another().list().await.unwrap()[0].state, MachineState::Running);
    place.driver.destroy(&pod).await.unwrap();
}

/// A machine that ends at once is called running without an address for a moment; and one
/// whose address comes late is waited for.
#[tokio::test]
async fn an_address_that_is_missing_is_waited_for() {
    let place = Place::new().await;
    for ends in [false, true] {
        place.set("no-address", "");
        let pod = place.created().await;
        let lists = place.calls("list").len();
        let look = async {
            place.wait_calls("list", lists + 2).await;
            if ends {
                place.crash(&pod).await;
            } else {
                place.unset("no-address");
            }
        };
        match tokio::join!(place.driver.start(&pod), look).0 {
            Ok(()) if !ends => {}
            Err(Error::Boot { reason, .. }) if ends => assert!(reason.contains("ended at once"), "{reason}"),
            other => panic!("{ends}: {other:?}"),
        }
        place.driver.destroy(&pod).await.unwrap();
    }
    assert_eq!(place.containers(), 0);
}

#[tokio::test]
async fn boots_are_one_at_a_time_and_a_stop_leaves_the_queue() {
    let place = Place::new().await;
    let running = place.started().await;
    let boots = place.calls("run ").len();
    place.set("slow-boot", "");
    let pods = [place.created().await, place.created().await, place.created().await];
    let mut starts = Vec::new();
    for (index, pod) in pods.iter().enumerate() {
        let (driver, pod) = (place.driver.clone(), pod.clone());
        starts.push(tokio::spawn(async move { driver.start(&pod).await }));
        if index == 0 {
            place.wait_calls("run ", boots + 1).await;
        }
        tokio::task::yield_now().await;
    }
    // Queued, not booted: its stop waits for nobody, and needs nothing of Apple.
    let begin = Instant::now();
    place.driver.stop(&pods[1], Duration::ZERO).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    match starts.remove(1).await.unwrap() {
        Err(Error::Boot { reason, .. }) => assert!(reason.contains("stopped before"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(place.calls("run ").len(), boots + 1, "boots are side by side");
    // Others are as quick as ever.
    drop(place.answered(&place.driver, &running).await);
    assert_eq!(place.driver.status(&running).await.unwrap(), MachineState::Running);
    place.driver.stop(&running, Duration::ZERO).await.unwrap();
    // The one that boots now is ended in the middle; the last has its turn.
    place.driver.stop(&pods[0], Duration::ZERO).await.unwrap();
    assert!(starts.remove(0).await.unwrap().is_err());
    place.unset("slow-boot");
    tokio::time::timeout(DEADLINE, starts.remove(0)).await.unwrap().unwrap().unwrap();
    drop(place.answered(&place.driver, &pods[2]).await);
    for pod in pods.iter().chain([&running]) {
        place.driver.destroy(pod).await.unwrap();
    }
    assert_eq!(place.containers(), 0);
}

#[tokio::test]
async fn no_more_machines_than_can_run() {
    let place = Place::with(|config| config.limit = 2).await;
    let (one, two, three) = (place.started().await, place.started().await, place.created().await);
    match place.driver.start(&three).await {
        Err(error @ Error::TooMany { limit: 2, .. }) => {
            assert!(error.to_string().contains("remove a pod first"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    place.driver.stop(&one, Duration::ZERO).await.unwrap();
    place.driver.start(&three).await.unwrap();
    for pod in [one, two, three] {
        place.driver.destroy(&pod).await.unwrap();
    }
}
