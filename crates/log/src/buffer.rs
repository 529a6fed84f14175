//! Records that wait for the daemon.
//!
//! A VM's guest keeps records here until the daemon has written them to the log
//! file and said so. Offsets count bytes of records since the container
//! started. A daemon that lost its connection asks again from where its file
//! ends: what was not acknowledged is still here, so nothing is lost, and it
//! names the offset itself, so nothing is doubled.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::error::Error;
use crate::format::MAX_RECORD;

/// Bytes that a buffer holds unless told otherwise.
pub const DEFAULT_CAPACITY: usize = 256 * 1024;

/// Whole records from a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Stream offset of the first byte.
    pub offset: u64,
    /// One record or more.
    pub bytes: Vec<u8>,
}

impl Chunk {
    /// Stream offset behind the chunk: what to acknowledge once it is safe.
    pub fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// A bounded stream of records, kept until acknowledged.
#[derive(Debug)]
pub struct RecordBuffer {
    capacity: usize,
    state: Mutex<State>,
    readable: Notify,
    writable: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Stream offset of the first byte in `bytes`.
    start: u64,
    bytes: VecDeque<u8>,
    closed: bool,
}

impl State {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// The index in `bytes` of a stream offset that is a record boundary.
    fn boundary(&self, offset: u64) -> Result<usize, Error> {
        let refuse = || Error::Offset { offset, start: self.start, end: self.end() };
        let index = offset.checked_sub(self.start).ok_or_else(refuse)?;
        let index = usize::try_from(index).map_err(|_| refuse())?;
        let at_boundary = index == 0 || self.bytes.get(index - 1) == Some(&b'\n');
        if index <= self.bytes.len() && at_boundary { Ok(index) } else { Err(refuse()) }
    }
}

impl RecordBuffer {
    /// An empty buffer for at most `capacity` bytes (at least one record, see
    /// [`MAX_RECORD`]). Holds no memory while empty.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(MAX_RECORD),
            state: Mutex::default(),
            readable: Notify::new(),
            writable: Notify::new(),
        }
    }

    /// Adds whole records; waits while there is no room. Dropped while waiting,
    /// a first part of the batch may have been added.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::Malformed`] if the batch holds a record
    /// longer than any, or ends inside one.
    pub async fn append(&self, mut batch: &[u8]) -> Result<(), Error> {
        while !batch.is_empty() {
            let freed = self.writable.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            let taken = self.try_append(batch)?;
            batch = &batch[taken..];
            if taken == 0 {
                freed.await;
            }
        }
        Ok(())
    }

    /// Adds as many whole records from the front of `batch` as fit, and says
    /// how many bytes those were.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn try_append(&self, batch: &[u8]) -> Result<usize, Error> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        let room = self.capacity - state.bytes.len();
        let fits = whole_records(&batch[..batch.len().min(room)]);
        if fits == 0 && (batch.len() <= room || room >= MAX_RECORD) && !batch.is_empty() {
            return Err(Error::Malformed { at: 0, reason: "no newline within the longest record" });
        }
        if fits > 0 {
            state.bytes.extend(&batch[..fits]);
            drop(state);
            self.readable.notify_waiters();
        }
        Ok(fits)
    }

    /// No more records will come: readers see the end behind the last one, and
    /// a waiting [`append`](Self::append) fails.
    pub fn close(&self) {
        self.lock().closed = true;
        self.readable.notify_waiters();
        self.writable.notify_waiters();
    }

    /// The records behind stream offset `after`, at most `limit` bytes of them
    /// (but at least one record); waits until there is one. `None` once the
    /// stream is closed and ends at `after`. Takes nothing away, so it may be
    /// dropped and called again at will.
    ///
    /// # Errors
    /// [`Error::Offset`] if `after` was acknowledged already, lies ahead of
    /// the stream, or inside a record.
    pub async fn next(&self, after: u64, limit: usize) -> Result<Option<Chunk>, Error> {
        loop {
            let added = self.readable.notified();
            tokio::pin!(added);
            added.as_mut().enable();
            {
                let state = self.lock();
                let from = state.boundary(after)?;
                let available = state.bytes.len() - from;
                if available > 0 {
                    let take = available.min(limit.max(MAX_RECORD));
                    let mut bytes: Vec<u8> = state.bytes.range(from..from + take).copied().collect();
                    bytes.truncate(whole_records(&bytes));
                    return Ok(Some(Chunk { offset: after, bytes }));
                }
                if state.closed {
                    return Ok(None);
                }
            }
            added.await;
        }
    }

    /// Records before stream offset `offset` are safe: frees them. An offset
    /// acknowledged before is not an error.
    ///
    /// # Errors
    /// [`Error::Offset`] if `offset` lies ahead of the stream or inside a
    /// record.
    pub fn acknowledge(&self, offset: u64) -> Result<(), Error> {
        let mut state = self.lock();
        if offset <= state.start {
            return Ok(());
        }
        let count = state.boundary(offset)?;
        state.bytes.drain(..count);
        state.start = offset;
        if state.bytes.is_empty() {
            state.bytes = VecDeque::new();
        }
        drop(state);
        self.writable.notify_waiters();
        Ok(())
    }

    /// First offset not acknowledged.
    pub fn start(&self) -> u64 {
        self.lock().start
    }

    /// Offset behind the last record.
    pub fn end(&self) -> u64 {
        self.lock().end()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No step leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for RecordBuffer {
    fn default() -> Self {
        Self::new(DEFAULT_CAPACITY)
    }
}

/// Length of the whole records at the front of `bytes`.
fn whole_records(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1)
}
