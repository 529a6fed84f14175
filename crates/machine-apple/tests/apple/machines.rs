//! What a machine is, and what is left of one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kina_machine::conformance::Subject as _;
use kina_machine::{
    Attachment, Driver as _, Error, MachineSpec, MachineState, PortProtocol, PublishedPort, Share, ShareKind,
};
use kina_machine_apple::AppleConfig;
use kina_model::{ContainerId, PodId};

use crate::place::{DEADLINE, Place, chain, open};

#[tokio::test]
async fn the_image_is_loaded_once_and_older_ones_go() {
    let place = Place::new().await;
    for _ in 0..2 {
        place.started().await;
    }
    assert_eq!(place.calls("image load").len(), 1);
    let images = fs::read_to_string(place.at("apple/images")).unwrap();
    assert_eq!(images, "other:1 sha256:33\nlocalhost/kina-pod:two sha256:22\n");
    // Somebody removed it, while this daemon believed that it was there.
    fs::write(place.at("apple/images"), "").unwrap();
    place.started().await;
    assert_eq!(place.calls("image load").len(), 2);
    // The same name with another content is another image.
    fs::write(place.at("apple/images"), "localhost/kina-pod:two sha256:99\n").unwrap();
    let another = place.another();
    let pod = place.created().await;
    another.start(&pod).await.unwrap();
    assert_eq!(place.calls("image load").len(), 3);
}

/// What was loaded a moment ago is what its name says, whatever digest is listed; what is not
/// listed at all was not loaded.
#[tokio::test]
async fn an_image_that_was_loaded_is_listed_by_its_name() {
    let place = Place::new().await;
    place.set("loads-nothing", "");
    let pod = place.created().await;
    match place.driver.start(&pod).await {
        Err(Error::Boot { reason, .. }) => {
            assert!(reason.contains("image list` does not show it"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
    place.unset("loads-nothing");
    place.set("other-digest", "sha256:99");
    for pod in [pod, place.created().await] {
        place.driver.start(&pod).await.unwrap();
    }
    assert_eq!(place.calls("image load").len(), 2);
}

#[tokio::test]
async fn a_pod_is_one_container_with_all_that_it_needs() {
    let place = Place::new().await;
    let pod = PodId::random();
    let ports = vec![PublishedPort { address: None, node: 8080, machine: 80, protocol: PortProtocol::Tcp }];
    let spec = MachineSpec { ports, ..place.spec(&pod).await };
    place.driver.create(&spec).await.unwrap();
    place.driver.start(&pod).await.unwrap();
    let [line] = &place.calls("run ")[..] else { panic!("not one boot") };
    for part in [
        &format!("--name kina-{pod} "),
        &format!("--label kina.pod={pod} "),
        "--memory 256M --cpus 1 --cap-add ALL --masked-path NONE --read-only-path NONE",
        "--network default,mtu=1500 --publish 8080:80/tcp ",
        &format!("--volume {}/storage/{pod}/layers:/share/layers:ro ", place.directory.path().display()),
        &format!("--volume {}/data:/share/volumes/0 ", place.directory.path().display()),
        &format!("--publish-socket {}:/kina.sock ", place.socket(&pod).display()),
        "localhost/kina-pod:two entry --pod",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    match place.driver.attach_network(&pod).await.unwrap() {
        Attachment::Machine(network) => {
            assert_eq!(
                (network.name.as_str(), network.addresses),
                ("default", vec![[192, 168, 64, 3].into()])
            );
        }
        other => panic!("{other:?}"),
    }
    place.driver.destroy(&pod).await.unwrap();
    assert_eq!(place.left(&pod), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn volumes_lie_in_what_the_machine_was_booted_with() {
    let place = Place::new().await;
    let pod = place.started().await;
    let kind = ShareKind::Volume(ContainerId::random());
    let share = Share { source: place.at("data/file"), readonly: false, readonly_below: false, kind };
    assert_eq!(place.driver.share(&pod, &share).await.unwrap(), Path::new("/share/volumes/0/file"));
    let elsewhere = Share { source: place.at("pod.tar"), ..share.clone() };
    let error = chain(&place.driver.share(&pod, &elsewhere).await.unwrap_err());
    assert!(error.contains("pod.tar") && error.contains("machine.share_roots"), "{error}");
    let layer = Share { kind: ShareKind::Layer, ..share };
    assert_eq!(place.driver.share(&pod, &layer).await.unwrap(), Path::new("/share/layers/file"));
    assert!(place.at("storage").join(pod.as_str()).join("layers/file").exists());
}

#[tokio::test]
async fn a_machine_without_a_record_is_found_and_destroyed() {
    let place = Place::new().await;
    let (lost, booting) = (place.started().await, place.started().await);
    fs::remove_file(place.machine(&lost).join("apple.json")).unwrap();
    // The daemon was killed while Apple booted it.
    let record = place.machine(&booting).join("apple.json");
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    text["phase"] = "booting".into();
    fs::write(&record, text.to_string()).unwrap();
    let another = place.another();
    let mut found = another.list().await.unwrap();
    found.retain(|found| found.pod == lost);
    assert_eq!(found.len(), 1);
    assert_eq!(another.status(&booting).await.unwrap(), MachineState::Created);
    let before = place.pid(&booting);
    another.start(&booting).await.unwrap();
    assert_ne!(place.pid(&booting), before, "the half-made one was taken over");
    another.destroy(&lost).await.unwrap();
    another.destroy(&booting).await.unwrap();
    assert_eq!(place.containers(), 0);
    // Other daemons' machines are theirs.
    let stranger = Place::new().await;
    stranger.started().await;
    let mut config = stranger.config.clone();
    config.pods_directory = stranger.at("other-pods");
    let other = open(config).await.unwrap();
    assert_eq!(other.list().await.unwrap(), []);
}

/// Apple's service makes a machine that it was asked for, also when who has asked is gone.
#[tokio::test]
async fn a_boot_that_is_given_up_leaves_no_machine_that_is_made_later() {
    let place = Place::new().await;
    let pod = place.created().await;
    place.set("late-make", "");
    let give_up = async {
        place.wait_trap("make-waits").await;
        let make = async {
            place.wait_calls("delete", 1).await;
            place.unset("make-waits");
        };
        tokio::join!(place.driver.destroy(&pod), make).0.unwrap();
    };
    let (started, ()) = tokio::join!(place.driver.start(&pod), give_up);
    started.unwrap_err();
    place.wait_trap("make-done").await;
    assert_eq!(place.driver.list().await.unwrap(), []);
    assert_eq!(place.containers(), 0);
}

/// Nor does one that is destroyed while a list is on its way come back by it.
#[tokio::test]
async fn a_list_knows_no_machine_that_was_destroyed_meanwhile() {
    let place = Place::new().await;
    let pod = place.started().await;
    place.set("late-list", "");
    let list = async {
        let found = place.driver.list().await.unwrap();
        assert_eq!(found, []);
    };
    let destroy = async {
        place.wait_trap("list-waits").await;
        place.driver.destroy(&pod).await.unwrap();
        place.unset("list-waits");
    };
    tokio::join!(list, destroy);
    let status = place.driver.status(&pod).await;
    assert!(matches!(status, Err(Error::NotFound { .. })), "{status:?}");
}

#[tokio::test]
async fn a_damaged_record_counts_as_ended_and_is_destroyed() {
    let place = Place::new().await;
    let pod = place.started().await;
    fs::write(place.machine(&pod).join("apple.json"), "{").unwrap();
    assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Stopped);
    place.driver.stop(&pod, Duration::ZERO).await.unwrap();
    place.driver.destroy(&pod).await.unwrap();
    assert_eq!(place.containers(), 0);
}

#[tokio::test]
async fn ends_have_a_reason_and_last_words() {
    let place = Place::new().await;
    let pod = place.started().await;
    let stream = place.answered(&place.driver, &pod).await;
    place.ask_to_end(&pod, stream).await.unwrap();
    let ended = tokio::time::timeout(DEADLINE, place.driver.wait(&pod)).await.unwrap().unwrap();
    assert_eq!(ended.reason, "its guest has ended");
    assert_eq!(place.driver.wait(&pod).await.unwrap(), ended);
    place.driver.stop(&pod, Duration::ZERO).await.unwrap();
    assert_eq!(place.containers(), 0);
    let words = String::from_utf8(place.driver.console(&pod, 1000).await.unwrap()).unwrap();
    assert!(words.contains("the kernel boots") && words.contains("exit status: 0"), "{words}");
    assert_eq!(place.driver.wait(&pod).await.unwrap(), ended);
}

#[tokio::test]
async fn what_is_missing_is_named_when_the_driver_is_opened() {
    let place = Place::new().await;
    let opened = async |change: &dyn Fn(&mut AppleConfig)| {
        let mut config = place.config.clone();
        change(&mut config);
        match open(config).await {
            Ok(_) => String::new(),
            Err(unavailable) => unavailable.reason,
        }
    };
    let long = PathBuf::from(format!("/{}", "x".repeat(80)));
    for (reason, expected) in [
        (opened(&|config| config.program = "/nowhere/container".into()).await, "machine.apple.program"),
        (opened(&|config| config.image = "/nowhere/pod.tar".into()).await, "machine.apple.image"),
        (opened(&|config| config.kernel = Some("/nowhere/vmlinux".into())).await, "/nowhere/vmlinux"),
        (opened(&|config| config.socket_directory = long.clone()).await, "machine.apple.socket_directory"),
    ] {
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
    fs::write(place.at("apple/version"), "0.11.0").unwrap();
    let reason = opened(&|_| {}).await;
    assert!(reason.contains("container 0.11.0 is too old") && reason.contains("0.12.0"), "{reason}");
    fs::write(place.at("apple/version"), "1.2.0").unwrap();
    assert_eq!(opened(&|_| {}).await, "");
}
