//! The registry side: hosts, authentication, manifests and blobs (OCI
//! distribution-spec 1.1, pull).

mod auth;
mod transport;

pub(crate) use self::auth::{Challenge, challenges};
pub(crate) use self::transport::chain;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kina_model::Digest;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use self::transport::{Transport, secret_header};
use crate::Error;
use crate::config::Config;
use crate::credentials::{Credentials, Kind};
use crate::error::Attempt;
use crate::flight::lock;
use crate::layout::sha256;
use crate::manifest::{self, Blob};
use crate::reference::{DEFAULT_REGISTRY, Reference};

/// Where docker.io's API is.
const DOCKER_HOST: &str = "registry-1.docker.io";
const TOKEN_ANSWER_LIMIT: u64 = 1 << 20;

/// Connections and settings shared by all pulls.
#[derive(Debug)]
pub(crate) struct Registry {
    transport: Transport,
    config: Config,
}

/// One pull's way to its repository: the hosts to ask, with what authenticates.
#[derive(Debug)]
pub(crate) struct Session {
    registry: Arc<Registry>,
    reference: Reference,
    hosts: Vec<Arc<Host>>,
}

/// A host that may serve a repository.
#[derive(Debug)]
pub(crate) struct Host {
    /// Ends in `/v2/`.
    base: Url,
    /// For errors: scheme, host and port.
    label: String,
    /// The registry that a mirror stands in for.
    mirrored: Option<String>,
    credentials: Option<Credentials>,
    authorization: Mutex<Option<HeaderValue>>,
}

/// Why one host did not serve a request.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It does not have it.
    Missing,
    /// It wants other credentials.
    Denied(u16),
    /// It may work at the next try, or at another host.
    Transient(String),
    /// It served something wrong; another host may do better.
    Content(Error),
    /// No host can help.
    Final(Error),
}

/// A fetched manifest or index.
#[derive(Debug)]
pub(crate) struct FetchedManifest {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    pub(crate) media_type: Option<String>,
}

impl Registry {
    pub(crate) fn new(config: &Config) -> Result<Arc<Self>, Error> {
        for (registry, mirrors) in &config.mirrors {
            for url in mirrors {
                mirror_base(registry, url)?;
            }
        }
        Ok(Arc::new(Self { transport: Transport::new(config)?, config: config.clone() }))
    }

    /// Opens a session. Nothing is sent yet.
    pub(crate) fn session(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Arc<Session>, Error> {
        let registry = reference.registry();
        let mut hosts = Vec::new();
        for url in self.config.mirrors.get(registry).into_iter().flatten() {
            hosts.push(Arc::new(Host::new(mirror_base(registry, url)?, Some(registry), None)));
        }
        let host = if registry == DEFAULT_REGISTRY { DOCKER_HOST } else { registry };
        let scheme =
            if self.config.plain_http.iter().any(|plain| plain == registry) { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|_| Error::InvalidReference {
            reference: reference.to_string(),
            reason: "its registry cannot be part of a URL",
        })?;
        let credentials = credentials.filter(|credentials| credentials.applies_to(reference)).cloned();
        hosts.push(Arc::new(Host::new(base, None, credentials)));
        Ok(Arc::new(Session { registry: self.clone(), reference: reference.clone(), hosts }))
    }
}

fn mirror_base(registry: &str, url: &str) -> Result<Url, Error> {
    let invalid = || Error::InvalidMirror { registry: registry.to_owned(), url: url.to_owned() };
    let trimmed = url.trim_end_matches('/');
    let trimmed = trimmed.strip_suffix("/v2").unwrap_or(trimmed);
    let base = Url::parse(&format!("{trimmed}/v2/")).map_err(|_| invalid())?;
    let usable = matches!(base.scheme(), "http" | "https")
        && base.has_host()
        && base.username().is_empty()
        && base.password().is_none()
        && base.query().is_none();
    if usable { Ok(base) } else { Err(invalid()) }
}

impl Host {
    fn new(base: Url, mirrored: Option<&str>, credentials: Option<Credentials>) -> Self {
        let authorization = match credentials.as_ref().map(Credentials::kind) {
            Some(Kind::RegistryToken(token)) => secret_header(&format!("Bearer {token}")),
            _ => None,
        };
        Self {
            label: base.origin().ascii_serialization(),
            base,
            mirrored: mirrored.map(str::to_owned),
            credentials,
            authorization: Mutex::new(authorization),
        }
    }

    fn url(&self, path: &str) -> Result<Url, Failure> {
        let mut url =
            self.base.join(path).map_err(|_| Failure::Transient("its URL is malformed".to_owned()))?;
        if let Some(registry) = &self.mirrored {
            // containerd's convention, for mirrors of several registries.
            url.query_pairs_mut().append_pair("ns", registry);
        }
        Ok(url)
    }
}

impl Session {
    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
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
        let mut tries = self.tries(subject.to_owned());
        while let Some(host) = tries.next().await {
            let fetch = async {
                let response = self.get(&host, subject, &path, Some(manifest::ACCEPT)).await?;
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
                Ok(FetchedManifest { bytes, digest, media_type })
            };
            match self.bounded(fetch).await {
                Ok(fetched) => return Ok(fetched),
                Err(failure) => tries.failed(failure)?,
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
                let response = self.get(&host, &subject, &path, None).await?;
                let bytes = self.registry.transport.body(response, &subject, limit).await?;
                check(&subject, Some(&blob.digest), Some(blob.size), &sha256(&bytes), &bytes)?;
                Ok(bytes)
            };
            match self.bounded(fetch).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => tries.failed(failure)?,
            }
        }
        Err(tries.into_error())
    }

    /// Starts the transfer of a blob from one host; its content is not checked.
    pub(crate) async fn blob(&self, host: &Host, blob: &Blob) -> Result<Response, Failure> {
        let subject = format!("blob {} of {}", blob.digest, self.reference);
        let path = format!("{}/blobs/{}", self.reference.repository(), blob.digest);
        let response = self.bounded(self.get(host, &subject, &path, None)).await?;
        match response.content_length() {
            Some(length) if length != blob.size => {
                Err(Failure::Content(Error::SizeMismatch { subject, expected: blob.size, actual: length }))
            }
            _ => Ok(response),
        }
    }

    /// The hosts to try for one thing, each as often as configured.
    pub(crate) fn tries(&self, subject: String) -> Tries<'_> {
        Tries { session: self, subject, host: 0, attempt: 0, attempts: Vec::new(), last: None }
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let limit = self.registry.config.timeouts.request;
        match tokio::time::timeout(limit, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Transient(format!("no answer within {limit:?}"))),
        }
    }

    /// One GET, authenticated as the host asks for it.
    async fn get(
        &self,
        host: &Host,
        subject: &str,
        path: &str,
        accept: Option<&'static str>,
    ) -> Result<Response, Failure> {
        // Once as known, once after a challenge.
        for last in [false, true] {
            let authorization = lock(&host.authorization).clone();
            let mut request = self.registry.transport.get(host.url(path)?, authorization);
            if let Some(accept) = accept {
                request = request.header(ACCEPT, HeaderValue::from_static(accept));
            }
            let response = self.registry.transport.send(request, host.base.scheme() == "http").await?;
            match response.status() {
                StatusCode::OK => return Ok(response),
                StatusCode::UNAUTHORIZED if !last => {
                    let header = self.authorize(host, subject, &response).await?;
                    *lock(&host.authorization) = Some(header);
                }
                status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                    return Err(Failure::Denied(status.as_u16()));
                }
                StatusCode::NOT_FOUND => return Err(Failure::Missing),
                status => return Err(unexpected_status(host, subject, status)),
            }
        }
        Err(Failure::Denied(StatusCode::UNAUTHORIZED.as_u16()))
    }

    /// Meets a 401's challenge: the `Authorization` header to come with.
    async fn authorize(
        &self,
        host: &Host,
        subject: &str,
        response: &Response,
    ) -> Result<HeaderValue, Failure> {
        let denied = || Failure::Denied(StatusCode::UNAUTHORIZED.as_u16());
        let values = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges = challenges(values.iter().filter_map(|value| value.to_str().ok()));
        let kind = host.credentials.as_ref().map(Credentials::kind);
        for challenge in challenges {
            match (challenge, kind) {
                (
                    Challenge::Bearer { realm, service, scope },
                    None | Some(Kind::Basic { .. } | Kind::IdentityToken(_)),
                ) => {
                    return self.token(host, subject, &realm, service, scope, kind).await;
                }
                (Challenge::Basic, Some(Kind::Basic { username, password })) => {
                    return transport::basic(username, password).ok_or_else(denied);
                }
                // A registry token was sent already and is not good enough; the
                // other combinations do not fit.
                (Challenge::Bearer { .. }, Some(Kind::RegistryToken(_))) | (Challenge::Basic, _) => {}
            }
        }
        Err(denied())
    }

    async fn token(
        &self,
        host: &Host,
        subject: &str,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
        kind: Option<&Kind>,
    ) -> Result<HeaderValue, Failure> {
        let protocol = |reason: String| {
            Failure::Content(Error::Protocol {
                subject: subject.to_owned(),
                host: host.label.clone(),
                reason,
            })
        };
        let mut url =
            Url::parse(realm).map_err(|_| protocol("its token server has no valid URL".to_owned()))?;
        let plain_host = host.base.scheme() == "http";
        if !self.registry.transport.may_ask(&url, plain_host) {
            return Err(protocol("its token server is not on https".to_owned()));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository()));
        let mut fields = vec![("scope", scope)];
        fields.extend(service.map(|service| ("service", service)));
        let label = url.origin().ascii_serialization();
        let request = match kind {
            Some(Kind::IdentityToken(token)) => {
                fields.push(("grant_type", "refresh_token".to_owned()));
                fields.push(("client_id", "kina".to_owned()));
                fields.push(("refresh_token", token.clone()));
                self.registry.transport.post_form(url, &fields)
            }
            Some(Kind::Basic { username, password }) => {
                url.query_pairs_mut().extend_pairs(&fields);
                self.registry.transport.get(url, transport::basic(username, password))
            }
            Some(Kind::RegistryToken(_)) | None => {
                url.query_pairs_mut().extend_pairs(&fields);
                self.registry.transport.get(url, None)
            }
        };
        let response = self.registry.transport.send(request, plain_host).await?;
        match response.status() {
            StatusCode::OK => {}
            // Token servers answer 400 to bad refresh tokens (RFC 6749 §5.2).
            status @ (StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                return Err(Failure::Denied(status.as_u16()));
            }
            status => return Err(unexpected_status(host, subject, status)),
        }
        let bytes = self.registry.transport.body(response, &label, TOKEN_ANSWER_LIMIT).await?;
        let answer: TokenAnswer = manifest::json(&bytes, &label, "token answer").map_err(Failure::Content)?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        token
            .and_then(|token| secret_header(&format!("Bearer {token}")))
            .ok_or_else(|| protocol("its token server gave no token".to_owned()))
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

fn unexpected_status(host: &Host, subject: &str, status: StatusCode) -> Failure {
    if status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
        || status.is_server_error()
    {
        return Failure::Transient(format!("HTTP status {}", status.as_u16()));
    }
    Failure::Content(Error::Protocol {
        subject: subject.to_owned(),
        host: host.label.clone(),
        reason: format!("HTTP status {}", status.as_u16()),
    })
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

/// Goes through the hosts, trying each again after transient failures.
#[derive(Debug)]
pub(crate) struct Tries<'a> {
    session: &'a Session,
    subject: String,
    host: usize,
    attempt: u32,
    attempts: Vec<Attempt>,
    last: Option<(String, Failure)>,
}

impl Tries<'_> {
    /// The next host to ask, after a wait if it is asked again.
    pub(crate) async fn next(&mut self) -> Option<Arc<Host>> {
        let host = self.session.hosts.get(self.host)?.clone();
        if self.attempt > 0 {
            let config = &self.session.registry.config;
            const LONGEST: Duration = Duration::from_secs(30);
            let factor = 1_u32.checked_shl(self.attempt - 1).unwrap_or(u32::MAX);
            tokio::time::sleep(config.retry_delay.saturating_mul(factor).min(LONGEST)).await;
        }
        Some(host)
    }

    /// Notes why the host did not serve it.
    pub(crate) fn failed(&mut self, failure: Failure) -> Result<(), Error> {
        let Some(host) = self.session.hosts.get(self.host) else { return Ok(()) };
        let label = host.label.clone();
        let reason = match &failure {
            Failure::Final(error) => return Err(error.clone()),
            Failure::Missing => "not found".to_owned(),
            Failure::Denied(status) => format!("access denied (HTTP status {status})"),
            Failure::Transient(reason) => reason.clone(),
            Failure::Content(error) => error.to_string(),
        };
        tracing::debug!(subject = %self.subject, host = %label, %reason, attempt = self.attempt, "fetch failed");
        let again = matches!(failure, Failure::Transient(_));
        self.attempt += 1;
        if !again || self.attempt >= self.session.registry.config.attempts {
            self.attempts.push(Attempt { host: label.clone(), reason });
            self.attempt = 0;
            self.host += 1;
        }
        self.last = Some((label, failure));
        Ok(())
    }

    /// The error once there are no more hosts: the registry's own word, as it
    /// is asked last.
    pub(crate) fn into_error(self) -> Error {
        let subject = self.subject;
        match self.last {
            Some((host, Failure::Missing)) => Error::NotFound { subject, host },
            Some((host, Failure::Denied(status))) => Error::Denied { subject, host, status },
            Some((_, Failure::Content(error) | Failure::Final(error))) => error,
            Some((_, Failure::Transient(_))) | None => {
                Error::Unreachable { subject, attempts: self.attempts }
            }
        }
    }
}
