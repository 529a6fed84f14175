//! Copies a container's output to its sink.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use crate::buffer::RecordBuffer;
use crate::error::Error;
use crate::format::{Encoder, Stream};
use crate::timestamp::Timestamp;
use crate::writer::FileSink;

/// Most bytes taken from a pipe at once.
const READ_SIZE: usize = 16 * 1024;
/// Records go to the sink when this many bytes of them are there.
const BATCH_SIZE: usize = 32 * 1024;
/// Pause after a first failed write to a log file; doubles up to the last.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// Where the records of one container go. Cheap to clone; both outputs of a
/// container share one, and their records interleave as they arrive.
#[derive(Clone, Debug)]
pub enum Sink {
    /// The log file itself, where the guest may write it.
    File(Arc<FileSink>),
    /// A stream that the daemon fetches.
    Stream(Arc<RecordBuffer>),
    /// Nowhere: the container was made without a log path.
    Discard,
}

/// Counters of one container's pumps. All only grow.
#[derive(Debug, Default)]
pub struct PumpMetrics {
    bytes_read: AtomicU64,
    bytes_stored: AtomicU64,
    waits: AtomicU64,
    wait_nanoseconds: AtomicU64,
    waited_bytes: AtomicU64,
    write_failures: AtomicU64,
}

/// What [`PumpMetrics`] read at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PumpSnapshot {
    /// Bytes of output read from the container.
    pub bytes_read: u64,
    /// Bytes of records that the sink has taken.
    pub bytes_stored: u64,
    /// How often the sink had no room and the container had to wait.
    pub waits: u64,
    /// How long it waited altogether.
    pub wait_time: Duration,
    /// Bytes of records that had to wait.
    pub waited_bytes: u64,
    /// Failed writes to the log file; each was tried again.
    pub write_failures: u64,
}

impl PumpMetrics {
    /// The counters now.
    pub fn snapshot(&self) -> PumpSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PumpSnapshot {
            bytes_read: read(&self.bytes_read),
            bytes_stored: read(&self.bytes_stored),
            waits: read(&self.waits),
            wait_time: Duration::from_nanos(read(&self.wait_nanoseconds)),
            waited_bytes: read(&self.waited_bytes),
            write_failures: read(&self.write_failures),
        }
    }
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

/// Counts a wait for the sink, also one that is cut short by a drop.
struct Wait<'a> {
    metrics: &'a PumpMetrics,
    since: Instant,
}

impl<'a> Wait<'a> {
    fn begin(metrics: &'a PumpMetrics, bytes: usize) -> Self {
        add(&metrics.waits, 1);
        add(&metrics.waited_bytes, bytes);
        Self { metrics, since: Instant::now() }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let waited = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.metrics.wait_nanoseconds.fetch_add(waited, Ordering::Relaxed);
    }
}

impl Sink {
    /// Hands over whole records, waiting as long as the sink cannot take them:
    /// a stream until it is read, a file until its disk has room again.
    async fn append(&self, batch: &[u8], metrics: &PumpMetrics) -> Result<(), Error> {
        match self {
            Sink::Discard => {}
            Sink::Stream(buffer) => {
                let taken = buffer.try_append(batch)?;
                if taken < batch.len() {
                    let _wait = Wait::begin(metrics, batch.len() - taken);
                    buffer.append(&batch[taken..]).await?;
                }
            }
            Sink::File(file) => append_to_file(file, batch, metrics).await?,
        }
        add(&metrics.bytes_stored, batch.len());
        Ok(())
    }
}

async fn append_to_file(file: &FileSink, mut batch: &[u8], metrics: &PumpMetrics) -> Result<(), Error> {
    let mut pause = FIRST_RETRY;
    let mut wait = None;
    loop {
        match file.append(batch) {
            Ok(()) => return Ok(()),
            Err(Error::Append { written, .. }) => batch = &batch[written..],
            Err(Error::Truncate { .. } | Error::Inspect { .. }) => {}
            Err(other) => return Err(other),
        }
        add(&metrics.write_failures, 1);
        wait.get_or_insert_with(|| Wait::begin(metrics, batch.len()));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_RETRY);
    }
}

/// Copies one output of a container to its sink until the output ends.
///
/// Lines are stamped when read. While the sink has no room nothing is read, so
/// the container waits in its write; nothing is dropped. A write to a log file
/// that fails (a full disk) is tried again until it works. So this ends only
/// with the output, and a caller that must end sooner drops the future: that
/// loses what was read and not yet stored (at most 16 KiB of output and one
/// unfinished line).
///
/// Holds no buffer while the output is silent, except a line's beginning. The
/// end of a terminal (`EIO`) counts as the end of output.
///
/// # Errors
/// [`Error::Read`] after everything read was stored; [`Error::Closed`] if the
/// stream was closed under it.
pub async fn pump<R: AsyncRead + Unpin>(
    output: R,
    stream: Stream,
    sink: &Sink,
    metrics: &PumpMetrics,
) -> Result<(), Error> {
    pump_observed(output, stream, sink, metrics, |_| {}).await
}

/// [`pump`], and shows each piece of output, as read, to `observe` before it
/// is stored (for clients attached to the container). `observe` must not block.
///
/// # Errors
/// As [`pump`].
pub async fn pump_observed<R: AsyncRead + Unpin>(
    mut output: R,
    stream: Stream,
    sink: &Sink,
    metrics: &PumpMetrics,
    mut observe: impl FnMut(&[u8]),
) -> Result<(), Error> {
    let mut encoder = Encoder::new(stream);
    let mut input = Vec::new();
    let mut records = Vec::new();
    let ended = loop {
        match read_some(&mut output, &mut input, &mut records).await {
            Ok(()) if input.is_empty() => break Ok(()),
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => break Ok(()),
            Err(source) => {
                break Err(Error::Read { stream: stream.name(), source });
            }
        }
        let now = Timestamp::now();
        add(&metrics.bytes_read, input.len());
        observe(&input);
        let mut rest = &input[..];
        while !rest.is_empty() {
            let taken = encoder.encode(now, rest, &mut records, BATCH_SIZE);
            rest = &rest[taken..];
            sink.append(&records, metrics).await?;
            records.clear();
        }
    };
    encoder.finish(Timestamp::now(), &mut records);
    sink.append(&records, metrics).await?;
    ended
}

/// Reads what is there into `input`; empty means the end.
///
/// A read needs room before it is known whether there is anything to read. That
/// room is on the stack of the poll; the vectors give their memory back when
/// there is nothing.
async fn read_some<R: AsyncRead + Unpin>(
    output: &mut R,
    input: &mut Vec<u8>,
    records: &mut Vec<u8>,
) -> io::Result<()> {
    poll_fn(|context| {
        let mut room = [const { MaybeUninit::<u8>::uninit() }; READ_SIZE];
        let mut read = ReadBuf::uninit(&mut room);
        match Pin::new(&mut *output).poll_read(context, &mut read) {
            Poll::Pending => {
                *input = Vec::new();
                *records = Vec::new();
                Poll::Pending
            }
            Poll::Ready(outcome) => {
                input.clear();
                input.extend_from_slice(read.filled());
                Poll::Ready(outcome)
            }
        }
    })
    .await
}
