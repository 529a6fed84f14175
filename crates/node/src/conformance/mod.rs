//! What every node must do, as one suite: for this machine now, for a remote
//! one later. A node's tests give it a [`Subject`] and call [`all`]; a broken
//! rule panics with its name.
//!
//! Paths are the node's own; the suite looks at them through the node only
//! ([`Subject::programs`]). The node has `/bin/sh` with the usual tools, `nsenter` among them.

mod effects;
mod files;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use kina_model::PodId;

use crate::{Error, LayerImage, Node, Output, Program};

pub use effects::{
    daemons_get_what_they_are_given, guests_are_daemons, layers_are_mounted_once,
    network_namespaces_are_pinned,
};
pub use files::{
    binds_come_and_go, files_are_read_and_replaced, programs_are_bounded, trees_are_measured_and_removed,
};

/// A node with what the suite needs around it.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The node.
    fn node(&self) -> &dyn Node;

    /// What runs the programs by which the suite looks at the node: another node in
    /// the same place, for one that runs none.
    fn programs(&self) -> &dyn Node {
        self.node()
    }

    /// A directory on the node that exists and is the suite's own; its path is
    /// at most 50 bytes long.
    fn directory(&self) -> &Path;

    /// A cgroup below which the suite may make its own.
    fn cgroup(&self) -> &str;

    /// An EROFS image on the node with the file `hello`, which holds `layer` and
    /// a line feed.
    async fn layer(&self) -> LayerImage;
}

/// Runs the whole suite, one rule after another.
///
/// # Panics
/// When the node breaks a rule.
pub async fn all(subject: &dyn Subject) {
    boot_ids_are_stable(subject).await;
    files_are_read_and_replaced(subject).await;
    trees_are_measured_and_removed(subject).await;
    programs_are_bounded(subject).await;
    network_namespaces_are_pinned(subject).await;
    layers_are_mounted_once(subject).await;
    guests_are_daemons(subject).await;
    daemons_get_what_they_are_given(subject).await;
    binds_come_and_go(subject).await;
}

/// The boot id has the kernel's form and does not change.
///
/// # Panics
/// When the node breaks the rule.
pub async fn boot_ids_are_stable(subject: &dyn Subject) {
    let first = ok("boot id", subject.node().boot_id().await);
    assert_eq!(first.len(), 36, "boot id {first:?}");
    assert_eq!(first, ok("boot id", subject.node().boot_id().await));
}

/// No step of the suite takes longer.
const DEADLINE: Duration = Duration::from_secs(20);

fn ok<T>(what: &str, result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what}: {}", chain(&error)),
    }
}

fn refused<T>(what: &str, result: Result<T, Error>) -> Error {
    match result {
        Ok(_) => panic!("{what} succeeds"),
        Err(error) => error,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// A directory for one rule, empty.
async fn directory(subject: &dyn Subject, name: &str) -> PathBuf {
    let path = subject.directory().join(name);
    ok("remove a directory", subject.node().remove_tree(&path).await);
    ok("make a directory", subject.node().create_directory(&path, 0o755).await);
    path
}

fn shell(script: &str) -> Program {
    Program {
        path: PathBuf::from("/bin/sh"),
        args: vec!["-c".to_owned(), script.to_owned()],
        env: vec![("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())],
        stdin: Vec::new(),
        deadline: DEADLINE,
        max_output: 64 * 1024,
    }
}

async fn run(subject: &dyn Subject, script: &str) -> Output {
    ok(script, subject.programs().run(&shell(script)).await)
}

/// What a script that succeeds prints.
async fn printed(subject: &dyn Subject, script: &str) -> String {
    let output = run(subject, script).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.code, 0, "{script}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn contains(pods: &[PodId], pod: &PodId) -> bool {
    pods.iter().filter(|found| *found == pod).count() == 1
}
