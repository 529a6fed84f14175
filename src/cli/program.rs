//! Runs other programs for a command: never longer than a deadline, and keeping
//! no more of what they say than a limit.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

/// The most that is kept of each of a program's outputs, in bytes.
const LIMIT: u64 = 4 << 20;

/// Where the system's own programs are, whatever the search path says.
const SYSTEM: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// How a program ended, and what it said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Said {
    /// What people read: the error's text, or else the answer's.
    pub(super) fn words(&self) -> &str {
        let error = self.stderr.trim();
        if error.is_empty() { self.stdout.trim() } else { error }
    }
}

/// The directories of the search path, and then the system's own.
pub(super) fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(SYSTEM.map(PathBuf::from)).collect()
}

/// The first file of that name in the directories.
pub(super) fn find(name: &str, search: &[PathBuf]) -> Option<PathBuf> {
    search
        .iter()
        .filter(|directory| directory.is_absolute())
        .map(|one| one.join(name))
        .find(|it| it.is_file())
}

/// Runs a program to its end. It is killed at the deadline.
///
/// # Errors
/// When it cannot be started or takes too long; not when it fails.
pub(super) async fn ask(
    program: &Path,
    arguments: &[impl AsRef<OsStr>],
    deadline: Duration,
) -> anyhow::Result<Said> {
    let name = program.display();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {name}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let all = async { tokio::join!(read(stdout), read(stderr), child.wait()) };
    let Ok((stdout, stderr, status)) = tokio::time::timeout(deadline, all).await else {
        bail!("{name} did not end in {deadline:?}");
    };
    let status = status.with_context(|| format!("wait for {name}"))?;
    Ok(Said { status, stdout, stderr })
}

/// What comes out of a pipe, up to the limit; the rest is read and forgotten, so
/// that the program can end.
async fn read(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        // A pipe that breaks has said what it said.
        let _ = (&mut pipe).take(LIMIT).read_to_end(&mut kept).await;
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_program_is_heard_and_its_failure_is_no_error() {
        let shell = find("sh", &search_path()).unwrap();
        let said = ask(&shell, &["-c", "echo out; echo err >&2; exit 3"], DEADLINE).await.unwrap();
        assert_eq!((said.stdout.as_str(), said.words(), said.status.code()), ("out\n", "err", Some(3)));
        let flood = "dd if=/dev/zero bs=1048576 count=6 2>/dev/null; echo end >&2";
        let said = ask(&shell, &["-c", flood], DEADLINE).await.unwrap();
        assert_eq!((said.stdout.len() as u64, said.stderr.as_str()), (LIMIT, "end\n"));
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_given_up() {
        let shell = find("sh", &search_path()).unwrap();
        let error = ask(&shell, &["-c", "exec sleep 1000"], Duration::from_millis(50)).await.unwrap_err();
        assert!(error.to_string().ends_with("did not end in 50ms"), "{error}");
        assert!(ask(Path::new("/nowhere"), &["x"], DEADLINE).await.is_err());
        assert_eq!(find("sh", &["bin".into()]), None);
    }
}
