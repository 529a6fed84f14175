//! Child processes and their descriptors, asynchronously.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A pipe's or terminal's end in the event loop.
#[derive(Debug)]
pub(crate) struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    /// Takes a descriptor over and makes it non-blocking. The open file must be
    /// this process's alone: the flag is its, not the descriptor's.
    #[allow(unsafe_code, reason = "the event loop wants to be promised an open descriptor")]
    pub(crate) fn new(descriptor: OwnedFd, interest: Interest) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&descriptor)?;
        rustix::fs::fcntl_setfl(&descriptor, flags | rustix::fs::OFlags::NONBLOCK)?;
        // SAFETY: the AsyncFd owns the descriptor, which thus stays the same until it is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(descriptor, interest)? }))
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.get_ref().as_raw_fd()
    }
}

impl AsyncRead for Descriptor {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            match guard.try_io(|inner| Ok(rustix::io::read(inner.get_ref(), &mut *room)?)) {
                Ok(result) => {
                    buffer.advance(result?);
                    return Poll::Ready(Ok(()));
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Descriptor {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match guard.try_io(|inner| Ok(rustix::io::write(inner.get_ref(), bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Waits for a child by its pidfd and reaps it: 0 to 255, a signal's number plus 128.
#[allow(unsafe_code, reason = "the event loop wants to be promised an open descriptor")]
pub(crate) async fn wait(pidfd: &OwnedFd) -> io::Result<i32> {
    // SAFETY: the descriptor is borrowed, and so stays open, for longer than the AsyncFd lives.
    let descriptor = unsafe { AsyncFd::register_with_interest(pidfd.as_fd(), Interest::READABLE)? };
    loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options) {
            Ok(Some(status)) => return Ok(code(&status)),
            Ok(None) => descriptor.readable().await?.clear_ready(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn code(status: &WaitIdStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        // Waited for ends only.
        (None, None) => 255,
    }
}

/// Reaps a child that was killed. Blocks until it is gone.
pub(crate) fn reap(pidfd: &OwnedFd) -> io::Result<()> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Sends a signal by pidfd; a process that has ended is fine.
pub(crate) fn signal(pidfd: impl AsFd, number: u32) -> Result<(), SignalError> {
    let number = i32::try_from(number).map_err(|_| SignalError::Number)?;
    if number == 0 {
        return Err(SignalError::Number);
    }
    match rustix::process::pidfd_send_signal(pidfd.as_fd(), signal_of(number)?) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(Errno::INVAL) => Err(SignalError::Number),
        Err(errno) => Err(SignalError::Send(errno.into())),
    }
}

/// Sends a signal to every process of a list; one that has ended is fine.
pub(crate) fn signal_each(pids: &[i32], number: u32) -> Result<(), SignalError> {
    let number = i32::try_from(number).map_err(|_| SignalError::Number)?;
    let signal = signal_of(number)?;
    for pid in pids {
        let Some(pid) = rustix::process::Pid::from_raw(*pid) else {
            continue;
        };
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(SignalError::Send(errno.into())),
        }
    }
    Ok(())
}

/// Kills a process and the group that it leads, if it does.
pub(crate) fn kill_with_group(pidfd: impl AsFd, pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw)
        && rustix::process::getpgid(Some(pid)) == Ok(pid)
    {
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
    let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
}

/// Why a signal was not sent.
#[derive(Debug)]
pub(crate) enum SignalError {
    /// There is no such signal.
    Number,
    /// The kernel refuses.
    Send(io::Error),
}

#[allow(unsafe_code, reason = "real-time signals, which containers may use")]
fn signal_of(number: i32) -> Result<Signal, SignalError> {
    if !(1..=64).contains(&number) {
        return Err(SignalError::Number);
    }
    // SAFETY: the number is in the kernel's range; it is only passed on to other
    // processes, never given a handler here.
    Ok(unsafe { Signal::from_raw_unchecked(number) })
}
