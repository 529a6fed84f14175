//! A simulator of its own for each test.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kina_testkit::images;
use serde_json::Value;

/// The longest that anything here may take.
pub(super) const LONG: Duration = Duration::from_secs(30);
/// The image that is always there.
pub(super) const IMAGE: &str = "busybox:1";

/// What the names of all tests' directories begin with.
const PREFIX: &str = "kina-sim";
/// The file in each that its test holds locked.
const OWNER: &str = "owner";

/// A simulator with an application root of its own, which goes with the test.
pub(super) struct Place {
    directory: tempfile::TempDir,
    /// Locked as long as the test lives.
    _owner: File,
}

impl Place {
    /// One that runs, with short boots and an image.
    pub(super) fn new() -> Self {
        let place = Self::unstarted();
        place.ok(&["system", "start", "--enable-kernel-install"]);
        let archive = place.path("busybox.tar");
        fs::write(&archive, images::busybox("docker.io/library/busybox:1")).unwrap();
        assert_eq!(place.ok(&["image", "load", "-i", &text(&archive)]), "docker.io/library/busybox:1\n");
        place
    }

    /// One that does not run, after what dead tests left is gone.
    pub(super) fn unstarted() -> Self {
        sweep_dead();
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap();
        // Locked before it is there under its name, so that no sweep comes in between.
        let unnamed = directory.path().join("owner.new");
        let owner = File::create(&unnamed).unwrap();
        owner.try_lock().unwrap();
        fs::rename(unnamed, directory.path().join(OWNER)).unwrap();
        let place = Self { directory, _owner: owner };
        place.ok(&["simulator", "set", "boot-ms", "40"]);
        place
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn root(&self) -> PathBuf {
        self.path("root")
    }

    pub(super) fn rootfs(&self, id: &str) -> PathBuf {
        self.root().join("containers").join(id).join("rootfs")
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        command(&self.root(), words)
    }

    pub(super) fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    pub(super) fn spawn(&self, words: &[&str]) -> Child {
        self.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// What a command prints that must succeed.
    pub(super) fn ok(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The exit code of a command that must fail, and what it says.
    pub(super) fn fails(&self, words: &[&str]) -> (i32, String) {
        let output = self.output(words);
        assert!(!output.status.success(), "{words:?} succeeds");
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), stderr.trim_end().to_owned())
    }

    pub(super) fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.ok(words)).unwrap()
    }

    /// Runs a script in a new container, detached.
    pub(super) fn run(&self, id: &str, options: &[&str], script: &str) {
        let mut words = vec!["run", "-d", "--progress", "none", "--name", id];
        words.extend(options);
        words.extend([IMAGE, "sh", "-c", script]);
        assert_eq!(self.ok(&words), format!("{id}\n"));
    }

    pub(super) fn state(&self, id: &str) -> String {
        self.json(&["inspect", id])[0]["status"]["state"].as_str().unwrap().to_owned()
    }

    pub(super) fn pid(&self, id: &str) -> i32 {
        self.ok(&["simulator", "pid", id]).trim().parse().unwrap()
    }

    pub(super) fn set(&self, setting: &str, value: &str) {
        self.ok(&["simulator", "set", setting, value]);
    }

    pub(super) fn sweep(&self) {
        self.ok(&["simulator", "sweep"]);
    }

    /// Processes of this simulator.
    pub(super) fn processes(&self) -> Vec<String> {
        processes(&self.root())
    }
}

fn command(root: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_container"));
    command.args(words).env("CONTAINER_APP_ROOT", root).stdin(Stdio::null());
    command
}

/// Processes of the simulator of an application root.
pub(super) fn processes(root: &Path) -> Vec<String> {
    let root = text(root);
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    all.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|words| words.contains(&root) && words.contains("__"))
        .collect()
}

/// Ends and removes what tests have left whose processes are dead.
pub(super) fn sweep_dead() {
    for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // Held until it is gone, so that nobody else sweeps it.
        if let Ok(owner) = File::open(path.join(OWNER))
            && owner.try_lock().is_ok()
        {
            let swept = command(&path.join("root"), &["simulator", "sweep"]).output().unwrap();
            assert!(swept.status.success(), "{}: {swept:?}", path.display());
            fs::remove_dir_all(path).unwrap();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.command(&["simulator", "sweep"]).output());
    }
}

pub(super) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LONG, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// Sends a word and returns what comes back until the end.
pub(super) fn exchange(socket: &Path, word: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LONG))?;
    // A relay may be gone already.
    drop(stream.write_all(word.as_bytes()));
    drop(stream.shutdown(std::net::Shutdown::Write));
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error),
        Ok(_) | Err(_) => Ok(answer),
    }
}
