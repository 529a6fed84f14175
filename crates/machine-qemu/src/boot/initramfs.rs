//! The first file system of a machine: the guest, and the modules it loads.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::cpio::{Archive, Kind};
use super::decompress::Compression;
use super::modules::{Dependencies, Files, Lookup};
use crate::Error;

/// A module that machines need, and what for.
struct Need {
    module: &'static str,
    purpose: &'static str,
}

/// In the order in which they are loaded.
const NEEDS: &[Need] = &[
    Need { module: "virtio_mmio", purpose: "every device of a machine" },
    Need { module: "vmw_vsock_virtio_transport", purpose: "the channel to the guest" },
    Need { module: "virtiofs", purpose: "the directories shared with the machine" },
    Need { module: "virtio_blk", purpose: "the pod's own disk" },
    Need { module: "ext4", purpose: "the file system of the pod's own disk" },
    Need { module: "virtio_net", purpose: "the pod's network" },
    Need { module: "loop", purpose: "the layers of images" },
    Need { module: "erofs", purpose: "the layers of images" },
    Need { module: "overlay", purpose: "the root file systems of containers" },
];
/// What further modules are for.
const CONFIGURED: &str = "the configuration, which names it";

/// A module is smaller, unpacked, and so is a list of modules.
const MODULE_LIMIT: usize = 64 << 20;
/// What ends a module that is signed, after the signature, its description of
/// 12 bytes, the last four of which are the signature's length (kernel/module_signature.c).
const SIGNED: &[u8] = b"~Module signature appended~\n";
const SIGNATURE_DESCRIPTION: usize = 12;

/// A module's file, as the kernel's package has it.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) path: PathBuf,
    pub(super) content: Vec<u8>,
}

/// Reads the files of all modules that a machine needs and that are not in the
/// kernel itself, in the order in which they are to be loaded.
///
/// # Errors
/// When the kernel lacks one, or a file cannot be read.
pub(super) fn needed(modules: &Path, further: &[String]) -> Result<Vec<Packed>, Error> {
    let text =
        |file: &str| read(&modules.join(file)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let optional = |file: &str| if modules.join(file).exists() { text(file) } else { Ok(String::new()) };
    let dependencies = Dependencies::parse(Files {
        dependencies: &text("modules.dep")?,
        builtin: &optional("modules.builtin")?,
        soft: &optional("modules.softdep")?,
        aliases: &optional("modules.alias")?,
    });
    let mut seen = BTreeSet::new();
    let mut packed = Vec::new();
    let further = further.iter().map(|module| (module.as_str(), CONFIGURED));
    for (module, purpose) in NEEDS.iter().map(|need| (need.module, need.purpose)).chain(further) {
        let files = match dependencies.find(module) {
            Lookup::Files(files) => files,
            Lookup::Builtin => continue,
            Lookup::Unknown => {
                return Err(Error::ModuleMissing {
                    modules: modules.to_owned(),
                    module: module.to_owned(),
                    purpose,
                });
            }
        };
        for file in files {
            if seen.insert(file.clone()) {
                let path = modules.join(&file);
                packed.push(Packed { content: read(&path)?, path });
            }
        }
    }
    Ok(packed)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// A module, unpacked, in the form in which the guest loads it.
#[derive(Debug)]
pub(super) struct Module {
    name: String,
    content: Vec<u8>,
}

impl Module {
    /// Unpacks a module's file. Its signature is kept for a kernel that insists
    /// on one: checking it takes an emulated processor ten milliseconds each,
    /// and the file comes from the host anyway.
    ///
    /// # Errors
    /// When the file is damaged or compressed in an unknown way.
    pub(super) fn unpack(packed: &Packed, keep_signature: bool) -> Result<Self, Error> {
        let path = &packed.path;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let Some((compression, name)) = Compression::of_module(&file) else {
            return Err(Error::CompressionUnknown { path: path.clone() });
        };
        let mut content = compression
            .unpack(&packed.content, MODULE_LIMIT)
            .map_err(|source| Error::Unpack { path: path.clone(), source })?;
        if !keep_signature {
            content.truncate(unsigned_length(&content));
        }
        Ok(Self { name: name.to_owned(), content })
    }

    /// The version of the kernel that it is for.
    pub(super) fn kernel_version(&self) -> Option<&str> {
        const KEY: &[u8] = b"\0vermagic=";
        let at = self.content.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
        let end = self.content[at..].iter().position(|byte| matches!(byte, b' ' | 0))?;
        std::str::from_utf8(&self.content[at..at + end]).ok()
    }
}

/// A module's length without its signature.
fn unsigned_length(module: &[u8]) -> usize {
    let without = || {
        let rest = module.strip_suffix(SIGNED)?;
        let length = u32::from_be_bytes(*rest.last_chunk()?) as usize;
        rest.len().checked_sub(SIGNATURE_DESCRIPTION)?.checked_sub(length)
    };
    without().unwrap_or(module.len())
}

/// Makes the archive: the guest is `/init`, and `/modules/list` names the
/// modules in the order in which they are to be loaded.
pub(super) fn archive(guest: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::new();
    // The kernel opens it for the first process before there is anything else.
    archive.add("dev", 0o755, Kind::Directory);
    archive.add("dev/console", 0o600, Kind::Device { major: 5, minor: 1 });
    archive.add("modules", 0o755, Kind::Directory);
    let mut list = String::new();
    for module in modules {
        archive.add(&format!("modules/{}", module.name), 0o644, Kind::File(&module.content));
        list.push_str(&module.name);
        list.push('\n');
    }
    archive.add("modules/list", 0o644, Kind::File(list.as_bytes()));
    archive.add("init", 0o755, Kind::File(guest));
    archive.finish()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A folder of modules: every need is one, the first compressed, and the last
    /// needs one more; `builtin` is in the kernel.
    pub(in crate::boot) fn folder(directory: &Path, builtin: &str, version: &str) {
        let mut dependencies = String::from("needed.ko:\n");
        let content = |name: &str| format!("{name} content\0vermagic={version} SMP\0");
        for need in NEEDS.iter().filter(|need| need.module != builtin) {
            let name = need.module;
            if name == NEEDS[0].module {
                let packed = zstd::encode_all(content(name).as_bytes(), 1).unwrap();
                fs::write(directory.join(format!("{name}.ko.zst")), packed).unwrap();
                dependencies += &format!("{name}.ko.zst:\n");
            } else {
                fs::write(directory.join(format!("{name}.ko")), content(name)).unwrap();
                dependencies += &format!("{name}.ko: needed.ko\n");
            }
        }
        fs::write(directory.join("needed.ko"), content("needed")).unwrap();
        fs::write(directory.join("modules.dep"), dependencies).unwrap();
        fs::write(directory.join("modules.builtin"), format!("kernel/{builtin}.ko\n")).unwrap();
    }

    #[test]
    fn modules_are_listed_once_in_order_and_unpacked() {
        let directory = tempfile::tempdir().unwrap();
        folder(directory.path(), "loop", "6.1");
        let packed = needed(directory.path(), &["ext4".to_owned()]).unwrap();
        let modules: Vec<Module> =
            packed.iter().map(|packed| Module::unpack(packed, false).unwrap()).collect();
        assert!(modules.iter().all(|module| module.kernel_version() == Some("6.1")));
        let archive = archive(b"the guest", &modules);
        let text = String::from_utf8_lossy(&archive);
        let list = "modules/list\0\0virtio_mmio.ko\nneeded.ko\nvmw_vsock_virtio_transport.ko\nvirtiofs.ko\n\
                    virtio_blk.ko\next4.ko\nvirtio_net.ko\nerofs.ko\noverlay.ko\n\0";
        assert!(text.contains(list), "{text:?}");
        for content in ["virtio_mmio content", "needed content", "overlay content", "the guest"] {
            assert_eq!(text.matches(content).count(), 1, "{text:?}");
        }
    }

    #[test]
    fn a_module_that_is_missing_is_named_with_its_purpose() {
        let directory = tempfile::tempdir().unwrap();
        folder(directory.path(), "loop", "6.1");
        fs::remove_file(directory.path().join("modules.builtin")).unwrap();
        let error = needed(directory.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("no module loop") && error.contains("the layers of images"), "{error}");
        folder(directory.path(), "", "6.1");
        let error = needed(directory.path(), &["nbd".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("no module nbd") && error.contains("configuration"), "{error}");
    }

    #[test]
    fn signatures_are_cut_unless_they_are_kept() {
        let mut content = b"content".to_vec();
        content.extend(b"signature");
        content.extend([0; 8]);
        content.extend(9_u32.to_be_bytes());
        content.extend(SIGNED);
        let packed = Packed { path: "a.ko".into(), content: content.clone() };
        assert_eq!(Module::unpack(&packed, false).unwrap().content, b"content");
        assert_eq!(Module::unpack(&packed, true).unwrap().content, content);
        // A length that is none.
        assert_eq!(unsigned_length(SIGNED), SIGNED.len());
        let nonsense = [&[0xff; 12], SIGNED].concat();
        assert_eq!(unsigned_length(&nonsense), nonsense.len());
    }

    #[test]
    fn what_cannot_be_unpacked_is_named() {
        let unpack = |path: &str| {
            Module::unpack(&Packed { path: path.into(), content: b"x".to_vec() }, false).unwrap_err()
        };
        assert!(
            matches!(unpack("/m/a.ko.bz2"), Error::CompressionUnknown { path } if path.ends_with("a.ko.bz2"))
        );
        assert!(matches!(unpack("/m/a.ko.xz"), Error::Unpack { path, .. } if path.ends_with("a.ko.xz")));
    }
}
