//! Running a program of the node, such as a CNI plugin, to its end.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};

use crate::{Error, Output, Program};

/// Kills the program's whole process group unless it has been reaped. A group
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

enum Failure {
    Output,
    System(io::Error),
}

/// See [`crate::Node::run`]. The output is whole when every process that holds
/// it open has ended, so a program that leaves such a process behind runs into
/// its deadline. Dropping this kills the program.
pub(crate) async fn run(program: &Program) -> Result<Output, Error> {
    let failed = |source| Error::Execute { path: program.path.clone(), source };
    let child = Command::new(&program.path)
        .args(&program.args)
        .env_clear()
        .envs(program.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let mut group = Group { child };
    let stdin = group.child.stdin.take();
    let stdout = group.child.stdout.take();
    let stderr = group.child.stderr.take();
    let to_its_end = async {
        let ((), stdout, stderr) = tokio::try_join!(
            feed(stdin, &program.stdin),
            collect(stdout, program.max_output),
            collect(stderr, program.max_output),
        )?;
        // Only now: reaping it earlier would free its group's number while
        // others of the group may live.
        let status = group.child.wait().await.map_err(Failure::System)?;
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        Ok(Output { code: code.unwrap_or(-1), stdout, stderr })
    };
    match tokio::time::timeout(program.deadline, to_its_end).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(Failure::System(source))) => Err(failed(source)),
        Ok(Err(Failure::Output)) => {
            Err(Error::ProgramOutput { path: program.path.clone(), limit: program.max_output })
        }
        Err(_elapsed) => {
            Err(Error::ProgramDeadline { path: program.path.clone(), deadline: program.deadline })
        }
    }
}

async fn feed(stdin: Option<ChildStdin>, content: &[u8]) -> Result<(), Failure> {
    let Some(mut stdin) = stdin else { return Ok(()) };
    match stdin.write_all(content).await {
        // It need not read what it is given.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Failure::System),
    }
}

async fn collect(stream: Option<impl AsyncRead + Unpin>, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut collected = Vec::new();
    let Some(stream) = stream else { return Ok(collected) };
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    stream.take(most).read_to_end(&mut collected).await.map_err(Failure::System)?;
    if collected.len() > limit { Err(Failure::Output) } else { Ok(collected) }
}
