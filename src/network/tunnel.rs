//! The network identifiers of pods' tunnels, kept in the store.
//!
//! The far end of a tunnel is a machine that outlives the daemon. A new daemon
//! knows from the store which identifiers are in use; an identifier is recorded
//! before it is told, and freed when nothing is left of its pod.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use kina_attachment::vni::{Allocator, Lease, LeaseError, Table};
use kina_model::PodId;
use kina_store::{Batch, Record, Store};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What the store keeps of a pod's tunnel. The key is the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelRecord {
    /// The tunnel's network identifier.
    pub vni: u32,
    /// The address of the pod's machine on the underlay.
    pub peer: IpAddr,
}

impl Record for TunnelRecord {
    const TABLE: &'static str = "tunnels";
    const VERSION: u32 = 1;
}

/// The leases in the store.
#[derive(Debug)]
struct Leases(Store);

impl Table for Leases {
    type Error = kina_store::Error;

    fn load(&self) -> Result<Vec<Lease>, kina_store::Error> {
        // One that cannot be understood may have any identifier.
        let records = self.0.table::<TunnelRecord>().list()?;
        Ok(records.into_iter().map(|(pod, TunnelRecord { vni, peer })| Lease { pod, vni, peer }).collect())
    }

    fn put(&self, lease: &Lease) -> Result<(), kina_store::Error> {
        let mut batch = Batch::new();
        batch.put(&lease.pod, &TunnelRecord { vni: lease.vni, peer: lease.peer })?;
        self.0.commit_blocking(batch)
    }

    fn remove(&self, pod: &str) -> Result<(), kina_store::Error> {
        let mut batch = Batch::new();
        batch.delete::<TunnelRecord>(pod);
        self.0.commit_blocking(batch)
    }
}

/// Hands out the identifiers of tunnels. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tunnels {
    store: Store,
    range: RangeInclusive<u32>,
    /// Read from the store when it is first asked. Only held on threads that may
    /// block.
    allocator: Arc<Mutex<Option<Allocator<Leases>>>>,
}

impl Tunnels {
    /// Identifiers of a range, less those that the store knows to be in use.
    /// Nothing is read yet.
    #[must_use]
    pub fn new(store: Store, range: RangeInclusive<u32>) -> Self {
        Self { store, range, allocator: Arc::default() }
    }

    /// The lease of a pod whose machine has the address `peer` on the underlay:
    /// the one that it has, or a new one, which is durable when this returns.
    /// Dropping the call may leave the pod with one.
    ///
    /// # Errors
    /// [`Error::Tunnel`]: all are in use, the machine is another pod's, or the
    /// store failed.
    pub async fn lease(&self, pod: &PodId, peer: IpAddr) -> Result<Lease, Error> {
        let pod = pod.clone();
        self.with(move |allocator| allocator.allocate(pod.as_str(), peer)).await
    }

    /// Frees what a pod has, once nothing is left of its tunnel. Does nothing for
    /// a pod without.
    ///
    /// # Errors
    /// [`Error::Tunnel`] when the store fails; the call may be repeated.
    pub async fn release(&self, pod: &PodId) -> Result<(), Error> {
        // Most pods have none, and need no allocator.
        if matches!(self.store.table::<TunnelRecord>().get(pod.as_str()), Ok(None)) {
            return Ok(());
        }
        let pod = pod.clone();
        self.with(move |allocator| allocator.release(pod.as_str())).await
    }

    /// Frees what pods have of which nothing is known and nothing left.
    ///
    /// # Errors
    /// As [`Tunnels::release`].
    pub async fn release_unknown(&self, known: &HashSet<PodId>) -> Result<(), Error> {
        for (pod, _) in self.store.table::<TunnelRecord>().list_each()? {
            let pod = pod.parse::<PodId>().ok().filter(|pod| !known.contains(pod));
            if let Some(pod) = pod {
                tracing::warn!(%pod, "freeing the tunnel identifier of a pod without a record");
                self.release(&pod).await?;
            }
        }
        Ok(())
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Allocator<Leases>) -> Result<T, LeaseError<kina_store::Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let Self { store, range, allocator } = self.clone();
        let working = tokio::task::spawn_blocking(move || {
            // One that panicked is read again.
            let mut allocator = allocator.lock().unwrap_or_else(|poisoned| {
                allocator.clear_poison();
                let mut allocator = PoisonError::into_inner(poisoned);
                *allocator = None;
                allocator
            });
            let allocator = match &mut *allocator {
                Some(allocator) => allocator,
                empty => empty.insert(Allocator::new(Leases(store), range)?),
            };
            work(allocator)
        });
        let worked = working.await.map_err(|_| Error::ShuttingDown)?;
        worked.map_err(|source| Error::Tunnel(Box::new(source)))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::net::Ipv4Addr;

    use super::*;

    fn peer(number: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, number).into()
    }

    fn pod() -> PodId {
        PodId::random()
    }

    struct Place {
        directory: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap() }
        }

        fn store(&self) -> Store {
            Store::open(self.directory.path().join("records")).unwrap()
        }

        /// As a new daemon has it.
        fn tunnels(&self) -> Tunnels {
            Tunnels::new(self.store(), 1..=3)
        }
    }

    #[tokio::test]
    async fn identifiers_are_unique_across_daemons() {
        let place = Place::new();
        let (one, two, three) = (pod(), pod(), pod());
        let tunnels = place.tunnels();
        let first = tunnels.lease(&one, peer(1)).await.unwrap();
        drop(tunnels);
        let tunnels = place.tunnels();
        let second = tunnels.lease(&two, peer(2)).await.unwrap();
        assert_ne!(first.vni, second.vni);
        assert_eq!(tunnels.lease(&one, peer(1)).await.unwrap(), first);
        // A machine belongs to one pod.
        let error = tunnels.lease(&three, peer(1)).await.unwrap_err();
        assert!(error.source().unwrap().to_string().contains("belongs to pod"), "{error:?}");
        tunnels.lease(&three, peer(3)).await.unwrap();
        // All are in use, also for the next daemon.
        drop(tunnels);
        let tunnels = place.tunnels();
        let error = tunnels.lease(&pod(), peer(4)).await.unwrap_err();
        assert_eq!(
            crate::error::chain(&error),
            "tunnel: all 3 tunnel identifiers are in use: widen their range"
        );
        tunnels.release(&two).await.unwrap();
        tunnels.release(&two).await.unwrap();
        drop(tunnels);
        let fourth = place.tunnels().lease(&pod(), peer(4)).await.unwrap();
        assert_eq!(fourth.vni, second.vni);
    }

    #[tokio::test]
    async fn pods_that_nobody_knows_free_theirs() {
        let place = Place::new();
        let (known, lost) = (pod(), pod());
        let tunnels = place.tunnels();
        tunnels.lease(&known, peer(1)).await.unwrap();
        tunnels.lease(&lost, peer(2)).await.unwrap();
        drop(tunnels);
        let tunnels = place.tunnels();
        tunnels.release_unknown(&HashSet::from([known.clone()])).await.unwrap();
        drop(tunnels);
        let left = place.store().table::<TunnelRecord>().list().unwrap();
        assert_eq!(left, [(known.as_str().to_owned(), TunnelRecord { vni: 1, peer: peer(1) })]);
    }

    /// What cannot be understood might be any identifier: none is given out.
    /// Pods without a tunnel do not suffer.
    #[tokio::test]
    async fn records_of_a_newer_kina_are_not_guessed_at() {
        #[derive(Serialize, Deserialize)]
        struct Newer;
        impl Record for Newer {
            const TABLE: &'static str = TunnelRecord::TABLE;
            const VERSION: u32 = TunnelRecord::VERSION + 1;
        }
        let place = Place::new();
        let store = place.store();
        store.table::<Newer>().put(pod().as_str(), &Newer).await.unwrap();
        let tunnels = Tunnels::new(store, 1..=3);
        let error = tunnels.lease(&pod(), peer(1)).await.unwrap_err();
        assert!(crate::error::chain(&error).contains("load tunnel leases"), "{error:?}");
        tunnels.release(&pod()).await.unwrap();
    }
}
