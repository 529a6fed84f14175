//! HTTP: clients, redirects, bounded bodies.

use std::error::Error as _;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, HeaderValue, LOCATION};
use reqwest::{Client, Method, Request, Response, StatusCode, Url};
use rustls::RootCertStore;

use super::Failure;
use super::hosts::Host;
use super::hosts_file::Tls;
use super::tls;
use crate::Error;
use crate::config::Config;

#[derive(Debug)]
pub(crate) struct Transport {
    usual: Clients,
    roots: RootCertStore,
    plain_http: Vec<String>,
    redirects: usize,
    connect: Duration,
    proxy: bool,
}

/// The clients for one host.
#[derive(Clone, Debug)]
pub(crate) struct Clients {
    /// For the host itself.
    own: Client,
    /// For where the host sends us: it is checked against the host's authorities,
    /// but always checked, and does not see the host's client certificates.
    onward: Client,
}

impl Transport {
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let roots = tls::usual_roots(config.ca_bundle.as_deref())?;
        let (connect, proxy) = (config.timeouts.connect, config.proxy_from_environment);
        let client = client(tls::client_config(&roots, &Tls::default())?, connect, proxy)?;
        Ok(Self {
            usual: Clients { own: client.clone(), onward: client },
            roots,
            plain_http: config.plain_http.clone(),
            redirects: config.limits.redirects,
            connect,
            proxy,
        })
    }

    /// The clients for a host with these settings. Blocking: it reads the
    /// certificates.
    pub(super) fn clients(&self, tls: &Tls, dial_timeout: Option<Duration>) -> Result<Clients, Error> {
        if *tls == Tls::default() && dial_timeout.is_none() {
            return Ok(self.usual.clone());
        }
        let connect = dial_timeout.unwrap_or(self.connect);
        let own = client(tls::client_config(&self.roots, tls)?, connect, self.proxy)?;
        let onward = if tls.authorities.is_empty() {
            self.usual.onward.clone()
        } else {
            let authorities = Tls { authorities: tls.authorities.clone(), ..Tls::default() };
            client(tls::client_config(&self.roots, &authorities)?, self.connect, self.proxy)?
        };
        Ok(Clients { own, onward })
    }

    /// A request with a form. What else is sent is a plain `GET`.
    pub(super) fn form(&self, url: Url, fields: &[(&str, String)]) -> Result<Request, Failure> {
        self.usual.own.post(url).form(fields).build().map_err(|error| Failure::transient(chain(error)))
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
        authority(url).is_some_and(|authority| self.plain_http.contains(&authority))
    }

    /// Why a host may not send us to a URL.
    pub(super) fn objection(&self, host: &Host, url: &Url) -> Option<&'static str> {
        if !self.may_ask(url, host.is_plain()) {
            return Some(if url.scheme() == "http" {
                "which is http, but it is asked with https itself"
            } else {
                "which is neither http nor https"
            });
        }
        if !url.has_host() {
            return Some("which names no host");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Some("which holds credentials");
        }
        if is_local(url) && !is_local(host.base()) {
            return Some("which is an address of this machine or link, where it is not itself");
        }
        None
    }

    /// Sends a host's request and follows redirects, a bounded number of times.
    ///
    /// Neither the `Authorization` header nor those configured for the host go to
    /// another host, scheme or port.
    pub(super) async fn send(&self, host: &Host, mut request: Request) -> Result<Response, Failure> {
        if host.is_at(request.url()) {
            for (name, value) in &host.headers {
                // What the host's challenge asked for wins over what is configured.
                if name != AUTHORIZATION || !request.headers().contains_key(AUTHORIZATION) {
                    request.headers_mut().append(name.clone(), value.clone());
                }
            }
        }
        for _ in 0..=self.redirects {
            // A body cannot be sent again; only token requests have one.
            let again = (request.method() == Method::GET).then(|| request.try_clone()).flatten();
            let from = request.url().clone();
            let at_host = host.is_at(&from);
            let client = if at_host { &host.clients.own } else { &host.clients.onward };
            let response = match client.execute(request).await {
                Ok(response) => response,
                Err(error) => match again {
                    Some(mut plain)
                        if at_host
                            && from.scheme() == "https"
                            && speaks_no_tls(&error)
                            && host.fall_back() =>
                    {
                        host.make_plain(plain.url_mut());
                        request = plain;
                        continue;
                    }
                    Some(_) | None => return Err(unanswered(error, (!at_host).then(|| place(&from)))),
                },
            };
            let redirect = matches!(
                response.status(),
                StatusCode::MOVED_PERMANENTLY
                    | StatusCode::FOUND
                    | StatusCode::SEE_OTHER
                    | StatusCode::TEMPORARY_REDIRECT
                    | StatusCode::PERMANENT_REDIRECT
            );
            let Some(mut next) = again.filter(|_| redirect) else { return Ok(response) };
            let target = response
                .headers()
                .get(LOCATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|location| from.join(location).ok())
                .ok_or_else(|| Failure::Protocol("it redirects to what is no URL".to_owned()))?;
            if let Some(reason) = self.objection(host, &target) {
                // The rest of the URL may be signed.
                let place = place(&target);
                return Err(Failure::Protocol(format!("it redirects to {place}, {reason}")));
            }
            if target.origin() != from.origin() {
                next.headers_mut().remove(AUTHORIZATION);
                for name in host.headers.keys() {
                    next.headers_mut().remove(name);
                }
            }
            *next.url_mut() = target;
            request = next;
        }
        Err(Failure::Protocol(format!("more than {} redirects", self.redirects)))
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
        while let Some(chunk) = response.chunk().await.map_err(|error| Failure::transient(chain(error)))? {
            if bytes.len() as u64 + chunk.len() as u64 > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }
}

fn client(tls: rustls::ClientConfig, connect: Duration, proxy: bool) -> Result<Client, Error> {
    let mut builder = Client::builder()
        .use_preconfigured_tls(tls)
        .connect_timeout(connect)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        // Content is hashed as it was stored, so no encoding may be undone on the way.
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .user_agent(concat!("kina/", env!("CARGO_PKG_VERSION")));
    if !proxy {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|source| Error::HttpClient { source: std::sync::Arc::new(source) })
}

/// Host and, unless it is the scheme's own, port.
pub(super) fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// A URL without what may be secret in it.
pub(super) fn place(url: &Url) -> String {
    match url.has_host() && matches!(url.scheme(), "http" | "https") {
        true => url.origin().ascii_serialization(),
        false => format!("a {}: URL", url.scheme()),
    }
}

/// Whether a URL's host is written as an address of this machine or of its link,
/// where cloud providers answer with secrets. Names are not looked up.
fn is_local(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    if host == "localhost" || host.ends_with(".localhost") {
        return true;
    }
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(address) => match address.to_canonical() {
            IpAddr::V4(address) => {
                address.is_loopback() || address.is_link_local() || address.is_unspecified()
            }
            IpAddr::V6(address) => {
                address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified()
            }
        },
        Err(_) => false,
    }
}

/// Whether a host answered, but not with TLS.
fn speaks_no_tls(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| match (tls_error(cause), cause.downcast_ref::<io::Error>()) {
        (Some(tls), _) => matches!(tls, rustls::Error::InvalidMessage(_)),
        // A plain server that hangs up on what it takes for nonsense.
        (None, Some(io)) => {
            matches!(io.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
                && error.is_connect()
        }
        (None, None) => false,
    })
}

/// Why there was no answer. Certificates do not become better by trying again.
/// `elsewhere` is where the host has sent us.
fn unanswered(error: reqwest::Error, elsewhere: Option<String>) -> Failure {
    let hint = causes(&error).find_map(tls_error).and_then(tls::hint);
    let mut reason = chain(error);
    if let Some(place) = elsewhere {
        reason = format!("{place}, where it sends us: {reason}");
    }
    match hint {
        Some(hint) => Failure::Certificate(format!("{reason}: {hint}")),
        None => Failure::transient(reason),
    }
}

fn tls_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    cause.downcast_ref()
}

/// What caused an error, the nearest first.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |&cause| {
        // What an I/O error wraps is not its source, but that one's source is.
        match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => cause.source(),
        }
    })
}

/// The error with its causes, without the URL: it may be signed.
pub(crate) fn chain(error: reqwest::Error) -> String {
    crate::error::chain(&error.without_url())
}

pub(super) fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    secret_header(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

/// A header value that is never shown; `None` if the text cannot be one.
pub(crate) fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_machine_are_known() {
        for (url, local) in [
            ("http://localhost/", true),
            ("http://a.localhost:1/", true),
            ("http://127.0.0.1/", true),
            ("http://127.1/", true),
            ("http://2130706433/", true),
            ("http://0.0.0.0/", true),
            ("http://169.254.169.254/latest", true),
            ("http://[::1]:5000/", true),
            ("http://[fe80::1]/", true),
            ("http://[::ffff:127.0.0.1]/", true),
            ("http://10.0.0.1/", false),
            ("https://registry.example/", false),
            ("https://[2001:db8::1]/", false),
        ] {
            assert_eq!(is_local(&Url::parse(url).unwrap()), local, "{url}");
        }
    }
}
