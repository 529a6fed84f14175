//! What grpc-go does to a connection that other clients do not.

use std::time::Duration;

use futures::future::join_all;
use kina::cri::v1;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::harness::{Daemon, PATIENCE};

const PINGS: u32 = 20_000;

/// Types of frames (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A frame's bytes.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// A field that enters no table, by its name (RFC 7541, section 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

/// A call of Version with an empty message, on that stream.
fn call(stream: u32) -> Vec<u8> {
    let fields = [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":path", "/runtime.v1.RuntimeService/Version"),
        field(":authority", "localhost"),
        field("content-type", "application/grpc"),
        field("te", "trailers"),
    ];
    let headers = frame(HEADERS, END_HEADERS, stream, &fields.concat());
    [headers, frame(DATA, END_STREAM, stream, &[0; 5])].concat()
}

/// grpc-go sends a PING with nearly every message that it reads, to measure the
/// connection, and more to keep it alive. A server that counts them as an attack
/// ends the connection with ENHANCE_YOUR_CALM in the middle of a call.
#[tokio::test]
async fn a_flood_of_pings_is_answered() {
    let mut daemon = Daemon::start().await;
    let (mut reader, mut writer) = UnixStream::connect(daemon.place.socket()).await.unwrap().into_split();
    let write = async {
        writer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        writer.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        writer.write_all(&call(1)).await.unwrap();
        for number in 0..PINGS {
            writer.write_all(&frame(PING, 0, 0, &u64::from(number).to_be_bytes())).await.unwrap();
        }
        writer.write_all(&call(3)).await.unwrap();
    };
    let read = async {
        let (mut answered, mut ended) = (0, Vec::new());
        while answered < PINGS || ended.len() < 2 {
            let mut head = [0; 9];
            reader.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; length.try_into().unwrap()];
            reader.read_exact(&mut payload).await.unwrap();
            match (head[3], head[4]) {
                (PING, ACK) => {
                    assert_eq!(payload, u64::from(answered).to_be_bytes());
                    answered += 1;
                }
                (GO_AWAY, _) => panic!("the connection is ended: {}", String::from_utf8_lossy(&payload)),
                (HEADERS, flags) if flags & END_STREAM != 0 => ended.push(stream),
                _ => {}
            }
        }
        ended
    };
    let both = async { tokio::join!(write, read) };
    let ((), ended) = timeout(PATIENCE, both).await.expect("every PING is answered");
    assert_eq!(ended, [1, 3]);
    daemon.leave_nothing().await;
}

/// A kubelet whose context ends gives up all its calls at once; the connection
/// goes on.
#[tokio::test]
async fn calls_given_up_by_the_hundred() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let mut events = cri.client.runtime.clone().get_container_events(v1::GetEventsRequest {}).await.unwrap();
    for round in 0_u32..20 {
        // From "before it was sent" to "as the answer comes".
        let patience = Duration::from_micros(u64::from(round) * 50);
        let calls = (0..200).map(async |_| {
            let mut runtime = cri.client.runtime.clone();
            let request = v1::ListContainersRequest { filter: None };
            if let Ok(answer) = timeout(patience, runtime.list_containers(request)).await {
                answer.unwrap();
            }
        });
        join_all(calls).await;
    }
    // It is the same connection still: the stream of before goes on.
    let pod = cri.make_pod("p").await;
    let event = timeout(PATIENCE, events.get_mut().message()).await.unwrap().unwrap().unwrap();
    assert_eq!(event.container_id, pod);
    drop((events, cri));
    daemon.leave_nothing().await;
}
