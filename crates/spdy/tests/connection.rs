//! Connections: two of ours against each other, and ours against frames by hand.

#![allow(clippy::unwrap_used, reason = "helpers here are part of tests")]

use std::io::ErrorKind;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kina_spdy::{
    Closed, Connection, Decoded, Decoder, Encoder, Frame, GoAwayStatus, Headers, Limits, OpenError,
    ProtocolError, ResetStatus, Stream,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

fn pair() -> (Connection, Connection) {
    pair_with(Limits::default())
}

fn pair_with(limits: Limits) -> (Connection, Connection) {
    let (near, far) = duplex(16 << 10);
    (Connection::client(near, Limits::default()), Connection::server(far, limits))
}

/// A stream of the client's with its other end.
async fn stream(client: &Connection, server: &Connection, name: &str) -> (Stream, Stream) {
    let (opened, accepted) = tokio::join!(client.open(Headers::new().with("name", name)), async {
        server.accept().await.unwrap().accept()
    });
    assert_eq!(accepted.headers().get("name"), Some(name));
    (opened.unwrap(), accepted)
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let (client, server) = pair();
    let (mut near, mut far) = stream(&client, &server, "a").await;
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut text = String::new();
    far.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "question");
    far.write_all(b"answer").await.unwrap();
    drop(far);
    assert_eq!(near.read_to_string(&mut text).await.unwrap_err().kind(), ErrorKind::ConnectionReset);

    let (mut near, mut far) = stream(&client, &server, "b").await;
    near.shutdown().await.unwrap();
    assert_eq!(near.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    far.write_all(b"answer").await.unwrap();
    far.shutdown().await.unwrap();
    drop(far);
    text.clear();
    near.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "answer");
}

#[tokio::test]
async fn a_stream_that_finishes_on_drop_is_not_cut() {
    let (client, server) = pair();
    let (mut near, far) = stream(&client, &server, "x").await;
    let mut far = far.finish_on_drop();
    far.write_all(&[7; 50_000]).await.unwrap();
    drop(far);
    let mut data = Vec::new();
    near.read_to_end(&mut data).await.unwrap();
    assert_eq!(data.len(), 50_000);
}

#[tokio::test]
async fn either_side_opens_streams() {
    let (client, server) = pair();
    let (opened, accepted) =
        tokio::join!(server.open(Headers::new()), async { client.accept().await.unwrap().accept() });
    assert_eq!((opened.unwrap().number(), accepted.number()), (2, 2));
}

#[tokio::test]
async fn what_is_left_of_streams_is_nothing() {
    let (client, server) = pair();
    for round in 0..200 {
        let (mut near, mut far) = stream(&client, &server, "x").await;
        match round % 4 {
            0 => {
                near.shutdown().await.unwrap();
                far.shutdown().await.unwrap();
            }
            1 => near.write_all(b"lost").await.unwrap(),
            2 => far.shutdown().await.unwrap(),
            _ => near.reset(ResetStatus::INTERNAL_ERROR),
        }
    }
    // The last end has arrived when a stream after it has.
    drop(stream(&client, &server, "x").await);
    drop(stream(&client, &server, "x").await);
    let left = async {
        while client.open_streams() + server.open_streams() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, left).await.unwrap();
}

#[tokio::test]
async fn a_stream_whose_connection_ends_at_once_is_read() {
    let (client, server) = pair();
    let serve = async {
        let mut far = server.accept().await.unwrap().accept();
        far.write_all(b"all").await.unwrap();
        far.shutdown().await.unwrap();
        drop(far);
        server.close().await
    };
    let opening = client.open(Headers::new());
    let mut opening = std::pin::pin!(opening);
    // Everything has come and gone before the client looks.
    let (first, ()) = tokio::join!(timeout(Duration::ZERO, opening.as_mut()), async {});
    assert!(first.is_err());
    let (_, ended) = tokio::join!(serve, client.closed());
    drop(ended);
    let mut text = String::new();
    opening.await.unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "all");
}

#[tokio::test]
async fn refused_streams_and_too_many_are_told() {
    let (client, server) = pair_with(Limits { streams: 1, ..Limits::default() });
    let (refused, ()) = tokio::join!(client.open(Headers::new()), async {
        server.accept().await.unwrap().refuse(ResetStatus::CANCEL);
    });
    assert!(matches!(refused, Err(OpenError::Refused { status: ResetStatus::CANCEL })), "{refused:?}");
    let (refused, ()) = tokio::join!(client.open(Headers::new()), async {
        drop(server.accept().await.unwrap());
    });
    assert!(matches!(refused, Err(OpenError::Refused { .. })), "{refused:?}");

    let _one = stream(&client, &server, "one").await;
    let second = client.open(Headers::new()).await;
    assert!(matches!(second, Err(OpenError::Refused { status: ResetStatus::REFUSED_STREAM })), "{second:?}");
    assert!(matches!(server.open(Headers::new()).await, Err(OpenError::TooMany { limit: 1 })));
    let long = Headers::new().with("a", "b".repeat(1 << 20));
    assert!(matches!(client.open(long).await, Err(OpenError::HeadersTooLong)));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_reads_holds_the_writer_up() {
    let (client, server) = pair();
    let (mut near, mut far) = stream(&client, &server, "x").await;
    let mut sent = 0_u64;
    let chunk = [7; 4096];
    // Until nothing moves: both buffers of the stream, the pipe and what is being read are full.
    while let Ok(written) = timeout(Duration::from_millis(200), near.write(&chunk)).await {
        sent += written.unwrap() as u64;
    }
    assert!((64 << 10..512 << 10).contains(&sent), "{sent}");
    let read = async {
        let mut sink = tokio::io::sink();
        tokio::io::copy(&mut far, &mut sink).await.unwrap()
    };
    let write = async {
        for _ in 0..1000 {
            near.write_all(&chunk).await.unwrap();
        }
        near.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(read, write);
    assert_eq!(read, sent + 1000 * 4096);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_lets_the_others_go_on() {
    let (client, server) = pair();
    let (mut stuck, never_read) = stream(&client, &server, "stuck").await;
    let (mut near, mut far) = stream(&client, &server, "other").await;
    while let Ok(written) = timeout(Duration::from_millis(100), stuck.write(&[0; 4096])).await {
        written.unwrap();
    }
    near.write_all(b"x").await.unwrap();
    drop(never_read);
    assert_eq!(timeout(SOON, far.read_u8()).await.unwrap().unwrap(), b'x');
}

#[tokio::test]
async fn a_close_sends_what_was_written() {
    let (client, server) = pair();
    let (mut near, mut far) = stream(&client, &server, "x").await;
    let data: Vec<u8> = (0..60_000_u32).map(|number| number as u8).collect();
    far.write_all(&data).await.unwrap();
    let read = async {
        let mut read = Vec::new();
        let error = near.read_to_end(&mut read).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ConnectionAborted), "{error:?}");
        drop(client);
        read
    };
    let (reason, read) = tokio::join!(server.close(), read);
    assert!(matches!(reason, Closed::Here), "{reason:?}");
    assert!(read == data);
    assert!(far.write(b"x").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_close_does_not_wait_for_ever() {
    let (near, far) = duplex(64);
    let server = Connection::server(far, Limits::default());
    let reason = timeout(Duration::from_secs(6), server.close()).await.unwrap();
    assert!(matches!(reason, Closed::Here), "{reason:?}");
    drop(near);
}

#[tokio::test]
async fn a_peer_that_vanishes_ends_everything() {
    let (client, server) = pair();
    let (near, mut far) = stream(&client, &server, "x").await;
    let (reason, accepted, read) = tokio::join!(server.closed(), server.accept(), async {
        drop(client);
        far.read_u8().await
    });
    assert!(matches!(reason, Closed::ByPeer), "{reason:?}");
    assert!(accepted.is_none());
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert!(matches!(server.open(Headers::new()).await, Err(OpenError::Closed(Closed::ByPeer))));
    drop((near, far));
    assert_eq!(server.open_streams(), 0);

    // Streams that nobody had accepted go too.
    let (mut peer, server) = Peer::with(Limits::default());
    peer.send(open(1)).await;
    drop(peer);
    server.closed().await;
    assert_eq!(server.open_streams(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends() {
    let (near, far) = duplex(1 << 16);
    let limits = Limits { idle_timeout: Duration::from_secs(600), ..Limits::default() };
    let server = Connection::server(far, limits);
    // It answers pings, which does not count.
    let client = Connection::client(near, Limits { ping_interval: None, ..Limits::default() });
    let start = tokio::time::Instant::now();
    assert!(matches!(server.closed().await, Closed::Idle));
    assert_eq!(start.elapsed().as_secs(), 600);
    drop(client);
}

#[tokio::test]
async fn a_dead_peer_is_noticed_although_nothing_is_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    let limits = Limits { ping_interval: Some(Duration::from_millis(50)), ..Limits::default() };
    let server = Connection::server(far, limits);
    let client = Connection::client(near, Limits::default());
    let (mut near, _far) = stream(&client, &server, "x").await;
    while let Ok(written) = timeout(Duration::from_millis(200), near.write(&[0; 65536])).await {
        written.unwrap();
    }
    drop((near, client));
    let reason = timeout(SOON, server.closed()).await.unwrap();
    assert!(matches!(reason, Closed::Transport(_)), "{reason:?}");
}

#[tokio::test]
async fn many_streams_at_once_keep_their_bytes_apart() {
    let (client, server) = pair();
    let echo = tokio::spawn(async move {
        let mut tasks = tokio::task::JoinSet::new();
        while let Some(incoming) = server.accept().await {
            tasks.spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(incoming.accept());
                tokio::io::copy(&mut reader, &mut writer).await.unwrap();
                writer.shutdown().await.unwrap();
            });
        }
        tasks.join_all().await.len()
    });
    let client = std::sync::Arc::new(client);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..50_u32 {
        let client = client.clone();
        tasks.spawn(async move {
            let stream = client.open(Headers::new().with("number", number.to_string())).await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(stream);
            let data: Vec<u8> = (0..100_000_u32).map(|at| (at.wrapping_mul(number) >> 3) as u8).collect();
            let mut back = Vec::new();
            let (written, read) = tokio::join!(
                async {
                    writer.write_all(&data).await?;
                    writer.shutdown().await
                },
                reader.read_to_end(&mut back)
            );
            written.unwrap();
            read.unwrap();
            assert!(back == data, "stream {number}");
        });
    }
    timeout(SOON, tasks.join_all()).await.unwrap();
    std::sync::Arc::into_inner(client).unwrap().close().await;
    assert_eq!(echo.await.unwrap(), 50);
}

/// A peer that sends whatever it wants.
struct Peer {
    transport: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
    buffer: BytesMut,
}

impl Peer {
    fn with(limits: Limits) -> (Self, Connection) {
        let (transport, far) = duplex(64 << 10);
        let (encoder, decoder) = (Encoder::new(), Decoder::new(1 << 20, 1 << 20));
        (Self { transport, encoder, decoder, buffer: BytesMut::new() }, Connection::server(far, limits))
    }

    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes);
        self.transport.write_all(&bytes).await.unwrap();
    }

    async fn receive(&mut self) -> Option<Frame> {
        loop {
            match self.decoder.decode(&mut self.buffer).unwrap() {
                Some(Decoded::Frame(frame)) => return Some(frame),
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            if next(&mut self.transport, &mut self.buffer).await == 0 {
                return None;
            }
        }
    }
}

async fn next(transport: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> usize {
    timeout(SOON, transport.read_buf(buffer)).await.unwrap().unwrap()
}

fn open(stream: u32) -> Frame {
    Frame::SynStream {
        stream,
        associated: 0,
        priority: 0,
        fin: false,
        unidirectional: false,
        headers: Headers::new(),
    }
}

#[tokio::test]
async fn pings_are_answered_and_what_is_not_used_is_skipped() {
    let (mut peer, _server) = Peer::with(Limits::default());
    peer.send(Frame::Settings { clear: false, entries: Vec::new() }).await;
    peer.send(Frame::WindowUpdate { stream: 0, delta: 65536 }).await;
    peer.send(Frame::Ping { id: 2 }).await;
    peer.send(Frame::Ping { id: 3 }).await;
    assert_eq!(peer.receive().await, Some(Frame::Ping { id: 3 }));
}

#[tokio::test]
async fn windows_are_not_enforced() {
    let (mut peer, server) = Peer::with(Limits::default());
    peer.send(open(1)).await;
    let mut stream = server.accept().await.unwrap().accept();
    assert_eq!(
        peer.receive().await,
        Some(Frame::SynReply { stream: 1, fin: false, headers: Headers::new() })
    );
    let send = async {
        for round in 0..64 {
            peer.send(Frame::Data { stream: 1, fin: round == 63, data: vec![1; 16 << 10].into() }).await;
        }
    };
    let mut read = Vec::new();
    let (_, ()) = tokio::join!(stream.read_to_end(&mut read), send);
    assert_eq!(read.len(), 1 << 20);
}

#[tokio::test]
async fn strange_frames_reset_their_stream_only() {
    let (mut peer, server) = Peer::with(Limits::default());
    peer.send(Frame::Data { stream: 9, fin: false, data: Bytes::from_static(b"x") }).await;
    assert_eq!(
        peer.receive().await,
        Some(Frame::RstStream { stream: 9, status: ResetStatus::INVALID_STREAM })
    );
    // A header without a name.
    let Frame::SynStream { associated, priority, fin, unidirectional, .. } = open(11) else { unreachable!() };
    let headers = Headers::new().with("", "x");
    peer.send(Frame::SynStream { stream: 11, associated, priority, fin, unidirectional, headers }).await;
    assert_eq!(
        peer.receive().await,
        Some(Frame::RstStream { stream: 11, status: ResetStatus::PROTOCOL_ERROR })
    );
    // Data after the end.
    peer.send(open(13)).await;
    let mut stream = server.accept().await.unwrap().accept();
    assert!(matches!(peer.receive().await, Some(Frame::SynReply { stream: 13, .. })));
    peer.send(Frame::Data { stream: 13, fin: true, data: Bytes::from_static(b"a") }).await;
    peer.send(Frame::Data { stream: 13, fin: false, data: Bytes::from_static(b"b") }).await;
    assert_eq!(
        peer.receive().await,
        Some(Frame::RstStream { stream: 13, status: ResetStatus::PROTOCOL_ERROR })
    );
    assert_eq!(stream.read_u8().await.unwrap(), b'a');
    // Frames of streams that have gone are nobody's fault.
    peer.send(Frame::RstStream { stream: 13, status: ResetStatus::CANCEL }).await;
    peer.send(Frame::Data { stream: 11, fin: true, data: Bytes::new() }).await;
    peer.send(Frame::Ping { id: 1 }).await;
    assert_eq!(peer.receive().await, Some(Frame::Ping { id: 1 }));
}

#[tokio::test]
async fn a_broken_protocol_ends_the_connection_with_a_word() {
    let (mut peer, server) = Peer::with(Limits::default());
    peer.send(open(3)).await;
    peer.send(open(3)).await;
    assert_eq!(
        peer.receive().await,
        Some(Frame::GoAway { last_stream: 3, status: GoAwayStatus::PROTOCOL_ERROR })
    );
    assert_eq!(peer.receive().await, None);
    let reason = server.closed().await;
    assert!(
        matches!(reason, Closed::Protocol(ProtocolError::StreamNumber { stream: 3, last: 3 })),
        "{reason:?}"
    );
    assert!(server.accept().await.is_none());
}

#[tokio::test]
async fn nothing_is_accepted_after_goaway_but_streams_go_on() {
    let (mut peer, server) = Peer::with(Limits::default());
    peer.send(open(1)).await;
    let mut stream = server.accept().await.unwrap().accept();
    peer.send(Frame::GoAway { last_stream: 0, status: GoAwayStatus::OK }).await;
    assert!(server.accept().await.is_none());
    assert!(matches!(server.open(Headers::new()).await, Err(OpenError::GoingAway)));
    peer.send(Frame::Data { stream: 1, fin: true, data: Bytes::from_static(b"end") }).await;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "end");
}

#[tokio::test(start_paused = true)]
async fn a_flood_without_a_reader_stops() {
    let (mut peer, _server) = Peer::with(Limits::default());
    // Pings, whose answers nobody takes.
    let mut sent = 0;
    while timeout(Duration::from_millis(300), peer.send(Frame::Ping { id: 1 })).await.is_ok() {
        sent += 1;
        assert!(sent < 1_000_000);
    }
    assert!(sent > 1000, "{sent}");
}

#[tokio::test]
async fn streams_that_nobody_accepts_are_counted() {
    let (mut peer, server) = Peer::with(Limits { streams: 4, ..Limits::default() });
    for number in 0..6 {
        peer.send(open(1 + 2 * number)).await;
        // Resetting them does not make room.
        let status = ResetStatus::CANCEL;
        peer.send(Frame::RstStream { stream: 1 + 2 * number, status }).await;
    }
    let status = ResetStatus::REFUSED_STREAM;
    assert_eq!(peer.receive().await, Some(Frame::RstStream { stream: 9, status }));
    assert_eq!(peer.receive().await, Some(Frame::RstStream { stream: 11, status }));
    assert_eq!(server.open_streams(), 4);
}
