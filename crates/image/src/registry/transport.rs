//! HTTP: TLS roots, redirects, bounded bodies.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, HeaderValue, LOCATION};
use reqwest::{Client, Request, Response, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};

use super::Failure;
use crate::Error;
use crate::config::Config;

/// Where systems keep their root certificates, as one PEM file.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

#[derive(Debug)]
pub(crate) struct Transport {
    client: Client,
    plain_http: Vec<String>,
    redirects: usize,
}

impl Transport {
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let http_client =
            |source: Box<dyn std::error::Error + Send + Sync>| Error::HttpClient { source: source.into() };
        let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(bundle) = bundle(config.ca_bundle.as_deref()) {
            // Bundles hold certificates too old for today's rules; those are left out.
            let (added, ignored) = roots.add_parsable_certificates(read_certificates(&bundle)?);
            tracing::debug!(bundle = %bundle.display(), added, ignored, "root certificates");
        }
        let mut tls =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|source| http_client(source.into()))?
                .with_root_certificates(roots)
                .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut builder = Client::builder()
            .use_preconfigured_tls(tls)
            .connect_timeout(config.timeouts.connect)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            // Content is hashed as it was stored, so no encoding may be undone on the way.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .user_agent(concat!("kina/", env!("CARGO_PKG_VERSION")));
        if !config.proxy_from_environment {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|source| http_client(source.into()))?;
        Ok(Self { client, plain_http: config.plain_http.clone(), redirects: config.limits.redirects })
    }

    pub(super) fn get(&self, url: Url, authorization: Option<HeaderValue>) -> reqwest::RequestBuilder {
        let request = self.client.get(url);
        match authorization {
            Some(header) => request.header(AUTHORIZATION, header),
            None => request,
        }
    }

    pub(super) fn post_form(&self, url: Url, fields: &[(&str, String)]) -> reqwest::RequestBuilder {
        self.client.post(url).form(fields)
    }

    /// Whether a request may go to this URL: always with TLS; without it if
    /// the registry itself has none or the host is configured so.
    pub(super) fn may_ask(&self, url: &Url, from_plain: bool) -> bool {
        match url.scheme() {
            "https" => true,
            "http" => from_plain || self.is_plain(url),
            _ => false,
        }
    }

    fn is_plain(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        self.plain_http.contains(&authority)
    }

    /// Sends a request and follows redirects, a bounded number of times. The
    /// `Authorization` header never goes to another host, scheme or port.
    pub(super) async fn send(
        &self,
        request: reqwest::RequestBuilder,
        plain: bool,
    ) -> Result<Response, Failure> {
        let transient = |error: reqwest::Error| Failure::Transient(chain(error));
        let mut request: Request = request.build().map_err(transient)?;
        for _ in 0..=self.redirects {
            // A body cannot be sent again; only token requests have one.
            let next = (request.method() == reqwest::Method::GET).then(|| request.try_clone()).flatten();
            let from = request.url().clone();
            let response = self.client.execute(request).await.map_err(transient)?;
            let redirect = matches!(
                response.status(),
                StatusCode::MOVED_PERMANENTLY
                    | StatusCode::FOUND
                    | StatusCode::SEE_OTHER
                    | StatusCode::TEMPORARY_REDIRECT
                    | StatusCode::PERMANENT_REDIRECT
            );
            let Some(mut next) = next.filter(|_| redirect) else { return Ok(response) };
            let target = response
                .headers()
                .get(LOCATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|location| from.join(location).ok())
                .filter(|target| self.may_ask(target, plain))
                .ok_or_else(|| Failure::Transient("it redirects to nowhere usable".to_owned()))?;
            if target.origin() != from.origin() {
                next.headers_mut().remove(AUTHORIZATION);
            }
            *next.url_mut() = target;
            request = next;
        }
        Err(Failure::Transient(format!("more than {} redirects", self.redirects)))
    }

    /// A whole body of bounded size.
    pub(super) async fn body(
        &self,
        mut response: Response,
        subject: &str,
        limit: u64,
    ) -> Result<Bytes, Failure> {
        let too_large =
            || Failure::Content(Error::TooLarge { subject: subject.to_owned(), what: "bytes", limit });
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut bytes = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| Failure::Transient(chain(error)))? {
            if bytes.len() as u64 + chunk.len() as u64 > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }
}

/// The error with its causes, without the URL: it may be signed.
pub(crate) fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

pub(super) fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    secret_header(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

/// A header value that is never shown; `None` if the text cannot be one.
pub(super) fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn bundle(configured: Option<&Path>) -> Option<PathBuf> {
    match configured {
        Some(path) => Some(path.to_owned()),
        None => SYSTEM_BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()),
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |source: pem::Error| Error::Certificates { path: path.to_owned(), source: Arc::new(source) };
    CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}
