//! The daemon's part of a machine's log, in a process of its own that can be
//! killed: records from the guest into the file, the cursor into the store.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kina::pod::logs::{ContainerLog, LogSource};
use kina_store::Store;
use kina_testkit::vm::{GUEST_PORT, Process, VsockConnector};
use serde::{Deserialize, Serialize};

use crate::pod::CONTAINER;

/// Tells the process where everything is.
const PLACE: &str = "KINA_VM_TEST_PLACE";
/// The test that is the process.
const ENTRY: &str = "daemon::the_process_that_is_killed";
/// The guest is up when a daemon starts.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
/// How long the log may go on.
const LOG_PATIENCE: Duration = Duration::from_secs(120);

/// Where a daemon works.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The vsock device's socket.
    pub(crate) socket: PathBuf,
    pub(crate) store: PathBuf,
    pub(crate) log: PathBuf,
    /// One line for each daemon that found a log: how it went on.
    pub(crate) recoveries: PathBuf,
}

/// When a daemon is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// Never by itself: somebody else does it, or the log ends.
    None,
    /// A chunk is in the file, its cursor is not in the store.
    Written,
    /// The cursor is in the store, the guest does not know.
    Recorded,
}

impl Death {
    /// The failpoint that does it, once some of the log is through.
    fn failpoint(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Written => Some("after:log-write#3"),
            Self::Recorded => Some("before:log-acknowledge#3"),
        }
    }
}

/// Starts a daemon.
pub(crate) fn start(place: &Place, death: Death) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([ENTRY, "--exact", "--ignored", "--nocapture"])
        .env(PLACE, serde_json::to_string(place).unwrap())
        .stdout(Stdio::null());
    if let Some(failpoint) = death.failpoint() {
        command.env("KINA_FAILPOINT", failpoint);
    }
    Process::start("daemon", &mut command).unwrap()
}

#[test]
#[ignore = "is started by the test of the seam, as a process to be killed"]
fn the_process_that_is_killed() {
    let place = std::env::var(PLACE).expect("started by the test of the seam");
    let place: Place = serde_json::from_str(&place).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(&place));
}

async fn run(place: &Place) {
    let store = Store::open(&place.store).unwrap();
    let connector = Arc::new(VsockConnector::new(&place.socket, GUEST_PORT));
    let guest = kina_guest_api::connect(connector, CONNECT_PATIENCE).await.unwrap();
    let source = LogSource {
        store,
        guest: guest.clone(),
        container: CONTAINER.to_owned(),
        path: place.log.clone(),
        metrics: Default::default(),
    };
    let (log, recovery) = ContainerLog::begin(source).await.unwrap();
    if let Some(recovery) = recovery {
        note(&place.recoveries, &format!("{recovery:?}\n"));
    }
    // Only now: the log is there. Runs already after the first daemon.
    guest
        .start_container(kina_guest_api::v1::StartContainerRequest { id: CONTAINER.to_owned() })
        .await
        .unwrap();
    assert!(log.over(LOG_PATIENCE).await, "the log does not end");
}

fn note(path: &Path, line: &str) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}
