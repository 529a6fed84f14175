//! Processes in a running container.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod support;

use std::time::{Duration, Instant};

use kina_guest_api::v1::exec_response::What;
use kina_guest_api::{ExecResponses, Refusal, v1};
use support::{Guest, PATIENCE, wait_until};

fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

fn start(script: &str) -> v1::ExecStart {
    v1::ExecStart { container_id: "c".to_owned(), args: shell(script), ..v1::ExecStart::default() }
}

async fn guest() -> Guest {
    let guest = Guest::with_pod().await;
    guest.run(guest.container("c", "sleep 1000")).await;
    guest
}

/// Reads until the end; returns standard output and the exit.
async fn finish(mut responses: ExecResponses) -> (String, v1::ExecExited) {
    let mut output = Vec::new();
    loop {
        let next = tokio::time::timeout(PATIENCE, responses.next()).await.unwrap();
        match next.unwrap() {
            Some(What::Stdout(bytes)) => output.extend(bytes),
            Some(What::Exited(exited)) => return (String::from_utf8(output).unwrap(), exited),
            Some(What::Stderr(_) | What::Started(_)) => {}
            None => panic!("no exit"),
        }
    }
}

#[tokio::test]
async fn output_code_and_confinement() {
    let guest = guest().await;
    let run = async |script: &str, limit| {
        guest.client.exec_sync("c", shell(script), Some(PATIENCE), limit).await.unwrap()
    };
    let output = run("echo out; echo err >&2; exit 5", 1 << 20).await;
    assert_eq!((output.code, &output.stdout[..], &output.stderr[..]), (5, &b"out\n"[..], &b"err\n"[..]));
    assert!(!output.timed_out && !output.truncated);
    let output = run("kill -9 $$", 1 << 20).await;
    assert_eq!(output.code, 137);
    let output = run("head -c 3000000 /dev/zero", 1000).await;
    assert_eq!((output.stdout.len(), output.truncated, output.code), (1000, true, 0));
    let output = run("head -c 3000000 /dev/zero", 4 << 20).await;
    assert_eq!((output.stdout.len(), output.truncated), (3_000_000, false));

    let confinement =
        "grep -E '^(Cap|Seccomp:|NoNewPrivs|Uid|Gid|Groups)' /proc/self/status; readlink /proc/self/ns/*";
    let own = run(&confinement.replace("self", "1"), 1 << 20).await;
    let theirs = run(confinement, 1 << 20).await;
    assert_eq!(String::from_utf8(own.stdout).unwrap(), String::from_utf8(theirs.stdout).unwrap());
}

#[tokio::test]
async fn a_timeout_kills_all_of_it() {
    let guest = guest().await;
    let begin = Instant::now();
    let output = guest
        .client
        .exec_sync(
            "c",
            shell("echo before; sleep 999 & sleep 999"),
            Some(Duration::from_millis(300)),
            1 << 20,
        )
        .await
        .unwrap();
    assert!(output.timed_out && output.code == 137, "{output:?}");
    assert_eq!(output.stdout, b"before\n");
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(guest.exec("c", "ps -o args | grep -c '[s]leep 999' || true").await, "0\n");
}

#[tokio::test]
async fn input_reaches_it_and_ends() {
    let guest = guest().await;
    let session = guest.client.exec(v1::ExecStart { stdin: true, ..start("cat; echo end") }).await.unwrap();
    let text = "x".repeat(200_000);
    let input = session.input;
    let send = async move {
        input.stdin(text.as_bytes()).await.unwrap();
        input.stdin_end().await.unwrap();
    };
    let ((), (output, exited)) = tokio::join!(send, finish(session.responses));
    assert_eq!(exited.code, 0);
    assert_eq!(output.len(), 200_004);
    assert!(output.ends_with("end\n"));
}

#[tokio::test]
async fn a_terminal_has_its_size() {
    let guest = guest().await;
    let size = Some(v1::WindowSize { columns: 100, rows: 40 });
    let script = "stty size; read line; stty size; echo got $line";
    let request = v1::ExecStart { terminal: true, stdin: true, size, ..start(script) };
    let mut session = guest.client.exec(request).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("40 100") {
        match tokio::time::timeout(PATIENCE, session.responses.next()).await.unwrap().unwrap() {
            Some(What::Stdout(bytes)) => seen.push_str(&String::from_utf8(bytes).unwrap()),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    session.input.resize(77, 33).await.unwrap();
    session.input.stdin(b"hello\n").await.unwrap();
    let (output, exited) = finish(session.responses).await;
    assert_eq!(exited.code, 0);
    assert!(output.contains("33 77") && output.contains("got hello"), "{output:?}");
}

#[tokio::test]
async fn signals_and_a_caller_that_goes_away() {
    let guest = guest().await;
    let session = guest.client.exec(start("exec sleep 998")).await.unwrap();
    session.input.signal(15).await.unwrap();
    assert_eq!(finish(session.responses).await.1.code, 143);

    let session = guest.client.exec(start("sleep 997")).await.unwrap();
    let pid = session.pid;
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    drop(session);
    wait_until("the exec to be killed", || !std::path::Path::new(&format!("/proc/{pid}")).exists()).await;
}

#[tokio::test]
async fn what_holds_the_output_does_not_hold_the_answer() {
    let guest = guest().await;
    let begin = Instant::now();
    let output = guest.client.exec_sync("c", shell("echo done; sleep 996 &"), None, 1 << 20).await.unwrap();
    assert_eq!((output.code, &output.stdout[..]), (0, &b"done\n"[..]));
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn refusals_have_their_reasons() {
    let guest = guest().await;
    let refusal = async |container: &str, args: Vec<String>| {
        guest.client.exec_sync(container, args, Some(PATIENCE), 1).await.unwrap_err()
    };
    assert_eq!(refusal("nobody", shell("true")).await.refusal(), Some(Refusal::NotFound));
    assert_eq!(refusal("c", Vec::new()).await.refusal(), Some(Refusal::Invalid));
    let error = refusal("c", vec!["/no/such/program".to_owned()]).await;
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    guest.create(guest.container("new", "true")).await;
    assert_eq!(refusal("new", shell("true")).await.refusal(), Some(Refusal::WrongState));
    guest.kill("c", 9).await;
    guest.wait("c").await;
    assert_eq!(refusal("c", shell("true")).await.refusal(), Some(Refusal::WrongState));
}
