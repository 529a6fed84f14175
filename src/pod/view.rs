//! What readers see of a pod: snapshots, published by its actor after every
//! change. Reading one never waits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kina_model::{
    ContainerId, ContainerImage, ContainerSpec, ContainerState, Digest, Nanos, PodId, PodSpec, PodState,
    Process,
};
use serde::{Deserialize, Serialize};

/// A pod as of its last change.
#[derive(Clone, Debug)]
pub struct PodView {
    /// Its id.
    pub id: PodId,
    /// As asked for.
    pub spec: Arc<PodSpec>,
    /// Where it stands.
    pub state: PodState,
    /// When it was asked for.
    pub created_at: Nanos,
    /// Name of the machine driver that runs it.
    pub machine: &'static str,
    /// Its containers.
    pub containers: BTreeMap<ContainerId, Arc<ContainerView>>,
}

/// A container as of its last change.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerView {
    /// Its id.
    pub id: ContainerId,
    /// The pod that it belongs to.
    pub pod: PodId,
    /// As asked for.
    pub spec: Arc<ContainerSpec>,
    /// The image it runs.
    pub image: ContainerImage,
    /// The images that it mounts, in the order of its mounts.
    pub image_volumes: Vec<Digest>,
    /// What it runs.
    pub process: Process,
    /// Its log file on the node.
    pub log_path: Option<PathBuf>,
    /// Where it stands.
    pub state: ContainerState,
    /// When it was asked for.
    pub created_at: Nanos,
    /// Its user, once made, and its first process as its machine numbers it.
    pub identity: Option<Identity>,
}

impl ContainerView {
    /// The images that it uses.
    pub fn images(&self) -> impl Iterator<Item = &Digest> {
        std::iter::once(&self.image.id).chain(&self.image_volumes)
    }
}

/// What the guest says of a container that it has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process id, in the machine; 0 until it has been started.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further group ids.
    pub supplemental_groups: Vec<u32>,
}

/// Snapshots for tests of what reads them.
#[cfg(test)]
pub(crate) mod test_support {
    use kina_model::{Signal, User};

    use super::*;

    pub(crate) fn pod(
        id: PodId,
        state: PodState,
        containers: BTreeMap<ContainerId, Arc<ContainerView>>,
    ) -> PodView {
        let spec = kina_testkit::spec::pod("p");
        PodView { id, spec: Arc::new(spec), state, created_at: 1, machine: "fake", containers }
    }

    pub(crate) fn container(id: ContainerId, pod: PodId, state: ContainerState) -> ContainerView {
        let digest: kina_model::Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let image = ContainerImage {
            requested: "i".into(),
            user_specified: String::new(),
            annotations: BTreeMap::new(),
            id: digest,
            reference: String::new(),
            volumes: Vec::new(),
        };
        let process = Process {
            args: Vec::new(),
            env: Vec::new(),
            cwd: "/".into(),
            user: User::Uid(0),
            stop_signal: Signal::TERM,
        };
        let spec = Arc::new(kina_testkit::spec::container("c", "i"));
        let (log_path, created_at, identity) = (None, 1, None);
        let image_volumes = Vec::new();
        ContainerView { id, pod, spec, image, image_volumes, process, log_path, state, created_at, identity }
    }
}
