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
mod tests;
