//! The processes that keep containers, as launchd's jobs.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;

use crate::error::{Code, Problem};
use crate::place::Place;
use crate::process;
use crate::protocol::{HelperAnswer, HelperRequest};
use crate::runtime::clear;
use crate::wire;

/// How long a process may take to be there.
const START: Duration = Duration::from_secs(10);

/// Starts the process that keeps a container. One that is there already is left as it is.
pub(super) fn register(place: &Place, id: &str) -> Result<(), Problem> {
    let bundle = place.bundle(id);
    let record = bundle.join("helper.pid");
    if process::recorded(&record).is_some() {
        return Ok(());
    }
    drop(fs::remove_file(bundle.join("helper.sock")));
    let root = place.root.to_string_lossy().into_owned();
    let mut child = process::spawn(&["__runtime", root.as_str(), id], &bundle.join("helper.log"), &record)?;
    std::thread::spawn(move || child.wait());
    if process::wait_until(START, || wire::connect(&bundle.join("helper.sock")).is_ok()) {
        return Ok(());
    }
    let log = fs::read_to_string(bundle.join("helper.log")).unwrap_or_default();
    Err(Problem::internal(format!("the runtime of {id} does not answer: {}", log.trim())))
}

/// Ends the process that keeps a container, and with it the machine.
pub(crate) fn deregister(place: &Place, id: &str) {
    let bundle = place.bundle(id);
    process::end(&bundle.join("helper.pid"), Signal::TERM);
    process::await_end(&bundle.join("guard.pid"));
    // The guard has done it, unless it was killed too.
    drop(clear(&place.group(id)));
    for name in ["helper.pid", "helper.sock", "guard.pid"] {
        drop(fs::remove_file(bundle.join(name)));
    }
}

/// Connects to the process that keeps a container.
pub(super) fn connect(place: &Place, id: &str) -> Result<UnixStream, Problem> {
    wire::connect(&place.bundle(id).join("helper.sock")).map_err(|_| interrupted())
}

/// Asks it for something.
pub(crate) fn ask(
    place: &Place,
    id: &str,
    request: &HelperRequest,
    descriptors: &[OwnedFd],
) -> Result<HelperAnswer, Problem> {
    let stream = connect(place, id)?;
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    wire::send(&stream, request, &descriptors).map_err(|_| interrupted())?;
    match wire::receive(&stream).map_err(|_| interrupted())? {
        Some((HelperAnswer::Failed(problem), _)) => Err(problem.flattened()),
        Some((answer, _)) => Ok(answer),
        None => Err(interrupted()),
    }
}

fn interrupted() -> Problem {
    Problem::new(Code::Interrupted, "XPC connection error: Connection interrupted")
}
