//! Published sockets.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::place::{Place, exchange, text, wait_until};

const SLEEP: &str = "sleep 1000";

/// Answers each connection with what it sent, in capitals.
fn answer(socket: PathBuf) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut word = String::new();
            stream.read_to_string(&mut word).unwrap();
            // Whoever asked may be gone.
            drop(stream.write_all(word.to_uppercase().as_bytes()));
        }
    });
}

#[test]
fn a_socket_on_the_root_is_reached_and_others_are_not() {
    let place = Place::new();
    let (seen, hidden) = (place.path("seen.sock"), place.path("hidden.sock"));
    let publish = |host: &PathBuf, guest: &str| format!("--publish-socket={}:{guest}", text(host));
    place.run("web", &[&publish(&seen, "/a.sock"), &publish(&hidden, "/t/a.sock"), "--tmpfs", "/t"], SLEEP);
    // Nobody listens yet: the connection is made all the same, and ends.
    assert_eq!(exchange(&seen, "early").unwrap(), "");
    assert!(seen.exists(), "the relay lives on");
    let inside = PathBuf::from(format!("/proc/{}/root", place.pid("web")));
    answer(inside.join("a.sock"));
    answer(inside.join("t/a.sock"));
    assert_eq!(exchange(&seen, "word").unwrap(), "WORD");
    assert_eq!(exchange(&hidden, "word").unwrap(), "", "a socket on a tmpfs is not seen");
    place.ok(&["stop", "-t", "0", "web"]);
    assert!(!seen.exists() && !hidden.exists(), "a stop removes the host's sockets");
}

#[test]
fn a_path_that_is_too_long_fails_at_each_connection() {
    let place = Place::new();
    let (fits, long) = (place.path("fits"), place.path("long"));
    // With `/run/container/<id>/rootfs` before it a path has 107 bytes.
    let id = "i".repeat(30);
    let path = "p".repeat(107 - 22 - 30 - 1);
    let publish = |host: &PathBuf, guest: &str| format!("--publish-socket={}:/{guest}", text(host));
    place.run(&id, &[&publish(&fits, &path), &publish(&long, &format!("{path}q"))], SLEEP);
    let inside = PathBuf::from(format!("/proc/{}/root", place.pid(&id)));
    answer(inside.join(&path));
    answer(inside.join(format!("{path}q")));
    assert_eq!(exchange(&fits, "word").unwrap(), "WORD");
    assert_eq!(exchange(&long, "word").unwrap(), "");
}

#[test]
fn a_connection_before_the_guest_listens_ends_the_relay() {
    let place = Place::new();
    place.set("traps", "relay-late");
    let host = place.path("s");
    let option = format!("--publish-socket={}:/a.sock", text(&host));
    let mut running = place.spawn(&["run", "-d", "--name", "web", &option, "busybox:1", "sleep", "1000"]);
    // A socket that is there does not listen yet.
    let mut answer_early = None;
    wait_until("the socket", || {
        answer_early = exchange(&host, "word").ok();
        answer_early.is_some()
    });
    assert_eq!(answer_early.unwrap(), "");
    wait_until("the relay's end", || !host.exists());
    assert!(running.wait().unwrap().success());
    assert!(exchange(&host, "word").is_err(), "it is gone until the machine is started again");
    place.set("traps", "");
    place.ok(&["stop", "-t", "0", "web"]);
    place.ok(&["start", "web"]);
    answer(place.rootfs("web").join("a.sock"));
    assert_eq!(exchange(&host, "word").unwrap(), "WORD");
}

#[test]
fn a_relay_can_be_told_to_die() {
    let place = Place::new();
    let host = place.path("s");
    place.run("web", &["--publish-socket", &format!("{}:/a.sock", text(&host))], SLEEP);
    place.set("traps", "relay-dies");
    assert_eq!(exchange(&host, "word").unwrap(), "");
    wait_until("the relay's end", || !host.exists());
    assert_eq!(place.state("web"), "running");
}

#[test]
fn a_crashed_keeper_leaves_its_socket_and_ends_the_machine() {
    let place = Place::new();
    let host = place.path("s");
    let option = format!("--publish-socket={}:/a.sock", text(&host));
    place.run("web", &[&option], SLEEP);
    let pid = place.pid("web");
    place.ok(&["simulator", "crash", "helper", "web"]);
    wait_until("the machine's end", || !fs::exists(format!("/proc/{pid}")).unwrap());
    wait_until("the state", || place.state("web") == "stopped");
    assert!(host.exists());
    let (code, message) = place.fails(&["run", "-d", &option, "busybox:1", "sleep", "1"]);
    assert_eq!(code, 1);
    assert_eq!(message, format!("Error: host socket {} already exists and may be in use", text(&host)));
    // A start takes its place.
    place.ok(&["start", "web"]);
    answer(place.rootfs("web").join("a.sock"));
    assert_eq!(exchange(&host, "word").unwrap(), "WORD");
}

#[test]
fn a_socket_of_the_host_is_reached_from_inside() {
    let place = Place::new();
    let host = place.path("host.sock");
    answer(host.clone());
    place.run("web", &["-v", &format!("{}:/in.sock", text(&host))], SLEEP);
    let inside = PathBuf::from(format!("/proc/{}/root/in.sock", place.pid("web")));
    assert_eq!(exchange(&inside, "word").unwrap(), "WORD");
    // One connection that the host does not take ends the relay.
    fs::remove_file(&host).unwrap();
    assert_eq!(exchange(&inside, "word").unwrap_or_default(), "");
    answer(host);
    wait_until("the relay's end", || exchange(&inside, "word").is_err());
}
