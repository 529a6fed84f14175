//! Habits of the kubelet that a runtime has to live with: it gives calls up and
//! repeats them, asks for many things at once and in any order, and counts on
//! some that no interface says.

mod many;
mod wire;

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use kina::cri::v1;
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::harness::machine::{also_in_apple, also_in_vm};
use crate::harness::{Cri, Daemon, Options, PATIENCE, script, wait_until};
use crate::network::bridge;

const FOREVER: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done";
/// Has to be killed.
const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 0.1; done";

/// Makes a call with so little time that it is given up, and again with twice as
/// much, until it is answered. Returns how often it was given up.
async fn impatiently<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> (T, usize) {
    let mut patience = Duration::from_micros(200);
    for given_up in 0.. {
        if let Ok(answer) = timeout(patience, call()).await {
            return (answer.unwrap(), given_up);
        }
        patience *= 2;
    }
    unreachable!("there is no end of attempts")
}

/// A caller that gives up every call, and asks again, gets one pod with one
/// container through its life, without an error.
#[tokio::test]
async fn calls_given_up_and_asked_again() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let mut given_up = 0;
    for life in 0..3 {
        let config = cri.pod(&format!("p{life}"));
        let (pod, count) = impatiently(async || cri.run_pod(&config).await).await;
        given_up += count;
        let (container, count) = impatiently(async || cri.create(&pod, script("c", FOREVER)).await).await;
        given_up += count;
        given_up += impatiently(async || cri.start(&container).await).await.1;
        cri.wait_output(&container, "up").await;
        assert_eq!(cri.pods(None).await.len(), 1);
        let containers = cri.containers(None).await;
        assert_eq!(containers.len(), 1);
        assert_eq!(containers[0].id, container);
        assert_eq!(cri.sh(&container, "echo here").await, "here\n");
        given_up += impatiently(async || cri.stop(&container, 30).await).await.1;
        assert_eq!(cri.status(&container).await.unwrap().exit_code, 0);
        given_up += impatiently(async || cri.remove(&container).await).await.1;
        given_up += impatiently(async || cri.stop_pod(&pod).await).await.1;
        given_up += impatiently(async || cri.remove_pod(&pod).await).await.1;
        assert_eq!(cri.pods(None).await, []);
    }
    // Else the test did nothing.
    assert!(given_up > 10, "{given_up}");
    daemon.leave_nothing().await;
}

/// Many callers make all the calls of a few pods' lives at once, each in an order
/// of its own. Whatever they are told is one of the words for it, and the pods
/// can be made, used and removed afterwards.
#[tokio::test]
async fn calls_at_once_and_in_any_order() {
    const CALLERS: u64 = 6;
    const CALLS: usize = 60;
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let caller = async |seed: u64| {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = |below: u64| {
            // xorshift64: the same orders in each run.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..CALLS {
            let config = cri.pod(&format!("p{}", random(2)));
            // Ids as a list tells them, which may be stale when they are used.
            let pods = cri.pods(None).await;
            let containers = cri.containers(None).await;
            let any = |count: usize, number: u64| usize::try_from(number).unwrap() % count.max(1);
            let pod = pods.get(any(pods.len(), random(1000))).map_or("none", |pod| pod.id.as_str());
            let container = containers.get(any(containers.len(), random(1000)));
            let container = container.map_or("none", |container| container.id.as_str());
            let name = ["a", "b"][any(2, random(2))];
            let result = match random(9) {
                0 | 1 => cri.run_pod(&config).await.map(drop),
                2 | 3 => cri.create(pod, script(name, FOREVER)).await.map(drop),
                4 => cri.start(container).await,
                5 => cri.stop(container, 5).await,
                6 => cri.remove(container).await,
                7 => cri.stop_pod(pod).await,
                _ => cri.remove_pod(pod).await,
            };
            if let Err(status) = result {
                use Code::{Aborted, AlreadyExists, FailedPrecondition, NotFound, Unavailable};
                let known = [Aborted, AlreadyExists, FailedPrecondition, NotFound, Unavailable];
                assert!(known.contains(&status.code()), "{status}");
            }
        }
    };
    timeout(4 * PATIENCE, join_all((1..=CALLERS).map(caller))).await.expect("every call is answered");

    for name in ["p0", "p1"] {
        for pod in cri.pods(None).await {
            cri.remove_pod(&pod.id).await.unwrap();
        }
        let pod = cri.make_pod(name).await;
        let container = cri.run(&pod, script("a", FOREVER)).await;
        assert_eq!(cri.sh(&container, "echo here").await, "here\n");
    }
    daemon.leave_nothing().await;
}

/// Starting a container waits for nothing else in its pod: neither for a stop
/// that gives another time, nor for commands, nor for what the container does.
#[tokio::test]
async fn a_start_waits_for_nothing() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let stubborn = cri.run(&pod, script("stubborn", STUBBORN)).await;
    cri.wait_output(&stubborn, "up").await;
    let stop = tokio::spawn({
        let (cri, id) = (cri.clone(), stubborn.clone());
        async move { cri.stop(&id, 600).await }
    });
    let busy = cri.run(&pod, script("busy", FOREVER)).await;
    let command = tokio::spawn({
        let (cri, id) = (cri.clone(), busy.clone());
        async move { cri.exec(&id, vec!["sleep".into(), "600".into()], 0).await }
    });
    wait_until("the command to run", async || {
        cri.sh(&busy, "cat /proc/[0-9]*/comm 2>/dev/null; true").await.contains("sleep")
    })
    .await;
    // Waits for somebody that writes to its pipe, forever.
    let quick = async {
        let blocked = cri.run(&pod, script("blocked", "mkfifo /pipe; echo up; cat /pipe")).await;
        cri.wait_output(&blocked, "up").await;
        let next = cri.run(&pod, script("next", FOREVER)).await;
        assert_eq!(cri.sh(&next, "echo here").await, "here\n");
    };
    timeout(PATIENCE, quick).await.expect("nothing waits for the other calls");
    assert!(!stop.is_finished() && !command.is_finished());
    cri.remove_pod(&pod).await.unwrap();
    stop.await.unwrap().unwrap();
    // How it ends when its container is killed is not the point.
    drop(command.await.unwrap());
    daemon.leave_nothing().await;
}

/// The address of a pod, as its status tells it.
fn address(status: Option<v1::PodSandboxStatus>) -> String {
    status.and_then(|status| status.network).unwrap_or_default().ip
}

/// A kubelet tears a pod down that is ready and has no address. Whoever asks, in a
/// list, by events or after the daemon was killed, never sees such a one.
#[tokio::test]
async fn a_ready_pod_has_its_address() {
    const PODS: usize = 8;
    let options = Options { plugins: Some(bridge(false)), ..Options::default() };
    let mut daemon = Daemon::with(options).await;
    daemon.wait_network(true).await;
    let cri = daemon.cri();
    let request = v1::GetEventsRequest {};
    let mut events = cri.client.runtime.clone().get_container_events(request).await.unwrap().into_inner();
    let look = async |cri: &Cri| {
        let mut ready = BTreeSet::new();
        for pod in cri.pods(None).await {
            if pod.state() == v1::PodSandboxState::SandboxReady {
                let status = cri.pod_status(&pod.id).await.unwrap().status;
                let ip = address(status);
                assert!(!ip.is_empty(), "{pod:?}");
                ready.insert((pod.id, ip));
            }
        }
        ready
    };
    let names: Vec<String> = (0..PODS).map(|number| format!("p{number}")).collect();
    let make = join_all(names.iter().map(|name| cri.make_pod(name)));
    let watch = wait_until("all pods", async || look(&cri).await.len() == PODS);
    tokio::join!(make, watch);
    let before = look(&cri).await;
    let told = v1::ContainerEventType::ContainerStartedEvent;
    for _ in 0..2 * PODS {
        let event = timeout(PATIENCE, events.next()).await.unwrap().unwrap().unwrap();
        if event.container_event_type() == told {
            assert!(!address(event.pod_sandbox_status).is_empty());
        }
    }
    drop((events, cri));
    daemon.restart().await;
    let cri = daemon.cri();
    assert_eq!(look(&cri).await, before);
    daemon.leave_nothing().await;
}

also_in_vm! {
    calls_given_up_and_asked_again,
    a_start_waits_for_nothing,
}

also_in_apple! {
    calls_given_up_and_asked_again,
}
