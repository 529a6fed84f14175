//! The task that keeps the state of the network true.

use std::sync::Arc;
use std::time::Duration;

use kina_cni::load_directory;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Network;
use super::choice::{NetworkState, Readiness};
use crate::error::chain;

/// How often plugins are asked that are not ready, and that are.
const IMPATIENT: Duration = Duration::from_millis(500);
const CALM: Duration = Duration::from_secs(5);

/// How long the directory must be quiet before it is read: who writes several
/// files shall be done with all of them.
const QUIET: Duration = Duration::from_millis(100);
/// For no longer than that.
const NOISE: Duration = Duration::from_secs(2);

/// How often is collected what no pod uses any more.
const COLLECT: Duration = Duration::from_secs(3600);

/// Ready to be collected at once; or, after a collection that could not be
/// made, soon.
const COLLECT_AGAIN: Duration = Duration::from_secs(10);

impl Network {
    /// Looks at the configurations and asks the plugins, for ever: at every
    /// change of the directory, and now and then.
    pub async fn monitor(self) {
        let mut changes = None;
        let mut collect_at = Instant::now();
        loop {
            if changes.is_none() {
                let directory = &self.inner.config.config_directory;
                // It may not be there yet: looked for again at the next turn.
                changes = self.inner.node.watch_directory(directory).await.ok();
                self.rescan().await;
            }
            tokio::select! {
                // What has changed is looked at before what was is asked for long.
                biased;
                alive = changed(&mut changes) => {
                    if !alive {
                        changes = None;
                    }
                    self.rescan().await;
                    continue;
                }
                () = self.ask_plugins() => {}
            }
            let state = self.state();
            if state.is_ready() && Instant::now() >= collect_at {
                collect_at = Instant::now() + self.collect_now().await;
            }
            let calm = state.in_force.is_none() || state.is_ready();
            tokio::select! {
                alive = changed(&mut changes) => if !alive {
                    changes = None;
                },
                () = self.inner.wake.notified() => {}
                () = tokio::time::sleep(if calm { CALM } else { IMPATIENT }) => {}
            }
            self.rescan().await;
        }
    }

    /// Makes the monitor look at once.
    pub fn look(&self) {
        self.inner.wake.notify_one();
    }

    /// Reads the configurations.
    pub(super) async fn rescan(&self) {
        let found = load_directory(&self.inner.host, &self.inner.config.config_directory).await;
        self.replace(|state| state.next(found));
    }

    async fn ask_plugins(&self) {
        let Some(in_force) = self.state().in_force.clone() else { return };
        let readiness = self.readiness(&in_force).await;
        self.replace(|state| match &state.in_force {
            Some(now) if Arc::ptr_eq(now, &in_force) => NetworkState { readiness, ..state.clone() },
            _ => state.clone(),
        });
    }

    /// Publishes a new state, and tells the log what has changed for pods.
    fn replace(&self, next: impl FnOnce(&NetworkState) -> NetworkState) {
        self.inner.state.send_if_modified(|state| {
            let next = next(state);
            if next == **state {
                return false;
            }
            let config = &self.inner.config;
            let (before, now) = (state.message(config), next.message(config));
            let network = next.in_force.as_ref().map(|one| one.network.name()).unwrap_or_default();
            let was_ready = state.is_ready();
            if next.is_ready() && !was_ready {
                info!(network, "the pods' network is ready");
            }
            if now != before && !now.is_empty() && next.readiness != Readiness::Unknown {
                warn!(network, ready = next.is_ready(), "{now}");
            }
            *state = Arc::new(next);
            true
        });
    }

    async fn collect_now(&self) -> Duration {
        match self.collect().await {
            Ok(collected) => {
                for error in &collected.errors {
                    warn!(network = collected.network, error, "collect what no pod uses any more");
                }
                COLLECT
            }
            Err(error) => {
                info!(error = chain(&error), "what no pod uses any more is collected later");
                COLLECT_AGAIN
            }
        }
    }
}

/// Waits for a change of the directory and until it is quiet again; whether
/// more can come. Without a watch it waits for ever.
async fn changed(changes: &mut Option<mpsc::Receiver<()>>) -> bool {
    let Some(receiver) = changes else { return std::future::pending().await };
    if receiver.recv().await.is_none() {
        return false;
    }
    let noise = Instant::now() + NOISE;
    while Instant::now() < noise {
        match tokio::time::timeout(QUIET, receiver.recv()).await {
            Ok(Some(())) => {}
            Ok(None) => return false,
            Err(_) => break,
        }
    }
    true
}
