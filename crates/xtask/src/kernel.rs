//! A kernel for machines that tests boot: Debian's, unpacked below the target
//! folder. Installing it would change what the machine itself boots.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::debian;
use crate::shell::{Workspace, output, run};

/// A kernel, unpacked.
pub(crate) struct Kernel {
    /// The image that a machine boots.
    pub(crate) image: PathBuf,
    /// Its modules, with `modules.dep`: what is at `/lib/modules/VERSION` elsewhere.
    pub(crate) modules: PathBuf,
}

/// The kernel that an earlier run unpacked, if it is whole.
pub(crate) fn present(workspace: &Workspace) -> Option<Kernel> {
    let folder = workspace.target("kernel");
    let kernel = Kernel { image: folder.join("vmlinuz"), modules: folder.join("modules") };
    (kernel.image.exists() && kernel.modules.join("modules.dep").exists()).then_some(kernel)
}

/// Unpacks the newest cloud kernel of the machine's Debian release, once.
pub(crate) fn fetch(workspace: &Workspace) -> Result<Kernel> {
    if let Some(kernel) = present(workspace) {
        return Ok(kernel);
    }
    let folder = workspace.target("kernel");
    let tree = folder.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    }
    let (package, archive) = match download_newest(&folder) {
        Ok(found) => found,
        // A list from last week names a kernel that has left the archive.
        Err(_) => {
            debian::update()?;
            download_newest(&folder)?
        }
    };
    debian::unpack(&archive, &tree)?;
    fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
    let version = package.trim_start_matches("linux-image-");
    run(Command::new("depmod").arg("-b").arg(&tree).arg(version))?;
    link(&tree.join("boot").join(format!("vmlinuz-{version}")), &folder.join("vmlinuz"))?;
    link(&tree.join("lib/modules").join(version), &folder.join("modules"))?;
    present(workspace).with_context(|| format!("{package} holds no kernel or no modules"))
}

fn download_newest(folder: &Path) -> Result<(String, PathBuf)> {
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let newest = format!("linux-image-cloud-{}", architecture.trim());
    let depends = output(Command::new("apt-cache").args(["show", "--no-all-versions"]).arg(&newest))?;
    let package =
        concrete(&depends).with_context(|| format!("{newest} names no kernel that it depends on"))?;
    let archive = debian::download(&package, folder, &[])?;
    Ok((package, archive))
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
