//! Cached attachments, in libcni's format.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::attachment::{Attachment, AttachmentId};
use crate::capability::Capabilities;
use crate::config::Network;
use crate::error::Error;
use crate::host::Host;
use crate::result::NetworkResult;
use crate::version::SpecVersion;

/// Largest cached attachment in bytes: a configuration and a result.
const MAX_FILE: usize = 8 << 20;

/// Nobody writes one file for so long.
const LEFTOVER: Duration = Duration::from_secs(600);

/// The mark of libcni's format.
const KIND: &str = "cniCacheV1";

/// Attachments that were made and not yet removed: one file each,
/// `<directory>/results/<network>-<container>-<interface>`.
pub(crate) struct Cache<'a> {
    pub(crate) host: &'a dyn Host,
    pub(crate) directory: &'a Path,
}

/// An attachment that was made and not yet removed.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedAttachment {
    /// The network's name.
    pub network: String,
    /// What it was made with.
    pub attachment: Attachment,
    /// The network's configuration when it was made, as JSON.
    pub config: Vec<u8>,
    /// The result, in the version that it states.
    result: Value,
}

impl CachedAttachment {
    /// The result of the ADD.
    ///
    /// # Errors
    /// It is damaged.
    pub fn result(&self) -> Result<NetworkResult, crate::ConvertError> {
        // What states no version is of the oldest.
        NetworkResult::from_value(self.result.clone(), SpecVersion::V0_1_0)
    }

    /// The network's configuration when the attachment was made, in the version
    /// in which it was made: that of the result. `None` if it is damaged, or has
    /// no plugins: other runtimes leave out those that lie beside the
    /// configuration's file.
    #[must_use]
    pub fn network(&self) -> Option<Network> {
        let read = Network::from_list(&self.config).or_else(|_| Network::from_single(&self.config)).ok()?;
        let stated = self.result.get("cniVersion").and_then(Value::as_str);
        let version = stated.and_then(|version| version.parse().ok());
        Some(version.and_then(|version| read.with_version(version)).unwrap_or(read))
    }
}

/// What a file holds.
pub(crate) enum Cached {
    /// libcni's record.
    Record(Box<CachedAttachment>),
    /// A bare result, as libcni wrote it before it had records.
    Bare(Box<NetworkResult>),
}

#[derive(Serialize, Deserialize)]
struct Record {
    kind: String,
    #[serde(rename = "containerId")]
    container_id: String,
    #[serde(default)]
    config: Option<String>,
    #[serde(rename = "ifName")]
    interface: String,
    #[serde(rename = "networkName")]
    network: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<String>,
    #[serde(rename = "cniArgs", default, skip_serializing_if = "Option::is_none")]
    arguments: Option<Vec<(String, String)>>,
    #[serde(rename = "capabilityArgs", default, skip_serializing_if = "Option::is_none")]
    capabilities: Option<Capabilities>,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    result: Value,
}

impl Cache<'_> {
    fn results(&self) -> PathBuf {
        self.directory.join("results")
    }

    /// The caller has checked the names.
    pub(crate) fn path(&self, network: &str, id: &AttachmentId) -> PathBuf {
        self.results().join(format!("{network}-{}-{}", id.container_id, id.interface))
    }

    /// Records an attachment.
    pub(crate) async fn store(
        &self,
        network: &Network,
        attachment: &Attachment,
        result: Value,
    ) -> Result<(), Error> {
        let path = self.path(network.name(), &attachment.id);
        let record = Record {
            kind: KIND.to_owned(),
            container_id: attachment.id.container_id.clone(),
            config: Some(STANDARD.encode(network.json())),
            interface: attachment.id.interface.clone(),
            network: network.name().to_owned(),
            netns: attachment.netns.clone(),
            arguments: Some(attachment.arguments.clone()).filter(|arguments| !arguments.is_empty()),
            capabilities: Some(attachment.capabilities.clone()).filter(|given| !given.is_empty()),
            result,
        };
        let written = match serde_json::to_vec(&record) {
            Ok(json) => self.host.write_file(&path, &json).await,
            Err(error) => Err(error.into()),
        };
        written.map_err(|source| Error::Write { path, source })
    }

    /// Forgets an attachment.
    pub(crate) async fn remove(&self, network: &str, id: &AttachmentId) -> Result<(), Error> {
        let path = self.path(network, id);
        self.host.remove_file(&path).await.map_err(|source| Error::Remove { path, source })
    }

    /// Reads an attachment; `None` if there is none. Two different attachments
    /// may share a file name (`a-b` and `c`, `a` and `b-c`); one that another
    /// has taken is not there.
    pub(crate) async fn load(&self, network: &str, id: &AttachmentId) -> Result<Option<Cached>, Error> {
        let path = self.path(network, id);
        let read = self.host.read_file(&path, MAX_FILE).await;
        let Some(json) = read.map_err(|source| Error::Read { path: path.clone(), source })? else {
            return Ok(None);
        };
        let damaged = |source| Error::Cache { path, source };
        if let Some(record) = record(&json) {
            let own = record.network == network && record.attachment.id == *id;
            return Ok(own.then(|| Cached::Record(Box::new(record))));
        }
        match NetworkResult::parse(&json, SpecVersion::V0_1_0) {
            Ok(result) if !result.ips.is_empty() || !result.interfaces.is_empty() => {
                Ok(Some(Cached::Bare(Box::new(result))))
            }
            Ok(_) => Err(damaged("it holds neither a record nor a result".into())),
            Err(error) => Err(damaged(error.into())),
        }
    }

    /// Removes temporary files of processes that were killed while they wrote.
    pub(crate) async fn remove_leftovers(&self) -> Result<usize, Error> {
        let directory = self.results();
        let listed = self.host.list_directory(&directory).await;
        let names = listed.map_err(|source| Error::List { path: directory.clone(), source })?;
        let mut removed = 0;
        for name in names {
            if self.host.temporary_age(&name).is_none_or(|age| age < LEFTOVER) {
                continue;
            }
            let path = directory.join(name);
            // No directory that is merely called like one.
            if let Ok(Some(_)) = self.host.find_file(&path).await {
                self.host.remove_file(&path).await.map_err(|source| Error::Remove { path, source })?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// All recorded attachments, ordered by file name. What is no record is left
    /// out.
    pub(crate) async fn all(&self) -> Result<Vec<CachedAttachment>, Error> {
        let directory = self.results();
        let listed = self.host.list_directory(&directory).await;
        let mut names = listed.map_err(|source| Error::List { path: directory.clone(), source })?;
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        let mut found = Vec::new();
        for name in names {
            // It may have gone meanwhile, or be something else.
            if let Ok(Some(json)) = self.host.read_file(&directory.join(name), MAX_FILE).await {
                found.extend(record(&json));
            }
        }
        Ok(found)
    }
}

/// A record with valid names, or nothing.
fn record(json: &[u8]) -> Option<CachedAttachment> {
    let record: Record = serde_json::from_slice(json).ok().filter(|record: &Record| record.kind == KIND)?;
    let id = AttachmentId { container_id: record.container_id, interface: record.interface };
    id.check().and_then(|()| crate::check_network_name(&record.network)).ok()?;
    Some(CachedAttachment {
        network: record.network,
        attachment: Attachment {
            id,
            netns: record.netns.filter(|netns| !netns.is_empty()),
            arguments: record.arguments.unwrap_or_default(),
            capabilities: record.capabilities.unwrap_or_default(),
        },
        config: STANDARD.decode(record.config.unwrap_or_default()).ok()?,
        result: record.result,
    })
}
