//! The file: creation, locking, opening, and opening again after a failure.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase, StorageError, TableDefinition,
    TableError, WriteTransaction,
};

use crate::SCHEMA_VERSION;
use crate::error::Error;
use crate::late_sync::LateSync;

pub(crate) type TextTable<'a> = TableDefinition<'a, &'static str, &'static [u8]>;

/// Prefix of record tables in the file, so that no type's name meets ours.
const RECORD_PREFIX: &str = "record:";
/// Name of the table of [`crate::Store::meta_get`].
pub(crate) const META: &str = "meta";
const SCHEMA: TableDefinition<'static, &'static str, u32> = TableDefinition::new("schema");
const SCHEMA_KEY: &str = "version";

/// Records are small and few, and the page cache holds the file anyway.
const CACHE_SIZE: usize = 4 * 1024 * 1024;
const FILE_MODE: u32 = 0o600;

/// Name in the file of the table of a record type.
pub(crate) fn record_table(name: &str) -> String {
    format!("{RECORD_PREFIX}{name}")
}

/// The open store file, and the lock that keeps other processes out.
#[derive(Debug)]
pub(crate) struct StoreFile {
    path: PathBuf,
    /// `None` after a failed write, until it could be opened again. Locked for
    /// writing only then; held for reading during each transaction.
    open: RwLock<Option<Open>>,
    /// The lock ends with this descriptor. It is a file of its own because the
    /// database file is not there yet, or closed, at times.
    _lock: File,
}

#[derive(Debug)]
struct Open {
    database: Database,
    storage: LateSync<FileBackend>,
}

impl StoreFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let lock = lock(path)?;
        let missing = match fs::metadata(path) {
            Ok(metadata) => metadata.len() == 0,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(source) => return Err(open_error(path, source)),
        };
        if missing {
            create(path)?;
        }
        let open = open_database(path)?;
        Ok(Self { path: path.to_owned(), open: RwLock::new(Some(open)), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `read` on the last committed state.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        let guard = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = guard.as_ref() else {
            return Err(self.unavailable());
        };
        open.database
            .begin_read()
            .map_err(redb::Error::from)
            .and_then(|transaction| read(&transaction))
            .map_err(|source| Error::Read { path: self.path.clone(), source: Arc::new(source) })
    }

    /// Runs `write` in a transaction and commits it. The process may be killed
    /// then; that the power may fail takes a [`sync`](Self::sync).
    pub(crate) fn write<T>(
        &self,
        write: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        let guard = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = guard.as_ref() else {
            return Err(self.unavailable());
        };
        commit(&open.database, write)
            .map_err(|source| Error::Write { path: self.path.clone(), source: Arc::new(source) })
    }

    /// Brings what was committed to the disk. If that fails, the next
    /// [`write`](Self::write) does.
    pub(crate) fn sync(&self) {
        let guard = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = guard.as_ref() {
            open.storage.pay();
        }
    }

    /// Closes the database and opens it again. After a failed write (a full
    /// disk) redb refuses all work until that is done.
    pub(crate) fn reopen(&self) -> Result<(), Error> {
        let mut guard = self.open.write().unwrap_or_else(PoisonError::into_inner);
        *guard = None;
        *guard = Some(open_database(&self.path)?);
        Ok(())
    }

    /// Whether the database is open.
    pub(crate) fn is_available(&self) -> bool {
        self.open.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn unavailable(&self) -> Error {
        Error::Unavailable { path: self.path.clone() }
    }
}

fn open_error(path: &Path, source: io::Error) -> Error {
    Error::Open { path: path.to_owned(), source: Arc::new(source) }
}

/// `path` with `suffix` behind its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn lock(path: &Path) -> Result<File, Error> {
    let lock_path = beside(path, ".lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(&lock_path)
        .map_err(|source| open_error(&lock_path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(open_error(&lock_path, source)),
    }
}

/// Makes an empty store under another name and moves it into place, so that a
/// kill leaves either none or a whole one. The caller holds the lock.
fn create(path: &Path) -> Result<(), Error> {
    let new = beside(path, ".new");
    match fs::remove_file(&new) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(open_error(&new, source));
        }
        _ => {}
    }
    let Open { database, .. } = open_file(&new, OpenOptions::new().create_new(true).mode(FILE_MODE))?;
    commit(&database, |transaction| {
        transaction.open_table(SCHEMA)?.insert(SCHEMA_KEY, SCHEMA_VERSION)?;
        Ok(())
    })
    .map_err(|source| Error::Write { path: new.clone(), source: Arc::new(source) })?;
    database.close().map_err(|source| database_error(&new, source))?;
    fs::rename(&new, path).map_err(|source| open_error(path, source))?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| open_error(directory, source))
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .set_cache_size(CACHE_SIZE)
        // Without it a damaged file may panic later instead of failing here.
        // The file is small: reading it all takes less than a sync.
        .set_check_integrity_on_open(true);
    builder
}

/// Opens a database, or makes one in an empty file. [`lock`] keeps others away.
fn open_file(path: &Path, options: &mut OpenOptions) -> Result<Open, Error> {
    let file = options.read(true).write(true).open(path).map_err(|source| open_error(path, source))?;
    let file = FileBackend::new(file).map_err(|source| database_error(path, source))?;
    let storage = LateSync::new(file);
    let database =
        builder().create_with_backend(storage.clone()).map_err(|source| database_error(path, source))?;
    Ok(Open { database, storage })
}

fn open_database(path: &Path) -> Result<Open, Error> {
    let open = open_file(path, &mut OpenOptions::new())?;
    let found = schema_version(&open.database)
        .map_err(|source| Error::Corrupt { path: path.to_owned(), source: Arc::new(source) })?;
    if found > SCHEMA_VERSION {
        return Err(Error::NewerSchema { path: path.to_owned(), found, supported: SCHEMA_VERSION });
    }
    Ok(open)
}

/// The file's schema version. A database without one was not made by us.
fn schema_version(database: &Database) -> Result<u32, redb::Error> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(SCHEMA)?;
    let version = table.get(SCHEMA_KEY)?.map(|version| version.value());
    version.ok_or_else(|| redb::Error::Corrupted("no schema version".to_owned()))
}

fn database_error(path: &Path, error: DatabaseError) -> Error {
    let path = path.to_owned();
    match error {
        DatabaseError::Storage(StorageError::Io(source))
            if source.kind() != io::ErrorKind::InvalidData
                && source.kind() != io::ErrorKind::UnexpectedEof =>
        {
            Error::Open { path, source: Arc::new(source) }
        }
        damaged => Error::Corrupt { path, source: Arc::new(damaged.into()) },
    }
}

fn commit<T>(
    database: &Database,
    write: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
) -> Result<T, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(redb::Durability::Immediate)?;
    match write(&transaction) {
        Ok(value) => {
            transaction.commit()?;
            Ok(value)
        }
        Err(error) => {
            // The first failure says more than one of the clean-up.
            let _ = transaction.abort();
            Err(error)
        }
    }
}

/// Opens a table for reading; `None` if nothing was ever written to it.
pub(crate) fn open_for_reading(
    transaction: &ReadTransaction,
    name: &str,
) -> Result<Option<redb::ReadOnlyTable<&'static str, &'static [u8]>>, redb::Error> {
    match transaction.open_table(TextTable::new(name)) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
