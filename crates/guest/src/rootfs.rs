//! A container's root filesystem: layers below, a writable directory on top,
//! put together as a mount that is attached nowhere. It is gone with the last
//! descriptor or namespace that holds it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kina_guest_api::v1;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use crate::disk_usage::DiskUsage;
use crate::error::Error;
use crate::ids::Owner;
use crate::namespaces::in_thread;

/// OCI images have fewer (containerd and Docker stop at 127).
pub(crate) const LAYERS_LIMIT: usize = 500;
/// fsconfig(2) takes no longer text (256 with the end).
const VALUE_LIMIT: usize = 255;
/// Nothing is synced for an overlay, neither by its processes nor when it is unmounted, which
/// would sync the whole disk below and hold the container's end up for it. Nobody sees a
/// container's layer again once its mount is gone, least of all after a crash of the machine.
const VOLATILE: &str = "volatile";
/// mount(2) takes one page of options.
const OPTIONS_LIMIT: usize = 4095;

/// The directories of one container's writable layer.
#[derive(Debug)]
pub(crate) struct WritableLayer {
    directory: PathBuf,
    usage: DiskUsage,
}

impl WritableLayer {
    /// Makes the directories; what an earlier attempt left behind is removed.
    /// `owner` is whom the container's root directory belongs to.
    pub(crate) fn create(directory: PathBuf, owner: Owner) -> Result<Self, Error> {
        let layer = Self { directory, usage: DiskUsage::default() };
        layer.remove()?;
        for part in [layer.directory.clone(), layer.upper(), layer.work()] {
            DirBuilder::new()
                .recursive(true)
                .mode(if part == layer.upper() { 0o755 } else { 0o700 })
                .create(&part)
                .map_err(|source| Error::file("create", &part, source))?;
        }
        std::os::unix::fs::chown(layer.upper(), Some(owner.0), Some(owner.1))
            .map_err(|source| Error::file("give away", layer.upper(), source))?;
        Ok(layer)
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }

    fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// Where an image that the container mounts may be attached.
    pub(crate) fn image_volume(&self, index: usize) -> PathBuf {
        self.directory.join("images").join(index.to_string())
    }

    /// What the container has written, or had a moment ago. Measures until `end`.
    pub(crate) fn usage(&self, end: Instant) -> v1::DiskUsage {
        self.usage.of(&self.upper(), end)
    }

    /// Takes it away with all that the container has written. Where there is an event loop its
    /// files are removed after that: on a busy disk each directory takes milliseconds, for which
    /// nobody needs to wait. What is left when the guest ends goes with the pod's directory.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        /// Tells what is being removed apart; no container's id begins with a dot.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let failed = |source| Error::file("remove", &self.directory, source);
        let name = self.directory.file_name().unwrap_or_default().to_string_lossy();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let discarded = self.directory.with_file_name(format!(".{name}-{number}"));
        match std::fs::rename(&self.directory, &discarded) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(failed(source)),
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                // One that fails is tried again with the whole of the pod.
                runtime.spawn_blocking(move || drop(std::fs::remove_dir_all(discarded)));
                Ok(())
            }
            Err(_) => std::fs::remove_dir_all(&discarded).map_err(failed),
        }
    }
}

/// Mounts the layers (topmost first) below a writable one. What belongs to an id in them
/// belongs to that id of the user namespace `user`, if there is one. All files show the SELinux
/// `label`, if there is one.
pub(crate) fn assemble(
    id: &str,
    layers: &[PathBuf],
    writable: &WritableLayer,
    user: Option<&OwnedFd>,
    label: Option<&str>,
) -> Result<OwnedFd, Error> {
    let overlay = Overlay {
        layers: layers.to_vec(),
        bottom: None,
        writable: Some((writable.upper(), writable.work())),
        at: writable.directory.clone(),
        label: label.map(str::to_owned),
    };
    overlay.mount(id, "rootfs.layers", user)
}

/// Mounts the layers (topmost first) read-only, mapped as by [`assemble`]. `place` is
/// an empty directory.
pub(crate) fn assemble_readonly(
    id: &str,
    layers: &[PathBuf],
    place: &Path,
    user: Option<&OwnedFd>,
    label: Option<&str>,
) -> Result<OwnedFd, Error> {
    let overlay = Overlay {
        layers: layers.to_vec(),
        // A single directory is no overlay; and what a layer says that hides files
        // below it means that only in one.
        bottom: Some(place.to_owned()),
        writable: None,
        at: place.to_owned(),
        label: label.map(str::to_owned),
    };
    overlay.mount(id, "mounts.image.layers", user)
}

type Refusal = (Errno, String);

/// Directories to be seen as one.
#[derive(Clone)]
struct Overlay {
    /// The topmost first.
    layers: Vec<PathBuf>,
    /// An empty directory below them.
    bottom: Option<PathBuf>,
    /// Where changes go (upper, work); without, there are none.
    writable: Option<(PathBuf, PathBuf)>,
    /// A directory to mount it at for a moment, where the kernel wants one.
    at: PathBuf,
    /// The SELinux label that all files in it show.
    label: Option<String>,
}

impl Overlay {
    /// `field` is where the layers come from.
    fn mount(&self, id: &str, field: &'static str, user: Option<&OwnedFd>) -> Result<OwnedFd, Error> {
        if self.layers.is_empty() {
            return Err(Error::invalid(field, "there are none"));
        }
        if self.layers.len() > LAYERS_LIMIT {
            return Err(Error::TooMany { what: "layers", limit: LAYERS_LIMIT });
        }
        for layer in &self.layers {
            if !layer.is_dir() {
                return Err(Error::invalid(field, format!("{} is no directory", layer.display())));
            }
        }
        let Some(user) = user else {
            return self.stack(id);
        };
        let user = user.try_clone().map_err(|source| Error::system("duplicate a descriptor", source))?;
        let (id, overlay) = (id.to_owned(), self.clone());
        in_thread("mount an overlay on mapped layers", move || {
            enter_private_mounts().map_err(|errno| Error::system("make a mount namespace", errno))?;
            for layer in &overlay.layers {
                map_in_place(layer, &user)?;
            }
            overlay.stack(&id)
        })
    }

    /// Mounts the layers as they are found in the present mount namespace.
    fn stack(&self, id: &str) -> Result<OwnedFd, Error> {
        let failed = |details, source| Error::Overlay { id: id.to_owned(), details, source };
        match self.by_fsconfig() {
            Ok(mount) => Ok(mount),
            // A kernel before 6.8 does not know `lowerdir+`, one before 6.5 nothing of the kind.
            Err((Errno::INVAL | Errno::NOSYS, _)) => {
                self.by_mount().map_err(|source| failed(String::new(), source))
            }
            Err((errno, details)) => Err(failed(details, errno.into())),
        }
    }

    fn lower(&self) -> impl Iterator<Item = &PathBuf> {
        self.layers.iter().chain(&self.bottom)
    }

    /// One option per layer: no page of options to overflow.
    fn by_fsconfig(&self) -> Result<OwnedFd, Refusal> {
        let plain = |errno: Errno| (errno, String::new());
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(plain)?;
        let mut keep = Vec::new();
        let mut set = |key: &str, path: &Path| -> Result<(), Errno> {
            let path = OptionPath::new(path, false)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            rustix::mount::fsconfig_set_string(&context, key, path.text.as_path())?;
            keep.push(path);
            Ok(())
        };
        let mut configure = || -> Result<(), Errno> {
            rustix::mount::fsconfig_set_string(&context, "source", "overlay")?;
            for layer in self.lower() {
                set("lowerdir+", layer)?;
            }
            if let Some((upper, work)) = &self.writable {
                set("upperdir", upper)?;
                set("workdir", work)?;
                rustix::mount::fsconfig_set_flag(&context, VOLATILE)?;
            }
            if let Some(label) = &self.label {
                rustix::mount::fsconfig_set_string(&context, "context", label)?;
            }
            rustix::mount::fsconfig_create(&context)
        };
        configure().map_err(|errno| (errno, complaint(&context)))?;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
            .map_err(plain)
    }

    /// The way of older kernels: mount(2) in a mount namespace of a moment.
    fn by_mount(&self) -> io::Result<OwnedFd> {
        let overlay = self.clone();
        let mounted = in_thread("mount an overlay", move || {
            let step = |operation| move |errno: nix::errno::Errno| Error::system(operation, errno);
            enter_private_mounts().map_err(step("make a mount namespace"))?;
            let at = &overlay.at;
            // Opened here: an overlay takes directories of its own mount namespace only.
            let (options, _keep) =
                overlay.options().map_err(|source| Error::system("open the layers", source))?;
            let mount = |options: &str| {
                nix::mount::mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options))
            };
            let writable = overlay.writable.is_some();
            match mount(&if writable { format!("{options},{VOLATILE}") } else { options.clone() }) {
                // A kernel before 5.10 does not know it.
                Err(nix::errno::Errno::EINVAL) if writable => mount(&options),
                done => done,
            }
            .map_err(step("mount"))?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            rustix::mount::open_tree(rustix::fs::CWD, at, flags)
                .map_err(|errno| Error::system("copy the mount", errno))
        });
        mounted.map_err(io::Error::other)
    }

    /// The options of mount(2), and what must stay open until it is done.
    fn options(&self) -> io::Result<(String, Vec<OptionPath>)> {
        let mut keep = Vec::new();
        let mut short = |path: &Path| -> io::Result<String> {
            let path = OptionPath::new(path, true)?;
            let text = path.text.display().to_string();
            keep.push(path);
            Ok(text)
        };
        let lower = self.lower().map(|layer| short(layer)).collect::<io::Result<Vec<_>>>()?;
        let mut options = format!("lowerdir={}", lower.join(":"));
        if let Some((upper, work)) = &self.writable {
            options.push_str(&format!(",upperdir={},workdir={}", short(upper)?, short(work)?));
        }
        if let Some(label) = &self.label {
            // Quoted: there may be commas in it.
            options.push_str(&format!(",context=\"{label}\""));
        }
        if options.len() + 1 + VOLATILE.len() > OPTIONS_LIMIT {
            return Err(io::ErrorKind::ArgumentListTooLong.into());
        }
        Ok((options, keep))
    }
}

/// Moves the calling thread, which must be one of a moment, into a mount namespace of its
/// own, from which nothing spreads.
fn enter_private_mounts() -> nix::Result<()> {
    let none = None::<&str>;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)?;
    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
}

/// Covers a layer with a view of itself that is mapped by a user namespace.
fn map_in_place(layer: &Path, user: &OwnedFd) -> Result<(), Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let view = rustix::mount::open_tree(rustix::fs::CWD, layer, flags)
        .map_err(|errno| Error::file("open layer", layer, errno))?;
    kina_userns::map_mount(&view, user, false)
        .map_err(|source| Error::UserNamespace { whose: format!("layer {}", layer.display()), source })?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&view, "", rustix::fs::CWD, layer, flags)
        .map_err(|errno| Error::file("mount mapped layer", layer, errno))
}

/// A path as an option: itself, or a short one by way of a descriptor that must
/// stay open meanwhile.
struct OptionPath {
    text: PathBuf,
    _keep: Option<File>,
}

impl OptionPath {
    fn new(path: &Path, always_short: bool) -> io::Result<Self> {
        if !always_short && path.as_os_str().len() <= VALUE_LIMIT {
            return Ok(Self { text: path.to_owned(), _keep: None });
        }
        let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path)?;
        Ok(Self { text: format!("/proc/self/fd/{}", file.as_raw_fd()).into(), _keep: Some(file) })
    }
}

/// What the kernel says about a refused configuration.
fn complaint(context: &OwnedFd) -> String {
    let mut text = String::new();
    let Ok(descriptor) = context.try_clone() else {
        return text;
    };
    let mut file = File::from(descriptor);
    let mut message = [0; 512];
    // One message per read, until there is none; there are few.
    for _ in 0..8 {
        match file.read(&mut message) {
            Ok(length) if length > 0 => {
                text.push_str(": ");
                text.push_str(String::from_utf8_lossy(&message[..length]).trim());
            }
            Ok(_) | Err(_) => break,
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    struct Fixture {
        directory: tempfile::TempDir,
        layers: Vec<PathBuf>,
        writable: WritableLayer,
    }

    /// Layers that each hold a file of their own, and all of them `name`.
    fn fixture(count: usize, name_length: usize) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let layers: Vec<PathBuf> = (0..count)
            .map(|index| {
                let layer = directory.path().join(format!("{index:0>width$}", width = name_length));
                std::fs::create_dir(&layer).unwrap();
                std::fs::write(layer.join(format!("file{index}")), "").unwrap();
                std::fs::write(layer.join("name"), index.to_string()).unwrap();
                layer
            })
            .collect();
        let writable = WritableLayer::create(directory.path().join("writable"), (0, 0)).unwrap();
        Fixture { directory, layers, writable }
    }

    fn check(mount: &OwnedFd, fixture: &Fixture) {
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        assert_eq!(std::fs::read_to_string(root.join("name")).unwrap(), "0");
        for index in 0..fixture.layers.len() {
            assert!(root.join(format!("file{index}")).exists(), "{index}");
        }
        std::fs::write(root.join("written"), "x").unwrap();
        assert!(fixture.writable.upper().join("written").exists());
    }

    #[test]
    fn one_layer_many_layers_and_long_paths() {
        for (count, name_length) in [(1, 4), (127, 4), (3, 250)] {
            let fixture = fixture(count, name_length);
            let mount = assemble("c", &fixture.layers, &fixture.writable, None, None).unwrap();
            check(&mount, &fixture);
        }
    }

    #[test]
    fn the_way_of_older_kernels() {
        let fixture = fixture(127, 4);
        let overlay = Overlay {
            label: None,
            layers: fixture.layers.clone(),
            bottom: None,
            writable: Some((fixture.writable.upper(), fixture.writable.work())),
            at: fixture.writable.directory.clone(),
        };
        check(&overlay.by_mount().unwrap(), &fixture);
    }

    #[test]
    fn without_a_writable_layer() {
        let fixture = fixture(3, 4);
        let place = fixture.writable.directory.join("empty");
        std::fs::create_dir(&place).unwrap();
        let overlay = Overlay {
            label: None,
            layers: fixture.layers.clone(),
            bottom: Some(place.clone()),
            writable: None,
            at: place.clone(),
        };
        let older = overlay.by_mount().unwrap();
        for mount in [older, assemble_readonly("c", &fixture.layers, &place, None, None).unwrap()] {
            let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
            assert_eq!(std::fs::read_to_string(root.join("name")).unwrap(), "0");
            let refused = std::fs::write(root.join("written"), "x").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        let one = assemble_readonly("c", &fixture.layers[..1], &place, None, None).unwrap();
        let root = PathBuf::from(format!("/proc/self/fd/{}", one.as_raw_fd()));
        assert!(root.join("file0").exists() && !root.join("file1").exists());
    }

    /// Whom a file of a root belongs to.
    fn owner(root: &OwnedFd, name: &str) -> (u32, u32) {
        let path = format!("/proc/self/fd/{}/{name}", root.as_raw_fd());
        let status = std::fs::symlink_metadata(path).unwrap();
        (status.uid(), status.gid())
    }

    #[test]
    fn layers_of_a_user_namespace_are_mapped() {
        let fixture = fixture(3, 4);
        std::os::unix::fs::chown(fixture.layers[1].join("file1"), Some(7), Some(8)).unwrap();
        let range = kina_userns::Range { inside: 0, outside: 200_000, length: 65536 };
        let mapping = kina_userns::Mapping { uids: vec![range], gids: vec![range] };
        let user = kina_userns::create(&mapping, kina_userns::With::Nothing).unwrap().user;
        let place = fixture.directory.path().join("mapped");
        let writable = WritableLayer::create(place, (200_000, 200_000)).unwrap();
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = mounts();
        let mount = assemble("c", &fixture.layers, &writable, Some(&user), None).unwrap();
        for (name, expected) in [
            (".", (200_000, 200_000)),
            ("file0", (200_000, 200_000)),
            ("file1", (200_007, 200_008)),
            ("name", (200_000, 200_000)),
        ] {
            assert_eq!(owner(&mount, name), expected, "{name}");
        }
        // As an image that is mounted, too.
        let place = fixture.directory.path().join("image");
        std::fs::create_dir(&place).unwrap();
        let image = assemble_readonly("c", &fixture.layers, &place, Some(&user), None).unwrap();
        assert_eq!(owner(&image, "file1"), (200_007, 200_008));
        // A second container on the same layers, without a user namespace.
        assert_eq!(mounts(), before);
        let plain = assemble("c", &fixture.layers, &fixture.writable, None, None).unwrap();
        assert_eq!(owner(&plain, "file1"), (7, 8));
    }

    #[test]
    fn it_is_attached_nowhere_and_removed_whole() {
        let fixture = fixture(2, 4);
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = assemble("c", &fixture.layers, &fixture.writable, None, None).unwrap();
        let writable = fixture.writable.directory.display().to_string();
        assert!(!mounts().contains(&writable));
        drop(mount);
        fixture.writable.remove().unwrap();
        assert!(!fixture.writable.directory.exists());
        assert!(discarded(&fixture).is_empty());
        fixture.writable.remove().unwrap();
    }

    /// What is still being removed.
    fn discarded(fixture: &Fixture) -> Vec<String> {
        let entries = std::fs::read_dir(fixture.directory.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with('.')).collect()
    }

    #[tokio::test]
    async fn its_files_go_after_it() {
        let fixture = fixture(1, 4);
        let mount = assemble("c", &fixture.layers, &fixture.writable, None, None).unwrap();
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        std::fs::create_dir_all(root.join("some/where")).unwrap();
        drop(mount);
        fixture.writable.remove().unwrap();
        assert!(!fixture.writable.directory.exists());
        let gone = async {
            while !discarded(&fixture).is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), gone).await.expect("its files stay");
    }

    #[test]
    fn nothing_is_synced_for_it() {
        let fixture = fixture(1, 4);
        let _mount = assemble("c", &fixture.layers, &fixture.writable, None, None).unwrap();
        // The kernel's mark of a layer that must not be used again.
        assert!(fixture.writable.work().join("work/incompat/volatile").is_dir());
    }

    #[test]
    fn a_missing_layer_is_named() {
        let fixture = fixture(1, 4);
        let missing = vec![PathBuf::from("/no/such/layer")];
        let error = assemble("c", &missing, &fixture.writable, None, None).unwrap_err();
        assert!(error.to_string().contains("/no/such/layer"), "{error}");
    }
}
