//! Apple's service and its relay, when they do not do what they should.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kina_machine::conformance::Subject as _;
use kina_machine::{Driver, Error, MachineState};

use crate::place::{DEADLINE, Place, chain, lives};

/// An apiserver that was started anew calls every container stopped.
#[tokio::test]
async fn a_guest_that_answers_outranks_the_list() {
    let place = Place::new().await;
    let pod = place.started().await;
    place.set("forgetful", "");
    let another = place.another();
    for driver in [&place.driver as &dyn Driver, &*another] {
        assert_eq!(driver.status(&pod).await.unwrap(), MachineState::Running);
        assert_eq!(driver.list().await.unwrap()[0].state, MachineState::Running);
        drop(place.answered(driver, &pod).await);
    }
    let waiting = tokio::spawn({
        let (another, pod) = (another.clone(), pod.clone());
        async move { another.wait(&pod).await }
    });
    let pid = place.pid(&pod);
    another.stop(&pod, Duration::ZERO).await.unwrap();
    assert!(!lives(pid), "the machine runs on");
    tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap();
    another.destroy(&pod).await.unwrap();
    assert_eq!(place.containers(), 0);
}

/// One failed dial ends Apple's relay and removes its socket for good.
#[tokio::test]
async fn streams_go_around_a_relay_that_is_gone() {
    let place = Place::new().await;
    let pod = place.started().await;
    fs::remove_file(place.socket(&pod)).unwrap();
    let mut one = place.answered(&place.driver, &pod).await;
    let mut two = place.answered(&place.driver, &pod).await;
    for stream in [&mut one, &mut two] {
        place.probe(&mut **stream).await.unwrap();
    }
    assert!(!place.calls("exec --interactive").is_empty());
    assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Running);
    let facts = place.driver.inspect(&pod).await.unwrap().facts;
    assert!(facts.contains(&("streams", "exec".to_owned())), "{facts:?}");
    place.driver.destroy(&pod).await.unwrap();
}

#[tokio::test]
async fn a_service_that_is_down_is_named_and_harms_nobody() {
    let place = Place::new().await;
    let (pod, fresh) = (place.started().await, place.created().await);
    place.set("down", "");
    // What runs is adopted, and reached.
    let another = place.another();
    assert_eq!(another.status(&pod).await.unwrap(), MachineState::Running);
    drop(place.answered(&*another, &pod).await);
    let found = another.list().await.unwrap();
    assert!(found.iter().any(|found| found.pod == pod && found.state == MachineState::Running), "{found:?}");
    let down = |what: &str, result: Result<(), Error>| match result {
        Err(error @ Error::Unavailable { .. }) => {
            let text = chain(&error);
            assert!(text.contains("type `container system start`"), "{what}: {text}");
        }
        other => panic!("{what}: {other:?}"),
    };
    down("start", another.start(&fresh).await);
    down("stop", another.stop(&pod, Duration::ZERO).await);
    down("destroy", another.destroy(&pod).await);
    // Not ended, not forgotten.
    assert_eq!(another.status(&pod).await.unwrap(), MachineState::Running);
    place.unset("down");
    another.start(&fresh).await.unwrap();
    for pod in [&pod, &fresh] {
        another.destroy(pod).await.unwrap();
        assert_eq!(place.left(pod), Vec::<PathBuf>::new());
    }
    assert_eq!(place.containers(), 0);
}

/// A list that cannot be read says nothing of any machine: not that it has ended, and not that
/// a daemon cannot start.
#[tokio::test]
async fn a_list_that_cannot_be_read_ends_nothing() {
    let place = Place::new().await;
    let (pod, fresh) = (place.started().await, place.created().await);
    for nonsense in ["0\n", "0\n[{\"id\":", "0\n{}", "0\n[null]", "0\n\u{0}\u{ff}", "1\n", "64\n", "1\nno"] {
        place.set("nonsense", nonsense);
        let another = place.another();
        let mut found = another.list().await.unwrap();
        found.sort_by_key(|found| found.pod != pod);
        let states: Vec<_> = found.iter().map(|found| (&found.pod, found.state)).collect();
        let expected = [(&pod, MachineState::Running), (&fresh, MachineState::Created)];
        assert_eq!(states, expected, "{nonsense:?}");
        assert_eq!(another.status(&pod).await.unwrap(), MachineState::Running);
    }
    // Neither guest nor list answers: whoever waits for the machine's end goes on waiting.
    let hidden = place.at("s/hidden");
    fs::rename(place.socket(&pod), &hidden).unwrap();
    assert!(matches!(place.driver.status(&pod).await, Err(Error::Unavailable { .. })));
    assert_eq!(place.driver.list().await.unwrap().len(), 2);
    let lists = place.calls("list").len();
    let waiting = tokio::spawn({
        let (driver, pod) = (place.driver.clone(), pod.clone());
        async move { driver.wait(&pod).await }
    });
    place.wait_calls("list", lists + 2).await;
    assert!(!waiting.is_finished(), "it counts as ended");
    fs::rename(&hidden, place.socket(&pod)).unwrap();
    place.unset("nonsense");
    drop(place.answered(&place.driver, &pod).await);
    place.driver.stop(&pod, Duration::ZERO).await.unwrap();
    tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap();
    for pod in [&pod, &fresh] {
        place.driver.destroy(pod).await.unwrap();
    }
}

/// An exit code is not all: what is listed has not gone, though its machine has ended.
#[tokio::test]
async fn what_is_deleted_without_a_word_is_looked_for() {
    let place = Place::new().await;
    let pod = place.started().await;
    place.crash(&pod).await;
    place.set("deletes-nothing", "");
    let calls = place.calls("delete").len();
    let stopping = tokio::spawn({
        let (driver, pod) = (place.driver.clone(), pod.clone());
        async move { driver.stop(&pod, Duration::ZERO).await }
    });
    place.wait_calls("delete", calls + 2).await;
    assert!(!stopping.is_finished(), "it counts as removed");
    place.set("mute", "");
    place.unset("deletes-nothing");
    tokio::time::timeout(DEADLINE, stopping).await.unwrap().unwrap().unwrap();
    assert_eq!(place.containers(), 0);
    place.driver.destroy(&pod).await.unwrap();
}

#[tokio::test]
async fn a_service_that_hangs_costs_its_deadline() {
    let place = Place::with(|config| config.call_deadline = Duration::from_millis(500)).await;
    let pod = place.started().await;
    place.set("hang", "");
    let begin = Instant::now();
    // A guest that answers needs no list.
    assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Running);
    match place.driver.stop(&pod, Duration::ZERO).await {
        Err(error @ Error::Unavailable { .. }) => {
            assert!(chain(&error).contains("did not end within"), "{}", chain(&error));
        }
        other => panic!("{other:?}"),
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    // Also when it hangs while the daemon starts.
    drop(place.another());
    place.unset("hang");
    place.driver.stop(&pod, Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a_socket_that_is_left_does_not_keep_a_machine_from_booting() {
    let place = Place::new().await;
    let pod = place.created().await;
    fs::write(place.socket(&pod), "").unwrap();
    place.driver.start(&pod).await.unwrap();
    drop(place.answered(&place.driver, &pod).await);
}

/// A service that has forgotten a machine does not end it, and a machine may be
/// silent.
#[tokio::test]
async fn a_machine_whose_socket_is_held_has_not_ended() {
    let place = Place::new().await;
    let pod = place.started().await;
    place.crash(&pod).await;
    fs::remove_dir_all(place.at("apple/containers").join(format!("kina-{pod}"))).unwrap();
    let holder = tokio::net::UnixListener::bind(place.socket(&pod)).unwrap();
    let stopping = tokio::spawn({
        let (driver, pod) = (place.driver.clone(), pod.clone());
        async move { driver.stop(&pod, Duration::ZERO).await }
    });
    // Once to see whether it runs, then again and again whether it has ended.
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(tokio::time::timeout(DEADLINE, holder.accept()).await.unwrap().unwrap());
    }
    assert!(!stopping.is_finished(), "it counts as ended");
    drop((holder, held));
    tokio::time::timeout(DEADLINE, stopping).await.unwrap().unwrap().unwrap();
    place.driver.destroy(&pod).await.unwrap();
    assert_eq!(place.left(&pod), Vec::<PathBuf>::new());
}
