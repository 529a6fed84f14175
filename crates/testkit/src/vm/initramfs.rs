//! The first file system of a machine: the guest, and the modules it loads.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::cpio::{Archive, Kind};
use super::modules::{Dependencies, Lookup};

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
            let Some(short) = file.rsplit('/').next().filter(|short| short.ends_with(".ko")) else {
                bail!("module {file} is compressed: the guest loads plain ones");
            };
            let path = modules.join(&file);
            let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
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
