//! A database's storage that is synced behind the commit.
//!
//! What a commit has written is with the kernel, and so survives the end of
//! this process, before it is on the disk. The database asks for a sync at the
//! end of each commit; here that makes a debt, paid when the callers have their
//! answer, and at the latest before anything more is written. So the disk has
//! all commits but the last, or all, whenever the power fails.

use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

/// Storage whose syncs are owed. Clones are the same storage.
#[derive(Debug)]
pub(crate) struct LateSync<S> {
    inner: Arc<Inner<S>>,
}

#[derive(Debug)]
struct Inner<S> {
    storage: S,
    debt: Mutex<Debt>,
}

#[derive(Debug)]
enum Debt {
    Paid,
    Owed,
    /// A sync failed when nobody waited for it.
    Failed(io::Error),
}

impl<S> Clone for LateSync<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S: StorageBackend> LateSync<S> {
    /// A process that was killed may have left a debt: the first write pays it.
    pub(crate) fn new(storage: S) -> Self {
        Self { inner: Arc::new(Inner { storage, debt: Mutex::new(Debt::Owed) }) }
    }

    /// Syncs what was written. If that fails, the next commit fails of it.
    pub(crate) fn pay(&self) {
        let mut debt = self.debt();
        if let Err(error) = self.settle(&mut debt) {
            *debt = Debt::Failed(error);
        }
    }

    fn debt(&self) -> MutexGuard<'_, Debt> {
        self.inner.debt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, debt: &mut Debt) -> io::Result<()> {
        match mem::replace(debt, Debt::Paid) {
            Debt::Paid => Ok(()),
            Debt::Owed => self.inner.storage.sync_data(),
            Debt::Failed(error) => Err(error),
        }
    }
}

impl<S: StorageBackend> StorageBackend for LateSync<S> {
    fn len(&self) -> io::Result<u64> {
        self.inner.storage.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.storage.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.settle(&mut self.debt())?;
        self.inner.storage.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut debt = self.debt();
        if matches!(*debt, Debt::Paid) {
            *debt = Debt::Owed;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.settle(&mut self.debt())?;
        self.inner.storage.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        let settled = self.settle(&mut self.debt());
        self.inner.storage.close().and(settled)
    }
}

#[cfg(test)]
mod tests;
