//! Where everything lies below an application root.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// An application root.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its directory.
    pub root: PathBuf,
}

impl Place {
    /// The one that the environment names with `CONTAINER_APP_ROOT`, or the user's.
    #[must_use]
    pub fn from_environment() -> Self {
        let root = std::env::var_os("CONTAINER_APP_ROOT").filter(|root| !root.is_empty());
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
        let root = root.map_or_else(|| home().join(".local/share/com.apple.container"), PathBuf::from);
        Self::new(&root)
    }

    /// One by its directory.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: crate::values::absolute(&root.to_string_lossy()) }
    }

    /// Of the server.
    #[must_use]
    pub fn apiserver(&self, name: &str) -> PathBuf {
        self.root.join("apiserver").join(name)
    }

    /// Of the process that keeps the networks.
    #[must_use]
    pub fn network(&self, name: &str) -> PathBuf {
        self.root.join("network").join(name)
    }

    /// The definitions of networks.
    #[must_use]
    pub fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }

    /// All containers.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// A container's directory.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// All volumes.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The default kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.root.join("kernels/default")
    }

    /// The control group of a container's machine. Names of groups know nothing of roots, so the
    /// root is in them as a hash.
    #[must_use]
    pub fn group(&self, id: &str) -> String {
        format!("{}{id}", self.group_prefix())
    }

    /// What the names of all control groups begin with.
    #[must_use]
    pub fn group_prefix(&self) -> String {
        let hash = Sha256::digest(self.root.to_string_lossy().as_bytes());
        format!("/kina-apple-sim-{}-", hex::encode(&hash[..4]))
    }
}
