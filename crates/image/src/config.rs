use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::failpoint::Failpoint;
use crate::platform::Platform;

/// How images are fetched and where they are kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the store; made if it is missing. One process at a time.
    pub root: PathBuf,
    /// Registries spoken to without TLS, as host or host:port. Loopback is not
    /// among them unless named.
    pub plain_http: Vec<String>,
    /// For a registry, the base URLs of its mirrors, asked in order before the
    /// registry itself. An `http://` mirror is spoken to without TLS. Mirrors
    /// never see credentials.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// PEM file of root certificates trusted besides the bundled ones. `None`
    /// takes the system's bundle where there is one.
    pub ca_bundle: Option<PathBuf>,
    /// Whether `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` are honoured.
    pub proxy_from_environment: bool,
    /// The platform whose images are chosen.
    pub platform: Platform,
    /// Layers fetched or unpacked at the same time, over all pulls.
    pub max_concurrent_layers: usize,
    /// Bounds on what a registry or an archive can make the store do.
    pub limits: Limits,
    /// Bounds on waiting.
    pub timeouts: Timeouts,
    /// Tries per host before the next host is asked.
    pub attempts: u32,
    /// Wait before the second try; doubled for each further one.
    pub retry_delay: Duration,
    /// For tests: called before and after every change of the store's files.
    pub failpoint: Option<Failpoint>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/kina/images"),
            plain_http: Vec::new(),
            mirrors: BTreeMap::new(),
            ca_bundle: None,
            proxy_from_environment: true,
            platform: Platform::host(),
            max_concurrent_layers: 3,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            attempts: 3,
            retry_delay: Duration::from_millis(500),
            failpoint: None,
        }
    }
}

/// Bounds on sizes and counts.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a manifest or index.
    pub manifest_bytes: u64,
    /// Bytes of an image configuration.
    pub config_bytes: u64,
    /// Layers of an image.
    pub layers: usize,
    /// Bytes of a layer as transferred.
    pub layer_bytes: u64,
    /// Bytes of a layer's uncompressed archive.
    pub unpacked_layer_bytes: u64,
    /// Entries in a layer's archive.
    pub layer_entries: u64,
    /// Bytes of an archive to import, uncompressed.
    pub archive_bytes: u64,
    /// Entries in an archive to import.
    pub archive_entries: usize,
    /// Redirects followed for one request.
    pub redirects: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 4 << 20,
            layers: 256,
            layer_bytes: 64 * GIB,
            unpacked_layer_bytes: 128 * GIB,
            layer_entries: 2_000_000,
            archive_bytes: 256 * GIB,
            archive_entries: 10_000,
            redirects: 5,
        }
    }
}

/// Bounds on waiting.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// For a connection with its TLS handshake.
    pub connect: Duration,
    /// For an answer's headers, and for a whole manifest, configuration or token.
    pub request: Duration,
    /// For the next bytes of a layer. A layer that comes slower than
    /// [`Timeouts::MIN_RATE`] over this time has stalled too.
    pub stall: Duration,
}

impl Timeouts {
    /// Bytes per second below which a transfer counts as stalled.
    pub const MIN_RATE: u64 = 256;
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            request: Duration::from_secs(60),
            stall: Duration::from_secs(30),
        }
    }
}
