//! Pods in machines with a kernel of their own.

use std::path::PathBuf;
use std::time::Duration;

use kina::error::Error;
use kina::runtime::Runtime;
use kina_guest_api::v1;
use kina_machine::fake::Operation;
use kina_model::{
    ContainerSpec, Device, ExitReason, Mount, MountSource, Placement, PodSpec, PodState, Propagation,
    Resources, SpecError, StopCause,
};

use crate::support::{World, container_spec, eventually, kill, pod_spec, state_of};

const MIB: u64 = 1 << 20;

fn vm_spec(name: &str) -> PodSpec {
    PodSpec { placement: Placement::Vm, handler: "vm".into(), ..pod_spec(name) }
}

fn limits(memory_mib: i64, quota: i64) -> Resources {
    Resources {
        memory_limit_bytes: Some(memory_mib << 20),
        cpu_quota_micros: Some(quota),
        ..Resources::default()
    }
}

fn mounting(paths: &[PathBuf]) -> ContainerSpec {
    let mount = |(index, path): (usize, &PathBuf)| Mount {
        container_path: format!("/m{index}"),
        source: MountSource::HostPath(path.clone()),
        readonly: index == 0,
        recursive_read_only: false,
        mapped: None,
        propagation: Propagation::Private,
        relabel: false,
        options: Vec::new(),
    };
    ContainerSpec { mounts: paths.iter().enumerate().map(mount).collect(), ..container_spec("c") }
}

/// What the kubelet mounts comes in, an emptyDir is kept inside, and the rest of
/// the node is not to be had.
#[tokio::test]
async fn volumes() {
    let world = World::new();
    let daemon = world.daemon_with_vm().await;
    let pod = daemon.run_pod(vm_spec("p")).await.unwrap();
    let kubelet = world.kubelet_pod();
    let config_map = kubelet.join("volumes/kubernetes.io~configmap/settings");
    let memory = kubelet.join("volumes/kubernetes.io~empty-dir/fast");
    let disk = kubelet.join("volumes/kubernetes.io~empty-dir/slow");
    let part = kubelet.join("volume-subpaths/slow/c/2");
    let root = world.directory.path().canonicalize().unwrap();
    let (shared, secret, link) = (root.join("shared/x"), root.join("secret"), root.join("shared/link"));
    for directory in [&config_map, &memory, &disk, &part, &shared, &secret] {
        std::fs::create_dir_all(directory).unwrap();
    }
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    world.node.mount(&memory, "tmpfs", 64 * MIB, &[]);
    world.node.mount(&part, "ext4", 0, &[&disk.join("part")]);

    let spec = mounting(&[config_map.clone(), memory, disk, part, shared.clone()]);
    let container = daemon.create_container(pod.as_str(), spec).await.unwrap();
    let request = world.guests.request(&pod, container.as_str()).unwrap();
    /// Name, bytes of memory, and the part that is mounted.
    type Volume = (String, u64, String);
    let seen: Vec<(String, Option<Volume>)> = request
        .mounts
        .into_iter()
        .map(|mount| {
            let volume = mount.volume.map(|volume| {
                assert_eq!(volume.memory, volume.memory_bytes != 0);
                assert_eq!(volume.mode, 0o755);
                (volume.name, volume.memory_bytes, volume.sub_path)
            });
            (mount.source, volume)
        })
        .collect();
    let from_node = |path: &PathBuf| (path.display().to_string(), None);
    let kept =
        |name: &str, bytes: u64, part: &str| (String::new(), Some((name.to_owned(), bytes, part.to_owned())));
    assert_eq!(
        seen,
        [
            from_node(&config_map),
            kept("fast", 64 * MIB, ""),
            kept("slow", 0, ""),
            kept("slow", 0, "part"),
            from_node(&shared),
        ]
    );
    assert!(matches!(
        request.log.and_then(|log| log.target),
        None | Some(v1::log_target::Target::Discard(_))
    ));

    let refused = async |spec: ContainerSpec| {
        let error = daemon.create_container(pod.as_str(), spec).await.unwrap_err();
        assert!(matches!(&error, Error::Spec(SpecError::Unsupported { .. } | SpecError::Invalid { .. })));
        error.to_string()
    };
    for path in [secret, link, root.join("kubelet")] {
        let spec = ContainerSpec { metadata: container_spec("d").metadata, ..mounting(&[path]) };
        let error = refused(spec).await;
        assert!(
            error.starts_with("config.mounts[0].host_path: ") && error.contains("share_roots"),
            "{error}"
        );
    }
    let device =
        Device { container_path: "/dev/x".into(), host_path: "/dev/null".into(), permissions: "rw".into() };
    let error = refused(ContainerSpec { devices: vec![device], ..container_spec("d") }).await;
    assert!(error.starts_with("config.devices[0]: "), "{error}");
    let missing = ContainerSpec { metadata: container_spec("d").metadata, ..mounting(&[root.join("none")]) };
    assert!(refused(missing).await.contains("is not there"));

    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_empty().await;
    world.assert_no_machines().await;
}

/// A pod on the node's kernel finds everything where it is.
#[tokio::test]
async fn the_nodes_own_kernel_mounts_what_is_there() {
    let world = World::new();
    let daemon = world.daemon_with_vm().await;
    let pod = daemon.run_pod(pod_spec("p")).await.unwrap();
    let spec = mounting(&[world.directory.path().to_owned()]);
    let container = daemon.create_container(pod.as_str(), spec).await.unwrap();
    let request = world.guests.request(&pod, container.as_str()).unwrap();
    assert_eq!(request.mounts[0].source, world.directory.path().display().to_string());
    assert_eq!(
        daemon.pod_info(&daemon.find_pod(pod.as_str()).unwrap())["machineSize"],
        serde_json::Value::Null
    );
    daemon.remove_pod(pod.as_str()).await.unwrap();
    assert_eq!(world.guests.shutdowns(&pod), 0);
}

/// A machine is as large as its pod, and grows only where it can.
#[tokio::test]
async fn sizes() {
    let world = World::new();
    let daemon = world.daemon_with_vm().await;
    let spec =
        PodSpec { resources: Some(limits(200, 50_000)), overhead: Some(limits(164, 10_000)), ..vm_spec("p") };
    let pod = daemon.run_pod(spec).await.unwrap();
    let size = |pod| world.vm.spec(pod).map(|spec| (spec.memory_bytes / MIB, spec.cpus));
    assert_eq!(size(&pod), Some((300, 1)));
    let info = daemon.pod_info(&daemon.find_pod(pod.as_str()).unwrap());
    assert_eq!(info["machineSize"]["memory_bytes"], 300 * MIB);
    assert_eq!(info["machine"], "fake");

    daemon.update_pod(pod.as_str(), Some(limits(100, 20_000)), None).await.unwrap();
    assert_eq!(size(&pod), Some((300, 1)), "it never shrinks");
    let error = daemon.update_pod(pod.as_str(), Some(limits(400, 20_000)), None).await.unwrap_err();
    assert!(matches!(error, Error::MachineTooSmall { .. }));
    assert!(error.to_string().contains("has a machine of 300 MiB and 1 CPU"), "{error}");

    let shared = daemon.run_pod(pod_spec("s")).await.unwrap();
    daemon.update_pod(shared.as_str(), Some(limits(400, 20_000)), None).await.unwrap();
    daemon.stop_pod(pod.as_str()).await.unwrap();
    let error = daemon.update_pod(pod.as_str(), None, None).await.unwrap_err();
    assert!(matches!(error, Error::PodState { .. }), "{error}");
}

/// Where machines can grow they do, and the daemon remembers.
#[tokio::test]
async fn a_machine_grows() {
    let mut world = World::new();
    let capabilities = kina_machine::Driver::capabilities(&world.vm).clone();
    world.vm = world.vm.with_capabilities(kina_machine::Capabilities { resize: true, ..capabilities });
    let daemon = world.daemon_with_vm().await;
    let pod = daemon.run_pod(PodSpec { resources: Some(limits(200, 50_000)), ..vm_spec("p") }).await.unwrap();
    daemon.update_pod(pod.as_str(), Some(limits(300, 50_000)), None).await.unwrap();
    assert_eq!(world.vm.spec(&pod).unwrap().memory_bytes, 348 * MIB);
    kill(daemon).await;
    let daemon = world.daemon_with_vm().await;
    let calls = world.vm.calls().len();
    daemon.update_pod(pod.as_str(), Some(limits(300, 50_000)), None).await.unwrap();
    let resized = world.vm.calls()[calls..].iter().any(|(call, _)| *call == Operation::Resize);
    assert!(!resized, "it is large enough");
}

/// What a machine can do is known to later daemons, until machines boot something else.
#[tokio::test]
async fn user_namespaces_are_offered_once_a_machine_has_had_them() {
    let mut world = World::new();
    let offered = |daemon: &Runtime| {
        let handlers = daemon.handlers();
        handlers.iter().find(|handler| handler.name == "vm").unwrap().user_namespaces
    };
    let boot = |world: &mut World, files: &str| {
        let capabilities = kina_machine::Driver::capabilities(&world.vm).clone();
        let boot_files = Some(files.to_owned());
        let vm = world.vm.clone();
        world.vm = vm.with_capabilities(kina_machine::Capabilities { boot_files, ..capabilities });
    };
    // Boot files, what a guest of theirs says, and whether they are offered before and then.
    for (files, able, before, then) in [
        ("one", false, false, false),
        ("one", true, false, true),
        ("two", true, false, true),
        ("one", true, false, true),
        ("one", false, true, false),
        ("one", false, false, false),
    ] {
        boot(&mut world, files);
        world.guests.have_user_namespaces(able);
        let daemon = world.daemon_with_vm().await;
        assert_eq!(offered(&daemon), before, "{files} {able}");
        let pod = daemon.run_pod(vm_spec("p")).await.unwrap();
        assert_eq!(offered(&daemon), then, "{files} {able}");
        // Machines of an earlier configuration do not tell.
        world.guests.have_user_namespaces(!able);
        kill(daemon).await;
        let daemon = world.daemon_with_vm().await;
        assert_eq!(offered(&daemon), then, "{files} {able}");
        daemon.remove_pod(pod.as_str()).await.unwrap();
        kill(daemon).await;
    }
}

/// What a change does not limit asks for nothing, though a new machine would be
/// larger; what it limits is as refused as ever where machines cannot grow.
#[tokio::test]
async fn what_is_not_limited_stays() {
    let world = World::new();
    let daemon = world.daemon_with_vm().await;
    let pod = daemon.run_pod(PodSpec { resources: Some(limits(100, 50_000)), ..vm_spec("p") }).await.unwrap();
    let unlimited =
        Resources { memory_limit_bytes: Some(-1), cpu_quota_micros: Some(-1), ..limits(1, 1_000) };
    for change in [
        Resources { memory_limit_bytes: None, ..limits(1, 60_000) },
        Resources { memory_limit_bytes: Some(-1), ..limits(1, 60_000) },
        unlimited,
        Resources::default(),
    ] {
        daemon.update_pod(pod.as_str(), Some(change), None).await.unwrap();
    }
    assert_eq!(world.vm.spec(&pod).unwrap().memory_bytes, 148 * MIB);
    let error = daemon.update_pod(pod.as_str(), Some(limits(200, 50_000)), None).await.unwrap_err();
    assert!(matches!(error, Error::MachineTooSmall { .. }), "{error}");
}

/// The guest is asked first; what it does about it costs bounded time.
#[tokio::test]
async fn a_stop_asks_the_guest() {
    let world = World::new();
    let daemon = world.daemon_with_vm().await;
    let pod = daemon.run_pod(vm_spec("p")).await.unwrap();
    daemon.stop_pod(pod.as_str()).await.unwrap();
    assert_eq!(world.guests.shutdowns(&pod), 1);
    world.assert_no_machines().await;

    let deaf = daemon.run_pod(vm_spec("deaf")).await.unwrap();
    world.guests.refuse("shutdown", 1);
    let stopped = daemon.stop_pod(deaf.as_str());
    tokio::time::timeout(Duration::from_secs(10), stopped).await.unwrap().unwrap();
    world.assert_no_machines().await;
}

/// Why a machine ended is what its pod and containers say.
#[tokio::test]
async fn the_reason_of_a_death_is_told() {
    const REASON: &str = "Kernel panic - not syncing";
    let world = World::new();
    for restarts in [false, true] {
        let mut daemon = world.daemon_with_vm().await;
        let pod = daemon.run_pod(vm_spec("p")).await.unwrap();
        let container = daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
        daemon.start_container(container.as_str()).await.unwrap();
        if restarts {
            kill(daemon).await;
            assert!(world.vm.kill_because(&pod, REASON));
            daemon = world.daemon_with_vm().await;
        } else {
            assert!(world.vm.kill_because(&pod, REASON));
        }
        eventually(&daemon, pod.as_str(), "the end", |view| {
            matches!(&view.state, PodState::Stopped(StopCause::MachineEnded(why)) if why.contains(REASON))
        })
        .await;
        let exit = state_of(&daemon, container.as_str()).exit().cloned().unwrap();
        assert_eq!((exit.code, exit.reason), (137, ExitReason::Unknown));
        assert!(exit.message.contains(REASON), "{}", exit.message);
        let info = daemon.pod_info(&daemon.find_pod(pod.as_str()).unwrap());
        assert!(info.to_string().contains(REASON), "{info}");
        daemon.remove_pod(pod.as_str()).await.unwrap();
        kill(daemon).await;
    }
    world.assert_no_machines().await;
}

/// Limits of a container that runs can change, on every machine.
#[tokio::test]
async fn limits_change() {
    let world = World::new();
    let daemon = world.daemon_with_vm().await;
    for spec in [vm_spec("v"), pod_spec("s")] {
        let pod = daemon.run_pod(spec).await.unwrap();
        let container = daemon.create_container(pod.as_str(), container_spec("c")).await.unwrap();
        daemon.update_container(container.as_str(), limits(100, 20_000)).await.unwrap();
        daemon.start_container(container.as_str()).await.unwrap();
        let more = Resources { memory_limit_bytes: Some(200 << 20), ..Resources::default() };
        daemon.update_container(container.as_str(), more).await.unwrap();
        let told = daemon.find_container(container.as_str()).unwrap().spec.resources.clone();
        assert_eq!(told, limits(200, 20_000));
        daemon.stop_container(container.as_str(), Duration::ZERO).await.unwrap();
        let error = daemon.update_container(container.as_str(), limits(1, 20_000)).await.unwrap_err();
        assert!(matches!(error, Error::ContainerState { .. }), "{error}");
    }
}

/// What a machine is can be asked, and what it said last stays until its pod goes.
#[tokio::test]
async fn machines_can_be_examined() {
    let world = World::new();
    let daemon = world.daemon_with_vm().await;
    let pod = daemon.run_pod(vm_spec("p")).await.unwrap();
    let machines = daemon.machines().await;
    assert_eq!(machines.len(), 1);
    assert_eq!(machines[0].state, Some(kina_machine::MachineState::Running));
    assert!(!machines[0].details.facts.is_empty());
    let (id, console) = daemon.machine_console(&pod.as_str()[..8], 10).await.unwrap();
    assert_eq!((id, console.len()), (pod.clone(), 10));

    assert!(world.vm.kill_because(&pod, "gone"));
    eventually(&daemon, pod.as_str(), "the end", |view| matches!(view.state, PodState::Stopped(_))).await;
    assert!(daemon.machines().await.is_empty());
    assert_eq!(daemon.machine(pod.as_str()).await.unwrap().state, None);
    let (_, console) = daemon.machine_console(pod.as_str(), 1000).await.unwrap();
    assert!(String::from_utf8_lossy(&console).contains("the console of"), "{console:?}");
    daemon.remove_pod(pod.as_str()).await.unwrap();
    assert!(daemon.machine_console(pod.as_str(), 10).await.is_err());
    world.assert_empty().await;
}

/// The refusal says why there are none.
#[tokio::test]
async fn no_machines() {
    let world = World::new();
    let daemon = world.daemon().await;
    let request = kina::placement::PlacementRequest { handler: "vm", ..Default::default() };
    let error = daemon.place(&request).unwrap_err().to_string();
    assert!(error.contains("none in this world"), "{error}");
    assert!(daemon.info()["vm"]["unavailable"].as_str().unwrap().contains("none in this world"));
    assert!(daemon.handlers().iter().all(|handler| handler.name != "vm"));
}
