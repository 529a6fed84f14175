//! Machines with a kernel of their own: what tests of the others see, once more, and what only
//! these have.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use kina_testkit::vm::Prerequisites;

use super::place::{IMAGE, Place, exchange, text, wait_until};

/// A simulator whose machines are emulated ones.
fn place() -> Place {
    let found = Prerequisites::find().unwrap();
    let place = Place::new();
    place.set("programs", &found.simulator_programs().to_string());
    place.set("kind", "microvm");
    place
}

/// What runs of a machine, by what its processes were started with.
fn of_machine(place: &Place, id: &str) -> usize {
    let bundle = text(&place.root().join("containers").join(id));
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(&bundle)).count()
}

#[test]
fn a_machine_with_a_kernel_of_its_own_is_what_others_are() {
    let place = place();
    let (shared, socket) = (place.path("shared"), place.path("published.sock"));
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "of the host").unwrap();
    let (all, one) = (format!("{}:/all", text(&shared)), format!("{}:/one:ro", text(&shared.join("file"))));
    let published = format!("{}:/echo.sock", text(&socket));
    let options = ["--volume", &all, "--volume", &one, "--publish-socket", &published];
    let options = [&options[..], &["--cap-add", "ALL", "--memory", "256M", "--cpus", "1"]].concat();
    place.run("web", &options, "echo out; echo err >&2; trap 'exit 7' TERM; while :; do sleep 0.1; done");
    let sh = |script: &str| place.ok(&["exec", "web", "sh", "-c", script]);
    wait_until("a log", || place.ok(&["logs", "web"]).lines().count() == 2);
    let host = Command::new("uname").arg("-r").output().unwrap();
    assert_ne!(sh("uname -r").into_bytes(), host.stdout);

    // Shares, both ways.
    assert_eq!(sh("cat /all/file /one"), "of the hostof the host");
    sh("echo of the guest > /all/new");
    assert_eq!(fs::read_to_string(shared.join("new")).unwrap(), "of the guest\n");
    fs::create_dir(shared.join("later")).unwrap();
    assert_eq!(sh("ls -d /all/later; echo x 2> /dev/null >> /one || echo refused"), "/all/later\nrefused\n");

    // Processes, their streams and their ends.
    let output = place.output(&["exec", "web", "sh", "-c", "echo o; echo e >&2; exit 3"]);
    assert_eq!((output.status.code(), &*output.stdout, &*output.stderr), (Some(3), &b"o\n"[..], &b"e\n"[..]));
    let mut counts = place.command(&["exec", "-i", "web", "wc", "-c"]);
    let mut counts = counts.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    counts.stdin.take().unwrap().write_all(&[b'x'; 300_000]).unwrap();
    let mut counted = String::new();
    counts.stdout.take().unwrap().read_to_string(&mut counted).unwrap();
    assert_eq!((counted.trim(), counts.wait().unwrap().success()), ("300000", true));
    let terminal = place.ok(&["exec", "-t", "web", "sh", "-c", "test -t 1 && echo terminal"]);
    assert_eq!(terminal.trim_end(), "terminal");
    let (_, message) = place.fails(&["exec", "web", "/nothing"]);
    assert!(message.contains("/nothing"), "{message}");

    // The network, on the bridge of the others.
    let status = place.json(&["inspect", "web"])[0]["status"].clone();
    assert_eq!(status["networks"][0]["ipv4Address"], "192.168.64.2/24");
    assert!(sh("ip -4 addr show eth0").contains("inet 192.168.64.2/24"));
    assert_eq!(sh("ip route | cut -d' ' -f1-3 | head -n1"), "default via 192.168.64.1\n");
    sh("echo hello > /tmp/hello; nc -l -p 80 < /tmp/hello > /tmp/asked 2>&1 &");
    // As Apple's kernels.
    assert_eq!(sh("ip link add br0 type bridge && ip link del br0"), "");
    let netns = place.ok(&["simulator", "netns"]);
    let mut said = String::new();
    wait_until("an answer over the network", || {
        let mut client = Command::new("nsenter");
        client.args([&format!("--net={}", netns.trim()), "bash", "-c"]);
        client.arg("exec 3<>/dev/tcp/192.168.64.2/80 && echo asked >&3 && head -n1 <&3");
        said = String::from_utf8(client.output().unwrap().stdout).unwrap();
        !said.is_empty()
    });
    assert_eq!(said, "hello\n");
    assert!(place.ok(&["stats", "--no-stream", "web"]).contains("web"));

    // A socket on its root file system, where nobody listens.
    assert!(socket.exists());
    assert_eq!(exchange(&socket, "word").unwrap(), "");

    // Another start: the files stay, the address does not.
    sh("echo kept > /kept");
    assert_eq!(place.ok(&["stop", "web"]), "web\n");
    assert_eq!(place.state("web"), "stopped");
    wait_until("its processes to end", || of_machine(&place, "web") == 0);
    assert!(!socket.exists());
    assert_eq!(place.ok(&["start", "web"]), "web\n");
    assert_eq!(sh("cat /kept; ip -4 addr show eth0 | grep -c 192.168.64.3/24"), "kept\n1\n");

    // The end of the helper is that of the machine, and nothing is left.
    assert!(of_machine(&place, "web") > 0);
    place.ok(&["simulator", "crash", "helper", "web"]);
    wait_until("its processes to end", || of_machine(&place, "web") == 0);
    wait_until("the end to be seen", || place.state("web") == "stopped");
    place.ok(&["delete", "web"]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&text(&place.root())), "{mounts}");
    place.sweep();
    assert_eq!(place.processes(), [""; 0]);
}

#[test]
fn a_first_process_that_ends_ends_its_machine() {
    let place = place();
    let run = [
        "run",
        "--progress",
        "none",
        "--name",
        "once",
        "--cpus",
        "1",
        IMAGE,
        "sh",
        "-c",
        "echo done; exit 4",
    ];
    let output = place.output(&run);
    assert_eq!((&*output.stdout, output.status.code()), (&b"done\n"[..], Some(4)), "{output:?}");
    wait_until("its end", || place.state("once") == "stopped" && of_machine(&place, "once") == 0);
    assert_eq!(place.ok(&["logs", "once"]), "done\n");
    assert!(place.ok(&["logs", "--boot", "once"]).contains("Booting Linux"));
}
