//! `[metrics]`

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Where the daemon tells what it counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where Prometheus reads `/metrics`, `IP:PORT`; empty is nowhere.
    pub address: String,
}

impl Metrics {
    /// Where to listen, if anywhere.
    ///
    /// # Errors
    /// When the address makes no sense.
    pub fn address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        if self.address.is_empty() {
            return Ok(None);
        }
        self.address.parse().map(Some).map_err(|_| {
            let reason = format!("{:?} is not IP:PORT, such as 127.0.0.1:9510", self.address);
            ConfigError::Value { key: "metrics.address", reason }
        })
    }
}
