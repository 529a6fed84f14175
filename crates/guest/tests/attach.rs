//! Clients at a container's own streams.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod support;

use std::time::{Duration, Instant};

use kina_guest_api::v1::attach_response::What;
use kina_guest_api::{AttachResponses, AttachSession, GuestError, Refusal, v1};
use support::{Guest, PATIENCE};

fn all(id: &str) -> v1::AttachStart {
    v1::AttachStart {
        container_id: id.to_owned(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..v1::AttachStart::default()
    }
}

fn with_input(container: v1::CreateContainerRequest, once: bool) -> v1::CreateContainerRequest {
    v1::CreateContainerRequest { stdin: true, stdin_once: once, ..container }
}

async fn next(responses: &mut AttachResponses) -> Result<Option<What>, GuestError> {
    tokio::time::timeout(PATIENCE, responses.next()).await.expect("an answer in time")
}

/// Reads until standard output ends with `text`.
async fn read_until(responses: &mut AttachResponses, text: &str) -> String {
    let mut seen = String::new();
    while !seen.ends_with(text) {
        match next(responses).await.unwrap() {
            Some(What::Stdout(bytes)) => seen.push_str(&String::from_utf8(bytes).unwrap()),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    seen
}

/// Reads to the end: standard output and standard error.
async fn read_to_end(responses: &mut AttachResponses) -> (String, String) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match next(responses).await.unwrap() {
            Some(What::Stdout(bytes)) => stdout.extend(bytes),
            Some(What::Stderr(bytes)) => stderr.extend(bytes),
            Some(What::End(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(next(responses).await.unwrap(), None);
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[tokio::test]
async fn several_clients_follow_and_one_that_leaves_is_not_missed() {
    let guest = Guest::with_pod().await;
    let script = "while read line; do echo out $line; echo err $line >&2; done; echo over";
    guest.run(with_input(guest.container("c", script), false)).await;
    let mut one = guest.client.attach(all("c")).await.unwrap();
    assert!(one.started.stdin && !one.started.terminal);
    let deaf = v1::AttachStart { stdin: false, stderr: false, ..all("c") };
    let mut two = guest.client.attach(deaf).await.unwrap();
    assert!(!two.started.stdin);
    one.input.stdin(b"first\n").await.unwrap();
    assert_eq!(read_until(&mut two.responses, "first\n").await, "out first\n");
    drop(two);
    // Without `stdin_once` nobody's end closes it.
    let three = guest.client.attach(all("c")).await.unwrap();
    three.input.stdin(b"second\n").await.unwrap();
    three.input.stdin_end().await.unwrap();
    guest.wait_for_output("c", "out second").await;
    drop(three);
    one.input.stdin(b"third\n").await.unwrap();
    guest.wait_for_output("c", "err third").await;
    guest.kill("c", 9).await;
    let (stdout, stderr) = read_to_end(&mut one.responses).await;
    assert_eq!(stdout, "out first\nout second\nout third\n");
    assert_eq!(stderr, "err first\nerr second\nerr third\n");
    assert_eq!(guest.wait("c").await.code, 137);
    let gone = guest.client.attach(all("c")).await.unwrap_err();
    assert_eq!(gone.refusal(), Some(Refusal::WrongState));
}

#[tokio::test]
async fn input_that_is_for_one_client_closes_with_it() {
    let guest = Guest::with_pod().await;
    for (id, goes_away) in [("polite", false), ("rude", true)] {
        guest.run(with_input(guest.container(id, "cat; echo closed"), true)).await;
        let only_output = v1::AttachStart { stdin: false, ..all(id) };
        let AttachSession { mut responses, .. } = guest.client.attach(only_output.clone()).await.unwrap();
        // A client without input is not the one.
        drop(guest.client.attach(only_output).await.unwrap());
        let first = guest.client.attach(all(id)).await.unwrap();
        let text = format!("{}\n", "x".repeat(200_000));
        first.input.stdin(text.as_bytes()).await.unwrap();
        if goes_away {
            read_until(&mut responses, "x\n").await;
            drop(first);
            assert_eq!(read_to_end(&mut responses).await.0, "closed\n");
        } else {
            first.input.stdin_end().await.unwrap();
            assert_eq!(read_to_end(&mut responses).await.0, format!("{text}closed\n"));
        }
        assert_eq!(guest.wait(id).await.code, 0);
    }
}

#[tokio::test]
async fn a_terminal_is_shared_and_has_its_size() {
    let guest = Guest::with_pod().await;
    let script = "while read line; do stty size; echo got $line >&2; done; echo over";
    let mut request = with_input(guest.container("c", script), true);
    request.process.as_mut().unwrap().terminal = true;
    guest.run(request).await;
    let size = Some(v1::WindowSize { columns: 100, rows: 40 });
    let mut one = guest.client.attach(v1::AttachStart { size, ..all("c") }).await.unwrap();
    assert!(one.started.stdin && one.started.terminal);
    one.input.stdin(b"hello\n").await.unwrap();
    let seen = read_until(&mut one.responses, "got hello\r\n").await;
    assert!(seen.contains("40 100"), "{seen:?}");
    // A terminal stays, whoever leaves.
    drop(one);
    let mut two = guest.client.attach(all("c")).await.unwrap();
    two.input.resize(77, 33).await.unwrap();
    two.input.stdin(b"again\n").await.unwrap();
    let seen = read_until(&mut two.responses, "got again\r\n").await;
    assert!(seen.contains("33 77"), "{seen:?}");
    two.input.stdin(b"\x04").await.unwrap();
    assert!(read_to_end(&mut two.responses).await.0.ends_with("over\r\n"));
    assert_eq!(guest.wait("c").await.code, 0);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_nobody_else() {
    const BYTES: usize = 8 << 20;
    let guest = Guest::with_pod().await;
    let script = format!("read go; dd if=/dev/zero bs=64k count={} 2>/dev/null; echo; read go", BYTES >> 16);
    guest.run(with_input(guest.container("c", &script), false)).await;
    let mut slow = guest.client.attach(all("c")).await.unwrap();
    let mut fast = guest.client.attach(all("c")).await.unwrap();
    fast.input.stdin(b"go\n").await.unwrap();
    let begin = Instant::now();
    let mut seen = 0;
    while seen <= BYTES {
        match next(&mut fast.responses).await.unwrap() {
            Some(What::Stdout(bytes)) => seen += bytes.len(),
            other => panic!("{other:?} after {seen}"),
        }
    }
    assert!(begin.elapsed() > Duration::from_secs(1), "nothing was held back");
    let refused = loop {
        match next(&mut slow.responses).await {
            Ok(Some(What::Stdout(_))) => {}
            other => break other.unwrap_err(),
        }
    };
    assert_eq!(refused.refusal(), Some(Refusal::Exhausted), "{refused}");
    // Both may come again.
    let mut back = guest.client.attach(all("c")).await.unwrap();
    back.input.stdin(b"go\n").await.unwrap();
    assert_eq!(read_to_end(&mut back.responses).await.0, "");
    assert_eq!(read_to_end(&mut fast.responses).await.0, "");
}

#[tokio::test]
async fn what_cannot_be_attached_to_is_refused() {
    let guest = Guest::with_pod().await;
    let refusal = async |id: &str| guest.client.attach(all(id)).await.unwrap_err().refusal();
    assert_eq!(refusal("nobody").await, Some(Refusal::NotFound));
    guest.create(guest.container("c", "sleep 1000")).await;
    assert_eq!(refusal("c").await, Some(Refusal::WrongState));
    guest.start_container("c").await;
    let session = guest.client.attach(all("c")).await.unwrap();
    // Made without input: none of it goes anywhere.
    assert!(!session.started.stdin);
    session.input.stdin(b"into the void").await.unwrap();
    guest.exec("c", "true").await;
}
