//! Which VXLAN network identifier a pod's tunnel has.
//!
//! The far end of a tunnel is a machine that outlives the daemon, so what was given
//! out must be known again after a restart, and a number must never be given to a
//! second pod while a tunnel of the first may still be up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// The numbers that exist (RFC 7348: 24 bits; 0 is left alone).
const ALL: RangeInclusive<u32> = 1..=0x00ff_ffff;

/// What one pod's tunnel has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The pod.
    pub pod: String,
    /// The tunnel's network identifier.
    pub vni: u32,
    /// The address of the pod's machine on the underlay.
    pub peer: IpAddr,
}

/// Where leases are kept. What [`Table::put`] and [`Table::remove`] returned
/// success for is what [`Table::load`] returns, whatever happens in between; after a
/// failure it may be either.
pub trait Table {
    /// Why the table failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// All leases.
    fn load(&self) -> Result<Vec<Lease>, Self::Error>;
    /// Records a lease, durably.
    fn put(&self, lease: &Lease) -> Result<(), Self::Error>;
    /// Forgets a pod's lease, durably. Nothing to forget is success.
    fn remove(&self, pod: &str) -> Result<(), Self::Error>;
}

/// Why a pod got no network identifier.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError<E: std::error::Error + 'static> {
    /// The table failed.
    #[error("{operation} tunnel leases")]
    Table {
        /// What was being done: "load", "record", "forget".
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: E,
    },
    /// All are in use.
    #[error("all {count} tunnel identifiers are in use: widen their range")]
    Exhausted {
        /// How many there are.
        count: u32,
    },
    /// The range has numbers that no VXLAN can have.
    #[error("{first} to {last} is no range of tunnel identifiers: 1 to 16777215")]
    BadRange {
        /// The first number asked for.
        first: u32,
        /// The last.
        last: u32,
    },
    /// The pod's tunnel leads to another machine.
    #[error("the tunnel of pod {pod} leads to {peer}: release it first")]
    OtherPeer {
        /// The pod.
        pod: String,
        /// Where its tunnel leads.
        peer: IpAddr,
    },
    /// Another pod has that machine.
    #[error("the machine {peer} belongs to pod {pod}")]
    PeerTaken {
        /// The machine.
        peer: IpAddr,
        /// Whose it is.
        pod: String,
    },
    /// The table holds what this allocator can never have put there.
    #[error("the tunnel leases contradict each other: {first} and {second} share an identifier or a machine")]
    Contradiction {
        /// One pod.
        first: String,
        /// The other.
        second: String,
    },
}

/// Hands out network identifiers: one to a pod, to no other until it is released.
#[derive(Debug)]
pub struct Allocator<T> {
    table: T,
    range: RangeInclusive<u32>,
    /// By pod.
    leases: BTreeMap<String, Lease>,
    /// Pods whose lease could not be recorded or forgotten. It may be in the table or
    /// not, so it stays theirs, and is recorded before they get it.
    unsure: BTreeSet<String>,
    used: BTreeSet<u32>,
    /// Where the search begins: numbers rest as long as possible before they are used
    /// again, so that a late packet of an old tunnel finds no new one.
    next: u32,
}

impl<T: Table> Allocator<T> {
    /// The allocator of `range`, which knows what `table` holds. Leases outside of the
    /// range (it was changed since) stay valid until they are released.
    pub fn new(table: T, range: RangeInclusive<u32>) -> Result<Self, LeaseError<T::Error>> {
        let (first, last) = (*range.start(), *range.end());
        if range.is_empty() || !ALL.contains(&first) || !ALL.contains(&last) {
            return Err(LeaseError::BadRange { first, last });
        }
        let loaded = table.load().map_err(|source| LeaseError::Table { operation: "load", source })?;
        let next = loaded.iter().map(|lease| lease.vni).filter(|vni| range.contains(vni)).max();
        let next = next.map_or(first, |vni| after(vni, &range));
        let mut allocator = Self {
            table,
            range,
            leases: BTreeMap::new(),
            unsure: BTreeSet::new(),
            used: BTreeSet::new(),
            next,
        };
        for lease in loaded {
            let clash = |other: &&Lease| other.vni == lease.vni || other.peer == lease.peer;
            if let Some(other) = allocator.leases.values().find(clash) {
                return Err(LeaseError::Contradiction { first: other.pod.clone(), second: lease.pod });
            }
            allocator.used.insert(lease.vni);
            allocator.leases.insert(lease.pod.clone(), lease);
        }
        Ok(allocator)
    }

    /// What `pod` has.
    pub fn lease(&self, pod: &str) -> Option<&Lease> {
        self.leases.get(pod)
    }

    /// All that is given out.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// The lease of `pod` for a tunnel to `peer`: the one it has, or a new one, which
    /// is recorded before it is returned.
    pub fn allocate(&mut self, pod: &str, peer: IpAddr) -> Result<Lease, LeaseError<T::Error>> {
        let lease = match self.leases.get(pod) {
            Some(lease) if lease.peer != peer => {
                return Err(LeaseError::OtherPeer { pod: pod.to_owned(), peer: lease.peer });
            }
            Some(lease) if !self.unsure.contains(pod) => return Ok(lease.clone()),
            Some(lease) => lease.clone(),
            None => self.reserve(pod, peer)?,
        };
        self.table.put(&lease).map_err(|source| LeaseError::Table { operation: "record", source })?;
        self.unsure.remove(pod);
        Ok(lease)
    }

    /// A lease for a pod that has none, not recorded yet.
    fn reserve(&mut self, pod: &str, peer: IpAddr) -> Result<Lease, LeaseError<T::Error>> {
        if let Some(other) = self.leases.values().find(|lease| lease.peer == peer) {
            return Err(LeaseError::PeerTaken { peer, pod: other.pod.clone() });
        }
        let count = self.range.end() - self.range.start() + 1;
        let mut vni = self.next;
        let mut tried = 0;
        while self.used.contains(&vni) {
            tried += 1;
            if tried == count {
                return Err(LeaseError::Exhausted { count });
            }
            vni = after(vni, &self.range);
        }
        let lease = Lease { pod: pod.to_owned(), vni, peer };
        self.next = after(vni, &self.range);
        self.used.insert(vni);
        self.unsure.insert(pod.to_owned());
        self.leases.insert(pod.to_owned(), lease.clone());
        Ok(lease)
    }

    /// Takes back what `pod` has, once its tunnel is gone. Nothing to take is success.
    pub fn release(&mut self, pod: &str) -> Result<(), LeaseError<T::Error>> {
        if self.leases.contains_key(pod) {
            self.unsure.insert(pod.to_owned());
        }
        self.table.remove(pod).map_err(|source| LeaseError::Table { operation: "forget", source })?;
        if let Some(lease) = self.leases.remove(pod) {
            self.used.remove(&lease.vni);
            self.unsure.remove(pod);
        }
        Ok(())
    }
}

fn after(vni: u32, range: &RangeInclusive<u32>) -> u32 {
    if vni >= *range.end() { *range.start() } else { vni + 1 }
}

#[cfg(test)]
#[path = "vni_tests.rs"]
mod tests;
