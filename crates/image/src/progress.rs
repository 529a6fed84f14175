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
    /// Bytes that were transferred for it, with those that came more than once.
    pub transferred: u64,
    /// How often the transfer broke off and went on.
    pub resumed: u32,
    /// What happens to it.
    pub state: LayerState,
}

/// What happens to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// Its turn has not come.
    Waiting,
    /// It is fetched, and unpacked on the way.
    Fetching,
    /// All of it is here and the rest is unpacked.
    Unpacking,
    /// It is in the store.
    Done,
}

/// How far the work on one layer is, for all pulls that wait for it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LayerWork {
    pub(crate) fetched: u64,
    pub(crate) transferred: u64,
    pub(crate) resumed: u32,
    pub(crate) unpacking: bool,
}
