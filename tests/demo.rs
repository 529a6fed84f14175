//! `kina demo` as a process: to its end, interrupted, and killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kina::config::Config;
use kina::traces::Scope;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// The static guest that `cargo xtask guest` builds.
fn guest() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/guest")
        .join(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .join("guest/kina-guest");
    let guest = std::env::var_os("KINA_GUEST").map_or(built, PathBuf::from);
    assert!(guest.is_file(), "there is no {}; `cargo xtask guest` builds it", guest.display());
    guest
}

fn demo(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kina"));
    command.args(["demo", "--json", "--guest"]).arg(guest()).arg("--directory").arg(directory);
    command.stdin(Stdio::null());
    command
}

/// Everything that a demo with this process id can leave.
fn scope(directory: &Path, pid: u32) -> Scope {
    let room = directory.join(format!("kina-demo-{pid}"));
    let config = Config {
        root: room.join("root"),
        run: room.join("run"),
        cgroup_parent: format!("/kina-demo-{pid}"),
        ..Config::default()
    };
    Scope::of(&config)
}

/// Runs a demo to its end and returns its lines.
fn run(command: &mut Command) -> Vec<Value> {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A demo that has come to a step.
struct Running {
    child: Child,
    directory: PathBuf,
}

impl Running {
    fn until(directory: &Path, title: &str) -> Self {
        let mut child = demo(directory).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let running = Self { child, directory: directory.to_owned() };
        let found = lines.any(|line| {
            let step: Value = serde_json::from_str(&line.unwrap()).unwrap();
            assert_eq!(step["ok"], true, "{step}");
            step["title"] == title
        });
        assert!(found, "no step {title:?}");
        // The pipe must stay open, or the demo would end at its next step.
        std::thread::spawn(move || lines.for_each(drop));
        running
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), signal).unwrap();
    }

    fn scope(&self) -> Scope {
        scope(&self.directory, self.child.id())
    }

    fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the demo does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(self.scope().erase());
    }
}

fn empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}

#[test]
fn from_nothing_to_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let lines = run(&mut demo(directory.path()));
    let (end, steps) = lines.split_last().unwrap();
    assert_eq!(end["ok"], true);
    assert!(steps.iter().all(|step| step["ok"] == true && step["seconds"].is_f64()), "{steps:?}");
    let titles: Vec<&str> = steps.iter().map(|step| step["title"].as_str().unwrap()).collect();
    for title in ["Run a pod", "Kill the daemon (-9)", "Prove that nothing is left"] {
        assert!(titles.contains(&title), "{titles:?}");
    }
    assert!(empty(directory.path()));
}

#[test]
fn without_a_registry_it_imports_an_archive() {
    let directory = tempfile::tempdir().unwrap();
    let lines = run(demo(directory.path()).env("PATH", "/nowhere"));
    let facts = lines[2]["facts"][0].as_str().unwrap();
    assert!(facts.starts_with("localhost/kina-demo:1 by import"), "{facts}");
    assert!(empty(directory.path()));
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let directory = tempfile::tempdir().unwrap();
    let mut demo = Running::until(directory.path(), "Start two containers");
    assert!(demo.scope().find().len() > 4, "{:?}", demo.scope().find());
    demo.signal(Signal::INT);
    assert_eq!(demo.wait().code(), Some(1));
    assert_eq!(demo.scope().find(), []);
    assert!(empty(directory.path()));
}

#[test]
fn what_a_killed_demo_leaves_the_next_one_cleans() {
    let directory = tempfile::tempdir().unwrap();
    let mut killed = Running::until(directory.path(), "Start two containers");
    killed.signal(Signal::KILL);
    killed.wait();
    assert!(killed.scope().find().len() > 4, "{:?}", killed.scope().find());
    run(&mut demo(directory.path()));
    assert_eq!(killed.scope().find(), []);
    assert!(empty(directory.path()));
}
