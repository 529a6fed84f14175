//! Images that containers mount: their files, put together from their layers, or
//! a part of them. Nobody can change them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::Error;
use crate::rootfs;
use crate::unattached::{Unattached, descriptor_path};

/// How often a lookup is repeated that a rename elsewhere disturbed.
const RETRY_LIMIT: usize = 32;

/// An image to be mounted, for as long as this lives.
#[derive(Debug)]
pub(crate) struct ImageVolume {
    /// What of it was asked for.
    asked: OwnedFd,
    _files: Unattached,
}

impl ImageVolume {
    /// Puts the layers (topmost first) together, mapped by the user namespace `user` if
    /// there is one and with that SELinux `label`, and opens what is at `sub_path`. `place` becomes a directory of its
    /// own. Blocks.
    pub(crate) fn open(
        id: &str,
        layers: &[PathBuf],
        sub_path: &str,
        place: &Path,
        user: Option<&OwnedFd>,
        label: Option<&str>,
    ) -> Result<Self, Error> {
        std::fs::create_dir_all(place).map_err(|source| Error::file("create", place, source))?;
        let files = Unattached::new(rootfs::assemble_readonly(id, layers, place, user, label)?, place)?;
        let asked = below(files.root(), sub_path)?;
        Ok(Self { asked, _files: files })
    }

    /// What a container binds.
    pub(crate) fn source(&self) -> PathBuf {
        descriptor_path(&self.asked)
    }
}

/// Opens a path in an image. Its symbolic links are those of the image: an
/// absolute one begins at the image's root, and none leads out of it.
fn below(root: &OwnedFd, sub_path: &str) -> Result<OwnedFd, Error> {
    let invalid = |reason: String| Error::invalid("mounts.image.sub_path", reason);
    let path = Path::new(if sub_path.is_empty() { "." } else { sub_path });
    if path.is_absolute() {
        return Err(invalid(format!("{sub_path:?} is absolute")));
    }
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RETRY_LIMIT {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        match rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), resolve) {
            Ok(opened) => return Ok(opened),
            Err(Errno::AGAIN) => {}
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                return Err(invalid(format!("{sub_path:?} is not in the image")));
            }
            Err(errno) => return Err(Error::file("open in the image", path, errno)),
        }
    }
    Err(Error::file("open in the image", path, Errno::AGAIN))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    struct Image {
        directory: tempfile::TempDir,
        layers: Vec<PathBuf>,
    }

    impl Image {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let layers = ["top", "bottom"].map(|name| directory.path().join(name));
            let [top, bottom] = &layers;
            fs::create_dir_all(top.join("deep/er")).unwrap();
            fs::create_dir(bottom).unwrap();
            fs::write(top.join("deep/er/file"), "of the top").unwrap();
            fs::write(bottom.join("file"), "of the bottom").unwrap();
            fs::write(directory.path().join("secret"), "outside").unwrap();
            symlink("/deep/er", bottom.join("absolute")).unwrap();
            symlink("../../../../..", bottom.join("up")).unwrap();
            symlink(directory.path(), bottom.join("out")).unwrap();
            symlink("loop", bottom.join("loop")).unwrap();
            Self { directory, layers: layers.to_vec() }
        }

        fn open(&self, sub_path: &str) -> Result<ImageVolume, Error> {
            ImageVolume::open("c", &self.layers, sub_path, &self.directory.path().join("place"), None, None)
        }
    }

    #[test]
    fn the_whole_and_its_parts() {
        let image = Image::new();
        let read = |sub_path: &str, file: &str| {
            let volume = image.open(sub_path).unwrap();
            fs::read_to_string(volume.source().join(file)).unwrap()
        };
        assert_eq!(read("", "file"), "of the bottom");
        assert_eq!(read("deep", "er/file"), "of the top");
        assert_eq!(read("deep/er/", "file"), "of the top");
        assert_eq!(read("absolute", "file"), "of the top");
        // A root's parent is itself.
        assert_eq!(read("up", "file"), "of the bottom");
        assert_eq!(fs::read_to_string(image.open("file").unwrap().source()).unwrap(), "of the bottom");
    }

    #[test]
    fn what_is_not_in_the_image() {
        let image = Image::new();
        for sub_path in ["no", "file/x", "out", "out/secret", "loop", "/deep", "up/secret"] {
            let error = image.open(sub_path).unwrap_err().to_string();
            assert!(error.starts_with("mounts.image.sub_path: "), "{sub_path}: {error}");
        }
    }
}
