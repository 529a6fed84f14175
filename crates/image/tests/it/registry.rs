//! A registry on loopback that can misbehave.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kina_image::{Config, Images, Platform, Reference};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::fixtures::TestImage;

/// What a path answers with.
#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) manner: Manner,
    /// Whether a request for the rest of the body gets just that.
    pub(crate) ranges: bool,
}

#[derive(Clone)]
pub(crate) enum Manner {
    /// With its length.
    Whole,
    /// In chunked encoding, the length unknown.
    Chunked,
    /// Announces the whole, sends this many bytes of what was asked for and hangs up.
    HangUpAfter(usize),
    /// Announces the whole, sends this many bytes and goes silent.
    StallAfter(usize),
    /// Exactly this, status line and all.
    Raw(Vec<Step>),
    /// Sends half, and the rest once there is a permit.
    Gated(Arc<Semaphore>),
}

#[derive(Clone)]
pub(crate) enum Step {
    Send(Vec<u8>),
    /// Again and again with a pause in between, until the client hangs up.
    Forever(Vec<u8>, Duration),
    /// Until the client hangs up.
    Silence,
}

impl Reply {
    pub(crate) fn raw(steps: impl Into<Vec<Step>>) -> Self {
        Self::ok("").manner(Manner::Raw(steps.into()))
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.into(), manner: Manner::Whole, ranges: false }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::ok("") }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn manner(mut self, manner: Manner) -> Self {
        self.manner = manner;
        self
    }

    /// Serves the rest of the body where that is asked for.
    pub(crate) fn ranges(mut self) -> Self {
        self.ranges = true;
        self
    }

    /// What a request with `Range` and `If-Range` gets (RFC 9110 §14.2, §13.1.5).
    fn narrowed(mut self, seen: &Seen) -> Self {
        let (range, if_range) = (seen.header("range"), seen.header("if-range"));
        let first = range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        let Some(first) = first.filter(|_| self.ranges && self.status == 200) else { return self };
        let tag = self.headers.iter().find(|(name, _)| name == "ETag").map(|(_, tag)| tag);
        if if_range.is_some() && if_range.as_ref() != tag {
            return self;
        }
        let (first, total): (usize, usize) = (first.parse().unwrap(), self.body.len());
        if first >= total {
            return Self::status(416).header("Content-Range", format!("bytes */{total}"));
        }
        self.status = 206;
        self.body.drain(..first);
        self.header("Content-Range", format!("bytes {first}-{}/{total}", total - 1))
    }
}

/// What it asks for.
#[derive(Clone, Default)]
pub(crate) enum Access {
    #[default]
    Anyone,
    /// `user:password`
    Basic(&'static str),
    /// Tokens from `/token`; for `user:password`, a refresh token, or anyone.
    Bearer(Option<&'static str>),
}

pub(crate) const TOKEN: &str = "short-lived-token";

#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) authorization: Option<String>,
    /// All headers, their names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Seen {
    fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
    }
}

#[derive(Default)]
struct State {
    routes: HashMap<String, Vec<Reply>>,
    access: Access,
    seen: Vec<Seen>,
    /// Bytes of bodies that were sent, by path.
    sent: HashMap<String, u64>,
}

pub(crate) struct Registry {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Registry {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// One that speaks TLS only.
    pub(crate) async fn start_tls(config: Arc<rustls::ServerConfig>) -> Self {
        Self::start_with(Some(TlsAcceptor::from(config))).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let own = format!("{scheme}://{address}");
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, own, tls) = (shared.clone(), own.clone(), tls.clone());
                tokio::spawn(async move {
                    // The client may hang up at any time.
                    let Some(tls) = tls else { return drop(serve(stream, state, own).await) };
                    match tls.accept(stream).into_fallible().await {
                        Ok(stream) => drop(serve(stream, state, own).await),
                        // What is left unread would reset the connection before
                        // the client has the reason.
                        Err((_, mut stream)) => {
                            let _ = stream.shutdown().await;
                            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                        }
                    }
                });
            }
        });
        Self { address, state, accepting }
    }

    /// Forgets all routes and wants nobody's password.
    pub(crate) fn reset(&self) {
        *self.state.lock().unwrap() = State::default();
    }

    pub(crate) fn require(&self, access: Access) {
        self.state.lock().unwrap().access = access;
    }

    /// Answers a path with these replies in turn, the last one again and again.
    pub(crate) fn route_in_turn(&self, path: &str, replies: Vec<Reply>) {
        self.state.lock().unwrap().routes.insert(path.to_owned(), replies);
    }

    pub(crate) fn route(&self, path: &str, reply: Reply) {
        self.route_in_turn(path, vec![reply]);
    }

    /// Serves an image's manifest by tag and digest, and its blobs.
    pub(crate) fn serve_image(&self, repository: &str, tag: &str, image: &TestImage) {
        let manifest = Reply::ok(image.manifest.clone()).header("Content-Type", &*image.manifest_type);
        for name in [tag, image.manifest_digest().as_str()] {
            self.route(&format!("/v2/{repository}/manifests/{name}"), manifest.clone());
        }
        for blob in &image.blobs {
            self.route(&blob_path(repository, blob), Reply::ok(blob.clone()));
        }
    }

    pub(crate) fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    pub(crate) fn count(&self, path: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path == path).count()
    }

    /// How its directory of certificates and hosts is called.
    pub(crate) fn directory(&self) -> String {
        format!("{}_", self.address.replace(':', "_"))
    }

    /// Bytes of bodies that were sent for a path, whatever arrived.
    pub(crate) fn sent(&self, path: &str) -> u64 {
        self.state.lock().unwrap().sent.get(path).copied().unwrap_or_default()
    }

    /// What was asked for at a path, in order: `Range` and `If-Range`.
    pub(crate) fn ranges(&self, path: &str) -> Vec<(Option<String>, Option<String>)> {
        let asked = self.seen().into_iter().filter(|seen| seen.path == path);
        asked.map(|seen| (seen.header("range"), seen.header("if-range"))).collect()
    }

    /// A store's configuration that speaks to this registry and does not wait long.
    pub(crate) fn config(&self, root: &std::path::Path) -> Config {
        let mut config = config(root);
        config.plain_http = vec![self.address.clone()];
        config
    }

    pub(crate) async fn store(&self, root: &std::path::Path) -> Images {
        Images::open(self.config(root)).await.unwrap()
    }
}

pub(crate) fn config(root: &std::path::Path) -> Config {
    let mut config = Config {
        root: root.to_owned(),
        platform: Platform::linux("amd64"),
        proxy_from_environment: false,
        attempts: 2,
        retry_delay: Duration::from_millis(1),
        ..Config::default()
    };
    config.timeouts.request = Duration::from_secs(20);
    config
}

pub(crate) fn blob_path(repository: &str, blob: &[u8]) -> String {
    format!("/v2/{repository}/blobs/{}", crate::fixtures::digest(blob))
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    state: Arc<Mutex<State>>,
    own: String,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let (mut authorization, mut length, mut headers) = (None, 0, Vec::new());
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        match name.to_ascii_lowercase().as_str() {
            "authorization" => authorization = Some(value.trim().to_owned()),
            "content-length" => length = value.trim().parse().unwrap(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let seen = Seen {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        authorization,
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let reply = answer(&mut state.lock().unwrap(), &seen, &own);
    let count = |bytes: usize| {
        *state.lock().unwrap().sent.entry(seen.path.clone()).or_default() += bytes as u64;
    };
    send(stream.into_inner(), reply, count).await
}

fn answer(state: &mut State, seen: &Seen, own: &str) -> Reply {
    state.seen.push(seen.clone());
    let given = seen.authorization.as_deref();
    let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
    if seen.path == "/token" {
        let Access::Bearer(wanted) = &state.access else { return Reply::status(404) };
        let allowed = match wanted {
            None => true,
            Some(pair) => given == Some(&basic(pair)) || seen.body.contains(&format!("refresh_token={pair}")),
        };
        return if allowed {
            Reply::ok(format!(r#"{{"token":"{TOKEN}","expires_in":60}}"#))
        } else {
            Reply::status(401)
        };
    }
    if seen.path.starts_with("/v2/") {
        let denied = |challenge: String| Reply::status(401).header("WWW-Authenticate", challenge);
        match &state.access {
            Access::Basic(pair) if given != Some(&basic(pair)) => {
                return denied("Basic realm=\"test\"".to_owned());
            }
            Access::Bearer(_) if given != Some(&format!("Bearer {TOKEN}")) => {
                return denied(format!("Bearer realm=\"{own}/token\",service=\"test\""));
            }
            _ => {}
        }
    }
    let reply = match state.routes.get_mut(&seen.path) {
        None => Reply::status(404),
        Some(replies) if replies.len() > 1 => replies.remove(0),
        Some(replies) => replies[0].clone(),
    };
    reply.narrowed(seen)
}

async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    reply: Reply,
    count: impl Fn(usize),
) -> std::io::Result<()> {
    if let Manner::Raw(steps) = &reply.manner {
        for step in steps {
            match step {
                Step::Send(bytes) => stream.write_all(bytes).await?,
                Step::Forever(bytes, pause) => loop {
                    stream.write_all(bytes).await?;
                    if !pause.is_zero() {
                        tokio::time::sleep(*pause).await;
                    }
                },
                Step::Silence => drop(stream.read(&mut [0]).await?),
            }
        }
        return stream.shutdown().await;
    }
    let mut head = format!("HTTP/1.1 {} Test\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if matches!(reply.manner, Manner::Chunked) {
        head.push_str("Transfer-Encoding: chunked\r\n\r\n");
    } else {
        head.push_str(&format!("Content-Length: {}\r\n\r\n", reply.body.len()));
    }
    stream.write_all(head.as_bytes()).await?;
    match reply.manner {
        Manner::Raw(_) => {}
        Manner::Whole => {
            count(reply.body.len());
            stream.write_all(&reply.body).await?;
        }
        Manner::Chunked => {
            count(reply.body.len());
            for chunk in reply.body.chunks(1000) {
                stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
                stream.write_all(chunk).await?;
                stream.write_all(b"\r\n").await?;
            }
            stream.write_all(b"0\r\n\r\n").await?;
        }
        Manner::HangUpAfter(bytes) => {
            count(bytes);
            stream.write_all(&reply.body[..bytes]).await?;
        }
        Manner::StallAfter(bytes) => {
            count(bytes);
            stream.write_all(&reply.body[..bytes]).await?;
            // Until the client hangs up.
            let _ = stream.read(&mut [0]).await?;
        }
        Manner::Gated(gate) => {
            let half = reply.body.len() / 2;
            count(half);
            stream.write_all(&reply.body[..half]).await?;
            // A closed gate hangs up.
            let Ok(permit) = gate.acquire().await else { return Ok(()) };
            count(reply.body.len() - half);
            stream.write_all(&reply.body[half..]).await?;
            drop(permit);
        }
    }
    stream.shutdown().await
}
