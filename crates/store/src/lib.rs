//! Durable, schema-versioned records on an embedded database.
//!
//! One process opens the file: the daemon. Records are JSON documents in typed
//! [`Table`]s, each stored with the version of its type, so that a later
//! daemon can migrate it and an earlier one refuses it by name.
//!
//! Writing is a [`Batch`]: puts and deletes over any tables, all or nothing,
//! out of this process's hands when [`Store::commit`] returns. One thread
//! writes, and syncs after it has answered; batches that wait meanwhile share
//! the next transaction (group commit). Batches of one caller are written in
//! the order in which it committed them. Reads see the last commit and never
//! wait for a write.
//!
//! Invariants: what was acknowledged survives `kill -9`; a power failure costs
//! at most what was acknowledged last, before its sync had ended, and no pod
//! outlives that either; a batch is never half there; a batch that fails fails
//! alone.

mod batch;
mod database;
mod error;
mod late_sync;
mod record;
mod store;
mod writer;

pub use batch::Batch;
pub use error::{Error, MigrateError};
pub use record::Record;
pub use store::{Store, Table};

/// Version of the file's layout (not of the records in it).
pub const SCHEMA_VERSION: u32 = 1;

/// Longest key of a record, in bytes.
pub const MAX_KEY: usize = 1024;

/// Longest encoded record, in bytes.
pub const MAX_VALUE: usize = 8 * 1024 * 1024;
