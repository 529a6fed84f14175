//! The real guest, as kina's driver runs it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use kina_testkit::images::{File, archive};

use super::place::{LONG, Place, text, wait_until};

/// How every HTTP/2 client begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
/// The kind of the first frame that every server sends.
const SETTINGS: u8 = 4;
const IMAGE: &str = "localhost/kina-pod:test";

/// The guest: `KINA_GUEST`, or the static one that `cargo xtask guest` builds.
fn guest() -> Vec<u8> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../target/guest")
        .join(format!("{}-unknown-linux-gnu/guest/kina-guest", std::env::consts::ARCH));
    let path = std::env::var_os("KINA_GUEST").map_or(built, PathBuf::from);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; run `cargo xtask guest`", path.display()))
}

/// Whether what comes back is the beginning of HTTP/2.
fn is_greeting(mut from: impl Read) -> bool {
    let mut frame = [0; 9];
    from.read_exact(&mut frame).is_ok() && frame[3] == SETTINGS
}

fn greets(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    stream.set_read_timeout(Some(LONG)).unwrap();
    // Until the guest listens the connection ends.
    stream.write_all(PREFACE).is_ok() && is_greeting(stream)
}

#[test]
fn the_guest_is_reached_by_its_socket_and_by_an_execution() {
    let place = Place::new();
    let program = guest();
    let files = [File { path: "kina-guest", mode: 0o755, content: &program }];
    let tar = place.path("pod.tar");
    fs::write(&tar, archive(IMAGE, &[&files], serde_json::json!({ "Entrypoint": ["/kina-guest"] }))).unwrap();
    place.ok(&["image", "load", "--input", &text(&tar)]);
    let (layers, socket) = (place.path("layers"), place.path("guest.sock"));
    fs::create_dir(&layers).unwrap();
    place.ok(&[
        "run",
        "--detach",
        "--progress",
        "none",
        "--name",
        "kina-p",
        "--memory",
        "256M",
        "--cpus",
        "1",
        "--cap-add",
        "ALL",
        "--masked-path",
        "NONE",
        "--read-only-path",
        "NONE",
        "--network",
        "default,mtu=1500",
        &format!("--volume={}:/share/layers:ro", text(&layers)),
        &format!("--publish-socket={}:/kina.sock", text(&socket)),
        IMAGE,
        "entry",
        "--pod",
        "p",
        "--listen",
        "unix:/kina.sock",
    ]);
    let begin = std::time::Instant::now();
    while !greets(&socket) {
        let log = place.ok(&["logs", "kina-p"]);
        assert!(begin.elapsed() < LONG, "no greeting: {log}");
    }
    let through_execution = || {
        let mut relay =
            place.command(&["exec", "--interactive", "kina-p", "/kina-guest", "relay", "--to", "/kina.sock"]);
        let mut relay = relay.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        relay.stdin.as_mut().unwrap().write_all(PREFACE).unwrap();
        let greeted = is_greeting(relay.stdout.take().unwrap());
        drop(relay.stdin.take());
        assert!(relay.wait().is_ok());
        greeted
    };
    assert!(through_execution());
    // The relay's end leaves the second way.
    place.set("traps", "relay-dies");
    drop(UnixStream::connect(&socket));
    wait_until("the relay's end", || !socket.exists());
    assert!(through_execution());
    place.set("traps", "");
    let pid = place.pid("kina-p");
    assert_eq!(place.ok(&["stop", "kina-p"]), "kina-p\n");
    wait_until("its end", || !fs::exists(format!("/proc/{pid}")).unwrap());
    // What it left on its root is there when it is started again, and in nobody's way.
    place.ok(&["start", "kina-p"]);
    wait_until("a greeting", || greets(&socket));
}
