//! Limits that change, and what is used.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod support;

use std::time::{Duration, SystemTime};

use kina_guest_api::{Refusal, v1};
use support::{Guest, wait_until};

const MIB: u64 = 1 << 20;

fn limits() -> v1::Resources {
    v1::Resources {
        cpu_shares: Some(512),
        cpu_quota_micros: Some(50_000),
        cpu_period_micros: Some(100_000),
        memory_limit_bytes: Some(64 << 20),
        pids_limit: Some(50),
        ..v1::Resources::default()
    }
}

/// A control of a container's cgroup, in whichever version it is.
fn control(guest: &Guest, id: &str, names: [&str; 2]) -> String {
    let mut places = guest.group.directories().flat_map(|at| names.map(|name| at.join(id).join(name)));
    let path = places.find(|path| path.exists()).unwrap_or_else(|| panic!("no {names:?}"));
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

#[tokio::test]
async fn limits_change_while_it_runs_and_what_is_unset_stays() {
    let guest = Guest::with_pod().await;
    guest
        .run(v1::CreateContainerRequest { resources: Some(limits()), ..guest.container("c", "sleep 1000") })
        .await;
    let memory = || control(&guest, "c", ["memory.limit_in_bytes", "memory.max"]);
    let pids = || control(&guest, "c", ["pids.max", "pids.max"]);
    let quota = || control(&guest, "c", ["cpu.cfs_quota_us", "cpu.max"]);
    assert_eq!((memory(), pids()), ((64 * MIB).to_string(), "50".to_owned()));
    let update = async |resources: v1::Resources| {
        let request = v1::UpdateContainerRequest { id: "c".to_owned(), resources: Some(resources) };
        guest.client.update_container(request).await.map(drop)
    };
    update(v1::Resources { memory_limit_bytes: Some(96 << 20), ..v1::Resources::default() }).await.unwrap();
    assert_eq!((memory(), pids()), ((96 * MIB).to_string(), "50".to_owned()));
    assert!(quota().starts_with("50000"), "{}", quota());
    let more = v1::Resources {
        pids_limit: Some(77),
        cpu_quota_micros: Some(70_000),
        cpu_period_micros: Some(100_000),
        ..v1::Resources::default()
    };
    update(more.clone()).await.unwrap();
    update(more).await.unwrap();
    assert_eq!((memory(), pids()), ((96 * MIB).to_string(), "77".to_owned()));
    assert!(quota().starts_with("70000"), "{}", quota());
    update(v1::Resources::default()).await.unwrap();
    // The devices that it may use have stayed what they were.
    assert_eq!(guest.exec("c", "head -c 1 /dev/zero | wc -c").await, "1\n");

    let unified = [("memory.nothing".to_owned(), "1".to_owned())].into();
    let refused = update(v1::Resources { unified, ..v1::Resources::default() }).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::Unsupported), "{refused}");
    let cpus = v1::Resources { cpuset_cpus: "4096".to_owned(), ..v1::Resources::default() };
    assert!(update(cpus).await.is_err());
    guest.kill("c", 9).await;
    guest.wait("c").await;
    assert_eq!(update(limits()).await.unwrap_err().refusal(), Some(Refusal::WrongState));
}

#[tokio::test]
async fn what_is_used_is_told() {
    let guest = Guest::with_pod().await;
    let script = "dd if=/dev/zero of=/tmp/file bs=1k count=3000 2>/dev/null; mkdir -p /tmp/a/b; \
                  sleep 1000 & while [ ! -e /tmp/stop ]; do :; done; echo stopped; wait";
    let request = guest.container("busy", script);
    guest.run(v1::CreateContainerRequest { resources: Some(limits()), ..request }).await;
    guest.run(guest.container("idle", "sleep 1000")).await;
    wait_until("some work", || {
        let group = guest.group.hierarchy().group(&format!("{}/busy", guest.group.path())).unwrap();
        group.stats().is_ok_and(|stats| stats.cpu_usage_ns.is_some_and(|used| used > 200_000_000))
    })
    .await;
    let stats = async |ids: &[&str]| {
        let ids = ids.iter().map(|&id| id.to_owned()).collect();
        guest.client.stats(v1::StatsRequest { ids }).await
    };
    let all = stats(&[]).await.unwrap();
    assert_eq!(all.containers.len(), 2);
    assert!(all.interfaces.is_empty(), "loopback only: {:?}", all.interfaces);
    let busy = all.containers.iter().find(|container| container.id == "busy").unwrap();
    let usage = busy.usage.unwrap();
    assert!(usage.cpu_nanos.unwrap() > 200_000_000, "{usage:?}");
    assert!(usage.memory_bytes.unwrap() > 0 && usage.memory_working_set_bytes.unwrap() > 0, "{usage:?}");
    assert!(usage.memory_rss_bytes.is_some() && usage.page_faults.unwrap() > 0, "{usage:?}");
    assert_eq!(usage.memory_limit_bytes, Some(64 * MIB));
    assert_eq!((usage.pids, usage.pids_limit), (Some(2), Some(50)));
    assert_eq!(usage.oom_kills, Some(0));
    assert!(usage.memory_kernel_bytes.is_some(), "{usage:?}");
    assert!(usage.memory_peak_bytes >= usage.memory_rss_bytes, "{usage:?}");
    let count = busy.processes.unwrap();
    // Each has its input, output and errors, and a shell's own.
    assert_eq!((count.processes, count.sockets), (2, 0), "{count:?}");
    assert!((6..20).contains(&count.descriptors), "{count:?}");
    assert!(usage.cpu_periods.unwrap() > 0, "{usage:?}");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let age = now - Duration::from_nanos(u64::try_from(usage.timestamp_nanos).unwrap());
    assert!(age < support::PATIENCE, "{age:?}");
    let layer = busy.writable_layer.unwrap();
    assert!((3_000_000..4_000_000).contains(&layer.used_bytes), "{layer:?}");
    // At least its root, tmp, the file, a and b; and what mounts made places for.
    assert!(layer.inodes >= 5 && !layer.incomplete, "{layer:?}");
    assert!(layer.filesystem_bytes.unwrap() > layer.used_bytes, "{layer:?}");
    let pod = all.pod.unwrap();
    assert!(pod.cpu_nanos.unwrap() >= usage.cpu_nanos.unwrap(), "{pod:?}");
    assert!(pod.pids.unwrap() >= 3, "{pod:?}");
    if guest.group.unified_directory().is_some_and(|at| at.join("cpu.pressure").exists()) {
        assert!(pod.cpu_pressure.unwrap().some.is_some());
    }

    let one = stats(&["idle"]).await.unwrap();
    assert_eq!(one.containers.len(), 1);
    assert_eq!(stats(&["nobody"]).await.unwrap_err().refusal(), Some(Refusal::NotFound));
    guest.exec("busy", "touch /tmp/stop").await;
    guest.wait_for_output("busy", "stopped").await;
    guest.kill("busy", 9).await;
    guest.wait("busy").await;
    assert_eq!(stats(&["busy"]).await.unwrap().containers.len(), 1);
    guest.delete("busy").await;
    assert_eq!(stats(&[]).await.unwrap().containers.len(), 1);
}
