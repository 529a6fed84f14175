//! Network namespaces, entered without ever moving a thread that is used for
//! anything else.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use crate::Error;

/// `NSFS_MAGIC` (linux/magic.h): what namespaces are files of.
const NSFS: u64 = 0x6e73_6673;

/// A network namespace that is held open: it stays while this does, whether its name
/// does or not.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    file: OwnedFd,
}

impl Namespace {
    /// Opens the namespace pinned at `path`, such as `/var/run/netns/kina-…` or
    /// `/proc/…/ns/net`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let failed = |source| Error::Namespace { operation: "open", namespace: path.clone(), source };
        let file = OwnedFd::from(File::open(&path).map_err(failed)?);
        let system = rustix::fs::fstatfs(&file).map_err(|error| failed(error.into()))?;
        // The field's type differs between architectures.
        if u64::try_from(system.f_type) != Ok(NSFS) {
            return Err(Error::NotANamespace { namespace: path });
        }
        Ok(Self { path, file })
    }

    /// The namespace that this thread is in.
    pub fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// The path it was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The namespace as a file descriptor, for moving interfaces into it.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `work` in the namespace, on a thread of its own that ends with it. What
    /// `work` opens (sockets above all) stays in the namespace; `/proc/sys/net` is the
    /// namespace's. `work` may block, but must end by itself: dropping the future
    /// leaves it running.
    pub async fn run<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let failed = |source| Error::Namespace { operation: "enter", namespace: self.path.clone(), source };
        let file = self.file.try_clone().map_err(failed)?;
        let (sender, receiver) = oneshot::channel();
        thread::Builder::new()
            .name("in-netns".to_owned())
            .spawn(move || {
                let entered = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
                // The receiver may have gone; then nobody wants to know.
                drop(sender.send(entered.map(|()| work())));
            })
            .map_err(failed)?;
        match receiver.await {
            Ok(entered) => entered.map_err(|error| failed(error.into())),
            Err(_) => Err(failed(io::Error::other("the thread in the namespace panicked"))),
        }
    }

    /// Sets `/proc/sys/net/<name>` in the namespace. A setting that this kernel does not
    /// have is left alone: it then has nothing to set.
    pub(crate) async fn set(&self, name: String, value: &'static str) -> Result<(), Error> {
        let path = Path::new("/proc/sys/net").join(&name);
        let written = self.run(move || match fs::write(path, value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        });
        written.await?.map_err(|source| Error::Kernel {
            operation: "set",
            object: name,
            namespace: self.path.clone(),
            source: source.into(),
        })
    }
}
