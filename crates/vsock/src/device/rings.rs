//! The guest's two rings: what it sends, and the room that it offers.
//!
//! Everything here is the guest's word: indices, addresses, lengths. A chain that
//! does not hold what it should is given back unused; a ring whose indices make no
//! sense is not looked at again until the guest's driver sets it up anew.

use std::time::Instant;

use vhost_user_backend::{VringMutex, VringState, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    Bytes, GuestAddressSpace, GuestMemory, GuestMemoryAtomic, GuestMemoryMmap, Permissions, VolatileSlice,
};

use super::stream::WINDOW;
use super::switch::Switch;
use crate::packet::{HEADER, Header};

/// The guest's memory, which the emulator may change.
pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// How many chains are handled before other events have their turn.
const CHAINS_PER_TURN: usize = 512;
/// The longest chain of buffers; more than any driver makes.
const BUFFERS_LIMIT: usize = 64;
/// The most bytes in one packet for the guest.
const PAYLOAD_LIMIT: usize = 64 * 1024;

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The guest will tell when there is more.
    Done,
    /// There is more already.
    More,
    /// The ring is damaged.
    Broken,
}

/// Why a ring cannot be gone on with.
struct Damage;

/// Room for one packet, so that none is allocated for.
pub(crate) struct Scratch(Box<[u8]>);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(vec![0; WINDOW as usize].into())
    }
}

/// Gives the switch what the guest has sent.
pub(crate) fn take(ring: &VringMutex, memory: &Memory, switch: &mut Switch, scratch: &mut Scratch) -> Turn {
    let mut ring = ring.get_mut();
    turn(&mut ring, |ring| {
        let memory = memory.memory();
        let Some((head, buffers)) = next_chain(ring, &memory, Permissions::Read)? else { return Ok(None) };
        if let Some(buffers) = buffers {
            receive(&buffers, switch, scratch);
        }
        ring.add_used(head, 0).map_err(|_| Damage)?;
        Ok(Some(()))
    })
}

fn receive<B: BitmapSlice>(buffers: &[VolatileSlice<'_, B>], switch: &mut Switch, scratch: &mut Scratch) {
    let mut bytes = [0; HEADER];
    if copy_out(buffers, 0, &mut bytes) < HEADER {
        return;
    }
    let header = Header::decode(&bytes);
    let payload = usize::try_from(header.length).ok().and_then(|length| scratch.0.get_mut(..length));
    let Some(payload) = payload else { return switch.receive_broken(&header) };
    if copy_out(buffers, HEADER, payload) == payload.len() {
        switch.receive(&header, payload);
    } else {
        switch.receive_broken(&header);
    }
}

/// Puts what the switch has for the guest into the room that the guest offers.
pub(crate) fn give(
    ring: &VringMutex,
    memory: &Memory,
    switch: &mut Switch,
    scratch: &mut Scratch,
    now: Instant,
) -> Turn {
    let mut ring = ring.get_mut();
    if !switch.has_output() {
        return Turn::Done;
    }
    let ended = turn(&mut ring, |ring| {
        if !switch.has_output() {
            return Ok(None);
        }
        let memory = memory.memory();
        let Some((head, buffers)) = next_chain(ring, &memory, Permissions::Write)? else { return Ok(None) };
        let buffers = buffers.unwrap_or_default();
        let room = buffers.iter().map(VolatileSlice::len).fold(0, usize::saturating_add);
        let Some(room) = room.checked_sub(HEADER) else {
            ring.add_used(head, 0).map_err(|_| Damage)?;
            return Ok(Some(()));
        };
        let payload = &mut scratch.0[..room.min(PAYLOAD_LIMIT)];
        let Some(header) = switch.output(payload, now) else {
            ring.get_queue_mut().go_to_previous_position();
            return Ok(None);
        };
        let length = header.length as usize;
        copy_in(&buffers, 0, &header.encode());
        copy_in(&buffers, HEADER, &payload[..length]);
        ring.add_used(head, u32::try_from(HEADER + length).unwrap_or(u32::MAX)).map_err(|_| Damage)?;
        Ok(Some(()))
    });
    // Without output the guest's room is of no interest.
    if ended == Turn::More && !switch.has_output() { Turn::Done } else { ended }
}

/// Handles chains until there is none left, and tells the guest of those used.
fn turn(
    ring: &mut VringState<Memory>,
    mut step: impl FnMut(&mut VringState<Memory>) -> Result<Option<()>, Damage>,
) -> Turn {
    if !ring.is_enabled() || !ring.get_queue().ready() {
        return Turn::Done;
    }
    let mut used = 0;
    let ended = loop {
        match step(ring) {
            Ok(Some(())) => used += 1,
            // The guest must speak up from now on; unless it has put more there
            // meanwhile.
            Ok(None) => match ring.enable_notification() {
                Ok(false) => break Turn::Done,
                Ok(true) => break Turn::More,
                Err(_) => break Turn::Broken,
            },
            Err(Damage) => break Turn::Broken,
        }
        if used == CHAINS_PER_TURN {
            break Turn::More;
        }
    };
    if used > 0 && !matches!(ring.needs_notification(), Ok(false)) {
        // Fails when the emulator has gone, which its own connection tells.
        drop(ring.signal_used_queue());
    }
    ended
}

type Buffers<'a> = Vec<VolatileSlice<'a, vm_memory::bitmap::BS<'a, ()>>>;

/// The next chain's first index, and its buffers; `None` instead of these when
/// they are not in the guest's memory.
#[allow(clippy::type_complexity, reason = "a pair of two optional parts, used twice")]
fn next_chain<'a>(
    ring: &mut VringState<Memory>,
    memory: &'a <Memory as GuestAddressSpace>::T,
    access: Permissions,
) -> Result<Option<(u16, Option<Buffers<'a>>)>, Damage> {
    let mut chains = ring.get_queue_mut().iter(memory.clone()).map_err(|_| Damage)?;
    let Some(chain) = chains.next() else { return Ok(None) };
    let head = chain.head_index();
    if head >= ring.get_queue().size() {
        return Err(Damage);
    }
    let mut buffers = Vec::new();
    for descriptor in chain {
        if descriptor.is_write_only() != (access == Permissions::Write) {
            continue;
        }
        let Ok(slices) = memory.get_slices(descriptor.addr(), descriptor.len() as usize, access) else {
            return Ok(Some((head, None)));
        };
        for slice in slices {
            match slice {
                Ok(slice) if buffers.len() < BUFFERS_LIMIT => buffers.push(slice),
                Ok(_) | Err(_) => return Ok(Some((head, None))),
            }
        }
    }
    Ok(Some((head, Some(buffers))))
}

/// Copies what lies `offset` bytes into `buffers`; returns how much there was.
fn copy_out<B: BitmapSlice>(buffers: &[VolatileSlice<'_, B>], offset: usize, bytes: &mut [u8]) -> usize {
    each_part(buffers, offset, bytes.len(), |buffer, within, at, length| {
        buffer.read_slice(&mut bytes[at..at + length], within).is_ok()
    })
}

/// Copies `bytes` to `offset` bytes into `buffers`; returns how much found room.
fn copy_in<B: BitmapSlice>(buffers: &[VolatileSlice<'_, B>], offset: usize, bytes: &[u8]) -> usize {
    each_part(buffers, offset, bytes.len(), |buffer, within, at, length| {
        buffer.write_slice(&bytes[at..at + length], within).is_ok()
    })
}

/// Goes over the parts of `buffers` that are the bytes from `offset` on, at most
/// `length`: calls with the buffer, the place in it, how many bytes came before,
/// and how many these are. Returns how many there were.
fn each_part<'b, B: BitmapSlice>(
    buffers: &'b [VolatileSlice<'b, B>],
    mut offset: usize,
    length: usize,
    mut copy: impl FnMut(&VolatileSlice<'b, B>, usize, usize, usize) -> bool,
) -> usize {
    let mut done = 0;
    for buffer in buffers {
        let Some(there) = buffer.len().checked_sub(offset) else {
            offset -= buffer.len();
            continue;
        };
        let part = there.min(length - done);
        if part > 0 && !copy(buffer, offset, done, part) {
            break;
        }
        done += part;
        offset = 0;
    }
    done
}
