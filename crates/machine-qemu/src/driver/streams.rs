//! How streams reach a machine's guest: by a process of its own, or by the kernel's
//! vsock device with an address (CID) of its own.
//!
//! The kernel has one table of addresses for all of the node, virtual machines of others
//! included. So an address is taken by setting it on the device that QEMU is given then:
//! the kernel refuses one that somebody has, and frees it when the device is closed. The
//! first one tried belongs to the machine's user, which no other machine of this driver
//! has; it is written down with what was started.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use kina_vsock::{Transport, available};
use serde::{Deserialize, Serialize};

use super::record::Process;
use crate::config::Vsock;

/// The kernel's device.
pub(super) const DEVICE: &str = "/dev/vhost-vsock";

/// The first address that machines get: below are those that people give by hand.
const FIRST_CID: u32 = 1 << 16;

/// How many are tried.
const TRIES: u32 = 1024;

/// What carries a machine's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Streams {
    /// The process `kina-vsock`.
    Device(Process),
    /// The kernel.
    Kernel {
        /// The machine's address.
        cid: u32,
    },
}

/// Which of the two new machines get. `kernel` where there is none is an error later on,
/// with the reason.
pub(super) fn choose(choice: Vsock) -> Transport {
    match choice {
        Vsock::Kina => Transport::User,
        Vsock::Kernel => Transport::Kernel,
        Vsock::Auto => available(),
    }
}

/// Opens the kernel's device with an address that nobody on the node has.
pub(super) fn open(uid: u32, users: &Range<u32>) -> io::Result<(OwnedFd, u32)> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let cid = take(uid, users, |cid| ioctl::set_cid(&device, cid))?;
    Ok((File::into(device), cid))
}

/// The first address that `set` takes.
fn take(uid: u32, users: &Range<u32>, mut set: impl FnMut(u32) -> io::Result<()>) -> io::Result<u32> {
    for cid in candidates(uid, users) {
        match set(cid) {
            Ok(()) => return Ok(cid),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{TRIES} addresses from {FIRST_CID} on are taken")))
}

/// The machine's own address, then those that no machine with a user has.
fn candidates(uid: u32, users: &Range<u32>) -> impl Iterator<Item = u32> {
    // Two users make one machine.
    let machines = (users.end - users.start) / 2;
    let own = FIRST_CID.saturating_add(uid.saturating_sub(users.start) / 2);
    let others = FIRST_CID.saturating_add(machines);
    std::iter::once(own).chain((others..u32::MAX).take(TRIES as usize))
}

/// The one place that talks to the device.
mod ioctl {
    #![allow(unsafe_code, reason = "the ioctl of /dev/vhost-vsock has no safe wrapper")]

    use super::{File, io};

    /// `VHOST_VSOCK_SET_GUEST_CID` of `linux/vhost.h`: `_IOW(0xAF, 0x60, __u64)`.
    const SET_GUEST_CID: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<u64>(0xaf, 0x60);

    pub(super) fn set_cid(device: &File, cid: u32) -> io::Result<()> {
        // SAFETY: this number takes a pointer to one u64, which Setter passes.
        let set = unsafe { rustix::ioctl::Setter::<SET_GUEST_CID, u64>::new(u64::from(cid)) };
        // SAFETY: the kernel reads the u64 and nothing else, before the call returns.
        unsafe { rustix::ioctl::ioctl(device, set) }.map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: Range<u32> = 1000..1100;

    #[test]
    fn no_two_machines_try_the_same_first() {
        let mut first: Vec<u32> =
            USERS.step_by(2).map(|uid| candidates(uid, &USERS).next().unwrap()).collect();
        assert_eq!((first[0], first[49]), (FIRST_CID, FIRST_CID + 49));
        first.dedup();
        assert_eq!(first.len(), 50);
        // What is tried when others have it belongs to no machine.
        let rest: Vec<u32> = candidates(1002, &USERS).skip(1).collect();
        assert_eq!((rest[0], rest.len()), (FIRST_CID + 50, TRIES as usize));
    }

    #[test]
    fn one_that_is_taken_is_left_to_whom_it_belongs() {
        let in_use = || Err(io::ErrorKind::AddrInUse.into());
        let taken = [FIRST_CID + 1, FIRST_CID + 50];
        let set = |cid: u32| if taken.contains(&cid) { in_use() } else { Ok(()) };
        assert_eq!(take(1002, &USERS, set).unwrap(), FIRST_CID + 51);
        assert_eq!(take(1004, &USERS, set).unwrap(), FIRST_CID + 2);
        let error = take(1002, &USERS, |_| in_use()).unwrap_err();
        assert!(error.to_string().contains("1024 addresses"), "{error}");
        let error = take(1002, &USERS, |_| Err(io::ErrorKind::PermissionDenied.into())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn the_written_form_is_stable() {
        for (streams, text) in [
            (Streams::Device(Process { pid: 7, start_ticks: 9 }), r#"{"pid":7,"start_ticks":9}"#),
            (Streams::Kernel { cid: 65_536 }, r#"{"cid":65536}"#),
        ] {
            assert_eq!(serde_json::to_string(&streams).unwrap(), text);
            assert_eq!(serde_json::from_str::<Streams>(text).unwrap(), streams);
        }
    }
}
