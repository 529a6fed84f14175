//! The daemon is killed while a plugin runs.

use serde_json::json;

use super::bridge;
use crate::harness::{Daemon, Options, wait_until};

/// Hangs in one command once it is told to, for as long as a file is there.
fn slow(daemon: &Daemon, command: &str) -> std::path::PathBuf {
    let hang = daemon.place.path("hang");
    let begun = daemon.place.path("begun");
    let script = format!(
        r#"request=$(cat)
case "$CNI_COMMAND" in
  VERSION) echo '{{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}}' ;;
  {command}) if [ -e {hang} ]; then echo > {begun}; sleep 1000; fi ;;
esac
case "$CNI_COMMAND" in
  ADD) echo "$request" | sed 's/.*"prevResult"://; s/,"type":"slow"}}$//' ;;
esac"#,
        hang = hang.display(),
        begun = begun.display(),
    );
    daemon.place.write_plugin("slow", &script);
    std::fs::write(&hang, "").unwrap();
    begun
}

/// The plugins before and after the slow one.
fn plugins() -> serde_json::Value {
    let mut plugins = bridge(true);
    plugins.as_array_mut().unwrap().insert(1, json!({"type": "slow"}));
    plugins
}

#[tokio::test]
async fn during_add() {
    let mut daemon = Daemon::start().await;
    daemon.stop().await;
    daemon.place.node_network_with("1.0.0", &plugins());
    let begun = slow(&daemon, "ADD");
    daemon.start_again(Options::default()).await;
    daemon.wait_network(true).await;
    let cri = daemon.cri();
    let config = cri.pod("p");
    let run = tokio::spawn({
        let (cri, config) = (cri.clone(), config.clone());
        async move { cri.run_pod(&config).await }
    });
    wait_until("the plugin", async || begun.exists()).await;
    assert_eq!(daemon.place.addresses().len(), 2);
    daemon.kill9().await;
    run.await.unwrap().unwrap_err();
    std::fs::remove_file(daemon.place.path("hang")).unwrap();
    daemon.start_again(Options::default()).await;
    wait_until("the addresses to come back", async || daemon.place.addresses().is_empty()).await;
    let cri = daemon.cri();
    wait_until("the pod's end", async || cri.pods(None).await.is_empty()).await;
    daemon.place.check_network();
    let pod = cri.run_pod(&config).await.unwrap();
    assert!(cri.is_ready(&pod).await);
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn during_del() {
    let mut daemon = Daemon::start().await;
    daemon.stop().await;
    daemon.place.node_network_with("1.0.0", &plugins());
    let begun = slow(&daemon, "DEL");
    daemon.start_again(Options::default()).await;
    daemon.wait_network(true).await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let stop = tokio::spawn({
        let (cri, pod) = (cri.clone(), pod.clone());
        async move { cri.stop_pod(&pod).await }
    });
    wait_until("the plugin", async || begun.exists()).await;
    daemon.kill9().await;
    stop.await.unwrap().unwrap_err();
    // Neither the configuration nor the cached result is there any more.
    std::fs::remove_file(daemon.place.path("hang")).unwrap();
    std::fs::remove_file(daemon.place.path("net.d/10-pods.conflist")).unwrap();
    std::fs::remove_dir_all(daemon.place.path("cni")).unwrap();
    daemon.start_again(Options::default()).await;
    let cri = daemon.cri();
    cri.stop_pod(&pod).await.unwrap();
    daemon.place.check_network();
    daemon.leave_nothing().await;
}

/// What a daemon leaves that is killed while it writes the cache goes, once
/// nobody can be writing it any more. Others' files stay.
#[tokio::test]
async fn half_written_files() {
    let mut daemon = Daemon::start().await;
    daemon.stop().await;
    let results = daemon.place.path("cni/results");
    std::fs::create_dir_all(&results).unwrap();
    let nanos = |age: u64| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        (now - std::time::Duration::from_secs(age)).as_nanos()
    };
    let old = format!(".pods-p-eth0.1.{}.0", nanos(3600));
    let kept = [".pods-p-eth0.swp".to_owned(), format!(".pods-p-eth0.1.{}.0", nanos(1))];
    for name in kept.iter().chain([&old]) {
        std::fs::write(results.join(name), "{").unwrap();
    }
    daemon.start_again(Options::default()).await;
    assert!(!results.join(&old).exists());
    for name in &kept {
        std::fs::remove_file(results.join(name)).unwrap();
    }
    daemon.leave_nothing().await;
}
