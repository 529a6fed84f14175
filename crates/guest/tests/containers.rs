//! Containers from their creation to their end.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod support;

use kina_guest_api::{Refusal, v1};
use support::{Guest, wait_until};

#[tokio::test]
async fn a_container_runs_to_its_end_and_its_log_is_complete() {
    let guest = Guest::with_pod().await;
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo bad >&2; exit 7";
    let exit = guest.run_to_end(guest.container("c", script)).await;
    assert_eq!(exit.code, 7, "{}", guest.journal());
    assert!(!exit.oom_killed);
    // Told only once the log is there.
    let output = guest.output("c");
    assert_eq!(output.lines().filter(|line| line.starts_with("line ")).count(), 2000);
    assert!(output.lines().any(|line| line == "bad"));

    let listed = guest.client.list_containers().await.unwrap();
    assert_eq!(listed.containers[0].state(), v1::ContainerState::Exited);
    assert_eq!(listed.containers[0].exit, Some(exit));
    assert!(listed.sequence >= 1);

    // A start that is repeated succeeds; another signal does nothing.
    guest.start_container("c").await;
    guest.kill("c", 9).await;
    assert!(guest.state().join("containers/c").exists());
    guest.delete("c").await;
    guest.delete("c").await;
    assert!(!guest.state().join("containers/c").exists());
    assert!(guest.group.directories().all(|group| !group.join("c").exists()));
    assert!(guest.client.list_containers().await.unwrap().containers.is_empty());
}

#[tokio::test]
async fn signals_arrive_and_tell() {
    let guest = Guest::with_pod().await;
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    guest.run(guest.container("polite", script)).await;
    guest.wait_for_output("polite", "ready").await;
    let refused =
        guest.client.delete_container(v1::DeleteContainerRequest { id: "polite".into() }).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::WrongState));
    guest.kill("polite", 15).await;
    assert_eq!(guest.wait("polite").await.code, 3);

    guest.run(guest.container("stubborn", "sleep 1000")).await;
    let none = v1::SignalContainerRequest { id: "stubborn".into(), signal: 99, all: false };
    let refused = guest.client.signal_container(none).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::Invalid));
    let all = v1::SignalContainerRequest { id: "stubborn".into(), signal: 9, all: true };
    guest.client.signal_container(all).await.unwrap();
    assert_eq!(guest.wait("stubborn").await.code, 137);

    let unknown = v1::SignalContainerRequest { id: "nobody".into(), signal: 9, all: false };
    let refused = guest.client.signal_container(unknown).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::NotFound));
}

#[tokio::test]
async fn running_out_of_memory_is_told() {
    let guest = Guest::with_pod().await;
    let mut request = guest.container("c", "exec tail /dev/zero");
    request.resources =
        Some(v1::Resources { memory_limit_bytes: Some(32 << 20), ..v1::Resources::default() });
    let exit = guest.run_to_end(request).await;
    assert!(exit.oom_killed, "{exit:?}\n{}", guest.journal());
    assert_eq!(exit.code, 137);
}

#[tokio::test]
async fn a_container_is_who_and_where_it_was_asked_to_be() {
    let guest = Guest::with_pod().await;
    let mut request = guest
        .container("c", "id; pwd; env; cat /etc/resolv.conf; hostname; cat /etc/hostname; cat /etc/hosts");
    let process = request.process.as_mut().unwrap();
    process.user = Some(v1::User {
        who: Some(v1::user::Who::Name("web".into())),
        supplemental_groups: vec![60],
        ..v1::User::default()
    });
    process.cwd = "/made/up".into();
    process.env = vec!["A=1".into(), "A=2".into()];
    let created = guest.create(request).await;
    assert_eq!((created.uid, created.gid), (33, 34));
    assert_eq!(created.supplemental_groups, [34, 50, 60]);
    guest.start_container("c").await;
    assert_eq!(guest.wait("c").await.code, 0, "{}", guest.journal());
    let output = guest.output("c");
    for line in [
        "uid=33(web) gid=34(www) groups=34(www),50(extra),60",
        "/made/up",
        "A=2",
        "HOME=/srv",
        "HOSTNAME=testpod",
        "nameserver 192.0.2.1",
        "127.0.0.1\tlocalhost",
    ] {
        assert!(output.lines().any(|found| found == line), "{line:?} is not in\n{output}");
    }
    assert_eq!(output.lines().filter(|line| *line == "testpod").count(), 2);
}

#[tokio::test]
async fn mounts_are_the_callers() {
    let guest = Guest::with_pod().await;
    let data = guest.directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("hosts"), "from the caller\n").unwrap();
    let script = "cat /etc/hosts; echo x > /data/written || exit 1; echo x > /readonly/written && exit 2; \
                  echo x > /scratch/file || exit 3; echo x > /bin/file && exit 4; exit 0";
    let mut request = guest.container("c", script);
    let mount = |source: &std::path::Path, destination: &str, readonly| v1::Mount {
        source: source.display().to_string(),
        destination: destination.to_owned(),
        readonly,
        ..v1::Mount::default()
    };
    request.mounts = vec![
        mount(&data, "/data", false),
        mount(&data, "/readonly", true),
        mount(&data.join("hosts"), "/etc/hosts", true),
        v1::Mount {
            destination: "/scratch".into(),
            tmpfs: true,
            tmpfs_bytes: 1 << 20,
            ..v1::Mount::default()
        },
    ];
    request.rootfs.as_mut().unwrap().readonly = true;
    let exit = guest.run_to_end(request).await;
    assert_eq!(exit.code, 0, "{}{}", guest.output("c"), guest.journal());
    assert!(guest.output("c").contains("from the caller"));
    assert!(data.join("written").exists());
}

#[tokio::test]
async fn a_refused_container_leaves_nothing() {
    let guest = Guest::start().await;
    let early = guest.client.create_container(guest.container("early", "true")).await.unwrap_err();
    assert_eq!(early.refusal(), Some(Refusal::WrongState));
    guest.client.setup_pod(guest.pod()).await.unwrap();
    guest.client.setup_pod(guest.pod()).await.unwrap();
    let other = v1::SetupPodRequest { hostname: "other".into(), ..guest.pod() };
    let refused = guest.client.setup_pod(other).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::WrongState));

    let mut unknown_user = guest.container("c", "true");
    unknown_user.process.as_mut().unwrap().user =
        Some(v1::User { who: Some(v1::user::Who::Name("ghost".into())), ..v1::User::default() });
    let mut no_layers = guest.container("c", "true");
    no_layers.rootfs.as_mut().unwrap().layers.clear();
    let mut bad_id = guest.container("c", "true");
    bad_id.id = "../c".into();
    let mut bad_mount = guest.container("c", "true");
    bad_mount.mounts.push(v1::Mount {
        source: "relative".into(),
        destination: "/x".into(),
        ..v1::Mount::default()
    });
    for (request, word) in
        [(unknown_user, "ghost"), (no_layers, "layers"), (bad_id, "../c"), (bad_mount, "relative")]
    {
        let refused = guest.client.create_container(request).await.unwrap_err();
        assert_eq!(refused.refusal(), Some(Refusal::Invalid), "{refused}");
        assert!(refused.to_string().contains(word), "{refused}");
    }
    assert!(guest.group.directories().all(|group| !group.join("c").exists()));
    assert!(!guest.state().join("containers/c").exists());

    guest.create(guest.container("c", "true")).await;
    let twice = guest.client.create_container(guest.container("c", "true")).await.unwrap_err();
    assert_eq!(twice.refusal(), Some(Refusal::AlreadyExists));
    // A created one that never ran is deleted at once.
    guest.delete("c").await;
    assert!(guest.client.list_containers().await.unwrap().containers.is_empty());
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let guest = Guest::with_pod().await;
    guest.create(with_no_program(&guest)).await;
    let start = v1::StartContainerRequest { id: "c".into() };
    let refused = guest.client.start_container(start.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("/no/such/program"), "{refused}");
    assert_eq!(refused.refusal(), Some(Refusal::Invalid));
    let listed = guest.client.list_containers().await.unwrap().containers.remove(0);
    assert_eq!((listed.state(), listed.exit.unwrap().code), (v1::ContainerState::Exited, 128));
    let again = guest.client.start_container(start).await.unwrap_err();
    assert_eq!(again.refusal(), Some(Refusal::WrongState), "{again}");
    guest.delete("c").await;
}

fn with_no_program(guest: &Guest) -> v1::CreateContainerRequest {
    let mut request = guest.container("c", "");
    request.process.as_mut().unwrap().args = vec!["/no/such/program".into()];
    request
}

#[tokio::test]
async fn a_container_ends_without_a_start() {
    let guest = Guest::with_pod().await;
    let streamed = || {
        let log = v1::LogTarget { target: Some(v1::log_target::Target::Stream(v1::Empty {})) };
        v1::CreateContainerRequest { log: Some(log), ..guest.container("c", "sleep 1000") }
    };
    guest.create(streamed()).await;
    let group = guest.group.directories().next().unwrap().join("c");
    assert!(group.exists());
    let listed = guest.client.list_containers().await.unwrap().containers.remove(0);
    assert_eq!((listed.state(), listed.pid), (v1::ContainerState::Created, 0));
    guest.client.stats(v1::StatsRequest { ids: vec!["c".into()] }).await.unwrap();
    guest.delete("c").await;
    assert!(!group.exists());

    guest.create(streamed()).await;
    let mut log = guest.client.read_log("c", 0).await.unwrap();
    let no_signal = v1::SignalContainerRequest { id: "c".into(), signal: 65, all: false };
    let refused = guest.client.signal_container(no_signal).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::Invalid), "{refused}");
    guest.kill("c", 15).await;
    assert_eq!(guest.wait("c").await.code, 128 + 15);
    // Nothing was written, and nothing will be.
    let end = tokio::time::timeout(support::PATIENCE, log.next()).await;
    assert!(matches!(end, Ok(Ok(None))), "{end:?}");
    guest.kill("c", 9).await;
    guest.delete("c").await;
    assert!(guest.client.list_containers().await.unwrap().containers.is_empty());

    guest.create(streamed()).await;
    guest.client.shutdown(std::time::Duration::from_secs(10)).await.unwrap();
    support::wait_until("the group to go", || !group.exists()).await;
}

#[tokio::test]
async fn a_signal_waits_for_a_start_under_way() {
    let guest = Guest::with_pod().await;
    guest.create(guest.container("c", "sleep 1000")).await;
    // Whoever enters the group stands still.
    let path = format!("{}/c", guest.group.path());
    let group = guest.group.hierarchy().group(&path).unwrap();
    group.freeze(support::PATIENCE).unwrap();
    let thaw = async {
        support::wait_until("a process in the group", || !group.processes().unwrap().is_empty()).await;
        let kill = guest.kill("c", 9);
        let mut kill = std::pin::pin!(kill);
        // The request is on its way, and has no answer before there is a process to kill.
        assert!(futures::poll!(kill.as_mut()).is_pending());
        group.thaw().unwrap();
        kill.await;
    };
    let (started, ()) = tokio::join!(guest.start_container("c"), thaw);
    assert_ne!(started.pid, 0);
    assert_eq!(guest.wait("c").await.code, 137);
    guest.delete("c").await;
}

#[tokio::test]
async fn a_terminal_is_a_terminal() {
    let guest = Guest::with_pod().await;
    let mut request = guest.container("c", "test -t 0 && test -t 1 && echo yes $TERM");
    request.process.as_mut().unwrap().terminal = true;
    assert_eq!(guest.run_to_end(request).await.code, 0);
    assert!(guest.output("c").contains("yes xterm"), "{}", guest.output("c"));
}

#[tokio::test]
async fn a_log_file_is_opened_anew() {
    let guest = Guest::with_pod().await;
    guest
        .run(guest.container("c", "echo one; while ! test -e /go; do sleep 0.02; done; echo two; sleep 1000"))
        .await;
    guest.wait_for_output("c", "one").await;
    let rotated = guest.directory.path().join("rotated");
    std::fs::rename(guest.log("c"), &rotated).unwrap();
    guest.client.reopen_log(v1::ReopenLogRequest { id: "c".into() }).await.unwrap();
    guest.exec("c", "touch /go").await;
    guest.wait_for_output("c", "two").await;
    assert_eq!(support::contents(&std::fs::read_to_string(rotated).unwrap()), "one\n");
    assert_eq!(guest.output("c"), "two\n");
}

#[tokio::test]
async fn a_log_stream_survives_its_reader() {
    let guest = Guest::with_pod().await;
    // More than the guest keeps: the container waits for the reader.
    let script = "i=0; while [ $i -lt 9000 ]; do echo line $i of many that fill the buffer; i=$((i+1)); done";
    let mut request = guest.container("c", script);
    request.log = Some(v1::LogTarget { target: Some(v1::log_target::Target::Stream(v1::Empty {})) });
    guest.run(request).await;
    let mut all = Vec::new();
    let mut connections = 0;
    'connect: loop {
        connections += 1;
        let offset = all.len() as u64;
        let mut reader = guest.client.read_log("c", offset).await.unwrap();
        for _ in 0..2 {
            match reader.next().await.unwrap() {
                Some(piece) => {
                    assert_eq!(piece.offset, all.len() as u64);
                    all.extend(piece.records);
                    reader.acknowledger().acknowledge(all.len() as u64).await.unwrap();
                }
                None => break 'connect,
            }
        }
    }
    let text = support::contents(&String::from_utf8(all).unwrap());
    assert_eq!(text.lines().count(), 9000);
    assert!(text.lines().last().unwrap().starts_with("line 8999 "));
    assert!(connections > 2);
    guest.wait("c").await;
    guest.delete("c").await;
}

#[tokio::test]
async fn privileged_sees_the_machines_devices() {
    let guest = Guest::with_pod().await;
    let mut request = guest.container("c", "grep CapEff /proc/self/status; grep Seccomp: /proc/self/status; ls /dev; echo 1 > /sys/none; mount -t tmpfs none /tmp && echo mounted");
    request.privileged = true;
    assert_eq!(guest.run_to_end(request).await.code, 0, "{}", guest.journal());
    let output = guest.output("c");
    assert!(output.contains("mounted"), "{output}");
    assert!(output.contains("Seccomp:\t0"), "{output}");
    assert!(output.lines().any(|line| line == "loop-control"), "{output}");

    guest
        .run_to_end(guest.container(
            "d",
            "ls /dev; mount -t tmpfs none /tmp || echo refused; grep Seccomp: /proc/self/status",
        ))
        .await;
    let output = guest.output("d");
    assert!(output.contains("refused") && output.contains("Seccomp:\t2"), "{output}");
    assert!(!output.contains("loop-control"), "{output}");
}

#[tokio::test]
async fn what_a_container_leaves_running_ends_with_it() {
    let guest = Guest::start().await;
    let pod = v1::SetupPodRequest { pid: v1::NamespaceMode::Pod.into(), ..guest.pod() };
    guest.client.setup_pod(pod).await.unwrap();
    let exit = guest.run_to_end(guest.container("c", "sleep 1000 & echo started; exit 0")).await;
    assert_eq!(exit.code, 0);
    assert_eq!(guest.output("c"), "started\n");
    let group = guest.group.hierarchy().group(&format!("{}/c", guest.group.path())).unwrap();
    wait_until("an empty cgroup", || group.processes().unwrap().is_empty()).await;
}
