//! Each of Apple's ways to go wrong that the simulator plays, as the caller sees it: an
//! error that says what to do, pods that go on, and nothing left when it is over.

use kina::cri::v1;
use rustix::process::Signal;

use super::{FOREVER, daemon};
use crate::harness::{Daemon, Options, kill, lives, machine, script, shell, wait_until};
use crate::streaming::{COMMAND, connect, exec, exec_url, open, text};

/// A daemon that gives Apple's program two seconds for anything.
async fn hasty() -> Daemon {
    let mut daemon = daemon().await;
    daemon.stop().await;
    daemon.place.set_machine(|machine| (machine.apple.call_seconds, machine.apple.boot_seconds) = (2, 2));
    daemon.start_again(Options::default()).await;
    daemon
}

/// Where the relay of a pod's machine is, as long as there is one.
fn relay(daemon: &Daemon, pod: &str) -> std::path::PathBuf {
    daemon.place.config().run.join("s").join(format!("{pod}.sock"))
}

/// What a command says through a stream of its own, or why it has none.
async fn by_stream(daemon: &Daemon, container: &str) -> Result<String, String> {
    let cri = daemon.cri();
    let connection = connect(&exec_url(&cri, exec(container, "echo on")).await.unwrap(), COMMAND).await;
    let error = open(&connection, "error").await;
    let said = text(open(&connection, "stdout").await).await;
    let outcome = text(error).await;
    if outcome.contains("Success") { Ok(said) } else { Err(outcome) }
}

/// A pod with a container that runs.
async fn running(daemon: &Daemon, name: &str) -> (String, String) {
    let cri = daemon.cri();
    let pod = cri.make_pod(name).await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    (pod, one)
}

/// Apple makes the host's end of a socket first. Who connects before the guest's end is
/// there ends the relay, so nobody may.
#[tokio::test]
async fn a_relay_that_is_late_is_left_alone() {
    let mut daemon = daemon().await;
    machine::set_traps(&daemon.place, &["relay-late"]);
    let (pod, one) = running(&daemon, "p").await;
    assert!(relay(&daemon, &pod).exists(), "somebody was there too early");
    assert_eq!(by_stream(&daemon, &one).await.unwrap(), "on\n");
    daemon.leave_nothing().await;
}

/// It ends under a new daemon's first connection.
#[tokio::test]
async fn a_relay_that_dies_of_a_connection_is_gone_around() {
    let mut daemon = daemon().await;
    let (pod, one) = running(&daemon, "p").await;
    machine::set_traps(&daemon.place, &["relay-dies"]);
    daemon.restart().await;
    let cri = daemon.cri();
    assert!(!relay(&daemon, &pod).exists());
    assert!(cri.is_ready(&pod).await);
    assert_eq!(cri.sh(&one, "echo here").await, "here\n");
    assert_eq!(by_stream(&daemon, &one).await.unwrap(), "on\n");
    daemon.leave_nothing().await;
}

/// Neither the relay nor an execution leads to the guest: what is open goes on, what is new
/// fails. A daemon that never reaches the guest ends its machine.
#[tokio::test]
async fn without_any_way_to_the_guest() {
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    let (pod, one) = running(&daemon, "p").await;
    std::fs::remove_file(relay(&daemon, &pod)).unwrap();
    machine::set_traps(&daemon.place, &["exec-fails"]);
    let error = by_stream(&daemon, &one).await.unwrap_err();
    println!("{error}");
    assert!(error.contains("InternalError"), "{error}");
    let error = cri.exec(&one, shell("true"), 5).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable, "{error}");
    // What was open goes on.
    let two = cri.create(&pod, script("two", FOREVER)).await.unwrap();
    cri.start(&two).await.unwrap();
    assert!(cri.is_ready(&pod).await);
    machine::set_traps(&daemon.place, &[]);
    assert_eq!(by_stream(&daemon, &one).await.unwrap(), "on\n");
    machine::set_traps(&daemon.place, &["exec-fails"]);
    let guest = daemon.place.guest(&pod).unwrap();
    daemon.restart().await;
    daemon.cri().wait_not_ready(&pod).await;
    wait_until("the guest's end", async || !lives(guest)).await;
    machine::set_traps(&daemon.place, &[]);
    daemon.leave_nothing().await;
}

/// The service was started anew and calls the machine stopped, so that it starts no
/// process in it; and the relay is gone.
#[tokio::test]
async fn a_machine_that_the_service_forgot_and_no_relay_leads_to_is_ended() {
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    let (pod, one) = running(&daemon, "p").await;
    let service = machine::service(&daemon.place);
    kill(service, Signal::KILL);
    wait_until("the service's end", async || !lives(service)).await;
    machine::start_service(&daemon.place);
    std::fs::remove_file(relay(&daemon, &pod)).unwrap();
    cri.exec(&one, shell("true"), 5).await.unwrap_err();
    assert!(cri.is_ready(&pod).await);
    let guest = daemon.place.guest(&pod).unwrap();
    daemon.restart().await;
    daemon.cri().wait_not_ready(&pod).await;
    wait_until("the guest's end", async || !lives(guest)).await;
    daemon.leave_nothing().await;
}

/// What keeps a machine from booting is told, and the pod can be made once it is gone.
#[tokio::test]
async fn boots_that_fail_say_why() {
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    // Before the image was loaded for the first time.
    for (trap, words) in
        [("load-fails", "failed to import image"), ("boot-fails", "failed to boot"), ("init-dies", "ended")]
    {
        machine::set_traps(&daemon.place, &[trap]);
        let error = cri.run_pod(&cri.pod("p")).await.unwrap_err();
        println!("{trap}: {error}");
        assert!(error.message().contains(words), "{trap}: {error}");
        assert_eq!(machine::simulated_containers(&daemon.place), [""; 0]);
        assert_eq!(cri.pods(None).await, []);
        machine::set_traps(&daemon.place, &[]);
    }
    // Somebody else has the port.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = cri.pod("p");
    config.port_mappings = vec![v1::PortMapping {
        host_port: taken.local_addr().unwrap().port().into(),
        container_port: 80,
        host_ip: "127.0.0.1".to_owned(),
        ..v1::PortMapping::default()
    }];
    let error = cri.run_pod(&config).await.unwrap_err();
    println!("port: {error}");
    drop(taken);
    // macOS runs no more.
    let (pod, _) = running(&daemon, "only").await;
    machine::set(&daemon.place, serde_json::json!({ "machines": 1 }));
    let error = cri.run_pod(&config).await.unwrap_err();
    assert!(error.message().contains("maximum supported number of active virtual machines"), "{error}");
    cri.stop_pod(&pod).await.unwrap();
    cri.run_pod(&config).await.unwrap();
    daemon.leave_nothing().await;
}

/// A boot hangs: the call ends in time and says so; what runs goes on, and all can be
/// repeated when it is over. What the service had been asked for it does in the end.
#[tokio::test]
async fn what_hangs_costs_its_deadline() {
    let mut daemon = hasty().await;
    let (pod, one) = running(&daemon, "p").await;
    for trap in ["create-hangs", "boot-hangs"] {
        let cri = daemon.cri();
        machine::set_traps(&daemon.place, &[trap]);
        let error = cri.run_pod(&cri.pod("q")).await.unwrap_err();
        println!("{trap}: {error}");
        assert!(error.message().contains("did not end within 2s"), "{trap}: {error}");
        assert_eq!(cri.sh(&one, "echo on").await, "on\n");
        machine::set_traps(&daemon.place, &[]);
        // Nobody could end it either, so that it may still be there, as the kubelet sees.
        for left in cri.pods(None).await.into_iter().filter(|left| left.id != pod) {
            assert_eq!(left.state(), v1::PodSandboxState::SandboxNotready);
            cri.stop_pod(&left.id).await.unwrap();
            cri.remove_pod(&left.id).await.unwrap();
        }
        let (next, two) = running(&daemon, "q").await;
        assert_eq!(cri.sh(&two, "echo on").await, "on\n");
        cri.stop_pod(&next).await.unwrap();
        cri.remove_pod(&next).await.unwrap();
    }
    // A container may have come late, when nobody waited for it any more.
    daemon.restart().await;
    let own = format!("kina-{pod}");
    wait_until("the service to have the pod's container only", async || {
        machine::simulated_containers(&daemon.place).iter().all(|container| *container == own)
    })
    .await;
    daemon.leave_nothing().await;
}

/// A stop that never ends is not needed: the guest ends its machine.
#[tokio::test]
async fn a_stop_that_hangs_holds_nobody_back() {
    let mut daemon = hasty().await;
    let (pod, _) = running(&daemon, "p").await;
    machine::set_traps(&daemon.place, &["stop-hangs"]);
    daemon.cri().stop_pod(&pod).await.unwrap();
    assert_eq!(machine::simulated_containers(&daemon.place), [""; 0]);
    machine::set_traps(&daemon.place, &[]);
    daemon.leave_nothing().await;
}

/// The process that keeps a machine is killed: the machine goes with it, and its socket
/// stays.
#[tokio::test]
async fn a_machine_whose_keeper_dies_has_ended() {
    let mut daemon = daemon().await;
    let cri = daemon.cri();
    let (pod, one) = running(&daemon, "p").await;
    machine::crash(&daemon.place);
    cri.wait_not_ready(&pod).await;
    let status = cri.wait_exit(&one).await;
    assert_eq!(status.exit_code, 137, "{status:?}");
    machine::start_service(&daemon.place);
    cri.stop_pod(&pod).await.unwrap();
    assert!(!relay(&daemon, &pod).exists());
    running(&daemon, "next").await;
    daemon.leave_nothing().await;
}

/// Older programs have other options and other words, and hide files of /proc that the
/// guest needs.
#[tokio::test]
async fn with_older_versions() {
    let mut daemon = daemon().await;
    for version in ["0.12.3", "1.2.0"] {
        daemon.stop().await;
        machine::set(&daemon.place, serde_json::json!({ "version": version }));
        daemon.start_again(Options::default()).await;
        let cri = daemon.cri();
        let mut config = cri.pod("p");
        let sysctl = "net.ipv4.ip_unprivileged_port_start";
        config.linux.as_mut().unwrap().sysctls = [(sysctl.to_owned(), "77".to_owned())].into();
        let pod = cri.run_pod(&config).await.unwrap();
        let one = cri.run(&pod, script("one", FOREVER)).await;
        let read = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
        assert_eq!(cri.sh(&one, read).await, "77\n", "{version}");
        assert_eq!(by_stream(&daemon, &one).await.unwrap(), "on\n", "{version}");
        let address = cri.pod_status(&pod).await.unwrap().status.unwrap().network.unwrap().ip;
        assert!(cri.sh(&one, "ip -4 addr").await.contains(&format!("inet {address}/")), "{version}");
        cri.stop_pod(&pod).await.unwrap();
        cri.remove_pod(&pod).await.unwrap();
    }
    daemon.leave_nothing().await;
}
