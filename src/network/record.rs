//! What the store keeps of a pod's attachment to a network.

use kina_model::PodId;
use kina_store::Record;
use serde::{Deserialize, Serialize};

/// Written before the plugins are first called for a pod, deleted after they
/// have undone it: as long as it is there, they may have made something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// The pod, also the key.
    pub pod: PodId,
    /// The network's name.
    pub network: String,
    /// Its configuration as it was then, as JSON: what has been made is undone
    /// by the plugins that made it, whatever the administrator does meanwhile.
    pub configuration: String,
}

impl Record for NetworkRecord {
    const TABLE: &'static str = "networks";
    const VERSION: u32 = 1;
}
