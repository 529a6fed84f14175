//! Rings in a memory that a guest fills as it likes: what a fuzzer runs.

use std::time::Instant;

use rustix::event::epoll::{self, CreateFlags};
use vhost_user_backend::{VringMutex, VringT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use super::rings::{Memory, Scratch, give, take};
use super::switch::Switch;

/// The guest's memory: two rings, and room for what they speak of.
const MEMORY_BYTES: usize = 64 << 10;
/// Chains that a ring may have.
const CHAINS: u16 = 16;
/// Where the parts of the guest's ring lie; those of the other are `OTHER` on.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x200;
const OTHER: u64 = 0x400;

/// Runs one trial. Panics when something does not hold that must.
///
/// The first byte says whether events have indices. Then come rounds: where
/// something is written (two bytes), how much (one), and that; after each the device
/// takes what the guest sends and gives what it has.
pub(crate) fn run(input: &[u8]) {
    let Some((flags, mut rest)) = input.split_first() else { return };
    let ranges = [(GuestAddress(0), MEMORY_BYTES)];
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("there is room for a small machine");
    let memory: Memory = GuestMemoryAtomic::new(memory);
    let ring = |base: u64| {
        let ring = VringMutex::new(memory.clone(), CHAINS).expect("a power of two");
        ring.set_queue_size(CHAINS);
        ring.set_queue_info(base + DESCRIPTORS, base + AVAILABLE, base + USED).expect("aligned addresses");
        ring.set_queue_event_idx(flags & 1 != 0);
        ring.set_queue_ready(true);
        ring.set_enabled(true);
        ring
    };
    let (from_guest, to_guest) = (ring(0), ring(OTHER));
    let poll = epoll::create(CreateFlags::CLOEXEC).expect("an epoll instance");
    let mut switch = Switch::new(3, 4, poll);
    let mut scratch = Scratch::new();
    let now = Instant::now();
    while let [low, high, length, tail @ ..] = rest {
        let (bytes, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        // Beyond the memory's end there is nothing to write to.
        let _: Result<_, _> =
            memory.memory().write(bytes, GuestAddress(u16::from_le_bytes([*low, *high]).into()));
        // A ring whose turn is not over is looked at again, as often as the guest likes.
        take(&from_guest, &memory, &mut switch, &mut scratch);
        switch.check();
        give(&to_guest, &memory, &mut switch, &mut scratch, now);
        switch.check();
    }
}
