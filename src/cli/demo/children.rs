//! The processes that the demo starts: its daemon and its registry.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::room::Room;
use crate::client::Client;
use crate::oci::registry_answers;

/// How long a process may take to come up, or to end.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(5);

/// Debian's name of the reference registry.
const REGISTRY: &str = "docker-registry";

/// `kina serve` of this very executable.
pub(super) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts it and waits until it answers.
    pub(super) async fn start(room: &Room) -> anyhow::Result<(Self, Client)> {
        let program = std::env::current_exe().context("find this executable")?;
        let log = File::options().create(true).append(true).open(room.daemon_log())?;
        let child = Command::new(program)
            .arg("serve")
            .arg("--config")
            .arg(room.path().join("config.toml"))
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A Ctrl-C is for the demo, which then ends its daemon.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("start `kina serve`")?;
        let mut daemon = Self { child };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(client) = Client::connect(room.socket()).await {
                return Ok((daemon, client));
            }
            if let Some(status) = daemon.child.try_wait()? {
                bail!("`kina serve` ended ({status}):\n{}", tail(&room.daemon_log()));
            }
            if Instant::now() > deadline {
                bail!("`kina serve` does not answer:\n{}", tail(&room.daemon_log()));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// `kill -9`.
    pub(super) async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("kill the daemon")
    }

    /// Asks it to end.
    pub(super) async fn stop(mut self) -> anyhow::Result<ExitStatus> {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            kill_process(pid, Signal::TERM).context("stop the daemon")?;
        }
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        Ok(ended.context("the daemon does not end")??)
    }
}

/// A registry on loopback.
pub(super) struct Registry {
    child: Child,
    /// Where it listens.
    pub(super) address: SocketAddr,
}

impl Registry {
    /// Starts one; `None` if this machine has none.
    pub(super) async fn start(room: &Room) -> anyhow::Result<Option<Self>> {
        // Somebody else may take the port in between.
        for _ in 0..3 {
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let storage = room.path().join("registry");
            let config = room.path().join("registry.yml");
            let text = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
                storage.display()
            );
            std::fs::write(&config, text)?;
            let log = File::create(room.path().join("registry.log"))?;
            let child = Command::new(REGISTRY)
                .arg("serve")
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .process_group(0)
                .kill_on_drop(true)
                .spawn();
            let mut child = match child {
                Ok(child) => child,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error).with_context(|| format!("start {REGISTRY}")),
            };
            let deadline = Instant::now() + PATIENCE;
            while child.try_wait()?.is_none() {
                if tokio::task::spawn_blocking(move || registry_answers(address)).await? {
                    return Ok(Some(Self { child, address }));
                }
                if Instant::now() > deadline {
                    bail!("{REGISTRY} does not answer on {address}");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        bail!("{REGISTRY} does not start:\n{}", tail(&room.path().join("registry.log")));
    }

    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("stop {REGISTRY}"))
    }
}

/// The last lines of a log.
pub(super) fn tail(path: &Path) -> String {
    const LINES: usize = 12;
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
