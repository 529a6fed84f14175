//! What a record is, and how it is stored.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, MigrateError};

/// A type that is stored in a table of its own.
///
/// Adding a field with `#[serde(default)]` needs no new version: unknown fields
/// are ignored and missing ones defaulted (unless the type says otherwise). Any
/// other change does.
pub trait Record: Serialize + DeserializeOwned {
    /// Name of the table; never changes.
    const TABLE: &'static str;
    /// Version of this type's JSON form.
    const VERSION: u32;

    /// Turns a stored value of an older version into one of
    /// [`VERSION`](Self::VERSION).
    ///
    /// # Errors
    /// [`MigrateError`]; always, unless overridden.
    fn migrate(from: u32, value: serde_json::Value) -> Result<serde_json::Value, MigrateError> {
        drop(value);
        Err(MigrateError::Unsupported { from })
    }
}

/// The stored form. The version comes first, so that people see it first.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    value: T,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

pub(crate) fn encode<R: Record>(key: &str, record: &R) -> Result<Vec<u8>, Error> {
    let envelope = Envelope { version: R::VERSION, value: record };
    let bytes = serde_json::to_vec(&envelope).map_err(|source| Error::Encode {
        table: R::TABLE,
        key: key.to_owned(),
        source: Arc::new(source),
    })?;
    if bytes.len() > crate::MAX_VALUE {
        return Err(Error::ValueTooLong { table: R::TABLE, key: key.to_owned(), length: bytes.len() });
    }
    Ok(bytes)
}

pub(crate) fn decode<R: Record>(key: &str, bytes: &[u8]) -> Result<R, Error> {
    let undecodable =
        |source| Error::Decode { table: R::TABLE, key: key.to_owned(), source: Arc::new(source) };
    let VersionOnly { version } = serde_json::from_slice(bytes).map_err(undecodable)?;
    if version == R::VERSION {
        let envelope: Envelope<R> = serde_json::from_slice(bytes).map_err(undecodable)?;
        return Ok(envelope.value);
    }
    if version > R::VERSION {
        return Err(Error::NewerRecord {
            table: R::TABLE,
            key: key.to_owned(),
            found: version,
            supported: R::VERSION,
        });
    }
    let envelope: Envelope<serde_json::Value> = serde_json::from_slice(bytes).map_err(undecodable)?;
    let value = R::migrate(version, envelope.value).map_err(|source| Error::Migrate {
        table: R::TABLE,
        key: key.to_owned(),
        from: version,
        source: Arc::new(source),
    })?;
    serde_json::from_value(value).map_err(undecodable)
}
