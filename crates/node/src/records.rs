//! What machine drivers remember of a pod's machine: one file for each.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;

use kina_model::PodId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Node};

/// Most bytes of a record that are read.
const LIMIT: usize = 64 * 1024;

/// Most cgroups that are looked at for one of a pod.
const MOST_CGROUPS: usize = 100_000;

/// Records of the form `R`, in `<pods directory>/<pod id>/machine/<name>`.
pub struct MachineRecords<R> {
    node: Arc<dyn Node>,
    pods_directory: PathBuf,
    name: &'static str,
    form: PhantomData<fn() -> R>,
}

/// What there is of a record.
#[derive(Debug)]
pub enum Recorded<R> {
    /// Nothing.
    Missing,
    /// All of it.
    Whole(R),
    /// Something that cannot be understood: which file, and why.
    Damaged(String),
}

impl<R: Serialize + DeserializeOwned> MachineRecords<R> {
    /// Touches nothing.
    #[must_use]
    pub fn new(node: Arc<dyn Node>, pods_directory: PathBuf, name: &'static str) -> Self {
        Self { node, pods_directory, name, form: PhantomData }
    }

    /// Where a pod's machine keeps its files.
    #[must_use]
    pub fn directory(&self, pod: &PodId) -> PathBuf {
        self.pods_directory.join(pod.as_str()).join("machine")
    }

    /// Reads a pod's record.
    ///
    /// # Errors
    /// When the node does not let it be read.
    pub async fn read(&self, pod: &PodId) -> Result<Recorded<R>, Error> {
        let path = self.directory(pod).join(self.name);
        match self.node.read_file(&path, LIMIT).await {
            Ok(content) => Ok(match serde_json::from_slice(&content) {
                Ok(record) => Recorded::Whole(record),
                Err(source) => {
                    Recorded::Damaged(format!("the machine's record {} is damaged: {source}", path.display()))
                }
            }),
            Err(error) if error.is_not_found() => Ok(Recorded::Missing),
            Err(error @ (Error::TooLarge { .. } | Error::NotAFile { .. })) => {
                Ok(Recorded::Damaged(format!("the machine's record is damaged: {error}")))
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces a pod's record.
    ///
    /// # Errors
    /// When it cannot be written; the old one stays then.
    pub async fn write(&self, pod: &PodId, record: &R) -> Result<(), Error> {
        let path = self.directory(pod).join(self.name);
        match serde_json::to_vec(record) {
            Ok(content) => self.node.write_file(&path, &content, 0o600).await,
            Err(source) => Err(Error::Record { path, source }),
        }
    }

    /// Pods that have a directory, whether there is a record in it or not.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn pods(&self) -> Result<Vec<PodId>, Error> {
        let names = self.node.list_directory(&self.pods_directory).await?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }
}

/// The cgroup of a pod of which no record tells any more: the first from the root on
/// whose name ends with the pod's id, which is no other's. None when nothing of it
/// runs.
///
/// # Errors
/// When cgroups cannot be listed, or there are too many.
pub async fn find_cgroup(node: &dyn Node, pod: &PodId) -> Result<Option<String>, Error> {
    let mut parents = VecDeque::from(["/".to_owned()]);
    let mut left = MOST_CGROUPS;
    while let Some(parent) = parents.pop_front() {
        let children = node.cgroups(&parent, "").await?;
        if let Some(found) = children.iter().find(|path| path.ends_with(pod.as_str())) {
            return Ok(Some(found.clone()));
        }
        left = left.checked_sub(children.len()).ok_or(Error::Cgroups { limit: MOST_CGROUPS })?;
        parents.extend(children);
    }
    Ok(None)
}
