//! Networks.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use kina_apple_sim::protocol::{Card, NetworkAnswer, NetworkRequest};
use kina_apple_sim::wire;

use super::place::{LONG, Place, wait_until};

#[test]
fn networks_are_made_listed_used_and_deleted() {
    let place = Place::new();
    assert_eq!(place.ok(&["network", "create", "--label", "a=b=c", "back"]), "back\n");
    let networks = place.json(&["network", "list", "--format", "json"]);
    assert_eq!(networks[0]["status"]["ipv4Subnet"], "192.168.65.0/24");
    assert_eq!(networks[0]["configuration"]["labels"]["a"], "b=c");
    place.run("web", &["--network", "back,mtu=1500", "--network", "default"], "sleep 1000");
    let attached = place.json(&["inspect", "web"])[0]["status"]["networks"].clone();
    assert_eq!(attached[0]["ipv4Address"], "192.168.65.2/24");
    assert_eq!((&attached[0]["mtu"], &attached[1]["mtu"]), (&1500.into(), &1280.into()));
    let route = place.ok(&["exec", "web", "ip", "route"]);
    assert!(route.contains("default via 192.168.65.1 dev eth0"), "{route}");
    assert_eq!(place.ok(&["exec", "web", "cat", "/etc/resolv.conf"]), "nameserver 192.168.65.1\n");
    let (_, message) = place.fails(&["network", "delete", "back"]);
    assert!(message.contains("delete failed for one or more networks: [\"back\"]"), "{message}");
    assert_eq!(
        place.fails(&["network", "delete", "default"]).1,
        "Error: cannot delete a builtin network: default"
    );
    place.ok(&["delete", "-f", "web"]);
    assert_eq!(place.ok(&["network", "delete", "back"]), "back\n");
    assert_eq!(place.fails(&["network", "inspect", "back"]).1, "Error: network not found: back");
    // No card at all.
    place.run("alone", &["--network", "none"], "sleep 1000");
    assert_eq!(place.ok(&["exec", "alone", "ls", "/sys/class/net"]), "lo\n");
}

#[test]
fn machines_of_a_network_reach_each_other() {
    let place = Place::new();
    place.run("web", &[], "mkdir -p /w; echo page > /w/f; httpd -f -p 80 -h /w");
    let address = place.json(&["inspect", "web"])[0]["status"]["networks"][0]["ipv4Address"].clone();
    let address = address.as_str().unwrap().split('/').next().unwrap().to_owned();
    place.run("other", &[], "sleep 1000");
    let url = format!("http://{address}/f");
    wait_until("an answer", || {
        place.output(&["exec", "other", "wget", "-q", "-O", "-", &url]).stdout == b"page\n"
    });
    let netns = place.ok(&["simulator", "netns"]);
    assert!(netns.starts_with("/proc/") && netns.ends_with("/ns/net\n"), "{netns}");
}

#[test]
fn a_published_port_is_forwarded() {
    let place = Place::new();
    // A port that was free just now.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let spec = format!("127.0.0.1:{port}:80");
    place.run("web", &["-p", &spec], "mkdir -p /w; echo page > /w/f; httpd -f -p 80 -h /w");
    wait_until("an answer", || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"GET /f HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        // Until the server listens the connection is reset.
        drop(stream.read_to_string(&mut answer));
        answer.ends_with("page\n")
    });
    place.ok(&["stop", "-t", "0", "web"]);
    wait_until("its end", || TcpStream::connect(("127.0.0.1", port)).is_err());
}

/// A connection of which one side says no more is at its end.
#[test]
fn half_a_connection_is_not_kept_by_a_published_port() {
    let place = Place::new();
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    place.run("web", &["-p", &format!("{free}:80")], "sleep 1000");
    let listener = inside(&place, "web", || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap());
    let mut client = TcpStream::connect(free).unwrap();
    client.write_all(b"asked").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    // Its answer will not come, and the machine has what was sent.
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    let mut asked = String::new();
    listener.accept().unwrap().0.read_to_string(&mut asked).unwrap();
    assert_eq!(asked, "asked");
}

/// A socket of this process in a machine's network.
fn inside<T: Send>(place: &Place, id: &str, open: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/proc/{}/ns/net", place.pid(id))).unwrap();
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            open()
        });
        opened.join().unwrap()
    })
}

/// One whose answers do not take for ever.
fn datagrams(address: (Ipv4Addr, u16)) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket
}

/// What comes next, and from whom.
fn next(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut datagram = vec![0; 10_000];
    let (length, from) = socket.recv_from(&mut datagram).unwrap();
    datagram.truncate(length);
    (datagram, from)
}

#[test]
fn datagrams_of_a_published_port_are_forwarded() {
    let place = Place::new();
    let clients = [(); 2].map(|()| datagrams((Ipv4Addr::LOCALHOST, 0)));
    let free = datagrams((Ipv4Addr::LOCALHOST, 0)).local_addr().unwrap();
    place.run("web", &["-p", &format!("{free}:53/udp")], "sleep 1000");
    let server = inside(&place, "web", || datagrams((Ipv4Addr::UNSPECIFIED, 53)));
    let mut heard_from = Vec::new();
    for client in &clients {
        client.send_to(b"asked", free).unwrap();
        let (word, from) = next(&server);
        assert_eq!(word, b"asked");
        heard_from.push(from);
    }
    // Each client has its answer, whoever asked last, and goes on as the one that it was.
    assert_ne!(heard_from[0], heard_from[1]);
    for (client, from) in clients.iter().zip(&heard_from) {
        server.send_to(from.to_string().as_bytes(), from).unwrap();
        assert_eq!(next(client), (from.to_string().into_bytes(), free));
        client.send_to(&[b'x'; 3000], free).unwrap();
        let (long, again) = next(&server);
        assert_eq!((long.len(), again), (2048, *from), "longer ones are cut");
    }
    place.ok(&["stop", "-t", "0", "web"]);
    wait_until("the port's end", || UdpSocket::bind(free).is_ok());
}

#[test]
fn networks_that_have_ended_are_made_again_by_the_next_server() {
    let place = Place::new();
    let record = fs::read_to_string(place.root().join("network/pid")).unwrap();
    let pid = record.split(' ').next().unwrap().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    wait_until("its end", || place.processes().len() == 1);
    for words in [&["network", "create", "back"][..], &["run", "-d", "busybox:1", "sleep", "1000"]] {
        let (_, message) = place.fails(words);
        assert!(message.contains("the networks do not answer"), "{message}");
    }
    assert_eq!(place.processes().len(), 1, "{:?}", place.processes());
    place.ok(&["simulator", "restart"]);
    let networks = place.json(&["network", "list", "--format", "json"]);
    assert_eq!(networks.as_array().unwrap().len(), 1, "what was not made is not known: {networks}");
    place.run("web", &[], "sleep 1000");
}

#[test]
fn a_card_that_does_not_arrive_is_taken_away() {
    let place = Place::new();
    let stream = wire::connect(&place.root().join("network/net.sock")).unwrap();
    let request = NetworkRequest::Attach {
        network: "default".to_owned(),
        hostname: "nobody".to_owned(),
        mac: None,
        mtu: 1500,
        // No process has such a number.
        card: Card::Pair { pid: i32::MAX, index: 0 },
        ipv6_prefix: None,
    };
    wire::send(&stream, &request, &[]).unwrap();
    let (answer, _) = wire::receive::<NetworkAnswer>(&stream).unwrap().unwrap();
    assert!(matches!(answer, NetworkAnswer::Failed(_)), "{answer:?}");
    let netns = place.ok(&["simulator", "netns"]);
    let links = Command::new("nsenter")
        .args([&format!("--net={}", netns.trim()), "ip", "-o", "link"])
        .output()
        .unwrap();
    let links = String::from_utf8(links.stdout).unwrap();
    assert!(links.contains("vmnet1") && !links.contains("vm1"), "{links}");
}
