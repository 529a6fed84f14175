//! Looks at the machine. Nothing is changed but a cgroup made and removed.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::judge::{Cgroups, Daemon, Device, Layers};
use crate::admin::v1::InfoRequest;
use crate::client::Client;
use crate::config::Config;
use crate::elf::{self, Verdict};
use crate::error::chain;

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest file of the kernel that is read, in bytes.
const LIMIT: u64 = 1 << 20;

pub(super) fn text(path: impl AsRef<Path>) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(LIMIT).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The kernel's release.
pub(super) fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn file_system(name: &str, release: &str) -> bool {
    let listed = text("/proc/filesystems")
        .is_some_and(|list| list.lines().any(|line| line.split_whitespace().next_back() == Some(name)));
    listed || module(name, release)
}

/// Whether the kernel has it as a module, which mount(2) loads.
fn module(name: &str, release: &str) -> bool {
    let names = [format!("/{name}.ko"), format!("/{name}.ko.")];
    text(format!("/lib/modules/{release}/modules.dep")).is_some_and(|list| {
        list.lines()
            .filter_map(|line| line.split(':').next())
            .any(|path| path.ends_with(&names[0]) || path.contains(&names[1]))
    })
}

/// What the kernel was built with, where its configuration lies open.
fn built_with(option: &str, release: &str) -> Option<bool> {
    let config = text(format!("/boot/config-{release}"))?;
    Some(config.lines().any(|line| line.strip_prefix(option).is_some_and(|rest| matches!(rest, "=y" | "=m"))))
}

pub(super) fn layers(release: &str) -> Layers {
    Layers {
        erofs: file_system("erofs", release),
        file_backed: built_with("CONFIG_EROFS_FS_BACKED_BY_FILE", release),
        loop_devices: device("/dev/loop-control") == Device::Opens || module("loop", release),
    }
}

pub(super) fn overlay(release: &str) -> bool {
    file_system("overlay", release)
}

/// Kind of the file system that a path, or what there is of it, is on.
pub(super) fn file_system_of(path: &Path) -> String {
    let path = existing(path);
    let path = path.canonicalize().unwrap_or(path);
    let table = text("/proc/self/mounts").unwrap_or_default();
    let mounts = table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    // Of mounts as deep as each other the last is on top.
    let found = mounts.filter(|(point, _)| path.starts_with(point)).max_by_key(|(point, _)| point.len());
    found.map(|(_, kind)| kind.to_owned()).unwrap_or_default()
}

/// The path or the nearest directory above it that exists.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

pub(super) fn cgroups() -> Cgroups {
    let mut found = Cgroups::default();
    let mut points = Vec::new();
    for line in text("/proc/self/mounts").unwrap_or_default().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            [_, point, "cgroup2", ..] => {
                found.unified = true;
                let controllers = text(Path::new(point).join("cgroup.controllers")).unwrap_or_default();
                found.controllers.extend(controllers.split_whitespace().map(str::to_owned));
                points.push(PathBuf::from(point));
            }
            [_, point, "cgroup", options, ..] => {
                found.legacy = true;
                found.controllers.extend(options.split(',').map(str::to_owned));
                points.push(PathBuf::from(point));
            }
            _ => {}
        }
    }
    let name = format!("kina-doctor-{}", std::process::id());
    found.writable = !points.is_empty()
        && points.iter().all(|point| {
            let group = point.join(&name);
            std::fs::create_dir(&group).and_then(|()| std::fs::remove_dir(&group)).is_ok()
        });
    found
}

pub(super) fn namespaces() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/proc/self/ns") else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

pub(super) fn user_namespaces() -> Option<u64> {
    text("/proc/sys/user/max_user_namespaces")?.trim().parse().ok()
}

pub(super) fn seccomp() -> Option<String> {
    text("/proc/sys/kernel/seccomp/actions_avail")
}

/// Effective capabilities of this process.
pub(super) fn capabilities() -> u64 {
    let status = text("/proc/self/status").unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    field.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(0)
}

pub(super) fn device(path: &str) -> Device {
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Device::Opens,
        Err(error) if error.kind() == ErrorKind::NotFound => Device::Missing,
        Err(_) => Device::Refused,
    }
}

pub(super) fn guest(config: &Config) -> Result<(PathBuf, Verdict), String> {
    let path = config.guest_program().map_err(|error| error.to_string())?;
    match elf::look_at(&path) {
        Ok(verdict) => Ok((path, verdict)),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Programs that virtual machines need and that are not there; `None` if there
/// shall be no machines.
pub(super) fn machine_programs(config: &Config) -> Option<Vec<String>> {
    let qemu = config.qemu()?;
    let programs = [qemu.qemu, qemu.virtiofsd, qemu.vsock];
    let missing = programs.iter().filter(|program| !program.is_file());
    Some(missing.map(|program| program.display().to_string()).collect())
}

/// Bytes that root may still write below a path.
pub(super) fn disk(path: &Path) -> u64 {
    rustix::fs::statvfs(existing(path)).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
}

/// The limit that `kina serve` started from here would have.
pub(super) fn open_files() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

pub(super) fn cni(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> =
        names.filter(|name| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end))).collect();
    names.sort();
    names
}

pub(super) async fn daemon(socket: &Path) -> Daemon {
    let Ok(mut client) = Client::connect(socket).await else { return Daemon::Absent };
    match tokio::time::timeout(PATIENCE, client.admin.info(InfoRequest {})).await {
        Ok(Ok(answer)) => Daemon::Answers(answer.into_inner().version),
        Ok(Err(status)) => Daemon::Stranger(status.message().to_owned()),
        Err(_) => Daemon::Stranger("no answer in time".to_owned()),
    }
}

/// What is wrong with the registries' files.
pub(super) fn registries(config: &Config) -> Vec<String> {
    match kina_image::check_hosts(&config.images()) {
        Ok(problems) => problems.iter().map(|problem| chain(problem)).collect(),
        Err(error) => vec![chain(&error)],
    }
}
