//! Frames that come in by one interface go out by another, before the namespace's
//! stack sees them: an ingress qdisc and a filter that matches everything, or filters
//! that match what may go out.
//!
//! The filters are `u32`, with an empty key for everything, and not `matchall` or
//! `flower`, which not every kernel has.

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::link::Link;
use super::netlink::Netlink;
use crate::own::{self, Filter, Key};
use crate::{Damage, Error};

/// Before all other filters: nothing may look at a frame and answer it.
const FIRST: u16 = 1;

/// Every kind of frame (`ETH_P_ALL`).
const EVERYTHING: u16 = 3;

/// Where filters for incoming frames hang, on an `ingress` and on a `clsact` qdisc.
const PARENT: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };

/// A filter as it hangs on an interface. One without a target ends the search: the
/// frame goes on to what else looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hung {
    priority: u16,
    protocol: u16,
    keys: Vec<Key>,
    target: Option<u32>,
}

/// Joins two interfaces both ways: everything of `one` goes to `other`, and what
/// `allowed` lets pass (everything without) of `other` to `one`. What is as it should
/// be is left alone. `other` belongs to kina, so that its filters do, too.
pub(crate) async fn join(
    netlink: &Netlink,
    one: &Link,
    other: &Link,
    allowed: Option<&[Filter]>,
) -> Result<(), Error> {
    for (from, to, allowed) in [(one, other, None), (other, one, allowed)] {
        let wanted = wanted(to, allowed);
        if hung(netlink, from, &priorities(allowed)).await? != wanted {
            add_qdisc(netlink, from).await?;
            remove_filters(netlink, from, &priorities(allowed)).await?;
            for filter in &wanted {
                add_filter(netlink, from, filter).await?;
            }
        }
    }
    Ok(())
}

/// What is wrong between two interfaces that should be joined.
pub(crate) async fn check(
    netlink: &Netlink,
    one: &Link,
    other: &Link,
    allowed: Option<&[Filter]>,
) -> Result<Vec<Damage>, Error> {
    let mut damage = Vec::new();
    for (from, to, allowed) in [(one, other, None), (other, one, allowed)] {
        if hung(netlink, from, &priorities(allowed)).await? != wanted(to, allowed) {
            damage.push(Damage::NotJoined { from: from.name.clone(), to: to.name.clone() });
        }
    }
    Ok(damage)
}

/// Takes the redirect off an interface; none is fine.
pub(crate) async fn part(netlink: &Netlink, link: &Link) -> Result<(), Error> {
    remove_filters(netlink, link, &priorities(None)).await
}

/// The priorities that filters of one direction have: all of one have one protocol.
fn priorities(allowed: Option<&[Filter]>) -> Vec<u16> {
    match allowed {
        None => vec![FIRST],
        Some(_) => vec![priority(own::IPV4), priority(own::ARP), priority(own::IPV6)],
    }
}

fn priority(protocol: u16) -> u16 {
    match protocol {
        own::ARP => FIRST + 1,
        own::IPV6 => FIRST + 2,
        _ => FIRST,
    }
}

/// The filters that should hang on an interface, in the order of priorities.
fn wanted(to: &Link, allowed: Option<&[Filter]>) -> Vec<Hung> {
    let everything = [Filter { protocol: EVERYTHING, keys: Vec::new(), passes: true }];
    let mut wanted: Vec<Hung> = allowed
        .unwrap_or(&everything)
        .iter()
        .map(|filter| Hung {
            priority: priority(filter.protocol),
            protocol: filter.protocol,
            keys: filter.keys.clone(),
            target: filter.passes.then_some(to.index),
        })
        .collect();
    wanted.sort_by_key(|filter| filter.priority);
    wanted
}

/// The filters that hang on an interface with one of these priorities.
async fn hung(netlink: &Netlink, from: &Link, priorities: &[u16]) -> Result<Vec<Hung>, Error> {
    let mut question = TcMessage::with_index(index(from));
    question.header.parent = PARENT;
    let question = RouteNetlinkMessage::GetTrafficFilter(question);
    let answer = match netlink.all(question, "list filters of", &from.name).await {
        Ok(answer) => answer,
        // Without a qdisc there are no filters.
        Err(Error::Kernel { source, .. }) if source.number() == Some(libc::EINVAL) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found: Vec<Hung> = answer
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewTrafficFilter(filter) => read(filter),
            _ => None,
        })
        .filter(|filter| priorities.contains(&filter.priority))
        .collect();
    found.sort_by_key(|filter| filter.priority);
    Ok(found)
}

/// A filter with a selector; the tables that they hang in are listed beside them.
fn read(filter: &TcMessage) -> Option<Hung> {
    let [low, high] = [filter.header.info & 0xffff, filter.header.info >> 16];
    let options = filter.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let (mut keys, mut target) = (None, None);
    for option in options.flatten() {
        match option {
            TcOption::U32(TcFilterU32Option::Selector(selector)) => {
                let key = |key: &TcU32Key| Key { offset: key.off, value: key.val, mask: key.mask };
                keys = Some(selector.keys.iter().map(key).filter(|key| key.mask != 0).collect());
            }
            TcOption::U32(TcFilterU32Option::Action(actions)) => {
                target = actions.iter().flat_map(|action| &action.attributes).find_map(redirect_of);
            }
            _ => {}
        }
    }
    Some(Hung {
        priority: u16::try_from(high).ok()?,
        protocol: u16::from_be(u16::try_from(low).ok()?),
        keys: keys?,
        target,
    })
}

/// Where an action sends frames out.
fn redirect_of(attribute: &TcActionAttribute) -> Option<u32> {
    let TcActionAttribute::Options(options) = attribute else { return None };
    options.iter().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))
            if mirror.eaction == TcMirrorActionType::EgressRedir =>
        {
            Some(mirror.ifindex)
        }
        _ => None,
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

/// After those that have the same priority already.
async fn add_filter(netlink: &Netlink, from: &Link, wanted: &Hung) -> Result<(), Error> {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.keys = wanted.keys.iter().map(key).collect();
    if selector.keys.is_empty() {
        // One that everything fits: none at all fits nothing.
        selector.keys.push(TcU32Key::default());
    }
    // A few dozen bytes of a frame at most.
    selector.nkeys = u8::try_from(selector.keys.len()).unwrap_or(u8::MAX);
    let mut options = vec![TcOption::U32(TcFilterU32Option::Selector(selector))];
    if let Some(target) = wanted.target {
        options.push(TcOption::U32(TcFilterU32Option::Action(vec![send_out(target)])));
    }
    let mut filter = message(from, wanted.priority, wanted.protocol);
    filter.attributes = vec![TcAttribute::Kind(TcFilterU32::KIND.to_owned()), TcAttribute::Options(options)];
    let filter = RouteNetlinkMessage::NewTrafficFilter(filter);
    netlink.change(filter, NLM_F_CREATE | NLM_F_EXCL, "redirect frames of", &from.name).await
}

fn key(key: &Key) -> TcU32Key {
    let mut made = TcU32Key::default();
    (made.off, made.val, made.mask) = (key.offset, key.value, key.mask);
    made
}

/// The action that ends a frame's way here and sends it out elsewhere.
fn send_out(index: u32) -> TcAction {
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = index;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    action
}

async fn remove_filters(netlink: &Netlink, link: &Link, priorities: &[u16]) -> Result<(), Error> {
    for priority in priorities {
        // Whatever their protocol.
        let filter = RouteNetlinkMessage::DelTrafficFilter(message(link, *priority, 0));
        match netlink.change(filter, 0, "remove the redirect of", &link.name).await {
            // No filter, no qdisc, no interface: all the same.
            Err(Error::Kernel { source, .. })
                if matches!(source.number(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {}
            other => other?,
        }
    }
    Ok(())
}

/// A message about filters of a priority on an interface.
fn message(link: &Link, priority: u16, protocol: u16) -> TcMessage {
    let mut message = TcMessage::with_index(index(link));
    message.header.parent = PARENT;
    // The protocol is in network order, the priority above it is not.
    message.header.info = u32::from(priority) << 16 | u32::from(protocol.to_be());
    message
}

/// Traffic control counts interfaces with a sign.
fn index(link: &Link) -> i32 {
    link.index.cast_signed()
}
