//! One pull's way to its repository.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kina_model::Digest;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue, IF_RANGE, RANGE, RETRY_AFTER,
};
use reqwest::{Method, Request, Response, StatusCode};
use serde::Deserialize;

use super::tries::Tries;
use super::{Failure, Host, Registry};
use crate::Error;
use crate::layout::sha256;
use crate::manifest::{self, Blob};
use crate::reference::Reference;

/// Requests for one thing: as known, with another's new token, with an own one.
const MAX_AUTHORIZED: usize = 3;
/// How much of an error's body is read.
const ERROR_LIMIT: usize = 8 << 10;

/// The hosts to ask, with what authenticates there.
#[derive(Debug)]
pub(crate) struct Session {
    registry: Arc<Registry>,
    reference: Reference,
    hosts: Vec<Arc<Host>>,
}

/// A fetched manifest or index.
#[derive(Debug)]
pub(crate) struct FetchedManifest {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    pub(crate) media_type: Option<String>,
}

/// A blob's bytes, from somewhere on.
#[derive(Debug)]
pub(crate) struct BlobBody {
    pub(crate) response: Response,
    /// Bytes at its beginning that are known already, because the host could
    /// not leave them out.
    pub(crate) known: u64,
    /// What names this content at this host.
    pub(crate) validator: Option<HeaderValue>,
}

/// What is asked for.
struct Ask<'a> {
    path: &'a str,
    accept: Option<&'static str>,
    /// The first byte, and what the content must still be.
    from: Option<(u64, Option<&'a HeaderValue>)>,
}

impl Session {
    pub(super) fn new(registry: Arc<Registry>, reference: Reference, hosts: Vec<Host>) -> Self {
        Self { registry, reference, hosts: hosts.into_iter().map(Arc::new).collect() }
    }

    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Fetches a manifest by the reference's tag or digest.
    pub(crate) async fn manifest(&self) -> Result<FetchedManifest, Error> {
        let subject = self.reference.to_string();
        match (self.reference.tag(), self.reference.digest()) {
            (Some(tag), _) => self.fetch_manifest(&subject, tag, None).await,
            (None, digest) => {
                let digest = digest.cloned();
                let path = digest.as_ref().map_or("", Digest::as_str);
                self.fetch_manifest(&subject, path, digest.as_ref().map(|digest| (digest, None))).await
            }
        }
    }

    /// Fetches a manifest that an index names.
    pub(crate) async fn manifest_of(&self, blob: &Blob) -> Result<FetchedManifest, Error> {
        let subject = format!("manifest {} of {}", blob.digest, self.reference);
        self.fetch_manifest(&subject, blob.digest.as_str(), Some((&blob.digest, Some(blob.size)))).await
    }

    async fn fetch_manifest(
        &self,
        subject: &str,
        name: &str,
        expected: Option<(&Digest, Option<u64>)>,
    ) -> Result<FetchedManifest, Error> {
        let path = format!("{}/manifests/{name}", self.reference.repository());
        let limit = self.registry.config.limits.manifest_bytes;
        let mut tries = match expected {
            Some(_) => self.tries(subject.to_owned()),
            None => {
                self.tries_of(subject.to_owned(), Host::resolves, "its hosts.toml lets it resolve no tags")
            }
        };
        while let Some(host) = tries.next().await {
            let fetch = async {
                let ask = Ask { path: &path, accept: Some(manifest::ACCEPT), from: None };
                let response = self.get(&host, ask).await?;
                let header = |name: &str| {
                    response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
                };
                let stated = header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
                let media_type = header(CONTENT_TYPE.as_str());
                let bytes = self.registry.transport.body(response, subject, limit).await?;
                let digest = sha256(&bytes);
                let size = expected.and_then(|(_, size)| size);
                check(
                    subject,
                    expected.map(|(digest, _)| digest).or(stated.as_ref()),
                    size,
                    &digest,
                    &bytes,
                )?;
                if expected.is_none() {
                    // Nothing else tells whether it is what was asked for: a
                    // portal's page is a 200 as well.
                    manifest::parse(
                        &bytes,
                        media_type.as_deref(),
                        subject,
                        self.registry.config.limits.layers,
                    )
                    .map_err(Failure::Content)?;
                }
                Ok(FetchedManifest { bytes, digest, media_type })
            };
            match self.bounded(fetch).await {
                Ok(fetched) => return Ok(fetched),
                Err(failure) => tries.failed(failure),
            }
        }
        Err(tries.into_error())
    }

    /// Fetches a small blob whole.
    pub(crate) async fn small_blob(&self, blob: &Blob, limit: u64) -> Result<Bytes, Error> {
        let subject = format!("blob {} of {}", blob.digest, self.reference);
        if blob.size > limit {
            return Err(Error::TooLarge { subject, what: "bytes", limit });
        }
        let path = format!("{}/blobs/{}", self.reference.repository(), blob.digest);
        let mut tries = self.tries(subject.clone());
        while let Some(host) = tries.next().await {
            let fetch = async {
                let response = self.get(&host, Ask { path: &path, accept: None, from: None }).await?;
                let bytes = self.registry.transport.body(response, &subject, limit).await?;
                check(&subject, Some(&blob.digest), Some(blob.size), &sha256(&bytes), &bytes)?;
                Ok(bytes)
            };
            match self.bounded(fetch).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => tries.failed(failure),
            }
        }
        Err(tries.into_error())
    }

    /// Starts the transfer of a blob from one host, at its beginning or, where
    /// the host can, later. The content is not checked.
    pub(crate) async fn blob(
        &self,
        host: &Host,
        blob: &Blob,
        from: u64,
        validator: Option<&HeaderValue>,
    ) -> Result<BlobBody, Failure> {
        let path = format!("{}/blobs/{}", self.reference.repository(), blob.digest);
        let later = (from > 0 && host.has_ranges()).then_some((from, validator));
        if later.is_some() {
            let ask = Ask { path: &path, accept: None, from: later };
            let response = self.bounded(self.get(host, ask)).await?;
            if response.status() != StatusCode::PARTIAL_CONTENT {
                if response.status() == StatusCode::OK {
                    return self.whole_blob(response, blob, from);
                }
            } else if continues(&response, from, blob.size) {
                return Ok(BlobBody { validator: validator_of(&response), response, known: 0 });
            }
            // It does not know ranges well enough.
            host.without_ranges();
        }
        let response = self.bounded(self.get(host, Ask { path: &path, accept: None, from: None })).await?;
        self.whole_blob(response, blob, from)
    }

    fn whole_blob(&self, response: Response, blob: &Blob, known: u64) -> Result<BlobBody, Failure> {
        match response.content_length() {
            Some(actual) if actual != blob.size => {
                let subject = format!("blob {} of {}", blob.digest, self.reference);
                Err(Failure::Content(Error::SizeMismatch { subject, expected: blob.size, actual }))
            }
            _ => Ok(BlobBody { validator: validator_of(&response), response, known }),
        }
    }

    /// The hosts to try for one thing that has a digest, each as often as configured.
    pub(crate) fn tries(&self, subject: String) -> Tries<'_> {
        self.tries_of(subject, Host::pulls, "its hosts.toml lets it serve no content")
    }

    fn tries_of(&self, subject: String, may: impl Fn(&Host) -> bool, reason: &str) -> Tries<'_> {
        let (able, unable): (Vec<_>, Vec<_>) = self.hosts.iter().cloned().partition(|host| may(host));
        let mut tries = Tries::new(&self.registry.config, subject, able);
        for host in unable {
            tries.leave_out(&host, reason);
        }
        tries
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let limit = self.registry.config.timeouts.request;
        match tokio::time::timeout(limit, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::transient(format!("no answer within {limit:?}"))),
        }
    }

    /// One GET, authenticated as the host asks for it.
    async fn get(&self, host: &Host, ask: Ask<'_>) -> Result<Response, Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            let authorization = host.authorization();
            let mut request = Request::new(Method::GET, host.url(ask.path)?);
            let headers = request.headers_mut();
            if let Some(header) = &authorization {
                headers.insert(AUTHORIZATION, header.clone());
            }
            if let Some(accept) = ask.accept {
                headers.insert(ACCEPT, HeaderValue::from_static(accept));
            }
            if let Some((first, validator)) = ask.from {
                let range = HeaderValue::from_str(&format!("bytes={first}-"));
                headers.insert(RANGE, range.map_err(|_| Failure::transient("no such range"))?);
                if let Some(validator) = validator {
                    headers.insert(IF_RANGE, validator.clone());
                }
            }
            let response = self.registry.transport.send(host, request).await?;
            match response.status() {
                StatusCode::OK => return Ok(response),
                StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if ask.from.is_some() => {
                    return Ok(response);
                }
                StatusCode::UNAUTHORIZED if tries < MAX_AUTHORIZED => {
                    self.renew(host, authorization.as_ref(), &response).await?;
                }
                status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                    return Err(Failure::denied(status.as_u16()));
                }
                StatusCode::NOT_FOUND => return Err(Failure::Missing),
                _ => return Err(refused_status(response).await),
            }
        }
    }
}

/// What an unexpected status means.
pub(super) async fn refused_status(response: Response) -> Failure {
    let status = response.status();
    let after = response.headers().get(RETRY_AFTER).and_then(retry_after);
    let code = error_code(response).await.map_or_else(String::new, |code| format!(" {code}"));
    let reason = format!("HTTP status {}{code}", status.as_u16());
    if status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
        || status.is_server_error()
    {
        return Failure::Transient { reason, after };
    }
    Failure::Protocol(reason)
}

/// The code that a registry gives with an error. Its message could repeat what
/// it was sent, which must not get into a log.
async fn error_code(mut response: Response) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Code>,
    }
    #[derive(Deserialize)]
    struct Code {
        code: String,
    }
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        if bytes.len() + chunk.len() > ERROR_LIMIT {
            return None;
        }
        bytes.extend_from_slice(&chunk);
    }
    let errors: Errors = serde_json::from_slice(&bytes).ok()?;
    let code = errors.errors.into_iter().next()?.code;
    let word = code.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    (word && (1..=40).contains(&code.len())).then_some(code)
}

/// Seconds, or a date (RFC 9110 §10.2.3).
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let date = UNIX_EPOCH + Duration::from_secs(u64::try_from(date.as_second()).ok()?);
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Whether a 206 holds the rest of a blob.
fn continues(response: &Response, from: u64, size: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let length = response.content_length();
    range.is_some_and(|range| is_rest(range, from, size)) && length.is_none_or(|length| length == size - from)
}

/// `bytes 5-9/10` (RFC 9110 §14.4).
fn is_rest(text: &str, from: u64, size: u64) -> bool {
    let parsed = || {
        let (unit, range) = text.trim().split_once(' ')?;
        let (range, total) = range.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let whole = total == "*" || total.parse() == Ok(size);
        let rest = first.parse() == Ok(from) && last.parse::<u64>().ok()?.checked_add(1) == Some(size);
        Some(unit.eq_ignore_ascii_case("bytes") && whole && rest)
    };
    parsed().unwrap_or(false)
}

/// A strong entity tag; a weak one says nothing about bytes (RFC 9110 §13.1.5).
fn validator_of(response: &Response) -> Option<HeaderValue> {
    response.headers().get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")).cloned()
}

fn check(
    subject: &str,
    digest: Option<&Digest>,
    size: Option<u64>,
    actual: &Digest,
    bytes: &Bytes,
) -> Result<(), Failure> {
    let got = bytes.len() as u64;
    if let Some(expected) = size.filter(|size| *size != got) {
        let subject = subject.to_owned();
        return Err(Failure::Content(Error::SizeMismatch { subject, expected, actual: got }));
    }
    match digest {
        Some(expected) if expected != actual => Err(Failure::Content(Error::DigestMismatch {
            subject: subject.to_owned(),
            expected: expected.clone(),
            actual: actual.clone(),
        })),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rest_continues() {
        for (text, rest) in [
            ("bytes 5-9/10", true),
            ("Bytes 5-9/*", true),
            ("bytes 4-9/10", false),
            ("bytes 5-8/10", false),
            ("bytes 5-9/11", false),
            ("bytes */10", false),
            ("items 5-9/10", false),
            ("bytes 5-18446744073709551615/10", false),
            ("", false),
        ] {
            assert_eq!(is_rest(text, 5, 10), rest, "{text}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let read = |text: &str| retry_after(&HeaderValue::from_str(text).unwrap());
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert!(read("Tue, 31 Dec 2999 23:59:59 GMT").is_some_and(|wait| wait.as_secs() > 1 << 32));
        for text in ["", "-1", "soon", "1.5"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
