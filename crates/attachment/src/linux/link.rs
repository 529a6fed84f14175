//! Single interfaces: find, change, move, remove.

use rtnetlink::LinkUnspec;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoKind};
use rtnetlink::packet_route::link::{InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

use super::netlink::Netlink;
use crate::{Error, Mac};

/// An interface as the kernel shows it.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) kind: Option<InfoKind>,
    /// The number of the other end, of a veth.
    pub(crate) peer: Option<u32>,
    /// Settings, of a VXLAN only.
    pub(crate) vxlan: Vec<InfoVxlan>,
}

impl Link {
    pub(crate) fn is_tap(&self) -> bool {
        self.kind == Some(InfoKind::Tun)
    }

    pub(crate) fn is_vxlan(&self) -> bool {
        self.kind == Some(InfoKind::Vxlan)
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            kind: None,
            peer: None,
            vxlan: Vec::new(),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Link(peer) => link.peer = Some(peer),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = Some(kind),
                            LinkInfo::Data(InfoData::Vxlan(settings)) => link.vxlan = settings,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

/// Refuses what the kernel would, with better words.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let bad = |character: char| character == '/' || character == ':' || character.is_whitespace();
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
        return Err(Error::BadName { name: name.to_owned() });
    }
    Ok(())
}

impl Netlink {
    /// The interface called `name`.
    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let message = LinkUnspec::new_with_name(name).build();
        self.get_link(message, name).await
    }

    /// The interface numbered `index`.
    pub(crate) async fn link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        let message = LinkUnspec::new_with_index(index).build();
        self.get_link(message, &format!("interface {index}")).await
    }

    /// The interface called `name`, which must be there.
    pub(crate) async fn present_link(&self, name: &str) -> Result<Link, Error> {
        self.link(name).await?.ok_or_else(|| Error::NoInterface {
            namespace: self.namespace().to_path_buf(),
            interface: name.to_owned(),
        })
    }

    /// All interfaces.
    pub(crate) async fn links(&self) -> Result<Vec<Link>, Error> {
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answer = self.all(question, "list", "interfaces").await?;
        let links = answer.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(Link::from(link)),
            _ => None,
        });
        Ok(links.collect())
    }

    /// Makes an interface that must not exist yet.
    pub(crate) async fn add_link(&self, message: LinkMessage, name: &str) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewLink(message);
        self.change(message, NLM_F_CREATE | NLM_F_EXCL, "make", name).await
    }

    /// Changes an interface.
    pub(crate) async fn set_link(
        &self,
        message: LinkMessage,
        operation: &'static str,
        name: &str,
    ) -> Result<(), Error> {
        self.change(RouteNetlinkMessage::SetLink(message), 0, operation, name).await
    }

    /// Removes an interface; one that is gone is fine.
    pub(crate) async fn remove_link(&self, name: &str) -> Result<(), Error> {
        let Some(link) = self.link(name).await? else {
            return Ok(());
        };
        let message = RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(link.index).build());
        match self.change(message, 0, "remove", name).await {
            Err(Error::Kernel { source, .. }) if source.number() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    async fn get_link(&self, message: LinkMessage, name: &str) -> Result<Option<Link>, Error> {
        let answer = self.one(RouteNetlinkMessage::GetLink(message), "look for", name).await?;
        Ok(answer.and_then(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(Link::from(link)),
            _ => None,
        }))
    }
}
