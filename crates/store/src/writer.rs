//! The one thread that writes: group commit.

use std::collections::HashMap;
use std::sync::Arc;

use redb::{ReadableTable, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use crate::batch::{Batch, Change};
use crate::database::{META, StoreFile, TextTable, record_table};
use crate::error::Error;

/// Batches that may wait; further callers wait for room.
pub(crate) const QUEUE_LENGTH: usize = 256;

/// Most batches in one transaction.
const MAX_GROUP: usize = QUEUE_LENGTH;

/// A batch, and who waits for it.
pub(crate) struct Job {
    pub(crate) batch: Batch,
    pub(crate) reply: oneshot::Sender<Result<(), Error>>,
}

/// Writes until every sender is gone and the queue is empty.
pub(crate) fn run(file: &StoreFile, mut queue: mpsc::Receiver<Job>) {
    let mut group = Vec::new();
    while queue.blocking_recv_many(&mut group, MAX_GROUP) > 0 {
        let batches: Vec<&Batch> = group.iter().map(|job| &job.batch).collect();
        let outcomes = write_group(file, &batches);
        for (job, outcome) in group.drain(..).zip(outcomes) {
            // Nobody waits any more if the caller's future was dropped.
            let _ = job.reply.send(outcome);
        }
        file.sync();
    }
}

/// Writes all batches in one transaction, those out that cannot be written. If
/// the database fails, each is tried alone: one of them may be the reason.
fn write_group(file: &StoreFile, batches: &[&Batch]) -> Vec<Result<(), Error>> {
    if !file.is_available()
        && let Err(error) = file.reopen()
    {
        return vec![Err(error); batches.len()];
    }
    match file.write(|transaction| apply_all(transaction, batches)) {
        Ok(outcomes) => outcomes,
        Err(error) => {
            // If this fails, the next group tries it again and says why.
            let reopened = file.reopen().is_ok();
            if batches.len() == 1 || !reopened {
                return vec![Err(error); batches.len()];
            }
            batches.iter().flat_map(|batch| write_group(file, &[batch])).collect()
        }
    }
}

fn apply_all(
    transaction: &WriteTransaction,
    batches: &[&Batch],
) -> Result<Vec<Result<(), Error>>, redb::Error> {
    let mut tables = Tables { transaction, open: HashMap::new() };
    batches
        .iter()
        .map(|batch| match tables.conflict(batch)? {
            Some(error) => Ok(Err(error)),
            None => tables.apply(batch).map(Ok),
        })
        .collect()
}

/// The tables opened in a transaction; each may be opened only once at a time.
struct Tables<'a> {
    transaction: &'a WriteTransaction,
    open: HashMap<String, redb::Table<'a, &'static str, &'static [u8]>>,
}

impl<'a> Tables<'a> {
    fn table(
        &mut self,
        name: String,
    ) -> Result<&mut redb::Table<'a, &'static str, &'static [u8]>, redb::Error> {
        use std::collections::hash_map::Entry;
        Ok(match self.open.entry(name) {
            Entry::Occupied(table) => table.into_mut(),
            Entry::Vacant(place) => {
                let table = self.transaction.open_table(TextTable::new(place.key()))?;
                place.insert(table)
            }
        })
    }

    /// Why the batch cannot be written, found before any of it is.
    fn conflict(&mut self, batch: &Batch) -> Result<Option<Error>, redb::Error> {
        // What the batch itself does to a key before a later change of it.
        let mut exists = HashMap::new();
        for change in &batch.changes {
            match change {
                Change::Put { table, key, must_be_new, .. } => {
                    if *must_be_new {
                        let there = match exists.get(&(*table, key)) {
                            Some(there) => *there,
                            None => self.table(record_table(table))?.get(key.as_str())?.is_some(),
                        };
                        if there {
                            return Ok(Some(Error::Exists { table, key: key.clone() }));
                        }
                    }
                    exists.insert((*table, key), true);
                }
                Change::Delete { table, key } => {
                    exists.insert((*table, key), false);
                }
                Change::Meta { .. } => {}
            }
        }
        Ok(None)
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), redb::Error> {
        for change in &batch.changes {
            match change {
                Change::Put { table, key, value, .. } => {
                    self.table(record_table(table))?.insert(key.as_str(), value.as_slice())?;
                }
                Change::Delete { table, key } => {
                    self.table(record_table(table))?.remove(key.as_str())?;
                }
                Change::Meta { key, value } => {
                    self.table(META.to_owned())?.insert(key.as_str(), value.as_bytes())?;
                }
            }
        }
        Ok(())
    }
}

/// Starts the writer thread.
pub(crate) fn spawn(
    file: Arc<StoreFile>,
) -> std::io::Result<(mpsc::Sender<Job>, std::thread::JoinHandle<()>)> {
    let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
    let thread =
        std::thread::Builder::new().name("kina-store".to_owned()).spawn(move || run(&file, receiver))?;
    Ok((sender, thread))
}
