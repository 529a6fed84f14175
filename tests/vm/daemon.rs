//! The daemon's part of a machine's log, in a process of its own that can be
//! killed: records from the guest into the file, the cursor into the store.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use kina_log::{Cursor, DurableLog};
use kina_store::{Record, Store};
use kina_testkit::vm::{GUEST_PORT, Process, VsockConnector};
use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

use crate::pod::CONTAINER;

/// Tells the process where everything is.
const PLACE: &str = "KINA_VM_TEST_PLACE";
/// Tells it when to be killed.
const DEATH: &str = "KINA_VM_TEST_DEATH";
/// The test that is the process.
const ENTRY: &str = "daemon::the_process_that_is_killed";
/// The guest is up when a daemon starts.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
/// How many chunks a daemon that kills itself handles before.
const CHUNKS_BEFORE_DEATH: usize = 3;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Death {
    /// Never by itself: somebody else does it, or the log ends.
    None,
    /// A chunk is in the file, its cursor is not in the store.
    Written,
    /// The cursor is in the store, the guest does not know.
    Recorded,
}

/// Starts a daemon.
pub(crate) fn start(place: &Place, death: Death) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([ENTRY, "--exact", "--ignored", "--nocapture"])
        .env(PLACE, serde_json::to_string(place).unwrap())
        .env(DEATH, serde_json::to_string(&death).unwrap())
        .stdout(Stdio::null());
    Process::start("daemon", &mut command).unwrap()
}

/// How far the log is in the files.
#[derive(Serialize, Deserialize)]
struct LogCursor(Cursor);

impl Record for LogCursor {
    const TABLE: &'static str = "log_cursors";
    const VERSION: u32 = 1;
}

#[test]
#[ignore = "is started by the test of the seam, as a process to be killed"]
fn the_process_that_is_killed() {
    let argument = |name| std::env::var(name).expect("started by the test of the seam");
    let place: Place = serde_json::from_str(&argument(PLACE)).unwrap();
    let death: Death = serde_json::from_str(&argument(DEATH)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(&place, death));
}

async fn run(place: &Place, death: Death) {
    let store = Store::open(&place.store).unwrap();
    let cursors = store.table::<LogCursor>();
    let mut log = match cursors.get(CONTAINER).unwrap() {
        None => DurableLog::create(&place.log).unwrap(),
        Some(LogCursor(cursor)) => {
            let (log, recovery) = DurableLog::recover(&place.log, &cursor).unwrap();
            note(&place.recoveries, &format!("{recovery:?}\n"));
            log
        }
    };
    let cursor = log.cursor();
    cursors.put(CONTAINER, &LogCursor(cursor)).await.unwrap();
    let offset = log.recorded(&cursor);

    let connector = Arc::new(VsockConnector::new(&place.socket, GUEST_PORT));
    let guest = kina_guest_api::connect(connector, CONNECT_PATIENCE).await.unwrap();
    // Only now: the log is there. Runs already after the first daemon.
    guest
        .start_container(kina_guest_api::v1::StartContainerRequest { id: CONTAINER.to_owned() })
        .await
        .unwrap();
    let mut reader = guest.read_log(CONTAINER, offset).await.unwrap();
    let mut chunks = 0;
    while let Some(chunk) = reader.next().await.unwrap() {
        let dies = |when| death == when && chunks >= CHUNKS_BEFORE_DEATH;
        let cursor = log.write(chunk.offset, &chunk.records).unwrap();
        if dies(Death::Written) {
            die();
        }
        cursors.put(CONTAINER, &LogCursor(cursor)).await.unwrap();
        if dies(Death::Recorded) {
            die();
        }
        let safe = log.recorded(&cursor);
        reader.acknowledger().acknowledge(safe).await.unwrap();
        chunks += 1;
    }
}

fn note(path: &Path, line: &str) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

/// `kill -9`, as far as the process can tell.
fn die() -> ! {
    kill_process(getpid(), Signal::KILL).unwrap();
    unreachable!("killed");
}
