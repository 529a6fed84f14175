//! The process that keeps one container: its machine, its processes, its relays and its logs.
//!
//! It is Apple's runtime helper: it lives until its machine is stopped, and a server that ends
//! does not end it. Its own end is that of its machine; a guard, which waits for that, clears away
//! what is left in the control group.

mod carry;
mod datagrams;
mod guard;
mod inside;
mod machine;
#[cfg(feature = "microvm")]
mod microvm;
mod ports;
mod relay;
mod seam;
mod spec;
mod streams;

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::Problem;
use crate::place::Place;
use crate::protocol::{Bundle, HelperAnswer, HelperRequest};
use crate::settings::Kind;
use crate::wire;
use machine::{Ground, Machine};
#[cfg(feature = "microvm")]
use microvm::Microvm;

pub(crate) use guard::{clear, run as guard};
pub(crate) use inside::run as inside;

/// How long a shutdown waits for what was asked before.
const DRAIN: Duration = Duration::from_secs(5);

/// The process itself.
pub(crate) fn run(root: &Path, id: &str) -> ExitCode {
    match serve(&Place::new(root), id) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            drop(writeln!(io::stderr(), "runtime: {problem}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(place: &Place, id: &str) -> Result<(), Problem> {
    let bundle = place.bundle(id);
    let content: Bundle = serde_json::from_slice(&fs::read(bundle.join("bundle.json"))?)?;
    let machine = Arc::new(Kept::new(place, content)?);
    guard::start(place, id)?;
    let unanswered = Arc::new(Unanswered::default());
    let listener = wire::listen(&bundle.join("helper.sock"))?;
    for stream in listener.incoming() {
        let (stream, machine, unanswered) = (stream?, Arc::clone(&machine), Arc::clone(&unanswered));
        std::thread::spawn(move || talk(&stream, &machine, &unanswered));
    }
    Ok(())
}

/// What is kept.
enum Kept {
    Machine(Arc<Machine>),
    #[cfg(feature = "microvm")]
    Microvm(Arc<Microvm>),
}

impl Kept {
    /// To be called with one thread.
    fn new(place: &Place, bundle: Bundle) -> Result<Self, Problem> {
        match bundle.kind {
            Kind::Namespaces => Ok(Self::Machine(Arc::new(Machine::new(place, bundle, Ground::HostKernel)?))),
            #[cfg(feature = "microvm")]
            Kind::Microvm => Ok(Self::Microvm(Arc::new(Microvm::new(place, bundle)?))),
            #[cfg(not(feature = "microvm"))]
            Kind::Microvm => Err(Problem::internal("this program boots no machines")),
        }
    }

    fn handle(&self, request: HelperRequest, descriptors: Vec<OwnedFd>) -> Result<HelperAnswer, Problem> {
        match self {
            Self::Machine(machine) => handle(machine, request, descriptors),
            #[cfg(feature = "microvm")]
            Self::Microvm(machine) => machine.handle(request, descriptors),
        }
    }

    fn await_stopped(&self) {
        match self {
            Self::Machine(machine) => machine.await_stopped(),
            #[cfg(feature = "microvm")]
            Self::Microvm(machine) => machine.await_stopped(),
        }
    }
}

/// How many requests have no answer yet.
#[derive(Default)]
struct Unanswered {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Unanswered {
    fn change(&self, change: impl FnOnce(usize) -> usize) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = change(*count);
        self.changed.notify_all();
    }

    /// Waits until there are no more than some: the caller's own.
    fn await_left(&self, left: usize) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(count, DRAIN, |count| *count > left));
    }
}

fn talk(stream: &UnixStream, machine: &Kept, unanswered: &Unanswered) {
    while let Ok(Some((request, descriptors))) = wire::receive(stream) {
        unanswered.change(|count| count + 1);
        let answer = if matches!(request, HelperRequest::Shutdown) {
            machine.await_stopped();
            unanswered.await_left(1);
            HelperAnswer::Done
        } else {
            machine.handle(request, descriptors).unwrap_or_else(HelperAnswer::Failed)
        };
        let sent = wire::send(stream, &answer, &[]);
        unanswered.change(|count| count - 1);
        if sent.is_err() {
            return;
        }
    }
}

fn handle(
    machine: &Arc<Machine>,
    request: HelperRequest,
    descriptors: Vec<OwnedFd>,
) -> Result<HelperAnswer, Problem> {
    match request {
        HelperRequest::Bootstrap { stdin } => {
            machine.bootstrap(streams::Given::new(stdin, descriptors))?;
        }
        HelperRequest::Start { process } => machine.start(&process)?,
        HelperRequest::Create { process, configuration, stdin } => {
            machine.create_process(&process, configuration, streams::Given::new(stdin, descriptors))?;
        }
        HelperRequest::Wait { process } => return Ok(HelperAnswer::Exit(machine.wait(&process))),
        HelperRequest::Kill { process, signal } => machine.kill(&process, &signal)?,
        HelperRequest::Stop { timeout, signal } => machine.stop(timeout, signal.as_deref())?,
        HelperRequest::State => {
            let (state, networks, pid) = machine.state();
            return Ok(HelperAnswer::State { state, networks, pid });
        }
        HelperRequest::Shutdown => {}
        HelperRequest::Stats => return Ok(HelperAnswer::Stats(machine.stats()?)),
    }
    Ok(HelperAnswer::Done)
}
