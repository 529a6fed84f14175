//! The CRI container log format: encoding, writing, rotation, recovery.
//!
//! A container's output becomes *records*, one line of the log file each:
//! `<RFC 3339 timestamp> <stdout|stderr> <P|F> <content>\n`. The parts, in the
//! order in which bytes pass through them:
//!
//! - [`mod@format`]: bytes of a pipe in, whole records out; pure.
//! - [`mod@pump`]: reads a pipe, encodes, and hands records to a [`Sink`]. When the
//!   sink is full the pump stops reading, so the container waits; output is
//!   never dropped.
//! - [`writer`]: a [`Sink::File`]: appends whole records to the log file and
//!   follows kubelet's rotation. Used where the guest may write the file itself.
//! - [`buffer`]: a [`Sink::Stream`]: keeps records until the daemon has taken
//!   and acknowledged them. Used in a VM, whose log file the daemon writes.
//! - [`recovery`]: the daemon's side of that: every record reaches the file
//!   once, also when the daemon is killed and the file rotated meanwhile.
//!
//! Invariants: a file or a stream position always lies between two records; no
//! record is split across two files; memory is bounded per container and given
//! back while it is silent.

pub mod buffer;
mod error;
pub mod format;
pub mod pump;
pub mod recovery;
pub mod timestamp;
pub mod writer;

pub use buffer::{Chunk, RecordBuffer};
pub use error::Error;
pub use format::{Encoder, MAX_CONTENT, MAX_RECORD, Record, Stream};
pub use pump::{PumpMetrics, PumpSnapshot, Sink, pump, pump_observed};
pub use recovery::{Cursor, DurableLog, Recovery};
pub use timestamp::Timestamp;
pub use writer::{FileSink, LogWriter, Position};
