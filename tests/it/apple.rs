//! Machines of Apple's `container`, simulated: what only they have, and each of
//! Apple's ways to go wrong, seen by the caller.

mod traps;
mod vm;

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use kina::cri::v1;
use rustix::process::Signal;

use crate::harness::{
    Cri, Daemon, Options, PATIENCE, Place, kill, lives, machine, script, shell, wait_until,
};

const FOREVER: &str = "echo up; sleep 1000";

/// A daemon whose machines are Apple's.
async fn daemon() -> Daemon {
    machine::use_apple();
    Daemon::start().await
}

/// A port of this machine that nobody listens on.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn a_pods_network_is_its_machines() {
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    let status = cri.client.runtime.clone().status(v1::StatusRequest { verbose: true }).await.unwrap();
    let status = status.into_inner();
    let conditions = status.status.unwrap().conditions;
    assert!(conditions.iter().all(|condition| condition.status), "{conditions:?}");
    let mut config = cri.pod("p");
    let port = free_port();
    let mapping = |protocol: v1::Protocol| v1::PortMapping {
        protocol: protocol.into(),
        host_port: port.into(),
        container_port: 8080,
        host_ip: "127.0.0.1".to_owned(),
    };
    config.port_mappings = [v1::Protocol::Tcp, v1::Protocol::Udp].map(mapping).into();
    let pod = cri.run_pod(&config).await.unwrap();
    let status = cri.pod_status(&pod).await.unwrap().status.unwrap();
    assert_eq!(status.runtime_handler, "vm");
    let address = status.network.unwrap().ip;
    let one = cri.run(&pod, script("one", "while :; do echo hello | nc -l -p 8080; done")).await;
    let seen = cri.sh(&one, "ip -4 addr; cat /etc/hosts").await;
    println!("pod at {address}: {seen}");
    assert!(seen.contains(&format!("inet {address}/")), "{seen}");
    assert!(seen.contains(&format!("{address}\t")), "{seen}");
    // A port of the node leads there.
    let node: SocketAddr = ([127, 0, 0, 1], port).into();
    wait_until("the port of the node", async || {
        let mut words = String::new();
        TcpStream::connect(node).is_ok_and(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            stream.read_to_string(&mut words).is_ok() && words == "hello\n"
        })
    })
    .await;
    // And for datagrams, both ways.
    let machine = daemon.place.guest(&pod).unwrap();
    let namespace = std::fs::File::open(format!("/proc/{machine}/ns/net")).unwrap();
    let server = std::thread::spawn(move || {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), None).unwrap();
        UdpSocket::bind("0.0.0.0:8080").unwrap()
    });
    let (server, client) = (server.join().unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let mut word = [0; 5];
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.send_to(b"asked", node).unwrap();
    let (_, asker) = server.recv_from(&mut word).unwrap();
    server.send_to(b"reply", asker).unwrap();
    assert_eq!((client.recv_from(&mut word).unwrap(), &word), ((5, node), b"reply"));
    // The pod may set what is of its network.
    let mut other = cri.pod("q");
    other.linux.as_mut().unwrap().sysctls =
        [("net.ipv4.ip_unprivileged_port_start".to_owned(), "77".to_owned())].into();
    let second = cri.run_pod(&other).await.unwrap();
    let two = cri.run(&second, script("two", FOREVER)).await;
    assert_eq!(cri.sh(&two, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await, "77\n");
    let others = cri.pod_status(&second).await.unwrap().status.unwrap().network.unwrap().ip;
    assert_ne!(others, address);
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn what_a_machines_network_cannot_is_refused() {
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    let mut config = cri.pod("p");
    config.port_mappings = vec![v1::PortMapping {
        host_port: 5000,
        container_port: 80,
        protocol: v1::Protocol::Sctp.into(),
        ..v1::PortMapping::default()
    }];
    let error = cri.run_pod(&config).await.unwrap_err();
    assert!(error.message().starts_with("config.port_mappings[0].protocol"), "{error}");
    daemon.leave_nothing().await;
}

/// The service dies and is started anew: it calls every container stopped.
#[tokio::test]
async fn pods_outlive_apples_service_and_the_daemon() {
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    cri.wait_output(&one, "up").await;
    let service = machine::service(&daemon.place);
    kill(service, Signal::KILL);
    wait_until("the service's end", async || !lives(service)).await;
    assert_eq!(cri.sh(&one, "echo without").await, "without\n");
    machine::start_service(&daemon.place);
    daemon.restart().await;
    let cri = daemon.cri();
    assert!(cri.is_ready(&pod).await);
    assert_eq!(cri.sh(&one, "echo here").await, "here\n");
    let next = cri.make_pod("next").await;
    let two = cri.run(&next, script("two", FOREVER)).await;
    cri.sh(&two, "true").await;
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn a_service_that_is_down_is_named_and_pods_go_on() {
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    machine::set_traps(&daemon.place, &["server-down"]);
    let error = cri.run_pod(&cri.pod("q")).await.unwrap_err();
    assert!(error.message().contains("type `container system start`"), "{error}");
    assert_eq!(cri.sh(&one, "echo on").await, "on\n");
    for answer in [cri.stop_pod(&pod).await, cri.remove_pod(&pod).await] {
        let error = answer.unwrap_err();
        assert!(error.message().contains("type `container system start`"), "{error}");
    }
    machine::set_traps(&daemon.place, &[]);
    // Its machine was not forgotten meanwhile.
    assert_eq!(machine::simulated_containers(&daemon.place).len(), 1);
    cri.remove_pod(&pod).await.unwrap();
    assert_eq!(machine::simulated_containers(&daemon.place), [""; 0]);
    daemon.leave_nothing().await;
}

/// One failed dial ends the relay for good, and streams go another way.
#[tokio::test]
async fn pods_outlive_apples_relay() {
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    std::fs::remove_file(daemon.place.config().run.join("s").join(format!("{pod}.sock"))).unwrap();
    assert_eq!(cri.sh(&one, "echo around").await, "around\n");
    daemon.restart().await;
    let cri = daemon.cri();
    assert!(cri.is_ready(&pod).await);
    assert_eq!(cri.exec(&one, shell("echo again"), 10).await.unwrap().stdout, b"again\n");
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn a_machine_that_does_not_boot_leaves_nothing() {
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    machine::set_traps(&daemon.place, &["boot-fails"]);
    let error = cri.run_pod(&cri.pod("p")).await.unwrap_err();
    println!("{error}");
    machine::set_traps(&daemon.place, &[]);
    assert_eq!(machine::simulated_containers(&daemon.place), [""; 0]);
    cri.make_pod("q").await;
    daemon.leave_nothing().await;
}

/// A machine that dies while no daemon looks is found dead.
#[tokio::test]
async fn a_machine_that_dies_is_noticed() {
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    let (seen, unseen) = (cri.make_pod("seen").await, cri.make_pod("unseen").await);
    machine::stop_machine(&daemon.place, &seen);
    cri.wait_not_ready(&seen).await;
    daemon.kill9().await;
    machine::stop_machine(&daemon.place, &unseen);
    daemon.start_again(Options::default()).await;
    assert!(!daemon.cri().is_ready(&unseen).await);
    daemon.leave_nothing().await;
}

/// The pods of which the daemon's log says this, in order.
fn logged(place: &Place, words: &str) -> Vec<String> {
    let log = std::fs::read_to_string(place.path("daemon.log")).unwrap();
    let lines = log.lines().filter(|line| line.contains(words));
    let pod =
        |line: &str| line.rsplit_once("pod_id=").unwrap().1.split_whitespace().next().unwrap().to_owned();
    lines.map(pod).collect()
}

/// The longest that each of a few calls has taken that have nothing to do with boots.
#[derive(Debug, Default)]
struct Slowest {
    list: Duration,
    status: Duration,
    exec: Duration,
    container: Duration,
}

impl Slowest {
    async fn call(&mut self, cri: &Cri, pod: &str, container: &str) {
        let begin = Instant::now();
        cri.pods(None).await;
        self.list = self.list.max(begin.elapsed());
        let begin = Instant::now();
        assert!(cri.is_ready(pod).await);
        self.status = self.status.max(begin.elapsed());
        let begin = Instant::now();
        assert_eq!(cri.sh(container, "echo on").await, "on\n");
        self.exec = self.exec.max(begin.elapsed());
        let begin = Instant::now();
        let another = cri.run(pod, script("another", FOREVER)).await;
        self.container = self.container.max(begin.elapsed());
        cri.stop(&another, 0).await.unwrap();
        cri.remove(&another).await.unwrap();
    }
}

/// Twenty pods at once, whose machines boot one after another.
#[tokio::test]
async fn boots_queue_and_hold_nothing_else_back() {
    const PODS: usize = 20;
    const BOOT: Duration = Duration::from_millis(800);
    let (waits, boots) = ("the machine waits for its boot", "the machine boots");
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    let (here, there) = (cri.make_pod("here").await, cri.make_pod("there").await);
    let one = cri.run(&here, script("one", FOREVER)).await;
    let before = logged(&daemon.place, waits).len();
    machine::set_boot_time(&daemon.place, BOOT);
    let mut slowest = Slowest::default();
    let mut runs = tokio::task::JoinSet::new();
    let begin = Instant::now();
    for number in 0..PODS {
        let (cri, config) = (cri.clone(), cri.pod(&format!("p{number}")));
        runs.spawn(async move { cri.run_pod(&config).await });
        let asked = before + number + 1;
        wait_until("a boot to be asked for", async || logged(&daemon.place, waits).len() >= asked).await;
    }
    let queued = begin.elapsed();
    let mut expected = logged(&daemon.place, waits).split_off(before);
    // One that waits is stopped, and one that runs.
    let dropped = expected.remove(PODS - 5);
    let begin_stop = Instant::now();
    cri.stop_pod(&dropped).await.unwrap();
    let stop_queued = begin_stop.elapsed();
    let begin_stop = Instant::now();
    cri.stop_pod(&there).await.unwrap();
    let stop_running = begin_stop.elapsed();
    slowest.call(&cri, &here, &one).await;
    println!(
        "queued {queued:?}, stop of one that waits {stop_queued:?}, of one that runs {stop_running:?}, {slowest:?}"
    );
    let booted = logged(&daemon.place, boots).len() - before;
    assert!(booted < PODS / 2, "these calls have waited for the queue: {booted} had booted before");
    let (mut ready, mut refused) = (Vec::new(), Vec::new());
    while let Some(run) = runs.join_next().await {
        match run.unwrap() {
            Ok(pod) => ready.push(pod),
            Err(error) => refused.push(error),
        }
        slowest.call(&cri, &here, &one).await;
    }
    let all = begin.elapsed();
    println!(
        "{PODS} pods, a boot takes {BOOT:?}: queued after {queued:?}, all after {all:?}; stop of one that waits \
         {stop_queued:?}, of one that runs {stop_running:?}; the slowest meanwhile: {slowest:?}"
    );
    assert_eq!(logged(&daemon.place, boots).split_off(before), expected, "boots are not in order");
    assert_eq!(ready.len(), PODS - 1);
    let [error] = &refused[..] else { panic!("{refused:?}") };
    println!("{error}");
    assert!(all >= BOOT * 19, "boots are side by side: {all:?}");
    daemon.leave_nothing().await;
}
