//! The daemon is killed and the file rotated between any two steps; each
//! record must end up in the files once, in order.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kina_log::{Cursor, DurableLog, Encoder, Error, RecordBuffer, Recovery, Stream, Timestamp};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// Records with one line each, numbered from `from`.
fn lines(from: usize, count: usize) -> Vec<u8> {
    let mut encoder = Encoder::new(Stream::Stdout);
    let mut records = Vec::new();
    for number in from..from + count {
        let line = format!("line {number}\n");
        encoder.encode(Timestamp::from_unix(number as u64, 0), line.as_bytes(), &mut records, usize::MAX);
    }
    records
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The container writes lines.
    Output(usize),
    /// The daemon writes the next chunk, if it may.
    Write,
    /// ... records the cursor, ...
    Record,
    /// ... acknowledges.
    Acknowledge,
    /// Kubelet renames the log file ...
    Rename,
    /// ... and asks to reopen it; answered when the cursor is recorded.
    Reopen,
    /// Kubelet's request did not get through: it renames the file back.
    RenameBack,
    /// The daemon dies and a new one recovers. Of the next chunk it had already
    /// written so many bytes. A request of kubelet fails by that, and it renames
    /// the file back, unless it died as well.
    Kill { partial: usize, kubelet_too: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..5usize).prop_map(Step::Output),
        6 => Just(Step::Write),
        6 => Just(Step::Record),
        4 => Just(Step::Acknowledge),
        1 => Just(Step::Rename),
        1 => Just(Step::Reopen),
        1 => Just(Step::RenameBack),
        3 => (0..200usize, any::<bool>())
            .prop_map(|(partial, kubelet_too)| Step::Kill { partial, kubelet_too }),
    ]
}

/// Where kubelet is in a rotation.
#[derive(Debug)]
enum Kubelet {
    Idle,
    /// Has renamed the file to this.
    Renamed(PathBuf),
    /// Waits for the answer to its request, having renamed the file or not.
    Waiting(Option<PathBuf>),
}

/// A guest, a daemon, its store and kubelet.
struct World {
    runtime: Runtime,
    directory: TempDir,
    guest: RecordBuffer,
    lines: usize,
    daemon: DurableLog,
    /// The cursor in the daemon's store.
    stored: Option<Cursor>,
    /// What the daemon may acknowledge.
    safe: u64,
    kubelet: Kubelet,
    rotations: usize,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let daemon = DurableLog::create(directory.path().join("0.log")).unwrap();
        Self {
            runtime: Builder::new_current_thread().build().unwrap(),
            directory,
            guest: RecordBuffer::new(1),
            lines: 0,
            daemon,
            stored: None,
            safe: 0,
            kubelet: Kubelet::Idle,
            rotations: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("0.log")
    }

    fn output(&mut self, count: usize) {
        let records = lines(self.lines, count);
        let taken = self.guest.try_append(&records).unwrap();
        assert!(taken == records.len() || taken == 0 || records[taken - 1] == b'\n');
        self.lines += records[..taken].iter().filter(|byte| **byte == b'\n').count();
    }

    /// What the guest has behind the daemon's file, at most two records' worth
    /// of it, so that there are many chunks.
    fn chunk(&self) -> Option<Vec<u8>> {
        let offset = self.daemon.next_offset();
        if self.guest.end() == offset {
            return None;
        }
        let chunk = self.runtime.block_on(self.guest.next(offset, 1)).unwrap().unwrap();
        let end = chunk.bytes.iter().position(|byte| *byte == b'\n').unwrap();
        Some(chunk.bytes[..=end].to_vec())
    }

    fn write(&mut self) {
        let offset = self.daemon.next_offset();
        let Some(chunk) = self.chunk() else { return };
        match self.daemon.write(offset, &chunk) {
            Ok(_) => {}
            Err(Error::Unrecorded { .. }) => assert!(!self.daemon.is_recorded()),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn record(&mut self) {
        let cursor = self.daemon.cursor();
        self.stored = Some(cursor);
        self.safe = self.daemon.recorded(&cursor);
        if matches!(self.kubelet, Kubelet::Waiting(_)) {
            self.kubelet = Kubelet::Idle;
        }
    }

    /// The file that the daemon has open.
    fn open_file(&self) -> PathBuf {
        let inode = self.daemon.cursor().inode;
        fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .find(|entry| entry.metadata().unwrap().ino() == inode)
            .unwrap()
            .path()
    }

    fn kill(&mut self, partial: usize, kubelet_too: bool) {
        // A write that the kill cut short. Only a daemon that may write does.
        if self.daemon.is_recorded()
            && let Some(chunk) = self.chunk()
        {
            let mut file = OpenOptions::new().append(true).open(self.open_file()).unwrap();
            file.write_all(&chunk[..partial.min(chunk.len())]).unwrap();
        }
        if kubelet_too {
            self.kubelet = Kubelet::Idle;
        } else if let Kubelet::Waiting(renamed) = &mut self.kubelet {
            if let Some(renamed) = renamed {
                fs::rename(renamed, self.directory.path().join("0.log")).unwrap();
            }
            self.kubelet = Kubelet::Idle;
        }
        self.recover();
    }

    fn recover(&mut self) {
        let Some(stored) = self.stored else {
            // Never recorded: nothing was written either.
            self.daemon = DurableLog::create(self.path()).unwrap();
            return;
        };
        let (daemon, recovery) = DurableLog::recover(self.path(), &stored).unwrap();
        assert!(matches!(recovery, Recovery::InPlace { .. } | Recovery::Rotated { .. }), "{recovery:?}");
        assert_eq!(daemon.next_offset(), stored.offset);
        self.daemon = daemon;
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Output(count) => self.output(count),
            Step::Write => self.write(),
            Step::Record => self.record(),
            Step::Acknowledge => self.guest.acknowledge(self.safe).unwrap(),
            Step::Rename => {
                // Kubelet rotates logs of started containers, and again only
                // after the last rotation ended.
                let may = self.stored.is_some() && matches!(self.kubelet, Kubelet::Idle);
                if may && self.path().exists() {
                    let name = format!("0.log.{:06}", self.rotations);
                    let rotated = self.directory.path().join(name);
                    self.rotations += 1;
                    fs::rename(self.path(), &rotated).unwrap();
                    self.kubelet = Kubelet::Renamed(rotated);
                }
            }
            Step::Reopen => {
                let renamed = match std::mem::replace(&mut self.kubelet, Kubelet::Idle) {
                    Kubelet::Idle => None,
                    Kubelet::Renamed(path) => Some(path),
                    Kubelet::Waiting(path) => path,
                };
                self.daemon.reopen().unwrap();
                self.kubelet = Kubelet::Waiting(renamed);
            }
            Step::RenameBack => {
                if let Kubelet::Renamed(rotated) = &self.kubelet {
                    fs::rename(rotated, self.path()).unwrap();
                    self.kubelet = Kubelet::Idle;
                }
            }
            Step::Kill { partial, kubelet_too } => self.kill(partial, kubelet_too),
        }
    }

    /// Lets the daemon catch up, and compares the files with the output.
    fn check(&mut self) {
        while self.guest.start() < self.guest.end() {
            self.record();
            self.write();
            self.record();
            self.guest.acknowledge(self.safe).unwrap();
        }
        let mut files: Vec<PathBuf> =
            fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        // The rotated ones by age, then the present one.
        files.sort_by_key(|path| (path.extension().unwrap() == "log", path.clone()));
        let mut all = Vec::new();
        for file in files {
            let content = fs::read(file).unwrap();
            kina_log::format::validate(&content).unwrap();
            all.extend(content);
        }
        let (all, expected) =
            (String::from_utf8(all).unwrap(), String::from_utf8(lines(0, self.lines)).unwrap());
        assert_eq!(all, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn every_record_once(steps in proptest::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
        }
        world.check();
    }
}

/// All ways to kill the daemon after each step of a rotation under load.
#[test]
fn a_kill_after_each_step_of_a_rotation() {
    use Step::{Acknowledge, Output, Record, Rename, Reopen, Write};
    let steps = [
        Record,
        Output(3),
        Write,
        Record,
        Acknowledge,
        Write,
        Rename,
        Record,
        Write,
        Record,
        Reopen,
        Record,
        Acknowledge,
        Output(2),
        Write,
        Record,
        Acknowledge,
    ];
    for killed_after in 0..=steps.len() {
        for (partial, kubelet_too) in
            [0, 1, 45, 1000].into_iter().flat_map(|partial| [(partial, false), (partial, true)])
        {
            let mut world = World::new();
            for step in &steps[..killed_after] {
                world.run(*step);
            }
            world.run(Step::Kill { partial, kubelet_too });
            for step in &steps[killed_after..] {
                world.run(*step);
            }
            world.check();
        }
    }
}

fn recorded(path: &Path) -> (DurableLog, Cursor) {
    let mut log = DurableLog::create(path).unwrap();
    log.recorded(&log.cursor());
    let cursor = log.write(0, &lines(0, 2)).unwrap();
    log.recorded(&cursor);
    (log, cursor)
}

#[test]
fn a_log_refuses_what_would_lose_or_double() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, cursor) = recorded(&directory.path().join("0.log"));
    assert!(matches!(
        log.write(0, &lines(0, 1)),
        Err(Error::Gap { expected, got: 0 }) if expected == cursor.offset
    ));
    let mut torn = lines(2, 1);
    torn.pop();
    assert!(matches!(log.write(cursor.offset, &torn), Err(Error::Malformed { at: 0, .. })));
    assert!(log.is_recorded());
    log.write(cursor.offset, &lines(2, 1)).unwrap();
    assert!(matches!(log.write(log.next_offset(), &lines(3, 1)), Err(Error::Unrecorded { .. })));
}

#[test]
fn recovery_says_what_it_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let (log, cursor) = recorded(&path);
    drop(log);
    let recover = || DurableLog::recover(&path, &cursor).unwrap();
    let append = |path: &Path, bytes: &[u8]| {
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(bytes).unwrap();
    };

    append(&path, b"torn");
    assert_eq!(recover().1, Recovery::InPlace { cut: 4 });

    // Renamed, and nothing in its place: goes on in the renamed file.
    let rotated = directory.path().join("0.log.20261124-120000");
    fs::rename(&path, &rotated).unwrap();
    fs::write(directory.path().join("0.log.20261123-120000.gz"), "other").unwrap();
    append(&rotated, b"torn!");
    let (log, recovery) = recover();
    let expected = |cut, continues_in_new_file| Recovery::Rotated {
        rotated: rotated.clone(),
        cut,
        continues_in_new_file,
    };
    assert_eq!(recovery, expected(5, false));
    assert_eq!(log.cursor(), cursor);
    assert!(!path.exists());

    // A new file is there.
    fs::write(&path, "").unwrap();
    let (log, recovery) = recover();
    assert_eq!(recovery, expected(0, true));
    assert_eq!(log.cursor().length, 0);
    assert_ne!(log.cursor().inode, cursor.inode);

    // Truncated by somebody, within a record.
    fs::rename(&rotated, &path).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(cursor.length - 3).unwrap();
    let (log, recovery) = recover();
    assert_eq!(recovery, Recovery::Shorter { missing: 3 });
    assert_eq!(log.cursor().length, cursor.length / 2);
    assert_eq!(log.next_offset(), cursor.offset);

    // The file is still open here, so its inode is not given to the new one.
    fs::remove_file(&path).unwrap();
    let (new, recovery) = recover();
    assert_eq!(recovery, Recovery::Gone);
    assert_eq!(new.next_offset(), cursor.offset);
    drop(log);
}
