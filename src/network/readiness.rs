//! Whether the plugins of a network are ready for pods.

use kina_cni::Status;

use super::choice::{InForce, Readiness};
use super::{Network, cilium};
use crate::error::chain;

impl Network {
    /// Asks the plugins, or, if their configuration is too old for STATUS, what
    /// stands for it: Cilium's agent for Cilium, and for all others that they
    /// are there and speak the configuration's version.
    pub(super) async fn readiness(&self, in_force: &InForce) -> Readiness {
        match self.ask(in_force).await {
            Ok(()) => Readiness::Ready,
            Err(reason) => Readiness::NotReady(reason),
        }
    }

    async fn ask(&self, InForce { network, .. }: &InForce) -> Result<(), String> {
        let cni = &self.inner.cni;
        // What they say is remembered until their files change.
        cni.validate(network).await.map_err(|error| chain(&error))?;
        match cni.status(network).await {
            Ok(Status::Ready) => Ok(()),
            Ok(Status::NotReady(said)) => Err(said.to_string()),
            Ok(Status::LimitedConnectivity(said)) => {
                Err(format!("{said}; pods that run may have lost their connection"))
            }
            Ok(Status::Unsupported) => {
                if network.plugins().iter().any(|plugin| plugin.plugin_type() == cilium::PLUGIN) {
                    cilium::probe(&*self.inner.node, self.inner.config.status_deadline).await?;
                }
                Ok(())
            }
            Err(error) => Err(chain(&error)),
        }
    }
}
