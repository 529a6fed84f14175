//! Servers that end.

use std::fs;

use super::place::{Place, exchange, text, wait_until};

#[test]
fn a_new_server_takes_everything_for_stopped() {
    let place = Place::new();
    let host = place.path("s");
    place.run("web", &["--publish-socket", &format!("{}:/a.sock", text(&host))], "sleep 1000");
    place.run("gone", &["--rm"], "sleep 1000");
    let (kept, reaped) = (place.pid("web"), place.pid("gone"));
    place.ok(&["simulator", "crash", "server"]);
    assert!(fs::exists(format!("/proc/{kept}")).unwrap(), "machines outlive the server");
    assert_eq!(exchange(&host, "word").unwrap(), "", "and their relays");

    // The next command starts it again.
    assert_eq!(place.ok(&["list", "-a", "-q"]), "web\n");
    assert_eq!(place.state("web"), "stopped");
    wait_until("its end", || !fs::exists(format!("/proc/{reaped}")).unwrap());
    assert!(fs::exists(format!("/proc/{kept}")).unwrap());
    // Nothing reaches the machine any more.
    assert_eq!(place.ok(&["stop", "web"]), "web\n");
    assert!(fs::exists(format!("/proc/{kept}")).unwrap(), "a stop does nothing");
    assert_eq!(place.fails(&["exec", "web", "ls"]).1, "Error: container web is not running");
    // A start finds its keeper in a state that it does not expect, and ends it.
    let (code, message) = place.fails(&["start", "web"]);
    assert_eq!(code, 1);
    assert_eq!(
        message,
        "Error: failed to bootstrap container (cause: \"invalidState: \"container expected to be in created state, got: running\"\")"
    );
    wait_until("its end", || !fs::exists(format!("/proc/{kept}")).unwrap());
    place.ok(&["start", "web"]);
    assert_eq!(place.state("web"), "running");
}

#[test]
fn deleting_ends_a_machine_that_the_server_forgot() {
    let place = Place::new();
    place.run("web", &[], "sleep 1000");
    let pid = place.pid("web");
    place.ok(&["simulator", "restart"]);
    assert_eq!(place.ok(&["delete", "web"]), "web\n");
    wait_until("its end", || !fs::exists(format!("/proc/{pid}")).unwrap());
}

#[test]
fn an_address_is_free_when_its_machine_has_ended() {
    let place = Place::new();
    place.ok(&["network", "create", "--subnet", "10.5.0.0/30", "tiny"]);
    place.run("one", &["--network", "tiny"], "sleep 1000");
    let (_, message) = place.fails(&["run", "-d", "--network", "tiny", "busybox:1", "sleep", "1000"]);
    assert!(message.contains("no free indices"), "{message}");
    place.ok(&["simulator", "crash", "helper", "one"]);
    wait_until("the state", || place.state("one") == "stopped");
    place.run("two", &["--network", "tiny"], "sleep 1000");
}
