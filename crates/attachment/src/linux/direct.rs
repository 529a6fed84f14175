//! The pod's containers run on the node's kernel and enter the sandbox namespace
//! themselves. There is nothing to make.

use super::inspect;
use super::namespace::Namespace;
use super::netlink::Netlink;
use crate::{Error, Interface};

/// Checks that the namespace is fit for containers: loopback is up, and the
/// interface is there, up and with an address. Returns what the interface has.
pub async fn check(namespace: &Namespace, interface: &str) -> Result<Interface, Error> {
    let netlink = Netlink::open(namespace).await?;
    let unfit = |interface: &str, problem| Error::Unfit {
        namespace: namespace.path().to_path_buf(),
        interface: interface.to_owned(),
        problem,
    };
    if !netlink.present_link("lo").await?.up {
        return Err(unfit("lo", "is down: bring it up before any container starts"));
    }
    if !netlink.present_link(interface).await?.up {
        return Err(unfit(interface, "is down"));
    }
    let interface = inspect::read(&netlink, interface).await?;
    if interface.addresses.is_empty() {
        return Err(unfit(&interface.name, "has no address"));
    }
    Ok(interface)
}
