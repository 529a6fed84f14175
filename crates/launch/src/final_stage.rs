//! The last steps, the same for a container's first process and for an exec: user, capabilities,
//! filter, program.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};

use crate::capabilities;
use crate::error::Operation;
use crate::helper::{During, Failure};
use crate::order::{CapabilitySets, ProcessOrder};
use crate::sys;

/// The most of `/etc/passwd` that is read.
const PASSWD_LIMIT: u64 = 1 << 20;
/// `PROC_SUPER_MAGIC`.
const PROC_MAGIC: rustix::fs::FsWord = 0x9fa0;
/// The bit of CAP_SYS_ADMIN.
const SYS_ADMIN: u64 = 1 << 21;

/// What is ready for the execution.
pub(crate) struct Prepared {
    program: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

/// Everything up to the filter.
pub(crate) fn prepare(process: &ProcessOrder) -> Result<Prepared, Failure> {
    set_labels(process).during(|| Operation::Label)?;
    let env = environment(process)?;
    give_streams(process).during(|| Operation::User)?;
    sys::close_range(3, true).during(|| Operation::CloseDescriptors)?;
    if process.no_new_privileges {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).during(|| Operation::NoNewPrivileges)?;
    }
    let directory = || Operation::WorkingDirectory(process.cwd.clone());
    // As root first: the user may have no right to pass. If root has not, the user may (NFS).
    let early = rustix::process::chdir(&process.cwd);
    if !matches!(early, Ok(()) | Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM)) {
        early.during(directory)?;
    }
    become_user(process)?;
    if early.is_err() {
        rustix::process::chdir(&process.cwd).during(directory)?;
    }
    let here = rustix::process::getcwd(Vec::new()).during(directory)?;
    if !here.as_bytes().starts_with(b"/") {
        // A directory outside of the root, that a descriptor leaked into the container reaches.
        return Err(io::Error::from(io::ErrorKind::InvalidInput)).during(directory);
    }
    let program = find_program(process, &env)?;
    rustix::process::umask(Mode::from_raw_mode(process.umask & 0o777));
    let text = |list: &[String]| -> Result<Vec<CString>, Failure> {
        list.iter()
            .map(|text| CString::new(text.as_str()))
            .collect::<Result<_, _>>()
            .map_err(io::Error::from)
            .during(|| Operation::Communicate)
    };
    Ok(Prepared {
        program: CString::new(program.as_os_str().as_bytes())
            .map_err(io::Error::from)
            .during(|| Operation::Communicate)?,
        args: text(&process.args)?,
        env: text(&env)?,
    })
}

/// Loads the filter, gives up the last capability and executes the program. Between the filter and
/// the program there is one `capset` at most: the filter may forbid anything.
pub(crate) fn execute(
    process: &ProcessOrder,
    prepared: &Prepared,
    filter: &[libc::sock_filter],
    flags: u64,
    filtered: bool,
) -> Result<std::convert::Infallible, Failure> {
    sys::reset_signals();
    if filtered {
        let CapabilitySets { effective, permitted, inheritable, .. } = process.capabilities;
        if process.no_new_privileges {
            sys::load_filter(filter, flags).during(|| Operation::Seccomp)?;
        } else {
            sys::capset(effective | SYS_ADMIN, permitted | SYS_ADMIN, inheritable)
                .during(|| Operation::Seccomp)?;
            sys::load_filter(filter, flags).during(|| Operation::Seccomp)?;
            sys::capset(effective, permitted, inheritable).during(|| Operation::Capabilities)?;
        }
    }
    let error = sys::execve(&prepared.program, &prepared.args, &prepared.env);
    let path = prepared.program.to_string_lossy().into_owned();
    Err(Failure::NotExecutable(path, error))
}

fn set_labels(process: &ProcessOrder) -> io::Result<()> {
    let files = [(&process.apparmor, "apparmor/exec", "exec "), (&process.selinux, "exec", "")];
    for (label, file, prefix) in files {
        let Some(label) = label else {
            continue;
        };
        let path = Path::new("/proc/thread-self/attr").join(file);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(&path, flags, Mode::empty()) {
            // Before Linux 5.8 there was one file for all.
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::open("/proc/thread-self/attr/exec", flags, Mode::empty())?
            }
            done => done?,
        };
        if rustix::fs::fstatfs(&opened)?.f_type != PROC_MAGIC {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        File::from(opened).write_all(format!("{prefix}{label}").as_bytes())?;
    }
    Ok(())
}

/// The environment: of several values for one name the last, and `HOME` of the user database if
/// there is none.
fn environment(process: &ProcessOrder) -> Result<Vec<String>, Failure> {
    let name = |entry: &String| entry.split_once('=').map_or(entry.clone(), |(n, _)| n.to_owned());
    let mut env: Vec<String> = Vec::with_capacity(process.env.len() + 1);
    for entry in &process.env {
        match env.iter_mut().find(|known| name(known) == name(entry)) {
            Some(known) => known.clone_from(entry),
            None => env.push(entry.clone()),
        }
    }
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        let home = home(process.uid).during(|| Operation::ReadPasswd)?;
        env.push(format!("HOME={home}"));
    }
    Ok(env)
}

fn home(uid: u32) -> io::Result<String> {
    // Not to be held up by a FIFO that an image has there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open("/etc/passwd", flags, Mode::empty()) {
        Ok(file) => file,
        Err(_) => return Ok("/".to_owned()),
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Ok("/".to_owned());
    }
    let mut text = Vec::new();
    File::from(file).take(PASSWD_LIMIT).read_to_end(&mut text)?;
    Ok(home_in(&String::from_utf8_lossy(&text), uid).unwrap_or_else(|| "/".to_owned()))
}

/// The sixth field of the first line with that user id.
fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let known: u32 = fields.nth(2)?.trim().parse().ok()?;
        let home = fields.nth(2)?;
        (known == uid && !home.is_empty() && !home.contains('\0')).then(|| home.to_owned())
    })
}

/// Lets the user open its own standard streams again, through `/dev/stdout` and the like.
fn give_streams(process: &ProcessOrder) -> io::Result<()> {
    let null = rustix::fs::stat("/dev/null").map(|null| null.st_rdev).ok();
    for number in 0..3 {
        // SAFETY: the standard streams are owned by no value of this process, which closes none.
        let stream = unsafe { BorrowedFd::borrow_raw(number) };
        let found = match rustix::fs::fstat(stream) {
            Ok(found) => found,
            // Not open: the caller's wish.
            Err(rustix::io::Errno::BADF) => continue,
            Err(error) => return Err(error.into()),
        };
        let kind = FileType::from_raw_mode(found.st_mode);
        let is_null = kind == FileType::CharacterDevice && Some(found.st_rdev) == null;
        if found.st_uid == process.uid || is_null {
            continue;
        }
        match rustix::fs::fchown(stream, Some(Uid::from_raw(process.uid)), None) {
            // Not ours to give, or of a file system without owners: it stays as it is.
            Ok(())
            | Err(
                rustix::io::Errno::INVAL
                | rustix::io::Errno::PERM
                | rustix::io::Errno::ROFS
                | rustix::io::Errno::OVERFLOW,
            ) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn become_user(process: &ProcessOrder) -> Result<(), Failure> {
    let sets = process.capabilities;
    let capability = || Operation::Capabilities;
    let last = last_capability();
    for number in 0..=last {
        if sets.bounding & (1 << number) == 0 {
            sys::prctl(libc::PR_CAPBSET_DROP, number, 0).during(capability)?;
        }
    }
    let user = || Operation::User;
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).during(user)?;
    let groups: Vec<Gid> = process.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups).during(user)?;
    let gid = Gid::from_raw(process.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).during(user)?;
    let uid = Uid::from_raw(process.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).during(user)?;
    sys::prctl(libc::PR_SET_KEEPCAPS, 0, 0).during(user)?;
    // Without "no new privileges" the filter is loaded by right of CAP_SYS_ADMIN: that one is
    // kept in reserve until then.
    let reserve = if process.no_new_privileges { 0 } else { SYS_ADMIN };
    sys::capset(sets.effective, sets.permitted | reserve, sets.inheritable).during(capability)?;
    let clear = u64::try_from(libc::PR_CAP_AMBIENT_CLEAR_ALL).unwrap_or(4);
    sys::prctl(libc::PR_CAP_AMBIENT, clear, 0).during(capability)?;
    let raise = u64::try_from(libc::PR_CAP_AMBIENT_RAISE).unwrap_or(2);
    for number in (0..=last).filter(|number| sets.ambient & (1 << number) != 0) {
        sys::prctl(libc::PR_CAP_AMBIENT, raise, number).during(capability)?;
    }
    Ok(())
}

/// The kernel's last capability: those after it cannot be asked for.
fn last_capability() -> u64 {
    let known = |number: &u64| sys::prctl(libc::PR_CAPBSET_READ, *number, 0).is_ok();
    let first_unknown = (capabilities::COUNT as u64..64).find(|number| !known(number));
    let upper = first_unknown.unwrap_or(64);
    (0..upper).rev().find(known).unwrap_or(0)
}

/// The program: as given if there is a slash in it, else in the directories of the process's own
/// `PATH`.
fn find_program(process: &ProcessOrder, env: &[String]) -> Result<PathBuf, Failure> {
    let Some(name) = process.args.first() else {
        return Err(Failure::NotExecutable(String::new(), io::ErrorKind::NotFound.into()));
    };
    let failed = |errno: i32| Failure::NotExecutable(name.clone(), io::Error::from_raw_os_error(errno));
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(errno) => Err(failed(errno)),
        };
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let mut best = libc::ENOENT;
    for directory in path.split(':').filter(|directory| directory.starts_with('/')) {
        let candidate = Path::new(directory).join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(libc::EACCES) => best = libc::EACCES,
            Err(_) => {}
        }
    }
    Err(failed(best))
}

fn executable(path: &Path) -> Result<(), i32> {
    let found = rustix::fs::stat(path).map_err(rustix::io::Errno::raw_os_error)?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        return Err(libc::EACCES);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(rustix::io::Errno::raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_the_first_that_fits() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\na:x:7:7::/a:\nb:x:7:7::/b:\nc:x:8:8:::\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 7).as_deref(), Some("/a"));
        assert_eq!(home_in(passwd, 8), None);
        assert_eq!(home_in(passwd, 9), None);
    }
}
