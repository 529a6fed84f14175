//! The container's root filesystem.
//!
//! Mounts are made with the file descriptor calls of Linux 5.2 and later: a mount is complete,
//! with all its attributes, before it is seen anywhere, and it is attached to a place that was
//! looked up inside the new root.

pub(crate) mod options;
mod resolve;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, makedev, mkdirat, mknodat, symlinkat,
    unlinkat,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use crate::error::Operation;
use crate::helper::{During, Failure};
use crate::order::{CgroupV1, DeviceOrder, InitOrder, MountKind, MountOrder, ProcessOrder};
use crate::sys;

/// What was opened on the host's side, before any namespace was entered.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) root: Option<OwnedFd>,
    /// For each mount of the order.
    pub(crate) mounts: Vec<Vec<OwnedFd>>,
    /// For each device, if they are to be bound.
    pub(crate) devices: Vec<OwnedFd>,
}

/// `PROC_SUPER_MAGIC`.
const PROC_MAGIC: rustix::fs::FsWord = 0x9fa0;

/// Builds the tree and makes it the root of this process.
pub(crate) fn set_up(init: &InitOrder, process: &ProcessOrder, sources: Sources) -> Result<(), Failure> {
    let root = sources.root.ok_or(Failure::Abandoned)?;
    if init.new_namespaces & u64::try_from(libc::CLONE_NEWNET).unwrap_or(0) != 0 {
        bring_up_loopback().during(|| Operation::Loopback)?;
    }
    let wanted = init.propagation.unwrap_or(libc::MS_SLAVE | libc::MS_REC);
    sys::change_propagation(c"/", wanted | libc::MS_REC).during(|| Operation::Propagation)?;
    // pivot_root wants no propagation at the old root itself.
    sys::change_propagation(c"/", libc::MS_PRIVATE).during(|| Operation::Propagation)?;
    // Copies are peers of their originals: what is mounted in one would show in the other.
    let shared = wanted & libc::MS_SHARED != 0 && !process.user_namespace;
    let inherited = match wanted & !libc::MS_REC {
        libc::MS_PRIVATE => libc::MS_PRIVATE,
        _ => libc::MS_SLAVE,
    };
    let isolate = |mount: BorrowedFd<'_>| {
        if shared {
            return Ok(());
        }
        sys::mount_setattr(mount, true, 0, 0, inherited)
    };
    isolate(root.as_fd()).during(|| Operation::Propagation)?;
    // Over the present root: there is no other place that surely exists.
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&root, "", CWD, "/", empty).during(|| Operation::OpenRoot)?;

    let mask = rustix::process::umask(Mode::empty());
    let mut delayed = Vec::new();
    for (order, opened) in init.mounts.iter().zip(&sources.mounts) {
        let during = || Operation::Mount(order.target.clone());
        for source in opened {
            isolate(source.as_fd()).during(during)?;
        }
        mount(root.as_fd(), order, opened, init, &mut delayed)?;
    }
    if init.fill_dev {
        for (index, device) in init.devices.iter().enumerate() {
            let source = sources.devices.get(index);
            make_device(root.as_fd(), device, source).during(|| Operation::Device(device.path.clone()))?;
        }
        make_links(root.as_fd())?;
    }
    for mount in delayed {
        sys::mount_setattr(mount.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0)
            .during(|| Operation::ReadOnly(Path::new("/dev").to_owned()))?;
    }
    resolve::directory(root.as_fd(), &process.cwd)
        .during(|| Operation::MakeWorkingDirectory(process.cwd.clone()))?;
    rustix::process::umask(mask);
    pivot(&root).during(|| Operation::Pivot)
}

/// What is done inside the new root.
pub(crate) fn finish(init: &InitOrder) -> Result<(), Failure> {
    if let Some(propagation) = init.propagation {
        sys::change_propagation(c"/", propagation).during(|| Operation::Propagation)?;
    }
    let root =
        rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).during(|| Operation::Pivot)?;
    if init.readonly_root {
        sys::mount_setattr(root.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0)
            .during(|| Operation::ReadOnly(Path::new("/").to_owned()))?;
    }
    if let Some(name) = &init.hostname {
        rustix::system::sethostname(name.as_bytes()).during(|| Operation::Hostname)?;
    }
    if let Some(name) = &init.domainname {
        rustix::system::setdomainname(name.as_bytes()).during(|| Operation::Domainname)?;
    }
    for (path, value) in &init.sysctl {
        let place = Path::new("/proc/sys").join(path);
        resolve::open(root.as_fd(), &place, OFlags::WRONLY)
            .and_then(|file| File::from(file).write_all(value.as_bytes()))
            .during(|| Operation::Sysctl(path.clone()))?;
    }
    for path in &init.readonly {
        make_readonly(root.as_fd(), path).during(|| Operation::ReadOnly(path.clone()))?;
    }
    let mut empty = None;
    for path in &init.masked {
        mask(root.as_fd(), path, &mut empty).during(|| Operation::Mask(path.clone()))?;
    }
    Ok(())
}

/// The place at `path`, if there is one.
fn existing(root: BorrowedFd<'_>, path: &Path) -> io::Result<Option<OwnedFd>> {
    match resolve::open(root, path, OFlags::PATH) {
        Ok(place) => Ok(Some(place)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            _ => Err(error),
        },
    }
}

fn attach(mount: impl AsFd, place: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", place, "", flags)?)
}

fn copy(place: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(place, "", flags)?)
}

fn is_directory(descriptor: impl AsFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(descriptor)?.st_mode) == FileType::Directory)
}

fn make_readonly(root: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let Some(place) = existing(root, path)? else {
        return Ok(());
    };
    let mount = copy(&place, true)?;
    sys::mount_setattr(mount.as_fd(), true, libc::MOUNT_ATTR_RDONLY, 0, 0)?;
    attach(mount, place)
}

/// Hides a directory behind an empty one, a file behind `/dev/null`. `empty` is the one empty
/// directory that all share.
fn mask(root: BorrowedFd<'_>, path: &Path, empty: &mut Option<OwnedFd>) -> io::Result<()> {
    let Some(place) = existing(root, path)? else {
        return Ok(());
    };
    if !is_directory(&place)? {
        let null = resolve::open(root, Path::new("/dev/null"), OFlags::PATH)?;
        let found = fstat(&null)?;
        let kind = FileType::from_raw_mode(found.st_mode);
        if kind != FileType::CharacterDevice || found.st_rdev != makedev(1, 3) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        return attach(copy(null, false)?, place);
    }
    if let Some(empty) = empty {
        return attach(copy(&*empty, false)?, place);
    }
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "tmpfs")?;
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    attach(&mount, place)?;
    *empty = Some(mount);
    Ok(())
}

fn pivot(root: &OwnedFd) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty())?;
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::process::fchdir(&old)?;
    // What is unmounted here must not be unmounted on the host.
    sys::change_propagation(c".", libc::MS_SLAVE | libc::MS_REC)?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

fn mount(
    root: BorrowedFd<'_>,
    order: &MountOrder,
    opened: &[OwnedFd],
    init: &InitOrder,
    delayed: &mut Vec<OwnedFd>,
) -> Result<(), Failure> {
    let during = || Operation::Mount(order.target.clone());
    let point = || Operation::MountPoint(order.target.clone());
    let mounted = match &order.kind {
        MountKind::Bind { .. } | MountKind::CgroupV2(_) => {
            let source = opened.first().ok_or(Failure::Abandoned)?;
            let directory = is_directory(source).during(during)?;
            let place = resolve::target(root, &order.target, directory).during(point)?.place;
            not_inside_proc(&place, &order.target).during(point)?;
            if order.set != 0 {
                sys::mount_setattr(source.as_fd(), false, order.set, order.clear, 0).during(during)?;
            }
            attach(source, place).during(during)?;
            source.try_clone().during(during)?
        }
        MountKind::New { file_system, source, data, readonly } => {
            let plain = matches!(file_system.as_str(), "proc" | "sysfs");
            let target = resolve::target(root, &order.target, true).during(point)?;
            let place = if plain {
                // A link here would leave the masks of the spec pointing elsewhere.
                resolve::open_plain(root, &order.target, OFlags::PATH | OFlags::DIRECTORY).during(point)?
            } else {
                target.place
            };
            not_inside_proc(&place, &order.target).during(point)?;
            let tmpfs = file_system == "tmpfs";
            let later = tmpfs && order.set & libc::MOUNT_ATTR_RDONLY != 0;
            let context = new_context(file_system, source, data, *readonly).during(during)?;
            if tmpfs && target.existed && !data.iter().any(|(key, _)| key == "mode") {
                let mode = fstat(&place).during(during)?.st_mode & 0o7777;
                fsconfig_set_string(&context, "mode", format!("{mode:o}")).during(during)?;
            }
            let set = if later { order.set & !libc::MOUNT_ATTR_RDONLY } else { order.set };
            let mount = complete(&context, set).during(during)?;
            attach(&mount, place).during(during)?;
            if later {
                delayed.push(mount.try_clone().during(during)?);
            }
            mount
        }
        MountKind::OfRoot(path) => {
            let source = resolve::directory(root, path).during(point)?;
            not_inside_proc(&source, path).during(point)?;
            let directory = is_directory(&source).during(during)?;
            let mount = copy(&source, false).during(during)?;
            if order.set != 0 {
                sys::mount_setattr(mount.as_fd(), false, order.set, order.clear, 0).during(during)?;
            }
            let place = resolve::target(root, &order.target, directory).during(point)?.place;
            attach(&mount, place).during(during)?;
            mount
        }
        MountKind::CgroupV1(groups) => {
            let place = resolve::target(root, &order.target, true).during(point)?.place;
            not_inside_proc(&place, &order.target).during(point)?;
            cgroup_v1(place, order, groups, opened, init).during(during)?
        }
    };
    if order.set_recursive != 0 {
        sys::mount_setattr(mounted.as_fd(), true, order.set_recursive, 0, 0).during(during)?;
    }
    for change in &order.propagation {
        let recursive = change & libc::MS_REC != 0;
        sys::mount_setattr(mounted.as_fd(), recursive, 0, 0, change & !libc::MS_REC).during(during)?;
    }
    Ok(())
}

/// Refuses a place that is in `/proc` although the path did not say so: a link led there. What
/// is below `/proc` by its path has been looked at before.
fn not_inside_proc(place: &OwnedFd, path: &Path) -> io::Result<()> {
    let inside = rustix::fs::fstatfs(place)?.f_type == PROC_MAGIC;
    if inside && !path.starts_with("/proc") {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

fn new_context(
    file_system: &str,
    source: &str,
    data: &[(String, Option<String>)],
    readonly: bool,
) -> io::Result<OwnedFd> {
    let context = fsopen(file_system, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    if readonly {
        fsconfig_set_flag(&context, "ro")?;
    }
    for (key, value) in data {
        match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str())?,
            None => fsconfig_set_flag(&context, key.as_str())?,
        }
    }
    Ok(context)
}

fn complete(context: &OwnedFd, attributes: u64) -> io::Result<OwnedFd> {
    fsconfig_create(context)?;
    let bits = u32::try_from(attributes).map_err(|_| io::ErrorKind::InvalidInput)?;
    let attributes = MountAttrFlags::from_bits_retain(bits);
    Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A directory with one mount for each v1 hierarchy, as it is on the host, showing the container's
/// own group as the root.
fn cgroup_v1(
    place: OwnedFd,
    order: &MountOrder,
    groups: &[CgroupV1],
    opened: &[OwnedFd],
    init: &InitOrder,
) -> io::Result<OwnedFd> {
    let data = [("mode".to_owned(), Some("755".to_owned()))];
    let context = new_context("tmpfs", "tmpfs", &data, false)?;
    let top = complete(&context, order.set & !libc::MOUNT_ATTR_RDONLY)?;
    attach(&top, place)?;
    for (index, group) in groups.iter().enumerate() {
        mkdirat(&top, group.name.as_str(), Mode::from_raw_mode(0o755))?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let here = rustix::fs::openat(&top, group.name.as_str(), flags, Mode::empty())?;
        if init.new_cgroup_namespace {
            let context = fsopen("cgroup", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_set_string(&context, "source", "cgroup")?;
            for controller in &group.controllers {
                match controller.split_once('=') {
                    Some((key, name)) => fsconfig_set_string(&context, key, name)?,
                    None => fsconfig_set_flag(&context, controller.as_str())?,
                }
            }
            attach(complete(&context, order.set)?, here)?;
        } else if let Some(source) = opened.get(index) {
            sys::mount_setattr(source.as_fd(), false, order.set, order.clear, 0)?;
            attach(source, here)?;
        }
        for controller in group.controllers.iter().filter(|_| group.controllers.len() > 1) {
            symlinkat(group.name.as_str(), &top, controller.as_str())?;
        }
    }
    if order.set & libc::MOUNT_ATTR_RDONLY != 0 {
        sys::mount_setattr(top.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0)?;
    }
    Ok(top)
}

fn make_device(root: BorrowedFd<'_>, device: &DeviceOrder, source: Option<&OwnedFd>) -> io::Result<()> {
    if let Some(source) = source {
        let place = resolve::target(root, &device.path, false)?.place;
        return attach(source, place);
    }
    let parent = device.path.parent().unwrap_or(Path::new("/"));
    let name = device.path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = resolve::directory(root, parent)?;
    let kind = FileType::from_raw_mode(device.mode);
    let number = makedev(device.major, device.minor);
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    match mknodat(&parent, name, kind, mode, number) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = fstat(rustix::fs::openat(&parent, name, flags, Mode::empty())?)?;
            if FileType::from_raw_mode(found.st_mode) != kind || found.st_rdev != number {
                return Err(rustix::io::Errno::EXIST.into());
            }
        }
        Err(error) => return Err(error.into()),
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn make_links(root: BorrowedFd<'_>) -> Result<(), Failure> {
    const LINKS: [(&str, &str); 5] = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("core", "/proc/kcore"),
    ];
    let during = |name: &str| Operation::DeviceLink(Path::new("/dev").join(name));
    let dev = resolve::directory(root, Path::new("/dev")).during(|| during("fd"))?;
    for (name, to) in LINKS {
        if name == "core" && !Path::new(to).exists() {
            continue;
        }
        match symlinkat(to, &dev, name) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).during(|| during(name)),
        }
    }
    match unlinkat(&dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error).during(|| during("ptmx")),
    }
    symlinkat("pts/ptmx", &dev, "ptmx").during(|| during("ptmx"))
}

fn bring_up_loopback() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    use std::os::fd::AsRawFd;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is valid; the name fits and stays terminated.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::try_from(*from).unwrap_or(0);
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap_or(1);
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Attaches a copy of the terminal as `/dev/console`.
pub(crate) fn bind_console(terminal: &Path) -> io::Result<()> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let source = resolve::open(root.as_fd(), terminal, OFlags::PATH)?;
    let place = resolve::target(root.as_fd(), Path::new("/dev/console"), false)?.place;
    attach(copy(source, false)?, place)
}
