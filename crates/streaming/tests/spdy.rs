//! Sessions over SPDY, and what HTTP refuses.

#![allow(clippy::unwrap_used, reason = "helpers here are part of tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use kina_spdy::{Connection, Encoder, Frame, GoAwayStatus, Headers, Limits, OpenError};
use kina_streaming::{Attach, Config, Error, Exec, PortForward, Request, Server, Streams};
use sha2::{Digest, Sha256};
use support::{Fake, Fixture, MUCH, SOON, all, open, output, request, spdy_headers, terminal, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::timeout;

const V4: &str = "v4.channel.k8s.io";
const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

#[tokio::test]
async fn input_output_and_errors_flow_and_end() {
    let fixture = Fixture::new().await;
    let connection = fixture.spdy(&fixture.exec("cat", all()), V4).await;
    let error = open(&connection, "error").await;
    let mut stdin = open(&connection, "stdin").await;
    let stdout = open(&connection, "stdout").await;
    let stderr = open(&connection, "stderr").await;
    stdin.write_all(b"hello").await.unwrap();
    stdin.shutdown().await.unwrap();
    let (stdout, stderr, error) = tokio::join!(text(stdout), text(stderr), text(error));
    assert_eq!((stdout.as_str(), stderr.as_str(), error.as_str()), ("hello", "done", SUCCESS));
    drop((stdin, connection));
    fixture.quiet().await;
}

#[tokio::test]
async fn outcomes_are_told_as_the_protocol_wants() {
    let cases = [
        (V4, "exit 0", SUCCESS.to_owned()),
        (
            V4,
            "exit 7",
            r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: 7","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#
                .to_owned(),
        ),
        ("v3.channel.k8s.io", "exit 0", String::new()),
        ("v2.channel.k8s.io", "exit 7", "command terminated with non-zero exit code: 7".to_owned()),
        ("channel.k8s.io", "nonsense", "error executing command in container: no such program".to_owned()),
    ];
    let fixture = Fixture::new().await;
    for (protocol, command, expected) in cases {
        let connection = fixture.spdy(&fixture.exec(command, output()), protocol).await;
        let stdout = open(&connection, "stdout").await;
        let error = open(&connection, "error").await;
        assert_eq!(text(error).await, expected, "{protocol} {command}");
        assert_eq!(text(stdout).await, "");
    }
    fixture.quiet().await;
}

#[tokio::test]
async fn attach_is_like_exec() {
    let fixture = Fixture::new().await;
    let attach = Request::Attach(Attach { container: "c".to_owned(), streams: output() });
    let connection = fixture.spdy(&fixture.url(attach), V4).await;
    let error = open(&connection, "error").await;
    assert_eq!(text(open(&connection, "stdout").await).await, "attached");
    assert_eq!(text(error).await, SUCCESS);
}

#[tokio::test]
async fn terminals_have_sizes() {
    let fixture = Fixture::new().await;
    let connection = fixture.spdy(&fixture.exec("sizes", terminal()), V4).await;
    let error = open(&connection, "error").await;
    let _stdin = open(&connection, "stdin").await;
    let mut stdout = open(&connection, "stdout").await;
    let mut resize = open(&connection, "resize").await;
    resize.write_all(b"{\"Width\":80,\"Height\":24}\n").await.unwrap();
    let mut first = [0; 6];
    timeout(SOON, stdout.read_exact(&mut first)).await.unwrap().unwrap();
    assert_eq!(&first, b"80x24 ");
    resize.write_all(b"{\"Width\":132,\"Hei").await.unwrap();
    resize.write_all(b"ght\":43}\n").await.unwrap();
    assert_eq!(text(stdout).await, "132x43 ");
    assert_eq!(text(error).await, SUCCESS);
}

#[tokio::test]
async fn streams_that_do_not_belong_are_refused() {
    let fixture = Fixture::new().await;
    let connection = fixture.spdy(&fixture.exec("cat", output()), V4).await;
    for kind in ["stdin", "resize", "nonsense", ""] {
        let refused = connection.open(Headers::new().with("streamType", kind)).await;
        assert!(matches!(refused, Err(OpenError::Refused { .. })), "{kind} {refused:?}");
    }
    let _error = open(&connection, "error").await;
    let refused = connection.open(Headers::new().with("streamType", "error")).await;
    assert!(matches!(refused, Err(OpenError::Refused { .. })), "{refused:?}");
    assert_eq!(text(open(&connection, "stdout").await).await, "");
}

#[tokio::test]
async fn streams_that_do_not_come_end_the_session() {
    let config = Config { creation_timeout: Duration::from_millis(100), ..Config::default() };
    let fixture = Fixture::with(config).await;
    let connection = fixture.spdy(&fixture.exec("cat", all()), V4).await;
    let _error = open(&connection, "error").await;
    timeout(SOON, connection.closed()).await.unwrap();
    // So is half of a forwarded connection.
    let connection = fixture.spdy(&fixture.forward(&[]), "portforward.k8s.io").await;
    let mut half = connection.open(forward_headers("data", 7, 1)).await.unwrap();
    assert!(timeout(SOON, half.read_u8()).await.unwrap().is_err());
    drop(connection);
    fixture.quiet().await;
}

#[tokio::test]
async fn a_token_works_once() {
    let fixture = Fixture::new().await;
    let path = fixture.exec("exit 0", output());
    drop(fixture.spdy(&path, V4).await);
    let (answer, _) = fixture.request(&format!("POST {path}"), &spdy_headers(V4)).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    fixture.quiet().await;
}

#[tokio::test]
async fn what_is_not_right_is_refused() {
    let fixture = Fixture::new().await;
    let headers = spdy_headers(V4);
    let path = |prefix: &str| fixture.exec("exit 0", output()).replace("/exec", prefix);
    let unknown = format!("GET /exec/{}", "x".repeat(43));
    type Case<'case> = (String, &'case [(&'case str, &'case str)], u16);
    let cases: [Case<'_>; 9] = [
        (unknown, &headers, 404),
        ("GET /exec/short".to_owned(), &headers, 404),
        ("GET /../../etc/passwd".to_owned(), &headers, 404),
        ("GET /".to_owned(), &headers, 404),
        (format!("GET {}", path("/attach")), &headers, 404),
        (format!("PUT {}", path("/exec")), &headers, 405),
        (format!("GET {}", path("/exec")), &[], 400),
        (format!("GET {}", path("/exec")), &headers[..2], 400),
        (format!("GET {}", path("/exec")), &spdy_headers("v9.channel.k8s.io"), 403),
    ];
    for (line, headers, status) in cases {
        let (answer, _) = fixture.request(&line, headers).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
    }
    let request =
        |streams| Request::Exec(Exec { container: "c".to_owned(), command: vec!["x".to_owned()], streams });
    let none = fixture.server.url_for("http://h", request(Streams::default()));
    assert!(matches!(none, Err(Error::NoStreams)), "{none:?}");
    let both = fixture.server.url_for("http://h", request(Streams { tty: true, ..all() }));
    assert!(matches!(both, Err(Error::TtyWithStderr)), "{both:?}");
    fixture.quiet().await;
}

fn forward_headers(kind: &str, port: u16, request: u32) -> Headers {
    Headers::new()
        .with("streamType", kind)
        .with("port", port.to_string())
        .with("requestID", request.to_string())
}

#[tokio::test]
async fn connections_are_forwarded_many_at_once() {
    let fixture = Fixture::new().await;
    let connection = Arc::new(fixture.spdy(&fixture.forward(&[]), "portforward.k8s.io").await);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20_u32 {
        let connection = connection.clone();
        tasks.spawn(async move {
            let mut error = connection.open(forward_headers("error", 7, number)).await.unwrap();
            error.shutdown().await.unwrap();
            let data = connection.open(forward_headers("data", 7, number)).await.unwrap();
            let (reader, mut writer) = tokio::io::split(data);
            let sent = format!("{number} ").repeat(20_000);
            let (back, written) = tokio::join!(text(reader), async {
                writer.write_all(sent.as_bytes()).await?;
                writer.shutdown().await
            });
            written.unwrap();
            assert!(back == sent);
            assert_eq!(text(error).await, "");
        });
    }
    timeout(SOON, tasks.join_all()).await.unwrap();

    // A port where nobody listens says so, and harms nobody.
    let error = connection.open(forward_headers("error", 1, 90)).await.unwrap();
    let data = connection.open(forward_headers("data", 1, 90)).await.unwrap();
    assert_eq!(text(data).await, "");
    assert_eq!(text(error).await, "error forwarding port 1 to pod p: connection refused");

    for (kind, port) in [("data", "0"), ("data", "x"), ("data", "65536"), ("other", "7")] {
        let headers = Headers::new().with("streamType", kind).with("port", port).with("requestID", "91");
        assert!(matches!(connection.open(headers).await, Err(OpenError::Refused { .. })), "{kind} {port}");
    }
    // Old clients name no request.
    let old = |kind| Headers::new().with("streamType", kind).with("port", "7");
    let error = connection.open(old("error")).await.unwrap();
    let mut data = connection.open(old("data")).await.unwrap();
    data.write_all(b"old").await.unwrap();
    data.shutdown().await.unwrap();
    assert_eq!(text(data).await, "old");
    assert_eq!(text(error).await, "");
    drop(connection);
    fixture.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn much_is_forwarded_whole_and_held_back_meanwhile() {
    let fixture = Fixture::new().await;
    // Over a pipe, since the kernel's own buffers hold megabytes.
    let (mut near, far) = duplex(64 << 10);
    fixture.server.serve_stream(far).await;
    let line = format!("GET {}", fixture.forward(&[]));
    let answer = request(&mut near, &line, &spdy_headers("portforward.k8s.io")).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let connection = Connection::client(near, Limits::default());
    let _error = connection.open(forward_headers("error", 7, 1)).await.unwrap();
    let data = connection.open(forward_headers("data", 7, 1)).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(data);
    let piece: Vec<u8> = (0..65_536_u32).map(|at| (at.wrapping_mul(31) >> 3) as u8).collect();
    // Nobody reads the echo: some rounds later nobody takes more.
    let mut sent = Sha256::new();
    let mut ahead = 0;
    while let Ok(written) = timeout(Duration::from_millis(300), writer.write(&piece)).await {
        let written = written.unwrap();
        sent.update(&piece[..written]);
        ahead += written;
        assert!(ahead < 1 << 20, "what nobody reads is stored");
    }
    let write = async {
        for _ in 0..MUCH / piece.len() {
            writer.write_all(&piece).await.unwrap();
            sent.update(&piece);
        }
        writer.shutdown().await.unwrap();
        sent.finalize()
    };
    let read = async {
        let mut received = Sha256::new();
        let mut buffer = vec![0; 65_536];
        let mut total = 0;
        while let length @ 1.. = reader.read(&mut buffer).await.unwrap() {
            received.update(&buffer[..length]);
            total += length;
        }
        (received.finalize(), total)
    };
    let (sent, (received, total)) = timeout(2 * SOON, async { tokio::join!(write, read) }).await.unwrap();
    assert_eq!(total, ahead + MUCH);
    assert_eq!(sent, received);
}

#[tokio::test]
async fn a_hundred_sessions_half_of_them_cut_leave_nothing() {
    let fixture = Fixture::new().await;
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // What the process opens once is open now.
    drop(fixture.spdy(&fixture.exec("hang", output()), V4).await);
    fixture.quiet().await;
    let before = descriptors();
    let tasks_before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let mut kept = Vec::new();
    for number in 0..100 {
        let forward = number % 5 == 0;
        let connection = if forward {
            let connection = fixture.spdy(&fixture.forward(&[]), "portforward.k8s.io").await;
            let error = connection.open(forward_headers("error", 19, 1)).await.unwrap();
            let data = connection.open(forward_headers("data", 19, 1)).await.unwrap();
            (connection, vec![error, data])
        } else {
            let command = ["source", "cat", "hang"][number % 3];
            let streams = Streams { stderr: false, ..all() };
            let connection = fixture.spdy(&fixture.exec(command, streams), V4).await;
            let mut streams = Vec::new();
            for kind in ["error", "stdin", "stdout"] {
                streams.push(open(&connection, kind).await);
            }
            (connection, streams)
        };
        if number % 2 == 0 {
            drop(connection);
        } else {
            kept.push(connection);
        }
    }
    fixture.busy(kept.len()).await;
    drop(kept);
    fixture.quiet().await;
    let gone = async {
        while descriptors() > before
            || tokio::runtime::Handle::current().metrics().num_alive_tasks() > tasks_before
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, gone).await.unwrap();
}

#[tokio::test]
async fn a_client_that_vanishes_behind_its_input_is_gone() {
    let config = Config { keepalive: Duration::from_millis(50), ..Config::default() };
    let fixture = Fixture::with(config).await;
    let connection = fixture.spdy(&fixture.exec("hang", Streams { stdin: true, ..output() }), V4).await;
    let _error = open(&connection, "error").await;
    let mut stdin = open(&connection, "stdin").await;
    let _stdout = open(&connection, "stdout").await;
    while timeout(Duration::from_millis(200), stdin.write_all(&[0; 65_536])).await.is_ok() {}
    drop(connection);
    fixture.quiet().await;
}

#[tokio::test]
async fn a_client_that_says_goodbye_is_gone() {
    let fixture = Fixture::new().await;
    let line = format!("POST {}", fixture.exec("hang", output()));
    let (_, mut stream) = fixture.request(&line, &spdy_headers(V4)).await;
    let mut encoder = Encoder::new();
    let mut bytes = BytesMut::new();
    for (number, kind) in [(1, "error"), (3, "stdout")] {
        let open = Frame::SynStream {
            stream: number,
            associated: 0,
            priority: 0,
            fin: false,
            unidirectional: false,
            headers: Headers::new().with("streamType", kind),
        };
        encoder.encode(&open, &mut bytes);
    }
    stream.write_all(&bytes).await.unwrap();
    fixture.busy(1).await;
    bytes.clear();
    encoder.encode(&Frame::GoAway { last_stream: 0, status: GoAwayStatus::OK }, &mut bytes);
    stream.write_all(&bytes).await.unwrap();
    // It keeps the transport open.
    fixture.quiet().await;
    let mut rest = Vec::new();
    timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
}

#[tokio::test]
async fn stopping_ends_sessions() {
    let fixture = Fixture::new().await;
    let connection = fixture.spdy(&fixture.exec("hang", output()), V4).await;
    let _error = open(&connection, "error").await;
    let _stdout = open(&connection, "stdout").await;
    fixture.busy(1).await;
    timeout(SOON, fixture.server.stop()).await.unwrap();
    timeout(SOON, connection.closed()).await.unwrap();
    assert_eq!(fixture.server.connections(), 0);
}

#[tokio::test]
async fn connections_are_counted() {
    let fixture = Fixture::with(Config { connections: 1, ..Config::default() }).await;
    let first = fixture.spdy(&fixture.exec("hang", output()), V4).await;
    let path = fixture.exec("exit 0", output());
    let second = fixture.spdy(&path, V4);
    let mut second = std::pin::pin!(second);
    assert!(timeout(Duration::from_millis(200), second.as_mut()).await.is_err());
    drop(first);
    timeout(SOON, second).await.unwrap();
}

#[tokio::test]
async fn a_client_that_says_nothing_is_left() {
    let config = Config { request_timeout: Duration::from_millis(50), ..Config::default() };
    let fixture = Fixture::with(config).await;
    let mut stream = tokio::net::TcpStream::connect(fixture.address()).await.unwrap();
    stream.write_all(b"GET /ex").await.unwrap();
    let mut rest = Vec::new();
    timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    fixture.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_ends() {
    let fake = Arc::new(Fake::default());
    let server = Server::new(Config::default(), fake).unwrap();
    let (mut near, far) = duplex(64 << 10);
    server.serve_stream(far).await;
    let exec = Exec { container: "c".to_owned(), command: vec!["hang".to_owned()], streams: output() };
    let url = server.url_for("", Request::Exec(exec)).unwrap();
    let answer = request(&mut near, &format!("GET {url}"), &spdy_headers(V4)).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    let connection = Connection::client(near, Limits { ping_interval: None, ..Limits::default() });
    let _error = open(&connection, "error").await;
    let _stdout = open(&connection, "stdout").await;
    let start = tokio::time::Instant::now();
    connection.closed().await;
    assert_eq!(start.elapsed().as_secs(), 4 * 60 * 60);
}

#[tokio::test]
async fn urls_work_once_for_a_while_and_are_few() {
    let config = Config { token_lifetime: Duration::from_millis(50), tokens: 2, ..Config::default() };
    let fixture = Fixture::with(config).await;
    let forward = || Request::PortForward(PortForward { pod: "p".to_owned(), ports: Vec::new() });
    let status = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(fixture.address()).await.unwrap();
        let answer = request(&mut stream, &format!("GET {path}"), &spdy_headers("portforward.k8s.io")).await;
        answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    let first = fixture.url(forward());
    fixture.url(forward());
    let third = fixture.server.url_for(&fixture.base, forward());
    assert!(matches!(third, Err(Error::TooManyTokens { limit: 2 })), "{third:?}");
    // Room again means that their time is over.
    let deadline = tokio::time::Instant::now() + SOON;
    while fixture.server.url_for(&fixture.base, forward()).is_err() {
        assert!(tokio::time::Instant::now() < deadline, "they stay");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(status(&first).await, 404);
}
