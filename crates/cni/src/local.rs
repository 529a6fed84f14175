//! This machine as the host.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};

use crate::host::{ExecuteError, Executed, Execution, FoundFile, Host, HostError};

/// Most entries of a directory that are looked at.
const MAX_ENTRIES: usize = 100_000;

/// What names of temporary files begin with; process, time and number follow.
const TEMPORARY_PREFIX: &str = ".cni-";

/// Tells temporary files of one process apart.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// This machine: plugins are its processes, files its files. Needs a tokio
/// runtime with IO and time enabled.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalHost;

#[async_trait]
impl Host for LocalHost {
    async fn list_directory(&self, path: &Path) -> Result<Vec<String>, HostError> {
        blocking(path, list_directory).await
    }

    async fn read_file(&self, path: &Path, limit: usize) -> Result<Option<Vec<u8>>, HostError> {
        blocking(path, move |path| read_file(path, limit)).await
    }

    async fn write_file(&self, path: &Path, content: &[u8]) -> Result<(), HostError> {
        let content = content.to_vec();
        blocking(path, move |path| write_file(path, &content)).await
    }

    fn temporary_age(&self, name: &str) -> Option<Duration> {
        temporary_age(name)
    }

    async fn remove_file(&self, path: &Path) -> Result<(), HostError> {
        blocking(path, |path| absent(fs::remove_file(path)).map(drop)).await
    }

    async fn find_file(&self, path: &Path) -> Result<Option<FoundFile>, HostError> {
        blocking(path, find_file).await
    }

    async fn execute(&self, execution: &Execution) -> Result<Executed, ExecuteError> {
        execute(execution).await
    }
}

/// Runs file operations where they may block.
async fn blocking<T: Send + 'static>(
    path: &Path,
    operation: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, HostError> {
    let path = path.to_owned();
    Ok(tokio::task::spawn_blocking(move || operation(&path)).await??)
}

/// What does not exist is `None`, as is what has no directory to exist in.
fn absent<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn list_directory(path: &Path) -> io::Result<Vec<String>> {
    let Some(entries) = absent(fs::read_dir(path))? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            continue;
        }
        if names.len() == MAX_ENTRIES {
            return Err(io::Error::other(format!("more than {MAX_ENTRIES} entries")));
        }
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

fn read_file(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    // Without O_NONBLOCK opening a pipe would wait for its writer.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let Some(file) = absent(OpenOptions::new().read(true).custom_flags(flags).open(path))? else {
        return Ok(None);
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut content = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut content)?;
    if content.len() > limit {
        return Err(io::Error::other(format!("more than {limit} bytes")));
    }
    Ok(Some(content))
}

fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let (Some(directory), Some(temporary)) = (path.parent(), temporary_beside(path)) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // What failed matters more.
        drop(fs::remove_file(&temporary));
    }
    written
}

fn temporary_beside(path: &Path) -> Option<PathBuf> {
    // The time tells this process from an earlier one with the same number.
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos());
    let number = TEMPORARY.fetch_add(1, Ordering::Relaxed);
    // Not the file's own name, which may be as long as names can be.
    let name = format!("{TEMPORARY_PREFIX}{}-{time}-{number}", std::process::id());
    path.file_name().map(|_| path.with_file_name(name))
}

fn temporary_age(name: &str) -> Option<Duration> {
    let mut parts = name.strip_prefix(TEMPORARY_PREFIX)?.split('-').map(str::parse::<u64>);
    let (Ok(_process), Ok(time), Ok(_number), None) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next())
    else {
        return None;
    };
    // The clock may have been set back.
    Some(SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_nanos(time)).unwrap_or_default())
}

fn find_file(path: &Path) -> io::Result<Option<FoundFile>> {
    let Some(metadata) = absent(fs::metadata(path))? else { return Ok(None) };
    let identity = format!(
        "{}:{}:{}:{}.{}:{}.{}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    );
    Ok(metadata.is_file().then_some(FoundFile { identity: Some(identity) }))
}

/// Kills the plugin's process group unless the plugin has been reaped. A group
/// keeps its number while its leader is not reaped, so no other one is hit.
struct Group {
    child: Child,
}

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(leader) = leader {
            // It may have ended already. The runtime reaps it.
            let _gone = rustix::process::kill_process_group(leader, Signal::KILL);
        }
    }
}

async fn execute(execution: &Execution) -> Result<Executed, ExecuteError> {
    let child = Command::new(&execution.path)
        .env_clear()
        .envs(execution.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::ExecutableFileBusy => ExecuteError::Busy,
            _ => ExecuteError::Failed(error.into()),
        })?;
    let mut group = Group { child };
    let stdin = group.child.stdin.take();
    let stdout = group.child.stdout.take();
    let stderr = group.child.stderr.take();
    let to_its_end = async {
        let ((), stdout, stderr) = tokio::try_join!(
            feed(stdin, &execution.stdin),
            collect(stdout, execution.max_output),
            collect(stderr, execution.max_output),
        )?;
        // Only now: reaping it earlier would free its group's number while
        // others of the group may live.
        let status = group.child.wait().await.map_err(failed)?;
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        Ok(Executed { code: code.unwrap_or(-1), stdout, stderr })
    };
    tokio::time::timeout(execution.deadline, to_its_end).await.unwrap_or(Err(ExecuteError::Deadline))
}

async fn feed(stdin: Option<ChildStdin>, content: &[u8]) -> Result<(), ExecuteError> {
    let Some(mut stdin) = stdin else { return Ok(()) };
    match stdin.write_all(content).await {
        // It need not read what it is given.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(failed),
    }
}

async fn collect(stream: Option<impl AsyncRead + Unpin>, limit: usize) -> Result<Vec<u8>, ExecuteError> {
    let mut collected = Vec::new();
    let Some(stream) = stream else { return Ok(collected) };
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    stream.take(most).read_to_end(&mut collected).await.map_err(failed)?;
    if collected.len() > limit { Err(ExecuteError::TooMuchOutput) } else { Ok(collected) }
}

fn failed(error: io::Error) -> ExecuteError {
    ExecuteError::Failed(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_have_an_age() {
        let own = temporary_beside(Path::new("/a/b")).unwrap();
        let own = own.file_name().unwrap().to_str().unwrap();
        assert!(temporary_age(own).unwrap() < Duration::from_secs(60), "{own}");
        assert!(temporary_age(".cni-1-1000000000000000000-0").unwrap() > Duration::from_secs(60));
        for other in ["", ".cni-", ".cni-1-2", ".cni-1-x-3", ".cni-1-2-3-4", "cni-1-2-3", ".a.1.2.3"] {
            assert_eq!(temporary_age(other), None, "{other}");
        }
    }
}
