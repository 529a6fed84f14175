//! What a machine with a kernel of its own does differently: control groups of
//! version 2 only, volumes inside, and nothing but the guest's streams to reach it by.

use std::time::{Duration, Instant};

use kina_guest_api::v1::attach_response::What;
use kina_guest_api::{GuestClient, MACHINE_STATE_DIRECTORY, PortForward, v1};
use kina_testkit::vm::{Config, Machine, Prerequisites};
use tokio_stream::StreamExt;

use crate::pod::{self, BOOT_PATIENCE, PATIENCE, POD, exec, run};

const MIB: u64 = 1 << 20;

fn container(diff_id: &str, id: &str, script: &str) -> v1::CreateContainerRequest {
    let mut request = pod::container(diff_id);
    id.clone_into(&mut request.id);
    request.log = None;
    request.process.as_mut().unwrap().args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    request
}

fn volume(destination: &str, volume: v1::PodVolume) -> v1::Mount {
    let volume = Some(v1::PodVolume { mode: 0o777, ..volume });
    v1::Mount { destination: destination.to_owned(), volume, ..v1::Mount::default() }
}

async fn exit_of(guest: &GuestClient, id: &str) -> v1::Exit {
    let mut events = guest.events(0).await.unwrap();
    let exit = async {
        loop {
            if let Some(v1::event::What::Exited(exited)) = events.next().await.unwrap().unwrap().what
                && exited.id == id
            {
                return exited.exit.unwrap();
            }
        }
    };
    tokio::time::timeout(PATIENCE, exit).await.unwrap()
}

/// Limits are the kernel's, they change, and what is used is told.
async fn check_limits(guest: &GuestClient, diff_id: &str) {
    let memory =
        v1::PodVolume { name: "m".to_owned(), memory: true, memory_bytes: MIB, ..Default::default() };
    let disk = v1::PodVolume { name: "d".to_owned(), ..Default::default() };
    let mut request = container(diff_id, "limited", "sleep 1000");
    request.mounts = vec![
        volume("/memory", memory),
        volume("/disk", disk.clone()),
        volume("/part", v1::PodVolume { sub_path: "a/b".to_owned(), ..disk }),
    ];
    request.resources = Some(v1::Resources {
        cpu_shares: Some(512),
        cpu_quota_micros: Some(50_000),
        cpu_period_micros: Some(100_000),
        memory_limit_bytes: Some(48 << 20),
        pids_limit: Some(20),
        ..v1::Resources::default()
    });
    run(guest, request).await;
    let control = async |file: &str| {
        let text = exec(guest, "limited", &format!("cat /sys/fs/cgroup/{file}")).await;
        text.trim().to_owned()
    };
    assert_eq!(control("memory.max").await, (48 * MIB).to_string());
    assert_eq!(control("cpu.max").await, "50000 100000");
    assert_eq!(control("pids.max").await, "20");
    assert_eq!(control("cpu.weight").await, "20");
    let resources = Some(v1::Resources {
        memory_limit_bytes: Some(64 << 20),
        cpu_quota_micros: Some(80_000),
        ..v1::Resources::default()
    });
    let update = v1::UpdateContainerRequest { id: "limited".to_owned(), resources };
    guest.update_container(update).await.unwrap();
    assert_eq!(control("memory.max").await, (64 * MIB).to_string());
    assert_eq!(control("cpu.max").await, "80000 100000");
    assert_eq!(control("pids.max").await, "20");

    let script = "echo seen > /part/file; cat /disk/a/b/file; head -c 500000 /dev/zero > /file; \
                  dd if=/dev/zero of=/memory/file bs=64k count=32 2>/dev/null || echo full";
    assert_eq!(exec(guest, "limited", script).await, "seen\nfull\n");
    let stats = guest.stats(v1::StatsRequest::default()).await.unwrap();
    let [limited] = &stats.containers[..] else { panic!("{stats:?}") };
    let usage = limited.usage.unwrap();
    assert!(usage.cpu_nanos.unwrap() > 0 && usage.memory_working_set_bytes.unwrap() > 0, "{usage:?}");
    assert_eq!((usage.memory_limit_bytes, usage.pids), (Some(64 * MIB), Some(1)));
    let layer = limited.writable_layer.unwrap();
    assert!((500_000..2_000_000).contains(&layer.used_bytes) && layer.inodes > 1, "{layer:?}");

    let mut greedy = container(diff_id, "greedy", "dd if=/dev/zero of=/dev/null bs=64M count=1");
    greedy.resources = Some(v1::Resources { memory_limit_bytes: Some(16 << 20), ..v1::Resources::default() });
    run(guest, greedy).await;
    let exit = exit_of(guest, "greedy").await;
    assert!(exit.oom_killed && exit.code == 137, "{exit:?}");
}

/// A connection to a port and an attached client, over vsock.
async fn check_streams(guest: &GuestClient, diff_id: &str) {
    let mut server = container(diff_id, "server", "cat | nc -l -p 8080; echo done");
    (server.stdin, server.stdin_once) = (true, true);
    run(guest, server).await;
    let start = v1::AttachStart {
        container_id: "server".to_owned(),
        stdin: true,
        stdout: true,
        stderr: true,
        size: None,
    };
    let mut attached = guest.attach(start).await.unwrap();
    let end = Instant::now() + PATIENCE;
    let PortForward { input, mut output } = loop {
        match guest.port_forward(8080).await {
            Ok(forward) => break forward,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
    };
    attached.input.stdin(b"from the input to the port\n").await.unwrap();
    input.send(b"and from the port to the output\n").await.unwrap();
    let heard = tokio::time::timeout(PATIENCE, output.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(heard, b"from the input to the port\n");
    input.end().await.unwrap();
    attached.input.stdin_end().await.unwrap();
    let mut said = Vec::new();
    loop {
        match tokio::time::timeout(PATIENCE, attached.responses.next()).await.unwrap().unwrap() {
            Some(What::Stdout(bytes)) => said.extend(bytes),
            Some(What::End(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(String::from_utf8(said).unwrap(), "and from the port to the output\ndone\n");
}

#[tokio::test]
async fn vm_a_pod_has_its_limits_volumes_and_streams() {
    let prerequisites = Prerequisites::find().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().join("share");
    std::fs::create_dir(&share).unwrap();
    let diff_id = pod::write_layer(&share);
    let config = Config::new(POD, share);
    let mut machine = Machine::boot(&prerequisites, &config).unwrap();
    let guest = machine.guest(BOOT_PATIENCE).await.unwrap_or_else(|error| panic!("{error:?}"));
    let state_directory = MACHINE_STATE_DIRECTORY.to_owned();
    guest.setup_pod(v1::SetupPodRequest { state_directory, ..pod::setup() }).await.unwrap();
    check_limits(&guest, &diff_id).await;
    check_streams(&guest, &diff_id).await;
    guest.shutdown(Duration::ZERO).await.unwrap();
    assert!(machine.off(PATIENCE).unwrap().success());
}
