//! The caller's side.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kina_cgroup::Group;
use oci_spec::runtime::{LinuxIdMapping, PosixRlimit};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::check::{self, Checked};
use crate::error::{Error, Operation};
use crate::forker::{Forker, NotForked};
use crate::helper::{read_verdict, set_born_in_cgroup, write_order};
use crate::order::{GO, Message, START, Warning};
use crate::plan::{ExecPlan, Plan, RootFs, Stdio};
use crate::spawn::{Descriptors, Program, open_sealed, spawn};
use crate::wire::{self, Received};

/// How long to wait for a process that was just killed.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Starts processes. One per program is enough; calls from several threads do not wait for each
/// other.
#[derive(Debug)]
pub struct Launcher {
    program: Program,
    path: PathBuf,
    /// Until it ends.
    forker: Mutex<Option<Forker>>,
    deadline: Duration,
}

/// What a container's first process is to be, with the control group that it will be in.
#[derive(Debug)]
pub struct LimitedPlan {
    checked: Checked,
    rootfs: RootFs,
    stdio: Stdio,
    cgroup: Option<Group>,
}

impl LimitedPlan {
    /// The first part of [`Launcher::create`]: checks everything that can be known before a process
    /// is made, and makes the control group with its limits.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Cgroup`]; the control group may be there then.
    pub fn new(plan: Plan) -> Result<Self, Error> {
        let Plan { spec, rootfs, stdio, cgroup } = plan;
        let checked = check::init(&spec, &rootfs, &stdio, cgroup.as_ref())?;
        if let Some(group) = &cgroup {
            group.create().map_err(Error::Cgroup)?;
            if let Some(resources) = &checked.resources {
                group.set(resources).map_err(Error::Cgroup)?;
            }
        }
        Ok(Self { checked, rootfs, stdio, cgroup })
    }
}

/// A process that is set up and waits to be started. It is a child of the caller, who is to wait
/// for `pid`, whatever becomes of it.
#[derive(Debug)]
pub struct Created {
    /// In the caller's pid namespace.
    pub pid: i32,
    /// The same process.
    pub pidfd: OwnedFd,
    /// Starts it, or kills it when dropped.
    pub start: StartHandle,
    /// The terminal, if [`Stdio::Terminal`] was asked for.
    pub terminal: Option<OwnedFd>,
    /// What could not be done and does not matter much.
    pub warnings: Vec<Warning>,
}

/// Lets a created process execute its program. Dropping it kills the process; the caller still
/// waits for it.
#[derive(Debug)]
pub struct StartHandle {
    socket: OwnedFd,
    pidfd: OwnedFd,
    order: OwnedFd,
    program: String,
    deadline: Duration,
    started: bool,
}

impl Launcher {
    /// Prepares to run `program` (usually `/proc/self/exe`) as the helper. `arguments` are all of
    /// its arguments, the zeroth included; they must make its `main` call
    /// [`helper_main`](crate::helper_main). The program is opened now: a later change of the file
    /// does not matter. It is executed now, too: what it becomes forks the helpers, with the
    /// namespaces, limits and rights that the caller has at this moment.
    ///
    /// # Errors
    /// [`Error::Helper`].
    pub fn new(program: &Path, arguments: &[&str]) -> Result<Self, Error> {
        let failed = |source: io::Error| Error::Helper { program: program.to_owned(), source };
        let arguments = arguments
            .iter()
            .map(|argument| CString::new(*argument))
            .collect::<Result<_, _>>()
            .map_err(|error| failed(error.into()))?;
        let file = open_sealed(program).map_err(failed)?;
        let executed = Program { file, arguments };
        let forker = Forker::start(&executed).map_err(failed)?;
        Ok(Self {
            program: executed,
            path: program.to_owned(),
            forker: Mutex::new(Some(forker)),
            deadline: crate::helper::DEFAULT_DEADLINE,
        })
    }

    /// Sets how long a set-up and a start may take; 30 seconds if not set. When it passes the
    /// process is killed.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets up a container's first process up to, but without, the execution of its program.
    /// Blocks.
    ///
    /// # Errors
    /// Any [`Error`]; no process is left then, but the control group is.
    pub fn create(&self, plan: Plan) -> Result<Created, Error> {
        self.set_up(LimitedPlan::new(plan)?)
    }

    /// The second part of [`Launcher::create`].
    ///
    /// # Errors
    /// Likewise.
    pub fn set_up(&self, plan: LimitedPlan) -> Result<Created, Error> {
        let LimitedPlan { checked, rootfs, stdio, cgroup } = plan;
        let extra = match rootfs {
            RootFs::Path(_) => None,
            RootFs::Detached(mount) => Some(mount),
        };
        let killed = |group: &Group| matches!(group.oom_kill_count(), Ok(Some(1..)));
        match self.launch(&checked, stdio, extra, cgroup.as_ref()) {
            Err(Error::Died) if cgroup.as_ref().is_some_and(killed) => Err(Error::OutOfMemory),
            done => done,
        }
    }

    /// Sets up another process in a container, given by the pidfd of its first process. Blocks.
    ///
    /// # Errors
    /// [`Error::Gone`] if the container has ended, or any other [`Error`]; no process is left.
    pub fn exec(&self, container: std::os::fd::BorrowedFd<'_>, plan: ExecPlan<'_>) -> Result<Created, Error> {
        let failed = |error: rustix::io::Errno| Error::setup(Operation::JoinContainer, error);
        let pidfd = rustix::io::fcntl_dupfd_cloexec(container, 3).map_err(failed)?;
        let checked = check::exec(&plan, container)?;
        match self.launch(&checked, plan.stdio, Some(pidfd), plan.cgroup.as_ref()) {
            Err(Error::Setup {
                operation: Operation::JoinContainer | Operation::Clone | Operation::EnterCgroup,
                source,
            }) if matches!(
                source.raw_os_error(),
                Some(libc::ESRCH | libc::ENOMEM | libc::ENOENT | libc::ENODEV)
            ) && has_ended(container) =>
            {
                Err(Error::Gone)
            }
            Err(Error::Died | Error::TimedOut) if has_ended(container) => Err(Error::Gone),
            done => done,
        }
    }

    fn launch(
        &self,
        checked: &Checked,
        stdio: Stdio,
        extra: Option<OwnedFd>,
        cgroup: Option<&Group>,
    ) -> Result<Created, Error> {
        let talk = |error: io::Error| Error::setup(Operation::Communicate, error);
        let code = checked.filter.as_ref().map_or(&[][..], |filter| &filter.code);
        let order = write_order(&checked.order, code).map_err(talk)?;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|error| talk(error.into()))?;
        let (stdin, stdout, stderr) = match stdio {
            Stdio::Files { stdin, stdout, stderr } => (stdin, stdout, stderr),
            Stdio::Terminal => {
                let open = || -> io::Result<OwnedFd> {
                    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
                    Ok(rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())?)
                };
                (open().map_err(talk)?, open().map_err(talk)?, open().map_err(talk)?)
            }
        };
        let descriptors = Descriptors {
            streams: [&stdin, &stdout, &stderr],
            socket: &theirs,
            order: Some(&order),
            extra: extra.as_ref(),
        };
        let (pid, pidfd) = self
            .spawn(&descriptors, &ours, &order, cgroup)
            .map_err(|source| Error::Helper { program: self.path.clone(), source })?;
        drop((stdin, stdout, stderr, theirs, extra));
        let attempt = Attempt {
            socket: ours,
            order: Some(order),
            helper: pid,
            helper_pidfd: Some(pidfd),
            process: None,
            warnings: checked.warnings.clone(),
            limit: self.deadline,
        };
        attempt.run(self, checked)
    }

    /// Makes the helper in its cgroup2 group: moving a process there takes a lock over all of the
    /// machine's forks and exits, for which the kernel waits some ten milliseconds. Where that is
    /// not possible (an old kernel, a seccomp filter, a group that takes no processes) the helper
    /// moves itself, and tells what is wrong if that fails too.
    fn spawn(
        &self,
        descriptors: &Descriptors<'_>,
        socket: &OwnedFd,
        order: &OwnedFd,
        cgroup: Option<&Group>,
    ) -> io::Result<(i32, OwnedFd)> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let directory = cgroup
            .and_then(Group::unified_directory)
            .and_then(|directory| rustix::fs::open(directory, flags, Mode::empty()).ok());
        if let Some(directory) = &directory {
            set_born_in_cgroup(order, true)?;
            if let Ok(made) = self.make(descriptors, socket, Some(directory)) {
                return Ok(made);
            }
            set_born_in_cgroup(order, false)?;
        }
        self.make(descriptors, socket, None)
    }

    /// Has a helper forked, or where that is not possible any more executes one. `socket` is the
    /// launcher's end.
    fn make(
        &self,
        descriptors: &Descriptors<'_>,
        socket: &OwnedFd,
        cgroup: Option<&OwnedFd>,
    ) -> io::Result<(i32, OwnedFd)> {
        let mut forker = self.forker.lock().unwrap_or_else(PoisonError::into_inner);
        match forker.as_ref().map(|forker| forker.fork(descriptors, cgroup)) {
            Some(Ok(made)) => {
                // One that was killed meanwhile is found out later.
                let _ = rustix::net::send(socket, &[GO], SendFlags::NOSIGNAL);
                return Ok(made);
            }
            Some(Err(NotForked::Refused(error))) => return Err(error),
            Some(Err(NotForked::Gone)) => *forker = None,
            None => {}
        }
        drop(forker);
        spawn(&self.program, descriptors, cgroup)
    }
}

/// Whether the process of a pidfd has ended.
fn has_ended(pidfd: std::os::fd::BorrowedFd<'_>) -> bool {
    wire::wait_readable(pidfd, Instant::now()).unwrap_or(true)
}

/// A launch under way. What it made is undone when it is dropped before it is done.
struct Attempt {
    socket: OwnedFd,
    order: Option<OwnedFd>,
    helper: i32,
    helper_pidfd: Option<OwnedFd>,
    process: Option<(i32, OwnedFd)>,
    warnings: Vec<Warning>,
    limit: Duration,
}

impl Attempt {
    fn run(mut self, launcher: &Launcher, checked: &Checked) -> Result<Created, Error> {
        let deadline = Instant::now() + self.limit;
        let talk = |error: io::Error| Error::setup(Operation::Communicate, error);
        let terminal = loop {
            // A killed helper may leave a process that holds the socket open and waits for us.
            let mut waiting = vec![self.socket.as_fd()];
            waiting.extend(self.helper_pidfd.as_ref().map(AsFd::as_fd));
            if wire::wait_any(&waiting, deadline).map_err(talk)? == Some(1) {
                return Err(self.helper_failure(launcher));
            }
            match wire::receive(self.socket.as_fd(), deadline).map_err(talk)? {
                Received::Message(Message::Forked { pid, warnings }, _) => {
                    self.warnings.extend(warnings);
                    self.greet(pid, checked)?;
                    // It has nothing more to do, and must not hold the socket any longer.
                    self.reap_helper(deadline)?;
                }
                Received::Message(Message::Ready, terminal) if self.process.is_some() => {
                    break terminal;
                }
                Received::Message(message, _) => return Err(failure(message)),
                Received::TimedOut => return Err(Error::TimedOut),
                Received::Closed => return Err(self.helper_failure(launcher)),
            }
        };
        let (pid, pidfd) = self.process.take().ok_or(Error::Died)?;
        let order = self.order.take().ok_or(Error::Died)?;
        for limit in &checked.rlimits {
            if let Err(error) = set_rlimit(pid, limit) {
                self.process = Some((pid, pidfd));
                return Err(Error::setup(Operation::Rlimit(limit.typ().to_string()), error));
            }
        }
        let duplicate = |descriptor: &OwnedFd| descriptor.try_clone();
        let (socket, handle) = match (duplicate(&self.socket), duplicate(&pidfd)) {
            (Ok(socket), Ok(handle)) => (socket, handle),
            (Err(error), _) | (_, Err(error)) => {
                self.process = Some((pid, pidfd));
                return Err(talk(error));
            }
        };
        Ok(Created {
            pid,
            pidfd,
            start: StartHandle {
                socket,
                pidfd: handle,
                order,
                program: checked.order.process.args.first().cloned().unwrap_or_default(),
                deadline: self.limit,
                started: false,
            },
            terminal,
            warnings: std::mem::take(&mut self.warnings),
        })
    }

    /// Takes charge of the process, maps its ids and lets it go on.
    fn greet(&mut self, pid: i32, checked: &Checked) -> Result<(), Error> {
        let talk = |error: rustix::io::Errno| Error::setup(Operation::Communicate, error);
        let known = Pid::from_raw(pid).ok_or(Error::Died)?;
        let pidfd = rustix::process::pidfd_open(known, PidfdFlags::empty()).map_err(talk)?;
        self.process = Some((pid, pidfd));
        if let Some((uids, gids)) = &checked.mappings {
            for (file, mappings) in [("uid_map", uids), ("gid_map", gids)] {
                std::fs::write(format!("/proc/{pid}/{file}"), mapping_text(mappings))
                    .map_err(|error| Error::setup(Operation::MapIds, error))?;
            }
        }
        match rustix::net::send(&self.socket, &[GO], SendFlags::NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Err(Error::Died),
            Err(error) => Err(talk(error)),
        }
    }

    fn reap_helper(&mut self, deadline: Instant) -> Result<(), Error> {
        let Some(pidfd) = &self.helper_pidfd else {
            return Ok(());
        };
        let talk = |error: io::Error| Error::setup(Operation::Communicate, error);
        if !wire::wait_readable(pidfd, deadline).map_err(talk)? {
            return Err(Error::TimedOut);
        }
        reap(pidfd.as_fd());
        self.helper_pidfd = None;
        Ok(())
    }

    /// Why the helper ended without a word. The child of the fork that could not become a helper
    /// says so in its exit code.
    fn helper_failure(&mut self, launcher: &Launcher) -> Error {
        let ended = self.helper_pidfd.take().and_then(|pidfd| self.end_helper(&pidfd));
        match ended {
            Some(code) if code > 0 && self.process.is_none() => {
                Error::Helper { program: launcher.path.clone(), source: io::Error::from_raw_os_error(code) }
            }
            _ => Error::Died,
        }
    }

    /// Reaps the helper, and a process that it made and did not tell of because it was killed:
    /// that one is still in the helper's process group, and all of those end.
    fn end_helper(&self, pidfd: &OwnedFd) -> Option<i32> {
        let group = Pid::from_raw(self.helper)?;
        let deadline = Instant::now() + KILL_DEADLINE;
        if !wire::wait_readable(pidfd, Instant::now()).unwrap_or(true) {
            // Fails only if it has ended meanwhile.
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
            if !wire::wait_readable(pidfd, deadline).unwrap_or(false) {
                return None;
            }
        }
        // While the helper is not reaped its number, and so the group's, is not used again.
        // Without such a group there is nobody to kill.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        while let Ok(Some(_)) | Err(rustix::io::Errno::INTR) =
            rustix::process::waitid(WaitId::Pgid(Some(group)), WaitIdOptions::EXITED)
        {}
        status.ok().flatten().and_then(|status| status.exit_status())
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some((_, pidfd)) = self.process.take() {
            // Fails only if it has ended.
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            let deadline = Instant::now() + KILL_DEADLINE;
            if wire::wait_readable(&pidfd, deadline).unwrap_or(false) {
                reap(pidfd.as_fd());
            }
        }
        if let Some(pidfd) = self.helper_pidfd.take() {
            self.end_helper(&pidfd);
        }
    }
}

impl StartHandle {
    /// Lets the process execute its program, and returns when it does. Blocks.
    ///
    /// # Errors
    /// [`Error::Execute`] if the program cannot be executed, [`Error::Setup`] if the last of the
    /// confinement fails, [`Error::Died`] if the process was killed meanwhile. The process has
    /// ended or ends then; the caller still waits for it.
    pub fn start(mut self) -> Result<(), Error> {
        let talk = |error: io::Error| Error::setup(Operation::Communicate, error);
        match rustix::net::send(&self.socket, &[START], SendFlags::NOSIGNAL) {
            Ok(_) => {}
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {
                return Err(Error::Died);
            }
            Err(error) => return Err(talk(error.into())),
        }
        // The socket closes when the program is executed, or when the process ends.
        let deadline = Instant::now() + self.deadline;
        match wire::receive(self.socket.as_fd(), deadline).map_err(talk)? {
            Received::Closed => match read_verdict(&self.order).map_err(talk)? {
                None => {
                    self.started = true;
                    Ok(())
                }
                Some(source) => Err(Error::Execute { path: std::mem::take(&mut self.program), source }),
            },
            Received::Message(message, _) => Err(failure(message)),
            Received::TimedOut => Err(Error::TimedOut),
        }
    }
}

impl Drop for StartHandle {
    fn drop(&mut self) {
        if !self.started {
            // Fails only if it has ended.
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
    }
}

fn failure(message: Message) -> Error {
    match message {
        Message::Failed { operation, errno } => Error::setup(operation, io::Error::from_raw_os_error(errno)),
        Message::NotExecutable { path, errno } => {
            Error::Execute { path, source: io::Error::from_raw_os_error(errno) }
        }
        Message::Forked { .. } | Message::Ready => Error::Died,
    }
}

fn reap(pidfd: std::os::fd::BorrowedFd<'_>) {
    // A child of ours that has ended: nothing else can come of it.
    let _ = rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED);
}

fn mapping_text(mappings: &[LinuxIdMapping]) -> String {
    mappings.iter().map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size())).collect()
}

fn set_rlimit(pid: i32, limit: &PosixRlimit) -> io::Result<()> {
    let value = libc::rlimit64 { rlim_cur: limit.soft(), rlim_max: limit.hard() };
    // SAFETY: the new limit outlives the call and the old one is not asked for.
    let result =
        unsafe { libc::prlimit64(pid, check::resource(limit.typ()), &raw const value, std::ptr::null_mut()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
