//! How much a directory tree holds. The tree is a container's: it may be huge, deep, and
//! change while it is looked at.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kina_guest_api::v1;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use crate::container::now_nanos;

/// A measurement serves for so long; the kubelet asks every ten seconds.
const FRESH: Duration = Duration::from_secs(9);
/// No more files and directories are looked at.
const ENTRIES_LIMIT: u64 = 500_000;
/// So many levels, of which each takes a descriptor.
const DEPTH_LIMIT: usize = 100;

/// The last measurement of one tree.
#[derive(Debug, Default)]
pub(crate) struct DiskUsage {
    last: Mutex<Option<(Instant, v1::DiskUsage)>>,
}

impl DiskUsage {
    /// What is below `root`, or was a moment ago. Measures until `end`. Blocks.
    pub(crate) fn of(&self, root: &Path, end: Instant) -> v1::DiskUsage {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, known)) = *last
            // Out of time: an old measurement is better than none, and the next call has
            // those that are fresh now for nothing.
            && (at.elapsed() < FRESH || Instant::now() >= end)
        {
            return known;
        }
        if Instant::now() >= end {
            return unknown();
        }
        let measured = measure(root, end);
        *last = Some((Instant::now(), measured));
        measured
    }
}

fn unknown() -> v1::DiskUsage {
    v1::DiskUsage { timestamp_nanos: now_nanos(), incomplete: true, ..v1::DiskUsage::default() }
}

/// Counts blocks and inodes, each once, as du(1) does.
fn measure(root: &Path, end: Instant) -> v1::DiskUsage {
    let mut usage = v1::DiskUsage { timestamp_nanos: now_nanos(), ..v1::DiskUsage::default() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(root, flags, Mode::empty())
        .and_then(|root| Ok((rustix::fs::fstat(&root)?, Dir::new(root)?)));
    let Ok((status, directory)) = opened else {
        return unknown();
    };
    if let Ok(filesystem) = directory.statvfs() {
        usage.filesystem_bytes = Some(filesystem.f_blocks.saturating_mul(filesystem.f_frsize));
        // Some count no inodes, and say that they have none.
        let inodes = (filesystem.f_files > 0).then_some(filesystem.f_files);
        usage.filesystem_inodes = inodes;
        usage.filesystem_free_inodes = inodes.map(|_| filesystem.f_ffree);
    }
    let mut linked = HashSet::new();
    count(&mut usage, &status, &mut linked);
    // Opened directories only, never paths: what a container puts in a directory's place
    // is not followed.
    let mut open = vec![directory];
    loop {
        let depth = open.len();
        let Some(directory) = open.last_mut() else { return usage };
        let Some(entry) = directory.read() else {
            open.pop();
            continue;
        };
        if usage.inodes >= ENTRIES_LIMIT || Instant::now() >= end {
            usage.incomplete = true;
            return usage;
        }
        let Ok(entry) = entry else {
            usage.incomplete = true;
            open.pop();
            continue;
        };
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes() == b".." {
            continue;
        }
        let Ok(at) = directory.fd() else { continue };
        // What is gone meanwhile is nothing.
        let Ok(status) = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        count(&mut usage, &status, &mut linked);
        if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
            continue;
        }
        if depth >= DEPTH_LIMIT {
            usage.incomplete = true;
            continue;
        }
        let below = rustix::fs::openat(at, name, flags, Mode::empty());
        if let Ok(below) = below.and_then(|below: OwnedFd| Dir::new(below)) {
            open.push(below);
        }
    }
}

fn count(usage: &mut v1::DiskUsage, status: &Stat, linked: &mut HashSet<(u64, u64)>) {
    let directory = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
    if !directory && status.st_nlink > 1 && !linked.insert((status.st_dev, status.st_ino)) {
        return;
    }
    usage.inodes += 1;
    // Always blocks of 512 bytes (stat(3type)).
    usage.used_bytes += u64::try_from(status.st_blocks).unwrap_or(0) * 512;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn it_counts_as_du_does() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(at("a/b/c")).unwrap();
        std::fs::write(at("a/file"), vec![1; 300_000]).unwrap();
        std::fs::hard_link(at("a/file"), at("a/b/again")).unwrap();
        std::os::unix::fs::symlink("/", at("a/root")).unwrap();
        std::fs::File::create(at("sparse")).unwrap().set_len(1 << 30).unwrap();
        let usage = measure(directory.path(), soon());
        // The root, three directories, two files and a link.
        assert_eq!((usage.inodes, usage.incomplete), (7, false));
        let du = std::process::Command::new("du").args(["-s", "-B1"]).arg(directory.path()).output().unwrap();
        let du = String::from_utf8(du.stdout).unwrap();
        assert_eq!(du.split_whitespace().next().unwrap(), usage.used_bytes.to_string());
        let df = ["-B1", "--output=size,itotal"];
        let df = std::process::Command::new("df").args(df).arg(directory.path()).output().unwrap();
        let df = String::from_utf8(df.stdout).unwrap();
        let number = |value: Option<u64>| value.unwrap_or(0).to_string();
        let filesystem = [number(usage.filesystem_bytes), number(usage.filesystem_inodes)];
        assert_eq!(df.lines().last().unwrap().split_whitespace().collect::<Vec<_>>(), filesystem);
        assert!(usage.filesystem_free_inodes <= usage.filesystem_inodes);
    }

    #[test]
    fn it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let mut deep = directory.path().to_owned();
        for _ in 0..DEPTH_LIMIT + 20 {
            deep.push("d");
            std::fs::create_dir(&deep).unwrap();
        }
        let usage = measure(directory.path(), soon());
        assert_eq!((usage.inodes, usage.incomplete), (DEPTH_LIMIT as u64 + 1, true));
        assert!(measure(directory.path(), Instant::now()).incomplete);
        assert!(measure(Path::new("/no/such/directory"), soon()).incomplete);
    }

    #[test]
    fn a_fresh_one_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let usage = DiskUsage::default();
        let first = usage.of(directory.path(), soon());
        std::fs::write(directory.path().join("file"), "x").unwrap();
        assert_eq!(usage.of(directory.path(), soon()), first);
    }
}
