//! A node's network of a test's own: a namespace in which the daemon, its
//! plugins and what the test asks of the node run. What plugins leave there
//! (bridges, rules, kernel parameters) goes with it, and does not meet what
//! other tests do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What the names of the namespaces begin with; the process follows.
const PREFIX: &str = "kina-node-";

/// Where Debian's plugins are.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";

/// A node's network.
pub(crate) struct NodeNetwork {
    name: String,
    /// Programs that the test has started in it.
    children: Vec<Child>,
}

impl NodeNetwork {
    /// One with loopback only.
    pub(super) fn new(number: u32) -> Self {
        sweep();
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        ip(&["netns", "add", &name]);
        ip(&["-netns", &name, "link", "set", "lo", "up"]);
        Self { name, children: Vec::new() }
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A program in it. (`ip netns exec` would hide mounts from the test.)
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// What a shell script prints there; it must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.command("/bin/busybox").args(["sh", "-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The command `ip` there; it must succeed.
    pub(crate) fn ip(&self, arguments: &[&str]) -> String {
        let mut all = vec!["-netns", self.name.as_str()];
        all.extend(arguments);
        ip(&all)
    }

    /// All routes of both families and of all tables, ordered; without the mark
    /// of those whose interface has no carrier, which comes a little after the
    /// bridge's last pod has gone.
    pub(crate) fn routes(&self) -> Vec<String> {
        let shown = ["-4", "-6"].map(|family| self.ip(&[family, "route", "show", "table", "all"]));
        let mut routes: Vec<String> = shown
            .iter()
            .flat_map(|text| text.lines())
            .map(|line| line.replace(" linkdown", "").trim().to_owned())
            .collect();
        routes.sort();
        routes
    }

    /// Starts a program there that runs until the end of the test.
    pub(crate) fn start(&mut self, program: &str, arguments: &[&str]) {
        let mut command = self.command(program);
        let child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        self.children.push(child);
    }

    /// Names of its interfaces but for loopback, ordered.
    pub(crate) fn links(&self) -> Vec<String> {
        let text = self.ip(&["-o", "link", "show"]);
        let names = text.lines().filter_map(|line| line.split([':', '@']).nth(1));
        let mut names: Vec<String> = names.map(|name| name.trim().to_owned()).collect();
        names.retain(|name| name != "lo");
        names.sort();
        names
    }

    /// Does something on a thread in it.
    pub(crate) fn enter<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let namespace = fs::File::open(self.path()).unwrap();
        std::thread::spawn(move || {
            use std::os::fd::AsFd as _;
            let kind = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind)).unwrap();
            work()
        })
    }
}

impl Drop for NodeNetwork {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
        delete(&self.name);
    }
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn delete(name: &str) {
    drop(Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status());
}

/// Removes what tests of processes that are no more have left.
fn sweep() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            delete(&name);
        }
    }
}
