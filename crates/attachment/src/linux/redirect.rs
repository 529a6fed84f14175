//! Frames that come in by one interface go out by another, before the namespace's
//! stack sees them: an ingress qdisc and a filter that matches everything.
//!
//! The filter is `u32` with an empty key and not `matchall`, which not every kernel
//! has.

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::link::Link;
use super::netlink::Netlink;
use crate::{Damage, Error};

/// Before all other filters: nothing may look at a frame and answer it.
const PRIORITY: u16 = 1;

/// Every kind of frame (`ETH_P_ALL`).
const EVERYTHING: u16 = 3;

/// Where filters for incoming frames hang, on an `ingress` and on a `clsact` qdisc.
const PARENT: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };

/// Joins two interfaces both ways. What is as it should be is left alone.
pub(crate) async fn join(netlink: &Netlink, one: &Link, other: &Link) -> Result<(), Error> {
    for (from, to) in [(one, other), (other, one)] {
        if !is_redirected(netlink, from, to).await? {
            add_qdisc(netlink, from).await?;
            remove_filter(netlink, from).await?;
            add_filter(netlink, from, to).await?;
        }
    }
    Ok(())
}

/// What is wrong between two interfaces that should be joined.
pub(crate) async fn check(netlink: &Netlink, one: &Link, other: &Link) -> Result<Vec<Damage>, Error> {
    let mut damage = Vec::new();
    for (from, to) in [(one, other), (other, one)] {
        if !is_redirected(netlink, from, to).await? {
            damage.push(Damage::NotJoined { from: from.name.clone(), to: to.name.clone() });
        }
    }
    Ok(damage)
}

/// Takes the redirect off an interface; none is fine.
pub(crate) async fn part(netlink: &Netlink, link: &Link) -> Result<(), Error> {
    remove_filter(netlink, link).await
}

async fn is_redirected(netlink: &Netlink, from: &Link, to: &Link) -> Result<bool, Error> {
    let question = RouteNetlinkMessage::GetTrafficFilter(message(from));
    let answer = match netlink.all(question, "list filters of", &from.name).await {
        Ok(answer) => answer,
        // Without a qdisc there are no filters.
        Err(Error::Kernel { source, .. }) if source.number() == Some(libc::EINVAL) => return Ok(false),
        Err(error) => return Err(error),
    };
    let found = answer.into_iter().any(|message| match message {
        RouteNetlinkMessage::NewTrafficFilter(filter) => {
            filter.header.info >> 16 == u32::from(PRIORITY) && leads_to(&filter, to.index)
        }
        _ => false,
    });
    Ok(found)
}

/// Whether a filter takes everything and sends it out by `index`.
fn leads_to(filter: &TcMessage, index: u32) -> bool {
    let options = filter.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let settings: Vec<&TcFilterU32Option> = options
        .flatten()
        .filter_map(|option| match option {
            TcOption::U32(setting) => Some(setting),
            _ => None,
        })
        .collect();
    let everything = settings.iter().any(|setting| match setting {
        TcFilterU32Option::Selector(selector) => selector.keys.iter().all(|key| key.mask == 0),
        _ => false,
    });
    everything
        && settings.iter().any(|setting| match setting {
            TcFilterU32Option::Action(actions) => {
                actions.iter().flat_map(|action| &action.attributes).any(|attribute| match attribute {
                    TcActionAttribute::Options(options) => options.iter().any(|option| match option {
                        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => {
                            mirror.eaction == TcMirrorActionType::EgressRedir && mirror.ifindex == index
                        }
                        _ => false,
                    }),
                    _ => false,
                })
            }
            _ => false,
        })
}

async fn add_qdisc(netlink: &Netlink, link: &Link) -> Result<(), Error> {
    let mut qdisc = TcMessage::with_index(index(link));
    qdisc.header.parent = TcHandle::INGRESS;
    qdisc.header.handle = TcHandle { major: 0xffff, minor: 0 };
    qdisc.attributes.push(TcAttribute::Kind("ingress".to_owned()));
    let qdisc = RouteNetlinkMessage::NewQueueDiscipline(qdisc);
    match netlink.change(qdisc, NLM_F_CREATE | NLM_F_EXCL, "add an ingress qdisc to", &link.name).await {
        // Ours, or a plugin's `clsact`, which does as well.
        Err(Error::Kernel { source, .. }) if source.number() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

async fn add_filter(netlink: &Netlink, from: &Link, to: &Link) -> Result<(), Error> {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];

    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to.index;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];

    let mut filter = message(from);
    filter.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    let filter = RouteNetlinkMessage::NewTrafficFilter(filter);
    netlink.change(filter, NLM_F_CREATE | NLM_F_EXCL, "redirect frames of", &from.name).await
}

async fn remove_filter(netlink: &Netlink, link: &Link) -> Result<(), Error> {
    let filter = RouteNetlinkMessage::DelTrafficFilter(message(link));
    match netlink.change(filter, 0, "remove the redirect of", &link.name).await {
        // No filter, no qdisc, no interface: all the same.
        Err(Error::Kernel { source, .. })
            if matches!(source.number(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// A message about our filter on an interface.
fn message(link: &Link) -> TcMessage {
    let mut message = TcMessage::with_index(index(link));
    message.header.parent = PARENT;
    // The protocol is in network order, the priority above it is not.
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(EVERYTHING.to_be());
    message
}

/// Traffic control counts interfaces with a sign.
fn index(link: &Link) -> i32 {
    link.index.cast_signed()
}
