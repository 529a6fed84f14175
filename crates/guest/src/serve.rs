//! Listening: the guest's event loop.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use kina_cgroup::Hierarchy;
use kina_guest_api::v1::guest_server::GuestServer;
use kina_guest_api::{MACHINE_STATE_DIRECTORY, MESSAGE_LIMIT_BYTES};
use kina_launch::Launcher;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

use crate::arguments::{Listen, Serve};
use crate::error::Error;
use crate::guest::{
    ATTACHES_LIMIT, CONTAINERS_LIMIT, EXECS_LIMIT, FORWARDS_LIMIT, Guest, cgroup_error, chain,
};
use crate::journal::Journal;
use crate::service::Service;

/// Connections beside those of bulk streams: control, and streams that are refused or end.
const SPARE_CONNECTIONS: usize = 64;
/// Connections at one time, one per bulk stream. Were it fewer than there may be streams,
/// clients that keep theirs open would keep the next daemon from connecting.
const CONNECTIONS_LIMIT: usize =
    EXECS_LIMIT + ATTACHES_LIMIT + FORWARDS_LIMIT + CONTAINERS_LIMIT + SPARE_CONNECTIONS;
/// Streams of one connection at one time.
const STREAMS_LIMIT: u32 = 128;
/// Bytes that one stream, and one connection, may have on its way to the guest.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 128 << 10;
/// Bytes that one stream may have on its way to a caller that does not read.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Threads for what blocks: mounts, launches, removals.
const BLOCKING_THREADS: usize = 8;
const BLOCKING_STACK_BYTES: usize = 256 << 10;
/// How long an idle one is kept: an idle guest shall have none.
const BLOCKING_KEEP: Duration = Duration::from_millis(500);
/// How long the last answers may take to be sent.
const GOODBYE_PATIENCE: Duration = Duration::from_millis(500);
/// Before the next attempt at accepting, after one that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// The grace of a shutdown that SIGTERM asks for.
const SIGTERM_GRACE: Duration = Duration::from_secs(5);
/// The longest path of a unix socket on Linux.
const SOCKET_PATH_LIMIT: usize = 107;

/// Runs the guest until it is shut down.
pub(crate) fn run(options: &Serve) -> ExitCode {
    keep_memory_small();
    let journal = match &options.log {
        None => Journal::console(),
        Some(path) => match Journal::file(path) {
            Ok(journal) => journal,
            Err(error) => {
                let journal = Journal::console();
                journal.line(format_args!("open log {}: {error}", path.display()));
                journal
            }
        },
    };
    let guest = match prepare(options) {
        Ok((hierarchy, launcher)) => {
            let own_kernel = matches!(options.listen, Listen::Vsock(_));
            // Where there is no disk it is memory, which is not there yet.
            let state =
                [MACHINE_STATE_DIRECTORY, "/run"].map(Path::new).into_iter().find(|path| path.is_dir());
            let state = state.filter(|_| own_kernel);
            Arc::new(Guest::new(options.pod.clone(), hierarchy, journal, launcher, state))
        }
        Err(error) => {
            journal.line(format_args!("start: {}", chain(&error)));
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(BLOCKING_STACK_BYTES)
        .thread_keep_alive(BLOCKING_KEEP)
        .build();
    let served = match runtime {
        Ok(runtime) => {
            let served = runtime.block_on(serve(&guest, options));
            runtime.shutdown_timeout(GOODBYE_PATIENCE);
            served
        }
        Err(source) => Err(Error::system("make the event loop", source)),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            guest.journal.line(format_args!("serve: {}", chain(&error)));
            ExitCode::FAILURE
        }
    }
}

/// One arena for all threads: each would keep memory of its own.
#[allow(unsafe_code, reason = "mallopt has no wrapper")]
fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called before there is a second thread; it only sets numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 10);
    }
}

/// What happens before there is a second thread.
fn prepare(options: &Serve) -> Result<(Hierarchy, Launcher), Error> {
    let hierarchy = Hierarchy::detect().map_err(|source| Error::Cgroup { path: "/".to_owned(), source })?;
    if let Some(pod) = &options.cgroup {
        enter_cgroup(&hierarchy, pod)?;
    }
    let launcher = Launcher::new(Path::new("/proc/self/exe"), &["kina-guest", "launch"])
        .map_err(|source| Error::Launch { id: options.pod.clone(), source })?;
    Ok((hierarchy, launcher))
}

/// Moves into the child `guest` of the pod's cgroup, unless started there.
fn enter_cgroup(hierarchy: &Hierarchy, pod: &str) -> Result<(), Error> {
    let path = format!("{}/guest", pod.trim_end_matches('/'));
    let group = hierarchy.group(&path).map_err(|source| Error::Cgroup { path, source })?;
    let own = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
    let inside = group.processes().map_err(|source| cgroup_error(&group, source))?;
    if !inside.contains(&own) {
        group.create().map_err(|source| cgroup_error(&group, source))?;
        group.enter().map_err(|source| cgroup_error(&group, source))?;
    }
    Ok(())
}

async fn serve(guest: &Arc<Guest>, options: &Serve) -> Result<(), Error> {
    let listen = &options.listen;
    let watch = |kind| signal(kind).map_err(|source| Error::system("watch signals", source));
    let mut terminate = watch(SignalKind::terminate())?;
    // Handled, so that they do not end the guest: it outlives terminals and sessions.
    let (_hangup, _interrupt) = (watch(SignalKind::hangup())?, watch(SignalKind::interrupt())?);
    let shut_down = Arc::clone(guest);
    tokio::spawn(async move {
        if terminate.recv().await.is_some() {
            shut_down.shutdown(SIGTERM_GRACE).await;
        }
    });
    // Only a virtual machine is reached by vsock.
    let own_kernel = options.own_kernel || matches!(listen, Listen::Vsock(_));
    let service = GuestServer::new(Service::new(Arc::clone(guest), own_kernel))
        .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
        .max_encoding_message_size(MESSAGE_LIMIT_BYTES);
    guest.journal.line(format_args!(
        "kina-guest {} of pod {:?} listens on {listen:?}, pid {}",
        env!("CARGO_PKG_VERSION"),
        guest.pod_id,
        std::process::id()
    ));
    match listen {
        Listen::Unix(path) => {
            let acceptor = UnixAcceptor(bind(path)?);
            accept(acceptor, service, guest.finished()).await;
            drop(std::fs::remove_file(path));
        }
        Listen::Vsock(port) => {
            let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, *port))
                .map_err(|source| Error::system("listen on vsock", source))?;
            accept(VsockAcceptor(listener), service, guest.finished()).await;
        }
    }
    Ok(())
}

/// Accepts and serves connections until the guest is finished. No more at a time
/// than the limit: others wait to be accepted.
async fn accept<A: Acceptor>(acceptor: A, service: GuestServer<Service>, finished: watch::Receiver<bool>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_LIMIT));
    let accepting = async {
        // The semaphore is never closed.
        while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
            match acceptor.accept().await {
                Ok(stream) => {
                    let connection = serve_connection(stream, service.clone(), finished.clone());
                    tokio::spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
                // Descriptors may be used up: no tight loop until some are free.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    };
    let mut until = finished.clone();
    tokio::select! {
        () = accepting => {}
        _ = until.wait_for(|finished| *finished) => {}
    }
    // The last answers; streams that last as long as the guest do not keep it.
    let all = u32::try_from(CONNECTIONS_LIMIT).unwrap_or(u32::MAX);
    drop(tokio::time::timeout(GOODBYE_PATIENCE, connections.acquire_many(all)).await);
}

/// Serves one connection to its end. An error of a connection is its own end only.
async fn serve_connection<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    service: GuestServer<Service>,
    mut finished: watch::Receiver<bool>,
) {
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_concurrent_streams(STREAMS_LIMIT);
    let service = TowerToHyperService::new(service);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        _ = connection.as_mut() => true,
        _ = finished.wait_for(|finished| *finished) => false,
    };
    if !ended {
        connection.as_mut().graceful_shutdown();
        drop(connection.await);
    }
}

/// Binds a unix socket that only the guest's user may connect to. A socket that
/// is left of an earlier guest is replaced.
fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::file("listen on", path, source);
    if path.as_os_str().len() > SOCKET_PATH_LIMIT {
        return Err(failed(io::ErrorKind::InvalidFilename.into()));
    }
    if std::fs::symlink_metadata(path).is_ok_and(|status| status.file_type().is_socket()) {
        std::fs::remove_file(path).map_err(failed)?;
    }
    // No other thread makes files yet.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = StdUnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener.map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    UnixListener::from_std(listener).map_err(failed)
}

/// A listening socket of any kind.
trait Acceptor: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

struct UnixAcceptor(UnixListener);

impl Acceptor for UnixAcceptor {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        self.0.accept().await.map(|(stream, _)| stream)
    }
}

struct VsockAcceptor(VsockListener);

impl Acceptor for VsockAcceptor {
    type Stream = tokio_vsock::VsockStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        let (stream, _) = std::future::poll_fn(|context| self.0.poll_accept(context)).await?;
        Ok(stream)
    }
}
