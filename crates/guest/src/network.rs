//! The pod's network namespace, as the daemon asks for it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use kina_attachment::{Interface, Namespace, Target};
use kina_guest_api::v1;
use kina_guest_api::v1::pod_network::Kind;

use crate::error::Error;
use crate::memory::descriptor_path;
use crate::namespaces::{self, Network};

/// How long the machine's network card may take to appear.
const CARD_PATIENCE: Duration = Duration::from_secs(10);

/// Prepares the namespace that the pod's containers will enter.
pub(crate) async fn prepare(asked: Option<&v1::PodNetwork>) -> Result<Network, Error> {
    match asked.and_then(|network| network.kind.as_ref()) {
        Some(Kind::Host(_)) => Ok(Network::Host),
        Some(Kind::Machine(_)) => Ok(Network::Machine),
        Some(Kind::Loopback(_)) => Ok(Network::Existing(namespaces::loopback()?)),
        Some(Kind::NamespacePath(path)) => File::open(path)
            .map(|file| Network::Existing(file.into()))
            .map_err(|source| Error::file("open network namespace", path, source)),
        Some(Kind::Interface(json)) => {
            let interface = serde_json::from_slice(json)
                .map_err(|error| Error::invalid("network.interface", error.to_string()))?;
            carry_over(&interface).await.map(Network::Existing)
        }
        None => Err(Error::invalid("network", "is missing")),
    }
}

/// A namespace with the machine's network card in it, which looks like `interface`.
/// When it fails, the card goes back with the namespace's end.
async fn carry_over(interface: &Interface) -> Result<OwnedFd, Error> {
    let pod = namespaces::loopback()?;
    let failed = |source| Error::Network { interface: interface.name.clone(), source };
    let inside = Namespace::open(descriptor_path(&pod)).map_err(failed)?;
    let machine = Namespace::current().map_err(failed)?;
    kina_attachment::carry(&machine, &inside, interface.mac, CARD_PATIENCE).await.map_err(failed)?;
    kina_attachment::apply(&inside, &Target::WithMac(interface.mac), interface).await.map_err(failed)?;
    Ok(pod)
}
