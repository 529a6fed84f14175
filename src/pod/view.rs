//! What readers see of a pod: snapshots, published by its actor after every
//! change. Reading one never waits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kina_model::{
    ContainerId, ContainerImage, ContainerSpec, ContainerState, Nanos, PodId, PodSpec, PodState, Process,
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
    /// What it runs.
    pub process: Process,
    /// Its log file on the node.
    pub log_path: Option<PathBuf>,
    /// Where it stands.
    pub state: ContainerState,
    /// When it was asked for.
    pub created_at: Nanos,
    /// Its first process as its machine numbers it, and its user, once made.
    pub identity: Option<Identity>,
}

/// What the guest says of a container that it has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process id, in the machine.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further group ids.
    pub supplemental_groups: Vec<u32>,
}
