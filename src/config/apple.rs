//! `[machine.apple]`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kina_machine_apple::AppleConfig;
use serde::{Deserialize, Serialize};

use super::machine::set;
use super::{ConfigError, absolute, at_least_one, places};
use crate::pod::context::Paths;

/// The image of machines, beside kina.
const IMAGE: &str = "kina-pod.tar";

/// Where Apple's installer, and Homebrew, put `container`.
const PROGRAMS: [&str; 2] = ["/usr/local/bin/container", "/opt/homebrew/bin/container"];

/// The packets that `container` carries.
const MTUS: std::ops::RangeInclusive<u16> = 1280..=65535;

/// The machines that Apple's `container` runs. Empty paths take the usual ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Apple {
    /// `container`.
    pub program: PathBuf,
    /// Variables that it is given beyond the daemon's own.
    pub environment: BTreeMap<String, String>,
    /// The image that machines run.
    pub image: PathBuf,
    /// The kernel; empty takes the one that `container` is configured with.
    pub kernel: PathBuf,
    /// The network that machines are in.
    pub network: String,
    /// Its greatest packet, in bytes.
    pub mtu: u16,
    /// Where the guests' sockets are; `s` in `run` if empty. Its path must be short.
    pub socket_directory: PathBuf,
    /// The most machines at one time.
    pub limit: u32,
    /// Seconds that a boot may take.
    pub boot_seconds: u64,
    /// Seconds that anything else may take that `container` is asked for.
    pub call_seconds: u64,
}

impl Default for Apple {
    fn default() -> Self {
        Self {
            program: PathBuf::new(),
            environment: BTreeMap::new(),
            image: PathBuf::new(),
            kernel: PathBuf::new(),
            network: "default".to_owned(),
            mtu: 1500,
            socket_directory: PathBuf::new(),
            limit: 128,
            boot_seconds: 120,
            call_seconds: 20,
        }
    }
}

impl Apple {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("machine.apple.limit", self.limit.into()),
            ("machine.apple.boot_seconds", self.boot_seconds),
            ("machine.apple.call_seconds", self.call_seconds),
        ])?;
        for (key, path) in [
            ("machine.apple.program", &self.program),
            ("machine.apple.image", &self.image),
            ("machine.apple.kernel", &self.kernel),
            ("machine.apple.socket_directory", &self.socket_directory),
        ] {
            absolute(key, set(path).as_ref())?;
        }
        if !MTUS.contains(&self.mtu) {
            let reason = format!("{} is not from {} to {}", self.mtu, MTUS.start(), MTUS.end());
            return Err(ConfigError::Value { key: "machine.apple.mtu", reason });
        }
        let word = |char: char| char.is_ascii_alphanumeric() || "-_.".contains(char);
        if self.network.is_empty() || self.network == "none" || !self.network.chars().all(word) {
            let reason =
                format!("{:?} is no network's name; `container network list` shows them", self.network);
            return Err(ConfigError::Value { key: "machine.apple.network", reason });
        }
        Ok(())
    }

    /// `container`: what is configured, or where it usually is.
    pub(crate) fn program(&self) -> PathBuf {
        set(&self.program).unwrap_or_else(|| present(PROGRAMS.map(PathBuf::from).into()))
    }

    pub(super) fn runtime(&self, paths: &Paths) -> AppleConfig {
        let image = set(&self.image).unwrap_or_else(|| present(places(IMAGE)));
        let sockets = set(&self.socket_directory).unwrap_or_else(|| paths.run.join("s"));
        AppleConfig {
            program: self.program(),
            environment: self.environment.clone().into_iter().collect(),
            kernel: set(&self.kernel),
            network: self.network.clone(),
            mtu: self.mtu,
            limit: usize::try_from(self.limit).unwrap_or(usize::MAX),
            call_deadline: Duration::from_secs(self.call_seconds),
            boot_deadline: Duration::from_secs(self.boot_seconds),
            ..AppleConfig::new(image, paths.run_pods(), sockets)
        }
    }
}

/// The first place where something is. Of those that are not there the first is named as missing.
fn present(places: Vec<PathBuf>) -> PathBuf {
    let found = places.iter().find(|path| path.is_file()).or(places.first());
    found.cloned().unwrap_or_default()
}
