//! The helper: one thread, one operation.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use kina_userns::{Mapping, Range, With};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::Operation;
use crate::final_stage::{self, Prepared};
use crate::mounts::{self, Sources};
use crate::order::{
    CgroupV1, GO, InitOrder, MappedIds, Message, MountKind, MountOrder, Order, ProcessOrder, START, Task,
    Warning,
};
use crate::seccomp::Instruction;
use crate::spawn::{EXTRA, FIRST_FREE, ORDER, SOCKET};
use crate::{forker, sys, terminal, wire};

/// The most of an order that is read.
const ORDER_LIMIT: u64 = 16 << 20;

/// What the helper and the init say when they cannot go on.
pub(crate) enum Failure {
    Setup(Operation, io::Error),
    NotExecutable(String, io::Error),
    /// The launcher is gone, or has given up.
    Abandoned,
}

/// Adds the step to an error.
pub(crate) trait During<T> {
    fn during(self, operation: impl FnOnce() -> Operation) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, operation: impl FnOnce() -> Operation) -> Result<T, Failure> {
        self.map_err(|error| Failure::Setup(operation(), error.into()))
    }
}

/// Runs the helper and never returns. To be called at the very start of `main`, before any thread
/// is made, when the program was started with the arguments that were given to
/// [`Launcher::new`](crate::Launcher::new).
pub fn helper_main() -> ! {
    // SAFETY: the launcher put these there, and this is the first and only code that takes them.
    // The latter two may be missing.
    let take = || unsafe { (sys::own(SOCKET), passed(ORDER), passed(EXTRA)) };
    let (socket, order, extra) = match take() {
        (control, None, _) => match forker::serve(control) {
            // In a helper that was forked off, where the same numbers are the helper's own.
            Ok(()) => {
                let own = take();
                if wait_for(&own.0, GO).is_err() {
                    sys::exit(1);
                }
                own
            }
            Err(_) => sys::exit(1),
        },
        executed => {
            // One that was forked ends by its socket: its parent may be a thread that ends early.
            // This cannot fail, and would only make a killed launcher's helper last longer.
            let _ = sys::prctl(libc::PR_SET_PDEATHSIG, signal_number(libc::SIGKILL), 0);
            executed
        }
    };
    let Some(order) = order else { sys::exit(1) };
    let code = match run(&socket, order, extra) {
        Ok(()) => 0,
        Err(failure) => {
            report(&socket, failure);
            1
        }
    };
    sys::exit(code)
}

/// Takes a descriptor that was passed on by number, if it was.
///
/// # Safety
/// Nothing else owns the number.
unsafe fn passed(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: it is only asked for; if it is open, nothing else owns it, as the caller promised.
    unsafe {
        let open = rustix::io::fcntl_getfd(BorrowedFd::borrow_raw(number)).is_ok();
        open.then(|| sys::own(number))
    }
}

/// Tells the launcher why there is no process; returns whether it was about the program.
fn report(socket: &OwnedFd, failure: Failure) -> i32 {
    let errno = |error: &io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    let (message, code) = match failure {
        Failure::Setup(operation, error) => {
            let errno = errno(&error);
            (Message::Failed { operation, errno }, 1)
        }
        Failure::NotExecutable(path, error) => {
            let errno = errno(&error);
            let code = if errno == libc::ENOENT { 127 } else { 126 };
            (Message::NotExecutable { path, errno }, code)
        }
        Failure::Abandoned => return 1,
    };
    // If the launcher is gone too, there is nobody left to tell.
    let _ = wire::send(socket.as_fd(), &message, None);
    code
}

fn run(socket: &OwnedFd, order: OwnedFd, extra: Option<OwnedFd>) -> Result<(), Failure> {
    sys::close_range(FIRST_FREE, false).during(|| Operation::CloseDescriptors)?;
    // The launcher finds a process of ours by this group.
    rustix::process::setpgid(None, None).during(|| Operation::Communicate)?;
    // No container may look into a process that still has the launcher's privileges.
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).during(|| Operation::Communicate)?;
    let verdict = Verdict::map(&order).during(|| Operation::Communicate)?;
    let (order, filter, born_in_cgroup) = read_order(order).during(|| Operation::Communicate)?;

    for file in order.cgroup_files.iter().chain(order.unified_file.iter().filter(|_| !born_in_cgroup)) {
        OpenOptions::new()
            .write(true)
            .open(file)
            .and_then(|mut file| file.write_all(b"0"))
            .during(|| Operation::EnterCgroup)?;
    }
    let warnings = order.oom_score_adj.and_then(set_oom_score).into_iter().collect();

    let mut sources = Sources::default();
    let mut flags = 0;
    match &order.task {
        Task::Init(init) => {
            // All that is to be found by host paths is opened before the namespaces are joined.
            sources = open_sources(init, extra)?;
            let namespaces: Vec<(OwnedFd, u32)> = init
                .join
                .iter()
                .map(|(path, kind)| {
                    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                    rustix::fs::open(path, flags, Mode::empty())
                        .map(|namespace| (namespace, *kind))
                        .during(|| Operation::JoinNamespace(path.clone()))
                })
                .collect::<Result<_, _>>()?;
            // The user namespace last: before it, the rights to join the others are held anyway.
            let user = u32::try_from(libc::CLONE_NEWUSER).unwrap_or(0);
            for last in [false, true] {
                for ((namespace, kind), (path, _)) in namespaces.iter().zip(&init.join) {
                    if (*kind == user) == last {
                        sys::setns(namespace.as_fd(), *kind)
                            .during(|| Operation::JoinNamespace(path.clone()))?;
                    }
                }
            }
            flags = init.new_namespaces & !deferred(&order.process, init);
        }
        Task::Exec { namespaces } => {
            let container = extra.as_ref().ok_or(Failure::Abandoned)?;
            sys::setns(container.as_fd(), *namespaces).during(|| Operation::JoinContainer)?;
        }
    }

    let flags = flags | u64::try_from(libc::CLONE_PARENT).unwrap_or(0);
    // SAFETY: this process has one thread, so the child may do whatever the parent could.
    let pid = unsafe { sys::clone3(flags, None) }.during(|| Operation::Clone)?;
    if pid != 0 {
        let message = Message::Forked { pid, warnings };
        return wire::send(socket.as_fd(), &message, None).during(|| Operation::Communicate);
    }
    let code = match run_process(socket, &order, &filter, sources) {
        Ok(never) => match never {},
        Err(failure) => {
            if let Failure::NotExecutable(_, error) = &failure {
                verdict.give(error);
            }
            report(socket, failure)
        }
    };
    sys::exit(code)
}

/// The first word of the order, shared with the launcher: 0, or why the program could not be
/// executed. A seccomp filter that forbids to send a message cannot forbid this.
struct Verdict(*mut u32);

impl Verdict {
    fn map(order: &OwnedFd) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping of a file that is longer than one word; never unmapped.
        let word = unsafe { mmap(std::ptr::null_mut(), 4, access, flags, order, 0) }?;
        Ok(Self(word.cast()))
    }

    fn give(&self, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(libc::EIO).unsigned_abs();
        // SAFETY: mapped above, page-aligned, and only this process writes it.
        unsafe { self.0.write_volatile(errno) };
    }
}

/// What [`Verdict`] says, on the launcher's side.
pub(crate) fn read_verdict(order: &OwnedFd) -> io::Result<Option<io::Error>> {
    let mut word = [0_u8; 4];
    rustix::io::pread(order, &mut word, 0)?;
    let errno = i32::from_ne_bytes(word);
    Ok((errno != 0).then(|| io::Error::from_raw_os_error(errno)))
}

/// The new process, from its birth to its program.
fn run_process(
    socket: &OwnedFd,
    order: &Order,
    filter: &[libc::sock_filter],
    sources: Sources,
) -> Result<std::convert::Infallible, Failure> {
    // Until the launcher knows this process it stays in the helper's process group, by which the
    // launcher finds it should the helper be killed right now.
    wait_for(socket, GO)?;
    let process = &order.process;
    if process.user_namespace {
        rustix::thread::set_thread_res_gid(root_gid(), root_gid(), root_gid())
            .during(|| Operation::BecomeRoot)?;
        rustix::thread::set_thread_res_uid(root_uid(), root_uid(), root_uid())
            .during(|| Operation::BecomeRoot)?;
    }
    rustix::process::setsid().during(|| Operation::Session)?;
    match sys::new_session_keyring() {
        // The user's quota of keys: a shared keyring is what it then gets.
        Err(error) if error.raw_os_error() == Some(libc::EDQUOT) => {}
        done => done.during(|| Operation::Session)?,
    }
    let mut terminal = None;
    match &order.task {
        Task::Init(init) => {
            let deferred = deferred(process, init);
            if deferred != 0 {
                sys::unshare(i32::try_from(deferred).unwrap_or(0)).during(|| Operation::Clone)?;
            }
            if init.new_cgroup_namespace {
                sys::unshare(libc::CLONE_NEWCGROUP).during(|| Operation::Clone)?;
            }
            mounts::set_up(init, process, sources)?;
            if let Some(size) = process.terminal {
                terminal = Some(terminal::open(size, true).during(|| Operation::Terminal)?);
            }
            mounts::finish(init)?;
        }
        Task::Exec { .. } => {
            if let Some(size) = process.terminal {
                terminal = Some(terminal::open(size, false).during(|| Operation::Terminal)?);
            }
        }
    }
    let prepared: Prepared = final_stage::prepare(process)?;
    let master = terminal.as_ref().map(AsFd::as_fd);
    wire::send(socket.as_fd(), &Message::Ready, master).during(|| Operation::Communicate)?;
    drop(terminal);
    wait_for(socket, START)?;
    final_stage::execute(process, &prepared, filter, order.seccomp_flags, order.seccomp_length.is_some())
}

/// New namespaces that the process makes itself once it is root of its user namespace: the message
/// queues of an IPC namespace belong to whoever made it.
fn deferred(process: &ProcessOrder, init: &InitOrder) -> u64 {
    if process.user_namespace {
        init.new_namespaces & u64::try_from(libc::CLONE_NEWIPC).unwrap_or(0)
    } else {
        0
    }
}

fn root_uid() -> rustix::process::Uid {
    rustix::process::Uid::ROOT
}

fn root_gid() -> rustix::process::Gid {
    rustix::process::Gid::ROOT
}

fn signal_number(signal: i32) -> u64 {
    u64::try_from(signal).unwrap_or(9)
}

/// Waits for one byte. The launcher bounds how long that is while it sets up, and after that the
/// wait is the caller's wish; the end of the launcher ends it.
fn wait_for(socket: &OwnedFd, wanted: u8) -> Result<(), Failure> {
    let mut byte = [0_u8; 1];
    loop {
        match rustix::io::read(socket, &mut byte) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(1) if byte[0] == wanted => return Ok(()),
            Ok(_) | Err(_) => return Err(Failure::Abandoned),
        }
    }
}

/// The order, its filter, and whether this process was made in the order's cgroup2 group.
fn read_order(descriptor: OwnedFd) -> io::Result<(Order, Vec<libc::sock_filter>, bool)> {
    let mut bytes = Vec::new();
    File::from(descriptor).take(ORDER_LIMIT).read_to_end(&mut bytes)?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let (verdict, rest) = bytes.split_first_chunk::<8>().ok_or_else(invalid)?;
    let born_in_cgroup = verdict[4] != 0;
    let (head, rest) = rest.split_first_chunk::<8>().ok_or_else(invalid)?;
    let length = usize::try_from(u64::from_ne_bytes(*head)).map_err(|_| invalid())?;
    let (json, code) = rest.split_at_checked(length).ok_or_else(invalid)?;
    let order: Order = serde_json::from_slice(json)?;
    let (words, []) = code.as_chunks::<8>() else {
        return Err(invalid());
    };
    let filter = words
        .iter()
        .map(|w| libc::sock_filter {
            code: u16::from_ne_bytes([w[0], w[1]]),
            jt: w[2],
            jf: w[3],
            k: u32::from_ne_bytes([w[4], w[5], w[6], w[7]]),
        })
        .collect();
    Ok((order, filter, born_in_cgroup))
}

/// Tells the helper that is to be made whether it will be born in the order's cgroup2 group.
pub(crate) fn set_born_in_cgroup(order: &OwnedFd, born: bool) -> io::Result<()> {
    rustix::io::pwrite(order, &[u8::from(born)], 4)?;
    Ok(())
}

/// The order as the helper reads it: verdict, birth, length, JSON, filter.
pub(crate) fn write_order(order: &Order, filter: &[Instruction]) -> io::Result<OwnedFd> {
    let json = serde_json::to_vec(order)?;
    let mut bytes = Vec::with_capacity(16 + json.len() + 8 * filter.len());
    bytes.extend_from_slice(&0_u64.to_ne_bytes());
    bytes.extend_from_slice(&(json.len() as u64).to_ne_bytes());
    bytes.extend_from_slice(&json);
    for item in filter {
        bytes.extend_from_slice(&item.code.to_ne_bytes());
        bytes.push(item.jump_true);
        bytes.push(item.jump_false);
        bytes.extend_from_slice(&item.k.to_ne_bytes());
    }
    if bytes.len() as u64 > ORDER_LIMIT {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let memory = rustix::fs::memfd_create(c"kina-order", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut memory = File::from(memory);
    memory.write_all(&bytes)?;
    io::Seek::rewind(&mut memory)?;
    Ok(memory.into())
}

/// Returns a warning if the kernel refuses.
fn set_oom_score(wanted: i32) -> Option<Warning> {
    let done = OpenOptions::new()
        .write(true)
        .open("/proc/self/oom_score_adj")
        .and_then(|mut file| file.write_all(wanted.to_string().as_bytes()));
    let error = done.err()?;
    Some(Warning::OomScoreAdj { wanted, errno: error.raw_os_error().unwrap_or(libc::EIO) })
}

/// Copies of the mounts that the container is to see, attached nowhere yet.
fn open_sources(init: &InitOrder, extra: Option<OwnedFd>) -> Result<Sources, Failure> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = clone | OpenTreeFlags::AT_RECURSIVE;
    let root = match (&init.root, extra) {
        (Some(path), _) => open_tree(CWD, path, tree).during(|| Operation::OpenRoot)?,
        (None, Some(mount)) => mount,
        (None, None) => return Err(Failure::Abandoned),
    };
    let mut sources = Sources { root: Some(root), ..Sources::default() };
    let mut maps = Maps::default();
    for MountOrder { kind, .. } in &init.mounts {
        let mut opened = Vec::new();
        match kind {
            MountKind::Bind { source, recursive, mapped } => {
                let flags = if *recursive { tree } else { clone };
                let mount = open_tree(CWD, source, flags).during(|| Operation::OpenSource(source.clone()))?;
                if let Some(ids) = mapped {
                    maps.apply(&mount, ids).during(|| Operation::MapMount(source.clone()))?;
                }
                opened.push(mount);
            }
            MountKind::New { .. } | MountKind::OfRoot(_) => {}
            MountKind::CgroupV1(groups) if !init.new_cgroup_namespace => {
                for CgroupV1 { directory, .. } in groups {
                    opened.push(
                        open_tree(CWD, directory, clone)
                            .during(|| Operation::OpenSource(directory.clone()))?,
                    );
                }
            }
            MountKind::CgroupV1(_) => {}
            MountKind::CgroupV2(directory) => opened
                .push(open_tree(CWD, directory, clone).during(|| Operation::OpenSource(directory.clone()))?),
        }
        sources.mounts.push(opened);
    }
    if init.new_namespaces & u64::try_from(libc::CLONE_NEWUSER).unwrap_or(0) != 0
        || init.join.iter().any(|(_, kind)| i64::from(*kind) == i64::from(libc::CLONE_NEWUSER))
    {
        // Device nodes cannot be made in a user namespace: the host's are bound instead.
        for device in &init.devices {
            let path = CString::new(device.path.as_os_str().as_encoded_bytes())
                .map_err(io::Error::from)
                .during(|| Operation::Device(device.path.clone()))?;
            let node =
                open_tree(CWD, path.as_c_str(), clone).during(|| Operation::Device(device.path.clone()))?;
            sources.devices.push(node);
        }
    }
    Ok(sources)
}

/// The user namespaces by which mounts are mapped, one for each mapping. They live on in the mounts.
#[derive(Default)]
struct Maps(Vec<(Mapping, OwnedFd)>);

impl Maps {
    fn apply(&mut self, mount: &OwnedFd, ids: &MappedIds) -> io::Result<()> {
        let ranges = |list: &[(u32, u32, u32)]| {
            list.iter().map(|&(inside, outside, length)| Range { inside, outside, length }).collect()
        };
        let mapping = Mapping { uids: ranges(&ids.uids), gids: ranges(&ids.gids) };
        let index = match self.0.iter().position(|(known, _)| *known == mapping) {
            Some(index) => index,
            None => {
                let made = kina_userns::create(&mapping, With::Nothing).map_err(cause)?;
                self.0.push((mapping, made.user));
                self.0.len() - 1
            }
        };
        kina_userns::map_mount(mount, &self.0[index].1, ids.recursive).map_err(cause)
    }
}

/// What the kernel said.
fn cause(error: kina_userns::Error) -> io::Error {
    use kina_userns::Error;
    match error {
        Error::Clone(source)
        | Error::Map { source, .. }
        | Error::Unshare(source)
        | Error::TakeOver(source)
        | Error::Owner(source)
        | Error::MapMount(source)
        | Error::Probe { source, .. } => source,
    }
}

/// How long a launcher waits if the caller does not say.
pub(crate) const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
