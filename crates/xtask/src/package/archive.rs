//! Archives that depend on their content alone.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::pod_image::sha256;
use crate::shell::run;

/// A file of an archive.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Where it is in the archive, without a leading slash.
    pub(super) path: String,
    /// Its permissions.
    pub(super) mode: u32,
    /// Where its content is now.
    pub(super) source: PathBuf,
}

impl Entry {
    pub(super) fn new(path: &str, mode: u32, source: PathBuf) -> Self {
        Self { path: path.to_owned(), mode, source }
    }
}

/// The files of an archive, by path.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree(BTreeMap<String, Entry>);

impl Tree {
    pub(super) fn extend(&mut self, entries: impl IntoIterator<Item = Entry>) {
        self.0.extend(entries.into_iter().map(|entry| (entry.path.clone(), entry)));
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.values()
    }

    /// Copies the files below a folder.
    pub(super) fn lay_out(&self, folder: &Path) -> Result<()> {
        for entry in self.entries() {
            let to = folder.join(&entry.path);
            let directory = to.parent().context("a file is in a folder")?;
            fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
            fs::copy(&entry.source, &to).with_context(|| format!("copy {}", entry.source.display()))?;
            fs::set_permissions(&to, Permissions::from_mode(entry.mode))
                .with_context(|| format!("set the permissions of {}", to.display()))?;
        }
        Ok(())
    }
}

/// Writes `NAME.tar.gz` into `folder`, with one directory `NAME` in it. `time` is
/// what all entries have, in seconds since 1970.
pub(super) fn tarball(tree: &Tree, name: &str, time: u64, folder: &Path) -> Result<PathBuf> {
    let stage = folder.join("stage");
    tree.lay_out(&stage.join(name))?;
    let plain = folder.join(format!("{name}.tar"));
    run(Command::new("tar")
        .args(["--create", "--sort=name", "--format=gnu", "--owner=0", "--group=0", "--numeric-owner"])
        // Directories have what the umask left them.
        .args(["--mode=go=rX,u+rw,a-s", &format!("--mtime=@{time}")])
        .arg("--directory")
        .arg(&stage)
        .arg("--file")
        .arg(&plain)
        .arg(name))?;
    // No name and no time of its own.
    run(Command::new("gzip").args(["--no-name", "--best", "--force"]).arg(&plain))?;
    fs::remove_dir_all(&stage).with_context(|| format!("remove {}", stage.display()))?;
    Ok(folder.join(format!("{name}.tar.gz")))
}

/// The SHA-256 of a file, in hexadecimal digits.
pub(super) fn digest(file: &Path) -> Result<String> {
    let content = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    Ok(sha256(&content))
}

/// What `sha256sum --check` reads, by name.
pub(super) fn sums(files: &[PathBuf]) -> Result<String> {
    let mut files: Vec<&PathBuf> = files.iter().collect();
    files.sort();
    let mut text = String::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        text.push_str(&format!("{}  {name}\n", digest(file)?));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::output;

    /// A tree whose files were made at other times, in another order and by another
    /// umask each time.
    fn tree(folder: &Path, order: [&str; 3], mode: u32) -> Tree {
        let mut tree = Tree::default();
        for name in order {
            let source = folder.join(name);
            fs::write(&source, name).unwrap();
            fs::set_permissions(&source, Permissions::from_mode(mode)).unwrap();
            let mode = if name == "kina" { 0o755 } else { 0o644 };
            tree.extend([Entry::new(&format!("share/{name}"), mode, source)]);
        }
        tree
    }

    #[test]
    fn the_same_files_make_the_same_archive() {
        let directory = tempfile::tempdir().unwrap();
        let mut digests = Vec::new();
        for (index, order, mode) in [(0, ["a", "kina", "z"], 0o600), (1, ["z", "a", "kina"], 0o777)] {
            let at = directory.path().join(index.to_string());
            fs::create_dir_all(at.join("files")).unwrap();
            let file = tarball(&tree(&at.join("files"), order, mode), "kina-1", 1_700_000_000, &at).unwrap();
            digests.push(digest(&file).unwrap());
            let listing = output(Command::new("tar").args(["-tvzf"]).arg(&file).env("TZ", "UTC")).unwrap();
            assert!(listing.contains("-rwxr-xr-x 0/0"), "{listing}");
            assert!(listing.lines().all(|line| line.contains("2023-11-14 22:13")), "{listing}");
            assert!(listing.ends_with("kina-1/share/z\n"), "{listing}");
            assert!(!at.join("stage").exists());
        }
        assert_eq!(digests[0], digests[1]);
        assert_eq!(digests[0].len(), 64);
    }

    #[test]
    fn sums_are_what_sha256sum_checks() {
        let directory = tempfile::tempdir().unwrap();
        let files = ["b", "a"].map(|name| directory.path().join(name));
        files.iter().for_each(|file| fs::write(file, "content").unwrap());
        let text = sums(&files).unwrap();
        assert!(text.lines().next().unwrap().ends_with("  a"), "{text}");
        let list = directory.path().join("SHA256SUMS");
        fs::write(&list, &text).unwrap();
        let mut check = Command::new("sha256sum");
        check.current_dir(directory.path()).args(["--check", "--strict"]).arg(&list);
        assert!(output(&mut check).unwrap().contains("a: OK"));
    }
}
