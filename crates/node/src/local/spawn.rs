//! Starting a guest as a daemon of its own.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::control_groups::ControlGroups;
use super::fork::{self, Daemon, Image};
use super::process;
use crate::{Error, GuestProgram, ProcessIdentity};

/// What containerd gives its shims: killed after everything of the pods.
const OOM_SCORE_ADJ: &str = "-999";

const ENVIRONMENT: &CStrings = &[c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];

type CStrings = [&'static std::ffi::CStr];

/// Starts a guest; see [`crate::Node::spawn_guest`]. Blocks until it has been
/// executed. Must be called within a tokio runtime, which reaps the guest.
pub(crate) fn spawn(control_groups: &ControlGroups, guest: &GuestProgram) -> Result<ProcessIdentity, Error> {
    let failed = |source| Error::Execute { path: guest.program.clone(), source };
    let image = image(guest).map_err(failed)?;
    let cgroup = format!("{}/guest", guest.cgroup.trim_end_matches('/'));
    let membership = control_groups.create_and_open(&cgroup)?;
    let Daemon { pid, pidfd } = fork::start(&image, &membership).map_err(failed)?;
    // It is not reaped before this returns, so the number is its own.
    let identity = process::identity(pid)?.ok_or(Error::Interrupted { operation: "start guest" })?;
    protect_from_oom(pid);
    // While this daemon lives it is the guest's parent and must reap it; a
    // later daemon is not, and init does.
    let pod = guest.pod.clone();
    tokio::spawn(async move {
        match ended(pidfd).await {
            Ok(status) => debug!(pod_id = %pod, pid, ?status, "guest ended"),
            Err(error) => debug!(pod_id = %pod, pid, %error, "guest cannot be reaped"),
        }
    });
    Ok(identity)
}

fn image(guest: &GuestProgram) -> io::Result<Image> {
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let mut listen = b"unix:".to_vec();
    listen.extend_from_slice(guest.socket.as_os_str().as_bytes());
    let program = path(&guest.program)?;
    Ok(Image {
        args: vec![
            program.clone(),
            c"serve".to_owned(),
            c"--pod".to_owned(),
            CString::new(guest.pod.as_str())?,
            c"--listen".to_owned(),
            CString::new(listen)?,
            c"--cgroup".to_owned(),
            CString::new(guest.cgroup.as_str())?,
            c"--log".to_owned(),
            path(&guest.log)?,
        ],
        program,
        env: ENVIRONMENT.iter().map(|entry| (*entry).to_owned()).collect(),
    })
}

#[allow(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
async fn ended(pidfd: OwnedFd) -> io::Result<Option<rustix::process::WaitIdStatus>> {
    // SAFETY: an OwnedFd is open and the same until it is dropped, which the
    // AsyncFd does.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
    let _readable = pidfd.readable().await?;
    fork::reap(pidfd.get_ref())
}

fn protect_from_oom(pid: u32) {
    // Without CAP_SYS_RESOURCE the kernel refuses to lower it: then the guest
    // is as likely a victim as any process of its size.
    if let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ) {
        debug!(pid, %error, "the guest's oom_score_adj stays as it is");
    }
}
