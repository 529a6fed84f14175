//! The daemon's configuration: parsed and checked once. This is the only home
//! of defaults; `kina config default` prints them.

mod apple;
mod image;
mod locations;
mod machine;
mod metrics;
mod network;
mod streaming;
mod tracing;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::placement::PlacementPolicy;
use crate::pod::context::Paths;
use crate::runtime::RuntimeConfig;

pub use apple::Apple;
pub use image::Image;
pub use locations::Locations;
pub(crate) use locations::home;
pub use machine::{DriverChoice, Machine, Qemu};
pub use metrics::Metrics;
pub use network::Network;
pub use streaming::Streaming;
pub use tracing::Tracing;

/// The most bytes that a unix socket's path may have, so that it works on
/// Linux (108 with the zero at its end) and on macOS (104 with it).
pub const SOCKET_PATH_LIMIT: usize = 103;

/// The name of the guest's program.
const GUEST: &str = "kina-guest";
/// For whoever replaces a container by one of the same image.
const LAYERS_KEPT: Duration = Duration::from_secs(2);

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML, or has keys or values that kina does not know.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A value makes no sense.
    #[error("{key}: {reason}")]
    Value {
        /// The key, for example `log.format`.
        key: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The guest program is nowhere.
    #[error("guest.program: no {GUEST} found in {places}; install it or set the path")]
    GuestMissing {
        /// Where it was looked for.
        places: String,
    },
}

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What lasts: records, images, writable layers.
    pub root: PathBuf,
    /// What does not outlive a boot: sockets, mounts.
    pub run: PathBuf,
    /// The socket for kubelet, crictl and the CLI; `kina.sock` in `run` if empty.
    pub socket: PathBuf,
    /// Absolute cgroup path below which pods go that name no parent.
    pub cgroup_parent: String,
    /// The daemon's log.
    pub log: Log,
    /// The guest.
    pub guest: Guest,
    /// Virtual machines.
    pub machine: Machine,
    /// Where pods go that name no runtime handler.
    pub placement: PlacementPolicy,
    /// Images and registries.
    pub image: Image,
    /// The pods' network.
    pub network: Network,
    /// Where clients of exec, attach and port-forward go.
    pub streaming: Streaming,
    /// Devices by name.
    pub cdi: Cdi,
    /// Where the daemon tells what it counts.
    pub metrics: Metrics,
    /// Where traces of its calls go.
    pub tracing: Tracing,
}

/// Devices by name (Container Device Interface).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cdi {
    /// Directories of specifications; a later one wins.
    pub directories: Vec<PathBuf>,
}

impl Default for Cdi {
    fn default() -> Self {
        Self { directories: vec!["/etc/cdi".into(), "/var/run/cdi".into()] }
    }
}

/// The daemon's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as
    /// `info,kina::pod=debug`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// The guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guest {
    /// The `kina-guest` executable; empty looks beside `kina`, in `../libexec/kina`
    /// from there, then in `/usr/libexec/kina` and `/usr/local/libexec/kina`.
    pub program: PathBuf,
    /// Seconds that a guest may take to answer after its machine was started.
    pub handshake_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        let Locations { root, run, config: _ } = Locations::here();
        Self {
            root,
            run,
            socket: PathBuf::new(),
            cgroup_parent: "/kina".to_owned(),
            log: Log::default(),
            guest: Guest::default(),
            machine: Machine::default(),
            placement: PlacementPolicy::default(),
            image: Image::default(),
            network: Network::default(),
            streaming: Streaming::default(),
            cdi: Cdi::default(),
            metrics: Metrics::default(),
            tracing: Tracing::default(),
        }
    }
}

impl Log {
    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |reason| Err(ConfigError::Value { key: "log.level", reason });
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.level) {
            return refuse(format!("{:?}: {error}", self.level));
        }
        // To the filter any other word is a part of the program, and all others are silent.
        let stray = self.level.split(',').map(str::trim).find(|word| {
            let is_level = word.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
            !is_level && !word.contains(['=', '[']) && !word.starts_with("kina")
        });
        match stray {
            Some(word) => refuse(format!(
                "{word:?} is none of error, warn, info, debug and trace, nor a filter such as \
                 info,kina::pod=debug"
            )),
            None => Ok(()),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self { program: PathBuf::new(), handshake_seconds: 60 }
    }
}

/// The defaults with a word about each, those of Linux.
const DEFAULT_TOML: &str = include_str!("config/default.toml");

/// The defaults with a word about each, as `kina config default` prints them.
#[must_use]
pub fn default_toml() -> String {
    locations::localised(DEFAULT_TOML, &Locations::here())
}

impl Config {
    /// Reads a configuration. Without a path it takes the platform's
    /// ([`Locations::config`]), or the defaults if that does not exist.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, required) = match path {
            Some(path) => (path.to_owned(), true),
            None => (Locations::here().config, false),
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    /// Understands a configuration's text.
    ///
    /// # Errors
    /// With the line and the key.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: error.to_string() })
    }

    /// The socket's path.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        if self.socket.as_os_str().is_empty() { self.run.join("kina.sock") } else { self.socket.clone() }
    }

    /// Checks every value, without touching the machine.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, reason: String| Err(ConfigError::Value { key, reason });
        for (key, path) in [("root", &self.root), ("run", &self.run), ("socket", &self.socket_path())] {
            if !path.is_absolute() {
                return refuse(key, format!("{} is not an absolute path", path.display()));
            }
        }
        if self.root == self.run {
            return refuse(
                "run",
                "must differ from root: what lies in it does not outlive a boot".to_owned(),
            );
        }
        let socket = self.socket_path();
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_LIMIT {
            let path = socket.display();
            return refuse(
                "socket",
                format!("{path} has {length} bytes, at most {SOCKET_PATH_LIMIT} are possible"),
            );
        }
        if !self.cgroup_parent.starts_with('/') || self.cgroup_parent.split('/').any(|part| part == "..") {
            let reason = format!("{:?} is not an absolute path without \"..\"", self.cgroup_parent);
            return refuse("cgroup_parent", reason);
        }
        self.log.check()?;
        at_least_one(&[("guest.handshake_seconds", self.guest.handshake_seconds)])?;
        absolute("guest.program", machine::set(&self.guest.program).as_ref())?;
        self.machine.check()?;
        self.image.check()?;
        self.network.check()?;
        self.streaming.check()?;
        absolute("cdi.directories", &self.cdi.directories)?;
        self.metrics.address()?;
        self.tracing.runtime()?;
        Ok(())
    }

    /// How images are fetched and where they are kept.
    #[must_use]
    pub fn images(&self) -> kina_image::Config {
        let paths = Paths { root: self.root.clone(), run: self.run.clone() };
        self.image.runtime(paths.images())
    }

    /// What the runtime is made from.
    ///
    /// # Errors
    /// When a value makes no sense or the guest program is nowhere.
    pub fn runtime(&self) -> Result<RuntimeConfig, ConfigError> {
        self.check()?;
        let paths = Paths { root: self.root.clone(), run: self.run.clone() };
        let images = self.images();
        // Where only Apple's machines run pods it is in their image.
        let guest_program = match self.guest_program() {
            Err(_) if !kina_node::RUNS_PODS => PathBuf::new(),
            found => found?,
        };
        Ok(RuntimeConfig {
            netns_prefix: netns_prefix(&self.root),
            machine: self.machine.runtime(&guest_program, &paths),
            paths,
            guest_program,
            cgroup_parent: self.cgroup_parent.clone(),
            placement: self.placement,
            handshake_deadline: Duration::from_secs(self.guest.handshake_seconds),
            images,
            network: self.network.runtime(),
            cdi_directories: self.cdi.directories.clone(),
            layers_kept: LAYERS_KEPT,
        })
    }

    /// How QEMU runs virtual machines; `None` if it shall not.
    pub(crate) fn qemu(&self) -> Option<kina_machine_qemu::QemuConfig> {
        let paths = Paths { root: self.root.clone(), run: self.run.clone() };
        self.machine.runtime(&self.guest_program().unwrap_or_default(), &paths).qemu
    }

    /// The image that machines of Apple's `container` boot, as configured or as found.
    pub(crate) fn pod_image(&self) -> PathBuf {
        self.apple().image
    }

    /// Where the sockets of those machines are.
    pub(crate) fn machine_sockets(&self) -> PathBuf {
        self.apple().socket_directory
    }

    fn apple(&self) -> kina_machine_apple::AppleConfig {
        let paths = Paths { root: self.root.clone(), run: self.run.clone() };
        self.machine.apple.runtime(&paths)
    }

    /// The guest program, as configured or as found.
    ///
    /// # Errors
    /// When it is not configured and in none of the usual places.
    pub fn guest_program(&self) -> Result<PathBuf, ConfigError> {
        if !self.guest.program.as_os_str().is_empty() {
            return Ok(self.guest.program.clone());
        }
        let places = places(GUEST);
        places.iter().find(|path| path.is_file()).cloned().ok_or_else(|| ConfigError::GuestMissing {
            places: places.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
        })
    }
}

/// Where a program of kina's may be, the likeliest first.
fn places(program: &str) -> Vec<PathBuf> {
    let here = std::env::current_exe().ok();
    here.iter()
        .flat_map(|exe| around(exe))
        .chain(["/usr/libexec/kina".into(), "/usr/local/libexec/kina".into()])
        .map(|directory: PathBuf| directory.join(program))
        .collect()
}

/// The directories that go with kina's own program: the one that it is in, and the
/// `libexec/kina` of an archive in which it is in `bin`. The program may be a link
/// to where the others are, as Homebrew has it.
fn around(exe: &Path) -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = Vec::new();
    for exe in [Some(exe.to_owned()), exe.canonicalize().ok()].into_iter().flatten() {
        let Some(directory) = exe.parent() else { continue };
        let libexec = directory.parent().map(|above| above.join("libexec/kina"));
        for found in [Some(directory.to_owned()), libexec].into_iter().flatten() {
            if !directories.contains(&found) {
                directories.push(found);
            }
        }
    }
    directories
}

/// The longest that anything may be waited for: a year, in seconds. Points in time that
/// far away can still be told.
const LONGEST_WAIT: u64 = 365 * 24 * 60 * 60;

/// Refuses numbers that are zero, and seconds that are too many.
fn at_least_one(values: &[(&'static str, u64)]) -> Result<(), ConfigError> {
    let refuse = |key, reason: String| Err(ConfigError::Value { key, reason });
    for (key, value) in values {
        if *value == 0 {
            return refuse(key, "must be at least 1".to_owned());
        }
        if key.ends_with("_seconds") && *value > LONGEST_WAIT {
            return refuse(key, format!("{value} is more than a year, {LONGEST_WAIT}"));
        }
    }
    Ok(())
}

/// Refuses what is not a registry's `host` or `host:port`, in the words of registries.
fn registry(key: &'static str, name: &str) -> Result<(), ConfigError> {
    if format!("{name}/a").parse::<kina_image::Reference>().is_ok_and(|parsed| parsed.registry() == name) {
        return Ok(());
    }
    let reason = format!("{name:?} is not a registry's HOST or HOST:PORT, such as registry.example:5000");
    Err(ConfigError::Value { key, reason })
}

/// Refuses paths that are not absolute.
fn absolute<'a>(key: &'static str, paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), ConfigError> {
    match paths.into_iter().find(|path| !path.is_absolute()) {
        Some(path) => {
            let reason = format!("{} is not an absolute path", path.display());
            Err(ConfigError::Value { key, reason })
        }
        None => Ok(()),
    }
}

/// MiB in bytes.
fn mib(value: u64) -> u64 {
    value.saturating_mul(1 << 20)
}

/// What the names of a daemon's network namespaces begin with. Daemons with
/// other roots on the same node must not take each other's for their own.
pub(crate) fn netns_prefix(root: &Path) -> String {
    if root == Config::default().root {
        return "kina-".to_owned();
    }
    // FNV-1a: it only has to tell a few paths of one machine apart, but always
    // in the same way.
    let hash = root.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("kina-{:08x}-", hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("test.toml"))
    }

    #[test]
    fn the_printed_defaults_are_the_defaults() {
        assert_eq!(parse(&default_toml()).unwrap(), Config::default());
        assert!(Config::default().check().is_ok());
    }

    #[test]
    fn the_printed_defaults_name_every_key() {
        fn keys(value: &toml::Value, found: &mut Vec<String>) {
            let toml::Value::Table(table) = value else {
                return;
            };
            for (key, value) in table {
                found.push(key.clone());
                keys(value, found);
            }
        }
        let mut found = Vec::new();
        keys(&toml::Value::try_from(Config::default()).unwrap(), &mut found);
        for key in found {
            let named = |line: &str| {
                line.starts_with(&format!("{key} "))
                    || line == format!("[{key}]")
                    || line == format!("[image.{key}]")
                    || line == format!("[machine.{key}]")
            };
            assert!(DEFAULT_TOML.lines().any(named), "{key} is missing");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("rot = \"/x\"", "unknown field `rot`"),
            ("[log]\nformat = \"xml\"", "unknown variant `xml`"),
            ("root = 3", "invalid type"),
            ("[tracing]\nsampling = 1", "unknown field `sampling`"),
            ("[tracing]\nsampling_rate_per_million = -1", "invalid value"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("test.toml"), "{error}");
        }
        let long = format!("socket = \"/{}\"", "s".repeat(SOCKET_PATH_LIMIT));
        for (text, expected) in [
            ("root = \"relative\"", "root: relative is not an absolute path"),
            ("run = \"/var/lib/kina\"", "run: must differ from root"),
            (long.as_str(), "socket: "),
            ("cgroup_parent = \"/a/../b\"", "cgroup_parent: "),
            ("[log]\nlevel = \"a=b=c\"", "log.level: "),
            ("[log]\nlevel = \"verbose\"", "log.level: \"verbose\" is none of error, warn"),
            ("[log]\nlevel = \"info,very loud\"", "log.level: \"very loud\" is none of"),
            ("[guest]\nprogram = \"bin/kina-guest\"", "guest.program: bin/kina-guest is not"),
            ("[guest]\nhandshake_seconds = 31536001", "guest.handshake_seconds: 31536001 is more"),
            ("[streaming]\nbase_url = \"http://node?a\"", "streaming.base_url: "),
            ("[machine]\nshare_roots = [\"/a/../b\"]", "machine.share_roots: /a/../b has"),
            ("[machine.qemu]\nmodules = [\"../a\"]", "machine.qemu.modules: \"../a\" is not"),
            ("[image]\nca_bundle = \"ca.pem\"", "image.ca_bundle: ca.pem is not"),
            ("[image]\nplain_http = [\"http://a.b\"]", "image.plain_http: \"http://a.b\" is not"),
            ("[image.mirrors]\n\"https://a.b\" = []", "image.mirrors: \"https://a.b\" is not"),
            ("[network]\nplugin_directories = []", "network.plugin_directories: names no directory"),
            ("[network]\nplugin_directories = [\"a\"]", "network.plugin_directories: a is not"),
            ("[network]\nadd_seconds = 0", "network.add_seconds: must be at least 1"),
            ("[streaming]\naddress = \"localhost\"", "streaming.address: \"localhost\" is not"),
            ("[streaming]\naddress = \"[::]:10010\"", "streaming.base_url: "),
            ("[streaming]\nbase_url = \"node:10010\"", "streaming.base_url: "),
            ("[streaming]\ncertificate = \"/c.pem\"", "streaming.key: "),
            ("[streaming]\nkey = \"/k.pem\"", "streaming.certificate: "),
            (
                "[streaming]\ncertificate = \"/c.pem\"\nkey = \"/k.pem\"\nbase_url = \"http://node\"",
                "streaming.base_url: ",
            ),
            ("[streaming]\nclient_ca = \"/ca.pem\"", "streaming.client_ca: "),
            ("[metrics]\naddress = \"9090\"", "metrics.address: \"9090\" is not"),
            (
                "[tracing]\nendpoint = \"127.0.0.1:4317\"",
                "tracing.endpoint: \"127.0.0.1:4317\" does not begin",
            ),
            ("[tracing]\nendpoint = \"localhost\"", "tracing.endpoint: \"localhost\" does not begin"),
            ("[tracing]\nendpoint = \"http://a b\"", "tracing.endpoint: \"http://a b\" is no URL"),
            ("[tracing]\nendpoint = \"http://node\"", "tracing.endpoint: \"http://node\" has no port"),
            (
                "[tracing]\nendpoint = \"http://node:1/v1\"",
                "tracing.endpoint: \"http://node:1/v1\" has a path",
            ),
            ("[tracing]\nendpoint = \"http://a:b@node:1\"", "tracing.endpoint: \"…@node:1\" has a user"),
            (
                "[tracing]\nsampling_rate_per_million = 1000001",
                "tracing.sampling_rate_per_million: 1000001 is more than 1000000",
            ),
            ("[tracing]\nca_bundle = \"ca.pem\"", "tracing.ca_bundle: ca.pem is not"),
            (
                "[tracing]\nendpoint = \"http://node:1\"\nca_bundle = \"/ca.pem\"",
                "tracing.ca_bundle: has no use with \"http://node:1\"",
            ),
            ("[machine]\ncpus = 0", "machine.cpus: must be at least 1"),
            ("[machine]\nshare_roots = [\"data\"]", "machine.share_roots: data is not"),
            ("[machine.qemu]\nkernel = \"/vmlinuz\"", "machine.qemu.kernel_modules: "),
            ("[machine.apple]\nkernel = \"vmlinux\"", "machine.apple.kernel: "),
            ("[machine.apple]\nmtu = 1000", "machine.apple.mtu: "),
            ("[machine.apple]\nnetwork = \"none\"", "machine.apple.network: "),
            ("[machine.apple]\nlimit = 0", "machine.apple.limit: must be at least 1"),
            ("[machine.qemu]\nusers = 0", "machine.qemu.users: must be at least 1"),
            ("[machine.qemu]\nusers = 1", "machine.qemu.users: is less than 2"),
            ("[image]\nhosts_directories = [\"certs.d\"]", "image.hosts_directories: "),
            ("[image.mirrors]\n\"docker.io\" = [\"localhost:5000\"]", "image.mirrors: "),
        ] {
            let error = parse(text).unwrap().check().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn what_people_write_is_good() {
        for text in [
            "[log]\nlevel = \"warn\"",
            "[log]\nlevel = \"INFO,kina::pod=debug,h2=off\"",
            "[log]\nlevel = \"kina\"",
            "[log]\nlevel = \"off,[pod]=trace\"",
            "[image]\nplain_http = [\"localhost\", \"127.0.0.1:5000\", \"[::1]:5000\", \"Registry\"]",
            "[image.mirrors]\n\"docker.io\" = [\"http://127.0.0.1:5000\"]",
            "[tracing]\nendpoint = \"http://[::1]:4317\"\nsampling_rate_per_million = 1000000",
            "[tracing]\nendpoint = \"https://collector.example:4317/\"\nca_bundle = \"/ca.pem\"",
            "[machine.qemu]\nmodules = [\"nf_tables\", \"snd-hda\"]",
        ] {
            assert!(parse(text).unwrap().check().is_ok(), "{text}: {:?}", parse(text).unwrap().check());
        }
    }

    #[test]
    fn programs_are_found_around_kina_s_own() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let at = |path: &str| root.join(path);
        for path in ["Cellar/kina/1/bin", "bin"] {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        std::fs::write(at("Cellar/kina/1/bin/kina"), "").unwrap();
        std::os::unix::fs::symlink(at("Cellar/kina/1/bin/kina"), at("bin/kina")).unwrap();
        let versioned = [at("Cellar/kina/1/bin"), at("Cellar/kina/1/libexec/kina")];
        assert_eq!(around(&at("Cellar/kina/1/bin/kina")), versioned);
        let [bin, libexec] = versioned;
        assert_eq!(around(&at("bin/kina")), [at("bin"), at("libexec/kina"), bin, libexec]);
    }

    #[test]
    fn daemons_with_other_roots_do_not_share_names() {
        assert_eq!(netns_prefix(Path::new("/var/lib/kina")), "kina-");
        let (one, two) = (netns_prefix(Path::new("/tmp/a")), netns_prefix(Path::new("/tmp/b")));
        assert_ne!(one, two);
        // What comes after the prefix must not parse as a pod id of the other.
        assert!(two.starts_with("kina-") && two.len() > "kina-".len());
    }
}
