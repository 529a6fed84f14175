//! The process that forks helpers.
//!
//! Executing the helper anew for each operation costs more than all the rest of it: the launcher
//! does it once, without an order. What is started so stands ready, has one thread, and forks off
//! itself a helper for each order that it is sent, as a child of the launcher's process. It ends
//! when the launcher does. Should it end before, helpers are executed one by one.
//!
//! A forker that is killed may leave a helper that it did not tell of. So a helper does nothing
//! before the launcher, who has heard of it by then, lets it; until then it is in the forker's
//! process group, by which it is found.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::spawn::{Descriptors, Program, put_in_place, spawn};
use crate::{sys, wire};

/// The most descriptors of one request: those of [`Descriptors`] and a control group's.
const DESCRIPTORS: usize = 7;
/// How long a fork may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The launcher's side. One fork at a time.
#[derive(Debug)]
pub(crate) struct Forker {
    /// `None` when it is dropped.
    socket: Option<OwnedFd>,
    /// Also that of its process group.
    pid: i32,
    pidfd: OwnedFd,
}

/// Why nothing was forked.
#[derive(Debug)]
pub(crate) enum NotForked {
    /// The forker is of no use any more.
    Gone,
    /// The kernel refuses.
    Refused(io::Error),
}

impl Forker {
    /// Starts one.
    pub(crate) fn start(program: &Program) -> io::Result<Self> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let null = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let descriptors = Descriptors { streams: [&null; 3], socket: &theirs, order: None, extra: None };
        let (pid, pidfd) = spawn(program, &descriptors, None)?;
        Ok(Self { socket: Some(ours), pid, pidfd })
    }

    /// Has a helper forked, in the cgroup2 group of that directory. It waits for [`GO`](crate::order::GO).
    pub(crate) fn fork(
        &self,
        descriptors: &Descriptors<'_>,
        cgroup: Option<&OwnedFd>,
    ) -> Result<(i32, OwnedFd), NotForked> {
        let socket = self.socket.as_ref().ok_or(NotForked::Gone)?;
        let number = ask(socket.as_fd(), descriptors, cgroup).map_err(|_| NotForked::Gone)?;
        match Pid::from_raw(number) {
            Some(pid) if number > 0 => match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
                Ok(pidfd) => Ok((number, pidfd)),
                // Out of descriptors: nobody could wait for it.
                Err(error) => {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                    let _ = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
                    Err(NotForked::Refused(error.into()))
                }
            },
            _ => Err(NotForked::Refused(io::Error::from_raw_os_error(number.saturating_neg()))),
        }
    }
}

impl Drop for Forker {
    fn drop(&mut self) {
        // That is what it ends by.
        self.socket = None;
        if !wire::wait_readable(&self.pidfd, Instant::now() + PATIENCE).unwrap_or(false) {
            return;
        }
        // While it is not reaped its number, and so the group's, is not used again.
        if let Some(group) = Pid::from_raw(self.pid) {
            // Helpers that nobody has heard of; nearly always there is none.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
            let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
            while let Ok(Some(_)) | Err(rustix::io::Errno::INTR) =
                rustix::process::waitid(WaitId::Pgid(Some(group)), WaitIdOptions::EXITED)
            {}
        }
    }
}

/// Sends a request and returns the answer: the helper's number, or an error's, negative.
fn ask(socket: BorrowedFd<'_>, descriptors: &Descriptors<'_>, cgroup: Option<&OwnedFd>) -> io::Result<i32> {
    let order = descriptors.order.ok_or(io::ErrorKind::InvalidInput)?;
    let [stdin, stdout, stderr] = descriptors.streams;
    let mut passed: Vec<BorrowedFd<'_>> =
        [stdin, stdout, stderr, descriptors.socket, order].map(AsFd::as_fd).to_vec();
    passed.extend(descriptors.extra.into_iter().chain(cgroup).map(AsFd::as_fd));
    let which = [u8::from(descriptors.extra.is_some()), u8::from(cgroup.is_some())];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&passed));
    sendmsg(socket, &[IoSlice::new(&which)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if !wire::wait_readable(socket, Instant::now() + PATIENCE)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut answer = [0_u8; 4];
    let length = rustix::io::read(socket, &mut answer)?;
    if length != answer.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(i32::from_ne_bytes(answer))
}

/// The forker itself: forks until its launcher is gone. Returns in each helper, whose descriptors
/// are in their places, and which may do nothing yet.
pub(crate) fn serve(control: OwnedFd) -> io::Result<()> {
    rustix::process::setpgid(None, None)?;
    // Nobody may look into what will have the launcher's privileges.
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0)?;
    loop {
        let Some(Request { mut places, cgroup }) = receive(control.as_fd())? else {
            sys::exit(0);
        };
        let flags = u64::try_from(libc::CLONE_PARENT).unwrap_or(0);
        // SAFETY: this process has one thread, so the child may do whatever the parent could.
        let forked = unsafe { sys::clone3(flags, cgroup.as_ref().map(AsFd::as_fd)) };
        if let Ok(0) = forked {
            let numbers = places.each_mut().map(|place| place.take().map_or(-1, IntoRawFd::into_raw_fd));
            // Its number is the helper's socket's now.
            std::mem::forget(control);
            // SAFETY: all of them were owned by `places`, and nothing here owns their places.
            unsafe { put_in_place(numbers) };
            return Ok(());
        }
        drop((places, cgroup));
        let answer =
            forked.unwrap_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO).saturating_neg());
        rustix::io::retry_on_intr(|| {
            rustix::net::send(&control, &answer.to_ne_bytes(), SendFlags::NOSIGNAL)
        })?;
    }
}

struct Request {
    /// By the number that each will have.
    places: [Option<OwnedFd>; 6],
    cgroup: Option<OwnedFd>,
}

/// The next request; `None` at the end.
fn receive(control: BorrowedFd<'_>) -> io::Result<Option<Request>> {
    let mut which = [0_u8; 2];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(control, &mut [IoSliceMut::new(&mut which)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut passed = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let mut places: [Option<OwnedFd>; 6] = [const { None }; 6];
    for place in &mut places[..5] {
        *place = Some(passed.next().ok_or(io::ErrorKind::InvalidData)?);
    }
    if which[0] != 0 {
        places[5] = Some(passed.next().ok_or(io::ErrorKind::InvalidData)?);
    }
    let cgroup = if which[1] != 0 { Some(passed.next().ok_or(io::ErrorKind::InvalidData)?) } else { None };
    Ok(Some(Request { places, cgroup }))
}
