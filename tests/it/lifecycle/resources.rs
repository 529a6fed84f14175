//! Limits of containers, and what changes them.

use std::path::PathBuf;

use kina::cri::v1;
use tonic::{Code, Status};

use crate::harness::{Cri, Daemon, end, script, with_security};

const FOREVER: &str = "sleep 1000";
const MIB: i64 = 1 << 20;

fn limited(name: &str, text: &str, resources: v1::LinuxContainerResources) -> v1::ContainerConfig {
    let mut container = script(name, text);
    container.linux.get_or_insert_default().resources = Some(resources);
    container
}

async fn update(cri: &Cri, id: &str, linux: v1::LinuxContainerResources) -> Result<(), Status> {
    let container_id = id.to_owned();
    let request =
        v1::UpdateContainerResourcesRequest { container_id, linux: Some(linux), ..Default::default() };
    cri.client.runtime.clone().update_container_resources(request).await.map(|_| ())
}

/// A control of the container's own group, by its v1 name or its v2 name.
async fn control(cri: &Cri, id: &str, controller: &str, v1: &str, v2: &str) -> Option<String> {
    let pid = cri.container_pid(id).await;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |wanted: &dyn Fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            wanted(controllers).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let root = PathBuf::from("/sys/fs/cgroup");
    let file = match of(&|controllers| controllers.split(',').any(|found| found == controller)) {
        Some(path) => root.join(controller).join(path).join(v1),
        None => root.join(of(&str::is_empty)?).join(v2),
    };
    std::fs::read_to_string(file).ok().map(|text| text.trim().to_owned())
}

async fn memory(cri: &Cri, id: &str) -> Option<String> {
    control(cri, id, "memory", "memory.limit_in_bytes", "memory.max").await
}

#[tokio::test]
async fn limits_are_changed_all_or_none() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let first = v1::LinuxContainerResources {
        cpu_shares: 512,
        memory_limit_in_bytes: 64 * MIB,
        ..Default::default()
    };
    let hold = "echo up; exec tail -f /dev/null";
    let one = cri.create(&pod, limited("one", hold, first)).await.unwrap();
    // One that is made and not started can be changed, too.
    let more = v1::LinuxContainerResources { memory_limit_in_bytes: 128 * MIB, ..Default::default() };
    update(&cri, &one, more.clone()).await.unwrap();
    cri.start(&one).await.unwrap();
    cri.wait_output(&one, "up").await;
    assert_eq!(memory(&cri, &one).await.unwrap(), (128 * MIB).to_string());
    let shares = async || control(&cri, &one, "cpu", "cpu.shares", "cpu.weight").await.unwrap();
    let before = shares().await;
    let told = cri.status(&one).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!((told.cpu_shares, told.memory_limit_in_bytes), (512, 128 * MIB));

    // Processors that the machine does not have, after shares that it could give.
    let wrong = v1::LinuxContainerResources { cpu_shares: 1024, cpuset_cpus: "9999".into(), ..more };
    let refused = update(&cri, &one, wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(shares().await, before);
    assert_eq!(cri.status(&one).await.unwrap().resources.unwrap().linux.unwrap(), told);
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn a_memory_limit_is_one_of_swap_too() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let limit = |memory: i64, swap: i64| v1::LinuxContainerResources {
        memory_limit_in_bytes: memory * MIB,
        memory_swap_limit_in_bytes: swap * MIB,
        ..Default::default()
    };
    let one = cri.run(&pod, limited("one", FOREVER, limit(64, 0))).await;
    // On v1 memory and swap together, on v2 swap alone; where the kernel counts it.
    let both = async || control(&cri, &one, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max").await;
    let expected = |memory: i64, swap: i64| [((memory + swap) * MIB).to_string(), (swap * MIB).to_string()];
    for (change, memory, swap) in [
        (None, 64, 0),
        (Some(limit(256, 0)), 256, 0),
        (Some(limit(256, 300)), 256, 44),
        (Some(limit(0, 320)), 256, 64),
        (Some(limit(32, 0)), 32, 0),
    ] {
        if let Some(change) = change {
            update(&cri, &one, change).await.unwrap();
        }
        assert_eq!(self::memory(&cri, &one).await.unwrap(), (memory * MIB).to_string());
        if let Some(found) = both().await {
            assert!(expected(memory, swap).contains(&found), "{memory} {swap}: {found}");
        }
    }
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn limits_that_cannot_be_kept_are_refused() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let ask = |change: fn(&mut v1::LinuxContainerResources)| {
        let mut resources = v1::LinuxContainerResources::default();
        change(&mut resources);
        cri.create(&pod, limited("one", FOREVER, resources))
    };
    let one = ask(|limits| limits.memory_limit_in_bytes = 2000).await.unwrap();
    let little = cri.start(&one).await.unwrap_err();
    assert_eq!(little.code(), Code::InvalidArgument, "{little}");
    assert!(little.message().contains("memory limit is too low"), "{little}");
    assert_eq!(end(&cri.wait_exit(&one).await), (128, "StartError"));
    cri.remove(&one).await.unwrap();
    let absent = ask(|limits| drop(limits.unified.insert("memory.nothing".into(), "1".into())));
    let absent = absent.await.unwrap_err();
    assert_eq!(absent.code(), Code::Unimplemented, "{absent}");
    assert!(absent.message().contains("memory.nothing"), "{absent}");
    let huge = |limit| v1::HugepageLimit { page_size: "3MB".into(), limit };
    let of_no_size = limited(
        "huge",
        FOREVER,
        v1::LinuxContainerResources { hugepage_limits: vec![huge(1)], ..Default::default() },
    );
    assert_eq!(cri.create(&pod, of_no_size).await.unwrap_err().code(), Code::Unimplemented);
    // The kubelet forbids all sizes that it knows; of one that the kernel has not there is none anyway.
    let forbidden = limited(
        "none",
        FOREVER,
        v1::LinuxContainerResources { hugepage_limits: vec![huge(0)], ..Default::default() },
    );
    cri.run(&pod, forbidden).await;
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn devices_beside_those_of_a_privileged_container() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let mut config = cri.pod("p");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let pod = cri.run_pod(&config).await.unwrap();
    let device = |container_path: &str| v1::Device {
        container_path: container_path.to_owned(),
        host_path: "/dev/null".to_owned(),
        permissions: "rwm".to_owned(),
    };
    for privileged in [false, true] {
        let mut container =
            with_security(script(if privileged { "privileged" } else { "plain" }, FOREVER), |context| {
                context.privileged = privileged;
            });
        container.devices = vec![device("/dev/nothing"), device("/dev/loop-none")];
        let id = cri.run(&pod, container).await;
        let look = "for d in nothing loop-none; do test -c /dev/$d && echo x > /dev/$d && echo $d; done";
        assert_eq!(cri.sh(&id, look).await, "nothing\nloop-none\n");
    }
    daemon.leave_nothing().await;
}
