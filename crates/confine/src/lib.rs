//! A process gives up what it does not need, once it has opened what it works on
//! and before it reads a stranger's first byte.
//!
//! For small programs of kina's that serve a virtual machine as daemons of their own.
//! Linux only.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};
use rustix::thread::{Gid, Uid};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Why a process is not confined. It must not go on then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a step.
    #[error("{operation}")]
    Kernel {
        /// The step.
        operation: &'static str,
        /// Its words.
        #[source]
        source: io::Error,
    },
    /// The filter of system calls cannot be built for this processor.
    #[error("build the filter of system calls")]
    Filter {
        /// Why.
        #[source]
        source: BackendError,
    },
    /// The kernel does not take the filter of system calls.
    #[error("filter system calls")]
    Apply {
        /// Why.
        #[source]
        source: seccompiler::Error,
    },
}

/// System calls that end the process. A program that serves streams or keeps a file
/// needs none of them; whoever has taken it over would begin with one.
const DEADLY: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_open_by_handle_at,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
];

/// Flags of clone(2) that make namespaces.
const NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// Becomes `user`, with the group of the same number and no other (without one it
/// stays who it is); gives up all capabilities and the way to new ones; and dies of
/// system calls that run programs, look into other processes, change mounts or
/// namespaces, make sockets that are not unix ones, or administer the machine.
///
/// For a process with one thread: threads that are there already keep their rights.
///
/// # Errors
/// When a step fails. Some may have been taken.
pub fn confine(user: Option<u32>) -> Result<(), Error> {
    let step = |operation, done: rustix::io::Result<()>| {
        done.map_err(|error| Error::Kernel { operation, source: error.into() })
    };
    step("give up new privileges", rustix::thread::set_no_new_privs(true))?;
    for capability in CapabilitySet::all().iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know; or no right to remove any, and then
            // none to gain either.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {}
            done => step("empty the bounding set of capabilities", done)?,
        }
    }
    if let Some(user) = user {
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        step("leave all groups", rustix::thread::set_thread_groups(&[]))?;
        step("change the group", rustix::thread::set_thread_res_gid(gid, gid, gid))?;
        step("change the user", rustix::thread::set_thread_res_uid(uid, uid, uid))?;
    }
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    step("give up capabilities", rustix::thread::set_capabilities(None, none))?;
    for filter in [deadly(), missing()] {
        let filter = filter.map_err(|source| Error::Filter { source })?;
        seccompiler::apply_filter(&filter).map_err(|source| Error::Apply { source })?;
    }
    Ok(())
}

/// By the number of the system call: it is met where one of the rules holds, or always without.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Ends the process.
fn deadly() -> Result<BpfProgram, BackendError> {
    let first = |operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)?])
    };
    let mut rules: Rules = DEADLY.iter().map(|call| (*call, Vec::new())).collect();
    let unix = u64::from(libc::AF_UNIX.unsigned_abs());
    rules.insert(libc::SYS_socket, vec![first(SeccompCmpOp::Ne, unix)?]);
    let flags = NAMESPACES.iter().map(|flag| u64::from(flag.unsigned_abs()));
    let cloning: Result<_, _> = flags.map(|flag| first(SeccompCmpOp::MaskedEq(flag), flag)).collect();
    rules.insert(libc::SYS_clone, cloning?);
    compile(rules, SeccompAction::KillProcess)
}

/// What the kernel seems not to have: its flags are in memory, where a filter cannot
/// see them. C libraries make their threads by clone(2) then.
fn missing() -> Result<BpfProgram, BackendError> {
    let rules = Rules::from([(libc::SYS_clone3, Vec::new())]);
    compile(rules, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()))
}

fn compile(rules: Rules, action: SeccompAction) -> Result<BpfProgram, BackendError> {
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, action, architecture)?.try_into()
}
