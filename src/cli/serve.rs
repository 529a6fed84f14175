//! `kina serve`: the daemon.

use std::fs::{File, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use sd_notify::NotifyState;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tracing::info;

use crate::config::{Config, LogFormat};
use crate::runtime::Runtime;

/// How long calls under way may take to end after a stop was asked for.
const DRAIN: Duration = Duration::from_secs(10);

/// Flags of `kina serve`. Each overrides the configuration file.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Configuration file [default: /etc/kina/config.toml, if it exists].
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
        set(&mut config.log.level, self.log_level.as_ref());
        set(&mut config.log.format, self.log_format.as_ref());
        config.check()?;
        Ok(config)
    }
}

/// Runs the daemon until it is told to stop.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.config()?;
    let runtime_config = config.runtime()?;
    crate::telemetry::start(&config.log)?;
    std::fs::create_dir_all(&config.run).with_context(|| format!("create {}", config.run.display()))?;
    let _lock = lock(&config.run.join("kina.lock"))?;
    let executor = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = executor.block_on(serve(&config, runtime_config));
    // Effects that still run are found again by the next daemon.
    executor.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(config: &Config, runtime_config: crate::runtime::RuntimeConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let path = config.socket_path();
    let listener = bind(&path).await?;
    let runtime = Runtime::open(runtime_config).await?;
    info!(socket = %path.display(), pid = std::process::id(), version = env!("KINA_VERSION"), "kina serves");

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = crate::service::server(runtime)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            let _ = stopped.await;
        });
    let server = tokio::spawn(server);
    notify(NotifyState::Ready);

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping; pods stay as they are");
    notify(NotifyState::Stopping);
    // Nobody new gets in; the file goes first, so that callers fail at once.
    let removed = std::fs::remove_file(&path);
    let _ = stop.send(());
    tokio::select! {
        result = tokio::time::timeout(DRAIN, server) => match result {
            Ok(served) => served??,
            Err(_) => info!("calls were still under way after {DRAIN:?}"),
        },
        _ = terminate.recv() => info!("told twice"),
        _ = interrupt.recv() => info!("told twice"),
    }
    removed.with_context(|| format!("remove {}", path.display()))
}

/// Makes sure that this is the only daemon on these directories. The lock goes
/// with the process, however that ends.
fn lock(path: &Path) -> anyhow::Result<File> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut owner = String::new();
        let _ = (&file).take(32).read_to_string(&mut owner);
        bail!("another kina (process {}) uses {}; stop it or set another run directory", owner.trim(), path.display());
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Listens on a socket that only root and its group may use. A file that nobody
/// listens on any more is replaced.
async fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        bail!("something else listens on {}; stop it or set another socket", path.display());
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    // Made under another name and renamed when its mode is right: it is never
    // there with a wider one.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push("~");
    let fresh = PathBuf::from(fresh);
    let _ = std::fs::remove_file(&fresh);
    let bound = || format!("listen on {}", path.display());
    let listener = UnixListener::bind(&fresh).with_context(bound)?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(0o660)).with_context(bound)?;
    std::fs::rename(&fresh, path).with_context(bound)?;
    Ok(listener)
}

/// Tells the service manager, if there is one.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "tell the service manager");
    }
}
