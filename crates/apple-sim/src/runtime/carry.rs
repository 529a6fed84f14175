//! Bytes that go one way between two descriptors, until either end is gone.

use std::convert::Infallible;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, SyncSender};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::Shutdown;

const BUFFER: usize = 16 << 10;

/// Carries on a thread of its own. What is returned tells the end by its own.
pub(super) fn carry(from: OwnedFd, to: OwnedFd) -> Receiver<Infallible> {
    let (running, ended) = mpsc::sync_channel(0);
    std::thread::spawn(move || {
        let _running: SyncSender<Infallible> = running;
        pass(&File::from(from), &File::from(to));
    });
    ended
}

fn pass(mut from: &File, mut to: &File) {
    let mut buffer = vec![0; BUFFER];
    while readable(from, to) {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // How a terminal ends.
            Err(_) => break,
        }
    }
    // Pipes have no directions; they end when they are closed.
    for (end, how) in [(to, Shutdown::Write), (from, Shutdown::Read)] {
        let _ = rustix::net::shutdown(end, how);
    }
}

/// Waits until there is something to read, or its end; `false` if nobody reads it any more, which
/// would not be noticed before the next byte.
fn readable(from: &File, to: &File) -> bool {
    loop {
        let mut polled = [PollFd::new(from, PollFlags::IN), PollFd::new(to, PollFlags::empty())];
        match poll(&mut polled, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return false,
            Ok(_) => {}
        }
        let [source, sink] = polled.map(|one| one.revents());
        if !source.is_empty() {
            return true;
        }
        if sink.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use rustix::pipe::pipe;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn the_end_is_passed_on() {
        let ((input, mut source), (sink, output)) = (UnixStream::pair().unwrap(), pipe().unwrap());
        let ended = carry(input.into(), output);
        source.write_all(b"words").unwrap();
        drop(source);
        let mut words = String::new();
        File::from(sink).read_to_string(&mut words).unwrap();
        assert_eq!(words, "words");
        assert!(ended.recv_timeout(LONG).is_err_and(|error| error == mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn who_reads_no_more_is_noticed_without_a_byte() {
        let ((input, source), (sink, output)) = (UnixStream::pair().unwrap(), pipe().unwrap());
        let ended = carry(input.into(), output);
        drop(sink);
        assert!(ended.recv_timeout(LONG).is_err_and(|error| error == mpsc::RecvTimeoutError::Disconnected));
        // And whoever writes is told.
        assert_eq!((&source).read(&mut [0]).unwrap(), 0);
    }
}
