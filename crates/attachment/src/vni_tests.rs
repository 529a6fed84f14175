use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

/// A table that fails when told to, before or after the write took effect.
#[derive(Debug, Default)]
struct Memory {
    leases: RefCell<BTreeMap<String, Lease>>,
    failure: Cell<Option<Failure>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Failure {
    Before,
    After,
}

#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the disk is full")
    }
}

impl std::error::Error for Broken {}

impl Memory {
    fn write(&self, change: impl FnOnce(&mut BTreeMap<String, Lease>)) -> Result<(), Broken> {
        let failure = self.failure.take();
        if failure != Some(Failure::Before) {
            change(&mut self.leases.borrow_mut());
        }
        if failure.is_some() { Err(Broken) } else { Ok(()) }
    }
}

impl Table for &Memory {
    type Error = Broken;

    fn load(&self) -> Result<Vec<Lease>, Broken> {
        Ok(self.leases.borrow().values().cloned().collect())
    }

    fn put(&self, lease: &Lease) -> Result<(), Broken> {
        self.write(|leases| drop(leases.insert(lease.pod.clone(), lease.clone())))
    }

    fn remove(&self, pod: &str) -> Result<(), Broken> {
        self.write(|leases| drop(leases.remove(pod)))
    }
}

fn peer(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

#[test]
fn a_pod_keeps_its_number_over_a_restart() {
    let table = Memory::default();
    let mut before = Allocator::new(&table, 100..=200).unwrap();
    let first = before.allocate("a", peer(1)).unwrap();
    assert_eq!(before.allocate("a", peer(1)).unwrap(), first, "asking again is free");
    drop(before);
    let mut after = Allocator::new(&table, 100..=200).unwrap();
    assert_eq!(after.allocate("a", peer(1)).unwrap(), first);
    assert_ne!(after.allocate("b", peer(2)).unwrap().vni, first.vni);
}

#[test]
fn a_machine_has_one_pod_and_a_pod_one_machine() {
    let table = Memory::default();
    let mut allocator = Allocator::new(&table, 1..=9).unwrap();
    allocator.allocate("a", peer(1)).unwrap();
    assert!(matches!(allocator.allocate("b", peer(1)), Err(LeaseError::PeerTaken { .. })));
    assert!(matches!(allocator.allocate("a", peer(2)), Err(LeaseError::OtherPeer { .. })));
    allocator.release("a").unwrap();
    allocator.allocate("b", peer(1)).unwrap();
}

#[test]
fn a_released_number_rests_until_the_others_were_used() {
    let table = Memory::default();
    let mut allocator = Allocator::new(&table, 1..=3).unwrap();
    let first = allocator.allocate("a", peer(1)).unwrap().vni;
    allocator.release("a").unwrap();
    allocator.release("a").unwrap();
    let mut seen = Vec::new();
    for (pod, number) in [("b", 2), ("c", 3)] {
        seen.push(allocator.allocate(pod, peer(number)).unwrap().vni);
    }
    assert!(!seen.contains(&first), "{first} in {seen:?}");
    assert_eq!(allocator.allocate("d", peer(4)).unwrap().vni, first);
    let full = allocator.allocate("e", peer(5)).unwrap_err();
    assert!(matches!(full, LeaseError::Exhausted { count: 3 }));
}

#[test]
fn ranges_and_tables_that_cannot_be_are_refused() {
    let table = Memory::default();
    for range in [0..=5, 1..=0x0100_0000, RangeInclusive::new(7, 6)] {
        assert!(matches!(Allocator::new(&table, range), Err(LeaseError::BadRange { .. })));
    }
    for (pod, peer) in [("a", peer(1)), ("b", peer(2))] {
        let lease = Lease { pod: pod.to_owned(), vni: 7, peer };
        table.leases.borrow_mut().insert(pod.to_owned(), lease);
    }
    let error = Allocator::new(&table, 1..=9).unwrap_err();
    assert!(matches!(error, LeaseError::Contradiction { .. }));
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(u8, u8),
    Release(u8),
    Restart,
    Break(Failure),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_u8..6, 0_u8..6).prop_map(|(pod, peer)| Step::Allocate(pod, peer)),
        3 => (0_u8..6).prop_map(Step::Release),
        1 => Just(Step::Restart),
        1 => prop_oneof![Just(Failure::Before), Just(Failure::After)].prop_map(Step::Break),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    /// Whatever happens, in whatever order: no two pods have one number or one
    /// machine, and what a pod was given stays its own until it is released.
    #[test]
    fn never_two_pods_with_one_number(steps in steps()) {
        let table = Memory::default();
        let mut allocator = Allocator::new(&table, 10..=14).unwrap();
        let mut given: BTreeMap<String, Lease> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Allocate(pod, number) => {
                    let pod = format!("pod-{pod}");
                    if let Ok(lease) = allocator.allocate(&pod, peer(number)) {
                        for (other, theirs) in &given {
                            if *other != pod {
                                prop_assert_ne!(theirs.vni, lease.vni);
                                prop_assert_ne!(theirs.peer, lease.peer);
                            }
                        }
                        if let Some(before) = given.get(&pod) {
                            prop_assert_eq!(before, &lease);
                        }
                        given.insert(pod, lease);
                    }
                }
                Step::Release(pod) => {
                    let pod = format!("pod-{pod}");
                    // After a failure the number may be free or not: the tunnel is gone
                    // in either case, so there is nothing left to hold it to.
                    if allocator.release(&pod).is_ok() {
                        prop_assert!(allocator.lease(&pod).is_none());
                    }
                    given.remove(&pod);
                }
                Step::Restart => {
                    table.failure.set(None);
                    allocator = Allocator::new(&table, 10..=14).expect("no contradiction");
                    for (pod, lease) in &given {
                        prop_assert_eq!(allocator.lease(pod), Some(lease));
                    }
                }
                Step::Break(failure) => table.failure.set(Some(failure)),
            }
        }
    }
}
