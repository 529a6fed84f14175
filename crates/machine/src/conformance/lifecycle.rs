use std::path::Path;
use std::time::Duration;

use kina_model::ContainerId;
use tokio::time::Instant;

use super::{Case, Subject, assert_wrong_state, chain};
use crate::{Attachment, Error, MachineState, NetworkAttachment, Share, ShareKind, Shares};

/// Create, start, connect, stop, destroy, with the state seen after each.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn life_in_order(subject: &dyn Subject) {
    let case = Case::new(subject);
    case.assert_unknown().await;
    case.create().await;
    case.assert_state(MachineState::Created).await;
    case.ok("start", case.driver.start(&case.pod)).await;
    case.assert_state(MachineState::Running).await;
    drop(case.answered().await);
    case.stop().await;
    case.assert_state(MachineState::Stopped).await;
    case.assert_not_connectable().await;
    case.destroy().await;
}

/// Every step twice: the second changes nothing.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn steps_repeat(subject: &dyn Subject) {
    let case = Case::new(subject);
    case.create().await;
    case.create().await;
    case.assert_state(MachineState::Created).await;
    case.ok("start", case.driver.start(&case.pod)).await;
    let mut before = case.answered().await;
    case.ok("a second start", case.driver.start(&case.pod)).await;
    // The same guest still holds the stream.
    if let Err(error) = case.within("the guest's answer", subject.probe(&mut *before)).await {
        panic!("a second start breaks a stream: {error}");
    }
    case.stop().await;
    case.stop().await;
    case.assert_state(MachineState::Stopped).await;
    case.destroy().await;
    case.destroy().await;
}

/// What does not fit the state is refused with the documented error, and a pod
/// id is as good as new after destroy.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn out_of_order_is_refused(subject: &dyn Subject) {
    let case = Case::new(subject);
    let Case { driver, pod, .. } = &case;
    let share = subject.share();
    case.assert_not_found("start", case.within("start", driver.start(pod)).await);
    case.assert_not_found("wait", case.within("wait", driver.wait(pod)).await);
    case.assert_not_found("connect", case.within("connect", driver.connect(pod)).await);
    case.assert_not_found("share", case.within("share", driver.share(pod, &share)).await);
    case.assert_not_found("overhead", case.within("overhead", driver.overhead(pod)).await);
    case.assert_not_found("console", case.within("console", driver.console(pod, 10)).await);
    case.assert_not_found("inspect", case.within("inspect", driver.inspect(pod)).await);
    case.stop().await;
    case.destroy().await;

    case.create().await;
    case.assert_not_connectable().await;
    assert_wrong_state("wait for a created machine", case.within("wait", driver.wait(pod)).await);

    case.ok("start", driver.start(pod)).await;
    let spec = subject.spec(pod).await;
    assert_wrong_state("create of a running machine", case.within("create", driver.create(&spec)).await);

    case.stop().await;
    assert_wrong_state("start of a stopped machine", case.within("start", driver.start(pod)).await);
    assert_wrong_state("create of a stopped machine", case.within("create", driver.create(&spec)).await);
    case.assert_state(MachineState::Stopped).await;

    case.destroy().await;
    case.create_and_start().await;
    drop(case.answered().await);
    case.destroy().await;
}

/// Destroy of a created, a running and a stopped machine.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn destroy_works_from_every_state(subject: &dyn Subject) {
    let created = Case::new(subject);
    created.create().await;
    created.destroy().await;

    let running = Case::new(subject);
    running.create_and_start().await;
    drop(running.answered().await);
    running.destroy().await;

    let booting = Case::new(subject);
    booting.create_and_start().await;
    booting.destroy().await;

    let stopped = Case::new(subject);
    stopped.create_and_start().await;
    stopped.stop().await;
    stopped.destroy().await;
}

/// Stop outranks start.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn a_created_machine_can_be_stopped(subject: &dyn Subject) {
    let case = Case::new(subject);
    case.create().await;
    case.stop().await;
    case.assert_state(MachineState::Stopped).await;
    assert_wrong_state("start after stop", case.within("start", case.driver.start(&case.pod)).await);
    case.destroy().await;
}

/// A guest that does not end by itself has its grace and then ends.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn stop_ends_a_guest_that_ignores_it(subject: &dyn Subject) {
    let case = Case::new(subject);
    case.create_and_start().await;
    drop(case.answered().await);
    let grace = Duration::from_millis(200);
    let begin = Instant::now();
    case.ok("stop", case.driver.stop(&case.pod, grace)).await;
    assert!(begin.elapsed() >= grace, "the guest had {:?} of its grace", begin.elapsed());
    case.assert_state(MachineState::Stopped).await;
    case.assert_not_connectable().await;
    case.destroy().await;
}

/// Stop returns as soon as the guest has ended, however long the grace is.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn a_graceful_end_is_not_waited_out(subject: &dyn Subject) {
    let case = Case::new(subject);
    case.create_and_start().await;
    let stream = case.answered().await;
    if let Err(error) = case.within("ask to end", subject.ask_to_end(&case.pod, stream)).await {
        panic!("the guest cannot be asked to end: {error}");
    }
    let grace = subject.deadline() * 4;
    case.ok("stop with a long grace", case.driver.stop(&case.pod, grace)).await;
    case.assert_state(MachineState::Stopped).await;
    case.destroy().await;
}

/// Wait lasts as long as the machine runs, for each that waits.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn wait_ends_with_the_machine(subject: &dyn Subject) {
    let case = Case::new(subject);
    case.create_and_start().await;
    drop(case.answered().await);
    let mut waits = Vec::new();
    for _ in 0..2 {
        let (driver, pod) = (case.driver.clone(), case.pod.clone());
        waits.push(tokio::spawn(async move { driver.wait(&pod).await }));
    }
    let dropped = tokio::time::timeout(Duration::from_millis(50), case.driver.wait(&case.pod)).await;
    assert!(dropped.is_err(), "wait returns while the machine runs");
    assert!(waits.iter().all(|wait| !wait.is_finished()), "wait returns while the machine runs");
    subject.crash(&case.pod).await;
    for wait in waits {
        match case.within("wait after a crash", wait).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => panic!("wait: {}", chain(&error)),
            Err(error) => panic!("wait: {error}"),
        }
    }
    case.assert_state(MachineState::Stopped).await;
    case.ok("wait for an ended machine", case.driver.wait(&case.pod)).await;
    case.assert_not_connectable().await;
    assert_wrong_state("start after a crash", case.within("start", case.driver.start(&case.pod)).await);
    case.stop().await;
    case.destroy().await;
}

/// Shares, network, size and overhead are as the capabilities promise.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn answers_match_capabilities(subject: &dyn Subject) {
    let case = Case::new(subject);
    let Case { driver, pod, .. } = &case;
    let capabilities = driver.capabilities().clone();
    assert!(!driver.name().is_empty());
    case.create().await;

    let share = subject.share();
    let before = case.ok("share before start", driver.share(pod, &share)).await;
    assert!(before.is_absolute(), "the guest's path {} is relative", before.display());
    let again = case.ok("share twice", driver.share(pod, &share)).await;
    assert_eq!(before, again, "the same share is in two places");
    let missing = Share {
        source: Path::new("/kina/does/not/exist").to_owned(),
        readonly: true,
        readonly_below: true,
        kind: share.kind.clone(),
    };
    match case.within("share", driver.share(pod, &missing)).await {
        Err(Error::Share { path, .. }) => assert_eq!(path, missing.source),
        Err(error) => panic!("share of a missing path fails as {}", chain(&error)),
        Ok(path) => panic!("a missing path is shared as {}", path.display()),
    }

    case.ok("start", driver.start(pod)).await;
    drop(case.answered().await);
    let network = subject.spec(pod).await.network;
    let attached = case.ok("attach network", driver.attach_network(pod)).await;
    match (&attached, network, capabilities.network) {
        (Attachment::Namespace(path), Some(network), NetworkAttachment::Netns) => {
            assert_eq!(*path, network.namespace);
        }
        (
            Attachment::Interface(interface),
            Some(network),
            NetworkAttachment::Tap | NetworkAttachment::Tunnel,
        ) => {
            assert_eq!(Some(&interface.name), network.interface.as_ref());
        }
        (Attachment::Machine(own), None, NetworkAttachment::Machine) => {
            assert!(!own.addresses.is_empty(), "a network of its own without an address");
        }
        (Attachment::Loopback, network, _) => {
            assert!(network.is_none_or(|network| network.interface.is_none()), "the network is left out");
        }
        (attached, network, capability) => panic!("{attached:?} of {network:?} for {capability:?}"),
    }
    let again = case.ok("attach network twice", driver.attach_network(pod)).await;
    assert_eq!(attached, again);
    if capabilities.shares == Shares::Dynamic {
        let running = case.ok("share with a running machine", driver.share(pod, &share)).await;
        assert_eq!(before, running);
    }
    let resized = case.within("resize", driver.resize(pod, 512 << 20, 1)).await;
    match resized {
        Ok(()) => assert!(capabilities.resize, "resize succeeds without the capability"),
        Err(Error::Unsupported { .. }) => assert!(!capabilities.resize, "resize is unsupported"),
        Err(error) => panic!("resize: {}", chain(&error)),
    }
    let container = ContainerId::random();
    let volume = Share { kind: ShareKind::Volume(container.clone()), ..share };
    let path = case.ok("share a volume", driver.share(pod, &volume)).await;
    assert_eq!(path, case.ok("share a volume twice", driver.share(pod, &volume)).await);
    for time in ["unshare", "unshare twice"] {
        case.ok(time, driver.unshare(pod, &container)).await;
    }
    let overhead = case.ok("overhead", driver.overhead(pod)).await;
    assert!(overhead.memory_bytes > 0, "a running machine without memory");
    let console = case.ok("console", driver.console(pod, 10)).await;
    assert!(console.len() <= 10, "{} bytes of the last 10", console.len());
    let details = case.ok("inspect", driver.inspect(pod)).await;
    assert!(!details.facts.is_empty(), "nothing to say of a machine");
    case.stop().await;
    let overhead = case.ok("overhead of a stopped machine", driver.overhead(pod)).await;
    assert_eq!(overhead.memory_bytes, 0, "a stopped machine holds memory");
    case.ok("console of a stopped machine", driver.console(pod, 10)).await;
    let details = case.ok("inspect a stopped machine", driver.inspect(pod)).await;
    assert_eq!(details.processes, [], "a stopped machine has processes");
    case.destroy().await;
}
