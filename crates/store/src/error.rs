//! The errors of this crate.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why a record of an older version could not be brought up to date.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// The type knows no way from that version.
    #[error("no migration from version {from}")]
    Unsupported {
        /// Version of the stored record.
        from: u32,
    },
    /// The stored record lacks what its version should have.
    #[error("record of version {from} has no valid field {field:?}")]
    Field {
        /// Version of the stored record.
        from: u32,
        /// The field in question.
        field: &'static str,
    },
}

/// What can go wrong with the store.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The store's file, or one beside it, could not be created or opened.
    #[error("open store file {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Another process (a second daemon) has the store open.
    #[error(
        "store {} is in use by another process; stop that one, or give this one its own root",
        path.display()
    )]
    Locked {
        /// The store's file.
        path: PathBuf,
    },
    /// The file is damaged, or no store at all.
    #[error(
        "store {path} is corrupt; move it away (mv {path} {path}.corrupt) and start again: \
         running pods are then cleaned up as unknown, images are found again",
        path = path.display()
    )]
    Corrupt {
        /// The store's file.
        path: PathBuf,
        /// What the database said.
        source: Arc<redb::Error>,
    },
    /// The file was made by a newer version.
    #[error(
        "store {} has schema version {found}, this version knows up to {supported}; \
         run the newer version again, or move the file away",
        path.display()
    )]
    NewerSchema {
        /// The store's file.
        path: PathBuf,
        /// Its schema version.
        found: u32,
        /// The newest that this version reads.
        supported: u32,
    },
    /// A record was written by a newer version.
    #[error(
        "record {key:?} in table {table} has version {found}, this version knows up to \
         {supported}; run the newer version again"
    )]
    NewerRecord {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// Its version.
        found: u32,
        /// The newest that this version reads.
        supported: u32,
    },
    /// A record of an older version could not be migrated.
    #[error("migrate record {key:?} in table {table} from version {from}")]
    Migrate {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// Its version.
        from: u32,
        /// Why.
        source: Arc<MigrateError>,
    },
    /// A stored record is not what its type expects.
    #[error("decode record {key:?} in table {table}")]
    Decode {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// What is wrong.
        source: Arc<serde_json::Error>,
    },
    /// A record could not be turned into JSON.
    #[error("encode record {key:?} for table {table}")]
    Encode {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// What is wrong.
        source: Arc<serde_json::Error>,
    },
    /// A key is empty or longer than [`crate::MAX_KEY`].
    #[error("key of {length} bytes for table {table}; 1 to {} are allowed", crate::MAX_KEY)]
    KeyLength {
        /// The table.
        table: &'static str,
        /// The key's length in bytes.
        length: usize,
    },
    /// An encoded record is longer than [`crate::MAX_VALUE`].
    #[error(
        "record {key:?} for table {table} takes {length} bytes, at most {} are allowed",
        crate::MAX_VALUE
    )]
    ValueTooLong {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
        /// Its encoded length in bytes.
        length: usize,
    },
    /// A batch asked for a new record, but there is one by that key. Nothing of
    /// the batch was written.
    #[error("record {key:?} in table {table} exists already")]
    Exists {
        /// The table.
        table: &'static str,
        /// The record's key.
        key: String,
    },
    /// Reading from the database failed.
    #[error("read from store {}", path.display())]
    Read {
        /// The store's file.
        path: PathBuf,
        /// What the database said.
        source: Arc<redb::Error>,
    },
    /// Writing to the database failed; nothing of the batch was written.
    #[error("write to store {}", path.display())]
    Write {
        /// The store's file.
        path: PathBuf,
        /// What the database said.
        source: Arc<redb::Error>,
    },
    /// The database is closed after a failed write and could not be opened
    /// again yet; the next commit tries to.
    #[error("store {} is unavailable after a failed write", path.display())]
    Unavailable {
        /// The store's file.
        path: PathBuf,
    },
    /// The writer thread could not be started.
    #[error("start the writer of store {}", path.display())]
    Thread {
        /// The store's file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The writer thread has ended without an answer; whether the batch was
    /// written is unknown.
    #[error("the writer of store {} has stopped", path.display())]
    Stopped {
        /// The store's file.
        path: PathBuf,
    },
}
