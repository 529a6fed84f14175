//! A kernel for machines that tests boot: Debian's, unpacked below the target
//! folder. Installing it would change what the machine itself boots.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::debian::{self, Archive};
use crate::shell::{Workspace, output, run};

/// A kernel, unpacked.
pub(crate) struct Kernel {
    /// The image that a machine boots.
    pub(crate) image: PathBuf,
    /// Its modules, with `modules.dep`: what is at `/lib/modules/VERSION` elsewhere.
    pub(crate) modules: PathBuf,
}

/// Where the packages of a kernel come from.
enum Source {
    /// The archives that this machine is set up for.
    Own,
    /// The same release for another architecture.
    Other(Archive),
}

impl Source {
    fn show(&self, package: &str) -> Result<String> {
        let words = ["show", "--no-all-versions", package];
        match self {
            Self::Own => output(Command::new("apt-cache").args(words)),
            Self::Other(archive) => archive.query(&words),
        }
    }

    fn download(&self, package: &str, folder: &Path) -> Result<PathBuf> {
        match self {
            Self::Own => debian::download_own(package, folder),
            Self::Other(archive) => archive.download(package, folder),
        }
    }
}

/// The kernel in `folder`, if it is whole.
fn present(folder: &Path) -> Option<Kernel> {
    let kernel = Kernel { image: folder.join("vmlinuz"), modules: folder.join("modules") };
    (kernel.image.exists() && kernel.modules.join("modules.dep").exists()).then_some(kernel)
}

/// Unpacks the newest cloud kernel of the machine's Debian release, once.
pub(crate) fn fetch(workspace: &Workspace) -> Result<Kernel> {
    let folder = workspace.target("kernel");
    if let Some(kernel) = present(&folder) {
        return Ok(kernel);
    }
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let newest = format!("linux-image-cloud-{}", architecture.trim());
    match unpack_newest(&Source::Own, &newest, &folder) {
        Ok(kernel) => Ok(kernel),
        // A list from last week names a kernel that has left the archive.
        Err(_) => {
            debian::update()?;
            unpack_newest(&Source::Own, &newest, &folder)
        }
    }
}

/// The same for an arm64 machine, and a busybox for what runs in it.
pub(crate) fn fetch_arm64(workspace: &Workspace) -> Result<()> {
    let folder = workspace.target("kernel-arm64");
    let busybox = folder.join("busybox");
    if present(&folder).is_some() && busybox.join("bin/busybox").exists() {
        return Ok(());
    }
    let archive = Archive::open(&folder.join("apt"), &debian::code_name()?, Some("arm64"))?;
    debian::unpack(&archive.download("busybox-static", &folder)?, &busybox)?;
    unpack_newest(&Source::Other(archive), "linux-image-cloud-arm64", &folder)?;
    Ok(())
}

fn unpack_newest(source: &Source, newest: &str, folder: &Path) -> Result<Kernel> {
    let tree = folder.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    }
    let depends = source.show(newest)?;
    let package =
        concrete(&depends).with_context(|| format!("{newest} names no kernel that it depends on"))?;
    let archive = source.download(&package, folder)?;
    debian::unpack(&archive, &tree)?;
    fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
    let version = package.trim_start_matches("linux-image-");
    run(Command::new("depmod").arg("-b").arg(&tree).arg(version))?;
    link(&tree.join("boot").join(format!("vmlinuz-{version}")), &folder.join("vmlinuz"))?;
    link(&tree.join("lib/modules").join(version), &folder.join("modules"))?;
    present(folder).with_context(|| format!("{package} holds no kernel or no modules"))
}

/// The kernel behind a meta package: the first it depends on.
fn concrete(show: &str) -> Option<String> {
    show.lines()
        .find_map(|line| line.strip_prefix("Depends: "))?
        .split([',', ' '])
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
}

fn link(to: &Path, at: &Path) -> Result<()> {
    if at.is_symlink() {
        fs::remove_file(at).with_context(|| format!("remove {}", at.display()))?;
    }
    symlink(to, at).with_context(|| format!("link {} to {}", at.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_behind_a_meta_package() {
        let show = "Package: linux-image-cloud-amd64\n\
                    Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n";
        assert_eq!(concrete(show).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(concrete("Package: x\n"), None);
    }
}
