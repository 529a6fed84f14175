//! Messages over a `SOCK_SEQPACKET` socket: one packet each, of bounded length.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::order::Message;

/// The longest message.
const LIMIT: usize = 64 << 10;

/// Sends a message, with a descriptor if one is given.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &Message,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors;
    if let Some(descriptor) = descriptor {
        descriptors = [descriptor];
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What came in.
#[derive(Debug)]
pub(crate) enum Received {
    Message(Message, Option<OwnedFd>),
    /// Every other holder of the socket is gone.
    Closed,
    TimedOut,
}

/// Waits for a message until `deadline`.
pub(crate) fn receive(socket: BorrowedFd<'_>, deadline: Instant) -> io::Result<Received> {
    if !wait_readable(socket, deadline)? {
        return Ok(Received::TimedOut);
    }
    let mut buffer = vec![0_u8; LIMIT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        match recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received,
            Err(rustix::io::Errno::CONNRESET) => return Ok(Received::Closed),
            Err(error) => return Err(error.into()),
        };
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptors.next();
        }
    }
    if received.bytes == 0 {
        return Ok(Received::Closed);
    }
    let message = serde_json::from_slice(&buffer[..received.bytes])?;
    Ok(Received::Message(message, descriptor))
}

/// Waits until something can be read (also: the end), `false` if the deadline passes first.
pub(crate) fn wait_readable(descriptor: impl AsFd, deadline: Instant) -> io::Result<bool> {
    Ok(wait_any(&[descriptor.as_fd()], deadline)?.is_some())
}

/// Waits until one of a few can be read; returns the first that can, or `None` if the deadline
/// passes before.
pub(crate) fn wait_any(descriptors: &[BorrowedFd<'_>], deadline: Instant) -> io::Result<Option<usize>> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = left.min(Duration::from_secs(3600));
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(3600),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut entries: Vec<PollFd<'_>> =
            descriptors.iter().map(|descriptor| PollFd::new(descriptor, PollFlags::IN)).collect();
        match poll(&mut entries, Some(&timeout)) {
            Ok(0) if Instant::now() >= deadline => return Ok(None),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(entries.iter().position(|entry| !entry.revents().is_empty())),
            Err(error) => return Err(error.into()),
        }
    }
}
