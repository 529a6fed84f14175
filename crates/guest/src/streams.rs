//! The standard streams of a process that the guest starts.

use std::os::fd::{AsFd, OwnedFd};

use kina_guest_api::v1;
use kina_launch::Stdio;
use kina_log::Stream;
use rustix::fs::{Gid, Uid};
use rustix::pipe::PipeFlags;

use crate::error::Error;
use crate::ids::Owner;

/// The standard streams of a container, both ends.
pub(crate) struct Streams {
    pub(crate) child: Stdio,
    pub(crate) outputs: Vec<(Stream, OwnedFd)>,
    pub(crate) stdin: Option<OwnedFd>,
}

impl Streams {
    /// Opens them; what the process gets belongs to `owner`, who can open it anew by way of
    /// /proc and give it to the process's user.
    pub(crate) fn open(terminal: bool, stdin: bool, owner: Owner) -> Result<Self, Error> {
        if terminal {
            return Ok(Self { child: Stdio::Terminal, outputs: Vec::new(), stdin: None });
        }
        let (input, kept) = if stdin {
            let (read, write) = pipe()?;
            (read, Some(write))
        } else {
            (null()?, None)
        };
        let (stdout, child_stdout) = pipe()?;
        let (stderr, child_stderr) = pipe()?;
        for stream in [&input, &child_stdout, &child_stderr].into_iter().skip(usize::from(!stdin)) {
            give(stream, owner)?;
        }
        Ok(Self {
            child: Stdio::Files { stdin: input, stdout: child_stdout, stderr: child_stderr },
            outputs: vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)],
            stdin: kept,
        })
    }
}

/// Gives a pipe away.
fn give(stream: &OwnedFd, (uid, gid): Owner) -> Result<(), Error> {
    if (uid, gid) == (0, 0) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::fchown(stream, Some(uid), Some(gid)).map_err(|errno| Error::system("give a pipe away", errno))
}

/// Changes a terminal's size, which is a courtesy: it may fail.
pub(crate) fn resize(terminal: impl AsFd, size: v1::WindowSize) {
    let clamp = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    let size = rustix::termios::Winsize {
        ws_row: clamp(size.rows),
        ws_col: clamp(size.columns),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}

/// A pipe: what is read from, what is written to.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Error::system("make a pipe", errno))
}

/// An input that is at its end.
pub(crate) fn null() -> Result<OwnedFd, Error> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())
        .map_err(|errno| Error::file("open", "/dev/null", errno))
}
