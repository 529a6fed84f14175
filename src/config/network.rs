//! `[network]`

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, absolute, at_least_one};
use crate::network::{AddressPreference, NetworkConfig};

/// The pods' network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// The directory of network configurations (CNI); the first usable file in
    /// the order of names holds.
    pub config_directory: PathBuf,
    /// Where network plugins are looked for, in order.
    pub plugin_directories: Vec<PathBuf>,
    /// Where attachments are recorded, in libcni's format.
    pub cache_directory: PathBuf,
    /// Which of a pod's addresses is its first.
    pub address_preference: AddressPreference,
    /// Whether pods are refused rather than given loopback only while no
    /// network configuration has been seen.
    pub required: bool,
    /// Seconds that connecting a pod may take, with all plugins.
    pub add_seconds: u64,
    /// Seconds that disconnecting one may take.
    pub delete_seconds: u64,
    /// Seconds that plugins may take to say whether they are ready.
    pub status_seconds: u64,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            config_directory: "/etc/cni/net.d".into(),
            plugin_directories: ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"].map(Into::into).into(),
            cache_directory: "/var/lib/cni".into(),
            address_preference: AddressPreference::default(),
            required: false,
            add_seconds: 120,
            delete_seconds: 60,
            status_seconds: 10,
        }
    }
}

impl Network {
    /// What the network is made from.
    pub(crate) fn runtime(&self) -> NetworkConfig {
        NetworkConfig {
            config_directory: self.config_directory.clone(),
            plugin_directories: self.plugin_directories.clone(),
            cache_directory: self.cache_directory.clone(),
            address_preference: self.address_preference,
            required: self.required,
            add_deadline: Duration::from_secs(self.add_seconds),
            delete_deadline: Duration::from_secs(self.delete_seconds),
            status_deadline: Duration::from_secs(self.status_seconds),
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("network.add_seconds", self.add_seconds),
            ("network.delete_seconds", self.delete_seconds),
            ("network.status_seconds", self.status_seconds),
        ])?;
        absolute("network.config_directory", [&self.config_directory])?;
        absolute("network.cache_directory", [&self.cache_directory])?;
        absolute("network.plugin_directories", &self.plugin_directories)?;
        if self.plugin_directories.is_empty() {
            let reason = "names no directory".to_owned();
            return Err(ConfigError::Value { key: "network.plugin_directories", reason });
        }
        Ok(())
    }
}
