//! Collecting what no pod uses any more (GC).

use std::time::Duration;

use kina_cni::AttachmentId;
use tracing::info;

use super::record::NetworkRecord;
use super::{Network, parameters};
use crate::error::{Error, chain};

/// How long a collection waits for plugins that are at work. Meanwhile no other
/// pod's plugins begin.
const GATE_PATIENCE: Duration = Duration::from_secs(2);

/// What a collection has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// The network.
    pub network: String,
    /// Pods whose attachments were left over and are undone now.
    pub removed: Vec<String>,
    /// Whether the plugins were told which attachments are in use: not if the
    /// configuration forbids it or is older than CNI 1.1.0.
    pub plugins_told: bool,
    /// What failed.
    pub errors: Vec<String>,
}

impl Network {
    /// Undoes attachments that no pod has, and tells the plugins which are in
    /// use so that they free all else.
    ///
    /// Attachments in the same cache that are not this daemon's count as in
    /// use: another runtime may have made them.
    ///
    /// # Errors
    /// [`Error::NetworkUnavailable`] without a network; [`Error::PluginsBusy`]
    /// while plugins are at work for longer than pods should wait.
    pub async fn collect(&self) -> Result<Collected, Error> {
        let state = self.state();
        let Some(in_force) = &state.in_force else {
            return Err(Error::NetworkUnavailable { reason: state.message(&self.inner.config) });
        };
        let network = &in_force.network;
        self.detach_strangers().await?;
        let gate = tokio::time::timeout(GATE_PATIENCE, self.inner.gate.write());
        let _alone = gate.await.map_err(|_| Error::PluginsBusy)?;
        let mut valid = Vec::new();
        for (key, record) in self.inner.store.table::<NetworkRecord>().list_each()? {
            // One that cannot be understood may be of this network.
            if record.map_or(true, |record| record.network == network.name()) {
                valid.push(AttachmentId { container_id: key, interface: parameters::INTERFACE.to_owned() });
            }
        }
        let others = self.cached().await.into_iter().filter(|one| !self.is_own(one));
        valid.extend(others.filter(|one| one.network == network.name()).map(|one| one.attachment.id));
        let in_use = valid.len();
        // New pods wait behind it.
        let limit = self.inner.config.delete_deadline;
        let collected = tokio::time::timeout(limit, self.inner.cni.gc(network, &valid)).await;
        let collected = collected.map_err(|_| Error::Deadline { what: "the plugins' GC", limit })??;
        let removed: Vec<String> = collected.removed.into_iter().map(|id| id.container_id).collect();
        info!(
            network = network.name(),
            in_use,
            removed = removed.len(),
            plugins_told = collected.plugins_told,
            "collected what no pod uses any more"
        );
        Ok(Collected {
            network: network.name().to_owned(),
            removed,
            plugins_told: collected.plugins_told,
            errors: collected.errors.iter().map(|error| chain(error)).collect(),
        })
    }
}
