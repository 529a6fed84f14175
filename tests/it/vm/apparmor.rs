//! AppArmor in a machine, whose kernel is Debian's.

use std::io::Write as _;
use std::process::{Command, Stdio};

use kina::cri::v1;
use kina::cri::v1::security_profile::ProfileType;
use tonic::Code;

use crate::harness::{Cri, Daemon, machine, script, with_security};

const FOREVER: &str = "sleep 1000";
/// A profile that lets everything be but one file.
const PROFILE: &str = "profile it-mine flags=(attach_disconnected, mediate_deleted) {
  capability, file, network, signal, ptrace,
  deny /denied w,
}";
/// What of a container is confined, and how.
const CURRENT: &str = "cat /proc/self/attr/current";
/// What only kina's own profile denies.
const MOUNT: &str = "mkdir -p /m && mount -t tmpfs none /m 2>/dev/null && echo mounted || echo denied";

/// Compiles the profile for any kernel.
fn policy() -> Vec<u8> {
    let mut command = Command::new("apparmor_parser");
    command.args(["--skip-kernel-load", "--skip-cache", "--stdout"]);
    let mut parser = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    parser.stdin.take().unwrap().write_all(PROFILE.as_bytes()).unwrap();
    let output = parser.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn container(name: &str, profile: Option<(ProfileType, &str)>) -> v1::ContainerConfig {
    with_security(script(name, FOREVER), |context| {
        context.apparmor = profile.map(|(kind, name)| v1::SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: name.to_owned(),
        });
        let add_capabilities = vec!["SYS_ADMIN".to_owned()];
        context.capabilities = Some(v1::Capability { add_capabilities, ..v1::Capability::default() });
    })
}

/// Loads the policy as somebody does whom the pod lets.
async fn load(cri: &Cri, pod: &str, directory: &std::path::Path) -> String {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("policy"), policy()).unwrap();
    let mut root = with_security(script("root", FOREVER), |context| context.privileged = true);
    root.mounts = vec![v1::Mount {
        host_path: directory.display().to_string(),
        container_path: "/policy".to_owned(),
        readonly: true,
        ..v1::Mount::default()
    }];
    let root = cri.run(pod, root).await;
    // Whole, by one write.
    let load = "mkdir /s && mount -t securityfs none /s && \
                dd if=/policy/policy of=/s/apparmor/.load bs=1M conv=notrunc 2>/dev/null && \
                cat /s/apparmor/profiles";
    let profiles = cri.sh(&root, load).await;
    assert!(profiles.contains("it-mine (enforce)"), "{profiles}");
    root
}

#[tokio::test]
async fn containers_have_the_profiles_that_they_ask_for() {
    machine::use_vm();
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let mut config = cri.pod("p");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let pod = cri.run_pod(&config).await.unwrap();

    // kina's own, unless something else is asked for.
    for (name, profile) in [("unset", None), ("default", Some((ProfileType::RuntimeDefault, "")))] {
        let own = cri.run(&pod, container(name, profile)).await;
        assert_eq!(cri.sh(&own, CURRENT).await, "kina-default (enforce)\n", "{name}");
        assert_eq!(cri.sh(&own, MOUNT).await, "denied\n", "{name}");
        // It may end what it starts, and the guest may end it.
        assert_eq!(cri.sh(&own, "sleep 100 & kill $! && wait $!; echo $?").await, "143\n", "{name}");
        cri.stop(&own, 10).await.unwrap();
    }
    let free = cri.run(&pod, container("free", Some((ProfileType::Unconfined, "")))).await;
    assert_eq!(cri.sh(&free, CURRENT).await, "unconfined\n");
    assert_eq!(cri.sh(&free, MOUNT).await, "mounted\n");

    let mine = || container("mine", Some((ProfileType::Localhost, "it-mine")));
    let refused = cri.create(&pod, mine()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("\"it-mine\" is not loaded"), "{refused}");
    let root = load(&cri, &pod, &daemon.place.path("data/policy")).await;
    assert_eq!(cri.sh(&root, CURRENT).await, "unconfined\n");
    let mine = cri.run(&pod, mine()).await;
    // An exec is confined as its container is.
    let attempts = "cat /proc/1/attr/current /proc/self/attr/current; \
                    echo x > /allowed && echo wrote; echo x 2>/dev/null > /denied || echo denied";
    let seen = cri.sh(&mine, attempts).await;
    assert_eq!(seen, "it-mine (enforce)\nit-mine (enforce)\nwrote\ndenied\n");

    // Of the two, a kernel has one.
    let labelled = with_security(script("labelled", FOREVER), |context| {
        context.selinux_options = Some(v1::SeLinuxOption { level: "s0".to_owned(), ..Default::default() });
    });
    let refused = cri.create(&pod, labelled).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
    assert!(refused.message().contains("selinux_options"), "{refused}");
    daemon.leave_nothing().await;
}
