use std::path::PathBuf;
use std::time::Duration;

/// What machines are made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppleConfig {
    /// Apple's `container`.
    pub program: PathBuf,
    /// Its environment beyond the daemon's own.
    pub environment: Vec<(String, String)>,
    /// The archive of the image that machines run, as `cargo xtask pod-image` makes it.
    pub image: PathBuf,
    /// The kernel; `None` takes the one that `container` is configured with.
    pub kernel: Option<PathBuf>,
    /// The network that machines are in.
    pub network: String,
    /// Its greatest packet, in bytes.
    pub mtu: u16,
    /// Where the daemon keeps pods: a machine's directory is
    /// `<pods directory>/<pod id>/machine`.
    pub pods_directory: PathBuf,
    /// Where the guests' sockets are. Its path must be short.
    pub socket_directory: PathBuf,
    /// The most machines that run at one time.
    pub limit: usize,
    /// How long `container` may take for anything but a boot.
    pub call_deadline: Duration,
    /// How long it may take for one.
    pub boot_deadline: Duration,
}

impl AppleConfig {
    /// The usual values.
    #[must_use]
    pub fn new(image: PathBuf, pods_directory: PathBuf, socket_directory: PathBuf) -> Self {
        Self {
            program: "/usr/local/bin/container".into(),
            environment: Vec::new(),
            image,
            kernel: None,
            network: "default".to_owned(),
            mtu: 1500,
            pods_directory,
            socket_directory,
            limit: 128,
            call_deadline: Duration::from_secs(20),
            boot_deadline: Duration::from_secs(120),
        }
    }
}

/// Why there can be no machines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// In words for the user: what is missing and what to do about it.
    pub reason: String,
}
