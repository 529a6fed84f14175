//! Streams that nobody reads, in a real machine.

use std::time::{Duration, Instant};

use kina_spdy::{Connection, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Cri, Daemon, PATIENCE, machine, script, shell};
use crate::streaming::{
    COMMAND, FORWARD, attach, attach_url, connect, exec, exec_url, forward, forward_url, open,
};

/// Together a hundred. A container has at most 32 attached clients.
const EXECS: usize = 30;
const ATTACHES: [usize; 2] = [20, 20];
const FORWARDS: usize = 30;

/// How long a command takes that does nothing.
async fn command(cri: &Cri, container: &str) -> Duration {
    let begin = Instant::now();
    let answer = cri.exec(container, shell("echo here"), 30).await.unwrap();
    assert_eq!(answer.stdout, b"here\n");
    begin.elapsed()
}

/// Waits for the first byte; the rest is left where it is.
async fn begun(mut stream: Stream) -> Stream {
    tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap();
    stream
}

/// The output of a command or a container.
async fn output(url: &str) -> (Connection, Stream, Stream) {
    let connection = connect(url, COMMAND).await;
    let error = open(&connection, "error").await;
    let output = open(&connection, "stdout").await;
    (connection, error, output)
}

/// Bulk streams have connections of their own: that nobody reads a hundred of them,
/// each of which has more to say, does not hold back a call.
#[tokio::test]
async fn a_hundred_unread_streams_hold_nothing_back() {
    machine::use_vm();
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let serve = "mkdir -p /tmp/www; head -c 3000000 /dev/zero | tr '\\0' x > /tmp/www/much; \
                 httpd -p 127.0.0.1:80 -h /tmp/www; echo up; exec sleep 1000";
    let one = cri.run(&pod, script("one", serve)).await;
    cri.wait_output(&one, "up").await;
    let mut printers = Vec::new();
    for (number, _) in ATTACHES.iter().enumerate() {
        let print = "until test -e /go; do sleep 0.1; done; while cat /etc/passwd; do :; done";
        printers.push(cri.run(&pod, script(&format!("printer{number}"), print)).await);
    }
    let alone = command(&cri, &one).await;

    let mut unread = Vec::new();
    for _ in 0..EXECS {
        let url = exec_url(&cri, exec(&one, "cat /tmp/www/much; sleep 1000")).await.unwrap();
        let (connection, error, stream) = output(&url).await;
        unread.push((connection, error, begun(stream).await));
    }
    let mut forwarded = Vec::new();
    for _ in 0..FORWARDS {
        // Streams of one connection share what their client is willing to take.
        let url = forward_url(&cri, &pod, vec![80]).await.unwrap();
        let connection = connect(&url, FORWARD).await;
        let (mut data, error) = forward(&connection, 80, 1).await;
        data.write_all(b"GET /much HTTP/1.0\r\n\r\n").await.unwrap();
        forwarded.push((connection, begun(data).await, error));
    }
    // Last, and silent until all are there: who reads nothing for five seconds is cut off.
    let mut attached = Vec::new();
    for (printer, count) in printers.iter().zip(ATTACHES) {
        for _ in 0..count {
            attached.push(output(&attach_url(&cri, attach(printer)).await.unwrap()).await);
        }
        cri.sh(printer, "touch /go").await;
    }
    let streams = unread.len() + forwarded.len() + attached.len();
    let mut times = Vec::new();
    for _ in 0..5 {
        times.push(command(&cri, &one).await);
    }
    times.sort();
    println!("a command alone: {alone:?}; with {streams} unread streams: {times:?}");
    assert_eq!(streams, 100);
    // Emulated, beside whatever else the machine does: against what it takes alone.
    let limit = Duration::from_secs(1).max(5 * alone);
    assert!(times[2] < limit, "{times:?}, alone {alone:?}");
    drop((unread, forwarded, attached));
    daemon.leave_nothing().await;
}
