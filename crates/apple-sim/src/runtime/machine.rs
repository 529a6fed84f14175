//! One machine and its processes (`RuntimeService.swift`, `LinuxContainer.swift`).

mod extra;
mod figures;
mod signals;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kina_cgroup::{Group, Hierarchy};
use kina_launch::{Created, Launcher, Plan, RootFs, StartHandle, Stdio};
use oci_spec::runtime::Spec;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::Signal;

use super::ports::{Forwarder, forward};
use super::relay::{Relay, dial_guest};
use super::spec;
use super::streams::{Copies, Given};
use crate::error::{Code, Problem};
use crate::place::Place;
use crate::process::PAUSE;
use crate::protocol::{Bundle, Card, NetworkAnswer, NetworkRequest};
use crate::resources::{Attachment, State};
use crate::settings::{Settings, Trap};
use crate::vmnet;
use extra::Extra;
use signals::{exit_code, parse_signal};

/// How late the guest's end of a socket is with [`Trap::RelayLate`].
pub(super) const LATE: Duration = Duration::from_secs(2);
/// How long processes may take to be gone once they are killed.
const GONE: Duration = Duration::from_secs(10);
/// How many exit codes are remembered.
const REMEMBERED: usize = 1024;
/// The exit code of a machine that was stopped before its process told one.
pub(super) const STOPPED: i32 = 255;

/// What it is doing (`RuntimeService.State`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Created,
    Booted,
    Running,
    Stopping,
    Stopped,
}

impl Phase {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Booted => "booted",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// Whose kernel runs the processes.
pub(super) enum Ground {
    /// The host's, in namespaces of the machine's own.
    HostKernel,
    /// The machine's own, in which this is: with these cards, which are in place.
    OwnKernel(Vec<Attachment>),
}

/// What exists only while a machine does.
struct Booted {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    start: Option<StartHandle>,
    copies: Option<Copies>,
    relays: Vec<Relay>,
    forwarders: Vec<Forwarder>,
    /// Holds the addresses.
    networks: Option<UnixStream>,
    attachments: Vec<Attachment>,
}

struct Inner {
    phase: Phase,
    booted: Option<Booted>,
    extras: BTreeMap<String, Extra>,
    exits: BTreeMap<String, i32>,
}

/// A machine.
pub(super) struct Machine {
    place: Place,
    directory: PathBuf,
    bundle: Bundle,
    ground: Ground,
    launcher: Launcher,
    group: Group,
    spec: Mutex<Option<Spec>>,
    /// Requests wait for each other, as Apple's do.
    turn: Mutex<()>,
    /// Held while what there was is taken down.
    cleaning: Mutex<()>,
    inner: Mutex<Inner>,
    /// Something in `inner` has ended.
    ended: Condvar,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn launch(error: &kina_launch::Error) -> Problem {
    Problem::internal(chain(error))
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}

fn cgroup(error: &kina_cgroup::Error) -> Problem {
    Problem::internal(format!("cgroup: {error}"))
}

impl Machine {
    pub(super) fn new(place: &Place, bundle: Bundle, ground: Ground) -> Result<Self, Problem> {
        let id = &bundle.configuration.id;
        let group = Hierarchy::detect()
            .and_then(|hierarchy| hierarchy.group(&place.group(id)))
            .map_err(|error| cgroup(&error))?;
        Ok(Self {
            place: place.clone(),
            directory: place.bundle(id),
            launcher: Launcher::new(Path::new("/proc/self/exe"), &["container", "__launch"])
                .map_err(|error| launch(&error))?,
            group,
            bundle,
            ground,
            spec: Mutex::new(None),
            turn: Mutex::new(()),
            cleaning: Mutex::new(()),
            inner: Mutex::new(Inner {
                phase: Phase::Created,
                booted: None,
                extras: BTreeMap::new(),
                exits: BTreeMap::new(),
            }),
            ended: Condvar::new(),
        })
    }

    fn id(&self) -> &str {
        &self.bundle.configuration.id
    }

    fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// Where the output goes that the host keeps. In a kernel of its own it goes no further.
    fn log(&self) -> PathBuf {
        match self.ground {
            Ground::HostKernel => self.directory.join("stdio.log"),
            Ground::OwnKernel(_) => PathBuf::from("/dev/null"),
        }
    }

    fn settings(&self) -> Result<Settings, Problem> {
        Settings::load(&self.place.root).map_err(Problem::internal)
    }

    fn log_boot(&self, line: &str) -> Result<(), Problem> {
        let path = self.directory.join("vminitd.log");
        let mut log = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(writeln!(log, "{line}")?)
    }

    /// Boots the machine, up to but without its first process.
    pub(super) fn bootstrap(self: &Arc<Self>, given: Given) -> Result<(), Problem> {
        let _turn = locked(&self.turn);
        let phase = locked(&self.inner).phase;
        if phase != Phase::Created {
            let message = format!("container expected to be in created state, got: {}", phase.word());
            return Err(Problem::new(Code::InvalidState, message));
        }
        File::create(self.log())?;
        self.log_boot("[    0.000000] Booting Linux (a machine of the simulator)")?;
        let arguments = self.bundle.kernel_arguments.join(" ");
        self.log_boot(&format!("[    0.000000] Kernel command line: console=hvc0 {arguments}"))?;
        match self.boot(given) {
            Ok(()) => Ok(()),
            Err(problem) => {
                self.clean_up();
                Err(problem)
            }
        }
    }

    fn boot(self: &Arc<Self>, given: Given) -> Result<(), Problem> {
        let settings = self.settings()?;
        while self.settings()?.trapped(Trap::BootHangs) {
            std::thread::sleep(PAUSE);
        }
        // Nine parts until the sockets are made, one until the guest's ends are.
        std::thread::sleep(settings.boot_time().mul_f64(0.9));
        if settings.trapped(Trap::BootFails) {
            return Err(Problem::internal(
                "failed to boot: Error Domain=VZErrorDomain Code=1 \"Internal Virtualization error.\"",
            ));
        }
        let configuration = &self.bundle.configuration;
        let mut relays = Vec::new();
        let mut staged = Vec::new();
        for (number, mount) in configuration.mounts.iter().enumerate() {
            if spec::is_socket(&mount.source) {
                let sockets = self.directory.join("sockets");
                fs::create_dir_all(&sockets)?;
                let stage = sockets.join(number.to_string());
                relays.push(Relay::into_guest(Path::new(&mount.source), &stage)?);
                staged.push((stage, mount.destination.clone()));
            }
        }
        for socket in &configuration.published_sockets {
            let rootfs = self.rootfs();
            relays.push(Relay::publish(
                self.id(),
                Path::new(&socket.host_path),
                &socket.container_path,
                &self.place.root,
                move |path| dial_guest(&rootfs, path),
            )?);
        }
        let late = if settings.trapped(Trap::RelayLate) { LATE } else { Duration::ZERO };
        std::thread::sleep(settings.boot_time().mul_f64(0.1) + late);
        for relay in &relays {
            relay.guest_listens();
        }

        let own_kernel = matches!(self.ground, Ground::OwnKernel(_));
        let mounts = spec::mounts(configuration, &staged);
        let spec = spec::container(configuration, &self.rootfs(), mounts, own_kernel)?;
        let log = self.log();
        let terminal = configuration.init_process.terminal;
        let (stdio, mut copies, mut given) = if terminal {
            (Stdio::Terminal, None, Some(given))
        } else {
            let (stdio, copies) = given.logged(&log)?;
            (stdio, Some(copies), None)
        };
        let plan = Plan {
            spec: spec.clone(),
            rootfs: RootFs::Path(self.rootfs()),
            stdio,
            cgroup: Some(self.group.clone()),
        };
        let Created { pid, pidfd, start, terminal, .. } =
            self.launcher.create(plan).map_err(|error| launch(&error))?;
        if let (Some(terminal), Some(given)) = (terminal, given.take()) {
            copies = Some(given.terminal(terminal, Some(&log))?);
        }
        let pidfd = Arc::new(pidfd);
        *locked(&self.spec) = Some(spec);
        {
            let mut inner = locked(&self.inner);
            inner.booted = Some(Booted {
                pid,
                pidfd: Arc::clone(&pidfd),
                start: Some(start),
                copies,
                relays,
                forwarders: Vec::new(),
                networks: None,
                attachments: Vec::new(),
            });
        }
        self.await_first(pidfd);
        self.join_networks(pid)?;
        locked(&self.inner).phase = Phase::Booted;
        self.log_boot("[    0.140000] Run /sbin/vminitd as init process")
    }

    /// Waits for the first process, whose end is the machine's.
    fn await_first(self: &Arc<Self>, pidfd: Arc<OwnedFd>) {
        let machine = Arc::clone(self);
        std::thread::spawn(move || {
            let code = exit_code(&pidfd);
            let copies = locked(&machine.inner).booted.as_mut().and_then(|booted| booted.copies.take());
            if let Some(copies) = copies {
                copies.wait();
            }
            // Whoever stops it tears it down.
            let own = locked(&machine.inner).phase == Phase::Running;
            machine.tell_exit(machine.id(), code);
            if own {
                machine.clean_up();
            }
        });
    }

    fn join_networks(&self, pid: i32) -> Result<(), Problem> {
        let configuration = &self.bundle.configuration;
        let mut attachments: Vec<Attachment> = Vec::new();
        if let Ground::OwnKernel(cards) = &self.ground {
            attachments.clone_from(cards);
        } else if !configuration.networks.is_empty() {
            let networks = vmnet::connect(&self.place)?;
            for (index, wanted) in configuration.networks.iter().enumerate() {
                let request = NetworkRequest::Attach {
                    network: wanted.network.clone(),
                    hostname: wanted.options.hostname.clone(),
                    mac: wanted.options.mac_address.clone(),
                    mtu: wanted.options.mtu.unwrap_or(1500),
                    card: Card::Pair { pid, index },
                    ipv6_prefix: self.bundle.ipv6_prefixes.get(&wanted.network).cloned(),
                };
                match vmnet::ask(&networks, &request)? {
                    NetworkAnswer::Attached(attachment) => attachments.push(attachment),
                    other => return Err(Problem::internal(format!("unexpected: {other:?}"))),
                }
            }
            let forwarders = forward(configuration, &networks, attachments.first())?;
            if let Some(booted) = locked(&self.inner).booted.as_mut() {
                booted.networks = Some(networks);
                booted.forwarders = forwarders;
                booted.attachments.clone_from(&attachments);
            }
        }
        self.write_names(attachments.first())
    }

    /// `/etc/hosts` and `/etc/resolv.conf`.
    fn write_names(&self, first: Option<&Attachment>) -> Result<(), Problem> {
        let etc = directory_in(&self.rootfs(), "etc")?;
        let mut hosts = "127.0.0.1 localhost\n".to_owned();
        if let Some(first) = first {
            let address = first.ipv4_address.split('/').next().unwrap_or_default();
            let name = first.hostname.split('.').next().unwrap_or_default();
            hosts.push_str(&format!("{address} {name}\n"));
        }
        replace(&etc, "hosts", &hosts)?;
        let Some(dns) = &self.bundle.configuration.dns else {
            return Ok(());
        };
        let mut servers = dns.nameservers.clone();
        if servers.is_empty() {
            servers.extend(first.map(|first| first.ipv4_gateway.clone()));
        }
        let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        if let Some(domain) = &dns.domain {
            text.push_str(&format!("domain {domain}\n"));
        }
        if !dns.search_domains.is_empty() {
            text.push_str(&format!("search {}\n", dns.search_domains.join(" ")));
        }
        if !dns.options.is_empty() {
            text.push_str(&format!("options {}\n", dns.options.join(" ")));
        }
        Ok(replace(&etc, "resolv.conf", &text)?)
    }

    /// Starts a process: the first one, or one that was prepared.
    pub(super) fn start(self: &Arc<Self>, process: &str) -> Result<(), Problem> {
        let _turn = locked(&self.turn);
        if process != self.id() {
            return self.start_extra(process).inspect_err(|_| {
                // Its streams are the client's, who waits for their end.
                locked(&self.inner).extras.remove(process);
            });
        }
        let start = {
            let mut inner = locked(&self.inner);
            if inner.phase != Phase::Booted {
                let message =
                    format!("container expected to be in booted state, got: {}", inner.phase.word());
                return Err(Problem::new(Code::InvalidState, message));
            }
            // From here on the process' end is the machine's.
            inner.phase = Phase::Running;
            inner.booted.as_mut().and_then(|booted| booted.start.take())
        };
        let started = match start {
            Some(start) => start.start().map_err(|error| launch(&error)),
            None => Err(Problem::internal("no process to start")),
        };
        if let Err(problem) = started {
            self.clean_up();
            return Err(problem);
        }
        if self.settings()?.trapped(Trap::InitDies) {
            self.signal_first(Signal::KILL)?;
        }
        Ok(())
    }

    /// The exit code of a process, when it has ended; -1 of one that nobody knows.
    pub(super) fn wait(&self, process: &str) -> i32 {
        let mut inner = locked(&self.inner);
        loop {
            if let Some(code) = inner.exits.get(process) {
                return *code;
            }
            let known = process == self.id() || inner.extras.contains_key(process);
            if !known {
                return -1;
            }
            inner = self.ended.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sends a signal; after a kill the process has ended.
    pub(super) fn kill(&self, process: &str, signal: &str) -> Result<(), Problem> {
        let signal = parse_signal(signal)?;
        {
            let _turn = locked(&self.turn);
            let inner = locked(&self.inner);
            if inner.phase != Phase::Running {
                return Err(Problem::new(Code::InvalidState, "cannot kill: container is not running"));
            }
            let pidfd = if process == self.id() {
                inner.booted.as_ref().map(|booted| Arc::clone(&booted.pidfd))
            } else {
                inner.extras.get(process).and_then(|extra| extra.pidfd.clone())
            };
            let Some(pidfd) = pidfd else {
                let message = format!("process {process} does not exist");
                return Err(Problem::new(Code::InvalidState, message));
            };
            // Fails only if it has ended.
            let _ = rustix::process::pidfd_send_signal(&pidfd, signal);
        }
        if signal == Signal::KILL {
            self.wait(process);
        }
        Ok(())
    }

    fn signal_first(&self, signal: Signal) -> Result<(), Problem> {
        if let Some(booted) = &locked(&self.inner).booted {
            // Fails only if it has ended.
            let _ = rustix::process::pidfd_send_signal(&booted.pidfd, signal);
        }
        Ok(())
    }

    /// Stops the machine: the signal, then after the timeout the kill.
    pub(super) fn stop(&self, timeout: i32, signal: Option<&str>) -> Result<(), Problem> {
        let signal = parse_signal(signal.unwrap_or("SIGTERM"))?;
        let _turn = locked(&self.turn);
        while self.settings()?.trapped(Trap::StopHangs) {
            std::thread::sleep(PAUSE);
        }
        {
            let mut inner = locked(&self.inner);
            if !matches!(inner.phase, Phase::Running | Phase::Booted) {
                return Ok(());
            }
            inner.phase = Phase::Stopping;
        }
        self.signal_first(signal)?;
        let patience = Duration::from_secs(u64::try_from(timeout).unwrap_or(0));
        self.await_exit(patience);
        self.clean_up();
        Ok(())
    }

    fn await_exit(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut inner = locked(&self.inner);
        while !inner.exits.contains_key(self.id()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self.ended.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends all there is of the machine. Doing it again is fine.
    fn clean_up(&self) {
        let _cleaning = locked(&self.cleaning);
        let booted = locked(&self.inner).booted.take();
        if let Some(mut booted) = booted {
            // First nobody new comes in.
            booted.relays.clear();
            booted.forwarders.clear();
            // Fails only if it has ended.
            let _ = rustix::process::pidfd_send_signal(&booted.pidfd, Signal::KILL);
            if let Err(error) = self.group.kill_all(GONE).and_then(|()| self.group.delete(GONE)) {
                drop(writeln!(io::stderr(), "stop {}: {error}", self.id()));
            }
            self.await_exit(GONE);
        }
        locked(&self.inner).phase = Phase::Stopped;
        self.tell_exit(self.id(), STOPPED);
    }

    /// Waits until a machine that has ended, or is made to, is taken down.
    pub(super) fn await_stopped(&self) {
        let inner = locked(&self.inner);
        let runs = |inner: &mut Inner| matches!(inner.phase, Phase::Running | Phase::Stopping);
        drop(self.ended.wait_timeout_while(inner, GONE, runs));
    }

    /// Makes an exit code known, if none is.
    fn tell_exit(&self, process: &str, code: i32) {
        {
            let mut inner = locked(&self.inner);
            if inner.exits.len() >= REMEMBERED {
                let other = inner.exits.keys().find(|known| *known != self.id()).cloned();
                inner.exits.retain(|known, _| Some(known) != other.as_ref());
            }
            inner.exits.entry(process.to_owned()).or_insert(code);
        }
        self.ended.notify_all();
    }

    /// What it does, where it is reached, and its first process.
    pub(super) fn state(&self) -> (State, Vec<Attachment>, Option<i32>) {
        let inner = locked(&self.inner);
        let booted = inner.booted.as_ref();
        let pid = booted.map(|booted| booted.pid);
        match inner.phase {
            Phase::Created | Phase::Stopped | Phase::Booted => (State::Stopped, Vec::new(), pid),
            Phase::Stopping => (State::Stopping, Vec::new(), pid),
            Phase::Running => {
                let attachments = booted.map(|booted| booted.attachments.clone());
                (State::Running, attachments.unwrap_or_default(), pid)
            }
        }
    }
}

/// Opens a directory of a root file system, and makes it if it is not there. Links in it are the
/// guest's, and lead nowhere else.
fn directory_in(rootfs: &Path, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, rootfs, flags, Mode::empty())?;
    match rustix::fs::mkdirat(&root, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(&root, name, flags, Mode::empty(), resolve)?)
}

/// Writes a file in place of whatever is there, links included.
fn replace(directory: &OwnedFd, name: &str, content: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644))?;
    File::from(file).write_all(content.as_bytes())
}
