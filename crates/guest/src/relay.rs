//! One stream to the guest, carried by a program that is run beside it: the way
//! for a daemon that has no other.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

const BUFFER: usize = 64 << 10;

/// Carries standard input to a guest's socket and what comes from there to
/// standard output, until the guest ends the stream.
pub(crate) fn run(socket: &Path) -> io::Result<()> {
    let stream = UnixStream::connect(socket)?;
    let input = stream.try_clone()?;
    // Ends with the process: it may stand in a read that nothing else ends.
    std::thread::Builder::new().spawn(move || {
        drop(carry(io::stdin().lock(), &input));
        // The guest is told that nothing more comes; it may still answer.
        drop(input.shutdown(Shutdown::Write));
    })?;
    carry(&stream, io::stdout().lock())
}

/// Copies until the end, each piece as it comes.
fn carry(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                to.write_all(&buffer[..length])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
