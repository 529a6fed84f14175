//! Where the daemon listens, for the commands that ask it.

use std::path::PathBuf;

use crate::client::Client;
use crate::config::Config;

/// Which daemon a command asks.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct DaemonSocket {
    /// The daemon's socket [default: as the configuration file has it].
    #[arg(long, env = "KINA_SOCKET", global = true, value_parser = path)]
    socket: Option<PathBuf>,
}

/// A path, also in the form that crictl and the kubelet want.
fn path(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix://").unwrap_or(text) {
        "" => Err("name a socket".to_owned()),
        text => Ok(text.into()),
    }
}

impl DaemonSocket {
    /// The socket.
    pub(super) fn path(&self) -> anyhow::Result<PathBuf> {
        match &self.socket {
            Some(socket) => Ok(socket.clone()),
            None => Ok(Config::load(None)?.socket_path()),
        }
    }

    /// A connection to the daemon.
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(self.path()?).await?)
    }
}

/// Runs a command to its end on one thread.
pub(super) fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
