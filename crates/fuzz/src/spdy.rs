//! SPDY: bytes to the decoder, and frames of every kind in any order to a connection.

use bytes::{Bytes, BytesMut};
use kina_spdy::{
    Connection, Decoded, Decoder, Encoder, Frame, GoAwayStatus, Headers, Limits, ResetStatus, Setting, Stream,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::task::JoinSet;

const CONTROL_FRAME: usize = 4 << 10;
const HEADER_BLOCK: usize = 8 << 10;

/// The decoder: whatever comes out goes in again and comes out as the same.
pub(crate) fn frames(input: &[u8]) {
    let Some((step, bytes)) = input.split_first() else { return };
    let mut decoder = Decoder::new(CONTROL_FRAME, HEADER_BLOCK);
    // What was decoded once may take more room when it is compressed again.
    let mut again = Decoder::new(64 << 10, 64 << 10);
    let mut encoder = Encoder::new();
    let mut buffer = BytesMut::new();
    for piece in bytes.chunks(usize::from(*step) + 1) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Err(_) => return,
                Ok(None) => break,
                Ok(Some(Decoded::Malformed { stream, .. })) => assert_ne!(stream, 0),
                Ok(Some(Decoded::Frame(frame))) => {
                    let mut encoded = BytesMut::new();
                    encoder.encode(&frame, &mut encoded);
                    assert_eq!(again.decode(&mut encoded), Ok(Some(Decoded::Frame(frame))));
                    assert!(encoded.is_empty());
                }
            }
        }
        assert!(buffer.len() < 8 + CONTROL_FRAME, "{} bytes are held", buffer.len());
    }
}

/// A connection, and a peer that does as the input says. Every stream is answered; in the end nothing is left.
pub(crate) fn connection(input: &[u8]) {
    let limits = Limits {
        streams: 4,
        stream_buffer: 256,
        connection_buffer: 512,
        header_block: 256,
        ping_interval: None,
        ..Limits::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without threads").block_on(async {
        let (mut near, far) = duplex(128);
        let server = Connection::server(far, limits);
        let serve = async {
            let mut tasks = JoinSet::new();
            while let Some(incoming) = server.accept().await {
                if incoming.headers().get("refuse").is_some() {
                    incoming.refuse(ResetStatus::REFUSED_STREAM);
                } else {
                    tasks.spawn(echo(incoming.accept()));
                }
                assert!(server.open_streams() <= 4);
            }
            // Only the end of the transport ends streams that the peer left open.
            server.closed().await;
            while tasks.join_next().await.is_some() {}
            assert_eq!(server.open_streams(), 0);
        };
        let send = async {
            let bytes = encode(input);
            let (mut reader, mut writer) = tokio::io::split(&mut near);
            let answers = async {
                let mut decoder = Decoder::new(64 << 10, 64 << 10);
                let mut buffer = BytesMut::new();
                while reader.read_buf(&mut buffer).await.is_ok_and(|length| length > 0) {
                    while decoder.decode(&mut buffer).expect("what we send is well formed").is_some() {}
                }
            };
            let write = async {
                let _: Result<_, _> = writer.write_all(&bytes).await;
                let _: Result<_, _> = writer.shutdown().await;
            };
            tokio::join!(answers, write);
        };
        tokio::join!(serve, send);
    });
}

async fn echo(stream: Stream) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
        let _: Result<_, _> = writer.shutdown().await;
    }
}

/// Four bytes a frame: what, which stream, and two that belong to its kind.
fn encode(input: &[u8]) -> BytesMut {
    let mut encoder = Encoder::new();
    let mut bytes = BytesMut::new();
    for step in input.chunks_exact(4) {
        let [kind, stream, a, b] = [step[0], step[1], step[2], step[3]];
        let (fin, stream) = (kind & 0x80 != 0, u32::from(stream));
        let headers = || match a % 4 {
            0 => Headers::new(),
            1 => Headers::new().with("refuse", "yes"),
            2 => Headers::new().with("", "no name"),
            _ => Headers::new().with("a", "b".repeat(usize::from(b))),
        };
        let number = u32::from_be_bytes([0, 0, a, b]);
        let frame = match kind % 16 {
            0 | 1 => Frame::SynStream {
                stream,
                associated: 0,
                priority: 0,
                fin,
                unidirectional: kind & 0x40 != 0,
                headers: headers(),
            },
            2 => Frame::SynReply { stream, fin, headers: headers() },
            3 => Frame::RstStream { stream, status: ResetStatus(number) },
            4 => {
                Frame::Settings { clear: fin, entries: vec![Setting { flags: a, id: stream, value: number }] }
            }
            5 => Frame::Ping { id: number },
            6 => Frame::GoAway { last_stream: stream, status: GoAwayStatus(number) },
            7 => Frame::Headers { stream, fin, headers: headers() },
            8 => Frame::WindowUpdate { stream, delta: number },
            // Bytes as they are.
            9 => {
                bytes.extend_from_slice(&step[1..]);
                continue;
            }
            _ => Frame::Data { stream, fin, data: Bytes::from(vec![a; usize::from(b) * 4]) },
        };
        encoder.encode(&frame, &mut bytes);
    }
    bytes
}

/// Frames as bytes, each seed after its step.
pub(crate) fn frame_seeds() -> Vec<Vec<u8>> {
    let steps = connection_seeds().into_iter().map(|script| {
        let mut seed = vec![255];
        seed.extend_from_slice(&encode(&script));
        seed
    });
    steps.chain([Vec::new(), b"\x00\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01".to_vec()]).collect()
}

/// Scripts for [`encode`].
pub(crate) fn connection_seeds() -> Vec<Vec<u8>> {
    vec![
        // A stream, its data, its end, and the connection's.
        [[0, 1, 0, 0], [10, 1, 7, 200], [0x80 | 10, 1, 7, 9], [6, 0, 0, 0]].concat(),
        // More streams than are taken, a refused one, one without a name, resets.
        [
            [0, 1, 0, 0],
            [0, 3, 1, 0],
            [0, 5, 3, 100],
            [0x40, 7, 0, 0],
            [0, 9, 2, 0],
            [0, 11, 0, 0],
            [3, 5, 0, 5],
        ]
        .concat(),
        [[5, 0, 0, 1], [5, 0, 0, 2], [4, 7, 0, 9], [8, 0, 1, 0], [2, 2, 0, 0], [7, 1, 0, 0]].concat(),
        // Much data on several streams.
        [[0, 1, 0, 0], [0, 3, 0, 0], [0, 5, 0, 0]]
            .concat()
            .into_iter()
            .chain([[10, 1, 1, 255], [10, 3, 2, 255], [10, 5, 3, 255]].concat().repeat(6))
            .collect(),
        // What breaks the protocol.
        [[0, 3, 0, 0], [0, 3, 0, 0]].concat(),
        [[0, 2, 0, 0], [9, 0x80, 3, 0]].concat(),
        Vec::new(),
    ]
}
