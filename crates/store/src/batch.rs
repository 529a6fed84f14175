//! Changes that are made together.

use crate::error::Error;
use crate::record::{Record, encode};

/// Puts and deletes of records of any types, written all or not at all, in the
/// order in which they were added.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub(crate) changes: Vec<Change>,
}

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Put { table: &'static str, key: String, value: Vec<u8>, must_be_new: bool },
    Delete { table: &'static str, key: String },
    Meta { key: String, value: String },
}

impl Batch {
    /// A batch that changes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Writes a record, in place of one by that key.
    ///
    /// # Errors
    /// [`Error::KeyLength`], [`Error::ValueTooLong`], [`Error::Encode`]; the
    /// batch is as before then.
    pub fn put<R: Record>(&mut self, key: &str, record: &R) -> Result<&mut Self, Error> {
        self.add(key, record, false)
    }

    /// Writes a record that must be new: if there is one by that key when the
    /// batch is written, the whole batch fails with [`Error::Exists`].
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_new<R: Record>(&mut self, key: &str, record: &R) -> Result<&mut Self, Error> {
        self.add(key, record, true)
    }

    /// Deletes a record; none by that key is not an error.
    pub fn delete<R: Record>(&mut self, key: &str) -> &mut Self {
        self.changes.push(Change::Delete { table: R::TABLE, key: key.to_owned() });
        self
    }

    /// Sets a value about the store as a whole, see
    /// [`Store::meta_get`](crate::Store::meta_get).
    pub fn meta_put(&mut self, key: &str, value: &str) -> &mut Self {
        self.changes.push(Change::Meta { key: key.to_owned(), value: value.to_owned() });
        self
    }

    fn add<R: Record>(&mut self, key: &str, record: &R, must_be_new: bool) -> Result<&mut Self, Error> {
        if key.is_empty() || key.len() > crate::MAX_KEY {
            return Err(Error::KeyLength { table: R::TABLE, length: key.len() });
        }
        let value = encode(key, record)?;
        self.changes.push(Change::Put { table: R::TABLE, key: key.to_owned(), value, must_be_new });
        Ok(self)
    }
}
