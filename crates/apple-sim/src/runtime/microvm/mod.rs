//! A machine that is a virtual machine, as its helper sees it. What is in it is the other half of
//! this program ([`inside`](mod@super::inside)), which does with the processes what it is asked to.

mod hypervisor;
mod shares;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kina_launch::Stdio;
use tokio::runtime::Runtime;

use super::carry::carry;
use super::machine::{LATE, Phase, STOPPED, locked};
use super::ports::{Forwarder, forward};
use super::relay::Relay;
use super::seam::{Charter, Opening};
use super::streams::{Copies, Given};
use crate::error::{Code, Problem};
use crate::place::Place;
use crate::process::PAUSE;
use crate::protocol::{Bundle, Card, HelperAnswer, HelperRequest, NetworkAnswer, NetworkRequest};
use crate::resources::{Attachment, State};
use crate::settings::{Settings, Trap};
use crate::{vmnet, wire};
use hypervisor::{Dialler, Hypervisor, Site};
use shares::Tree;

/// How long the exit code of a first process may take that was made to end.
const GONE: Duration = Duration::from_secs(10);
/// The exit code of a process that went with its machine.
const KILLED: i32 = 137;

/// What exists only while the machine does.
struct Booted {
    hypervisor: Hypervisor,
    relays: Vec<Relay>,
    forwarders: Vec<Forwarder>,
    /// Holds the addresses.
    _networks: Option<UnixStream>,
    attachments: Vec<Attachment>,
}

struct Inner {
    phase: Phase,
    booted: Option<Booted>,
    /// What carries the output of processes that nobody has waited for yet.
    copies: BTreeMap<String, Copies>,
    /// Of the first process.
    exit: Option<i32>,
}

/// A virtual machine.
pub(super) struct Microvm {
    place: Place,
    directory: PathBuf,
    bundle: Bundle,
    runtime: Arc<Runtime>,
    streams: AtomicU64,
    /// Requests that change it wait for each other.
    turn: Mutex<()>,
    /// Held while what there was is taken down.
    cleaning: Mutex<()>,
    inner: Mutex<Inner>,
    ended: Condvar,
}

impl Microvm {
    /// To be called with one thread, since the process leaves the host's mounts.
    pub(super) fn new(place: &Place, bundle: Bundle) -> Result<Self, Problem> {
        shares::leave_mounts()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self {
            place: place.clone(),
            directory: place.bundle(&bundle.configuration.id),
            bundle,
            runtime: Arc::new(runtime),
            streams: AtomicU64::new(0),
            turn: Mutex::new(()),
            cleaning: Mutex::new(()),
            inner: Mutex::new(Inner {
                phase: Phase::Created,
                booted: None,
                copies: BTreeMap::new(),
                exit: None,
            }),
            ended: Condvar::new(),
        })
    }

    fn id(&self) -> &str {
        &self.bundle.configuration.id
    }

    fn settings(&self) -> Result<Settings, Problem> {
        Settings::load(&self.place.root).map_err(Problem::internal)
    }

    /// Does what only the host can, and has the machine do the rest.
    pub(super) fn handle(
        self: &Arc<Self>,
        request: HelperRequest,
        descriptors: Vec<OwnedFd>,
    ) -> Result<HelperAnswer, Problem> {
        match request {
            HelperRequest::Bootstrap { stdin } => self.bootstrap(Given::new(stdin, descriptors)),
            HelperRequest::Create { ref process, stdin, .. } => {
                let process = process.clone();
                self.create(request, &process, Given::new(stdin, descriptors))
            }
            HelperRequest::Start { ref process } if process == self.id() => self.start(request),
            HelperRequest::Wait { ref process } if process == self.id() => {
                Ok(HelperAnswer::Exit(self.await_exit(None).unwrap_or(STOPPED)))
            }
            HelperRequest::Wait { ref process } => {
                let process = process.clone();
                Ok(HelperAnswer::Exit(self.wait(request, &process)))
            }
            HelperRequest::Stop { .. } => self.stop(request),
            HelperRequest::State => Ok(self.state()),
            other => self.ask(other, &[]),
        }
    }

    /// Boots the machine, up to but without its first process.
    fn bootstrap(self: &Arc<Self>, given: Given) -> Result<HelperAnswer, Problem> {
        let _turn = locked(&self.turn);
        let phase = locked(&self.inner).phase;
        if phase != Phase::Created {
            let message = format!("container expected to be in created state, got: {}", phase.word());
            return Err(Problem::new(Code::InvalidState, message));
        }
        let booted = self.boot(given);
        if booted.is_err() {
            self.clean_up();
        }
        booted.map(|()| HelperAnswer::Done)
    }

    fn boot(self: &Arc<Self>, given: Given) -> Result<(), Problem> {
        let (log, console) = (self.directory.join("stdio.log"), self.directory.join("vminitd.log"));
        File::create(&log)?;
        File::create(&console)?;
        while self.settings()?.trapped(Trap::BootHangs) {
            std::thread::sleep(PAUSE);
        }
        let settings = self.settings()?;
        if settings.trapped(Trap::BootFails) {
            return Err(Problem::internal(
                "failed to boot: Error Domain=VZErrorDomain Code=1 \"Internal Virtualization error.\"",
            ));
        }
        let configuration = &self.bundle.configuration;
        let arguments = self.bundle.kernel_arguments.join(" ");
        let mut words = OpenOptions::new().append(true).open(console)?;
        writeln!(words, "Booting Linux; asked for on its command line: {arguments}")?;
        Hypervisor::make_disk(&self.runtime, &self.directory)?;
        let program = settings.programs.init();
        let tree = Tree::make(&self.directory.join("share"), configuration, &program)?;
        let (networks, cards) = self.plug_in()?;
        let attachments: Vec<Attachment> = cards.iter().map(|(_, attachment)| attachment.clone()).collect();
        tree.write(&self.charter(&settings, &tree, &attachments))?;
        let site = Site {
            place: &self.place,
            id: self.id(),
            resources: &configuration.resources,
            programs: &settings.programs,
            tree: tree.root(),
        };
        let hypervisor = Hypervisor::boot(&self.runtime, &site, cards)?;
        let dialler = hypervisor.dialler.clone();
        // From here on it is taken down when something fails.
        locked(&self.inner).booted = Some(Booted {
            hypervisor,
            relays: Vec::new(),
            forwarders: Vec::new(),
            _networks: None,
            attachments: attachments.clone(),
        });
        let relays = self.publish(&settings, &dialler)?;
        let forwarders = match &networks {
            Some(networks) => forward(configuration, networks, attachments.first())?,
            None => Vec::new(),
        };
        if let Some(booted) = locked(&self.inner).booted.as_mut() {
            (booted.relays, booted.forwarders, booted._networks) = (relays, forwarders, networks);
        }
        let (stdio, copies) = given.logged(&log)?;
        self.forward(HelperRequest::Bootstrap { stdin: true }, self.id(), stdio)?;
        // The carriers end first, and with them these.
        locked(&self.inner).copies.insert(self.id().to_owned(), copies);
        self.await_first();
        locked(&self.inner).phase = Phase::Booted;
        Ok(())
    }

    /// What the machine is told it is.
    fn charter(&self, settings: &Settings, tree: &Tree, attachments: &[Attachment]) -> Charter {
        let mut bundle = self.bundle.clone();
        bundle.configuration.mounts.clone_from(&tree.mounts);
        bundle.configuration.published_sockets.clear();
        bundle.configuration.published_ports.clear();
        let settings = Settings { boot_ms: 0, traps: [].into(), ..settings.clone() };
        Charter { bundle, attachments: attachments.to_vec(), settings }
    }

    /// Taps on the networks, with what was given to each.
    #[allow(clippy::type_complexity, reason = "a connection, and a list of pairs")]
    fn plug_in(&self) -> Result<(Option<UnixStream>, Vec<(OwnedFd, Attachment)>), Problem> {
        let configuration = &self.bundle.configuration;
        if configuration.networks.is_empty() {
            return Ok((None, Vec::new()));
        }
        let networks = vmnet::connect(&self.place)?;
        let keeper = vmnet::keeper(&networks)?;
        let mut cards = Vec::new();
        for (index, wanted) in configuration.networks.iter().enumerate() {
            // Of all helpers in that namespace, this one is the only one of its number.
            let name = format!("tap{}-{index}", std::process::id());
            let tap = hypervisor::open_tap(&self.runtime, keeper, &name)?;
            let request = NetworkRequest::Attach {
                network: wanted.network.clone(),
                hostname: wanted.options.hostname.clone(),
                mac: wanted.options.mac_address.clone(),
                mtu: wanted.options.mtu.unwrap_or(1500),
                card: Card::Tap { name },
                ipv6_prefix: self.bundle.ipv6_prefixes.get(&wanted.network).cloned(),
            };
            match vmnet::ask(&networks, &request)? {
                NetworkAnswer::Attached(attachment) => cards.push((tap, attachment)),
                other => return Err(Problem::internal(format!("unexpected: {other:?}"))),
            }
        }
        Ok((Some(networks), cards))
    }

    fn publish(&self, settings: &Settings, dialler: &Dialler) -> Result<Vec<Relay>, Problem> {
        let mut relays = Vec::new();
        for socket in &self.bundle.configuration.published_sockets {
            let dialler = dialler.clone();
            relays.push(Relay::publish(
                self.id(),
                Path::new(&socket.host_path),
                &socket.container_path,
                &self.place.root,
                move |path| dialler.open(&Opening::Dial(path.to_owned())),
            )?);
        }
        if settings.trapped(Trap::RelayLate) {
            std::thread::sleep(LATE);
        }
        for relay in &relays {
            relay.guest_listens();
        }
        Ok(relays)
    }

    /// Waits for the first process, whose end is the machine's.
    fn await_first(self: &Arc<Self>) {
        let machine = Arc::clone(self);
        std::thread::spawn(move || {
            let request = HelperRequest::Wait { process: machine.id().to_owned() };
            // The end of the machine is that of the connection.
            let code = match machine.ask(request, &[]) {
                Ok(HelperAnswer::Exit(code)) => code,
                Ok(_) | Err(_) => STOPPED,
            };
            machine.await_output(machine.id());
            // Whoever stops it tears it down.
            let own = locked(&machine.inner).phase == Phase::Running;
            machine.tell_exit(code);
            if own {
                machine.clean_up();
            }
        });
    }

    fn await_output(&self, process: &str) {
        let copies = locked(&self.inner).copies.remove(process);
        if let Some(copies) = copies {
            copies.wait();
        }
    }

    fn start(&self, request: HelperRequest) -> Result<HelperAnswer, Problem> {
        let _turn = locked(&self.turn);
        {
            let mut inner = locked(&self.inner);
            if inner.phase != Phase::Booted {
                let message =
                    format!("container expected to be in booted state, got: {}", inner.phase.word());
                return Err(Problem::new(Code::InvalidState, message));
            }
            // From here on the process' end is the machine's.
            inner.phase = Phase::Running;
        }
        let started = self.ask(request, &[]);
        if started.is_err() {
            self.clean_up();
        }
        started
    }

    fn create(&self, request: HelperRequest, process: &str, given: Given) -> Result<HelperAnswer, Problem> {
        self.forward(request, process, given.directly()?)
    }

    /// Asks for something that has streams, and carries those.
    fn forward(&self, request: HelperRequest, process: &str, stdio: Stdio) -> Result<HelperAnswer, Problem> {
        let Stdio::Files { stdin, stdout, stderr } = stdio else {
            return Err(Problem::internal("a terminal is the machine's own"));
        };
        let request = match request {
            HelperRequest::Create { process, configuration, .. } => {
                HelperRequest::Create { process, configuration, stdin: true }
            }
            other => other,
        };
        let dialler = self.dialler()?;
        let numbers = [(); 3].map(|()| self.streams.fetch_add(1, Ordering::Relaxed));
        let mut streams = Vec::new();
        for number in numbers {
            streams.push(OwnedFd::from(dialler.open(&Opening::Stream(number))?));
        }
        let answer = self.ask(request, &numbers)?;
        let mut ends = streams.into_iter();
        if let (Some(input), Some(output), Some(error)) = (ends.next(), ends.next(), ends.next()) {
            // Ends with the process or the client, whichever ends first.
            drop(carry(stdin, input));
            let copies = Copies::of(vec![carry(output, stdout), carry(error, stderr)]);
            locked(&self.inner).copies.insert(process.to_owned(), copies);
        }
        Ok(answer)
    }

    fn dialler(&self) -> Result<Dialler, Problem> {
        let inner = locked(&self.inner);
        let dialler = inner.booted.as_ref().map(|booted| booted.hypervisor.dialler.clone());
        dialler.ok_or_else(|| Problem::new(Code::InvalidState, "container is not running"))
    }

    /// Asks the machine's half.
    fn ask(&self, request: HelperRequest, streams: &[u64]) -> Result<HelperAnswer, Problem> {
        let gone = |error: io::Error| {
            Problem::new(Code::Interrupted, format!("the machine does not answer: {error}"))
        };
        let mut traps = self.settings()?.traps;
        // The host does the others.
        traps.retain(|trap| matches!(trap, Trap::InitDies | Trap::ExecFails | Trap::StatsFail));
        let opening = Opening::Ask { request: Box::new(request), streams: streams.to_vec(), traps };
        let stream = self.dialler()?.open(&opening).map_err(gone)?;
        match wire::receive(&stream).map_err(gone)? {
            Some((HelperAnswer::Failed(problem), _)) => Err(problem),
            Some((answer, _)) => Ok(answer),
            None => Err(gone(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// The exit code of a process other than the first, once its output is there.
    fn wait(&self, request: HelperRequest, process: &str) -> i32 {
        let code = match self.ask(request, &[]) {
            Ok(HelperAnswer::Exit(code)) => code,
            Ok(_) | Err(_) => KILLED,
        };
        self.await_output(process);
        code
    }

    /// Waits for the end of the first process.
    fn await_exit(&self, patience: Option<Duration>) -> Option<i32> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut inner = locked(&self.inner);
        while inner.exit.is_none() {
            inner = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.ended.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return None,
                Some(left) => self.ended.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        inner.exit
    }

    /// Makes the first process' exit code known, if none is.
    fn tell_exit(&self, code: i32) {
        locked(&self.inner).exit.get_or_insert(code);
        self.ended.notify_all();
    }

    fn stop(&self, request: HelperRequest) -> Result<HelperAnswer, Problem> {
        let _turn = locked(&self.turn);
        while self.settings()?.trapped(Trap::StopHangs) {
            std::thread::sleep(PAUSE);
        }
        let before = {
            let mut inner = locked(&self.inner);
            if !matches!(inner.phase, Phase::Running | Phase::Booted) {
                return Ok(HelperAnswer::Done);
            }
            std::mem::replace(&mut inner.phase, Phase::Stopping)
        };
        match self.ask(request, &[]) {
            // It has ended, or is ended next.
            Ok(_) => {}
            Err(problem) if problem.code == Code::Interrupted => {}
            // A signal that is none.
            Err(problem) => {
                locked(&self.inner).phase = before;
                return Err(problem);
            }
        }
        self.await_exit(Some(GONE));
        self.clean_up();
        Ok(HelperAnswer::Done)
    }

    /// Ends all there is of the machine. Doing it again is fine.
    fn clean_up(&self) {
        let _cleaning = locked(&self.cleaning);
        let booted = locked(&self.inner).booted.take();
        match booted {
            Some(mut booted) => {
                // First nobody new comes in.
                booted.relays.clear();
                booted.forwarders.clear();
                booted.hypervisor.end();
            }
            // What a boot has left that did not come far.
            None => drop(super::guard::clear(&self.place.group(self.id()))),
        }
        locked(&self.inner).phase = Phase::Stopped;
        self.tell_exit(STOPPED);
    }

    /// Waits until a machine that has ended, or is made to, is taken down.
    pub(super) fn await_stopped(&self) {
        let inner = locked(&self.inner);
        let runs = |inner: &mut Inner| matches!(inner.phase, Phase::Running | Phase::Stopping);
        drop(self.ended.wait_timeout_while(inner, GONE, runs));
    }

    fn state(&self) -> HelperAnswer {
        let inner = locked(&self.inner);
        let booted = inner.booted.as_ref();
        let pid = booted.and_then(|booted| booted.hypervisor.pid());
        let (state, networks) = match inner.phase {
            Phase::Created | Phase::Stopped | Phase::Booted => (State::Stopped, Vec::new()),
            Phase::Stopping => (State::Stopping, Vec::new()),
            Phase::Running => {
                let attachments = booted.map(|booted| booted.attachments.clone());
                (State::Running, attachments.unwrap_or_default())
            }
        };
        HelperAnswer::State { state, networks, pid }
    }
}
