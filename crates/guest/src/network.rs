//! The pod's network namespace, as the daemon asks for it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use kina_attachment::{Interface, Namespace, Target};
use kina_guest_api::v1;
use kina_guest_api::v1::pod_network::Kind;

use crate::error::Error;
use crate::ids::Ids;
use crate::namespaces::{self, Network, Owned};
use crate::unattached::descriptor_path;

/// How long the machine's network card may take to appear.
const CARD_PATIENCE: Duration = Duration::from_secs(10);

/// Prepares the namespace that the pod's containers will enter. With mapped ids it is
/// owned by the pod's user namespace, made here or found by one that exists.
pub(crate) async fn prepare(asked: Option<&v1::PodNetwork>, ids: &Ids) -> Result<Network, Error> {
    match asked.and_then(|network| network.kind.as_ref()) {
        Some(Kind::Host(_)) => Ok(Network::Host),
        Some(Kind::Machine(_)) => Ok(Network::Machine),
        Some(Kind::Loopback(_)) => loopback(ids),
        Some(Kind::NamespacePath(path)) => {
            let network: OwnedFd = File::open(path)
                .map_err(|source| Error::file("open network namespace", path, source))?
                .into();
            if ids.mapping().is_none() {
                return Ok(Network::Existing(network));
            }
            let user = kina_userns::owner(&network)
                .map_err(|source| Error::UserNamespace { whose: "the pod".to_owned(), source })?;
            Ok(Network::Owned(Owned { user, network }))
        }
        Some(Kind::Interface(json)) => {
            let interface = serde_json::from_slice(json)
                .map_err(|error| Error::invalid("network.interface", error.to_string()))?;
            let made = loopback(ids)?;
            if let Network::Existing(pod) | Network::Owned(Owned { network: pod, .. }) = &made {
                carry_over(&interface, pod).await?;
            }
            Ok(made)
        }
        None => Err(Error::invalid("network", "is missing")),
    }
}

/// A namespace with loopback only.
fn loopback(ids: &Ids) -> Result<Network, Error> {
    match ids.mapping() {
        None => namespaces::loopback().map(Network::Existing),
        Some(mapping) => namespaces::owned_loopback(mapping).map(Network::Owned),
    }
}

/// Moves the machine's network card into a namespace and has it look like `interface`.
/// When it fails, the card goes back with the namespace's end.
async fn carry_over(interface: &Interface, pod: &OwnedFd) -> Result<(), Error> {
    let failed = |source| Error::Network { interface: interface.name.clone(), source };
    let inside = Namespace::open(descriptor_path(pod)).map_err(failed)?;
    let machine = Namespace::current().map_err(failed)?;
    kina_attachment::carry(&machine, &inside, interface.mac, CARD_PATIENCE).await.map_err(failed)?;
    kina_attachment::apply(&inside, &Target::WithMac(interface.mac), interface).await.map_err(failed)
}
