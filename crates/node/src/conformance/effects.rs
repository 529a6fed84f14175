use std::time::Duration;

use kina_model::PodId;

use super::{DEADLINE, Subject, contains, directory, ok, printed, refused};
use crate::{
    Account, Daemon, DaemonNetwork, Error, ExitStatus, GuestProgram, LayerImage, MAX_SOCKET_PATH,
    ProcessIdentity,
};

/// A namespace is of the pod's own, has loopback up, and stays until removed.
///
/// # Panics
/// When the node breaks the rule.
pub async fn network_namespaces_are_pinned(subject: &dyn Subject) {
    let node = subject.node();
    let pod = PodId::random();
    let other = PodId::random();
    let path = ok("create", node.create_network_namespace(&pod, None).await);
    let inside = |what: &str| format!("nsenter --net={} {what}", path.display());
    let own = printed(subject, &inside("readlink /proc/self/ns/net")).await;
    assert_ne!(own, printed(subject, "readlink /proc/self/ns/net").await, "it is the node's own");
    let routes = printed(subject, &inside("cat /proc/self/net/fib_trie")).await;
    assert!(routes.contains("127.0.0.1"), "loopback is down: {routes}");

    assert_eq!(path, ok("create again", node.create_network_namespace(&pod, None).await));
    assert_eq!(own, printed(subject, &inside("readlink /proc/self/ns/net")).await, "made anew");
    let second = ok("create another", node.create_network_namespace(&other, None).await);
    assert_ne!(path, second);

    let listed = ok("list", node.network_namespaces().await);
    assert!(contains(&listed, &pod) && contains(&listed, &other), "{listed:?}");
    ok("remove", node.remove_network_namespace(&pod).await);
    ok("remove again", node.remove_network_namespace(&pod).await);
    assert!(!ok("exists", node.exists(&path).await));
    let listed = ok("list", node.network_namespaces().await);
    assert!(!contains(&listed, &pod) && contains(&listed, &other), "{listed:?}");
    ok("remove", node.remove_network_namespace(&other).await);
}

/// A layer is mounted once however often it is asked for, read-only, and named
/// by the mount table.
///
/// # Panics
/// When the node breaks the rule.
pub async fn layers_are_mounted_once(subject: &dyn Subject) {
    let node = subject.node();
    let layer = subject.layer().await;
    ok("unmount what is not mounted", node.unmount_layer(&layer.diff_id).await);

    let (first, second, third) =
        tokio::join!(node.mount_layer(&layer), node.mount_layer(&layer), node.mount_layer(&layer));
    let path = ok("mount", first);
    assert_eq!(path, ok("mount", second));
    assert_eq!(path, ok("mount", third));
    let count = format!("grep -c ' {} ' /proc/self/mountinfo", path.display());
    assert_eq!(printed(subject, &count).await, "1", "mounts of one layer");
    assert_eq!(ok("read", node.read_file(&path.join("hello"), 100).await), b"layer\n");
    refused("write into a layer", node.write_file(&path.join("new"), b"", 0o600).await);
    assert!(ok("list", node.mounted_layers().await).contains(&layer.diff_id));

    let tail = layer.diff_id.chars().rev().collect::<String>();
    for name in ["", "sha256:", "sha256:../../../../etc", &tail] {
        let bad = LayerImage { diff_id: name.to_owned(), path: layer.path.clone() };
        match refused("a layer without a digest", node.mount_layer(&bad).await) {
            Error::LayerName { diff_id } => assert_eq!(diff_id, name),
            error => panic!("layer {name:?}: {error}"),
        }
    }
    let root = directory(subject, "layers").await;
    let bad = LayerImage { diff_id: format!("sha256:{}", "e".repeat(64)), path: root.join("image") };
    assert!(refused("a missing image", node.mount_layer(&bad).await).is_not_found());
    ok("write", node.write_file(&bad.path, &[0; 8192], 0o600).await);
    refused("an image that is none", node.mount_layer(&bad).await);
    assert!(!ok("list", node.mounted_layers().await).contains(&bad.diff_id));

    ok("unmount", node.unmount_layer(&layer.diff_id).await);
    ok("unmount again", node.unmount_layer(&layer.diff_id).await);
    assert!(!ok("exists", node.exists(&path).await));
    assert!(!ok("list", node.mounted_layers().await).contains(&layer.diff_id));
    ok("remove", node.remove_tree(&root).await);
}

/// A guest runs in its cgroup, is known by its identity, and ends with the
/// cgroup.
///
/// # Panics
/// When the node breaks the rule.
pub async fn guests_are_daemons(subject: &dyn Subject) {
    let node = subject.node();
    let root = directory(subject, "guests").await;
    let program = root.join("guest");
    let script = format!("#!/bin/sh\necho \"$@\" > {}/args\nexec sleep 1000\n", root.display());
    ok("write", node.write_file(&program, script.as_bytes(), 0o755).await);
    let pod = PodId::random();
    let cgroup = format!("{}/conformance-{pod}", subject.cgroup());
    let guest = GuestProgram {
        pod: pod.clone(),
        program,
        socket: root.join("socket"),
        log: root.join("log"),
        cgroup: cgroup.clone(),
    };
    let missing = GuestProgram { program: root.join("none"), ..guest.clone() };
    match refused("a missing guest", node.spawn_guest(&missing).await) {
        Error::Execute { path, .. } => assert_eq!(path, missing.program),
        error => panic!("a missing guest: {error}"),
    }
    let long = root.join("x".repeat(MAX_SOCKET_PATH));
    let unreachable = GuestProgram { socket: long.clone(), ..guest.clone() };
    for result in [node.spawn_guest(&unreachable).await.map(drop), node.dial(&long).await.map(drop)] {
        match refused("a long socket path", result) {
            Error::SocketPath { limit, .. } => assert_eq!(limit, MAX_SOCKET_PATH),
            error => panic!("a long socket path: {error}"),
        }
    }
    assert!(refused("dial", node.dial(&guest.socket).await).is_not_found());

    let process = ok("spawn", node.spawn_guest(&guest).await);
    assert!(ok("lives", node.process_lives(process).await));
    let another = ProcessIdentity { start_ticks: process.start_ticks + 1, ..process };
    assert!(!ok("lives", node.process_lives(another).await), "a start time is not looked at");
    ok("wait for another", node.wait_process(another).await);
    let usage = ok("usage", node.process_usage(process).await);
    assert!(usage.is_some_and(|usage| usage.memory_bytes > 0), "{usage:?}");
    assert_eq!(ok("usage", node.process_usage(another).await), None);
    let inside = ok("processes", node.cgroup_processes(&format!("{cgroup}/guest")).await);
    assert!(inside.contains(&process), "{inside:?}");
    assert!(ok("processes", node.cgroup_processes(&cgroup).await).is_empty(), "in the pod's own cgroup");
    let groups = ok("cgroups", node.cgroups(subject.cgroup(), "conformance-").await);
    assert!(groups.contains(&cgroup), "{groups:?}");

    let early = tokio::time::timeout(Duration::from_millis(50), node.wait_process(process)).await;
    assert!(early.is_err(), "waiting ends before the process");
    let args = format!("until [ -s {0}/args ]; do sleep 0.01; done; cat {0}/args", root.display());
    let expected = format!(
        "serve --pod {pod} --listen unix:{} --cgroup {cgroup} --log {}",
        guest.socket.display(),
        guest.log.display()
    );
    assert_eq!(printed(subject, &args).await, expected);

    ok("remove a cgroup in use", node.remove_idle_cgroup(&cgroup).await);
    assert!(ok("lives", node.process_lives(process).await));
    assert!(!ok("processes", node.cgroup_processes(&format!("{cgroup}/guest")).await).is_empty());

    let (killed, waited) = tokio::join!(
        node.kill_cgroup(&cgroup, DEADLINE),
        tokio::time::timeout(DEADLINE, node.wait_process(process))
    );
    ok("kill", killed);
    match waited {
        Ok(result) => ok("wait", result),
        Err(_elapsed) => panic!("waiting does not end with the process"),
    }
    assert!(!ok("lives", node.process_lives(process).await));
    ok("kill again", node.kill_cgroup(&cgroup, Duration::ZERO).await);
    ok("remove a cgroup that is gone", node.remove_idle_cgroup(&cgroup).await);
    assert!(ok("processes", node.cgroup_processes(&format!("{cgroup}/guest")).await).is_empty());
    let groups = ok("cgroups", node.cgroups(subject.cgroup(), "conformance-").await);
    assert!(!groups.contains(&cgroup), "{groups:?}");
    ok("remove", node.remove_tree(&root).await);
}

/// A daemon has the cgroup, network, user, output and environment that it was
/// given, and how it ended can be asked.
///
/// # Panics
/// When the node breaks the rule.
pub async fn daemons_get_what_they_are_given(subject: &dyn Subject) {
    let node = subject.node();
    let root = directory(subject, "daemons").await;
    let (pod, output) = (PodId::random(), root.join("output"));
    let cgroup = format!("{}/daemon-{pod}", subject.cgroup());
    let namespace = ok("create", node.create_network_namespace(&pod, None).await);
    let script = "cat /proc/self/status; echo net $(readlink /proc/self/ns/net); echo env $A; echo >&2 error; \
        echo given $1; exec sleep 1000";
    let daemon = Daemon {
        args: ["-c", script, "sh", "an argument"].map(Into::into).into(),
        env: vec![("A".to_owned(), "1 2".to_owned()), ("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        network: DaemonNetwork::Namespace(namespace.clone()),
        user: Some(Account { uid: 61_001, gid: 61_002, groups: vec![61_003, 61_004] }),
        no_new_privileges: true,
        output: Some(output.clone()),
        ..Daemon::new("/bin/sh".into(), cgroup.clone())
    };
    let process = ok("start", node.start(&daemon).await);
    let wait = format!("until grep -q given {0}; do sleep 0.01; done; cat {0}", output.display());
    let seen = printed(subject, &wait).await;
    let lines: Vec<String> = seen.lines().map(|line| line.replace('\t', " ").trim().to_owned()).collect();
    let net =
        printed(subject, &format!("nsenter --net={} readlink /proc/self/ns/net", namespace.display())).await;
    for expected in [
        "Uid: 61001 61001 61001 61001",
        "Gid: 61002 61002 61002 61002",
        "Groups: 61003 61004",
        "NoNewPrivs: 1",
        "CapEff: 0000000000000000",
        "CapBnd: 0000000000000000",
        "error",
        "env 1 2",
        "given an argument",
        &format!("net {net}"),
    ] {
        assert!(lines.iter().any(|line| line == expected), "no line {expected:?} in {seen}");
    }
    let inside = ok("processes", node.cgroup_processes(&cgroup).await);
    assert!(inside.contains(&process), "{inside:?}");
    assert_eq!(ok("kills", node.out_of_memory_kills(&cgroup).await), 0);
    ok("kill", node.kill_cgroup(&cgroup, DEADLINE).await);
    ok("wait", node.wait_process(process).await);
    assert_eq!(node.exit_status(process).await, Some(ExitStatus::Signal(9)));
    assert_eq!(ok("kills", node.out_of_memory_kills(&cgroup).await), 0);

    // Nothing but loopback.
    let alone = Daemon {
        args: ["-c".into(), "exit $(grep -c : /proc/self/net/dev)".into()].into(),
        network: DaemonNetwork::Empty,
        ..Daemon::new("/bin/sh".into(), cgroup.clone())
    };
    let process = ok("start", node.start(&alone).await);
    ok("wait", node.wait_process(process).await);
    assert_eq!(node.exit_status(process).await, Some(ExitStatus::Code(1)));
    let nobody = ProcessIdentity { start_ticks: process.start_ticks + 1, ..process };
    assert_eq!(node.exit_status(nobody).await, None);
    ok("kill", node.kill_cgroup(&cgroup, DEADLINE).await);

    // A pipe's reader is waited for, and gets all of it.
    let pipe = root.join("pipe");
    for _ in 0..2 {
        ok("make a pipe", node.create_pipe(&pipe, 0o600).await);
    }
    refused("a pipe on a file", node.create_pipe(&output, 0o600).await);
    let writer = Daemon {
        args: ["-c".into(), "echo into the pipe".into()].into(),
        output: Some(pipe.clone()),
        ..Daemon::new("/bin/sh".into(), cgroup.clone())
    };
    let cat = format!("cat {}", pipe.display());
    let (started, read) = tokio::join!(node.start(&writer), printed(subject, &cat));
    ok("start", started);
    assert_eq!(read, "into the pipe");
    ok("kill", node.kill_cgroup(&cgroup, DEADLINE).await);
    ok("remove", node.remove_network_namespace(&pod).await);
    ok("remove", node.remove_tree(&root).await);
}
