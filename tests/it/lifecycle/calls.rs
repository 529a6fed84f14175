//! The calls themselves: versions, lists, repetitions, mistakes.

use kina::cri::v1;
use tonic::{Code, Request};

use crate::harness::machine::{self, also_in_apple, also_in_vm};
use crate::harness::{Daemon, Options, handler, labels, script, wait_until};

const FOREVER: &str = "sleep 1000";

#[tokio::test]
async fn the_daemon_says_what_it_is() {
    let mut daemon = Daemon::start().await;
    let mut runtime = daemon.cri().client.runtime;
    let version =
        runtime.version(v1::VersionRequest { version: "v1".to_owned() }).await.unwrap().into_inner();
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("kina", "v1"));
    assert_eq!(version.version, "0.1.0");
    assert!(!version.runtime_version.is_empty());

    let status = runtime.status(v1::StatusRequest { verbose: true }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    let kinds: Vec<&str> = conditions.iter().map(|condition| condition.r#type.as_str()).collect();
    assert_eq!(kinds, ["RuntimeReady", "NetworkReady"]);
    assert!(conditions[0].status);
    assert!(status.runtime_handlers.iter().any(|found| found.name == handler()));
    let info: serde_json::Value = serde_json::from_str(&status.info["kina"]).unwrap();
    assert_eq!(info["root"], daemon.place.config().root.to_str().unwrap());
    let brief = runtime.status(v1::StatusRequest { verbose: false }).await.unwrap().into_inner();
    assert!(brief.info.is_empty());

    let config = runtime.runtime_config(v1::RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(config.linux.unwrap().cgroup_driver(), v1::CgroupDriver::Cgroupfs);
    let cidr = |cidr: &str| v1::UpdateRuntimeConfigRequest {
        runtime_config: Some(v1::RuntimeConfig {
            network_config: Some(v1::NetworkConfig { pod_cidr: cidr.to_owned() }),
        }),
    };
    runtime.update_runtime_config(cidr("10.244.0.0/24,fd00::/64")).await.unwrap();
    let bad = runtime.update_runtime_config(cidr("10.244.0.0")).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    drop(runtime);
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn calls_that_are_missing_say_so_by_name() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    /// Calls each with an empty request.
    macro_rules! unimplemented {
        ($client:expr; $($method:ident $name:literal)*) => {$(
            let status = $client.$method(Request::new(Default::default())).await.err().unwrap();
            assert_eq!(status.code(), Code::Unimplemented, "{status}");
            assert!(status.message().contains($name), "{status}");
        )*};
    }
    let mut runtime = cri.client.runtime.clone();
    unimplemented!(runtime;
        checkpoint_container "CheckpointContainer"
        checkpoint_pod "CheckpointPod"
        restore_pod "RestorePod");
    drop((runtime, cri));
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn lists_are_filtered() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let mut pods = Vec::new();
    for (name, tier) in [("a", "front"), ("b", "back")] {
        let mut config = cri.pod(name);
        config.labels = labels(&[("app", "shop"), ("tier", tier)]);
        config.annotations = labels(&[("note", name)]);
        pods.push(cri.run_pod(&config).await.unwrap());
    }
    cri.stop_pod(&pods[1]).await.unwrap();
    let names = async |filter: v1::PodSandboxFilter| {
        let found = cri.pods(Some(filter)).await;
        let mut names: Vec<String> =
            found.iter().map(|pod| pod.metadata.as_ref().unwrap().name.clone()).collect();
        names.sort();
        names.concat()
    };
    let filter = v1::PodSandboxFilter::default;
    assert_eq!(names(filter()).await, "ab");
    assert_eq!(names(v1::PodSandboxFilter { id: pods[0].clone(), ..filter() }).await, "a");
    assert_eq!(names(v1::PodSandboxFilter { id: pods[0][..12].to_owned(), ..filter() }).await, "a");
    assert_eq!(names(v1::PodSandboxFilter { id: "nobody".to_owned(), ..filter() }).await, "");
    let state = |state: v1::PodSandboxState| Some(v1::PodSandboxStateValue { state: state.into() });
    let ready = v1::PodSandboxFilter { state: state(v1::PodSandboxState::SandboxReady), ..filter() };
    assert_eq!(names(ready).await, "a");
    let not_ready = v1::PodSandboxFilter { state: state(v1::PodSandboxState::SandboxNotready), ..filter() };
    assert_eq!(names(not_ready).await, "b");
    for (selector, expected) in [
        (labels(&[("app", "shop")]), "ab"),
        (labels(&[("app", "shop"), ("tier", "back")]), "b"),
        (labels(&[("app", "other")]), ""),
        (labels(&[("missing", "")]), ""),
    ] {
        assert_eq!(names(v1::PodSandboxFilter { label_selector: selector, ..filter() }).await, expected);
    }
    let listed = cri.pods(None).await;
    let one = listed.iter().find(|pod| pod.id == pods[0]).unwrap();
    assert_eq!(one.annotations, labels(&[("note", "a")]));
    assert_eq!(one.runtime_handler, handler());

    let mut labelled = script("one", FOREVER);
    labelled.labels = labels(&[("role", "main")]);
    let one = cri.run(&pods[0], labelled).await;
    let two = cri.create(&pods[0], script("two", FOREVER)).await.unwrap();
    let found = async |filter: v1::ContainerFilter| -> Vec<String> {
        cri.containers(Some(filter)).await.into_iter().map(|container| container.id).collect()
    };
    let filter = v1::ContainerFilter::default;
    assert_eq!(found(filter()).await.len(), 2);
    let by_pod = |pod: &str| v1::ContainerFilter { pod_sandbox_id: pod.to_owned(), ..filter() };
    assert_eq!(found(by_pod(&pods[0])).await.len(), 2);
    assert_eq!(found(by_pod(&pods[1])).await.len(), 0);
    let running = Some(v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() });
    assert_eq!(found(v1::ContainerFilter { state: running, ..filter() }).await, std::slice::from_ref(&one));
    let created = Some(v1::ContainerStateValue { state: v1::ContainerState::ContainerCreated.into() });
    assert_eq!(found(v1::ContainerFilter { state: created, ..filter() }).await, std::slice::from_ref(&two));
    let role = v1::ContainerFilter { label_selector: labels(&[("role", "main")]), ..filter() };
    assert_eq!(found(role).await, std::slice::from_ref(&one));
    assert_eq!(found(v1::ContainerFilter { id: two[..13].to_owned(), ..filter() }).await, [two]);
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn every_call_may_be_repeated() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let config = cri.pod("p");
    let (one, two) = tokio::join!(cri.run_pod(&config), cri.run_pod(&config));
    let pod = one.unwrap();
    assert_eq!(pod, two.unwrap());
    assert_eq!(cri.run_pod(&config).await.unwrap(), pod);
    let mut other = config.clone();
    other.hostname = "other".to_owned();
    assert_eq!(cri.run_pod(&other).await.unwrap_err().code(), Code::AlreadyExists);

    let container = script("one", FOREVER);
    let (one, two) = tokio::join!(cri.create(&pod, container.clone()), cri.create(&pod, container.clone()));
    let one = one.unwrap();
    assert_eq!(one, two.unwrap());
    assert_eq!(cri.create(&pod, container.clone()).await.unwrap(), one);
    assert_eq!(cri.containers(None).await.len(), 1);
    let differs = cri.create(&pod, script("one", "true")).await.unwrap_err();
    assert_eq!(differs.code(), Code::AlreadyExists);
    let (first, second) = tokio::join!(cri.start(&one), cri.start(&one));
    first.unwrap();
    second.unwrap();
    cri.start(&one).await.unwrap();
    assert_eq!(cri.create(&pod, container.clone()).await.unwrap_err().code(), Code::AlreadyExists);
    let (first, second) = tokio::join!(cri.stop(&one, 0), cri.stop(&one, 0));
    first.unwrap();
    second.unwrap();
    cri.stop(&one, 0).await.unwrap();
    let (first, second) = tokio::join!(cri.remove(&one), cri.remove(&one));
    first.unwrap();
    second.unwrap();
    cri.remove(&one).await.unwrap();
    cri.stop(&one, 0).await.unwrap();
    // Its name is free again; and one that runs is removed all the same.
    let again = cri.run(&pod, container).await;
    assert_ne!(again, one);
    cri.remove(&again).await.unwrap();

    // A stop that waits for a container ends when the pod does.
    let patient =
        cri.run(&pod, script("patient", "trap '' TERM; echo up; while :; do sleep 0.1; done")).await;
    cri.wait_output(&patient, "up").await;
    let (waits, first, second) =
        tokio::join!(cri.stop(&patient, 600), cri.stop_pod(&pod), cri.stop_pod(&pod));
    waits.unwrap();
    first.unwrap();
    second.unwrap();
    cri.stop_pod(&pod).await.unwrap();
    assert_eq!(cri.run_pod(&config).await.unwrap_err().code(), Code::AlreadyExists);
    let (first, second) = tokio::join!(cri.remove_pod(&pod), cri.remove_pod(&pod));
    first.unwrap();
    second.unwrap();
    cri.remove_pod(&pod).await.unwrap();
    cri.stop_pod(&pod).await.unwrap();
    let next = cri.run_pod(&config).await.unwrap();
    assert_ne!(next, pod);

    // Nor is there an error in who asks while it is removed, or for its name.
    let patient =
        cri.run(&next, script("patient", "trap '' TERM; echo up; while :; do sleep 0.1; done")).await;
    cri.wait_output(&patient, "up").await;
    let (waits, removed, again) =
        tokio::join!(cri.stop(&patient, 600), cri.remove_pod(&next), cri.remove_pod(&next));
    for result in [waits, removed, again] {
        result.unwrap();
    }
    let next = cri.run_pod(&config).await.unwrap();
    let (removed, again) = tokio::join!(cri.remove_pod(&next), async {
        wait_until("the removal to begin", async || match cri.pod_status(&next).await {
            Ok(status) => status.status.unwrap().state() == v1::PodSandboxState::SandboxNotready,
            Err(_) => true,
        })
        .await;
        cri.run_pod(&config).await
    });
    removed.unwrap();
    let pod = again.unwrap();
    assert_ne!(pod, next);
    let container = script("one", FOREVER);
    let one = cri.run(&pod, container.clone()).await;
    let (removed, made) = tokio::join!(cri.remove(&one), async {
        wait_until("the removal to begin", async || match cri.status(&one).await {
            Ok(status) => status.state() == v1::ContainerState::ContainerExited,
            Err(_) => true,
        })
        .await;
        cri.create(&pod, container).await
    });
    removed.unwrap();
    // If its end was seen before its removal began, the name was still taken.
    if let Err(taken) = made {
        assert_eq!(taken.code(), Code::AlreadyExists);
    }
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn ids_that_are_unknown_or_ambiguous() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let unknown = "0123456789abcdef0123456789abcdef";
    assert_eq!(cri.pod_status(unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(cri.status(unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(cri.start(unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(cri.reopen_log(unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(cri.create(unknown, script("one", FOREVER)).await.unwrap_err().code(), Code::NotFound);
    for result in [
        cri.stop(unknown, 1).await,
        cri.remove(unknown).await,
        cri.stop_pod(unknown).await,
        cri.remove_pod(unknown).await,
    ] {
        result.unwrap();
    }

    // Sixteen digits: of seventeen pods two begin with the same.
    let mut pods = Vec::new();
    for number in 0..17 {
        pods.push(cri.make_pod(&format!("p{number}")).await);
    }
    let first = |pod: &String| pod[..1].to_owned();
    let shared =
        pods.iter().map(first).find(|digit| pods.iter().map(first).filter(|of| of == digit).count() > 1);
    let ambiguous = shared.unwrap();
    assert_eq!(cri.pod_status(&ambiguous).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(cri.stop_pod(&ambiguous).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(cri.remove_pod(&ambiguous).await.unwrap_err().code(), Code::InvalidArgument);
    // No id at all is no beginning of one.
    for result in
        [cri.stop_pod("").await, cri.remove_pod("").await, cri.stop("", 0).await, cri.remove("").await]
    {
        result.unwrap();
    }
    assert_eq!(cri.pod_status("").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(cri.status("").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(cri.pods(None).await.len(), 17);
    assert!(cri.is_ready(&pods[3]).await && cri.is_ready(&pods[3][..20]).await);
    let one = cri.run(&pods[0], script("one", FOREVER)).await;
    assert_eq!(cri.status(&one[..9]).await.unwrap().id, one);
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn what_cannot_be_made_leaves_nothing() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    // The guest has made a part of it when it finds that out.
    let mut missing = script("missing", "");
    missing.command = vec!["/bin/no-such-program".to_owned()];
    let mut no_device = script("no-device", FOREVER);
    no_device.devices = vec![v1::Device {
        container_path: "/dev/x".to_owned(),
        host_path: "/dev/no-such-device".to_owned(),
        permissions: "rwm".to_owned(),
    }];
    let mut no_image = script("no-image", FOREVER);
    no_image.image.as_mut().unwrap().image = "localhost/no-such-image:1".to_owned();
    let mut no_directory = script("no-directory", FOREVER);
    no_directory.working_dir = "/bin/sh".to_owned();
    let before = daemon.place.processes(&pod).len();
    for config in [missing, no_device, no_image, no_directory] {
        let name = config.metadata.as_ref().unwrap().name.clone();
        if let Ok(id) = cri.create(&pod, config).await {
            cri.start(&id).await.expect_err(&name);
            cri.remove(&id).await.unwrap();
        }
        wait_until("it to be gone", async || cri.containers(None).await.is_empty()).await;
    }
    assert_eq!(daemon.place.processes(&pod).len(), before);
    let layers = daemon.place.config().run.join("layers");
    wait_until("no layer to be mounted", async || {
        let traces = daemon.place.traces(Some(daemon.pid()));
        !traces
            .iter()
            .any(|trace| matches!(trace, kina::traces::Trace::Mount(path) if path.starts_with(&layers)))
    })
    .await;
    cri.remove_pod(&pod).await.unwrap();

    if machine::is_apple() {
        // There it is a part of the machine's image, and the driver's tests see to it.
        drop(cri);
        return daemon.leave_nothing().await;
    }
    // A guest that ends at once, or is no program at all.
    daemon.stop().await;
    for guest in ["/bin/false", "/etc/passwd", "/no/such/guest"] {
        daemon.start_again(Options { guest: Some(guest.into()), ..Options::default() }).await;
        let cri = daemon.cri();
        let begin = std::time::Instant::now();
        let error = cri.run_pod(&cri.pod("p")).await.unwrap_err();
        println!("{guest}: {error} after {:?}", begin.elapsed());
        assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{error}");
        assert_eq!(cri.pods(None).await, []);
        drop(cri);
        daemon.leave_nothing().await;
    }
}

also_in_vm! {
    every_call_may_be_repeated,
    what_cannot_be_made_leaves_nothing,
}

also_in_apple! {
    every_call_may_be_repeated,
    what_cannot_be_made_leaves_nothing,
}
