//! TLS as a host wants it: roots, client certificates, and no verification
//! where that is asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::hosts_file::Tls;
use crate::Error;

/// Where systems keep their root certificates, as one PEM file.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The roots that every host is checked against: the bundled ones and the
/// configured or the system's bundle.
pub(super) fn usual_roots(configured: Option<&Path>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let bundle = match configured {
        Some(path) => Some(path.to_owned()),
        None => SYSTEM_BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()),
    };
    if let Some(bundle) = bundle {
        // Bundles hold certificates too old for today's rules; those are left out.
        let (added, ignored) = roots.add_parsable_certificates(certificates(&bundle)?);
        tracing::debug!(bundle = %bundle.display(), added, ignored, "root certificates");
    }
    Ok(roots)
}

/// A client's settings for one host. Blocking: it reads the certificates.
pub(super) fn client_config(usual: &RootCertStore, tls: &Tls) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = usual.clone();
    for path in &tls.authorities {
        let found = certificates(path)?;
        let (added, _) = roots.add_parsable_certificates(found);
        if added == 0 {
            return Err(unusable(path, "holds no certificate that can be trusted; a PEM file is expected"));
        }
    }
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|source| Error::HttpClient { source: Arc::new(source) })?;
    let builder = if tls.skip_verify == Some(true) {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider.clone())))
    } else {
        builder.with_root_certificates(roots)
    };
    let mut config = if tls.client.is_empty() {
        builder.with_no_client_auth()
    } else {
        let keys = tls.client.iter().map(|(certificate, key)| identity(&provider, certificate, key));
        builder.with_client_cert_resolver(Arc::new(Identities(keys.collect::<Result<_, _>>()?)))
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = unreadable(path);
    CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}

fn unreadable(path: &Path) -> impl Fn(pem::Error) -> Error + Copy {
    |source| Error::Certificates { path: path.to_owned(), source: Arc::new(source) }
}

fn unusable(path: &Path, reason: &'static str) -> Error {
    Error::UnusableCertificate { path: path.to_owned(), reason }
}

fn identity(provider: &CryptoProvider, certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, Error> {
    let chain = certificates(certificate)?;
    if chain.is_empty() {
        return Err(unusable(certificate, "holds no certificate; a PEM file is expected"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| match source {
        pem::Error::NoItemsFound => unusable(key, "holds no private key in PEM form"),
        source => unreadable(key)(source),
    })?;
    let signer = provider
        .key_provider
        .load_private_key(private)
        .map_err(|_| unusable(key, "holds a private key of a kind that cannot be used"))?;
    let identity = CertifiedKey::new(chain, signer);
    match identity.keys_match() {
        // Some kinds of key cannot be compared; then the server will tell.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(Arc::new(identity))
        }
        Err(_) => Err(unusable(key, "holds the key of another certificate")),
    }
}

/// Client certificates: of those that the server understands, the first from an
/// authority that it names.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Identities {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let usable = |identity: &&Arc<CertifiedKey>| identity.key.choose_scheme(schemes).is_some();
        // An authority is named by its encoded subject, which is part of every
        // certificate that it issued.
        let issued = |identity: &&Arc<CertifiedKey>| {
            identity.cert.iter().any(|certificate| {
                authorities.iter().any(|name| {
                    !name.is_empty() && certificate.windows(name.len()).any(|window| window == *name)
                })
            })
        };
        let mut named = self.0.iter().filter(usable).filter(issued);
        named.next().or_else(|| self.0.iter().find(usable)).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// What to do about a connection that failed because of a certificate, ours or
/// the host's; `None` if it failed for something else.
pub(super) fn hint(error: &rustls::Error) -> Option<&'static str> {
    use rustls::{AlertDescription, CertificateError};
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            Some("nobody whom we trust has signed its certificate: set ca in its hosts.toml to who has")
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Some("ask it by a name that its certificate has"),
        rustls::Error::InvalidCertificate(_) => Some("it needs another certificate"),
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        ) => Some("it wants a certificate of ours: set client in its hosts.toml to one that it takes"),
        _ => None,
    }
}

/// Takes every certificate, but not a broken handshake.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
