//! SELinux: a machine whose kernel is told to have it, and a policy that a privileged
//! container loads. There is nothing else in a machine that would.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kina_guest_api::{GuestClient, GuestError, Refusal, v1};
use kina_testkit::vm::{Config, Machine, Prerequisites, SHARE_IN_GUEST};

use crate::pod::{self, BOOT_PATIENCE, PATIENCE, POD, exec, run};

const POLICY: &str = "policy";
/// What the machine's system has for containers, as that of a node would.
const CONTEXTS: &str = r#"process = \"u:r:it_t:s0\"\nfile = \"u:object_r:it_file_t:s0\"\n"#;

/// Compiles the policy for the machine's kernel, Linux 6.1.
fn compile(share: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/selinux.cil");
    let mut command = Command::new("secilc");
    command.args(["--policyvers", "33", "--filecontext", "/dev/null", "--output"]);
    let output = command.arg(share.join(POLICY)).arg(source).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn container(diff_id: &str, id: &str, selinux: Option<v1::SelinuxOptions>) -> v1::CreateContainerRequest {
    let mut request = pod::container(diff_id);
    id.clone_into(&mut request.id);
    request.log = None;
    let process = request.process.as_mut().unwrap();
    process.args = ["/bin/sh", "-c", "sleep 1000"].map(str::to_owned).to_vec();
    process.selinux = selinux;
    request
}

async fn refused(guest: &GuestClient, request: v1::CreateContainerRequest) -> String {
    match guest.create_container(request).await.unwrap_err() {
        GuestError::Refused { code: Refusal::Invalid, message, .. } => message,
        other => panic!("{other:?}"),
    }
}

/// Loads the policy, has it enforced, and says what it has for containers.
async fn load(guest: &GuestClient, diff_id: &str) {
    let mut root = container(diff_id, "root", None);
    root.privileged = true;
    root.set_pid(v1::NamespaceMode::Host);
    root.process.as_mut().unwrap().seccomp = None;
    root.mounts = vec![v1::Mount {
        source: SHARE_IN_GUEST.to_owned(),
        destination: "/share".to_owned(),
        readonly: true,
        ..v1::Mount::default()
    }];
    run(guest, root).await;
    let script = format!(
        "mkdir /s && mount -t selinuxfs none /s && \
         dd if=/share/{POLICY} of=/s/load bs=1M conv=notrunc 2>/dev/null && \
         etc=/proc/1/root/etc/selinux && mkdir -p $etc/it/contexts && \
         echo SELINUXTYPE=it > $etc/config && printf \"{CONTEXTS}\" > $etc/it/contexts/lxc_contexts && \
         echo 1 > /s/enforce && cat /proc/self/attr/current"
    );
    // The kernel ends labels with a NUL.
    assert_eq!(exec(guest, "root", &script).await, "u:r:machine_t:s0-s0:c0,c1\0");
}

#[tokio::test]
async fn vm_a_container_has_its_selinux_label() {
    let prerequisites = Prerequisites::find().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().join("share");
    std::fs::create_dir(&share).unwrap();
    compile(&share);
    let diff_id = pod::write_layer(&share);
    let kernel_words = vec!["security=selinux".to_owned()];
    let config = Config { kernel_words, ..Config::new(POD, share) };
    let mut machine = Machine::boot(&prerequisites, &config).unwrap();
    let guest = machine.guest(BOOT_PATIENCE).await.unwrap_or_else(|error| panic!("{error:?}"));
    let features = guest.hello().features.unwrap();
    assert!(features.selinux && !features.apparmor, "{features:?}");
    guest.setup_pod(pod::setup()).await.unwrap();

    let level = || v1::SelinuxOptions { level: "s0:c1".to_owned(), ..Default::default() };
    let of_type = |kind: &str| v1::SelinuxOptions { r#type: kind.to_owned(), ..level() };
    let message = refused(&guest, container(&diff_id, "early", Some(level()))).await;
    assert!(message.contains("selinux.user") && message.contains("lxc_contexts"), "{message}");
    load(&guest, &diff_id).await;
    let message = refused(&guest, container(&diff_id, "unknown", Some(of_type("no_t")))).await;
    assert!(message.contains("\"u:r:no_t:s0:c1\" is no label of the policy"), "{message}");

    let volume = |name: &str, relabel: bool| v1::Mount {
        destination: format!("/{name}"),
        volume: Some(v1::PodVolume { name: name.to_owned(), mode: 0o777, ..v1::PodVolume::default() }),
        relabel,
        ..v1::Mount::default()
    };
    let tmpfs = v1::Mount { destination: "/memory".to_owned(), tmpfs: true, ..v1::Mount::default() };
    let mut labelled = container(&diff_id, "labelled", Some(level()));
    labelled.mounts = vec![volume("mine", true), volume("other", false), tmpfs];
    run(&guest, labelled).await;
    // An exec has its container's.
    let labels = exec(&guest, "labelled", "cat /proc/1/attr/current /proc/self/attr/current").await;
    assert_eq!(labels, "u:r:it_t:s0:c1\0u:r:it_t:s0:c1\0");
    let mounts = exec(&guest, "labelled", "cat /proc/mounts").await;
    for place in ["/", "/dev", "/memory"] {
        let mount = mounts.lines().find(|line| line.split(' ').nth(1) == Some(place)).unwrap();
        assert!(mount.contains("context=u:object_r:it_file_t:s0:c1"), "{mount}");
    }
    let attempts = "for place in / /mine /memory /other; do \
                    { echo x > $place/file; } 2>/dev/null && echo wrote $place || echo denied $place; done";
    let seen = exec(&guest, "labelled", attempts).await;
    assert_eq!(seen, "wrote /\nwrote /mine\nwrote /memory\ndenied /other\n");
    guest.shutdown(Duration::ZERO).await.unwrap();
    assert!(machine.off(PATIENCE).unwrap().success());
}
