//! Very many sessions, of which half are cut, and what they leave: nothing.
//!
//! `KINA_SOAK` is the number of execs; attachments and forwarded connections are a
//! fifth of that each. Without, there are few enough for every run.

use futures::future::LocalBoxFuture;
use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::*;
use crate::harness::{descriptors, memory_kib};

/// Without `KINA_SOAK`.
const FEW: usize = 60;

/// Sessions at the same time.
const AT_ONCE: usize = 12;

/// What the daemon and a guest may have in memory afterwards that they had not
/// before, in KiB, for every run up to `KINA_SOAK=1000`: allocators keep some of what
/// they once had. Sessions that kept one pipe each (64 KiB) would exceed it many times.
const GROWTH_KIB: u64 = 12 << 10;

/// Bytes that the forwarded port serves.
const MUCH: usize = 300_000;

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";

/// What a session is like: all kinds come equally often, in an order that only
/// its number decides.
#[derive(Clone, Copy, Debug)]
struct Plan {
    websocket: bool,
    end: End,
    /// A length that looks random.
    bytes: usize,
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// When all is said.
    Whole,
    /// The client closes its connection in the middle.
    Close,
    /// The client's connection is reset in the middle.
    Reset,
}

impl Plan {
    fn of(number: usize) -> Self {
        let end = [End::Whole, End::Close, End::Whole, End::Reset][number / 2 % 4];
        let mixed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        Self { websocket: number % 2 == 1, end, bytes: 1 + usize::try_from(mixed).unwrap() % 100_000 }
    }

    fn is_cut(self) -> bool {
        self.end != End::Whole
    }

    async fn dial(self, url: &str) -> TcpStream {
        let stream = TcpStream::connect(split(url).0).await.unwrap();
        if self.end == End::Reset {
            stream.set_zero_linger().unwrap();
        }
        stream
    }

    async fn spdy(self, url: &str, protocol: &str) -> Connection {
        let (status, stream) = upgrade_on(self.dial(url).await, url, protocol).await.unwrap();
        assert_eq!(status, 101);
        Connection::client(stream, Limits::default())
    }

    async fn socket(self, url: &str, protocol: &str) -> Socket {
        let mut request = url.replacen("http", "ws", 1).into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
        let (stream, _) = tokio_tungstenite::client_async(request, self.dial(url).await).await.unwrap();
        Socket { stream, channels: Default::default() }
    }
}

/// A WebSocket, and what has come on its channels.
struct Socket {
    stream: WebSocketStream<TcpStream>,
    channels: [Vec<u8>; 4],
}

impl Socket {
    /// Takes the next message; `false` at the end.
    async fn take(&mut self) -> bool {
        match timeout(PATIENCE, self.stream.next()).await.expect("a message") {
            Some(Ok(Message::Binary(data))) => {
                self.channels[usize::from(data[0])].extend_from_slice(&data[1..]);
                true
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => true,
            Some(Ok(Message::Close(_))) | None => false,
            Some(other) => panic!("{other:?}"),
        }
    }

    async fn take_until(&mut self, channel: usize, bytes: usize) {
        while self.channels[channel].len() < bytes {
            assert!(self.take().await, "it ends after {} bytes", self.channels[channel].len());
        }
    }

    async fn take_all(&mut self) {
        while self.take().await {}
    }
}

async fn read_some(stream: &mut Stream, bytes: usize) {
    let mut buffer = vec![0; bytes];
    timeout(PATIENCE, stream.read_exact(&mut buffer)).await.unwrap().unwrap();
}

/// A command that prints so much and ends with 3, or prints for ever and is cut.
async fn exec_session(cri: &Cri, container: &str, plan: Plan) {
    let Plan { bytes, .. } = plan;
    let command = if plan.is_cut() {
        "exec yes".to_owned()
    } else {
        format!("head -c {bytes} /dev/zero | tr '\\0' x; exit 3")
    };
    let url = exec_url(cri, super::exec(container, &command)).await.unwrap();
    const CODE: &str = r#""reason":"ExitCode","message":"3""#;
    if plan.websocket {
        let mut socket = plan.socket(&url, V5).await;
        if plan.is_cut() {
            return socket.take_until(1, bytes).await;
        }
        socket.take_all().await;
        assert_eq!(socket.channels[1].len(), bytes);
        let outcome = String::from_utf8_lossy(&socket.channels[3]);
        assert!(outcome.contains(CODE), "{outcome}");
    } else {
        let connection = plan.spdy(&url, COMMAND).await;
        let error = open(&connection, "error").await;
        let mut stdout = open(&connection, "stdout").await;
        if plan.is_cut() {
            return read_some(&mut stdout, bytes).await;
        }
        assert_eq!(text(stdout).await.len(), bytes);
        let outcome = text(error).await;
        assert!(outcome.contains(CODE), "{outcome}");
    }
}

/// A client that sends a line to a container that sends it to all. It never has
/// everything, so that it leaves with a goodbye or is cut.
async fn attach_session(cri: &Cri, container: &str, plan: Plan) {
    const LINE: &[u8] = b"0123456789012345678901234567890123456789\n";
    let bytes = plan.bytes % LINE.len();
    let request = v1::AttachRequest { stdin: true, ..super::attach(container) };
    let url = attach_url(cri, request).await.unwrap();
    if plan.websocket {
        let mut socket = plan.socket(&url, V5).await;
        socket.stream.send(Message::Binary(Bytes::from([&b"\0"[..], LINE].concat()))).await.unwrap();
        socket.take_until(1, bytes).await;
        if !plan.is_cut() {
            socket.stream.send(Message::Close(None)).await.unwrap();
            socket.take_all().await;
        }
    } else {
        let connection = plan.spdy(&url, COMMAND).await;
        let _error = open(&connection, "error").await;
        let mut stdin = open(&connection, "stdin").await;
        let mut stdout = open(&connection, "stdout").await;
        stdin.write_all(LINE).await.unwrap();
        read_some(&mut stdout, bytes).await;
    }
}

/// A file over HTTP, whole or cut.
async fn forward_session(cri: &Cri, pod: &str, plan: Plan) {
    const GET: &str = "GET /much HTTP/1.0\r\n\r\n";
    let url = forward_url(cri, pod, vec![80]).await.unwrap();
    let is_whole = |answer: &[u8]| answer.starts_with(b"HTTP/1.") && answer.ends_with(&[b'x'; MUCH]);
    if plan.websocket {
        let mut socket = plan.socket(&url, V4).await;
        let message = [&b"\0"[..], GET.as_bytes()].concat();
        socket.stream.send(Message::Binary(Bytes::from(message))).await.unwrap();
        if plan.is_cut() {
            return socket.take_until(0, plan.bytes).await;
        }
        socket.take_all().await;
        // Both channels begin with the port.
        assert!(is_whole(&socket.channels[0][2..]), "{} bytes", socket.channels[0].len());
        assert_eq!(socket.channels[1], 80_u16.to_le_bytes());
    } else {
        let connection = plan.spdy(&url, FORWARD).await;
        let (mut data, error) = forward(&connection, 80, 1).await;
        data.write_all(GET.as_bytes()).await.unwrap();
        if plan.is_cut() {
            return read_some(&mut data, plan.bytes).await;
        }
        let answer = text(&mut data).await;
        assert!(is_whole(answer.as_bytes()), "{} bytes", answer.len());
        drop(data);
        assert_eq!(text(error).await, "");
    }
}

/// Sessions of a container that is killed under them come to an end by themselves.
async fn killed_container(cri: &Cri, pod: &str, number: usize) {
    // It has no log, which would be long.
    let config =
        v1::ContainerConfig { log_path: String::new(), ..script(&format!("victim-{number}"), "exec yes") };
    let victim = cri.run(pod, config).await;
    // A session that has begun, and its rest.
    #[expect(
        clippy::async_yields_async,
        reason = "the rest of a session is awaited when the container is stopped"
    )]
    let session = async |number: usize| {
        let plan = Plan { end: End::Close, ..Plan::of(number) };
        let url = if (number / 2).is_multiple_of(2) {
            exec_url(cri, super::exec(&victim, "exec yes")).await.unwrap()
        } else {
            attach_url(cri, super::attach(&victim)).await.unwrap()
        };
        let rest: LocalBoxFuture<'_, ()> = if plan.websocket {
            let mut socket = plan.socket(&url, V5).await;
            socket.take_until(1, plan.bytes).await;
            Box::pin(async move { socket.take_all().await })
        } else {
            let connection = plan.spdy(&url, COMMAND).await;
            let error = open(&connection, "error").await;
            let mut stdout = open(&connection, "stdout").await;
            read_some(&mut stdout, plan.bytes).await;
            Box::pin(async move {
                let _stays_open = connection;
                let mut nowhere = tokio::io::sink();
                let drain = timeout(PATIENCE, tokio::io::copy(&mut stdout, &mut nowhere));
                let (drained, _) = tokio::join!(drain, text(error));
                drained.unwrap().unwrap();
            })
        };
        rest
    };
    let rests = futures::future::join_all((0..4).map(session)).await;
    let (stopped, _) = tokio::join!(cri.stop(&victim, 0), futures::future::join_all(rests));
    stopped.unwrap();
    cri.remove(&victim).await.unwrap();
}

struct Soak<'test> {
    daemon: &'test Daemon,
    cri: Cri,
    pod: String,
    /// Runs commands and serves a port.
    one: String,
    /// Prints what it reads.
    echo: String,
}

impl Soak<'_> {
    /// So many execs, a fifth as many of the others, and some killed containers.
    async fn round(&self, execs: usize) {
        #[derive(Clone, Copy)]
        enum Kind {
            Exec,
            Attach,
            Forward,
            Killed,
        }
        let kinds = [
            (Kind::Exec, execs),
            (Kind::Attach, execs / 5),
            (Kind::Forward, execs / 5),
            (Kind::Killed, execs / 50),
        ];
        let sessions =
            kinds.into_iter().flat_map(|(kind, count)| (0..count).map(move |number| (kind, number)));
        let Self { cri, pod, one, echo, .. } = self;
        futures::stream::iter(sessions)
            .for_each_concurrent(AT_ONCE, async |(kind, number)| {
                let plan = Plan::of(number);
                match kind {
                    Kind::Exec => exec_session(cri, one, plan).await,
                    Kind::Attach => attach_session(cri, echo, plan).await,
                    Kind::Forward => forward_session(cri, pod, plan).await,
                    Kind::Killed => killed_container(cri, pod, number).await,
                }
            })
            .await;
    }

    /// Processes of the pod on the node, and in its containers, where the one that
    /// counts is one.
    async fn processes(&self) -> (usize, [String; 2]) {
        const COUNT: &str = "ls -d /proc/[0-9]* | wc -l";
        let inside = [self.cri.sh(&self.one, COUNT).await, self.cri.sh(&self.echo, COUNT).await];
        (self.daemon.place.processes(&self.pod).len(), inside)
    }

    /// No session is left, nor a process of one.
    async fn quiet(&self, processes: &(usize, [String; 2])) {
        wait_until("the sessions' end", async || {
            let mut open = 0.0;
            for kind in ["exec", "attach", "port-forward"] {
                open += self.daemon.metric(&format!("kina_streaming_sessions{{kind=\"{kind}\"}}")).await;
            }
            open == 0.0 && self.processes().await == *processes
        })
        .await;
    }
}

#[tokio::test]
async fn very_many_sessions() {
    let execs = std::env::var("KINA_SOAK").map_or(FEW, |number| number.parse().unwrap());
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let serve = format!(
        "mkdir -p /tmp/www; head -c {MUCH} /dev/zero | tr '\\0' x > /tmp/www/much; \
         httpd -p 127.0.0.1:80 -h /tmp/www; echo up; exec sleep 10000"
    );
    let one = cri.run(&pod, script("one", &serve)).await;
    cri.wait_output(&one, "up").await;
    let echo = cri.run(&pod, v1::ContainerConfig { stdin: true, ..script("echo", "exec cat") }).await;
    let soak = Soak { daemon: &daemon, cri: cri.clone(), pod: pod.clone(), one, echo };
    // The first make what is made once: threads, buffers, the allocator's pools.
    let idle = soak.processes().await;
    soak.round(FEW).await;
    soak.quiet(&idle).await;
    let mut pids = vec![daemon.pid()];
    // A machine's memory is its kernel's affair.
    pids.extend(daemon.place.guest(&pod).filter(|_| handler() == "shared"));
    let measure = || -> Vec<(u64, usize, u64)> {
        let one = |&pid: &u32| (memory_kib(pid, "VmRSS"), descriptors(pid), memory_kib(pid, "Threads"));
        pids.iter().map(one).collect()
    };
    let before = measure();
    let begin = std::time::Instant::now();
    soak.round(execs).await;
    let took = begin.elapsed();
    soak.quiet(&idle).await;
    wait_until("the descriptors of the sessions to be closed", async || {
        measure().iter().zip(&before).all(|(after, before)| after.1 <= before.1)
    })
    .await;
    let after = measure();
    println!(
        "{execs} execs, {} attachments and {} forwarded connections, half of them cut, and {} killed \
         containers with 4 sessions each, in {took:.1?}\n\
         resident KiB, descriptors, threads of the daemon and the guest: {before:?} before, {after:?} after",
        execs / 5,
        execs / 5,
        execs / 50,
    );
    for (after, before) in after.iter().zip(&before) {
        assert!(after.0 <= before.0 + GROWTH_KIB, "{before:?} {after:?}");
    }
    drop((soak, cri));
    daemon.leave_nothing().await;
}

also_in_vm! {
    very_many_sessions,
}
