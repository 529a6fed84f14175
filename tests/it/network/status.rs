//! What the daemon tells of the network, and what it asks plugins for.

use serde_json::{Value, json};

use crate::harness::{Daemon, Options, wait_until};

/// A plugin of CNI 1.1.0 that writes down what it is asked, and is as ready as
/// a file says.
fn recorder(daemon: &Daemon) {
    let place = daemon.place.path("");
    let script = format!(
        r#"cd {place}
if [ "$CNI_COMMAND" = VERSION ]; then
  echo '{{"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}}'; exit
fi
mkdir -p recorded
cat > recorded/$CNI_COMMAND.json
env | grep ^CNI_ | sort > recorded/$CNI_COMMAND.env
if [ "$CNI_COMMAND" = STATUS ] && [ -e slow ]; then
  sleep 1
fi
if [ "$CNI_COMMAND" = STATUS ] && [ -e not-ready ]; then
  echo '{{"cniVersion": "1.1.0", "code": 50, "msg": "the agent sleeps", "details": ""}}'; exit 1
fi
if [ "$CNI_COMMAND" = ADD ]; then
  echo '{{"cniVersion": "1.1.0", "interfaces": [{{"name": "eth0", "sandbox": "'$CNI_NETNS'"}}],
    "ips": [{{"address": "10.1.2.3/24", "interface": 0}}]}}'
fi"#,
        place = place.display()
    );
    daemon.place.write_plugin("recorder", &script);
}

fn recorded(daemon: &Daemon, name: &str) -> String {
    std::fs::read_to_string(daemon.place.path("recorded").join(name)).unwrap_or_default()
}

/// The network is as ready as its plugins are, in their words; what changes in
/// the directory is seen.
#[tokio::test]
async fn the_plugins_words() {
    let mut daemon = Daemon::start().await;
    let condition = daemon.wait_network(false).await;
    assert_eq!(condition.reason, "NetworkPluginNotReady");
    let cri = daemon.cri();
    let loopback = cri.make_pod("loopback").await;

    recorder(&daemon);
    std::fs::write(daemon.place.path("not-ready"), "").unwrap();
    let plugins = json!([{"type": "recorder", "capabilities": {
        "portMappings": true, "dns": true, "cgroupPath": true, "bandwidth": true,
        "io.kubernetes.cri.pod-annotations": true,
    }}]);
    daemon.place.write_network("1.1.0", &plugins);
    wait_until("the plugin's words", async || {
        daemon.wait_network(false).await.message.contains("the agent sleeps")
    })
    .await;
    std::fs::remove_file(daemon.place.path("not-ready")).unwrap();
    daemon.wait_network(true).await;
    wait_until("GC", async || !recorded(&daemon, "GC.json").is_empty()).await;

    // A broken file is named and changes nothing.
    let file = daemon.place.path("net.d/10-pods.conflist");
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, "{").unwrap();
    wait_until("the broken file", async || {
        daemon.wait_network(true).await.message.contains("10-pods.conflist")
    })
    .await;
    let mut config = cri.pod("p");
    config.port_mappings = vec![kina::cri::v1::PortMapping {
        protocol: kina::cri::v1::Protocol::Udp.into(),
        container_port: 53,
        host_port: 5353,
        host_ip: "127.0.0.9".into(),
    }];
    config.annotations = crate::harness::labels(&[("kubernetes.io/ingress-bandwidth", "1M"), ("a", "b")]);
    config.dns_config = Some(kina::cri::v1::DnsConfig {
        servers: vec!["10.0.0.10".into()],
        searches: vec!["example".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = cri.run_pod(&config).await.unwrap();
    std::fs::write(&file, good).unwrap();
    let network = cri.pod_status(&pod).await.unwrap().status.unwrap().network.unwrap();
    assert_eq!(network.ip, "10.1.2.3");

    let variables = recorded(&daemon, "ADD.env");
    for expected in [
        format!("CNI_CONTAINERID={pod}"),
        "CNI_IFNAME=eth0".to_owned(),
        format!(
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=it;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID={pod};K8S_POD_UID=uid-of-p"
        ),
    ] {
        assert!(variables.lines().any(|line| line == expected), "{expected} is not in {variables}");
    }
    assert!(variables.contains("CNI_NETNS=/var/run/netns/kina-"), "{variables}");
    let request: Value = serde_json::from_str(&recorded(&daemon, "ADD.json")).unwrap();
    let given = &request["runtimeConfig"];
    let mapping = json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.9"}]);
    assert_eq!(given["portMappings"], mapping);
    assert_eq!(
        given["dns"],
        json!({"servers": ["10.0.0.10"], "searches": ["example"], "options": ["ndots:5"]})
    );
    assert_eq!(given["bandwidth"]["ingressRate"], 1_000_000);
    assert_eq!(given["io.kubernetes.cri.pod-annotations"]["a"], "b");
    assert!(given["cgroupPath"].as_str().unwrap().ends_with(&format!("/kina-{pod}")), "{given}");

    // Without a configuration new pods are refused; those that are there go.
    std::fs::remove_file(&file).unwrap();
    daemon.wait_network(false).await;
    let status = cri.run_pod(&cri.pod("late")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    assert!(cri.is_ready(&loopback).await);
    daemon.leave_nothing().await;
    let request: Value = serde_json::from_str(&recorded(&daemon, "DEL.json")).unwrap();
    assert_eq!(request["prevResult"]["ips"][0]["address"], "10.1.2.3/24");
}

/// A plugin that hangs is killed in time, and its pod is cleaned up.
#[tokio::test]
async fn a_hanging_plugin() {
    let mut daemon = Daemon::start().await;
    daemon.stop().await;
    recorder(&daemon);
    daemon.place.set_network(|network| network.add_seconds = 1);
    let script = "case $CNI_COMMAND in VERSION) echo '{\"cniVersion\": \"1.0.0\", \"supportedVersions\": [\"1.0.0\"]}' ;; ADD) sleep 1000 & sleep 1000 ;; esac";
    daemon.place.write_plugin("hangs", script);
    daemon.place.write_network("1.0.0", &json!([{"type": "hangs"}]));
    daemon.start_again(Options::default()).await;
    let cri = daemon.cri();
    let status = cri.run_pod(&cri.pod("p")).await.unwrap_err();
    assert!(status.message().contains("plugin hangs (ADD) did not end within"), "{status}");
    assert_eq!(cri.pods(None).await, []);
    daemon.leave_nothing().await;
}

/// What a new daemon says first is what the plugins say, though they take their
/// time: the kubelet would take the node out of service otherwise.
#[tokio::test]
async fn the_first_word_of_a_new_daemon() {
    let mut daemon = Daemon::start().await;
    recorder(&daemon);
    daemon.place.write_network("1.1.0", &json!([{"type": "recorder"}]));
    daemon.wait_network(true).await;
    std::fs::write(daemon.place.path("slow"), "").unwrap();
    daemon.restart().await;
    let mut runtime = daemon.cri().client.runtime.clone();
    let request = kina::cri::v1::StatusRequest { verbose: false };
    let status = runtime.status(request).await.unwrap().into_inner().status.unwrap();
    let network = status.conditions.into_iter().find(|one| one.r#type == "NetworkReady").unwrap();
    assert!(network.status, "{network:?}");
    std::fs::remove_file(daemon.place.path("slow")).unwrap();
    drop(runtime);
    daemon.leave_nothing().await;
}
