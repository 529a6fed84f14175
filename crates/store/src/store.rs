//! The store and its tables.

use std::future::Future;
use std::marker::PhantomData;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};

use redb::ReadableTable;
use tokio::sync::{mpsc, oneshot};

use crate::batch::Batch;
use crate::database::{META, StoreFile, open_for_reading, record_table};
use crate::error::Error;
use crate::record::{Record, decode};
use crate::writer::{self, Job};

/// An open store. Cheap to clone; the last clone closes the file.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: Arc<StoreFile>,
    /// Both `Some` until dropped.
    queue: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Inner {
    /// Waits for batches still queued, so that the file is closed and unlocked
    /// when this returns.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the writer was answered to its callers already.
            let _ = thread.join();
        }
    }
}

impl Store {
    /// Opens the store, or creates it (mode 0600) in a directory that exists.
    /// Blocks on file IO.
    ///
    /// Beside `path` the files `<path>.lock` and, while creating, `<path>.new`
    /// are used.
    ///
    /// # Errors
    /// [`Error::Locked`] if it is open already, [`Error::Corrupt`],
    /// [`Error::NewerSchema`], [`Error::Open`], [`Error::Write`],
    /// [`Error::Thread`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = Arc::new(StoreFile::open(path)?);
        let (queue, thread) = writer::spawn(Arc::clone(&file))
            .map_err(|source| Error::Thread { path: path.to_owned(), source: Arc::new(source) })?;
        Ok(Self { inner: Arc::new(Inner { file, queue: Some(queue), thread: Some(thread) }) })
    }

    /// The table of a record type.
    pub fn table<R: Record>(&self) -> Table<R> {
        Table { store: self.clone(), record: PhantomData }
    }

    /// Writes a batch. When this returns, it survives the end of this process,
    /// and soon a power failure, too; the crate's text has the bounds.
    ///
    /// Dropping the future does not cancel a batch that was queued, and it is
    /// queued at the first poll unless the queue is full. One caller's batches,
    /// committed one after the other, are written in that order, also if their
    /// futures were dropped.
    ///
    /// # Errors
    /// [`Error::Exists`] (nothing of this batch was written), [`Error::Write`]
    /// (nothing was; that the sync of an earlier batch failed is also told so),
    /// [`Error::Unavailable`] and the errors of [`open`](Self::open) while the
    /// database cannot be opened again after a failure, [`Error::Stopped`].
    pub async fn commit(&self, batch: Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let stopped = || Error::Stopped { path: self.inner.file.path().to_owned() };
        let (reply, answer) = oneshot::channel();
        let queue = self.inner.queue.as_ref().ok_or_else(stopped)?;
        queue.send(Job { batch, reply }).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// [`commit`](Self::commit) for callers without async; blocks the thread.
    ///
    /// # Errors
    /// As there.
    pub fn commit_blocking(&self, batch: Batch) -> Result<(), Error> {
        // Within a task the budget of the task could run out, and never be
        // renewed while this blocks.
        block_on(tokio::task::unconstrained(self.commit(batch)))
    }

    /// A value about the store as a whole (the boot id, say).
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Unavailable`].
    pub fn meta_get(&self, key: &str) -> Result<Option<String>, Error> {
        self.inner.file.read(|transaction| {
            let Some(table) = open_for_reading(transaction, META)? else {
                return Ok(None);
            };
            let value = table.get(key)?;
            Ok(value.map(|value| String::from_utf8_lossy(value.value()).into_owned()))
        })
    }

    /// Sets a value about the store as a whole; see also [`Batch::meta_put`].
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub async fn meta_put(&self, key: &str, value: &str) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.meta_put(key, value);
        self.commit(batch).await
    }
}

/// The records of one type, by key. Reads block on file IO for the little that
/// is not in memory.
#[derive(Debug)]
pub struct Table<R> {
    store: Store,
    record: PhantomData<fn() -> R>,
}

impl<R> Clone for Table<R> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), record: PhantomData }
    }
}

impl<R: Record> Table<R> {
    /// The record by that key.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Unavailable`], and if it cannot be understood
    /// [`Error::NewerRecord`], [`Error::Migrate`], [`Error::Decode`].
    pub fn get(&self, key: &str) -> Result<Option<R>, Error> {
        let bytes = self.store.inner.file.read(|transaction| {
            let Some(table) = open_for_reading(transaction, &record_table(R::TABLE))? else {
                return Ok(None);
            };
            let value = table.get(key)?;
            Ok(value.map(|value| value.value().to_vec()))
        })?;
        bytes.map(|bytes| decode(key, &bytes)).transpose()
    }

    /// All records with their keys, in the order of the keys; fails on the
    /// first that cannot be understood.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn list(&self) -> Result<Vec<(String, R)>, Error> {
        self.list_each()?.into_iter().map(|(key, record)| Ok((key, record?))).collect()
    }

    /// All keys, in order, each with its record or why that cannot be
    /// understood.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Unavailable`].
    #[expect(clippy::type_complexity, reason = "a list of results by key")]
    pub fn list_each(&self) -> Result<Vec<(String, Result<R, Error>)>, Error> {
        self.store.inner.file.read(|transaction| {
            let Some(table) = open_for_reading(transaction, &record_table(R::TABLE))? else {
                return Ok(Vec::new());
            };
            table
                .iter()?
                .map(|entry| {
                    let (key, value) = entry?;
                    let record = decode(key.value(), value.value());
                    Ok((key.value().to_owned(), record))
                })
                .collect()
        })
    }

    /// Writes one record, in place of one by that key.
    ///
    /// # Errors
    /// As [`Batch::put`] and [`Store::commit`].
    pub async fn put(&self, key: &str, record: &R) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.put(key, record)?;
        self.store.commit(batch).await
    }

    /// Writes records in one transaction.
    ///
    /// # Errors
    /// As [`put`](Self::put); none is written then.
    pub async fn put_many<'a>(&self, records: impl IntoIterator<Item = (&'a str, &'a R)>) -> Result<(), Error>
    where
        R: 'a,
    {
        let mut batch = Batch::new();
        for (key, record) in records {
            batch.put(key, record)?;
        }
        self.store.commit(batch).await
    }

    /// Deletes one record; none by that key is not an error.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.delete::<R>(key);
        self.store.commit(batch).await
    }
}

/// Wakes a thread that waits in [`block_on`].
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future that needs no reactor (channels only) on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
