//! Making user namespaces.
//!
//! A process with threads cannot enter a user namespace, and only a process inside of one can be
//! told its mapping. So a child is forked into it, which lives until its namespaces are taken over.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use kina_fork::Forked;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::{Created, Error, Mapping, With, lines};

/// Makes a user namespace, and what else is asked for to be owned by it. With
/// [`With::Network`] id 0 must be mapped: what is made belongs to it.
///
/// # Errors
/// [`Error::Clone`], [`Error::Map`], [`Error::Unshare`], [`Error::TakeOver`]; nothing is left then.
pub fn create(mapping: &Mapping, with: With) -> Result<Created, Error> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|errno| Error::Clone(errno.into()))?;
    let child = Child::fork(&theirs, &ours, with).map_err(Error::Clone)?;
    drop(theirs);
    for (file, ranges) in [("uid_map", &mapping.uids), ("gid_map", &mapping.gids)] {
        std::fs::write(format!("/proc/{}/{file}", child.0.pid), lines(ranges))
            .map_err(|source| Error::Map { file, source })?;
    }
    let take_over = |errno: Errno| Error::TakeOver(errno.into());
    rustix::net::send(&ours, b"g", SendFlags::NOSIGNAL).map_err(take_over)?;
    let mut report = [0; 4];
    let (length, _) = rustix::net::recv(&ours, &mut report, RecvFlags::empty()).map_err(take_over)?;
    if length != report.len() {
        return Err(Error::TakeOver(io::ErrorKind::UnexpectedEof.into()));
    }
    match i32::from_ne_bytes(report) {
        0 => {}
        errno => return Err(Error::Unshare(io::Error::from_raw_os_error(errno))),
    }
    let open = |kind: &str| {
        let path = format!("/proc/{}/ns/{kind}", child.0.pid);
        File::open(path).map(OwnedFd::from).map_err(Error::TakeOver)
    };
    Ok(Created {
        user: open("user")?,
        network: match with {
            With::Nothing => None,
            With::Network => Some(open("net")?),
        },
    })
}

/// The process in the new user namespace; killed and reaped when dropped.
struct Child(Forked);

impl Child {
    fn fork(socket: &OwnedFd, parents: &OwnedFd, with: With) -> io::Result<Self> {
        let (socket, parents, parent) = (socket.as_raw_fd(), parents.as_raw_fd(), std::process::id());
        // SAFETY: `live` only makes system calls, and never returns.
        let forked =
            unsafe { kina_fork::fork(libc::CLONE_NEWUSER, None, || live(socket, parents, parent, with)) };
        forked.map(Self)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.0.pidfd, Signal::KILL);
        // Killed: this ends. Only an interrupted wait is worth another.
        while let Err(Errno::INTR) =
            rustix::process::waitid(WaitId::PidFd(self.0.pidfd.as_fd()), WaitIdOptions::EXITED)
        {}
    }
}

/// The life of the child: it waits for its mapping, makes what is asked for, says how that went
/// and waits to be killed. Nothing here may allocate or take a lock: it is a copy of one thread
/// of many.
fn live(socket: RawFd, parents: RawFd, parent: u32, with: With) -> ! {
    // SAFETY: plain system calls with numbers and valid buffers; the descriptors are the copies
    // that this process has, and nothing else in it uses any.
    unsafe {
        // Its parent's end closes with the parent, but for this copy of it.
        libc::close(parents);
        // Copies that other children have may be there longer.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid().cast_unsigned() != parent {
            libc::_exit(1);
        }
        let mut byte = 0_u8;
        if libc::recv(socket, (&raw mut byte).cast(), 1, 0) != 1 {
            libc::_exit(1);
        }
        let errno = match with {
            With::Nothing => 0,
            With::Network => unshare_as_root(libc::CLONE_NEWNET),
        };
        // A change of user has unset it.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let report = errno.to_ne_bytes();
        libc::send(socket, report.as_ptr().cast(), report.len(), libc::MSG_NOSIGNAL);
        // To be killed, or to hear of its parent's end.
        libc::recv(socket, (&raw mut byte).cast(), 1, 0);
        libc::_exit(0)
    }
}

/// Becomes the namespace's root, to whom what it makes then belongs; an error number, or 0.
///
/// # Safety
/// To be called by a process of one thread that is to end.
unsafe fn unshare_as_root(flags: libc::c_int) -> libc::c_int {
    // SAFETY: system calls that take numbers only. The C library's own functions would look for
    // other threads, of which this process has a memory but none.
    unsafe {
        let zero: libc::c_long = 0;
        if libc::syscall(libc::SYS_setresgid, zero, zero, zero) < 0
            || libc::syscall(libc::SYS_setresuid, zero, zero, zero) < 0
            || libc::unshare(flags) < 0
        {
            return *libc::__errno_location();
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::{Range, owner, parse};

    fn mapping() -> Mapping {
        let range = Range { inside: 0, outside: 200_000, length: 65536 };
        Mapping { uids: vec![range], gids: vec![Range { outside: 300_000, ..range }] }
    }

    fn inode(descriptor: &OwnedFd) -> u64 {
        rustix::fs::fstat(descriptor).unwrap().st_ino
    }

    #[test]
    fn a_network_namespace_has_its_user_namespace_as_owner() {
        let Created { user, network } = create(&mapping(), With::Network).unwrap();
        let network = network.unwrap();
        assert_eq!(inode(&owner(&network).unwrap()), inode(&user));
        let own = File::open("/proc/self/ns/net").unwrap();
        assert_ne!(inode(&network), own.metadata().unwrap().ino());
        assert_ne!(inode(&owner(&own).unwrap()), inode(&user));
    }

    #[test]
    fn nothing_of_the_child_is_left() {
        let children = || std::fs::read_to_string("/proc/thread-self/children").unwrap();
        let before = children();
        drop(create(&mapping(), With::Nothing).unwrap());
        // Not even when it fails.
        let twice = Mapping { uids: vec![mapping().uids[0]; 2], ..mapping() };
        let refused = create(&twice, With::Nothing).unwrap_err();
        assert!(matches!(refused, Error::Map { file: "uid_map", .. }), "{refused}");
        let no_root = Range { inside: 1, ..mapping().uids[0] };
        let refused = create(&Mapping { uids: vec![no_root], ..mapping() }, With::Network).unwrap_err();
        assert!(matches!(refused, Error::Unshare(_)), "{refused}");
        assert_eq!(children(), before);
    }

    #[test]
    fn many_at_once() {
        std::thread::scope(|scope| {
            let made = || create(&mapping(), With::Network).map(drop);
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(made)).collect();
            for thread in threads {
                thread.join().unwrap().unwrap();
            }
        });
    }

    #[test]
    fn a_process_inside_sees_the_mapping() {
        let created = create(&mapping(), With::Nothing).unwrap();
        // nsenter(1) has one thread.
        let path = format!("/proc/{}/fd/{}", std::process::id(), created.user.as_raw_fd());
        let seen = |file: &str| {
            let output = std::process::Command::new("nsenter")
                .args([&format!("--user={path}"), "cat", &format!("/proc/self/{file}")])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            parse(&String::from_utf8(output.stdout).unwrap()).unwrap()
        };
        assert_eq!(seen("uid_map"), mapping().uids);
        assert_eq!(seen("gid_map"), mapping().gids);
    }
}
