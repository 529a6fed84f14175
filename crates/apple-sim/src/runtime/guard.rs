//! Clears away what a helper leaves in its machine's control group, however it ended.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use kina_cgroup::Hierarchy;

use crate::error::Problem;
use crate::place::Place;
use crate::process;

/// How long processes may take to be gone once they are killed.
const GONE: Duration = Duration::from_secs(10);

/// Starts this helper's guard. It waits for the other end of its standard input to be closed,
/// which nothing but the helper's end does.
pub(super) fn start(place: &Place, id: &str) -> Result<(), Problem> {
    let bundle = place.bundle(id);
    let mut child = Command::new("/proc/self/exe")
        .arg0("container")
        .args(["__guard", &place.group(id)])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    // Kept open until this process ends.
    std::mem::forget(child.stdin.take());
    process::write_record(&bundle.join("guard.pid"), child.id())?;
    std::thread::spawn(move || child.wait());
    Ok(())
}

/// The guard itself.
pub(crate) fn run(group: &str) -> ExitCode {
    // Nothing is ever written: this returns at the helper's end.
    let mut nothing = [0];
    while matches!(io::stdin().read(&mut nothing), Ok(1..)) {}
    match clear(group) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "guard: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Kills everything in a machine's control group, and removes the group.
pub(crate) fn clear(group: &str) -> Result<(), kina_cgroup::Error> {
    let group = Hierarchy::detect()?.group(group)?;
    if group.exists() {
        group.kill_all(GONE)?;
        group.delete(GONE)?;
    }
    Ok(())
}
