//! Group commit: order, isolation of failures, what survives a kill.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll, Waker};

use kina_store::{Batch, Error, Record, Store};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Number(u64);

impl Record for Number {
    const TABLE: &'static str = "number";
    const VERSION: u32 = 1;
}

/// Written together with the [`Number`] of the same key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Twin(u64);

impl Record for Twin {
    const TABLE: &'static str = "twin";
    const VERSION: u32 = 1;
}

fn number(key: &str, value: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put(key, &Number(value)).unwrap();
    batch
}

/// Polls once and drops; as a caller does that is cancelled.
fn poll_once<T>(future: impl Future<Output = T>) -> Poll<T> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn dropped_commits_are_written_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("state.redb")).unwrap();
    // Fewer than the queue holds, so each is queued by its one poll.
    for value in 0..200 {
        let _ = poll_once(store.commit(number("same", value)));
        let _ = poll_once(store.commit(number(&format!("{value}"), value)));
        if value % 50 == 49 {
            store.commit(number("barrier", value)).await.unwrap();
            let last = store.table::<Number>().get("same").unwrap();
            assert_eq!(last, Some(Number(value)));
        }
    }
    assert_eq!(store.table::<Number>().list().unwrap().len(), 202);
}

#[tokio::test]
async fn a_failed_batch_fails_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("state.redb")).unwrap();
    store.commit(number("taken", 0)).await.unwrap();
    let commits = (0..100u64).map(|value| {
        let mut batch = number(&format!("{value}"), value);
        if value % 10 == 0 {
            batch.put_new("taken", &Number(value)).unwrap();
        }
        let store = store.clone();
        tokio::spawn(async move { store.commit(batch).await })
    });
    for (value, commit) in commits.collect::<Vec<_>>().into_iter().enumerate() {
        let outcome = commit.await.unwrap();
        let written = store.table::<Number>().get(&format!("{value}")).unwrap();
        if value % 10 == 0 {
            assert!(matches!(outcome, Err(Error::Exists { .. })));
            assert_eq!(written, None);
        } else {
            outcome.unwrap();
            assert_eq!(written, Some(Number(value as u64)));
        }
    }
    assert_eq!(store.table::<Number>().get("taken").unwrap(), Some(Number(0)));
}

#[tokio::test]
async fn one_of_many_new_records_wins() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("state.redb")).unwrap();
    let tries: Vec<_> = (0..50)
        .map(|value| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut batch = Batch::new();
                batch.put_new("name", &Number(value)).unwrap();
                store.commit(batch).await.is_ok().then_some(value)
            })
        })
        .collect();
    let mut winners = Vec::new();
    for one in tries {
        winners.extend(one.await.unwrap());
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(store.table::<Number>().get("name").unwrap(), Some(Number(winners[0])));
}

#[test]
fn more_callers_than_the_queue_holds() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("state.redb")).unwrap();
    std::thread::scope(|scope| {
        for caller in 0..8u64 {
            let store = &store;
            scope.spawn(move || {
                for value in 0..100 {
                    store.commit_blocking(number(&format!("{caller}"), value)).unwrap();
                    let read = store.table::<Number>().get(&format!("{caller}")).unwrap();
                    assert_eq!(read, Some(Number(value)));
                }
            });
        }
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut commits = tokio::task::JoinSet::new();
        for value in 0..2000 {
            let store = store.clone();
            commits.spawn(async move { store.commit(number(&format!("many {value}"), value)).await });
        }
        while let Some(outcome) = commits.join_next().await {
            outcome.unwrap().unwrap();
        }
    });
    drop(runtime);
    assert_eq!(store.table::<Number>().list().unwrap().len(), 2008);
}

const CHILD_STORE: &str = "KINA_STORE_TEST_CHILD";
const CHILD_ROUND: &str = "KINA_STORE_TEST_ROUND";

/// Not a test by itself: the process that [`nothing_acknowledged_is_lost`]
/// kills. Commits from four tasks and names each acknowledged key.
#[test]
fn child_that_commits_until_killed() {
    let Some(path) = std::env::var_os(CHILD_STORE) else {
        return;
    };
    let round = std::env::var(CHILD_ROUND).unwrap();
    let store = Store::open(path).unwrap();
    std::thread::scope(|scope| {
        for task in 0..4 {
            let (store, round) = (&store, &round);
            scope.spawn(move || {
                for count in 0.. {
                    let key = format!("{round}-{task}-{count}");
                    let mut batch = number(&key, count);
                    batch.put(&key, &Twin(count)).unwrap();
                    batch.put(&format!("{round}-{task}"), &Number(count)).unwrap();
                    store.commit_blocking(batch).unwrap();
                    let line = format!("\nacknowledged {key}\n");
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                }
            });
        }
    });
}

/// Kills its process when dropped, also by a failing assertion.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let mut acknowledged = Vec::new();
    for round in 0..50u64 {
        let mut child = Killed(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_that_commits_until_killed", "--nocapture"])
                .env(CHILD_STORE, &path)
                .env(CHILD_ROUND, round.to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let mut wanted = round * 31 % 47 + 1;
        // Takes up to `wanted` keys, kills, and takes those that were
        // acknowledged meanwhile.
        for line in lines {
            if let Some(key) = line.unwrap().strip_prefix("acknowledged ") {
                acknowledged.push(key.to_owned());
                wanted = wanted.saturating_sub(1);
                if wanted == 0 {
                    child.0.kill().unwrap();
                }
            }
        }
        let status = child.0.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "round {round}: {status}");

        let store = Store::open(&path).unwrap();
        let numbers: HashMap<_, _> = store.table::<Number>().list().unwrap().into_iter().collect();
        let twins: HashMap<_, _> = store.table::<Twin>().list().unwrap().into_iter().collect();
        for key in &acknowledged {
            let count: u64 = key.rsplit('-').next().unwrap().parse().unwrap();
            assert_eq!(numbers.get(key), Some(&Number(count)), "round {round}");
            let last = &numbers[key.rsplit_once('-').unwrap().0];
            assert!(last.0 >= count, "round {round}: {key}");
        }
        // A batch is there whole or not at all.
        for (key, Number(value)) in &numbers {
            if key.matches('-').count() == 2 {
                assert_eq!(twins.get(key), Some(&Twin(*value)), "round {round}: {key}");
            }
        }
        for key in twins.keys() {
            assert!(numbers.contains_key(key), "round {round}: {key}");
        }
    }
}

/// A small file system of its own; unmounted when dropped.
#[cfg(target_os = "linux")]
struct SmallDisk(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl SmallDisk {
    fn new(options: &std::ffi::CStr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        rustix::mount::mount("tmpfs", directory.path(), "tmpfs", rustix::mount::MountFlags::empty(), options)
            .unwrap();
        Self(directory)
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_fails_batches_but_not_the_store() {
    let disk = SmallDisk::new(c"size=8m,mode=700");
    let store = Store::open(disk.0.path().join("state.redb")).unwrap();
    store.commit_blocking(number("before", 1)).unwrap();
    let filler = disk.0.path().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);

    let mut written = 0;
    let error = loop {
        let mut batch = Batch::new();
        let big: Vec<Number> = (0..100_000).map(Number).collect();
        batch.put(&format!("big {written}"), &Many(big)).unwrap();
        match store.commit_blocking(batch) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "the disk never filled up");
    };
    assert!(matches!(error, Error::Write { .. }), "{error:?}");
    std::fs::remove_file(&filler).unwrap();

    store.commit_blocking(number("after", 2)).unwrap();
    let numbers = store.table::<Number>();
    assert_eq!(numbers.get("before").unwrap(), Some(Number(1)));
    assert_eq!(numbers.get("after").unwrap(), Some(Number(2)));
    assert_eq!(store.table::<Many>().list().unwrap().len(), written);
}

#[cfg(target_os = "linux")]
#[derive(Debug, Serialize, Deserialize)]
struct Many(Vec<Number>);

#[cfg(target_os = "linux")]
impl Record for Many {
    const TABLE: &'static str = "many";
    const VERSION: u32 = 1;
}
