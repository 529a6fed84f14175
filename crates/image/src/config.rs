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
    /// Directories with one directory per registry (`<host>`, `<host>_<port>_`,
    /// `<host>:<port>`, `_default`), in containerd's layout: a `hosts.toml`, or
    /// else certificates as Docker keeps them. They are read for every pull.
    ///
    /// The first directory that has the registry is all that counts for it. Then
    /// come `mirrors`, then the first that has `_default`.
    pub hosts_directories: Vec<PathBuf>,
    /// Registries spoken to without TLS, as host or host:port, where no
    /// `hosts.toml` gives the URL. Unasked, only a registry on loopback is: on
    /// port 80, and on others than 443 where it turns out not to speak TLS. Its
    /// certificate is not checked either. This is as containerd has it.
    pub plain_http: Vec<String>,
    /// The short form of a `hosts.toml`: for a registry, the base URLs of its
    /// mirrors, asked in order before the registry itself. An `http://` mirror is
    /// spoken to without TLS.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Docker's configuration files, asked in order for credentials that the
    /// caller of a pull has not given. Those that do not exist have none.
    pub docker_configs: Vec<PathBuf>,
    /// Where credential helpers are looked for besides the `PATH`.
    pub credential_helper_directories: Vec<PathBuf>,
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
    /// Failures of one host in a row before the next host is asked. A layer's
    /// transfer that breaks off goes on where it was, and counts only if it has
    /// brought nothing.
    pub attempts: u32,
    /// Wait before the second try; doubled for each further one, and then made
    /// up to a half shorter by chance.
    pub retry_delay: Duration,
    /// For tests: called before and after every change of the store's files.
    pub failpoint: Option<Failpoint>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/kina/images"),
            hosts_directories: Vec::new(),
            plain_http: Vec::new(),
            mirrors: BTreeMap::new(),
            docker_configs: Vec::new(),
            credential_helper_directories: Vec::new(),
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
    /// How often the transfer of one layer goes on after it has broken off.
    pub resumes: u32,
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
            resumes: 100,
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
    /// How long a host's `Retry-After` is obeyed. One that wants more is given up.
    pub retry_after: Duration,
    /// For a credential helper's answer.
    pub credential_helper: Duration,
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
            retry_after: Duration::from_secs(60),
            credential_helper: Duration::from_secs(20),
        }
    }
}
