//! What the store keeps of pods and containers.

use std::path::PathBuf;

use kina_model::{
    ContainerId, ContainerImage, ContainerSpec, ContainerState, Digest, Nanos, PodId, PodSpec, PodState,
    Process,
};
use kina_store::Record;
use serde::{Deserialize, Serialize};

use super::view::Identity;

/// A pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodRecord {
    /// Its id, also the key.
    pub id: PodId,
    /// As asked for.
    pub spec: PodSpec,
    /// Where it stood.
    pub state: PodState,
    /// When it was asked for.
    pub created_at: Nanos,
}

impl Record for PodRecord {
    const TABLE: &'static str = "pods";
    const VERSION: u32 = 1;
}

/// A container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id, also the key.
    pub id: ContainerId,
    /// The pod that it belongs to.
    pub pod: PodId,
    /// As asked for.
    pub spec: ContainerSpec,
    /// The image it runs.
    pub image: ContainerImage,
    /// The images that it mounts, in the order of its mounts.
    #[serde(default)]
    pub image_volumes: Vec<Digest>,
    /// The layers of all its images by their uncompressed digest.
    pub layers: Vec<Digest>,
    /// What it runs.
    pub process: Process,
    /// Its log file on the node.
    pub log_path: Option<PathBuf>,
    /// Where it stood.
    pub state: ContainerState,
    /// When it was asked for.
    pub created_at: Nanos,
    /// What the guest said when it was made.
    pub identity: Option<Identity>,
}

impl ContainerRecord {
    /// The images that it uses.
    pub fn images(&self) -> impl Iterator<Item = &Digest> {
        std::iter::once(&self.image.id).chain(&self.image_volumes)
    }
}

impl Record for ContainerRecord {
    const TABLE: &'static str = "containers";
    const VERSION: u32 = 1;
}
