//! Devices by name.

use kina::cri::v1;
use serde_json::json;
use tonic::Code;

use super::user_namespaces;
use crate::harness::machine::use_vm;
use crate::harness::{Daemon, script, with_security};

const FOREVER: &str = "sleep 1000";

fn with(name: &str, devices: &[&str]) -> v1::ContainerConfig {
    let cdi_devices = devices.iter().map(|name| v1::CdiDevice { name: (*name).to_owned() }).collect();
    v1::ContainerConfig { cdi_devices, ..script(name, FOREVER) }
}

/// Writes a specification of two devices.
fn specify(daemon: &Daemon) {
    let directory = daemon.place.path("cdi");
    let data = daemon.place.path("data");
    for path in [&directory, &data] {
        std::fs::create_dir_all(path).unwrap();
    }
    std::fs::write(data.join("driver"), "of the driver\n").unwrap();
    let edits = json!({
        "env": ["CARD=zero", "PATH_OF=driver"],
        "deviceNodes": [
            { "path": "/dev/card0", "hostPath": "/dev/zero", "fileMode": 0o660 },
            { "path": "/dev/card1", "hostPath": "/dev/null", "type": "c", "uid": 7, "gid": 8 },
            // A tun device, which nobody has unless it is allowed.
            { "path": "/dev/card2", "type": "c", "major": 10, "minor": 200, "permissions": "r" },
        ],
        "mounts": [{ "hostPath": data, "containerPath": "/opt/driver", "options": ["ro", "rbind"] }],
        "additionalGids": [4321],
    });
    let hooks = json!({ "hooks": [{ "hookName": "prestart", "path": "/bin/true" }] });
    let spec = json!({
        "cdiVersion": "0.6.0",
        "kind": "example.org/card",
        "devices": [
            { "name": "all", "containerEdits": edits },
            { "name": "hooked", "containerEdits": hooks },
        ],
    });
    std::fs::write(directory.join("card.json"), spec.to_string()).unwrap();
}

#[tokio::test]
async fn devices_bring_nodes_mounts_variables_and_groups() {
    let mut daemon = Daemon::start().await;
    specify(&daemon);
    let cri = daemon.cri();
    let mut pod = cri.pod("p");
    let context = v1::LinuxSandboxSecurityContext { privileged: true, ..Default::default() };
    pod.linux.as_mut().unwrap().security_context = Some(context);
    let pod = cri.run_pod(&pod).await.unwrap();
    let mut config = with("one", &["example.org/card=all"]);
    config.envs = vec![v1::KeyValue { key: "CARD".to_owned(), value: b"none".to_vec() }];
    let user = v1::Int64Value { value: 1234 };
    let config = with_security(config, |context| context.run_as_user = Some(user));
    let one = cri.run(&pod, config).await;
    // The nodes belong to the container's user where nobody else is named.
    assert_eq!(
        cri.sh(&one, "stat -c '%F %t:%T %a %u:%g' /dev/card0 /dev/card1").await,
        "character special file 1:5 660 1234:0\ncharacter special file 1:3 666 7:8\n"
    );
    assert_eq!(
        cri.sh(&one, "echo $CARD; head -c 2 /dev/card0 | od -An -tx1; id -G").await,
        "zero\n 00 00\n0 4321\n"
    );
    assert_eq!(
        cri.sh(&one, "cat /opt/driver/driver; ! touch /opt/driver/x 2>/dev/null").await,
        "of the driver\n"
    );
    // Only what the specification allows.
    cri.sh(&one, ": < /dev/card2; ! (: > /dev/card2) 2>/dev/null").await;
    let privileged =
        with_security(with("two", &["example.org/card=all"]), |context| context.privileged = true);
    let two = cri.run(&pod, privileged).await;
    assert_eq!(
        cri.sh(&two, "stat -c '%t:%T' /dev/card0; cat /opt/driver/driver").await,
        "1:5\nof the driver\n"
    );
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn a_device_that_cannot_be_had_is_named() {
    let mut daemon = Daemon::start().await;
    specify(&daemon);
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    for (device, code, text) in [
        ("example.org/card=none", Code::InvalidArgument, "no CDI specification"),
        ("example.org/card=hooked", Code::Unimplemented, "prestart"),
        ("card", Code::InvalidArgument, "vendor/class=name"),
    ] {
        let error = cri.create(&pod, with("one", &["example.org/card=all", device])).await.unwrap_err();
        assert!(error.code() == code && error.message().contains(text), "{error}");
        assert!(
            error.message().contains("config.CDI_devices[1]") && error.message().contains(device),
            "{error}"
        );
    }
    assert_eq!(cri.containers(None).await, []);
    daemon.leave_nothing().await;
}

/// In a user namespace the node's own device is bound, which is as it is.
#[tokio::test]
async fn a_described_device_is_refused_in_a_user_namespace() {
    let mut daemon = Daemon::start().await;
    specify(&daemon);
    let cri = daemon.cri();
    let pod = user_namespaces::pod(&cri, user_namespaces::options());
    let pod = cri.run_pod(&pod).await.unwrap();
    let one = user_namespaces::mapped(with("one", &["example.org/card=all"]));
    let error = cri.create(&pod, one).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    for part in ["config.CDI_devices[0].name: example.org/card=all: ", "/dev/card0", "hostUsers"] {
        assert!(error.message().contains(part), "{error}");
    }
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn vm_devices_stay_on_the_node() {
    use_vm();
    let mut daemon = Daemon::start().await;
    specify(&daemon);
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let error = cri.create(&pod, with("one", &["example.org/card=all"])).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(
        error.message().contains("config.CDI_devices[0]") && error.message().contains("shared"),
        "{error}"
    );
    daemon.leave_nothing().await;
}
