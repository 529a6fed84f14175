//! The tree that a machine sees.
//!
//! ```text
//! <storage>/layers/<name>              hard links of the pod's layer images
//! <machine>/frame                      what is mounted on: empty files and directories
//! <machine>/share                      the frame, read-only: what the machine sees
//! <machine>/share/layers               the hard links, read-only
//! <machine>/share/volumes/<container>/<share>   the volumes of its containers
//! ```
//!
//! The tree is a mount of its own, to which nothing spreads from it and back.
//! The layers are mounted read-only, since other pods have the same files: what
//! the guest's root asks for there, the node's kernel refuses to virtiofsd. So is the
//! frame: who could put a symbolic link into it would lead the node's next mount out of
//! the tree.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use kina_machine::Share;
use kina_model::ContainerId;
use kina_node::{Bind, Error as NodeError, Node, PathKind};
use sha2::{Digest, Sha256};

/// Where the guest sees the tree.
pub(super) const IN_GUEST: &str = "/share";

/// Digits of a share's name, of the digest of what it is: enough to tell one
/// container's apart.
const NAME_DIGITS: usize = 24;

/// A machine's tree.
pub(super) struct Tree<'a> {
    node: &'a dyn Node,
    /// The tree's root on the node.
    root: PathBuf,
    /// The same, to be changed.
    frame: PathBuf,
    /// The hard links.
    layers: PathBuf,
}

impl<'a> Tree<'a> {
    pub(super) fn new(node: &'a dyn Node, directory: &Path, storage: &Path) -> Self {
        Self {
            node,
            root: directory.join("share"),
            frame: directory.join("frame"),
            layers: storage.join("layers"),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the empty tree; again is free.
    pub(super) async fn create(&self) -> Result<(), NodeError> {
        for name in ["layers", "volumes"] {
            self.node.create_directory(&self.frame.join(name), 0o755).await?;
        }
        self.node.create_directory(&self.layers, 0o755).await?;
        for (source, target) in [(&self.frame, self.root.clone()), (&self.layers, self.root.join("layers"))] {
            let source = source.clone();
            let bind = Bind { source, target, readonly: true, readonly_below: true, recursive: false };
            self.node.bind(&bind).await?;
        }
        Ok(())
    }

    /// Shows a layer image, and returns where the guest sees it.
    pub(super) async fn layer(&self, image: &Path) -> Result<PathBuf, NodeError> {
        let name =
            image.file_name().ok_or_else(|| NodeError::io("share", image, io::ErrorKind::InvalidInput))?;
        let link = self.layers.join(name);
        match self.node.hard_link(image, &link).await {
            Ok(()) => {}
            Err(error) if error.io_kind() == Some(io::ErrorKind::CrossesDevices) => {
                // Another file system: the file itself then, in place of an empty one.
                self.node.write_file(&link, &[], 0o600).await?;
                self.bind_layer(image, name).await?;
            }
            // The empty one is there from before. No image is empty.
            Err(error) if error.io_kind() == Some(io::ErrorKind::AlreadyExists) => {
                match self.node.read_file(&link, 1).await {
                    Ok(content) if content.is_empty() => self.bind_layer(image, name).await?,
                    Ok(_) | Err(_) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
        Ok(Path::new(IN_GUEST).join("layers").join(name))
    }

    async fn bind_layer(&self, image: &Path, name: &OsStr) -> Result<(), NodeError> {
        let target = self.root.join("layers").join(name);
        let bind =
            Bind { source: image.to_owned(), target, readonly: true, readonly_below: true, recursive: false };
        self.node.bind(&bind).await
    }

    /// Shows a volume of a container, and returns where the guest sees it.
    pub(super) async fn volume(&self, container: &ContainerId, share: &Share) -> Result<PathBuf, NodeError> {
        let name = name(share);
        self.make_place(container, &name, &share.source).await?;
        let bind = Bind {
            source: share.source.clone(),
            target: volumes(&self.root, container).join(&name),
            readonly: share.readonly,
            readonly_below: share.readonly_below,
            recursive: true,
        };
        self.node.bind(&bind).await?;
        Ok(Path::new(IN_GUEST).join("volumes").join(container.as_str()).join(name))
    }

    /// Makes what a volume is mounted on. Where it cannot be mounted there is nothing to make.
    async fn make_place(&self, container: &ContainerId, name: &str, source: &Path) -> Result<(), NodeError> {
        let directory = volumes(&self.frame, container);
        self.node.create_directory(&directory, 0o755).await?;
        let place = directory.join(name);
        match self.node.inspect_path(source).await?.kind {
            PathKind::Directory => self.node.create_directory(&place, 0o755).await,
            PathKind::File => {
                if self.node.exists(&place).await? {
                    return Ok(());
                }
                self.node.write_file(&place, &[], 0o600).await
            }
            PathKind::Socket | PathKind::Pipe | PathKind::BlockDevice | PathKind::CharacterDevice => Ok(()),
        }
    }

    /// Takes the volumes of a container back.
    pub(super) async fn unshare(&self, container: &ContainerId) -> Result<(), NodeError> {
        self.node.unbind(&volumes(&self.root, container)).await?;
        self.node.remove_tree(&volumes(&self.frame, container)).await
    }

    /// Removes the tree with all that is mounted in it. The links stay.
    pub(super) async fn remove(&self) -> Result<(), NodeError> {
        self.node.unbind(&self.root).await?;
        self.node.remove_tree(&self.root).await?;
        self.node.remove_tree(&self.frame).await
    }
}

/// Where the volumes of a container are in a tree.
fn volumes(tree: &Path, container: &ContainerId) -> PathBuf {
    tree.join("volumes").join(container.as_str())
}

/// The same share has the same name.
fn name(share: &Share) -> String {
    let mut digest = Sha256::new();
    digest.update([u8::from(share.readonly), u8::from(share.readonly_below)]);
    digest.update(share.source.as_os_str().as_encoded_bytes());
    let mut name = hex::encode(digest.finalize());
    name.truncate(NAME_DIGITS);
    name
}

#[cfg(test)]
mod tests {
    use kina_machine::ShareKind;

    use super::*;

    #[test]
    fn names_tell_shares_apart() {
        let share = |path: &str, readonly, readonly_below| {
            let kind = ShareKind::Layer;
            name(&Share { source: path.into(), readonly, readonly_below, kind })
        };
        let one = share("/a", true, true);
        assert_eq!(one, share("/a", true, true));
        for other in [share("/a", false, true), share("/b", true, true), share("/a", true, false)] {
            assert_ne!(one, other);
        }
        assert_eq!(one.len(), NAME_DIGITS);
    }
}
