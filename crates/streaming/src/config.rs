//! Bounds, times and TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::error::Error;

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Speak TLS, with these files.
    pub tls: Option<TlsFiles>,
    /// How long a URL works. Default: one minute.
    pub token_lifetime: Duration,
    /// URLs that wait for their client at once. Default: 1000.
    pub tokens: usize,
    /// Connections at once; further ones wait to be accepted. Default: 1024.
    pub connections: usize,
    /// How long a client may take for TLS and its HTTP request. Default: 10 s.
    pub request_timeout: Duration,
    /// How long a client may take to open the streams that belong together. Default: 30 s.
    pub creation_timeout: Duration,
    /// How long a session may be quiet. Default: 4 h.
    pub idle_timeout: Duration,
    /// How often a quiet client is tried, so that a vanished one is noticed. Default: 20 s.
    pub keepalive: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tls: None,
            token_lifetime: Duration::from_secs(60),
            tokens: 1000,
            connections: 1024,
            request_timeout: Duration::from_secs(10),
            creation_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(4 * 60 * 60),
            keepalive: Duration::from_secs(20),
        }
    }
}

/// A certificate with its chain, and its private key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate first, then those that signed it.
    pub certificate: PathBuf,
    /// PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// The authorities whose certificates clients must show; none are asked for
    /// without.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    pub(crate) fn load(&self) -> Result<Arc<ServerConfig>, Error> {
        let certificates = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|source| Error::Certificate { path: self.certificate.clone(), source })?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|source| Error::Key { path: self.key.clone(), source })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|source| Error::Tls { path: self.certificate.clone(), source })?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => builder.with_client_cert_verifier(clients_of(path, provider)?),
        };
        let mut config = builder
            .with_single_cert(certificates, key)
            .map_err(|source| Error::Tls { path: self.certificate.clone(), source })?;
        // Upgrades are HTTP/1.1's.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Lets in who shows a certificate of these authorities.
fn clients_of(path: &Path, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let refuse = |source| Error::Certificate { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(refuse)? {
        let added = roots.add(certificate.map_err(refuse)?);
        added.map_err(|source| Error::Tls { path: path.to_owned(), source })?;
    }
    let roots = Arc::new(roots);
    WebPkiClientVerifier::builder_with_provider(roots, provider)
        .build()
        .map_err(|source| Error::ClientAuthority { path: path.to_owned(), source })
}
