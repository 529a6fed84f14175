//! Watching a directory with inotify(7).

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::Error;

/// Bytes of events that are read at once; one with the longest name fits.
const BUFFER: usize = 4096;

/// See [`crate::Node::watch_directory`].
#[allow(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
pub(crate) fn watch(path: &Path) -> Result<mpsc::Receiver<()>, Error> {
    let failed = |source: Errno| Error::io("watch", path, source);
    let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(failed)?;
    let wanted = WatchFlags::CREATE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    inotify::add_watch(&queue, path, wanted).map_err(failed)?;
    // SAFETY: an OwnedFd is open and the same until it is dropped, which the
    // AsyncFd does.
    let queue = unsafe { AsyncFd::register_with_interest(queue, Interest::READABLE) }
        .map_err(|error| Error::io("watch", path, error))?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let mut ready = tokio::select! {
                () = sender.closed() => return,
                ready = queue.readable() => match ready {
                    Ok(ready) => ready,
                    Err(_) => return,
                },
            };
            let goes_on = drain(queue.get_ref());
            ready.clear_ready();
            // One that waits to be taken says it already.
            let _told = sender.try_send(());
            if !goes_on {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Takes all events; whether there can be more: not when the directory itself
/// is gone or elsewhere.
fn drain(queue: &OwnedFd) -> bool {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut events = inotify::Reader::new(queue, &mut buffer);
    let end = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED | ReadFlags::UNMOUNT;
    let mut goes_on = true;
    loop {
        match events.next() {
            Ok(event) => goes_on &= !event.events().intersects(end),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return goes_on,
            Err(_) => return false,
        }
    }
}
