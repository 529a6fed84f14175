//! The layer that is measured: what a distribution's image holds, taken from this machine.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Programs, libraries, and very many small files, a part of the whole each.
const TREES: [(&str, u64); 5] = [
    ("/usr/bin", 25),
    ("/usr/lib/x86_64-linux-gnu", 25),
    ("/usr/lib/python3", 15),
    ("/usr/share", 25),
    ("/usr/include", 10),
];

/// Packs about `bytes` of files as a tar stream; says how many entries that are.
pub(super) fn pack(tar: &Path, bytes: u64) -> Result<usize> {
    let mut names = BTreeSet::new();
    for (tree, percent) in TREES {
        let mut left = bytes / 100 * percent;
        take(Path::new(tree), &mut left, &mut names)?;
    }
    let list = tar.with_extension("list");
    let mut file = File::create(&list)?;
    for name in &names {
        file.write_all(name.as_bytes())?;
        file.write_all(b"\0")?;
    }
    let output = Command::new("tar")
        .args(["--format=posix", "--xattrs", "--numeric-owner", "--no-recursion", "--null", "-C", "/"])
        .arg("-T")
        .arg(&list)
        .arg("-cf")
        .arg(tar)
        .output()
        .context("start tar")?;
    if !output.status.success() {
        bail!("tar: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(names.len())
}

/// Names below `path`, in their order, until `left` bytes of files are taken.
fn take(path: &Path, left: &mut u64, names: &mut BTreeSet<OsString>) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    let name = path.strip_prefix("/").unwrap_or(path);
    if metadata.is_file() {
        if metadata.len() > *left {
            return Ok(());
        }
        *left -= metadata.len();
    }
    names.insert(name.into());
    if metadata.is_dir() {
        let mut children: Vec<PathBuf> =
            fs::read_dir(path)?.map(|child| child.map(|child| child.path())).collect::<Result<_, _>>()?;
        children.sort();
        for child in children {
            if *left > 0 {
                take(&child, left, names)?;
            }
        }
    }
    Ok(())
}

/// Compresses a file; `program` writes to its standard output.
pub(super) fn compress(tar: &Path, suffix: &str, program: &[&str]) -> Result<PathBuf> {
    let packed = tar.with_extension(format!("tar.{suffix}"));
    let status = Command::new(program[0])
        .args(&program[1..])
        .arg("-c")
        .arg(tar)
        .stdout(Stdio::from(File::create(&packed)?))
        .status()
        .with_context(|| format!("start {}", program[0]))?;
    if !status.success() {
        bail!("{}: {status}", program[0]);
    }
    Ok(packed)
}

/// What a tree takes on the disk.
pub(super) fn allocated(root: &Path) -> Result<u64> {
    let mut bytes = 0;
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path)?;
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            for child in fs::read_dir(&path)? {
                pending.push(child?.path());
            }
        }
    }
    Ok(bytes)
}
