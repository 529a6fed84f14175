//! What a machine boots from: a kernel of the node's and an initramfs made
//! here, kept in a directory until one of their parts changes.
//!
//! ```text
//! image ────────▶ kernel proper ──┐
//! modules ─┐                      ├─▶ <cache>/<digest of all parts>/{kernel,initramfs}
//! guest ───┴────▶ initramfs ──────┘
//! ```

mod cache;
mod clock;
mod command_line;
mod cpio;
mod decompress;
mod image;
mod initramfs;
mod kernel;
mod modules;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Error;
use cache::Held;
use initramfs::{Module, Packed};

pub use crate::KernelFiles;
pub use command_line::CommandLine;

/// Where distributions put kernels and their modules.
const BOOT: &str = "/boot";
const MODULES: &str = "/lib/modules";
/// Changes with the form of what is made: older files are then made anew.
const FORMAT: &str = "kina boot files 1";

/// What machines shall boot from.
#[derive(Clone, Debug)]
pub struct BootConfig {
    /// A kernel; without one, the newest that is installed and has everything.
    pub kernel: Option<KernelFiles>,
    /// Modules to load beyond those that every machine needs.
    pub modules: Vec<String>,
    /// The static `kina-guest`.
    pub guest: PathBuf,
    /// The directory in which made files are kept; nothing else may be in it.
    pub cache: PathBuf,
}

/// What a machine boots from. The files stay as long as this does.
#[derive(Debug)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its first file system.
    pub initramfs: PathBuf,
    /// What `uname -r` will say, where the image tells.
    pub kernel_version: Option<String>,
    /// Of all parts: other files have another digest.
    pub digest: String,
    _held: Held,
}

/// Finds the kernel and makes the files where their parts have changed. Blocks:
/// it reads some 20 MB each time, and takes seconds when it has to make them.
///
/// Several processes may share a cache.
///
/// # Errors
/// When there is no kernel, it lacks a module, or a file cannot be read or made.
pub fn prepare(config: &BootConfig) -> Result<BootFiles, Error> {
    let parts = match &config.kernel {
        Some(kernel) => Parts::read(kernel, config)?,
        None => newest(config, Path::new(BOOT), Path::new(MODULES))?,
    };
    parts.files(&config.cache)
}

/// The newest kernel that has everything that machines need.
fn newest(config: &BootConfig, boot: &Path, modules: &Path) -> Result<Parts, Error> {
    let kernels = kernel::installed(boot, modules)
        .map_err(|source| Error::Read { path: modules.to_owned(), source })?;
    let mut reasons = Vec::new();
    for kernel in &kernels {
        match Parts::read(kernel, config) {
            Ok(parts) => return Ok(parts),
            // The guest is missing for every kernel.
            Err(error @ Error::Read { .. }) if !config.guest.exists() => return Err(error),
            Err(error) => reasons.push(format!("{}: {}", kernel.image.display(), chain(&error))),
        }
    }
    if reasons.is_empty() {
        let places = format!("no {}/vmlinuz-VERSION with {}/VERSION", boot.display(), modules.display());
        reasons.push(places);
    }
    Err(Error::NoKernel { reasons: reasons.join("; ") })
}

fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// Everything that the files are made from.
struct Parts {
    image: Vec<u8>,
    version: Option<String>,
    guest: Vec<u8>,
    modules: Vec<Packed>,
    keep_signatures: bool,
}

impl Parts {
    fn read(kernel: &KernelFiles, config: &BootConfig) -> Result<Self, Error> {
        let image = initramfs::read(&kernel.image)?;
        let version = image::version(&image);
        let parts = Self {
            guest: initramfs::read(&config.guest)?,
            modules: initramfs::needed(&kernel.modules, &config.modules)?,
            keep_signatures: insists_on_signatures(kernel, version.as_deref()),
            image,
            version,
        };
        if let (Some(image_version), Some(first)) = (&parts.version, parts.modules.first()) {
            let first = Module::unpack(first, true)?;
            if let Some(modules_version) = first.kernel_version().filter(|version| version != image_version) {
                return Err(Error::KernelMismatch {
                    image: kernel.image.clone(),
                    image_version: image_version.clone(),
                    modules: kernel.modules.clone(),
                    modules_version: modules_version.to_owned(),
                });
            }
        }
        Ok(parts)
    }

    fn digest(&self) -> String {
        let mut digest = Sha256::new();
        let mut part = |name: &[u8], content: &[u8]| {
            for bytes in [name, content] {
                digest.update((bytes.len() as u64).to_le_bytes());
                digest.update(bytes);
            }
        };
        part(FORMAT.as_bytes(), &[u8::from(self.keep_signatures)]);
        part(b"image", &self.image);
        part(b"guest", &self.guest);
        for module in &self.modules {
            let name = module.path.file_name().unwrap_or_default();
            part(name.as_encoded_bytes(), &module.content);
        }
        hex::encode(digest.finalize())
    }

    /// The files, made where there are none.
    fn files(self, cache: &Path) -> Result<BootFiles, Error> {
        let digest = self.digest();
        let held = cache::get(cache, &digest, |folder| self.make(folder).map_err(Making::Parts));
        let held = held.map_err(|error| match error {
            Making::Parts(error) => error,
            Making::Cache(source) => Error::Cache { path: cache.to_owned(), source },
        })?;
        Ok(BootFiles {
            kernel: held.path().join("kernel"),
            initramfs: held.path().join("initramfs"),
            kernel_version: self.version,
            digest,
            _held: held,
        })
    }

    fn make(&self, folder: &Path) -> Result<(), Error> {
        let modules = self.modules.iter().map(|packed| Module::unpack(packed, self.keep_signatures));
        let modules = modules.collect::<Result<Vec<_>, _>>()?;
        let write = |name: &str, content: &[u8]| {
            let path = folder.join(name);
            fs::write(&path, content).map_err(|source| Error::Write { path, source })
        };
        write("initramfs", &initramfs::archive(&self.guest, &modules))?;
        match image::kernel_proper(&self.image) {
            Some(kernel) => write("kernel", &kernel),
            None => write("kernel", &self.image),
        }
    }
}

/// Whether the kernel takes signed modules only, as far as its configuration is
/// there: beside the image, or in its folder of modules.
fn insists_on_signatures(kernel: &KernelFiles, version: Option<&str>) -> bool {
    let beside = version.map(|version| kernel.image.with_file_name(format!("config-{version}")));
    [beside, Some(kernel.modules.join("config"))]
        .into_iter()
        .flatten()
        .filter_map(|path| fs::read_to_string(path).ok())
        .any(|config| config.lines().any(|line| line == "CONFIG_MODULE_SIG_FORCE=y"))
}

/// Why a folder of the cache was not made.
enum Making {
    Parts(Error),
    Cache(io::Error),
}

impl From<io::Error> for Making {
    fn from(error: io::Error) -> Self {
        Self::Cache(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        directory: tempfile::TempDir,
        config: BootConfig,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let at = |name: &str| directory.path().join(name);
            fs::create_dir(at("modules")).unwrap();
            initramfs::tests::folder(&at("modules"), "loop", "6.1.0-9");
            fs::write(at("image"), image::tests::bzimage(b"payload", "6.1.0-9")).unwrap();
            fs::write(at("guest"), "the guest").unwrap();
            let config = BootConfig {
                kernel: Some(KernelFiles { image: at("image"), modules: at("modules") }),
                modules: Vec::new(),
                guest: at("guest"),
                cache: at("cache"),
            };
            Self { directory, config }
        }

        fn write(&self, name: &str, content: impl AsRef<[u8]>) {
            fs::write(self.directory.path().join(name), content).unwrap();
        }

        fn kept(&self) -> usize {
            fs::read_dir(&self.config.cache).unwrap().count()
        }
    }

    #[test]
    fn files_are_made_anew_when_a_part_changes_and_old_ones_removed() {
        let fixture = Fixture::new();
        let first = prepare(&fixture.config).unwrap();
        assert_eq!(first.kernel_version.as_deref(), Some("6.1.0-9"));
        // No kernel proper is in it: the image is taken as it is.
        assert_eq!(fs::read(&first.kernel).unwrap(), image::tests::bzimage(b"payload", "6.1.0-9"));
        let same = prepare(&fixture.config).unwrap();
        assert_eq!(first.digest, same.digest);
        let mut digests = vec![first.digest.clone()];
        drop(same);
        for (name, content) in [
            ("guest", &b"another guest"[..]),
            ("modules/erofs.ko", b"another erofs"),
            ("image", &image::tests::bzimage(b"another", "6.1.0-9")),
            ("modules/config", b"CONFIG_MODULE_SIG_FORCE=y\n"),
        ] {
            fixture.write(name, content);
            let next = prepare(&fixture.config).unwrap();
            assert!(!digests.contains(&next.digest), "{name}");
            digests.push(next.digest.clone());
            // The first is held still.
            assert!(first.initramfs.exists());
            assert_eq!(fixture.kept(), 2, "{name}");
        }
    }

    #[test]
    fn modules_of_another_kernel_are_refused() {
        let fixture = Fixture::new();
        fixture.write("image", image::tests::bzimage(b"payload", "6.12.0"));
        let error = prepare(&fixture.config).unwrap_err().to_string();
        assert!(error.contains("6.12.0") && error.contains("6.1.0-9"), "{error}");
    }

    #[test]
    fn the_newest_kernel_that_has_everything_is_taken() {
        let fixture = Fixture::new();
        let at = |name: &str| fixture.directory.path().join(name);
        let newest = |config: &BootConfig| newest(config, &at("boot"), &at("lib"));
        let error = newest(&fixture.config).err().unwrap().to_string();
        assert!(error.contains("/boot/vmlinuz-VERSION"), "{error}");

        fs::create_dir(at("boot")).unwrap();
        for version in ["6.1.0-9", "6.1.0-10"] {
            let modules = at("lib").join(version);
            fs::create_dir_all(&modules).unwrap();
            initramfs::tests::folder(&modules, "", version);
            fixture.write(&format!("boot/vmlinuz-{version}"), image::tests::bzimage(b"p", version));
        }
        assert_eq!(newest(&fixture.config).unwrap().version.as_deref(), Some("6.1.0-10"));
        fs::remove_file(at("lib/6.1.0-10/erofs.ko")).unwrap();
        assert_eq!(newest(&fixture.config).unwrap().version.as_deref(), Some("6.1.0-9"));
        fs::write(at("lib/6.1.0-9/modules.dep"), "").unwrap();
        let error = newest(&fixture.config).err().unwrap().to_string();
        assert!(error.contains("erofs.ko") && error.contains("no module virtio_mmio"), "{error}");
        let config = BootConfig { guest: at("nowhere"), ..fixture.config.clone() };
        assert!(matches!(newest(&config), Err(Error::Read { path, .. }) if path == at("nowhere")));
    }
}
