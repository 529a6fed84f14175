//! Running the program: bounded in time, output and number.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Semaphore;

use super::classify::classify;
use crate::Error;

/// Most bytes of either output that are read: a list of a thousand containers.
const OUTPUT_LIMIT: usize = 8 << 20;

/// How many run at one time; more wait.
const AT_ONCE: usize = 16;

/// The program.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    program: PathBuf,
    environment: Vec<(String, String)>,
    places: Arc<Semaphore>,
}

impl Process {
    pub(crate) fn new(program: PathBuf, environment: Vec<(String, String)>) -> Self {
        Self { program, environment, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.kill_on_drop(true);
        command
    }

    /// Runs it to its end and returns what it printed. Dropping the call, or its
    /// deadline, kills it. Waiting for a place counts.
    pub(crate) async fn run(&self, arguments: Vec<OsString>, deadline: Duration) -> Result<Vec<u8>, Error> {
        let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
        let shown = shown(&words);
        let mut command = self.command();
        command.args(&arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = async {
            // The semaphore is never closed.
            let _place = self.places.acquire().await;
            collect(command.spawn()?).await
        };
        match tokio::time::timeout(deadline, run).await {
            Err(_) => Err(Error::Deadline { command: shown, deadline }),
            Ok(Err(source)) => Err(Error::Program { program: self.program.clone(), source }),
            Ok(Ok(None)) => Err(Error::TooMuchOutput { command: shown, limit: OUTPUT_LIMIT }),
            Ok(Ok(Some((0, stdout, _)))) => Ok(stdout),
            Ok(Ok(Some((code, stdout, stderr)))) => {
                let said = if stderr.iter().all(u8::is_ascii_whitespace) { &stdout } else { &stderr };
                Err(classify(shown, code, &String::from_utf8_lossy(said)))
            }
        }
    }

    /// Runs it as a stream, for as long as that is open.
    pub(crate) fn relay(&self, arguments: &[&str]) -> io::Result<Relay> {
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Ok(Relay { input: Some(input), output, _child: child }),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// A command line for people: its beginning, without values that are long.
fn shown(words: &[impl AsRef<str>]) -> String {
    const MOST: usize = 3;
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).take(MOST).collect();
    words.join(" ")
}

/// Exit code and both outputs; `None` when there is too much of one.
async fn collect(mut child: Child) -> io::Result<Option<(i32, Vec<u8>, Vec<u8>)>> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = tokio::try_join!(read(stdout), read(stderr))?;
    if stdout.len() > OUTPUT_LIMIT || stderr.len() > OUTPUT_LIMIT {
        // Dropped, and so killed.
        return Ok(None);
    }
    let status = child.wait().await?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
    Ok(Some((code, stdout, stderr)))
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    if let Some(stream) = stream {
        stream.take(OUTPUT_LIMIT as u64 + 1).read_to_end(&mut content).await?;
    }
    Ok(content)
}

/// A program's standard input and output as one stream. Dropping it kills the
/// program.
#[derive(Debug)]
pub(crate) struct Relay {
    /// `None` once it was shut down: that is how the program is told.
    input: Option<ChildStdin>,
    output: ChildStdout,
    _child: Child,
}

impl AsyncRead for Relay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(context, buffer)
    }
}

impl AsyncWrite for Relay {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        content: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.input {
            Some(input) => Pin::new(input).poll_write(context, content),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.input {
            Some(input) => Pin::new(input).poll_flush(context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.input {
            Some(input) => Pin::new(input).poll_flush(context),
            None => Poll::Ready(Ok(())),
        };
        if flushed.is_ready() {
            self.input = None;
        }
        flushed
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn shell() -> Process {
        Process::new("/bin/sh".into(), vec![("GREETING".to_owned(), "hello".to_owned())])
    }

    async fn run(script: &str, deadline: Duration) -> Result<Vec<u8>, Error> {
        shell().run(vec!["-c".into(), script.into()], deadline).await
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn what_it_prints_is_returned() {
        assert_eq!(run("echo $GREETING; echo noise >&2", PATIENCE).await.unwrap(), b"hello\n");
    }

    #[tokio::test]
    async fn what_it_says_when_it_fails_is_told() {
        for (script, expected) in [
            ("echo 'Error: no' >&2; exit 7", (7, "no")),
            ("echo only here; exit 1", (1, "only here")),
            ("kill -9 $$", (137, "")),
        ] {
            match run(script, PATIENCE).await {
                Err(Error::Failed { code, words, .. }) => assert_eq!((code, words.as_str()), expected),
                other => panic!("{script}: {other:?}"),
            }
        }
        let nowhere = Process::new("/nowhere/container".into(), Vec::new());
        assert!(matches!(nowhere.run(Vec::new(), PATIENCE).await, Err(Error::Program { .. })));
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 1000", pid.display());
        let deadline = Duration::from_millis(300);
        assert!(matches!(run(&script, deadline).await, Err(Error::Deadline { .. })));
        let pid = std::fs::read_to_string(pid).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let end = tokio::time::Instant::now() + PATIENCE;
        // Killed at once; reaped soon after.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(tokio::time::Instant::now() < end, "it lives");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_not_waited_for_longer() {
        let process = shell();
        let _all = process.places.acquire_many(AT_ONCE.try_into().unwrap()).await.unwrap();
        let run = process.run(vec!["-c".into(), "true".into()], PATIENCE).await;
        assert!(matches!(run, Err(Error::Deadline { .. })), "{run:?}");
    }

    #[tokio::test]
    async fn too_much_output_ends_it() {
        let result =
            run("while :; do echo 0123456789012345678901234567890123456789; done", PATIENCE * 3).await;
        assert!(matches!(result, Err(Error::TooMuchOutput { .. })), "{result:?}");
    }

    #[tokio::test]
    async fn a_relay_is_a_stream() {
        let mut relay = shell().relay(&["-c", "cat; echo end"]).unwrap();
        relay.write_all(b"to and fro\n").await.unwrap();
        relay.shutdown().await.unwrap();
        let mut back = String::new();
        relay.read_to_string(&mut back).await.unwrap();
        assert_eq!(back, "to and fro\nend\n");
        assert!(relay.write_all(b"x").await.is_err());
    }
}
