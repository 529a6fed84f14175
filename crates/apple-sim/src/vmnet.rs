//! The networks: a process in a network namespace of its own, with a bridge for each network.
//!
//! Where macOS' vmnet joins machines to the host, these are joined to that namespace, so that the
//! host's own routes and addresses stay as they are. Addresses are given out in turn and belong
//! to a connection: they are free again when it ends, as those of Apple's network sessions.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Code, Problem};
use crate::place::Place;
use crate::process;
use crate::protocol::{Card, NetworkAnswer, NetworkRequest};
use crate::resources::{Attachment, Subnet, eui64};
use crate::values::valid_mac;
use crate::wire;

/// How long the process may take to be there.
const START: Duration = Duration::from_secs(10);
/// How long an answer of it may take.
const ANSWER: Duration = Duration::from_secs(30);

/// One network.
struct Bridge {
    interface: String,
    subnet: Subnet,
    /// The address after the last one given out.
    next: u32,
    /// By whom each address is held.
    held: BTreeMap<u32, String>,
}

#[derive(Default)]
struct Bridges {
    all: BTreeMap<String, Bridge>,
    made: usize,
    cards: usize,
}

/// Starts the process, if it is not there, and connects to it. Only the server does.
pub(crate) fn start(place: &Place) -> Result<UnixStream, Problem> {
    let record = place.network("pid");
    if process::recorded(&record).is_none() {
        fs::create_dir_all(place.network(""))?;
        drop(fs::remove_file(place.network("net.sock")));
        let root = place.root.to_string_lossy().into_owned();
        let mut child = process::spawn(&["__network", root.as_str()], &place.network("log"), &record)?;
        std::thread::spawn(move || child.wait());
    }
    let mut connected = connect(place);
    process::wait_until(START, || {
        if connected.is_err() {
            connected = connect(place);
        }
        connected.is_ok()
    });
    connected
}

/// Connects to the process.
pub(crate) fn connect(place: &Place) -> Result<UnixStream, Problem> {
    let stream = wire::connect(&place.network("net.sock"))
        .map_err(|error| Problem::internal(format!("the networks do not answer: {error}")))?;
    stream.set_read_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// Asks the process for something.
pub(crate) fn ask(stream: &UnixStream, request: &NetworkRequest) -> Result<NetworkAnswer, Problem> {
    wire::send(stream, request, &[])?;
    match wire::receive(stream)? {
        Some((NetworkAnswer::Failed(problem), _)) => Err(problem),
        Some((answer, _)) => Ok(answer),
        None => Err(Problem::new(Code::Interrupted, "the networks have ended")),
    }
}

/// The process whose network namespace the networks are in.
pub(crate) fn keeper(stream: &UnixStream) -> Result<i32, Problem> {
    match ask(stream, &NetworkRequest::Where)? {
        NetworkAnswer::Process(keeper) => Ok(keeper),
        other => Err(Problem::internal(format!("the networks are nowhere: {other:?}"))),
    }
}

/// The process itself.
pub(crate) fn run(root: &Path) -> ExitCode {
    match serve(&Place::new(root)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            drop(writeln!(io::stderr(), "network: {problem}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(place: &Place) -> Result<(), Problem> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
    ip(None, "link set lo up")?;
    let listener = wire::listen(&place.network("net.sock"))?;
    let bridges = Arc::new(Mutex::new(Bridges::default()));
    for stream in listener.incoming() {
        let (stream, bridges) = (stream?, Arc::clone(&bridges));
        std::thread::spawn(move || {
            let mut held = Vec::new();
            while let Ok(Some((request, _))) = wire::receive(&stream) {
                let answer = handle(&bridges, request, &mut held).unwrap_or_else(NetworkAnswer::Failed);
                if wire::send(&stream, &answer, &[]).is_err() {
                    break;
                }
            }
            let mut bridges = locked(&bridges);
            for (network, index) in held {
                if let Some(bridge) = bridges.all.get_mut(&network) {
                    bridge.held.remove(&index);
                }
            }
        });
    }
    Ok(())
}

fn locked(bridges: &Mutex<Bridges>) -> MutexGuard<'_, Bridges> {
    bridges.lock().unwrap_or_else(PoisonError::into_inner)
}

fn handle(
    bridges: &Mutex<Bridges>,
    request: NetworkRequest,
    held: &mut Vec<(String, u32)>,
) -> Result<NetworkAnswer, Problem> {
    let mut bridges = locked(bridges);
    match request {
        NetworkRequest::Start { network, subnet } => {
            if !bridges.all.contains_key(&network) {
                let subnet = Subnet::parse(&subnet)?;
                bridges.made += 1;
                let interface = format!("vmnet{}", bridges.made);
                let gateway = subnet.address(1);
                let bits = subnet.bits;
                ip(
                    None,
                    &format!(
                        "link add {interface} type bridge\naddr add {gateway}/{bits} dev {interface}\n\
                         link set {interface} up"
                    ),
                )?;
                let bridge = Bridge { interface, subnet, next: 2, held: BTreeMap::new() };
                bridges.all.insert(network, bridge);
            }
            Ok(NetworkAnswer::Done)
        }
        NetworkRequest::Stop { network } => {
            if let Some(bridge) = bridges.all.remove(&network) {
                ip(None, &format!("link delete {}", bridge.interface))?;
            }
            Ok(NetworkAnswer::Done)
        }
        NetworkRequest::Where => {
            Ok(NetworkAnswer::Process(i32::try_from(std::process::id()).unwrap_or_default()))
        }
        NetworkRequest::Attach { network, hostname, mac, mtu, card, ipv6_prefix } => {
            bridges.cards += 1;
            let number = bridges.cards;
            let Some(bridge) = bridges.all.get_mut(&network) else {
                let message = format!("network {network} must be running");
                return Err(Problem::new(Code::InvalidState, message));
            };
            let address = bridge.allocate(&hostname)?;
            held.push((network.clone(), address));
            let mac = match mac {
                Some(mac) => valid_mac(&mac)?,
                None => random_mac()?,
            };
            match card {
                Card::Pair { pid, index } => join(bridge, number, address, mac, mtu, pid, index)?,
                Card::Tap { name } => {
                    let bridge = &bridge.interface;
                    ip(None, &format!("link set {name} mtu {mtu} master {bridge}\nlink set {name} up"))?;
                }
            }
            let ipv6_address = ipv6_prefix.and_then(|prefix| {
                let (first, bits) = prefix.split_once('/')?;
                Some(format!("{}/{bits}", eui64(first.parse().ok()?, mac)))
            });
            Ok(NetworkAnswer::Attached(Attachment {
                network,
                hostname,
                ipv4_address: format!("{}/{}", bridge.subnet.address(address), bridge.subnet.bits),
                ipv4_gateway: bridge.subnet.address(1).to_string(),
                ipv6_address,
                mac_address: Some(shown(mac)),
                mtu: Some(mtu),
                variant: Some("reserved".to_owned()),
            }))
        }
    }
}

impl Bridge {
    /// The next address that is free: never the last one again, so that a machine that is started
    /// again has another.
    fn allocate(&mut self, hostname: &str) -> Result<u32, Problem> {
        let last = self.subnet.size().saturating_sub(2);
        for _ in 2..=last {
            let candidate = self.next;
            self.next = if candidate >= last { 2 } else { candidate + 1 };
            if let Entry::Vacant(free) = self.held.entry(candidate) {
                free.insert(hostname.to_owned());
                return Ok(candidate);
            }
        }
        Err(Problem::internal("no free indices are available for allocation"))
    }
}

/// Puts a card into a machine's network namespace. Nothing of it stays if that fails.
fn join(
    bridge: &Bridge,
    card: usize,
    address: u32,
    mac: [u8; 6],
    mtu: u32,
    pid: i32,
    index: usize,
) -> Result<(), Problem> {
    let (ours, theirs) = (format!("vm{card}"), format!("card{card}"));
    let pair = format!(
        "link add {ours} mtu {mtu} type veth peer name {theirs} mtu {mtu}\n\
         link set {ours} master {}\nlink set {ours} up\nlink set {theirs} netns {pid}",
        bridge.interface
    );
    let name = format!("eth{index}");
    let mut script = format!(
        "link set {theirs} name {name}\nlink set {name} address {}\nlink set {name} up\n\
         addr add {}/{} dev {name}\n",
        shown(mac),
        bridge.subnet.address(address),
        bridge.subnet.bits
    );
    if index == 0 {
        script.push_str(&format!("route add default via {}\n", bridge.subnet.address(1)));
    }
    ip(None, &pair).and_then(|()| ip(Some(pid), &script)).inspect_err(|_| {
        // Fails if there is none.
        drop(ip(None, &format!("link delete {ours}")));
    })
}

/// Runs lines of `ip`, in this process' network namespace or another's.
fn ip(pid: Option<i32>, script: &str) -> Result<(), Problem> {
    let mut command = match pid {
        Some(pid) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/proc/{pid}/ns/net")).arg("ip");
            command
        }
        None => Command::new("ip"),
    };
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes())?;
        stdin.write_all(b"\n")?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(Problem::internal(format!("ip: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

fn random_mac() -> Result<[u8; 6], Problem> {
    let mut mac = [0; 6];
    rustix::rand::getrandom(&mut mac, rustix::rand::GetRandomFlags::empty())?;
    // As `DefaultNetworkService` makes them.
    mac[0] = mac[0] & 0x0c | 0xf2;
    Ok(mac)
}

fn shown(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_out_in_turn() {
        let mut bridge = Bridge {
            interface: String::new(),
            subnet: Subnet::parse("10.0.0.0/29").unwrap(),
            next: 2,
            held: BTreeMap::new(),
        };
        let taken: Vec<u32> = (0..5).map(|_| bridge.allocate("h").unwrap()).collect();
        assert_eq!(taken, [2, 3, 4, 5, 6]);
        assert!(bridge.allocate("h").is_err());
        bridge.held.remove(&3);
        bridge.held.remove(&4);
        assert_eq!(bridge.allocate("h").unwrap(), 3);
        bridge.held.remove(&3);
        assert_eq!(bridge.allocate("h").unwrap(), 4);
    }
}
