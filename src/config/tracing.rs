//! `[tracing]`

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tonic::codegen::http::Uri;

use super::{ConfigError, absolute};
use crate::spans::ExportConfig;

/// Where traces of the daemon's calls go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tracing {
    /// The collector that takes OTLP by gRPC, `http://HOST:PORT` or `https://HOST:PORT`;
    /// empty makes no traces.
    pub endpoint: String,
    /// Of a million calls whose caller says nothing of a trace, so many are traced.
    pub sampling_rate_per_million: u32,
    /// PEM file of further authorities for the collector's certificate.
    pub ca_bundle: PathBuf,
}

impl Tracing {
    /// What the export is made from, if there is one.
    ///
    /// # Errors
    /// When a value makes no sense.
    pub fn runtime(&self) -> Result<Option<ExportConfig>, ConfigError> {
        let refuse = |key, reason: String| Err(ConfigError::Value { key, reason });
        if self.sampling_rate_per_million > 1_000_000 {
            let reason =
                format!("{} is more than 1000000, which traces every call", self.sampling_rate_per_million);
            return refuse("tracing.sampling_rate_per_million", reason);
        }
        let ca_bundle = Some(self.ca_bundle.clone()).filter(|path| !path.as_os_str().is_empty());
        absolute("tracing.ca_bundle", &ca_bundle)?;
        if self.endpoint.is_empty() {
            return Ok(None);
        }
        let endpoint = match endpoint(&self.endpoint) {
            Ok(endpoint) => endpoint,
            Err(problem) => {
                // What stands before an @ may be a password.
                let shown = match self.endpoint.rsplit_once('@') {
                    Some((_, rest)) => format!("\"…@{rest}\""),
                    None => format!("{:?}", self.endpoint),
                };
                let reason = format!(
                    "{shown} {problem}; it is http://HOST:PORT or, with TLS, https://HOST:PORT, such as \
                     http://127.0.0.1:4317"
                );
                return refuse("tracing.endpoint", reason);
            }
        };
        if ca_bundle.is_some() && endpoint.scheme_str() == Some("http") {
            let reason = format!("has no use with {:?}, which is without TLS; use https://", self.endpoint);
            return refuse("tracing.ca_bundle", reason);
        }
        let sampled = f64::from(self.sampling_rate_per_million) / 1e6;
        Ok(Some(ExportConfig { endpoint, ca_bundle, sampled }))
    }
}

/// Understands an endpoint, or says what is wrong with it.
fn endpoint(text: &str) -> Result<Uri, &'static str> {
    let uri: Uri = text.parse().map_err(|_| "is no URL")?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("does not begin with http:// or https://");
    }
    let authority = uri.authority().ok_or("names no host")?;
    if authority.host().is_empty() {
        return Err("names no host");
    }
    if authority.as_str().contains('@') {
        return Err("has a user's name, which nobody reads");
    }
    if authority.port_u16().is_none() {
        return Err("has no port");
    }
    if uri.path_and_query().is_some_and(|rest| rest.as_str() != "/") {
        return Err("has a path, which gRPC has no use for");
    }
    Ok(uri)
}
