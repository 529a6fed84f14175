//! The daemon's part of a log, in a process of its own that is killed wherever
//! it can be, while the container goes on printing and the kubelet rotates.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use kina::pod::logs::{ContainerLog, LogSource};
use kina_guest_api::{Connect, GuestStream, v1};
use kina_model::PodId;
use kina_store::Store;
use kina_testkit::fake_guest::FakeGuests;
use tokio::net::{UnixListener, UnixStream};

/// Tells the process where everything is.
const PLACE: &str = "KINA_LOG_TEST_PLACE";
/// Tells it to follow a rotation.
const REOPEN: &str = "KINA_LOG_TEST_REOPEN";
/// The test that is the process.
const ENTRY: &str = "logs_killed::the_process_that_is_killed";
const CONTAINER: &str = "c";
const PATIENCE: Duration = Duration::from_secs(30);

struct Unix(PathBuf);

#[async_trait]
impl Connect for Unix {
    async fn connect(&self) -> std::io::Result<Box<dyn GuestStream>> {
        Ok(Box::new(UnixStream::connect(&self.0).await?))
    }
}

#[test]
#[ignore = "is started by the test below, as a process to be killed"]
fn the_process_that_is_killed() {
    let place = PathBuf::from(std::env::var_os(PLACE).expect("started by the test below"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let guest = kina_guest_api::connect(Arc::new(Unix(place.join("guest"))), PATIENCE).await.unwrap();
        let store = Store::open(place.join("store")).unwrap();
        let source = LogSource {
            store,
            guest,
            container: CONTAINER.to_owned(),
            path: log(&place),
            metrics: Default::default(),
        };
        let (log, _) = ContainerLog::begin(source).await.unwrap();
        if std::env::var_os(REOPEN).is_some() {
            log.reopen().await.unwrap();
        }
        assert!(log.over(PATIENCE).await, "the log does not end");
    });
}

fn log(place: &Path) -> PathBuf {
    place.join("0.log")
}

async fn daemon(place: &Path, failpoint: Option<&str>, reopens: bool) -> std::process::ExitStatus {
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command
        .args([ENTRY, "--exact", "--ignored", "--nocapture"])
        .env(PLACE, place)
        .stdout(Stdio::null())
        .kill_on_drop(true);
    if let Some(failpoint) = failpoint {
        command.env("KINA_FAILPOINT", failpoint);
    }
    if reopens {
        command.env(REOPEN, "1");
    }
    tokio::time::timeout(PATIENCE, command.status()).await.expect("it ends").unwrap()
}

fn record(number: usize) -> String {
    format!("2026-11-24T12:00:00.000000001Z stdout F line {number}\n")
}

/// Prints until told to stop; returns how many lines.
async fn print(guests: FakeGuests, pod: PodId, stop: Arc<AtomicBool>) -> usize {
    let mut printed = 0;
    while !stop.load(Ordering::Relaxed) {
        guests.print(&pod, CONTAINER, record(printed).as_bytes()).await;
        printed += 1;
        tokio::task::yield_now().await;
    }
    printed
}

#[tokio::test]
async fn every_line_once() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let (guests, pod) = (FakeGuests::default(), PodId::random());
    let listener = UnixListener::bind(place.join("guest")).unwrap();
    let (accepting, of) = (guests.clone(), pod.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            accepting.accept(of.clone(), stream);
        }
    });
    let connector = Arc::new(Unix(place.join("guest")));
    let guest = kina_guest_api::connect(connector, PATIENCE).await.unwrap();
    let target = Some(v1::log_target::Target::Stream(v1::Empty {}));
    let request = v1::CreateContainerRequest {
        id: CONTAINER.to_owned(),
        log: Some(v1::LogTarget { target }),
        ..v1::CreateContainerRequest::default()
    };
    guest.create_container(request).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let printing = tokio::spawn(print(guests.clone(), pod.clone(), Arc::clone(&stop)));

    let mut files = Vec::new();
    let rotate = |files: &mut Vec<PathBuf>| {
        let rotated = place.join(format!("0.log.{}", files.len()));
        // There is none before the first daemon has come so far.
        if std::fs::rename(log(place), &rotated).is_ok() {
            files.push(rotated);
        }
    };
    for time in 1..=2 {
        for when in ["before", "after"] {
            for name in ["log-open", "log-record", "log-write", "log-acknowledge", "log-reopen"] {
                let time = if matches!(name, "log-open" | "log-reopen") { 1 } else { time };
                let failpoint = format!("{when}:{name}#{time}");
                for reopens in [true, false] {
                    if reopens {
                        rotate(&mut files);
                    } else if name == "log-reopen" {
                        continue;
                    }
                    let status = daemon(place, Some(&failpoint), reopens).await;
                    assert_eq!(status.signal(), Some(9), "{failpoint}: {status}");
                }
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    let ending = async {
        let printed = printing.await.unwrap();
        guests.exit(&pod, CONTAINER, 0, false);
        printed
    };
    let (status, printed) = tokio::join!(daemon(place, None, false), ending);
    assert!(status.success(), "{status}");
    files.push(log(place));
    let text: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    for (number, line) in text.lines().enumerate() {
        assert_eq!(line, record(number).trim_end());
    }
    assert_eq!(text.lines().count(), printed);
    assert!(printed > 1_000, "{printed}");
}
