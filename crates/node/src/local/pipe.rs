//! Named pipes.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::Error;

/// See [`crate::Node::create_pipe`].
pub(crate) fn create(path: &Path, mode: u32) -> Result<(), Error> {
    let failed = |source: io::Error| Error::io("make named pipe", path, source);
    let mode = rustix::fs::Mode::from_raw_mode(mode);
    let made = rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0);
    match made {
        Err(rustix::io::Errno::EXIST)
            if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_fifo()) =>
        {
            Ok(())
        }
        other => other.map_err(|error| failed(error.into())),
    }
}
