//! `[streaming]`

use std::net::SocketAddr;
use std::path::PathBuf;

use kina_streaming::TlsFiles;
use serde::{Deserialize, Serialize};

use super::{ConfigError, absolute};
use crate::streaming::StreamingConfig;

/// Where clients of exec, attach and port-forward go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streaming {
    /// Where the server listens, `IP:PORT`; port 0 takes a free one.
    pub address: String,
    /// What URLs begin with; empty makes it of the address.
    pub base_url: String,
    /// PEM file of the certificate with its chain; empty is no TLS.
    pub certificate: PathBuf,
    /// PEM file of its private key.
    pub key: PathBuf,
    /// PEM file of the authorities whose clients may connect; empty asks clients for
    /// no certificate.
    pub client_ca: PathBuf,
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:0".to_owned(),
            base_url: String::new(),
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            client_ca: PathBuf::new(),
        }
    }
}

impl Streaming {
    /// What the server is made from.
    ///
    /// # Errors
    /// When a value makes no sense.
    pub fn runtime(&self) -> Result<StreamingConfig, ConfigError> {
        let refuse = |key, reason: String| Err(ConfigError::Value { key, reason });
        let Ok(address) = self.address.parse::<SocketAddr>() else {
            let reason = format!("{:?} is not IP:PORT, such as 127.0.0.1:0", self.address);
            return refuse("streaming.address", reason);
        };
        let is_url = self.base_url.starts_with("http://") || self.base_url.starts_with("https://");
        if !self.base_url.is_empty() && !is_url {
            let reason = format!("{:?} does not begin with http:// or https://", self.base_url);
            return refuse("streaming.base_url", reason);
        }
        if self.base_url.contains(['?', '#']) {
            let reason = format!("{:?} has a query or a fragment; URLs go on with a path", self.base_url);
            return refuse("streaming.base_url", reason);
        }
        if self.base_url.is_empty() && address.ip().is_unspecified() {
            let reason = format!("is needed, because nobody can connect to {}", address.ip());
            return refuse("streaming.base_url", reason);
        }
        let is_set = |path: &PathBuf| !path.as_os_str().is_empty();
        let tls = match (is_set(&self.certificate), is_set(&self.key)) {
            (false, false) => None,
            (true, true) => Some(TlsFiles {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
                client_ca: Some(self.client_ca.clone()).filter(is_set),
            }),
            (true, false) => return refuse("streaming.key", "is needed with a certificate".to_owned()),
            (false, true) => return refuse("streaming.certificate", "is needed with a key".to_owned()),
        };
        match &tls {
            Some(files) => {
                absolute("streaming.certificate", [&files.certificate])?;
                absolute("streaming.key", [&files.key])?;
                absolute("streaming.client_ca", &files.client_ca)?;
                if self.base_url.starts_with("http://") {
                    let reason =
                        format!("{:?} leads to a server that speaks TLS; use https://", self.base_url);
                    return refuse("streaming.base_url", reason);
                }
            }
            None if is_set(&self.client_ca) => {
                return refuse(
                    "streaming.client_ca",
                    "needs streaming.certificate and streaming.key".to_owned(),
                );
            }
            None => {}
        }
        let base_url = Some(self.base_url.clone()).filter(|url| !url.is_empty());
        Ok(StreamingConfig { address, base_url, tls })
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.runtime().map(drop)
    }
}
