//! A backend whose commands are simple, and clients.

#![allow(clippy::unwrap_used, reason = "helpers here are part of tests")]
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use kina_spdy::{Connection, Headers, Limits, Stream};
use kina_streaming::{
    Attach, Backend, BackendError, ByteStream, Config, Exec, PortForward, Request, Server, SessionIo, Streams,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Bytes that `source` and the port 19 produce.
pub(crate) const MUCH: usize = 8 << 20;

#[derive(Default)]
pub(crate) struct Fake {
    running: AtomicUsize,
}

/// Counts a call until it ends or is dropped.
struct Running<'fake>(&'fake AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    fn enter(&self) -> Running<'_> {
        self.running.fetch_add(1, Ordering::SeqCst);
        Running(&self.running)
    }
}

#[async_trait]
impl Backend for Fake {
    async fn exec(&self, exec: &Exec, mut io: SessionIo) -> Result<i32, BackendError> {
        let _running = self.enter();
        let words: Vec<_> = exec.command.iter().map(String::as_str).collect();
        match words[..] {
            // Input to output, and a word to standard error.
            ["cat"] => {
                let mut stdout = io.stdout.take().unwrap();
                if let Some(mut stdin) = io.stdin.take() {
                    tokio::io::copy(&mut stdin, &mut stdout).await?;
                }
                if let Some(mut stderr) = io.stderr.take() {
                    stderr.write_all(b"done").await?;
                }
                Ok(0)
            }
            ["exit", code] => Ok(code.parse()?),
            ["source"] => {
                let mut stdout = io.stdout.take().unwrap();
                for _ in 0..MUCH / 4096 {
                    stdout.write_all(&[b'y'; 4096]).await?;
                }
                Ok(0)
            }
            // The first two sizes.
            ["sizes"] => {
                let mut resizes = io.resizes.take().unwrap();
                let mut stdout = io.stdout.take().unwrap();
                for _ in 0..2 {
                    let size = resizes.next().await.unwrap();
                    stdout.write_all(format!("{}x{} ", size.width, size.height).as_bytes()).await?;
                }
                Ok(0)
            }
            ["hang"] => std::future::pending().await,
            _ => Err(std::io::Error::new(ErrorKind::NotFound, "no such program").into()),
        }
    }

    async fn attach(&self, _attach: &Attach, mut io: SessionIo) -> Result<(), BackendError> {
        let _running = self.enter();
        io.stdout.take().unwrap().write_all(b"attached").await?;
        Ok(())
    }

    async fn port_forward(&self, _pod: &str, port: u16, stream: ByteStream) -> Result<(), BackendError> {
        let _running = self.enter();
        let (mut reader, mut writer) = tokio::io::split(stream);
        match port {
            7 => {
                tokio::io::copy(&mut reader, &mut writer).await?;
            }
            // Says something, ends its direction, and listens on.
            20 => {
                writer.write_all(b"bye").await?;
                writer.shutdown().await?;
                tokio::io::copy(&mut reader, &mut tokio::io::sink()).await?;
            }
            19 => {
                for _ in 0..MUCH / 4096 {
                    writer.write_all(&[b'y'; 4096]).await?;
                }
            }
            _ => return Err(std::io::Error::from(ErrorKind::ConnectionRefused).into()),
        }
        writer.shutdown().await?;
        Ok(())
    }
}

/// A server on a port of its own.
pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) fake: Arc<Fake>,
    pub(crate) base: String,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let fake = Arc::new(Fake::default());
        let server = Server::new(config, fake.clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(listener).await });
        Self { server, fake, base }
    }

    pub(crate) fn address(&self) -> &str {
        &self.base["http://".len()..]
    }

    pub(crate) fn exec(&self, command: &str, streams: Streams) -> String {
        let command = command.split(' ').map(str::to_owned).collect();
        self.url(Request::Exec(Exec { container: "c".to_owned(), command, streams }))
    }

    pub(crate) fn forward(&self, ports: &[u16]) -> String {
        self.url(Request::PortForward(PortForward { pod: "p".to_owned(), ports: ports.to_vec() }))
    }

    /// The path of a URL.
    pub(crate) fn url(&self, request: Request) -> String {
        let url = self.server.url_for(&self.base, request).unwrap();
        url.strip_prefix(&self.base).unwrap().to_owned()
    }

    /// Sends a request by hand and reads the head of the answer.
    pub(crate) async fn request(&self, line: &str, headers: &[(&str, &str)]) -> (String, TcpStream) {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        let answer = request(&mut stream, line, headers).await;
        (answer, stream)
    }

    /// Upgrades to SPDY.
    pub(crate) async fn spdy(&self, path: &str, protocol: &str) -> Connection {
        let (answer, stream) = self.request(&format!("POST {path}"), &spdy_headers(protocol)).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        let answer = answer.to_lowercase();
        assert!(answer.contains(&format!("x-stream-protocol-version: {protocol}\r\n")), "{answer}");
        assert!(answer.contains("connection: upgrade\r\nupgrade: spdy/3.1\r\n"), "{answer}");
        Connection::client(stream, Limits::default())
    }

    /// Waits until nothing is left of any session.
    pub(crate) async fn quiet(&self) {
        let quiet = async {
            while self.server.connections() > 0 || self.fake.running.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = timeout(SOON, quiet).await;
        let running = self.fake.running.load(Ordering::SeqCst);
        assert!(waited.is_ok(), "{} connections, {running} calls", self.server.connections());
    }

    /// Waits until so many calls run.
    pub(crate) async fn busy(&self, calls: usize) {
        let busy = async {
            while self.fake.running.load(Ordering::SeqCst) < calls {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, busy).await.unwrap();
    }
}

pub(crate) fn spdy_headers(protocol: &str) -> [(&'static str, &str); 3] {
    [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", protocol)]
}

pub(crate) async fn request(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    line: &str,
    headers: &[(&str, &str)],
) -> String {
    let mut text = format!("{line} HTTP/1.1\r\nHost: streaming\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(SOON, stream.read_u8()).await.unwrap().unwrap());
    }
    String::from_utf8(answer).unwrap()
}

pub(crate) async fn open(connection: &Connection, kind: &str) -> Stream {
    timeout(SOON, connection.open(Headers::new().with("streamType", kind))).await.unwrap().unwrap()
}

pub(crate) async fn text(mut stream: impl AsyncRead + Unpin) -> String {
    let mut text = String::new();
    timeout(SOON, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

pub(crate) fn all() -> Streams {
    Streams { stdin: true, stdout: true, stderr: true, tty: false }
}

pub(crate) fn output() -> Streams {
    Streams { stdout: true, ..Streams::default() }
}

pub(crate) fn terminal() -> Streams {
    Streams { stdin: true, stdout: true, stderr: false, tty: true }
}
