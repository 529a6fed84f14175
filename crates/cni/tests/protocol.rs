//! What plugins get: environment and standard input, word for word. The
//! configuration, results and requests are those of the examples in the
//! specification's appendix.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod common;

use common::{CACHE, FakeHost, failure, good, success};
use kina_cni::{Attachment, AttachmentId, Network, PortMapping, Protocol, SpecVersion};
use serde_json::{Value, json};

fn dbnet(version: &str) -> Network {
    let list = json!({
        "cniVersion": version,
        "name": "dbnet",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "keyA": ["some more", "plugin specific", "configuration"],
                "ipam": {
                    "type": "host-local", "subnet": "10.1.0.0/16", "gateway": "10.1.0.1",
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
                "dns": {"nameservers": ["10.1.0.1"]},
            },
            {
                "type": "tuning",
                "capabilities": {"mac": true},
                "sysctl": {"net.core.somaxconn": "500"},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    Network::from_list(list.to_string().as_bytes()).unwrap()
}

fn blue() -> Attachment {
    let mut attachment = Attachment::new("pod1", "eth0", "/var/run/netns/blue")
        .with_argument("IgnoreUnknown", "1")
        .with_argument("K8S_POD_NAME", "db-0");
    attachment
        .capabilities
        .mac("00:11:22:33:44:66")
        .port_mappings(&[PortMapping::new(8080, 80, Protocol::Tcp)])
        .cgroup_path("/nobody/asks/for/this");
    attachment
}

fn result(mac: &str) -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "cni0", "mac": "00:11:22:33:44:55"},
            {"name": "veth3243", "mac": "55:44:33:22:11:11"},
            {"name": "eth0", "mac": mac, "sandbox": "/var/run/netns/blue"},
        ],
        "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.1.0.1"]},
    })
}

fn dbnet_host() -> std::sync::Arc<FakeHost> {
    let host = FakeHost::new();
    host.good_plugins(&["portmap"]);
    host.plugin("bridge", |call| match call.command.as_str() {
        "ADD" => success(&result("99:88:77:66:55:44")),
        _ => good(call),
    });
    host.plugin("tuning", |call| match call.command.as_str() {
        "ADD" => success(&result("00:11:22:33:44:66")),
        _ => good(call),
    });
    host
}

/// The request to each plugin of the network with a previous result.
fn request(plugin: &str, previous: Option<Value>) -> Value {
    let mut request = match plugin {
        "bridge" => json!({
            "type": "bridge",
            "bridge": "cni0",
            "keyA": ["some more", "plugin specific", "configuration"],
            "ipam": {
                "type": "host-local", "subnet": "10.1.0.0/16", "gateway": "10.1.0.1",
                "routes": [{"dst": "0.0.0.0/0"}],
            },
            "dns": {"nameservers": ["10.1.0.1"]},
        }),
        "tuning" => json!({
            "type": "tuning",
            "capabilities": {"mac": true},
            "sysctl": {"net.core.somaxconn": "500"},
            "runtimeConfig": {"mac": "00:11:22:33:44:66"},
        }),
        _ => json!({
            "type": "portmap",
            "capabilities": {"portMappings": true},
            "runtimeConfig": {
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            },
        }),
    };
    request["cniVersion"] = json!("1.1.0");
    request["name"] = json!("dbnet");
    if let Some(previous) = previous {
        request["prevResult"] = previous;
    }
    request
}

#[tokio::test]
async fn add_check_and_del_of_the_appendix() {
    let host = dbnet_host();
    let (cni, network) = (host.cni(), dbnet("1.1.0"));
    let last = result("00:11:22:33:44:66");

    let made = cni.add(&network, &blue()).await.unwrap();
    assert_eq!(made.to_value(SpecVersion::V1_1_0).unwrap(), last);
    assert_eq!(made.addresses_of("eth0").count(), 1);
    assert_eq!(made.addresses_of("veth3243").count(), 0);
    let calls = host.calls();
    assert_eq!(calls[0].stdin, request("bridge", None));
    assert_eq!(calls[1].stdin, request("tuning", Some(result("99:88:77:66:55:44"))));
    assert_eq!(calls[2].stdin, request("portmap", Some(last.clone())));

    cni.check(&network, &blue()).await.unwrap();
    let calls = host.calls();
    for (call, plugin) in calls.iter().zip(["bridge", "tuning", "portmap"]) {
        assert_eq!(call.stdin, request(plugin, Some(last.clone())));
        assert_eq!(call.command, "CHECK");
    }

    cni.del(&network, &blue()).await.unwrap();
    let calls = host.calls();
    for (call, plugin) in calls.iter().zip(["portmap", "tuning", "bridge"]) {
        assert_eq!(call.stdin, request(plugin, Some(last.clone())));
        assert_eq!(call.command, "DEL");
    }
}

#[tokio::test]
async fn the_environment_is_the_inherited_one_and_all_variables() {
    let host = dbnet_host();
    let cni = host
        .cni()
        .with_environment([("TRACEPARENT".to_owned(), "00-1".to_owned())])
        .with_environment([("CNI_COMMAND".to_owned(), "inherited".to_owned())]);
    let network = dbnet("1.1.0");
    let environment = |command: &str, of_attachment: bool| {
        let mut expected = std::collections::BTreeMap::new();
        let mut set = |name: &str, value: &str| drop(expected.insert(name.to_owned(), value.to_owned()));
        set("PATH", "/bin");
        set("TRACEPARENT", "00-1");
        set("CNI_COMMAND", command);
        set("CNI_PATH", "/opt/cni/bin");
        let own = |value| if of_attachment { value } else { "" };
        set("CNI_CONTAINERID", own("pod1"));
        set("CNI_NETNS", own("/var/run/netns/blue"));
        set("CNI_IFNAME", own("eth0"));
        set("CNI_ARGS", own("IgnoreUnknown=1;K8S_POD_NAME=db-0"));
        expected
    };
    cni.add(&network, &blue()).await.unwrap();
    cni.check(&network, &blue()).await.unwrap();
    cni.del(&network, &blue()).await.unwrap();
    cni.status(&network).await.unwrap();
    cni.gc(&network, &[]).await.unwrap();
    for call in host.calls() {
        let of_attachment = ["ADD", "CHECK", "DEL"].contains(&call.command.as_str());
        assert_eq!(call.environment, environment(&call.command, of_attachment));
    }

    // Old plugins want more for VERSION than it needs.
    cni.plugin_versions("portmap").await.unwrap();
    let [call] = host.calls().try_into().unwrap();
    let mut expected = environment("VERSION", false);
    for name in ["CNI_NETNS", "CNI_IFNAME", "CNI_PATH"] {
        expected.insert(name.to_owned(), "dummy".to_owned());
    }
    assert_eq!(call.environment, expected);
    assert_eq!(call.stdin, json!({"cniVersion": "1.1.0"}));
}

#[tokio::test]
async fn status_and_gc_of_the_network() {
    let host = dbnet_host();
    let (cni, network) = (host.cni(), dbnet("1.1.0"));
    let without_runtime_config = |plugin: &str| {
        let mut request = request(plugin, None);
        request.as_object_mut().unwrap().remove("runtimeConfig");
        request
    };
    cni.status(&network).await.unwrap();
    for (call, plugin) in host.calls().iter().zip(["bridge", "tuning", "portmap"]) {
        assert_eq!(call.stdin, without_runtime_config(plugin));
    }
    let valid = AttachmentId { container_id: "pod1".to_owned(), interface: "eth0".to_owned() };
    cni.gc(&network, &[valid]).await.unwrap();
    for (call, plugin) in host.calls().iter().zip(["bridge", "tuning", "portmap"]) {
        let mut expected = without_runtime_config(plugin);
        expected["cni.dev/valid-attachments"] = json!([{"containerID": "pod1", "ifname": "eth0"}]);
        expected["cni.dev/attachments"] = expected["cni.dev/valid-attachments"].clone();
        assert_eq!(call.stdin, expected);
    }
}

#[tokio::test]
async fn old_versions_get_what_they_know() {
    for (version, del_has_result) in [("0.3.1", false), ("0.4.0", true), ("1.0.0", true)] {
        let host = FakeHost::new();
        host.good_plugins(&["tuning", "portmap"]);
        // It answers in a version that it was not asked for.
        host.plugin("bridge", |call| match call.command.as_str() {
            "ADD" => success(&result("99:88:77:66:55:44")),
            _ => good(call),
        });
        let (cni, network) = (host.cni(), dbnet(version));
        cni.add(&network, &blue()).await.unwrap();
        let calls = host.calls();
        let previous = calls[1].previous().unwrap();
        assert_eq!(previous["cniVersion"], json!(version));
        assert_eq!(previous["ips"][0].get("version").is_some(), version < "1.0.0");
        cni.del(&network, &blue()).await.unwrap();
        for call in host.calls() {
            assert_eq!(call.previous().is_some(), del_has_result, "{version}");
        }
        assert!(!cni.gc(&network, &[]).await.unwrap().plugins_told);
        assert_eq!(host.calls(), []);
    }
}

#[tokio::test]
async fn the_cache_is_libcnis() {
    let host = dbnet_host();
    let (cni, network) = (host.cni(), dbnet("1.1.0"));
    cni.add(&network, &blue()).await.unwrap();
    let file = host.read(&format!("{CACHE}/results/dbnet-pod1-eth0")).unwrap();
    let mut cached: Value = serde_json::from_slice(&file).unwrap();
    let config = cached.as_object_mut().unwrap().remove("config").unwrap();
    assert_eq!(base64(config.as_str().unwrap()), network.json());
    assert_eq!(
        cached,
        json!({
            "kind": "cniCacheV1",
            "containerId": "pod1",
            "ifName": "eth0",
            "networkName": "dbnet",
            "netns": "/var/run/netns/blue",
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "db-0"]],
            "capabilityArgs": {
                "mac": "00:11:22:33:44:66",
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
                "cgroupPath": "/nobody/asks/for/this",
            },
            "result": result("00:11:22:33:44:66"),
        })
    );
}

fn base64(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[tokio::test]
async fn a_plugins_words_are_kept() {
    let host = dbnet_host();
    host.plugin("tuning", |call| match call.command.as_str() {
        "ADD" => failure(7, "Invalid Configuration"),
        _ => good(call),
    });
    let error = host.cni().add(&dbnet("1.1.0"), &blue()).await.unwrap_err();
    assert_eq!(error.to_string(), "add container pod1 to network dbnet as eth0");
    assert_eq!(
        error.cause.to_string(),
        "plugin tuning (ADD) failed with code 7: Invalid Configuration (more)"
    );
    let kina_cni::Error::Plugin(words) = error.cause else { panic!("{:?}", error.cause) };
    assert_eq!(words.stderr, "a line of its log");
}
