//! Starting daemons, guests among them.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kina_fork::Forked;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tracing::debug;

use super::control_groups::ControlGroups;
use super::fork::{self, Image, Network};
use super::process;
use crate::{Daemon, DaemonNetwork, Error, ExitStatus, GuestProgram, ProcessIdentity};

/// What containerd gives its shims: killed after everything of the pods.
const OOM_SCORE_ADJ: i32 = -999;

/// How many daemons' ends are remembered.
const REMEMBERED: usize = 4096;

/// How long the reader of a named pipe may take to open it.
const READER_PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks whether it has.
const PAUSE: Duration = Duration::from_millis(1);

/// The daemons that this process has started, and how they ended.
#[derive(Clone, Default)]
pub(crate) struct Started {
    // Taken for the length of a look or a push.
    ends: Arc<Mutex<VecDeque<(ProcessIdentity, End)>>>,
}

/// `None` until the process has been reaped.
type End = watch::Receiver<Option<ExitStatus>>;

impl Started {
    /// See [`crate::Node::exit_status`].
    pub(crate) async fn exit_status(&self, process: ProcessIdentity) -> Option<ExitStatus> {
        let mut end = {
            let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
            ends.iter().find(|(started, _)| *started == process).map(|(_, end)| end.clone())
        }?;
        // It is reaped a moment after it has ended; the error means never.
        match tokio::time::timeout(Duration::from_secs(1), end.wait_for(Option::is_some)).await {
            Ok(Ok(status)) => *status,
            Ok(Err(_)) | Err(_) => None,
        }
    }

    fn add(&self, process: ProcessIdentity) -> watch::Sender<Option<ExitStatus>> {
        let (sender, receiver) = watch::channel(None);
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if ends.len() >= REMEMBERED {
            ends.pop_front();
        }
        ends.push_back((process, receiver));
        sender
    }
}

/// Starts a guest; see [`crate::Node::spawn_guest`]. Blocks until it has been
/// executed. Must be called within a tokio runtime, which reaps it.
pub(crate) fn spawn_guest(
    control_groups: &ControlGroups,
    started: &Started,
    guest: &GuestProgram,
) -> Result<ProcessIdentity, Error> {
    let mut listen = std::ffi::OsString::from("unix:");
    listen.push(&guest.socket);
    let args = [
        "serve".into(),
        "--pod".into(),
        guest.pod.as_str().into(),
        "--listen".into(),
        listen,
        "--cgroup".into(),
        (&guest.cgroup).into(),
        "--log".into(),
        (&guest.log).into(),
    ];
    let cgroup = format!("{}/guest", guest.cgroup.trim_end_matches('/'));
    let daemon = Daemon {
        args: args.into(),
        oom_score_adjust: Some(OOM_SCORE_ADJ),
        ..Daemon::new(guest.program.clone(), cgroup)
    };
    start(control_groups, started, &daemon)
}

/// Starts a daemon; see [`crate::Node::start`]. Blocks until it has been
/// executed. Must be called within a tokio runtime, which reaps it.
pub(crate) fn start(
    control_groups: &ControlGroups,
    started: &Started,
    daemon: &Daemon,
) -> Result<ProcessIdentity, Error> {
    let failed = |source| Error::Execute { path: daemon.path.clone(), source };
    let image = image(daemon)?;
    let membership = control_groups.create_and_open(&daemon.cgroup)?;
    let Forked { pid, pidfd } = fork::start(&image, &membership).map_err(failed)?;
    // It is not reaped before this returns, so the number is its own.
    let identity = process::identity(pid)?.ok_or(Error::Interrupted { operation: "start daemon" })?;
    if let Some(adjust) = daemon.oom_score_adjust {
        adjust_oom_score(pid, adjust);
    }
    // While this process lives it is the daemon's parent and must reap it; a
    // later one is not, and init does.
    let end = started.add(identity);
    let path = daemon.path.clone();
    tokio::spawn(async move {
        match ended(pidfd).await {
            Ok(status) => {
                debug!(path = %path.display(), pid, ?status, "daemon ended");
                end.send_replace(status.and_then(|status| exit_status(&status)));
            }
            Err(error) => debug!(path = %path.display(), pid, %error, "daemon cannot be reaped"),
        }
    });
    Ok(identity)
}

fn exit_status(status: &rustix::process::WaitIdStatus) -> Option<ExitStatus> {
    let code = status.exit_status().map(ExitStatus::Code);
    code.or_else(|| status.terminating_signal().map(ExitStatus::Signal))
}

fn image(daemon: &Daemon) -> Result<Image, Error> {
    let text = |text: &[u8]| {
        let failed =
            |error: std::ffi::NulError| Error::Execute { path: daemon.path.clone(), source: error.into() };
        CString::new(text).map_err(failed)
    };
    let program = text(daemon.path.as_os_str().as_bytes())?;
    let mut args = vec![program.clone()];
    for argument in &daemon.args {
        args.push(text(argument.as_bytes())?);
    }
    let mut env = Vec::new();
    for (name, value) in &daemon.env {
        env.push(text(format!("{name}={value}").as_bytes())?);
    }
    Ok(Image {
        program,
        args,
        env,
        output: daemon.output.as_deref().map(open_output).transpose()?,
        inherit: daemon.inherit.clone(),
        network: match &daemon.network {
            DaemonNetwork::Node => Network::Node,
            DaemonNetwork::Empty => Network::Empty,
            DaemonNetwork::Namespace(path) => {
                let opened = File::open(path).map_err(|source| Error::io("open", path, source))?;
                Network::Namespace(opened.into())
            }
        },
        user: daemon.user.clone(),
        no_new_privileges: daemon.no_new_privileges,
    })
}

/// Opens what a daemon writes to: a file at its end, or a named pipe once
/// somebody reads it.
fn open_output(path: &Path) -> Result<OwnedFd, Error> {
    let failed = |source: io::Error| Error::io("open", path, source);
    let begin = Instant::now();
    loop {
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK)
            .open(path);
        let file = match opened {
            // A pipe without a reader.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) && begin.elapsed() < READER_PATIENCE => {
                std::thread::sleep(PAUSE);
                continue;
            }
            opened => opened.map_err(failed)?,
        };
        if file.metadata().map_err(failed)?.file_type().is_fifo() {
            // The daemon waits for the reader, rather than lose lines.
            rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::APPEND)
                .map_err(|error| failed(error.into()))?;
        }
        return Ok(file.into());
    }
}

#[allow(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
async fn ended(pidfd: OwnedFd) -> io::Result<Option<rustix::process::WaitIdStatus>> {
    // SAFETY: an OwnedFd is open and the same until it is dropped, which the
    // AsyncFd does.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
    let _readable = pidfd.readable().await?;
    fork::reap(pidfd.get_ref())
}

fn adjust_oom_score(pid: u32, adjust: i32) {
    // Without CAP_SYS_RESOURCE the kernel refuses to lower it: then the daemon
    // is as likely a victim as any process of its size.
    if let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), adjust.to_string()) {
        debug!(pid, %error, "oom_score_adj stays as it is");
    }
}
