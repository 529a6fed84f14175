use kina_model::Digest;

/// How far a pull is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The image's layers, lowest first; empty until its manifest is known.
    pub layers: Vec<LayerProgress>,
}

/// How far one layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// The layer as transferred.
    pub digest: Digest,
    /// Its bytes as transferred.
    pub size: u64,
    /// How many of them are here. Falls back when a transfer starts over.
    pub fetched: u64,
    /// What happens to it.
    pub state: LayerState,
}

/// What happens to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// Its turn has not come.
    Waiting,
    /// It is fetched and unpacked.
    Fetching,
    /// It is in the store.
    Done,
}
