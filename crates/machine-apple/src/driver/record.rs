//! What the driver remembers of a machine: `<machine directory>/apple.json`.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use kina_machine::{PortProtocol, PublishedPort};
use kina_model::PodId;
use serde::{Deserialize, Serialize};

use crate::Error;

const NAME: &str = "apple.json";

/// Tells files apart that are not complete yet. One that is left goes with its
/// directory.
static FRESH: AtomicU64 = AtomicU64::new(0);

/// Most bytes of a record that are read.
const LIMIT: usize = 64 * 1024;

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) storage_directory: PathBuf,
    pub(super) memory_bytes: u64,
    pub(super) cpus: u32,
    pub(super) shareable: Vec<PathBuf>,
    pub(super) ports: Vec<Port>,
    pub(super) phase: Phase,
}

/// A published port, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Port {
    address: Option<IpAddr>,
    node: u16,
    machine: u16,
    udp: bool,
}

impl From<&PublishedPort> for Port {
    fn from(port: &PublishedPort) -> Self {
        let PublishedPort { address, node, machine, protocol } = *port;
        Self { address, node, machine, udp: protocol == PortProtocol::Udp }
    }
}

impl From<&Port> for PublishedPort {
    fn from(port: &Port) -> Self {
        let Port { address, node, machine, udp } = *port;
        let protocol = if udp { PortProtocol::Udp } else { PortProtocol::Tcp };
        Self { address, node, machine, protocol }
    }
}

/// How far a machine has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// Nothing has been asked of Apple.
    Created,
    /// A boot has been asked for and did not come to its end: there may be anything.
    Booting,
    Started(Started),
    Stopped {
        reason: String,
        /// Whether Apple may still have something of it.
        remains: bool,
    },
}

/// A machine that has booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Started {
    pub(super) network: String,
    pub(super) address: IpAddr,
    pub(super) image: String,
    /// Of Apple's program.
    pub(super) version: String,
}

/// What there is of a record.
#[derive(Debug)]
pub(super) enum Recorded {
    Missing,
    Whole(Record),
    /// Something that cannot be understood: which file, and why.
    Damaged(String),
}

/// The records below one directory.
#[derive(Debug)]
pub(super) struct Records {
    pods_directory: PathBuf,
}

impl Records {
    pub(super) fn new(pods_directory: PathBuf) -> Self {
        Self { pods_directory }
    }

    pub(super) fn directory(&self, pod: &PodId) -> PathBuf {
        self.pods_directory.join(pod.as_str()).join("machine")
    }

    fn path(&self, pod: &PodId) -> PathBuf {
        self.directory(pod).join(NAME)
    }

    pub(super) async fn read(&self, pod: &PodId) -> Result<Recorded, Error> {
        let path = self.path(pod);
        let damaged = |reason: String| {
            Recorded::Damaged(format!("the machine's record {} is damaged: {reason}", path.display()))
        };
        match tokio::fs::read(&path).await {
            Ok(content) if content.len() > LIMIT => Ok(damaged("it is too long".to_owned())),
            Ok(content) => Ok(match serde_json::from_slice(&content) {
                Ok(record) => Recorded::Whole(record),
                Err(error) => damaged(error.to_string()),
            }),
            Err(error) if is_gone(&error) => Ok(Recorded::Missing),
            Err(source) => Err(Error::file("read", path, source)),
        }
    }

    /// Replaces a record: it is the old one or the new one at any time.
    pub(super) async fn write(&self, pod: &PodId, record: &Record) -> Result<(), Error> {
        let path = self.path(pod);
        let fresh = path.with_extension(FRESH.fetch_add(1, Ordering::Relaxed).to_string());
        let content = serde_json::to_vec(record)
            .map_err(|error| Error::file("write", &path, io::Error::other(error)))?;
        let write = async {
            tokio::fs::write(&fresh, content).await?;
            tokio::fs::File::open(&fresh).await?.sync_all().await?;
            tokio::fs::rename(&fresh, &path).await
        };
        write.await.map_err(|source| Error::file("write", &path, source))
    }

    /// Removes everything in the machine's directory, the record last.
    pub(super) async fn remove(&self, pod: &PodId) -> Result<(), Error> {
        let directory = self.directory(pod);
        for name in names(&directory).await?.into_iter().filter(|name| name != NAME) {
            remove_file(&directory.join(name)).await?;
        }
        remove_file(&self.path(pod)).await
    }

    /// Pods that have a directory, whether there is a record in it or not.
    pub(super) async fn pods(&self) -> Result<Vec<PodId>, Error> {
        Ok(names(&self.pods_directory).await?.iter().filter_map(|name| name.parse().ok()).collect())
    }
}

/// Nothing is there, or no directory that it could be in.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The names in a directory; none when it is not there.
async fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::file("list", directory, source);
    let mut entries = match tokio::fs::read_dir(directory).await {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut names = Vec::new();
    while let Some(entry) = entries.next_entry().await.map_err(failed)? {
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// Removes a file; one that is not there is removed.
pub(super) async fn remove_file(path: &Path) -> Result<(), Error> {
    match tokio::fs::remove_file(path).await {
        Err(error) if !is_gone(&error) => Err(Error::file("remove", path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes a directory with what is in it; one that is not there is removed.
pub(super) async fn remove_tree(path: &Path) -> Result<(), Error> {
    match tokio::fs::remove_dir_all(path).await {
        Err(error) if !is_gone(&error) => Err(Error::file("remove", path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_are_replaced_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::new(directory.path().join("pods"));
        let pod = PodId::random();
        assert!(matches!(records.read(&pod).await.unwrap(), Recorded::Missing));
        assert_eq!(records.pods().await.unwrap(), []);
        tokio::fs::create_dir_all(records.directory(&pod)).await.unwrap();
        let port = PublishedPort { address: None, node: 1, machine: 2, protocol: PortProtocol::Udp };
        let mut record = Record {
            storage_directory: "/s".into(),
            memory_bytes: 1,
            cpus: 2,
            shareable: vec!["/d".into()],
            ports: vec![Port::from(&port)],
            phase: Phase::Created,
        };
        for phase in [
            Phase::Created,
            Phase::Booting,
            Phase::Started(Started {
                network: "n".into(),
                address: [10, 0, 0, 1].into(),
                image: "i".into(),
                version: "1.2.2".into(),
            }),
            Phase::Stopped { reason: "r".into(), remains: true },
        ] {
            record.phase = phase;
            records.write(&pod, &record).await.unwrap();
            match records.read(&pod).await.unwrap() {
                Recorded::Whole(read) => assert_eq!(read, record),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(PublishedPort::from(&record.ports[0]), port);
        assert_eq!(records.pods().await.unwrap(), std::slice::from_ref(&pod));
        std::fs::write(records.path(&pod), "{").unwrap();
        match records.read(&pod).await.unwrap() {
            Recorded::Damaged(reason) => assert!(reason.contains("apple.json is damaged"), "{reason}"),
            other => panic!("{other:?}"),
        }
        std::fs::write(records.directory(&pod).join("console.log"), "x").unwrap();
        records.remove(&pod).await.unwrap();
        records.remove(&pod).await.unwrap();
        assert_eq!(std::fs::read_dir(records.directory(&pod)).unwrap().count(), 0);
    }
}
