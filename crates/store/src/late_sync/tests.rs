//! Power that fails at any point, and syncs that fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use redb::{Builder, Database, ReadableDatabase, TableDefinition};

use super::*;

const TABLE: TableDefinition<'static, &'static str, u64> = TableDefinition::new("t");
const KEY: &str = "n";

/// What a disk was told to do since its last sync.
#[derive(Clone, Debug)]
enum Change {
    Length(u64),
    Write(u64, Vec<u8>),
}

fn apply(image: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(length) => image.resize(usize::try_from(*length).unwrap(), 0),
        Change::Write(offset, data) => {
            let begin = usize::try_from(*offset).unwrap();
            let end = begin + data.len();
            if image.len() < end {
                image.resize(end, 0);
            }
            image[begin..end].copy_from_slice(data);
        }
    }
}

#[derive(Debug, Default)]
struct Disk {
    now: Vec<u8>,
    synced: Vec<u8>,
    pending: Vec<Change>,
    /// How much it does before the power fails.
    left: Option<u32>,
    syncs: u32,
    sync_fails: bool,
}

impl Disk {
    fn work(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(io::Error::other("no power")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        self.work()?;
        apply(&mut self.now, &change);
        self.pending.push(change);
        Ok(())
    }

    /// What is there when the power is back: of what was not synced any part.
    fn after_power_failure(&self, kept: &[bool]) -> Self {
        let mut image = self.synced.clone();
        let kept = kept.iter().cycle();
        for (change, _) in self.pending.iter().zip(kept).filter(|(_, kept)| **kept) {
            apply(&mut image, change);
        }
        Self { now: image.clone(), synced: image, ..Self::default() }
    }
}

#[derive(Clone, Debug)]
struct Storage(Arc<Mutex<Disk>>);

impl Storage {
    fn new(disk: Disk) -> Self {
        Self(Arc::new(Mutex::new(disk)))
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let begin = usize::try_from(offset).unwrap();
        out.copy_from_slice(
            self.disk().now.get(begin..begin + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?,
        );
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk().change(Change::Length(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk();
        disk.work()?;
        if mem::take(&mut disk.sync_fails) {
            return Err(io::Error::other("a bad block"));
        }
        disk.syncs += 1;
        disk.synced = disk.now.clone();
        disk.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk().change(Change::Write(offset, data.to_vec()))
    }
}

fn open(storage: &Storage) -> (Database, LateSync<Storage>) {
    let late = LateSync::new(storage.clone());
    let mut builder = Builder::new();
    builder.set_check_integrity_on_open(true);
    (builder.create_with_backend(late.clone()).unwrap(), late)
}

fn put(database: &Database, value: u64) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(TABLE)?.insert(KEY, value)?;
    Ok(transaction.commit()?)
}

fn get(database: &Database) -> u64 {
    database.begin_read().unwrap().open_table(TABLE).unwrap().get(KEY).unwrap().unwrap().value()
}

proptest! {
    /// The power may fail at any work of the disk, and any part of what was not
    /// synced may be there.
    #[test]
    fn power_failures_cost_the_last_commit_at_most(
        paid in proptest::collection::vec(any::<bool>(), 1..12),
        left in 0_u32..60,
        kept in proptest::collection::vec(any::<bool>(), 1..20),
    ) {
        let storage = Storage::new(Disk::default());
        let (database, late) = open(&storage);
        put(&database, 0).unwrap();
        late.pay();
        storage.disk().left = Some(left);
        let (mut committed, mut safe) = (0, 0);
        for (value, paid) in (1..).zip(paid) {
            if put(&database, value).is_err() {
                break;
            }
            // It could be written, so the one before was synced.
            safe = committed;
            committed = value;
            if paid {
                late.pay();
                if storage.disk().pending.is_empty() {
                    safe = value;
                }
            }
        }
        let after = storage.disk().after_power_failure(&kept);
        storage.disk().left = Some(0);
        drop(database);
        let (database, _) = open(&Storage::new(after));
        // What was being committed may have come whole.
        let found = get(&database);
        prop_assert!((safe..=committed + 1).contains(&found), "{found} is not in {safe}..={committed}+1");
    }
}

#[test]
fn a_commit_does_not_wait_for_its_sync() {
    let storage = Storage::new(Disk::default());
    let (database, late) = open(&storage);
    put(&database, 0).unwrap();
    late.pay();
    let syncs = storage.disk().syncs;
    put(&database, 1).unwrap();
    assert_eq!(storage.disk().syncs, syncs);
    late.pay();
    late.pay();
    assert_eq!(storage.disk().syncs, syncs + 1);
    assert!(storage.disk().pending.is_empty());
}

#[test]
fn a_sync_that_failed_fails_the_next_commit() {
    let storage = Storage::new(Disk::default());
    let (database, late) = open(&storage);
    put(&database, 0).unwrap();
    late.pay();
    put(&database, 1).unwrap();
    storage.disk().sync_fails = true;
    late.pay();
    let error = put(&database, 2).unwrap_err();
    assert!(error.to_string().contains("a bad block"), "{error}");
    // Opened again, it has what was written, and goes on.
    drop(database);
    let (database, _) = open(&storage);
    assert_eq!(get(&database), 1);
    put(&database, 2).unwrap();
}
