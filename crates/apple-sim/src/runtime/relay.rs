//! Sockets that are relayed between the host and the guest (`UnixSocketRelay.swift`,
//! `VsockProxy.swift`).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::net::Shutdown;

use crate::settings::{Settings, Trap};
use crate::wire;

/// The longest path of a socket in the guest, with what stands before it there
/// (`/run/container/<id>/rootfs`), in bytes.
const LONGEST_GUEST_PATH: usize = 107;
/// The length of that without the id.
const GUEST_PREFIX: usize = 22;

/// A relay of connections to one socket. When it is dropped it ends, and its socket is removed.
pub(super) struct Relay {
    path: PathBuf,
    stopped: Arc<AtomicBool>,
    guest_listens: Arc<AtomicBool>,
    published: bool,
}

impl Relay {
    /// Publishes a guest's socket on the host, in place of what is there: `dial` connects to its
    /// path below the machine's root. Until [`guest_listens`](Self::guest_listens) is called, a
    /// connection cannot be passed on, and the first such ends the relay.
    pub(super) fn publish(
        id: &str,
        host: &Path,
        guest: &str,
        root: &Path,
        dial: impl Fn(&str) -> io::Result<UnixStream> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = wire::listen(host)?;
        let relay = Self {
            path: host.to_owned(),
            stopped: Arc::default(),
            guest_listens: Arc::default(),
            published: true,
        };
        let (stopped, listens) = (Arc::clone(&relay.stopped), Arc::clone(&relay.guest_listens));
        let (host, guest) = (host.to_owned(), guest.trim_start_matches('/').to_owned());
        let fits = GUEST_PREFIX + id.len() + 1 + guest.len() <= LONGEST_GUEST_PATH;
        let (dial, root) = (Arc::new(dial), root.to_owned());
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(connection) = connection else { break };
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let dies = Settings::load(&root).is_ok_and(|settings| settings.trapped(Trap::RelayDies));
                if dies || !listens.load(Ordering::SeqCst) {
                    // One dial that fails ends the relay until the machine is started again.
                    break;
                }
                let (dial, guest) = (Arc::clone(&dial), guest.clone());
                std::thread::spawn(move || {
                    // Where the guest does not listen the host's connection is made all the
                    // same, and ends.
                    let inside = fits.then(|| dial(&guest));
                    if let Some(Ok(inside)) = inside {
                        join(connection, inside);
                    }
                });
            }
            drop(fs::remove_file(&host));
        });
        Ok(relay)
    }

    /// Makes a host's socket reachable for the guest: `staged` is what is bound into it. A
    /// connection that the host does not take ends the relay.
    pub(super) fn into_guest(host: &Path, staged: &Path) -> io::Result<Self> {
        let listener: UnixListener = wire::listen(staged)?;
        let relay = Self {
            path: staged.to_owned(),
            stopped: Arc::default(),
            guest_listens: Arc::default(),
            published: false,
        };
        let (stopped, host) = (Arc::clone(&relay.stopped), host.to_owned());
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(connection) = connection else { return };
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(outside) = wire::connect(&host) else { return };
                std::thread::spawn(move || join(connection, outside));
            }
        });
        Ok(relay)
    }

    /// From now on connections are passed on.
    pub(super) fn guest_listens(&self) {
        self.guest_listens.store(true, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes whoever waits for a connection.
        drop(wire::connect(&self.path));
        if self.published {
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Connects to a socket in the guest as the machine's first process does, which sees the root
/// file system and nothing that is mounted in it, and for which a link that leads out of it leads
/// elsewhere.
pub(super) fn dial_guest(rootfs: &Path, path: &str) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, rootfs, flags | OFlags::DIRECTORY, Mode::empty())?;
    let socket: OwnedFd = rustix::fs::openat2(&directory, path, flags, Mode::empty(), ResolveFlags::BENEATH)?;
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd()))
}

/// Passes bytes on both ways between two sockets. Each way ends by itself.
pub(super) fn join(one: impl Into<OwnedFd>, other: impl Into<OwnedFd>) {
    let (one, other) = (File::from(one.into()), File::from(other.into()));
    std::thread::scope(|scope| {
        scope.spawn(|| pass(&one, &other));
        pass(&other, &one);
    });
}

fn pass(from: &File, to: &File) {
    let (mut reader, mut writer) = (from, to);
    // Whatever ends it, both sides are told.
    drop(io::copy(&mut reader, &mut writer));
    for (end, how) in [(to, Shutdown::Write), (from, Shutdown::Read)] {
        // Fails only if it has ended.
        let _ = rustix::net::shutdown(end, how);
    }
}
