//! More containers than a message holds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kina::cri::v1;
use kina::pod::record::{ContainerRecord, PodRecord};
use kina_model::{ContainerId, ContainerState, PodId};
use kina_store::{Batch, Store};
use tonic::Code;

use crate::harness::{Daemon, Options, memory_kib, script};

const PODS: usize = 100;
const EACH: usize = 100;

/// What the memory of a daemon may grow by for each container that it keeps, and
/// what any number of lists of them may take beside that.
const KIB_EACH: u64 = 24;
const LIST_KIB: u64 = 160 << 10;

/// Has a stopped daemon's records changed; how long the next one takes to come up.
async fn change(daemon: &mut Daemon, change: impl FnOnce(&Store, &mut Batch)) -> Duration {
    daemon.stop().await;
    let store = Store::open(daemon.place.config().root.join("records.redb")).unwrap();
    let mut batch = Batch::new();
    change(&store, &mut batch);
    store.commit(batch).await.unwrap();
    drop(store);
    let begin = Instant::now();
    daemon.start_again(Options::default()).await;
    begin.elapsed()
}

/// Writes records of a hundred pods with a hundred ended containers each, like
/// the one pod that is there.
fn fill(store: &Store, batch: &mut Batch, pod: &str, container: &str) {
    let pod: PodRecord = store.table().get(pod).unwrap().unwrap();
    let container: ContainerRecord = store.table().get(container).unwrap().unwrap();
    assert!(matches!(container.state, ContainerState::Exited(_)), "{container:?}");
    for number in 0..PODS {
        let mut pod = PodRecord { id: PodId::random(), ..pod.clone() };
        pod.spec.metadata.name = format!("pod-{number}");
        pod.spec.metadata.uid = format!("uid-{number}");
        batch.put_new(pod.id.as_str(), &pod).unwrap();
        for number in 0..EACH {
            let mut container =
                ContainerRecord { id: ContainerId::random(), pod: pod.id.clone(), ..container.clone() };
            container.spec.metadata.name = format!("container-{number}");
            batch.put_new(container.id.as_str(), &container).unwrap();
        }
    }
}

/// Takes all records but those of that pod away. (To remove the pods one by one is
/// no part of the test, and takes a minute.)
fn empty(store: &Store, batch: &mut Batch, pod: &str) {
    for (key, record) in store.table::<ContainerRecord>().list().unwrap() {
        if record.pod.as_str() != pod {
            batch.delete::<ContainerRecord>(&key);
        }
    }
    for (key, _) in store.table::<PodRecord>().list().unwrap() {
        if key != pod {
            batch.delete::<PodRecord>(&key);
        }
    }
}

/// Ten thousand containers: a list of them does not fit the kubelet's 16 MiB and
/// says so; in pieces they all come; and neither takes memory that stays.
#[tokio::test]
async fn ten_thousand_containers() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    // Labels and annotations as the kubelet gives them, and a user's that are long.
    let mut config = script("c", "true");
    config.labels = BTreeMap::from([("io.kubernetes.container.name".to_owned(), "c".to_owned())]);
    config.annotations = BTreeMap::from([("note".to_owned(), "x".repeat(2000))]);
    let container = cri.run(&pod, config).await;
    cri.wait_exit(&container).await;
    cri.stop_pod(&pod).await.unwrap();
    drop(cri);
    let idle = memory_kib(daemon.pid(), "VmRSS");
    let started = change(&mut daemon, |store, batch| fill(store, batch, &pod, &container)).await;

    let cri = daemon.cri();
    let full = memory_kib(daemon.pid(), "VmRSS");
    let count = PODS * EACH + 1;
    let mut runtime = cri.client.runtime.clone();
    let begin = Instant::now();
    for round in 0..3 {
        let all = v1::StreamContainersRequest { filter: None };
        let mut stream = runtime.stream_containers(all).await.unwrap().into_inner();
        let (mut ids, mut pieces) = (BTreeSet::new(), 0);
        while let Some(piece) = stream.message().await.unwrap() {
            pieces += 1;
            ids.extend(piece.containers.into_iter().map(|container| container.id));
        }
        assert_eq!(ids.len(), count, "round {round}");
        assert!(pieces > 16, "{pieces}");
        // A list that is filtered fits, as does one of pods.
        let by_pod = v1::ContainerFilter { pod_sandbox_id: pod.clone(), ..v1::ContainerFilter::default() };
        assert_eq!(cri.containers(Some(by_pod)).await.len(), 1);
        assert_eq!(cri.pods(None).await.len(), PODS + 1);
        let all = v1::ListContainersRequest { filter: None };
        let refused = runtime.list_containers(all).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("StreamContainers"), "{refused}");
    }
    let listed = begin.elapsed() / 3;
    let (after, peak) = (memory_kib(daemon.pid(), "VmRSS"), memory_kib(daemon.pid(), "VmHWM"));
    println!(
        "{count} containers: found again in {started:.1?}, listed twice in {listed:.1?}\n\
         resident KiB: {idle} with one, {full} with all, {after} after lists, {peak} at most"
    );
    assert!(full < idle + KIB_EACH * u64::try_from(count).unwrap(), "{idle} {full}");
    assert!(peak < full + LIST_KIB, "{full} {peak}");
    drop((runtime, cri));
    change(&mut daemon, |store, batch| empty(store, batch, &pod)).await;
    daemon.leave_nothing().await;
}
