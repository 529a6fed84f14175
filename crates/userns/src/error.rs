use std::io;
use std::path::PathBuf;

/// Why something about a user namespace could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A process in a new user namespace could not be made.
    #[error("make a user namespace")]
    Clone(#[source] io::Error),
    /// The kernel did not take a mapping.
    #[error("write {file} of a user namespace")]
    Map {
        /// `uid_map` or `gid_map`.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process in the new user namespace could not make the others.
    #[error("make namespaces in a user namespace")]
    Unshare(#[source] io::Error),
    /// The process in the new user namespace could not be spoken to, or its namespaces not opened.
    #[error("take over new namespaces")]
    TakeOver(#[source] io::Error),
    /// A namespace did not tell its owner.
    #[error("find the user namespace that owns another")]
    Owner(#[source] io::Error),
    /// A mount could not be mapped.
    #[error("id-map a mount")]
    MapMount(#[source] io::Error),
    /// What [`probe`](fn@crate::probe) tried at a path did not work.
    #[error("id-map {} and stand an overlay on it", path.display())]
    Probe {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
