//! What is made from inside of a pod's user namespace: the namespaces that it is to own, and what
//! is set in them with the rights and ids of its root.
//!
//! Only a process of one thread can enter a user namespace. So the guest runs its own program
//! again, which stays until its namespaces are taken over.
//!
//! ```text
//! guest ── plan, a line ──▶ kina-guest inside: joins, makes, sets
//!   │◀──── outcome, a line ────┤ └─ the first process of the PID namespace, a child of the guest
//!   │  opens /proc/<pid>/ns    │
//!   │── end of the input ─────▶│ ends
//! ```

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sched::CloneFlags;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::Ids;
use crate::namespaces::set_sysctl;
use crate::pause::Pause;
use crate::unattached::descriptor_path;

/// A plan or an outcome is not longer, in bytes: a pod has few sysctls.
const LINE_LIMIT: u64 = 1 << 20;

/// What is to be made.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    user: PathBuf,
    network: PathBuf,
    hostname: String,
    /// Files below /proc/sys with their values.
    sysctls: Vec<(PathBuf, String)>,
    pid: bool,
}

/// How it went.
#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    /// With the first process of the PID namespace, if one was asked for.
    Made { pause: Option<i32> },
    /// An operation ended with an error number.
    Failed { operation: String, errno: i32 },
    /// That file below /proc/sys did not take its value.
    Sysctl { file: PathBuf, errno: i32 },
}

/// Namespaces that belong to a pod's user namespace.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) ipc: OwnedFd,
    pub(crate) uts: OwnedFd,
    pub(crate) pause: Option<Pause>,
}

/// Makes IPC and UTS namespaces owned by the user namespace `user`, and a PID namespace if `pid`
/// says so; `network` is owned by it already. Blocks; with `pid` it must be called on the guest's
/// main thread (see [`Pause`]).
pub(crate) fn create(
    user: &OwnedFd,
    network: &OwnedFd,
    ids: &Ids,
    hostname: &str,
    sysctls: &[(PathBuf, String)],
    pid: bool,
) -> Result<Made, Error> {
    let plan = Plan {
        user: descriptor_path(user),
        network: descriptor_path(network),
        hostname: hostname.to_owned(),
        sysctls: sysctls.to_vec(),
        pid,
    };
    let mut helper = Helper::start()?;
    let outcome = helper.ask(&plan).map_err(|source| Error::system("talk to the pod's helper", source))?;
    let pause = match outcome {
        Outcome::Made { pause } => pause.map(Pause::adopt).transpose()?,
        Outcome::Failed { operation, errno } => {
            return Err(Error::Inside { operation, source: io::Error::from_raw_os_error(errno) });
        }
        Outcome::Sysctl { file, errno } => {
            return Err(Error::Sysctl { file, source: io::Error::from_raw_os_error(errno) });
        }
    };
    helper.check(ids)?;
    Ok(Made { ipc: helper.namespace("ipc")?, uts: helper.namespace("uts")?, pause })
}

/// The guest's side of the helper, which ends when this is dropped.
struct Helper {
    child: Child,
}

impl Helper {
    fn start() -> Result<Self, Error> {
        Command::new("/proc/self/exe")
            .arg("inside")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map(|child| Self { child })
            .map_err(|source| Error::system("start the pod's helper", source))
    }

    fn ask(&mut self, plan: &Plan) -> io::Result<Outcome> {
        let (Some(input), Some(output)) = (self.child.stdin.as_mut(), self.child.stdout.as_mut()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        send(input, plan)?;
        receive(output)
    }

    /// Whether the user namespace that was joined is the one that was asked for: it came with the
    /// network namespace.
    fn check(&self, ids: &Ids) -> Result<(), Error> {
        let Some(mapping) = ids.mapping() else {
            return Ok(());
        };
        for (file, ranges) in [("uid_map", &mapping.uids), ("gid_map", &mapping.gids)] {
            let path = self.path(file);
            let text = std::fs::read_to_string(&path).map_err(|source| Error::file("read", &path, source))?;
            if kina_userns::parse(&text).as_ref() != Some(ranges) {
                let reason = format!("the network namespace's owner has another {file}");
                return Err(Error::invalid("user", reason));
            }
        }
        Ok(())
    }

    fn namespace(&self, kind: &str) -> Result<OwnedFd, Error> {
        let path = self.path(&format!("ns/{kind}"));
        File::open(&path).map(OwnedFd::from).map_err(|source| Error::file("open", path, source))
    }

    fn path(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.child.id()).into()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Fails only if it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn send(mut to: impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads one line, and no byte after it as long as the other side sends no second one.
fn receive<T: for<'a> Deserialize<'a>>(from: impl Read) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(from.take(LINE_LIMIT)).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

fn during<E: Into<io::Error>>(operation: impl Into<String>) -> impl FnOnce(E) -> Outcome {
    move |error| Outcome::Failed { operation: operation.into(), errno: number(&error.into()) }
}

fn number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// The helper. Must be called first thing in `main`, with one thread.
pub(crate) fn run() -> ExitCode {
    let mut input = io::stdin().lock();
    let outcome = match receive::<Plan>(&mut input) {
        Ok(plan) => match make(&plan) {
            Ok(pause) => Outcome::Made { pause },
            Err(failed) => failed,
        },
        Err(_) => return ExitCode::FAILURE,
    };
    if send(io::stdout().lock(), &outcome).is_err() {
        return ExitCode::FAILURE;
    }
    // The namespaces are the guest's to take over as long as this process is there.
    drop(io::copy(&mut input, &mut io::sink()));
    ExitCode::SUCCESS
}

fn make(plan: &Plan) -> Result<Option<i32>, Outcome> {
    let open = |path: &Path| File::open(path).map_err(during(format!("open {}", path.display())));
    let (user, network) = (open(&plan.user)?, open(&plan.network)?);
    nix::sched::setns(&user, CloneFlags::CLONE_NEWUSER).map_err(during("join the user namespace"))?;
    nix::sched::setns(&network, CloneFlags::CLONE_NEWNET).map_err(during("join the network namespace"))?;
    become_root().map_err(during("become root"))?;
    // After that: message queues belong to whoever makes their namespace.
    nix::sched::unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .map_err(during("make namespaces"))?;
    nix::unistd::sethostname(&plan.hostname).map_err(during("set the host name"))?;
    for (file, value) in &plan.sysctls {
        set_sysctl(file, value)
            .map_err(|error| Outcome::Sysctl { file: file.clone(), errno: number(&error) })?;
    }
    if !plan.pid {
        return Ok(None);
    }
    nix::sched::unshare(CloneFlags::CLONE_NEWPID).map_err(during("make a PID namespace"))?;
    crate::pause::fork_sibling().map(Some).map_err(during("start the pod's first process"))
}

fn become_root() -> nix::Result<()> {
    let (uid, gid) = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresuid(uid, uid, uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_and_outcomes_are_lines() {
        let plan = Plan {
            user: "/proc/1/fd/3".into(),
            network: "/proc/1/fd/4".into(),
            hostname: "a\nb".to_owned(),
            sysctls: vec![("net/x".into(), "1 2".to_owned())],
            pid: true,
        };
        let mut bytes = Vec::new();
        send(&mut bytes, &plan).unwrap();
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
        let read: Plan = receive(&bytes[..]).unwrap();
        assert_eq!((read.hostname, read.sysctls), (plan.hostname, plan.sysctls));
        assert!(receive::<Outcome>(&b"{}\n"[..]).is_err());
        assert!(receive::<Outcome>(io::empty()).is_err());
    }
}
