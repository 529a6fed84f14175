//! The device: see [`Device`].

mod backend;
mod rings;
mod stream;
mod switch;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod ring_trial;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod trial;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::Error;
use backend::{Backend, CLIENTS};

/// How long the emulator may take to come.
const FRONTEND_PATIENCE: Duration = Duration::from_secs(60);

/// What a device is to be like.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the emulator connects, once.
    pub vhost_socket: PathBuf,
    /// Where clients connect: [`Address::Unix`](crate::Address::Unix).
    pub host_socket: PathBuf,
    /// The guest's own address, 3 or more. It may be that of another machine's: the
    /// host does not route by it.
    pub guest_cid: u32,
    /// How many streams there can be at a time. One more is refused.
    pub streams: usize,
}

impl Config {
    /// The address of a guest unless something else is said.
    pub const GUEST_CID: u32 = 3;
    /// The number of streams unless something else is said.
    pub const STREAMS: usize = 1024;

    /// With the usual numbers.
    #[must_use]
    pub fn new(vhost_socket: impl Into<PathBuf>, host_socket: impl Into<PathBuf>) -> Self {
        Self {
            vhost_socket: vhost_socket.into(),
            host_socket: host_socket.into(),
            guest_cid: Self::GUEST_CID,
            streams: Self::STREAMS,
        }
    }
}

/// A vsock device for one machine, from its sockets to the emulator's end.
#[derive(Debug)]
pub struct Device {
    config: Config,
    emulator: UnixListener,
    clients: UnixListener,
}

impl Device {
    /// Listens on both sockets. Either path appears when its socket accepts
    /// connections, and takes the place of what was there. Clients must be this
    /// process's user, or root.
    ///
    /// # Errors
    /// [`Error::Listen`] with the path.
    pub fn bind(config: &Config) -> Result<Self, Error> {
        let clients = listen(&config.host_socket)?;
        let emulator = listen(&config.vhost_socket)?;
        Ok(Self { config: config.clone(), emulator, clients })
    }

    /// Serves one emulator until it has gone. Clients that come before it wait.
    ///
    /// # Errors
    /// [`Error::NoFrontend`] when none came within a minute, [`Error::Protocol`]
    /// when it said what makes no sense.
    pub fn run(self) -> Result<(), Error> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::<()>::new());
        let Config { vhost_socket, guest_cid, streams, .. } = self.config;
        let backend = Backend::new(guest_cid, streams, self.clients, memory.clone())?;
        let events = backend.events();
        let leaving = backend.leaving.clone();
        let backend = Arc::new(Mutex::new(backend));
        let protocol = |error: DaemonError| Error::Protocol { message: error.to_string() };
        let mut daemon =
            VhostUserDaemon::new("vhost-user".to_owned(), backend.clone(), memory).map_err(protocol)?;
        for handler in daemon.get_epoll_handlers() {
            handler
                .register_listener(events, EventSet::IN, CLIENTS.into())
                .map_err(|source| Error::Setup { step: "watch the clients", source })?;
        }
        let served = wait_for(&self.emulator, &vhost_socket).and_then(|()| {
            daemon.start(&mut Listener::from(self.emulator)).map_err(protocol)?;
            match daemon.wait() {
                Ok(())
                | Err(DaemonError::HandleRequest(VhostError::Disconnected | VhostError::PartialMessage)) => {
                    Ok(())
                }
                Err(error) => Err(protocol(error)),
            }
        });
        leaving.store(true, Ordering::Release);
        // Joins the library's threads.
        drop(daemon);
        // Clients see their end now, whatever still holds the backend.
        backend.lock().unwrap_or_else(PoisonError::into_inner).end();
        served
    }
}

/// Waits until somebody connects.
fn wait_for(listener: &UnixListener, path: &Path) -> Result<(), Error> {
    let patience =
        Timespec { tv_sec: i64::try_from(FRONTEND_PATIENCE.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&patience)) {
            Ok(0) => return Err(Error::NoFrontend { path: path.to_owned(), patience: FRONTEND_PATIENCE }),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(source) => {
                return Err(Error::Setup { step: "wait for the emulator", source: source.into() });
            }
        }
    }
}

/// A socket that has its name once it accepts connections.
fn listen(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source: io::Error| Error::Listen { path: path.to_owned(), source };
    let mut unready = path.as_os_str().to_owned();
    unready.push("~");
    if let Err(error) = fs::remove_file(&unready)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(failed(error));
    }
    let listener = UnixListener::bind(&unready).map_err(failed)?;
    fs::set_permissions(&unready, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&unready, path).map_err(failed)?;
    Ok(listener)
}
