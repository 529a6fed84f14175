//! Where a test of processes, mounts and namespaces works: a directory, a cgroup
//! and names of network namespaces of its own. What a test leaves whose process was
//! killed goes when the next one begins.
//!
//! ```text
//! <parent>/<kind>XXXXXX        the directory; the other names come from its own
//!                owner         locked as long as the test's process lives
//! /kina-test-<kind>XXXXXX      the cgroup
//! /run/netns/kina-<kind>XXXXXX-<pod id>
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kina_node::{LocalNode, LocalNodeConfig, Node};

/// Short, for the sake of socket paths.
const PARENT: &str = "/tmp";

const OWNER: &str = "owner";

/// How long processes may take to die.
const PATIENCE: Duration = Duration::from_secs(40);

/// What one test has to itself. Goes with everything in it, also after a panic.
pub struct Ground {
    directory: PathBuf,
    node: LocalNode,
    /// Holds the lock.
    _owner: File,
}

impl Ground {
    /// A new one, after what dead tests of this kind left is gone. `kind` is a few
    /// letters.
    ///
    /// # Panics
    /// When it cannot be made, as a test does.
    #[must_use]
    #[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    pub fn new(kind: &str) -> Self {
        sweep(kind);
        let directory = tempfile::Builder::new().prefix(kind).tempdir_in(PARENT).unwrap().keep();
        // Locked before it is there under its name, so that no sweep comes in between.
        let unnamed = directory.join("owner.new");
        let owner = File::create(&unnamed).unwrap();
        owner.try_lock().unwrap();
        fs::rename(unnamed, directory.join(OWNER)).unwrap();
        let node = node(&directory);
        Self { directory, node, _owner: owner }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// The cgroup, which need not exist.
    #[must_use]
    pub fn cgroup(&self) -> String {
        cgroup(&self.directory)
    }

    /// The node, whose network namespaces have names of this test's own.
    #[must_use]
    pub fn node(&self) -> &LocalNode {
        &self.node
    }

    /// Another one for the same place, as another daemon has.
    #[must_use]
    pub fn another_node(&self) -> LocalNode {
        node(&self.directory)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let erased = erase(&self.directory);
        assert!(std::thread::panicking() || erased.is_ok(), "{}: {erased:?}", self.directory.display());
    }
}

fn node(directory: &Path) -> LocalNode {
    let netns_prefix = format!("kina-{}-", name(directory));
    LocalNode::new(LocalNodeConfig { netns_prefix, ..LocalNodeConfig::new(directory.join("run")) })
}

fn cgroup(directory: &Path) -> String {
    format!("/kina-test-{}", name(directory))
}

fn name(directory: &Path) -> String {
    directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Removes what tests of this kind have left whose processes are dead. Says on
/// standard error what cannot be removed: it is not the caller's fault.
#[allow(clippy::print_stderr, reason = "part of tests: what stays is said, and fails nobody")]
pub fn sweep(kind: &str) {
    for entry in fs::read_dir(PARENT).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(kind) {
            continue;
        }
        let Ok(owner) = File::open(entry.path().join(OWNER)) else { continue };
        match owner.try_lock() {
            // Held until it is gone, so that nobody else sweeps it.
            Ok(()) => {
                if let Err(error) = erase(&entry.path()) {
                    eprintln!("{} is left of a killed test: {error}", entry.path().display());
                }
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => eprintln!("{}: {error}", entry.path().display()),
        }
    }
}

/// Ends and removes everything of a place, the owner's note last.
fn erase(directory: &Path) -> io::Result<()> {
    let (node, cgroup, place) = (node(directory), cgroup(directory), directory.to_owned());
    // The caller may be in a runtime or not.
    let erased = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async {
            node.kill_cgroup(&cgroup, PATIENCE).await.map_err(io::Error::other)?;
            node.unbind(&place).await.map_err(io::Error::other)?;
            for pod in node.network_namespaces().await.map_err(io::Error::other)? {
                node.remove_network_namespace(&pod).await.map_err(io::Error::other)?;
            }
            Ok::<_, io::Error>(())
        })
    });
    erased.join().map_err(|_panic| io::Error::other("a panic"))??;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path)?;
        } else if path.file_name() != Some(OWNER.as_ref()) {
            fs::remove_file(path)?;
        }
    }
    fs::remove_dir_all(directory)
}

/// Checks that what a killed test leaves goes when the next one of its kind begins,
/// and not before. `test` is the full name of the test that calls this: it is run
/// once more in a process of its own, where `make` makes a place with everything in it
/// that a test may have at its height, and where it is killed then.
///
/// # Panics
/// When something stays, or when there was nothing to stay.
#[allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test; its parent reads the output")]
pub fn check_sweep<T>(kind: &str, test: &str, make: impl FnOnce() -> (T, PathBuf)) {
    const CHILD: &str = "KINA_TEST_TO_BE_KILLED";
    const MARK: &str = "place: ";
    if std::env::var_os(CHILD).is_some() {
        let (_kept, directory) = make();
        println!("\n{MARK}{}", directory.display());
        loop {
            std::thread::park();
        }
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let child = child.args(["--exact", test, "--nocapture"]).env(CHILD, "1").stdout(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let directory = lines.map(Result::unwrap).find_map(|line| Some(line.strip_prefix(MARK)?.to_owned()));
    let directory = PathBuf::from(directory.unwrap());
    let before = traces(&directory);
    sweep(kind);
    assert_eq!(traces(&directory), before, "a living test's place was swept");
    child.kill().unwrap();
    child.wait().unwrap();
    for what in ["process ", "cgroup ", "file "] {
        assert!(before.iter().any(|trace| trace.starts_with(what)), "no {what}in {before:?}");
    }
    sweep(kind);
    assert_eq!(traces(&directory), [""; 0]);
}

/// What there is of a place: processes in its cgroup, cgroups, mounts, names of
/// network namespaces, files.
fn traces(directory: &Path) -> Vec<String> {
    let name = name(directory);
    let mut found = Vec::new();
    let entries = |path: &str| fs::read_dir(path).into_iter().flatten().flatten();
    for process in entries("/proc") {
        let groups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        // One that is dead and waits for its parent has no arguments.
        let lives = fs::read(process.path().join("cmdline")).is_ok_and(|line| !line.is_empty());
        if lives && groups.contains(&cgroup(directory)) {
            found.push(format!("process {}", process.file_name().display()));
        }
    }
    let groups = entries("/sys/fs/cgroup").flat_map(|hierarchy| entries(&hierarchy.path().to_string_lossy()));
    for path in groups.chain(entries("/sys/fs/cgroup")).map(|entry| entry.path()) {
        if path.ends_with(cgroup(directory).trim_start_matches('/')) {
            found.push(format!("cgroup {}", path.display()));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains(&name)).map(|line| format!("mount {line}")));
    for entry in entries("/run/netns").filter(|entry| entry.file_name().to_string_lossy().contains(&name)) {
        found.push(format!("file {}", entry.path().display()));
    }
    found.extend(directory.exists().then(|| format!("file {}", directory.display())));
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_keep_theirs() {
        let ground = Ground::new("kgt");
        fs::create_dir(ground.path().join("run")).unwrap();
        sweep("kgt");
        assert!(ground.path().join("run").exists());
        let path = ground.path().to_owned();
        drop(ground);
        assert!(!path.exists());
        // One that nobody has locked.
        fs::create_dir_all(path.join("run")).unwrap();
        fs::write(path.join(OWNER), "").unwrap();
        sweep("kgt");
        assert!(!path.exists());
    }
}
