//! `kina serve`: the daemon.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sd_notify::NotifyState;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tracing::{info, warn};

use crate::config::{Config, LogFormat};
use crate::metrics::Endpoint;
use crate::runtime::Runtime;
use crate::spans::Export;
use crate::streaming::Streaming;

/// How long calls under way may take to end after a stop was asked for.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the lock of a daemon that was killed may stay with a child that it
/// had forked and that has not got to its exec, which lets go of it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// How long the network's plugins may take for their first answer before the
/// daemon serves without it. The kubelet takes a node out of service as soon as
/// it hears that there is no network, even if that is of a daemon's first moment.
const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// Flags of `kina serve`. Each overrides the configuration file.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file [default: /etc/kina/config.toml, on a Mac ~/.kina/config.toml, if it
    /// exists].
    #[arg(long)]
    config: Option<PathBuf>,
    /// Overrides `root`.
    #[arg(long)]
    root: Option<PathBuf>,
    /// Overrides `run`.
    #[arg(long)]
    run: Option<PathBuf>,
    /// Overrides `socket`.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Overrides `cgroup_parent`.
    #[arg(long)]
    cgroup_parent: Option<String>,
    /// Overrides `guest.program`.
    #[arg(long)]
    guest: Option<PathBuf>,
    /// Overrides `network.config_directory`.
    #[arg(long)]
    network_config_directory: Option<PathBuf>,
    /// Overrides `log.level`.
    #[arg(long)]
    log_level: Option<String>,
    /// Overrides `log.format`.
    #[arg(long)]
    log_format: Option<LogFormat>,
}

impl Arguments {
    /// The configuration file with the flags over it, checked.
    fn config(&self) -> anyhow::Result<Config> {
        fn set<T: Clone>(value: &mut T, flag: Option<&T>) {
            if let Some(flag) = flag {
                value.clone_from(flag);
            }
        }
        let mut config = Config::load(self.config.as_deref())?;
        set(&mut config.root, self.root.as_ref());
        set(&mut config.run, self.run.as_ref());
        set(&mut config.socket, self.socket.as_ref());
        set(&mut config.cgroup_parent, self.cgroup_parent.as_ref());
        set(&mut config.guest.program, self.guest.as_ref());
        set(&mut config.network.config_directory, self.network_config_directory.as_ref());
        set(&mut config.log.level, self.log_level.as_ref());
        set(&mut config.log.format, self.log_format.as_ref());
        config.check()?;
        Ok(config)
    }
}

/// Makes a directory, and where it really is: the kernel tells of mounts below it by
/// that path only.
fn real_directory(path: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
    path.canonicalize().with_context(|| format!("find out where {} is", path.display()))
}

/// Runs the daemon until it is told to stop.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut config = arguments.config()?;
    crate::telemetry::start(&config.log)?;
    config.run = real_directory(&config.run)?;
    let runtime_config = config.runtime()?;
    let _lock = lock(&config.run.join("kina.lock"))?;
    let executor = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = executor.block_on(serve(&config, runtime_config));
    // Effects that still run are found again by the next daemon.
    executor.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(config: &Config, runtime_config: crate::runtime::RuntimeConfig) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let traces = match config.tracing.runtime()? {
        Some(export) => Some(Export::start(&export)?),
        None => None,
    };
    let path = config.socket_path();
    let listener = bind(&path).await?;
    let streaming_config = config.streaming.runtime()?;
    let metrics_address = config.metrics.address()?;
    let open = async {
        let runtime = Runtime::open(runtime_config).await?;
        let streaming = Streaming::start(streaming_config, runtime.clone()).await?;
        runtime.network().asked(FIRST_ANSWER).await;
        let metrics = match metrics_address {
            Some(address) => Some(Endpoint::start(address, runtime.clone()).await?),
            None => None,
        };
        anyhow::Ok((runtime, streaming, metrics))
    };
    let (runtime, streaming, metrics) = tokio::select! {
        opened = open => opened.inspect_err(|_| {
            // Nobody listens on it any more.
            let _ = std::fs::remove_file(&path);
        })?,
        () = signals.stop() => {
            info!("told to stop before everything was open");
            let _ = std::fs::remove_file(&path);
            return Ok(());
        }
    };
    let streams = streaming.base();
    if let Some(metrics) = &metrics {
        info!(address = %metrics.address(), "metrics are served");
    }
    info!(socket = %path.display(), streams, pid = std::process::id(), version = env!("KINA_VERSION"), "kina serves");

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = crate::service::server(runtime.clone(), streaming.clone()).serve_with_incoming_shutdown(
        UnixListenerStream::new(listener),
        async {
            let _ = stopped.await;
        },
    );
    let mut served = tokio::spawn(served);
    notify(&[NotifyState::Ready, NotifyState::Status("serves")]);

    tokio::select! {
        () = signals.stop() => {}
        result = &mut served => {
            let _ = std::fs::remove_file(&path);
            result?.context("serve")?;
            bail!("the server ended by itself");
        }
    }
    info!("stopping; pods stay as they are");
    notify(&[NotifyState::Stopping]);
    // Nobody new gets in; the file goes first, so that callers fail at once.
    let removed = std::fs::remove_file(&path);
    let _ = stop.send(());
    runtime.end_streams();
    drop(metrics);
    let ended = async {
        // Their clients see the connection end; commands end with it, pods do not.
        streaming.stop().await;
        served.await
    };
    tokio::select! {
        result = tokio::time::timeout(DRAIN, ended) => match result {
            Ok(served) => served??,
            Err(_) => warn!("calls were still under way after {DRAIN:?}"),
        },
        () = signals.stop() => warn!("told twice: calls under way are cut off"),
    }
    runtime.close().await;
    if let Some(traces) = traces {
        traces.stop().await;
    }
    removed.with_context(|| format!("remove {}", path.display()))
}

/// What tells the daemon to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Makes sure that this is the only daemon on these directories. The lock goes
/// with the process, however that ends.
fn lock(path: &Path) -> anyhow::Result<File> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    let locked = loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
            other => break other,
        }
    };
    match locked {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut owner = String::new();
            let _ = (&file).take(32).read_to_string(&mut owner);
            let owner = owner.trim();
            bail!(
                "another kina (process {owner}) uses {}; stop it or set another run directory",
                path.display()
            );
        }
        Err(error) => return Err(error).with_context(|| format!("lock {}", path.display())),
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Listens on a socket that only root and its group may use. A socket that
/// nobody listens on any more is replaced.
async fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{} is there and is no socket; remove it or set another socket", path.display());
        }
        _ => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {}
        // A full queue, too, is somebody's.
        Ok(_) | Err(_) => {
            bail!("something else listens on {}; stop it or set another socket", path.display())
        }
    }
    // Made under another name and renamed when its mode is right: it is never
    // there with a wider one.
    let fresh = fresh_name(path);
    let _ = std::fs::remove_file(&fresh);
    let bound = || format!("listen on {}", path.display());
    let listener = UnixListener::bind(&fresh).with_context(bound)?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(0o660)).with_context(bound)?;
    std::fs::rename(&fresh, path).with_context(bound)?;
    Ok(listener)
}

/// Another name in the same directory, no longer than this one: a socket's path
/// has a limit.
fn fresh_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().as_bytes().to_vec();
    if let Some(last) = name.last_mut() {
        *last = if *last == b'~' { b'-' } else { b'~' };
    }
    path.with_file_name(OsStr::from_bytes(&name))
}

/// Tells the service manager, if there is one.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "tell the service manager");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_name_is_another_and_no_longer() {
        for path in ["/run/kina/kina.sock", "/run/kina/k", "/run/~", "/run/kin\u{e4}"] {
            let fresh = fresh_name(Path::new(path));
            assert_ne!(fresh, Path::new(path));
            assert_eq!(fresh.as_os_str().len(), path.len());
            assert_eq!(fresh.parent(), Path::new(path).parent());
        }
    }

    #[tokio::test]
    async fn only_a_dead_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = bind(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(bind(&path).await.unwrap_err().to_string().contains("something else listens on"));
        drop(listener);
        assert!(path.exists());
        drop(bind(&path).await.unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(bind(&path).await.unwrap_err().to_string().contains("is no socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn the_second_owner_of_a_lock_hears_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kina.lock");
        let first = lock(&path).unwrap();
        let error = lock(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        lock(&path).unwrap();
    }
}
