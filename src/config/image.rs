//! `[image]`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, absolute, at_least_one, mib, registry};

/// Images and registries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    /// Directories with one directory per registry, in containerd's layout.
    pub hosts_directories: Vec<PathBuf>,
    /// Registries spoken to without TLS, as `host` or `host:port`.
    pub plain_http: Vec<String>,
    /// Base URLs of a registry's mirrors, asked in order before the registry.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Docker's configuration files, for pulls that bring no credentials.
    pub docker_configs: Vec<PathBuf>,
    /// Where credential helpers are looked for besides the `PATH`.
    pub credential_helper_directories: Vec<PathBuf>,
    /// PEM file of further root certificates; empty takes the system's.
    pub ca_bundle: PathBuf,
    /// Layers fetched or unpacked at the same time.
    pub max_concurrent_layers: usize,
    /// The largest layer as transferred, in MiB.
    pub max_layer_mib: u64,
    /// The largest layer unpacked, in MiB.
    pub max_unpacked_layer_mib: u64,
    /// Layers of one image.
    pub max_layers: usize,
    /// Entries in one layer; unpacking holds about 250 bytes of memory for each.
    pub max_layer_entries: u64,
    /// Seconds after which a transfer without progress is given up.
    pub stall_seconds: u64,
}

impl Default for Image {
    fn default() -> Self {
        let limits = kina_image::Limits::default();
        let timeouts = kina_image::Timeouts::default();
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        Self {
            hosts_directories: paths(&[
                "/etc/kina/certs.d",
                "/etc/containerd/certs.d",
                "/etc/docker/certs.d",
            ]),
            plain_http: Vec::new(),
            mirrors: BTreeMap::new(),
            docker_configs: paths(&["/etc/kina/docker-config.json"]),
            credential_helper_directories: paths(&["/usr/local/bin", "/opt/homebrew/bin"]),
            ca_bundle: PathBuf::new(),
            max_concurrent_layers: kina_image::Config::default().max_concurrent_layers,
            max_layer_mib: limits.layer_bytes >> 20,
            max_unpacked_layer_mib: limits.unpacked_layer_bytes >> 20,
            max_layers: limits.layers,
            max_layer_entries: limits.layer_entries,
            stall_seconds: timeouts.stall.as_secs(),
        }
    }
}

impl Image {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("image.max_concurrent_layers", self.max_concurrent_layers as u64),
            ("image.max_layer_mib", self.max_layer_mib),
            ("image.max_unpacked_layer_mib", self.max_unpacked_layer_mib),
            ("image.max_layers", self.max_layers as u64),
            ("image.max_layer_entries", self.max_layer_entries),
            ("image.stall_seconds", self.stall_seconds),
        ])?;
        absolute("image.hosts_directories", &self.hosts_directories)?;
        absolute("image.docker_configs", &self.docker_configs)?;
        absolute("image.credential_helper_directories", &self.credential_helper_directories)?;
        absolute("image.ca_bundle", Some(&self.ca_bundle).filter(|path| !path.as_os_str().is_empty()))?;
        self.plain_http.iter().try_for_each(|name| registry("image.plain_http", name))?;
        self.mirrors.keys().try_for_each(|name| registry("image.mirrors", name))?;
        let is_url = |url: &&String| url.starts_with("http://") || url.starts_with("https://");
        for (name, urls) in &self.mirrors {
            if let Some(url) = urls.iter().find(|url| !is_url(url)) {
                let reason = format!("{url:?} of {name:?} does not begin with http:// or https://");
                return Err(ConfigError::Value { key: "image.mirrors", reason });
            }
        }
        Ok(())
    }

    /// How images are fetched; they are kept at `root`.
    pub(super) fn runtime(&self, root: PathBuf) -> kina_image::Config {
        kina_image::Config {
            root,
            hosts_directories: self.hosts_directories.clone(),
            plain_http: self.plain_http.clone(),
            mirrors: self.mirrors.clone(),
            docker_configs: self.docker_configs.clone(),
            credential_helper_directories: self.credential_helper_directories.clone(),
            ca_bundle: Some(self.ca_bundle.clone()).filter(|path| !path.as_os_str().is_empty()),
            max_concurrent_layers: self.max_concurrent_layers,
            limits: kina_image::Limits {
                layer_bytes: mib(self.max_layer_mib),
                unpacked_layer_bytes: mib(self.max_unpacked_layer_mib),
                layers: self.max_layers,
                layer_entries: self.max_layer_entries,
                ..kina_image::Limits::default()
            },
            timeouts: kina_image::Timeouts {
                stall: Duration::from_secs(self.stall_seconds),
                ..kina_image::Timeouts::default()
            },
            ..kina_image::Config::default()
        }
    }
}
