//! Starting a guest as a daemon of its own.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::process::Stdio;

use tokio::process::Command;
use tracing::debug;

use super::control_groups::ControlGroups;
use super::process;
use crate::{Error, GuestProgram, ProcessIdentity};

/// What containerd gives its shims: killed after everything of the pods.
const OOM_SCORE_ADJ: &str = "-999";

/// `CLOSE_RANGE_CLOEXEC` of linux/close_range.h (Linux 5.11).
const CLOSE_RANGE_CLOEXEC: libc::c_int = 4;

/// Starts a guest; see [`crate::Node::spawn_guest`]. Blocks until it has been
/// executed. Must be called within a tokio runtime, which reaps the guest.
#[allow(unsafe_code, reason = "the child joins its session and cgroup between fork and exec")]
pub(crate) fn spawn(control_groups: &ControlGroups, guest: &GuestProgram) -> Result<ProcessIdentity, Error> {
    let cgroup = format!("{}/guest", guest.cgroup.trim_end_matches('/'));
    // Opened here: between fork and exec nothing may allocate or lock.
    let memberships = control_groups.create_and_open(&cgroup)?;
    let mut listen = std::ffi::OsString::from("unix:");
    listen.push(&guest.socket);

    let mut command = Command::new(&guest.program);
    command
        .arg("serve")
        .args(["--pod", guest.pod.as_str()])
        .arg("--listen")
        .arg(listen)
        .args(["--cgroup", &guest.cgroup])
        .arg("--log")
        .arg(&guest.log)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(false);
    // SAFETY: the closure runs in the forked child of a process with many
    // threads, where only async-signal-safe calls are allowed. It makes system
    // calls only, on memory and descriptors made before the fork; an
    // io::Error of an errno does not allocate.
    unsafe {
        command.pre_exec(move || {
            // Out of the daemon's session: its terminal and its signals.
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::umask(0o022);
            for membership in &memberships {
                if libc::write(membership.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                    return Err(io::Error::last_os_error());
                }
            }
            // Rust opens everything close-on-exec; a C library may not have.
            // Kernels without the flag refuse it, which is no loss.
            let _ = libc::close_range(3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC);
            Ok(())
        });
    }
    let mut child =
        command.spawn().map_err(|source| Error::Execute { path: guest.program.clone(), source })?;
    // It is not reaped before this returns, so the number is its own.
    let pid = child.id().ok_or(Error::Interrupted { operation: "start guest" })?;
    let identity = process::identity(pid)?.ok_or(Error::Interrupted { operation: "start guest" })?;
    protect_from_oom(pid);
    // While this daemon lives it is the guest's parent and must reap it; a
    // later daemon is not, and init does.
    let pod = guest.pod.clone();
    tokio::spawn(async move {
        match child.wait().await {
            Ok(status) => debug!(pod_id = %pod, pid, %status, "guest ended"),
            Err(error) => debug!(pod_id = %pod, pid, %error, "guest cannot be reaped"),
        }
    });
    Ok(identity)
}

fn protect_from_oom(pid: u32) {
    // Without CAP_SYS_RESOURCE the kernel refuses to lower it: then the guest
    // is as likely a victim as any process of its size.
    if let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ) {
        debug!(pid, %error, "the guest's oom_score_adj stays as it is");
    }
}
