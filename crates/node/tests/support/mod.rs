//! A local node in directories and a cgroup of its own, which are gone after
//! the test however it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kina_model::PodId;
use kina_node::{LayerImage, LocalNode, LocalNodeConfig, Node};
use tempfile::TempDir;

/// What a test runs on.
pub struct Place {
    pub directory: TempDir,
    pub cgroup: String,
    pub node: LocalNode,
}

impl Place {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("kn").tempdir_in("/tmp").unwrap();
        let node = node(directory.path());
        Self { directory, cgroup: format!("/kina-test-{}", PodId::random()), node }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An EROFS image of a directory with these files.
    pub fn image(&self, files: &[(&str, &[u8])]) -> LayerImage {
        let diff_id = format!("sha256:{}{}", PodId::random(), PodId::random());
        let tree = self.path(&diff_id);
        fs::create_dir(&tree).unwrap();
        for (name, content) in files {
            fs::write(tree.join(name), content).unwrap();
        }
        let path = self.path(&format!("{}.erofs", &diff_id[7..]));
        let made = Command::new("mkfs.erofs").arg(&path).arg(&tree).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        LayerImage { diff_id, path }
    }
}

pub fn node(directory: &Path) -> LocalNode {
    LocalNode::new(LocalNodeConfig {
        run_directory: directory.join("run"),
        netns_directory: directory.join("netns"),
        netns_prefix: "kina-".to_owned(),
    })
}

impl Drop for Place {
    fn drop(&mut self) {
        let (node, cgroup) = (self.node.clone(), self.cgroup.clone());
        let killed = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(node.kill_cgroup(&cgroup, Duration::from_secs(10))).unwrap();
        });
        drop(killed.join());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let below: Vec<&str> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|path| Path::new(path).starts_with(self.directory.path()))
            .collect();
        for path in below.iter().rev() {
            drop(Command::new("umount").arg("-l").arg(path).status());
        }
    }
}
