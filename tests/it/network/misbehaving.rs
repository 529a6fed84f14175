//! Plugins that do not do what plugins should, among others that do.

use serde_json::json;

use super::bridge;
use crate::harness::{Daemon, Options, wait_until};

/// What the plugin does, and what is said of it.
struct Manner {
    script: &'static str,
    said: &'static str,
}

const MANNERS: [Manner; 5] = [
    Manner { script: "kill -SEGV $$", said: "ended with code 139" },
    Manner { script: "kill -ABRT $$", said: "ended with code 134" },
    Manner { script: "sleep 1000 & sleep 1000", said: "did not end within" },
    Manner { script: "echo '<html>no</html>'; exit $garbage", said: "<html>no" },
    Manner { script: "yes", said: "printed more than" },
];

/// A daemon with a plugin `bad` behind good ones, which in each command does
/// what a file says that is called as the command, if there is one, and notes
/// its commands.
async fn with_bad_plugin() -> Daemon {
    let mut daemon = Daemon::start().await;
    daemon.stop().await;
    let mut plugins = bridge(false);
    plugins.as_array_mut().unwrap().push(json!({"type": "bad"}));
    daemon.place.node_network_with("1.0.0", &plugins);
    let script = format!(
        r#"cd {place}
if [ "$CNI_COMMAND" = VERSION ]; then
  echo '{{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}}'; exit
fi
request=$(cat)
echo "$CNI_COMMAND" >> called
# Only an ADD must print something usable to succeed.
[ "$CNI_COMMAND" = ADD ] && garbage=0 || garbage=1
[ -e "$CNI_COMMAND" ] && . ./"$CNI_COMMAND"
[ "$CNI_COMMAND" = ADD ] && echo "$request" | sed 's/.*"prevResult"://; s/,"type":"bad"}}$//'
exit 0"#,
        place = daemon.place.path("").display(),
    );
    daemon.place.write_plugin("bad", &script);
    daemon.place.set_network(|network| {
        network.add_seconds = 4;
        network.delete_seconds = 3;
    });
    daemon.start_again(Options::default()).await;
    daemon.wait_network(true).await;
    daemon
}

fn set(daemon: &Daemon, command: &str, manner: &Manner) {
    std::fs::write(daemon.place.path(command), manner.script).unwrap();
}

fn unset(daemon: &Daemon, command: &str) {
    std::fs::remove_file(daemon.place.path(command)).unwrap();
}

/// The commands since the last question.
fn called(daemon: &Daemon) -> String {
    let path = daemon.place.path("called");
    let called = std::fs::read_to_string(&path).unwrap_or_default();
    std::fs::write(&path, "").unwrap();
    called.replace('\n', " ")
}

/// A pod whose plugin fails in ADD is refused with the plugin's name and what
/// it did; the DEL that is owed is called, nothing stays, and the next pod works.
#[tokio::test]
async fn during_add() {
    let mut daemon = with_bad_plugin().await;
    let cri = daemon.cri();
    for manner in &MANNERS {
        set(&daemon, "ADD", manner);
        called(&daemon);
        let status = cri.run_pod(&cri.pod("p")).await.unwrap_err();
        let said = status.message();
        assert!(said.contains("plugin bad (ADD)") && said.contains(manner.said), "{}: {said}", manner.script);
        assert!(called(&daemon).starts_with("ADD DEL "), "{}", manner.script);
        assert_eq!(cri.pods(None).await, []);
        daemon.place.check_network();
        daemon.place.wait_clean(Some(daemon.pid())).await;
        unset(&daemon, "ADD");
        let pod = cri.make_pod("p").await;
        cri.remove_pod(&pod).await.unwrap();
    }
    daemon.leave_nothing().await;
}

/// While it fails in DEL, the pod stays with what the DEL needs, and the errors
/// of StopPodSandbox and RemovePodSandbox say why; afterwards both succeed.
#[tokio::test]
async fn during_del() {
    let mut daemon = with_bad_plugin().await;
    let cri = daemon.cri();
    for manner in &MANNERS {
        let pod = cri.make_pod("p").await;
        set(&daemon, "DEL", manner);
        for status in [cri.stop_pod(&pod).await, cri.remove_pod(&pod).await] {
            let status = status.unwrap_err();
            let said = status.message();
            assert!(
                said.contains("plugin bad (DEL)") && said.contains(manner.said),
                "{}: {said}",
                manner.script
            );
        }
        assert!(!cri.is_ready(&pod).await);
        assert_eq!(daemon.place.addresses().len(), 2, "{}", manner.script);
        // Others do not suffer.
        unset(&daemon, "DEL");
        let other = cri.make_pod("other").await;
        cri.stop_pod(&pod).await.unwrap();
        cri.remove_pod(&pod).await.unwrap();
        assert_eq!(daemon.place.addresses().len(), 2, "{}", manner.script);
        cri.remove_pod(&other).await.unwrap();
        daemon.place.check_network();
        daemon.place.wait_clean(Some(daemon.pid())).await;
    }
    // What the plugin has started is gone as well.
    wait_until("its end", async || !busy(&daemon)).await;
    daemon.leave_nothing().await;
}

/// Whether the plugin or what it has started runs.
fn busy(daemon: &Daemon) -> bool {
    let place = daemon.place.path("").display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.into_iter().any(|entry| {
        let link = std::fs::read_link(entry.path().join("cwd"));
        link.is_ok_and(|cwd| format!("{}/", cwd.display()) == place || cwd.display().to_string() == place)
    })
}
