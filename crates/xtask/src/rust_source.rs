//! A toolchain with the source of its standard library, for targets whose compiled
//! one is not on this machine (`-Zbuild-std`).
//!
//! `rustup` may not be there to bring it. Debian's backports carry that source for
//! recent compilers; a copy of the toolchain, made of hard links, takes it in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::debian::{self, Archive};
use crate::shell::{Workspace, output, run};

/// The suite that carries the sources of recent compilers.
const SUITE: &str = "trixie-backports";

/// What it means that there is no toolchain.
pub(crate) const MISSING: &str = "trixie-backports has no source of this compiler's standard library";

/// The toolchain, made once per compiler version. `None` when the archive does not
/// have the source of exactly that version.
pub(crate) fn toolchain(workspace: &Workspace) -> Result<Option<PathBuf>> {
    let version = output(Command::new("rustc").arg("--version"))?;
    let version = release(&version)?;
    let folder = workspace.target("rust-source").join(&version);
    let toolchain = folder.join("toolchain");
    // Linked in last: where it is, all is there.
    let library = toolchain.join("lib/rustlib/src/rust");
    if library.join("library/std/Cargo.toml").exists() {
        return Ok(Some(toolchain));
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;

    let archive = Archive::open(&folder.join("apt"), SUITE, None)?;
    let Some(package_version) = matching(&archive.query(&["madison", "rust-src"])?, &version) else {
        return Ok(None);
    };
    let package = archive.download(&format!("rust-src={package_version}"), &folder)?;
    let unpacked = folder.join("source");
    debian::unpack(&package, &unpacked)?;
    fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
    copy_toolchain(&toolchain)?;
    let parent = library.parent().context("the library has a parent folder")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    if !library.exists() {
        let source = unpacked.join("usr/src").join(format!("rustc-{version}"));
        std::os::unix::fs::symlink(&source, &library)
            .with_context(|| format!("link {}", library.display()))?;
    }
    Ok(Some(toolchain))
}

/// The number in `rustc 1.95.0 (59807616e 2026-04-14)`.
fn release(version: &str) -> Result<String> {
    version
        .split_whitespace()
        .nth(1)
        .map(str::to_owned)
        .with_context(|| format!("rustc names no version: `{}`", version.trim()))
}

/// Hard links cost nothing; across file systems it has to be a copy.
fn copy_toolchain(to: &Path) -> Result<()> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let sysroot = sysroot.trim();
    let linked = Command::new("cp").args(["-al", sysroot]).arg(to).output().context("start `cp`")?;
    if linked.status.success() {
        return Ok(());
    }
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("remove {}", to.display()))?;
    }
    run(Command::new("cp").args(["-a", sysroot]).arg(to))
}

/// The Debian version of a package that packages exactly this release.
fn matching(madison: &str, release: &str) -> Option<String> {
    madison
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
        .find(|version| {
            version.strip_prefix(release).is_some_and(|rest| rest.starts_with('+') || rest.starts_with('-'))
        })
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_release_will_do() {
        let madison = "rust-src | 1.96.1+dfsg1-2~bpo13+1 | archive\n\
                       rust-src | 1.95.0+dfsg1-2~bpo13+1 | archive\n";
        assert_eq!(matching(madison, "1.95.0").as_deref(), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(matching(madison, "1.95"), None);
        assert_eq!(matching(madison, "1.94.1"), None);
    }

    #[test]
    fn the_release_of_a_compiler() {
        assert_eq!(release("rustc 1.95.0 (59807616e 2026-04-14)\n").unwrap(), "1.95.0");
        assert!(release("rustc").is_err());
    }

    #[test]
    fn the_suite_is_named_where_it_lacks_something() {
        assert!(MISSING.starts_with(SUITE));
    }
}
