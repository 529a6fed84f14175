//! The half of a virtual machine that is in it, where Apple's has `vminitd`: it puts the network
//! in place and runs the processes, as the host's half asks.
//!
//! kina's own init starts it in place of a guest (`kina.program`), with the shares and the root
//! file system mounted, and switches the machine off when it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kina_attachment::{Address, Interface, Mac, Namespace, Prefix, Route, Target};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr};
use rustix::pipe::{PipeFlags, pipe_with};

use super::carry::carry;
use super::machine::{Ground, Machine};
use super::relay::{dial_guest, join};
use super::seam::{CHARTER, Charter, Opening, PORT, ROOT, SHARE};
use super::{Unanswered, handle};
use crate::error::Problem;
use crate::place::Place;
use crate::process::{PAUSE, wait_until};
use crate::protocol::HelperAnswer;
use crate::resources::{Attachment, Subnet};
use crate::settings::{Settings, Trap};
use crate::values::valid_mac;
use crate::wire;

/// How long a card may take to appear, and a stream that a request speaks of.
const PATIENCE: Duration = Duration::from_secs(10);

/// `VMADDR_CID_ANY` of vsock(7).
const ANY_ADDRESS: u32 = u32::MAX;

/// Of rtnetlink(7): what an address and a route are like.
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const KIND_UNICAST: u8 = 1;
const PROTOCOL_STATIC: u8 = 4;
const TABLE_MAIN: u32 = 254;

/// The machine's half.
struct Inside {
    place: Place,
    id: String,
    machine: Arc<Machine>,
    unanswered: Unanswered,
    /// Streams that no request has spoken of yet.
    streams: Mutex<BTreeMap<u64, UnixStream>>,
    came: Condvar,
    end: SyncSender<()>,
}

/// The program itself.
pub(crate) fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            drop(writeln!(io::stderr(), "container: {problem}"));
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Problem> {
    let charter: Charter = serde_json::from_slice(&fs::read(Path::new(SHARE).join(CHARTER))?)?;
    let place = Place::new(Path::new(ROOT));
    let id = charter.bundle.configuration.id.clone();
    fs::create_dir_all(place.bundle(&id))?;
    charter.settings.save(&place.root)?;
    put_in_place(&charter.attachments)?;
    let machine = Machine::new(&place, charter.bundle, Ground::OwnKernel(charter.attachments))?;
    let (end, ended) = sync_channel(1);
    let inside = Arc::new(Inside {
        place,
        id,
        machine: Arc::new(machine),
        unanswered: Unanswered::default(),
        streams: Mutex::default(),
        came: Condvar::new(),
        end,
    });
    let listener = listen()?;
    std::thread::spawn(move || inside.accept(&listener));
    await_end(&ended);
    rustix::fs::sync();
    Ok(())
}

/// Whoever could send has been told to, or is gone.
fn await_end(ended: &Receiver<()>) {
    let _ = ended.recv();
}

fn listen() -> io::Result<OwnedFd> {
    let kind = SockType::Stream;
    let socket = nix::sys::socket::socket(AddressFamily::Vsock, kind, SockFlag::SOCK_CLOEXEC, None)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &VsockAddr::new(ANY_ADDRESS, PORT))?;
    nix::sys::socket::listen(&socket, Backlog::MAXCONN)?;
    Ok(socket)
}

impl Inside {
    fn accept(self: &Arc<Self>, listener: &OwnedFd) {
        loop {
            match rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC) {
                Ok(connection) => {
                    let inside = Arc::clone(self);
                    // A stream socket as any other, for all that is done with it.
                    std::thread::spawn(move || inside.talk(UnixStream::from(connection)));
                }
                Err(error) => {
                    drop(writeln!(io::stderr(), "container: accept: {error}"));
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    fn talk(&self, stream: UnixStream) {
        let Ok(Some((opening, _))) = wire::receive(&stream) else { return };
        match opening {
            Opening::Ask { request, streams, traps } => {
                self.unanswered.change(|count| count + 1);
                let answer = self.set_traps(traps).and_then(|()| self.take_streams(&streams));
                let answer = answer.and_then(|descriptors| handle(&self.machine, *request, descriptors));
                // Nobody is there any more if it fails.
                drop(wire::send(&stream, &answer.unwrap_or_else(HelperAnswer::Failed), &[]));
                self.unanswered.change(|count| count - 1);
            }
            Opening::Stream(number) => {
                self.streams.lock().unwrap_or_else(PoisonError::into_inner).insert(number, stream);
                self.came.notify_all();
            }
            Opening::Dial(path) => {
                if let Ok(socket) = dial_guest(&self.place.bundle(&self.id).join("rootfs"), &path) {
                    join(stream, socket);
                }
            }
            Opening::End => {
                self.unanswered.await_left(0);
                drop(wire::send(&stream, &HelperAnswer::Done, &[]));
                // Only if it is told already.
                let _ = self.end.try_send(());
            }
        }
    }

    fn set_traps(&self, traps: BTreeSet<Trap>) -> Result<(), Problem> {
        let mut settings = Settings::saved(&self.place.root).map_err(Problem::internal)?;
        if settings.traps != traps {
            settings.traps = traps;
            settings.save(&self.place.root)?;
        }
        Ok(())
    }

    /// The streams that a request speaks of, as descriptors that processes can have: standard
    /// input, output and error.
    fn take_streams(&self, numbers: &[u64]) -> Result<Vec<OwnedFd>, Problem> {
        let deadline = Instant::now() + PATIENCE;
        let mut taken = Vec::new();
        for (index, number) in numbers.iter().enumerate() {
            let stream = self.take_stream(*number, deadline)?;
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            // They end when either end does; nobody waits for that here.
            if index == 0 {
                drop(carry(stream.into(), writer));
                taken.push(reader);
            } else {
                drop(carry(reader, stream.into()));
                taken.push(writer);
            }
        }
        Ok(taken)
    }

    fn take_stream(&self, number: u64, deadline: Instant) -> Result<UnixStream, Problem> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(stream) = streams.remove(&number) {
                return Ok(stream);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Problem::internal(format!("stream {number} does not come")));
            }
            streams = self.came.wait_timeout(streams, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Gives each card its name and address.
fn put_in_place(attachments: &[Attachment]) -> Result<(), Problem> {
    if attachments.is_empty() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let namespace = Namespace::current().map_err(|error| chained(&error))?;
    for (index, attachment) in attachments.iter().enumerate() {
        let interface = interface(index, attachment)?;
        let target = Target::WithMac(interface.mac);
        let mut applied = Ok(());
        // Its driver may still be looking at it.
        wait_until(PATIENCE, || {
            applied = runtime.block_on(kina_attachment::apply(&namespace, &target, &interface));
            !matches!(applied, Err(kina_attachment::Error::NoInterface { .. }))
        });
        applied.map_err(|error| chained(&error))?;
    }
    Ok(())
}

/// A card as it must become.
fn interface(index: usize, attachment: &Attachment) -> Result<Interface, Problem> {
    let subnet = Subnet::parse(&attachment.ipv4_address)?;
    let odd = |what: &str| Problem::internal(format!("no {what}: {attachment:?}"));
    let address = attachment.ipv4_address.split('/').next().unwrap_or_default();
    let prefix = Prefix { address: address.parse().map_err(|_| odd("address"))?, length: subnet.bits };
    let gateway = attachment.ipv4_gateway.parse().map_err(|_| odd("gateway"))?;
    let route = |destination, gateway: Option<IpAddr>| Route {
        destination,
        gateway,
        onlink: false,
        source: None,
        scope: if gateway.is_some() { SCOPE_UNIVERSE } else { SCOPE_LINK },
        kind: KIND_UNICAST,
        protocol: PROTOCOL_STATIC,
        service: 0,
        table: TABLE_MAIN,
        metric: None,
        mtu: None,
        mtu_locked: false,
        segment: None,
    };
    let mut routes = vec![route(Prefix { address: IpAddr::V4(subnet.first), length: subnet.bits }, None)];
    // The first card's gateway is the machine's.
    routes.extend((index == 0).then(|| route(Prefix::everything(false), Some(gateway))));
    Ok(Interface {
        name: format!("eth{index}"),
        mac: Mac(valid_mac(attachment.mac_address.as_deref().unwrap_or_default())?),
        mtu: attachment.mtu.unwrap_or(1500),
        addresses: vec![Address { prefix, peer: None, broadcast: None, scope: SCOPE_UNIVERSE, flags: 0 }],
        routes,
        neighbours: Vec::new(),
        rules: Vec::new(),
    })
}

fn chained(error: &dyn std::error::Error) -> Problem {
    Problem::internal(super::machine::chain(error))
}
