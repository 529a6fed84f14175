//! The first file system of a machine: the guest, and the modules it loads.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use kina_machine_qemu::boot::{Archive, Dependencies, Kind, Lookup};

/// The modules that a machine needs: its devices, its layers and what stands on
/// them.
pub const MODULES: &[&str] =
    &["virtio_mmio", "vmw_vsock_virtio_transport", "virtiofs", "loop", "erofs", "overlay"];

/// Makes the archive: `guest` is `/init`, and `/modules/list` names the files of
/// `wanted` and what they need, in the order in which they are to be loaded.
/// `modules` is a kernel's folder of modules.
///
/// # Errors
/// When a file cannot be read, or the kernel has no such module.
pub fn initramfs(guest: &Path, modules: &Path, wanted: &[&str]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    // The kernel opens it for the first process before there is anything else.
    archive.add("dev", 0o755, Kind::Directory);
    archive.add("dev/console", 0o600, Kind::Device { major: 5, minor: 1 });
    archive.add("modules", 0o755, Kind::Directory);

    let text = |file: &str| {
        let path = modules.join(file);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let dependencies = Dependencies::parse(&text("modules.dep")?, &text("modules.builtin")?);
    let mut added = BTreeSet::new();
    let mut list = String::new();
    for name in wanted {
        let files = match dependencies.find(name) {
            Lookup::Files(files) => files,
            Lookup::Builtin => continue,
            Lookup::Unknown => bail!("the kernel of {} has no module {name}", modules.display()),
        };
        for file in files {
            if !added.insert(file.clone()) {
                continue;
            }
            let short = file.rsplit('/').next().unwrap_or(&file);
            let (short, content) = module(&modules.join(&file), short)?;
            archive.add(&format!("modules/{short}"), 0o644, Kind::File(&content));
            list.push_str(short);
            list.push('\n');
        }
    }
    archive.add("modules/list", 0o644, Kind::File(list.as_bytes()));
    let init = fs::read(guest).with_context(|| format!("read {}", guest.display()))?;
    archive.add("init", 0o755, Kind::File(&init));
    Ok(archive.finish())
}

/// A module's name in the archive and its content, unpacked: the guest loads
/// plain ones only.
fn module<'a>(path: &Path, name: &'a str) -> Result<(&'a str, Vec<u8>)> {
    let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    if name.ends_with(".ko") {
        return Ok((name, content));
    }
    let Some(plain) = name.strip_suffix(".xz") else {
        bail!("module {} is compressed in a way that is not known here", path.display());
    };
    let unpacked = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .context("start `xz`, of Debian's package xz-utils")?;
    if !unpacked.status.success() {
        bail!("unpack {}: {}", path.display(), String::from_utf8_lossy(&unpacked.stderr).trim());
    }
    Ok((plain, unpacked.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with two modules, one needed by the other, and a guest.
    fn fixture() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("kernel")).unwrap();
        fs::write(at("kernel/plain.ko"), "plain content").unwrap();
        fs::write(at("kernel/packed.ko"), "packed content").unwrap();
        assert!(Command::new("xz").arg(at("kernel/packed.ko")).status().unwrap().success());
        fs::write(at("modules.dep"), "kernel/plain.ko: kernel/packed.ko.xz\nkernel/packed.ko.xz:\n").unwrap();
        fs::write(at("modules.builtin"), "kernel/within.ko\n").unwrap();
        fs::write(at("guest"), "the guest").unwrap();
        directory
    }

    #[test]
    fn modules_are_listed_once_in_order_and_unpacked() {
        let fixture = fixture();
        let guest = fixture.path().join("guest");
        let archive = initramfs(&guest, fixture.path(), &["packed", "within", "plain"]).unwrap();
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains("modules/list\0\0packed.ko\nplain.ko\n\0"), "{text:?}");
        for content in ["packed content", "plain content", "the guest"] {
            assert_eq!(text.matches(content).count(), 1, "{text:?}");
        }
        let error = initramfs(&guest, fixture.path(), &["none"]).unwrap_err().to_string();
        assert!(error.ends_with("has no module none"), "{error}");
    }
}
