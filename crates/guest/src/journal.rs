//! The guest's own log: one line per happening, in a file that never grows
//! beyond a bound, or on the console.

use std::fmt::Arguments;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// The file is put aside as `<path>.1` when it has that many bytes.
const FILE_LIMIT: u64 = 1 << 20;
/// No line is longer, in bytes.
const LINE_LIMIT: usize = 4096;

/// Where the lines go.
#[derive(Debug)]
pub(crate) struct Journal {
    target: Mutex<Target>,
}

#[derive(Debug)]
enum Target {
    /// Standard error: a VM's console.
    Console,
    File {
        path: PathBuf,
        file: File,
        written: u64,
    },
}

impl Journal {
    /// A journal on standard error.
    pub(crate) fn console() -> Self {
        Self { target: Mutex::new(Target::Console) }
    }

    /// A journal that appends to a file, readable by its owner only.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub(crate) fn file(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let written = file.metadata()?.len();
        Ok(Self { target: Mutex::new(Target::File { path: path.to_owned(), file, written }) })
    }

    /// Writes a line. It is worth no error: when the file cannot be written the
    /// guest goes on without.
    pub(crate) fn line(&self, text: Arguments<'_>) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut line = format!("{}.{:06} {text}", now.as_secs(), now.subsec_micros());
        line.retain(|c| c != '\n');
        while line.len() > LINE_LIMIT {
            line.pop();
        }
        line.push('\n');
        let mut target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *target {
            Target::Console => drop(io::stderr().write_all(line.as_bytes())),
            Target::File { path, file, written } => {
                if *written + line.len() as u64 > FILE_LIMIT
                    && std::fs::rename(&*path, aside(path)).is_ok()
                    && let Ok(fresh) = open(path)
                {
                    *file = fresh;
                    *written = 0;
                }
                if file.write_all(line.as_bytes()).is_ok() {
                    *written += line.len() as u64;
                }
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_stays_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("guest.log");
        let journal = Journal::file(&path).unwrap();
        let text = "x\n".repeat(LINE_LIMIT);
        for _ in 0..600 {
            journal.line(format_args!("{text}"));
        }
        let length = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert!(length(&path) <= FILE_LIMIT);
        assert!(length(&aside(&path)) <= FILE_LIMIT);
        assert!(length(&path) + length(&aside(&path)) > FILE_LIMIT);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("x\n"));
    }
}
