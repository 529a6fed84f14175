//! Plugins as processes: slow, hanging, crashing, garbage-talking ones, and
//! files on a disk.

#![cfg(feature = "local")]
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kina_cni::{
    Attachment, Cleanup, Cni, Deadlines, Error, ExecuteError, Execution, Host, LocalHost, Network, Options,
};
use serde_json::json;

/// A folder with executables, a cache, and files that the plugins write.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(fixture.path("bin")).unwrap();
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Installs a shell script. `$FOLDER` is the fixture's folder.
    fn plugin(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        let folder = self.folder.path().display();
        fs::write(&path, format!("#!/bin/sh\nFOLDER={folder}\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn cni(&self, deadline: Duration) -> Cni {
        let options = Options {
            plugin_directories: vec![self.path("empty"), self.path("bin")],
            cache_directory: self.path("cache"),
            max_output: 64 << 10,
            deadlines: Deadlines { add: deadline, del: deadline, ..Deadlines::default() },
            ..Options::default()
        };
        Cni::new(Arc::new(LocalHost), options)
    }

    /// The error of an ADD with one plugin.
    async fn failed_add(&self, script: &str, deadline: Duration) -> Error {
        self.plugin("a", &format!("[ $CNI_COMMAND = DEL ] && exit 0\n{script}"));
        let error = self.cni(deadline).add(&network(&["a"]), &attachment()).await.unwrap_err();
        assert!(matches!(error.cleanup, Cleanup::Done), "{:?}", error.cleanup);
        error.cause
    }
}

const LONG: Duration = Duration::from_secs(60);

fn network(plugins: &[&str]) -> Network {
    let plugins: Vec<_> = plugins.iter().map(|plugin| json!({"type": plugin})).collect();
    let list = json!({"cniVersion": "1.1.0", "name": "pods", "plugins": plugins});
    Network::from_list(list.to_string().as_bytes()).unwrap()
}

fn attachment() -> Attachment {
    Attachment::new("pod1", "eth0", "/var/run/netns/pod1")
}

/// Waits until a process is gone, or a zombie that somebody will reap.
async fn gone(pid: &str) {
    let start = Instant::now();
    loop {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if state.is_empty() || state.contains(") Z ") {
            return;
        }
        assert!(start.elapsed() < LONG, "process {pid} lives");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn content(path: &Path) -> String {
    let start = Instant::now();
    loop {
        match fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text,
            _ => assert!(start.elapsed() < LONG, "{} is not there", path.display()),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_process_gets_its_request_and_its_result_is_cached() {
    let fixture = Fixture::new();
    fixture.plugin(
        "a",
        "cat >$FOLDER/stdin; env >$FOLDER/env; echo '{\"ips\": [{\"address\": \"10.0.0.2/8\"}]}'",
    );
    let cni = fixture.cni(LONG);
    let result = cni.add(&network(&["a"]), &attachment()).await.unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.0.0.2/8");
    let stdin = fs::read_to_string(fixture.path("stdin")).unwrap();
    assert_eq!(stdin, r#"{"cniVersion":"1.1.0","name":"pods","type":"a"}"#);
    let environment = fs::read_to_string(fixture.path("env")).unwrap();
    let path = format!("CNI_PATH={}:{}", fixture.path("empty").display(), fixture.path("bin").display());
    assert!(environment.lines().any(|line| line == path), "{environment}");
    let cached = fixture.path("cache/results/pods-pod1-eth0");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&cached), mode(&fixture.path("cache/results"))), (0o600, 0o700));
    assert_eq!(fs::read_dir(fixture.path("cache/results")).unwrap().count(), 1);
    cni.del(&network(&["a"]), &attachment()).await.unwrap();
    assert_eq!(fs::read_dir(fixture.path("cache/results")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children() {
    let fixture = Fixture::new();
    let hang = "sleep 1000 & echo $! $$ >$FOLDER/pids; wait";
    let started = Instant::now();
    let error = fixture.failed_add(hang, Duration::from_millis(300)).await;
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    assert!(started.elapsed() < LONG);
    for pid in content(&fixture.path("pids")).await.split_whitespace() {
        gone(pid).await;
    }
}

#[tokio::test]
async fn a_dropped_call_kills_the_plugin_with_its_children() {
    let fixture = Fixture::new();
    fixture.plugin("a", "sleep 1000 & echo $! $$ >$FOLDER/pids; wait");
    let cni = fixture.cni(LONG);
    let call = tokio::spawn(async move { cni.add(&network(&["a"]), &attachment()).await });
    let pids = content(&fixture.path("pids")).await;
    call.abort();
    for pid in pids.split_whitespace() {
        gone(pid).await;
    }
}

#[tokio::test]
async fn crashes_and_garbage_are_told_apart() {
    let fixture = Fixture::new();
    let said = async |script: &str| fixture.failed_add(script, LONG).await.to_string();
    assert_eq!(
        said("echo oh no >&2; exit 3").await,
        "plugin a (ADD) ended with code 3 and no error object; it said: oh no"
    );
    assert_eq!(
        said("exit 1").await,
        "plugin a (ADD) ended with code 1 and no error object, and printed nothing"
    );
    assert_eq!(
        said("kill -KILL $$").await,
        "plugin a (ADD) ended with code 137 and no error object, and printed nothing"
    );
    assert_eq!(
        said("echo '<html>'; exit 1").await,
        "plugin a (ADD) ended with code 1 and no error object; it said: <html>"
    );
    let spoken = r#"{"cniVersion": "1.0.0", "code": 11, "msg": "later", "details": "pool is empty"}"#;
    let error = "plugin a (ADD) failed with code 11: later (pool is empty)";
    assert_eq!(said(&format!("echo '{spoken}'; echo log >&2; exit 1")).await, error);
    // One passage of the specification has errors on standard error.
    assert_eq!(said(&format!("echo '{spoken}' >&2; exit 1")).await, error);
    for garbage in ["true", "echo", "echo 1", "echo '{'", "echo '{\"ips\": [{}]}'", "printf '\\377'"] {
        let error = fixture.failed_add(garbage, LONG).await;
        assert!(matches!(error, Error::BadResult { .. }), "{garbage}: {error}");
    }
    let version = fixture.failed_add("echo '{\"cniVersion\": \"3.0.0\"}'", LONG).await;
    assert!(matches!(version, Error::BadResult { .. }));
}

#[tokio::test]
async fn too_much_output_ends_a_plugin() {
    let fixture = Fixture::new();
    for endless in ["exec yes", "exec yes >&2"] {
        let error = fixture.failed_add(&format!("echo $$ >$FOLDER/pid; {endless}"), LONG).await;
        assert!(matches!(error, Error::TooMuchOutput { limit: 65536, .. }), "{error}");
        gone(content(&fixture.path("pid")).await.trim()).await;
    }
}

#[tokio::test]
async fn a_plugin_need_not_read_its_request() {
    let fixture = Fixture::new();
    fixture.plugin("a", "exec <&-; echo '{}'");
    let mut attachment = attachment();
    // More than a pipe holds.
    attachment.capabilities.insert("big", json!("x".repeat(1 << 18)));
    let list = json!({
        "cniVersion": "1.1.0", "name": "pods", "plugins": [{"type": "a", "capabilities": {"big": true}}],
    });
    let network = Network::from_list(list.to_string().as_bytes()).unwrap();
    fixture.cni(LONG).add(&network, &attachment).await.unwrap();
}

#[tokio::test]
async fn the_deadline_is_that_of_the_whole_chain() {
    let fixture = Fixture::new();
    fixture.plugin("quick", "echo '{}'");
    fixture.plugin("slow", "[ $CNI_COMMAND = DEL ] || exec sleep 1000");
    let cni = fixture.cni(Duration::from_millis(500));
    let error = cni.add(&network(&["quick", "slow"]), &attachment()).await.unwrap_err();
    let Error::Deadline { plugin, deadline, .. } = error.cause else { panic!("{}", error.cause) };
    assert_eq!((plugin.as_str(), deadline), ("slow", Duration::from_millis(500)));
}

#[tokio::test]
async fn what_is_no_program_is_said() {
    let fixture = Fixture::new();
    let missing = fixture.cni(LONG).add(&network(&["a"]), &attachment()).await.unwrap_err();
    let Error::PluginNotFound { directories, .. } = missing.cause else { panic!("{}", missing.cause) };
    assert_eq!(directories, [fixture.path("empty"), fixture.path("bin")]);

    fs::create_dir(fixture.path("bin/a")).unwrap();
    let folder = fixture.cni(LONG).add(&network(&["a"]), &attachment()).await.unwrap_err();
    assert!(matches!(folder.cause, Error::PluginNotFound { .. }));
    fs::remove_dir(fixture.path("bin/a")).unwrap();

    fs::write(fixture.path("bin/a"), "no program").unwrap();
    let text = fixture.cni(LONG).add(&network(&["a"]), &attachment()).await.unwrap_err();
    assert!(matches!(text.cause, Error::Execute { .. }), "{}", text.cause);
}

#[tokio::test]
async fn a_file_that_is_being_written_is_busy() {
    let fixture = Fixture::new();
    fixture.plugin("a", "echo '{}'");
    let path = fixture.path("bin/a");
    let writer = OpenOptions::new().append(true).open(&path).unwrap();
    let execution =
        Execution { path, environment: Vec::new(), stdin: Vec::new(), deadline: LONG, max_output: 100 };
    assert!(matches!(LocalHost.execute(&execution).await, Err(ExecuteError::Busy)));
    let cni = fixture.cni(LONG);
    let call = tokio::spawn(async move { cni.add(&network(&["a"]), &attachment()).await });
    drop(writer);
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn files_are_bounded_and_replaced_whole() {
    let fixture = Fixture::new();
    let file = fixture.path("new/folder/file");
    assert_eq!(LocalHost.read_file(&file, 10).await.unwrap(), None);
    LocalHost.remove_file(&file).await.unwrap();
    LocalHost.write_file(&file, b"0123456789").await.unwrap();
    LocalHost.write_file(&file, b"01234").await.unwrap();
    assert_eq!(LocalHost.read_file(&file, 5).await.unwrap().unwrap(), b"01234");
    assert_eq!(LocalHost.read_file(&file, 4).await.unwrap_err().to_string(), "more than 4 bytes");
    assert_eq!(LocalHost.list_directory(&fixture.path("new")).await.unwrap(), [""; 0]);
    assert_eq!(LocalHost.list_directory(&fixture.path("new/folder")).await.unwrap(), ["file"]);
    let before = LocalHost.find_file(&file).await.unwrap().unwrap();
    LocalHost.write_file(&file, b"56789").await.unwrap();
    assert_ne!(LocalHost.find_file(&file).await.unwrap().unwrap(), before);
    LocalHost.remove_file(&file).await.unwrap();
    assert_eq!(LocalHost.find_file(&file).await.unwrap(), None);
}
