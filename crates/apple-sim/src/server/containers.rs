//! Containers (`ContainersService.swift`): which lock is held when is as it is there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use super::{helper, locked};
use crate::error::{Code, Problem};
use crate::images::Images;
use crate::place::Place;
use crate::process::PAUSE;
use crate::protocol::{Bundle, HelperAnswer, HelperRequest};
use crate::resources::{Attachment, Configuration, Process, Snapshot, State, Stats, now};
use crate::settings::{Settings, Trap};

/// The one runtime that there is.
const RUNTIME: &str = "container-runtime-linux";
/// How many exit codes are remembered.
const REMEMBERED: usize = 1024;
/// The least memory of a machine, in bytes.
const LEAST_MEMORY: u64 = 200 << 20;

/// A container.
struct Entry {
    snapshot: Snapshot,
    auto_remove: bool,
    /// Whether the process that keeps it is known.
    client: bool,
}

/// All containers.
pub(super) struct Containers {
    place: Place,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Held across creates, boots and starts: one after another.
    lock: Mutex<()>,
    /// The exit codes of the last first processes.
    exits: Mutex<VecDeque<(String, i32)>>,
}

impl Containers {
    /// Those of an earlier server: all of them stopped, and without those that go when they stop.
    pub(super) fn load(place: &Place) -> Result<Self, Problem> {
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(place.containers())? {
            let directory = entry?.path();
            let content = fs::read(directory.join("bundle.json")).unwrap_or_default();
            let Ok(bundle) = serde_json::from_slice::<Bundle>(&content) else {
                drop(fs::remove_dir_all(&directory));
                continue;
            };
            let id = bundle.configuration.id.clone();
            if bundle.auto_remove {
                helper::deregister(place, &id);
                drop(fs::remove_dir_all(&directory));
                continue;
            }
            entries.insert(id, Entry::stopped(bundle.configuration, false));
        }
        Ok(Self {
            place: place.clone(),
            entries: Mutex::new(entries),
            lock: Mutex::new(()),
            exits: Mutex::default(),
        })
    }

    fn settings(&self) -> Result<Settings, Problem> {
        Settings::load(&self.place.root).map_err(Problem::internal)
    }

    /// All of them.
    pub(super) fn list(&self) -> Vec<Snapshot> {
        locked(&self.entries).values().map(|entry| entry.snapshot.clone()).collect()
    }

    pub(super) fn create(
        &self,
        images: &Images,
        configuration: Configuration,
        auto_remove: bool,
        kernel_arguments: Vec<String>,
        ipv6_prefixes: BTreeMap<String, String>,
    ) -> Result<(), Problem> {
        let _lock = locked(&self.lock);
        while self.settings()?.trapped(Trap::CreateHangs) {
            std::thread::sleep(PAUSE);
        }
        let id = configuration.id.clone();
        self.check_names(&configuration)?;
        if configuration.runtime_handler != RUNTIME {
            let message = format!("unable to locate runtime plugin {}", configuration.runtime_handler);
            return Err(Problem::new(Code::NotFound, message));
        }
        let memory = configuration.resources.memory_in_bytes;
        if memory < LEAST_MEMORY {
            return Err(Problem::invalid(format!(
                "minimum memory amount allowed is 200 MiB (got {memory} bytes)"
            )));
        }
        let directory = self.place.bundle(&id);
        fs::create_dir_all(&directory)?;
        let kind = self.settings()?.kind;
        let bundle = Bundle { configuration, auto_remove, kernel_arguments, ipv6_prefixes, kind };
        let written = images
            .unpack(&bundle.configuration.image, &bundle.configuration.platform, &directory.join("rootfs"))
            .and_then(|()| Ok(fs::write(directory.join("bundle.json"), serde_json::to_vec(&bundle)?)?));
        if let Err(problem) = written {
            drop(fs::remove_dir_all(&directory));
            return Err(problem);
        }
        locked(&self.entries).insert(id, Entry::stopped(bundle.configuration, auto_remove));
        Ok(())
    }

    fn check_names(&self, configuration: &Configuration) -> Result<(), Problem> {
        let entries = locked(&self.entries);
        if entries.contains_key(&configuration.id) {
            let message = format!("container already exists: {}", configuration.id);
            return Err(Problem::new(Code::Exists, message));
        }
        let taken: BTreeSet<&str> = entries
            .values()
            .flat_map(|entry| &entry.snapshot.configuration.networks)
            .map(|network| network.options.hostname.as_str())
            .collect();
        let conflicts: Vec<&str> = configuration
            .networks
            .iter()
            .map(|network| network.options.hostname.as_str())
            .filter(|name| taken.contains(name))
            .collect();
        if conflicts.is_empty() {
            return Ok(());
        }
        Err(Problem::new(Code::Exists, format!("hostname(s) already exist: {conflicts:?}")))
    }

    pub(super) fn bootstrap(&self, id: &str, stdin: bool, descriptors: &[OwnedFd]) -> Result<(), Problem> {
        let _lock = locked(&self.lock);
        if self.entry(id, |entry| entry.client)? {
            return Ok(());
        }
        let running = locked(&self.entries).values().filter(|entry| entry.client).count();
        if running >= self.settings()?.machines {
            return Err(Problem::internal(
                "Error Domain=VZErrorDomain Code=6 \"The maximum supported number of active virtual machines has been reached.\"",
            ));
        }
        let booted = helper::register(&self.place, id).and_then(|()| {
            descriptors.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>().map_err(Problem::from)
        });
        let booted = booted.and_then(|descriptors| {
            helper::ask(&self.place, id, &HelperRequest::Bootstrap { stdin }, &descriptors)
        });
        if let Err(problem) = booted {
            helper::deregister(&self.place, id);
            return Err(problem);
        }
        self.change(id, |entry| entry.client = true);
        Ok(())
    }

    pub(super) fn start_process(self: &Arc<Self>, id: &str, process: &str) -> Result<(), Problem> {
        let _lock = locked(&self.lock);
        let first = id == process;
        if first && self.entry(id, |entry| entry.snapshot.status)? == State::Running {
            return Ok(());
        }
        self.client(id)?;
        self.ask(id, &HelperRequest::Start { process: process.to_owned() })?;
        if !first {
            return Ok(());
        }
        let HelperAnswer::State { networks, .. } = self.ask(id, &HelperRequest::State)? else {
            return Err(Problem::internal("no state"));
        };
        self.set_running(id, networks);
        // The end of its first process is the container's.
        let (containers, id) = (Arc::clone(self), id.to_owned());
        std::thread::spawn(move || {
            let request = HelperRequest::Wait { process: id.clone() };
            // A keeper that has gone away is an end too.
            if let Ok(HelperAnswer::Exit(code)) = helper::ask(&containers.place, &id, &request, &[]) {
                containers.remember(&id, code);
            }
            containers.handle_exit(&id);
        });
        Ok(())
    }

    fn set_running(&self, id: &str, networks: Vec<Attachment>) {
        self.change(id, |entry| {
            entry.snapshot.status = State::Running;
            entry.snapshot.networks = networks;
            entry.snapshot.started_date = Some(now());
        });
    }

    pub(super) fn create_process(
        &self,
        id: &str,
        process: String,
        configuration: Process,
        stdin: bool,
        descriptors: &[OwnedFd],
    ) -> Result<(), Problem> {
        self.client(id)?;
        let request = HelperRequest::Create { process, configuration, stdin };
        helper::ask(&self.place, id, &request, descriptors).map(drop)
    }

    /// The exit code of a process. Who asks for that of a first process may be too late for its
    /// keeper: Apple's command asks before it starts the process.
    pub(super) fn wait(&self, id: &str, process: String) -> Result<i32, Problem> {
        let first = id == process;
        let asked = self.client(id).and_then(|()| self.ask(id, &HelperRequest::Wait { process }));
        match (asked, first.then(|| self.remembered(id)).flatten()) {
            (Ok(HelperAnswer::Exit(code)), _) | (Err(_), Some(code)) => Ok(code),
            (Ok(other), _) => Err(Problem::internal(format!("unexpected: {other:?}"))),
            (Err(problem), None) => Err(problem),
        }
    }

    fn remember(&self, id: &str, code: i32) {
        let mut exits = locked(&self.exits);
        exits.retain(|(known, _)| known != id);
        if exits.len() >= REMEMBERED {
            exits.pop_front();
        }
        exits.push_back((id.to_owned(), code));
    }

    fn remembered(&self, id: &str) -> Option<i32> {
        locked(&self.exits).iter().find(|(known, _)| known == id).map(|(_, code)| *code)
    }

    pub(super) fn kill(&self, id: &str, process: String, signal: String) -> Result<(), Problem> {
        self.client(id)?;
        let kills = matches!(signal.to_uppercase().as_str(), "9" | "KILL" | "SIGKILL") && process == id;
        self.ask(id, &HelperRequest::Kill { process, signal })?;
        if kills {
            self.handle_exit(id);
        }
        Ok(())
    }

    /// Stops a container. One whose keeper is not known is stopped by definition, even if its
    /// machine runs.
    pub(super) fn stop(&self, id: &str, timeout: i32, signal: Option<String>) -> Result<(), Problem> {
        let (client, own_signal) =
            self.entry(id, |entry| (entry.client, entry.snapshot.configuration.stop_signal.clone()))?;
        if !client {
            return Ok(());
        }
        let signal = signal.or(own_signal);
        match self.ask(id, &HelperRequest::Stop { timeout, signal }) {
            Err(problem) if problem.code != Code::Interrupted => return Err(problem),
            Ok(_) | Err(_) => {}
        }
        self.handle_exit(id);
        Ok(())
    }

    pub(super) fn delete(&self, id: &str, force: bool) -> Result<(), Problem> {
        let state = self.entry(id, |entry| entry.snapshot.status)?;
        match state {
            State::Running if force => {
                self.client(id)?;
                let signal = Some("SIGKILL".to_owned());
                self.ask(id, &HelperRequest::Stop { timeout: 5, signal })?;
            }
            State::Running | State::Stopping => {
                let message = format!("container {id} is {} and can not be deleted", state.word());
                return Err(Problem::new(Code::InvalidState, message));
            }
            State::Stopped | State::Unknown => {}
        }
        let _lock = locked(&self.lock);
        self.clean_up(id)
    }

    pub(super) fn logs(&self, id: &str) -> Result<Vec<OwnedFd>, Problem> {
        let failed =
            |problem: &Problem| Problem::internal(format!("failed to open container logs: {problem}"));
        self.entry(id, |_| ()).map_err(|problem| failed(&problem))?;
        let bundle = self.place.bundle(id);
        ["stdio.log", "vminitd.log"]
            .into_iter()
            .map(|name| {
                File::open(bundle.join(name)).map(OwnedFd::from).map_err(|error| failed(&error.into()))
            })
            .collect()
    }

    pub(super) fn stats(&self, id: &str) -> Result<Stats, Problem> {
        self.client(id)?;
        match self.ask(id, &HelperRequest::Stats)? {
            HelperAnswer::Stats(stats) => Ok(stats),
            other => Err(Problem::internal(format!("unexpected: {other:?}"))),
        }
    }

    fn ask(&self, id: &str, request: &HelperRequest) -> Result<HelperAnswer, Problem> {
        helper::ask(&self.place, id, request, &[])
    }

    fn entry<T>(&self, id: &str, read: impl FnOnce(&Entry) -> T) -> Result<T, Problem> {
        locked(&self.entries)
            .get(id)
            .map(read)
            .ok_or_else(|| Problem::new(Code::NotFound, format!("container with ID {id} not found")))
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = locked(&self.entries).get_mut(id) {
            change(entry);
        }
    }

    /// Errors if the process that keeps a container is not known.
    fn client(&self, id: &str) -> Result<(), Problem> {
        let (client, state) = self.entry(id, |entry| (entry.client, entry.snapshot.status))?;
        if client {
            return Ok(());
        }
        let reason = if state == State::Stopped { ": container is stopped" } else { "" };
        Err(Problem::new(Code::InvalidState, format!("no runtime client exists{reason}")))
    }

    /// What follows a machine's end, for whoever notices it first.
    fn handle_exit(&self, id: &str) {
        let _lock = locked(&self.lock);
        let Ok((state, auto_remove)) = self.entry(id, |entry| (entry.snapshot.status, entry.auto_remove))
        else {
            return;
        };
        if state == State::Stopped {
            return;
        }
        // Whoever asked it for something is answered first.
        drop(self.ask(id, &HelperRequest::Shutdown));
        helper::deregister(&self.place, id);
        self.change(id, |entry| {
            entry.snapshot.status = State::Stopped;
            entry.snapshot.networks = Vec::new();
            entry.client = false;
        });
        if auto_remove {
            // Nobody is there to be told.
            drop(self.clean_up(id));
        }
    }

    fn clean_up(&self, id: &str) -> Result<(), Problem> {
        helper::deregister(&self.place, id);
        locked(&self.entries).remove(id);
        match fs::remove_dir_all(self.place.bundle(id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Entry {
    fn stopped(configuration: Configuration, auto_remove: bool) -> Self {
        let snapshot =
            Snapshot { configuration, status: State::Stopped, networks: Vec::new(), started_date: None };
        Self { snapshot, auto_remove, client: false }
    }
}
