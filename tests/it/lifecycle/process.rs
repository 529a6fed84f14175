//! What a container runs, as whom, and how it ends.

use kina::cri::v1;
use kina_testkit::images::{self, File};
use serde_json::json;

use crate::harness::machine::{also_in_apple, also_in_vm};
use crate::harness::{Daemon, IMAGE, end, script, shell, wait_until, with_security};

const CONFIGURED: &str = "localhost/configured:it";

/// Busybox with an image configuration that says everything.
fn configured() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let link = |path| File { path, mode: 0o755, content: b"" };
    let files = [
        File { path: "bin/busybox", mode: 0o755, content: &busybox },
        File {
            path: "etc/passwd",
            mode: 0o644,
            content: b"root:x:0:0::/root:/bin/sh\nalice:x:1000:1001::/home/alice:/bin/sh\n",
        },
        File { path: "etc/group", mode: 0o644, content: b"root:x:0:\nstaff:x:50:alice\nalice:x:1001:\n" },
        link("bin/sh"),
        link("bin/echo"),
        link("bin/sleep"),
        link("bin/id"),
        link("bin/env"),
    ];
    let config = json!({
        "Entrypoint": ["/bin/echo", "entrypoint"],
        "Cmd": ["cmd"],
        "Env": ["PATH=/bin", "FROM=image", "ONLY=image"],
        "WorkingDir": "/etc",
        "User": "alice",
        "StopSignal": "SIGUSR1",
    });
    images::archive(CONFIGURED, &[&files], config)
}

fn of_image(name: &str, command: &[&str], args: &[&str]) -> v1::ContainerConfig {
    let mut container = script(name, "");
    container.image.as_mut().unwrap().image = CONFIGURED.to_owned();
    container.command = command.iter().map(|word| (*word).to_owned()).collect();
    container.args = args.iter().map(|word| (*word).to_owned()).collect();
    container
}

#[tokio::test]
async fn command_arguments_and_surroundings_from_image_and_configuration() {
    let mut daemon = Daemon::start().await;
    daemon.import(&configured()).await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    for (name, command, args, expected) in [
        ("neither", &[][..], &[][..], "entrypoint cmd\n"),
        ("command", &["/bin/echo", "other"][..], &[][..], "other\n"),
        ("arguments", &[][..], &["more", ""][..], "entrypoint more \n"),
        ("both", &["/bin/echo", "other"][..], &["more"][..], "other more\n"),
        ("path", &["echo", "found"][..], &[][..], "found\n"),
    ] {
        let (status, output) = cri.run_to_end(&pod, of_image(name, command, args)).await;
        assert_eq!((status.exit_code, output.as_str()), (0, expected), "{name}");
    }

    let look = "pwd; id -u; id -g; id -G; echo $FROM $ONLY $OWN $HOME";
    let (_, output) = cri.run_to_end(&pod, of_image("image", &["sh", "-c", look], &[])).await;
    assert_eq!(output, "/etc\n1000\n1001\n1001 50\nimage image /home/alice\n");

    let mut container = with_security(of_image("config", &["sh", "-c", look], &[]), |context| {
        context.run_as_user = Some(v1::Int64Value { value: 7 });
        context.run_as_group = Some(v1::Int64Value { value: 8 });
        context.supplemental_groups = vec![9, 10];
    });
    container.working_dir = "/made/for/it".to_owned();
    let variable = |key: &str, value: &str| v1::KeyValue { key: key.to_owned(), value: value.into() };
    container.envs = vec![variable("FROM", "first"), variable("OWN", "own"), variable("FROM", "config")];
    let (status, output) = cri.run_to_end(&pod, container).await;
    assert_eq!(output, "/made/for/it\n7\n8\n8 9 10\nconfig image own /\n");
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (7, 8, vec![8, 9, 10]));

    let by_name = with_security(of_image("name", &["sh", "-c", "id -u"], &[]), |context| {
        context.run_as_username = "root".to_owned();
    });
    assert_eq!(cri.run_to_end(&pod, by_name).await.1, "0\n");
    let nobody = with_security(of_image("nobody", &["id"], &[]), |context| {
        context.run_as_username = "nobody-knows".to_owned();
    });
    let refused = cri.create(&pod, nobody).await.unwrap_err();
    assert!(refused.message().contains("nobody-knows"), "{refused}");
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn exit_codes_and_their_reasons() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    for (name, text, code, reason) in [
        ("zero", "exit 0", 0, "Completed"),
        ("seven", "exit 7", 7, "Error"),
        ("most", "exit 255", 255, "Error"),
        ("child", "sh -c 'kill -ABRT $$'; exit $?", 134, "Error"),
    ] {
        let (status, _) = cri.run_to_end(&pod, script(name, text)).await;
        assert_eq!(end(&status), (code, reason), "{name}");
        assert!(
            status.created_at <= status.started_at && status.started_at <= status.finished_at,
            "{status:?}"
        );
        let again = cri.start(&status.id).await.unwrap_err();
        assert_eq!(again.code(), tonic::Code::FailedPrecondition, "{again}");
    }

    let mut missing = script("missing", "");
    missing.command = vec!["/bin/no-such-program".to_owned()];
    let error = match cri.create(&pod, missing).await {
        Err(error) => error,
        Ok(id) => {
            let error = cri.start(&id).await.unwrap_err();
            let status = cri.status(&id).await.unwrap();
            assert_eq!(end(&status), (128, "StartError"));
            assert!(status.message.contains("no-such-program"), "{status:?}");
            error
        }
    };
    assert!(error.message().contains("/bin/no-such-program"), "{error}");
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn killed_for_want_of_memory() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let limited = |name: &str, text: &str| {
        let mut container = script(name, text);
        let resources = v1::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() };
        container.linux.get_or_insert_default().resources = Some(resources);
        container
    };
    let (status, _) = cri.run_to_end(&pod, limited("itself", "exec tail /dev/zero")).await;
    assert_eq!(end(&status), (137, "OOMKilled"));
    // Its limit is its own: the next one lives.
    let (status, _) = cri.run_to_end(&pod, limited("frugal", "exit 3")).await;
    assert_eq!(end(&status), (3, "Error"));
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn a_stop_is_polite_first() {
    let mut daemon = Daemon::start().await;
    daemon.import(&configured()).await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let on = |signal: &str| format!("trap 'exit 9' {signal}; echo up; while :; do sleep 0.05; done");

    let polite = cri.run(&pod, script("polite", &on("TERM"))).await;
    cri.wait_output(&polite, "up").await;
    cri.stop(&polite, 60).await.unwrap();
    assert_eq!(end(&cri.status(&polite).await.unwrap()), (9, "Error"));

    let of_image = cri.run(&pod, of_image("image", &["sh", "-c", &on("USR1")], &[])).await;
    cri.wait_output(&of_image, "up").await;
    assert_eq!(cri.status(&of_image).await.unwrap().stop_signal(), v1::Signal::Sigusr1);
    cri.stop(&of_image, 60).await.unwrap();
    assert_eq!(cri.status(&of_image).await.unwrap().exit_code, 9);

    let mut own = self::of_image("own", &["sh", "-c", &on("INT")], &[]);
    own.stop_signal = v1::Signal::Sigint.into();
    let own = cri.run(&pod, own).await;
    cri.wait_output(&own, "up").await;
    cri.stop(&own, 60).await.unwrap();
    assert_eq!(cri.status(&own).await.unwrap().exit_code, 9);

    // The first process of a namespace ignores what it has no handler for.
    let stubborn = cri.run(&pod, script("stubborn", "echo up; exec sleep 1000")).await;
    cri.wait_output(&stubborn, "up").await;
    let begin = std::time::Instant::now();
    cri.stop(&stubborn, 1).await.unwrap();
    assert!(begin.elapsed() >= std::time::Duration::from_secs(1));
    assert_eq!(end(&cri.status(&stubborn).await.unwrap()), (137, "Error"));

    // A second stop does not send the signal again: many programs take that for a last warning.
    let count = "n=0; trap 'n=$((n+1)); echo asked $n' TERM; echo up; while :; do sleep 0.05; done";
    let counting = cri.run(&pod, script("counting", count)).await;
    cri.wait_output(&counting, "up").await;
    let again = async {
        cri.wait_output(&counting, "asked 1").await;
        cri.stop(&counting, 1).await
    };
    let (first, second) = tokio::join!(cri.stop(&counting, 600), again);
    first.unwrap();
    second.unwrap();
    let status = cri.status(&counting).await.unwrap();
    assert_eq!(end(&status), (137, "Error"));
    assert!(!std::fs::read_to_string(&status.log_path).unwrap().contains("asked 2"));

    // A second stop with less patience ends the first.
    let patient =
        cri.run(&pod, script("patient", "trap '' TERM; echo up; while :; do sleep 0.05; done")).await;
    cri.wait_output(&patient, "up").await;
    let (first, second) = tokio::join!(cri.stop(&patient, 600), cri.stop(&patient, 0));
    first.unwrap();
    second.unwrap();
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn confinement_is_the_default_one() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let look = "grep -E '^(Seccomp|CapEff|CapBnd|NoNewPrivs):' /proc/self/status";
    let (_, output) = cri.run_to_end(&pod, script("default", look)).await;
    let field = |output: &str, name: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(field(&output, "Seccomp"), "2", "{output}");
    // The fourteen capabilities of containerd's default.
    assert_eq!(field(&output, "CapEff"), "00000000a80425fb", "{output}");
    assert_eq!(field(&output, "CapBnd"), "00000000a80425fb", "{output}");
    let strict = with_security(script("strict", look), |context| {
        context.no_new_privs = true;
        context.run_as_user = Some(v1::Int64Value { value: 1000 });
        let drop_all = v1::Capability { drop_capabilities: vec!["ALL".to_owned()], ..Default::default() };
        context.capabilities = Some(drop_all);
    });
    let (_, output) = cri.run_to_end(&pod, strict).await;
    assert_eq!(field(&output, "CapEff"), "0000000000000000", "{output}");
    assert_eq!(field(&output, "NoNewPrivs"), "1", "{output}");
    daemon.leave_nothing().await;
}

/// A container's standard output may be held open by a process that outlives
/// its first one; that does not keep its end from being told.
#[tokio::test]
async fn the_end_is_told_though_a_child_lives() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let mut config = cri.pod("p");
    let options =
        v1::NamespaceOption { pid: v1::NamespaceMode::Pod.into(), ..v1::NamespaceOption::default() };
    config.linux.as_mut().unwrap().security_context = Some(v1::LinuxSandboxSecurityContext {
        namespace_options: Some(options.clone()),
        ..Default::default()
    });
    let pod = cri.run_pod(&config).await.unwrap();
    let container = with_security(script("parent", "sleep 1000 & exit 4"), |context| {
        context.namespace_options = Some(options);
    });
    assert_eq!(container.image.as_ref().unwrap().image, IMAGE);
    let idle = daemon.place.processes(&pod).len();
    let parent = cri.run(&pod, container).await;
    assert_eq!(cri.wait_exit(&parent).await.exit_code, 4);
    cri.exec(&parent, shell("true"), 1).await.unwrap_err();
    cri.remove(&parent).await.unwrap();
    wait_until("the end of its child", async || daemon.place.processes(&pod).len() == idle).await;
    daemon.leave_nothing().await;
}

also_in_vm! {
    command_arguments_and_surroundings_from_image_and_configuration,
    exit_codes_and_their_reasons,
    killed_for_want_of_memory,
    a_stop_is_polite_first,
    confinement_is_the_default_one,
}

also_in_apple! {
    command_arguments_and_surroundings_from_image_and_configuration,
    exit_codes_and_their_reasons,
    killed_for_want_of_memory,
    a_stop_is_polite_first,
    confinement_is_the_default_one,
    the_end_is_told_though_a_child_lives,
}
