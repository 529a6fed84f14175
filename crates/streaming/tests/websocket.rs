//! Sessions over WebSocket.

#![allow(clippy::unwrap_used, reason = "helpers here are part of tests")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use kina_spdy::{Connection, Headers, Limits};
use kina_streaming::Config;
use support::{Fixture, MUCH, SOON, all, output, terminal, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

const V5: &str = "v5.channel.k8s.io";
const SUCCESS: &[u8] = br#"{"metadata":{},"status":"Success"}"#;

type Socket = WebSocketStream<TcpStream>;

async fn connect(fixture: &Fixture, path: &str, protocol: &str) -> Result<Socket, SocketError> {
    let mut request = format!("ws://{}{path}", fixture.address()).into_client_request().unwrap();
    if !protocol.is_empty() {
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    }
    let stream = TcpStream::connect(fixture.address()).await.unwrap();
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await?;
    let agreed = response.headers().get("Sec-WebSocket-Protocol");
    assert_eq!(agreed.map_or("", |agreed| agreed.to_str().unwrap()), protocol);
    Ok(socket)
}

/// All that came on each of ten channels, until the server says goodbye.
async fn receive(socket: &mut Socket, base64: bool) -> Vec<Vec<u8>> {
    use base64::Engine;
    let mut channels = vec![Vec::new(); 10];
    loop {
        let message = timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap();
        match message {
            Message::Close(frame) => {
                assert_eq!(frame.unwrap().code, CloseCode::Normal);
                return channels;
            }
            Message::Binary(data) => {
                assert!(!base64);
                channels[usize::from(data[0])].extend_from_slice(&data[1..]);
            }
            Message::Text(text) => {
                assert!(base64);
                let (channel, data) = text.split_at(1);
                let data = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
                channels[channel.parse::<usize>().unwrap()].extend(data);
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
}

async fn send(socket: &mut Socket, channel: u8, data: &[u8]) {
    let mut message = vec![channel];
    message.extend_from_slice(data);
    socket.send(Message::binary(message)).await.unwrap();
}

#[tokio::test]
async fn input_ends_with_a_signal() {
    let fixture = Fixture::new().await;
    let mut socket = connect(&fixture, &fixture.exec("cat", all()), V5).await.unwrap();
    send(&mut socket, 0, b"hello ").await;
    send(&mut socket, 0, b"world").await;
    // For no channel, and empty.
    send(&mut socket, 9, b"x").await;
    socket.send(Message::binary(Bytes::new())).await.unwrap();
    send(&mut socket, 255, &[0]).await;
    let channels = receive(&mut socket, false).await;
    assert_eq!(channels[1], b"hello world");
    assert_eq!(channels[2], b"done");
    assert_eq!(channels[3], SUCCESS);
    drop(socket);
    fixture.quiet().await;
}

#[tokio::test]
async fn outcomes_are_told_as_the_protocol_wants() {
    let code = br#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
    let plain = b"command terminated with non-zero exit code: 3";
    let cases: [(&str, &[u8]); 6] = [
        (V5, code),
        ("v4.channel.k8s.io", code),
        ("v4.base64.channel.k8s.io", code),
        ("channel.k8s.io", plain),
        ("base64.channel.k8s.io", plain),
        ("", plain),
    ];
    let fixture = Fixture::new().await;
    for (protocol, expected) in cases {
        let mut socket = connect(&fixture, &fixture.exec("exit 3", output()), protocol).await.unwrap();
        let channels = receive(&mut socket, protocol.contains("base64")).await;
        assert_eq!(channels[3].escape_ascii().to_string(), expected.escape_ascii().to_string(), "{protocol}");
    }
}

#[tokio::test]
async fn terminals_have_sizes() {
    let fixture = Fixture::new().await;
    let mut socket = connect(&fixture, &fixture.exec("sizes", terminal()), V5).await.unwrap();
    send(&mut socket, 4, b"{\"Width\":80,\"Height\":24}").await;
    // The first message is empty: the session is there.
    let mut seen = Vec::new();
    while seen != b"80x24 " {
        let message = timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap().into_data();
        seen.extend_from_slice(&message[1..]);
    }
    send(&mut socket, 4, b"{\"Width\":132,\"Height\":43}").await;
    let channels = receive(&mut socket, false).await;
    assert_eq!(channels[1], b"132x43 ");
    assert_eq!(channels[3], SUCCESS);
}

#[tokio::test]
async fn unknown_protocols_and_broken_handshakes_are_refused() {
    let fixture = Fixture::new().await;
    let refused = connect(&fixture, &fixture.exec("cat", all()), "v9.channel.k8s.io").await;
    assert!(matches!(&refused, Err(SocketError::Http(answer)) if answer.status() == 403), "{refused:?}");
    let none = connect(&fixture, &fixture.forward(&[]), "v4.channel.k8s.io").await;
    assert!(matches!(&none, Err(SocketError::Http(answer)) if answer.status() == 400), "{none:?}");
    let headers = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "8")];
    let line = format!("GET {}", fixture.exec("cat", all()));
    let (answer, _) = fixture.request(&line, &headers).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_broken_signal_ends_the_session() {
    let fixture = Fixture::new().await;
    for message in [vec![255], vec![255, 7], vec![255, 0, 0]] {
        let mut socket = connect(&fixture, &fixture.exec("hang", all()), V5).await.unwrap();
        fixture.busy(1).await;
        socket.send(Message::binary(message)).await.unwrap();
        while let Some(Ok(_)) = timeout(SOON, socket.next()).await.unwrap() {}
        drop(socket);
        fixture.quiet().await;
    }
}

#[tokio::test]
async fn pings_are_answered_and_a_stalled_client_is_kept() {
    let config = Config { keepalive: Duration::from_millis(50), ..Config::default() };
    let fixture = Fixture::with(config).await;
    let mut socket = connect(&fixture, &fixture.exec("hang", all()), V5).await.unwrap();
    socket.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
    let mut answered = false;
    while !answered {
        let message = timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap();
        answered = message == Message::Pong(Bytes::from_static(b"there?"));
    }
    // Input that nobody reads hides pings, but pongs come.
    let chunk = vec![0; 32 << 10];
    while timeout(Duration::from_millis(200), socket.feed(Message::binary(chunk.clone()))).await.is_ok()
        && timeout(Duration::from_millis(200), socket.flush()).await.is_ok()
    {}
    let pong = timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(pong.is_pong(), "{pong:?}");
    // Its end is hidden as well, but not for long.
    drop(socket);
    fixture.quiet().await;
}

#[tokio::test]
async fn ports_are_forwarded_by_channels() {
    let fixture = Fixture::new().await;
    // The ports of the request, or those of the query.
    for (path, base64) in
        [(fixture.forward(&[7, 1, 19]), false), (format!("{}?port=7&port=1,19", fixture.forward(&[])), true)]
    {
        let protocol = if base64 { "v4.base64.channel.k8s.io" } else { "v4.channel.k8s.io" };
        let mut socket = connect(&fixture, &path, protocol).await.unwrap();
        // Much comes on another channel, so nothing else is waited for but the error.
        let mut channels = vec![Vec::new(); 6];
        let whole = |channels: &[Vec<u8>]| channels[4].len() == 2 + MUCH && channels[3].len() > 2;
        while !whole(&channels) {
            let message = timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap().into_data();
            use base64::Engine;
            let (channel, data) = if base64 {
                let data = base64::engine::general_purpose::STANDARD.decode(&message[1..]).unwrap();
                (message[0] - b'0', data)
            } else {
                (message[0], message[1..].to_vec())
            };
            channels[usize::from(channel)].extend(data);
        }
        assert_eq!(channels[0], [7, 0]);
        assert_eq!(channels[2], [1, 0]);
        assert_eq!(channels[3], b"\x01\0error forwarding port 1 to pod p: connection refused");
        if !base64 {
            send(&mut socket, 0, b"echo").await;
            let message = timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(message.into_data()[..], *b"\0echo");
        }
        drop(socket);
        fixture.quiet().await;
    }
}

/// The protocol has no word for the end of one direction but that of all.
#[tokio::test]
async fn a_port_that_has_said_all_ends_the_socket() {
    let fixture = Fixture::new().await;
    let mut socket = connect(&fixture, &fixture.forward(&[20]), "v4.channel.k8s.io").await.unwrap();
    let channels = receive(&mut socket, false).await;
    assert_eq!(channels[..2], [b"\x14\0bye".to_vec(), b"\x14\0".to_vec()]);
    drop(socket);
    fixture.quiet().await;
}

#[tokio::test]
async fn a_goodbye_is_answered() {
    let fixture = Fixture::new().await;
    let mut socket = connect(&fixture, &fixture.exec("hang", all()), V5).await.unwrap();
    socket.send(Message::Close(None)).await.unwrap();
    // Every channel begins with an empty message.
    let mut answer = Message::Binary(Bytes::new());
    while answer.is_binary() {
        assert!(answer.len() <= 1, "{answer:?}");
        answer = timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap();
    }
    assert!(answer.is_close(), "{answer:?}");
    assert!(timeout(SOON, socket.next()).await.unwrap().is_none());
    fixture.quiet().await;
}

#[tokio::test]
async fn spdy_goes_through_a_tunnel() {
    let fixture = Fixture::new().await;
    let socket = connect(&fixture, &fixture.forward(&[]), "SPDY/3.1+portforward.k8s.io").await.unwrap();
    let (near, far) = duplex(64 << 10);
    let carrier = tokio::spawn(carry(socket, far));
    let client = Connection::client(near, Limits::default());
    for number in 0..5 {
        let headers = |kind| {
            Headers::new().with("streamType", kind).with("port", "7").with("requestID", number.to_string())
        };
        let error = client.open(headers("error")).await.unwrap();
        let data = client.open(headers("data")).await.unwrap();
        let (reader, mut writer) = tokio::io::split(data);
        let sent = format!("{number} ").repeat(100_000);
        let (back, ()) = tokio::join!(text(reader), async {
            writer.write_all(sent.as_bytes()).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        assert!(back == sent);
        assert_eq!(text(error).await, "");
    }
    drop(client);
    timeout(SOON, carrier).await.unwrap().unwrap();
    fixture.quiet().await;
}

/// The client's end of a tunnel.
async fn carry(socket: Socket, pipe: tokio::io::DuplexStream) {
    let (mut sink, mut source) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(pipe);
    let out = async {
        let mut piece = vec![0; 16 << 10];
        while let Ok(length @ 1..) = reader.read(&mut piece).await {
            sink.send(Message::binary(piece[..length].to_vec())).await.unwrap();
        }
    };
    let back = async {
        while let Some(Ok(message)) = source.next().await {
            if message.is_binary() && writer.write_all(&message.into_data()).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = out => {}
        () = back => {}
    }
}

#[tokio::test]
async fn sessions_that_are_cut_leave_nothing() {
    let fixture = Fixture::new().await;
    let mut kept = Vec::new();
    for number in 0..40 {
        let path = match number % 4 {
            0 => fixture.forward(&[19]),
            1 => fixture.exec("source", output()),
            2 => fixture.exec("cat", all()),
            _ => fixture.exec("hang", terminal()),
        };
        let protocol = if number % 4 == 0 { "v4.channel.k8s.io" } else { V5 };
        let socket = connect(&fixture, &path, protocol).await.unwrap();
        if number % 8 < 4 {
            drop(socket);
        } else {
            kept.push(socket);
        }
    }
    fixture.busy(kept.len()).await;
    drop(kept);
    fixture.quiet().await;
}
