//! Who may send into a tunnel.
//!
//! VXLAN has no authentication: whoever can send to the UDP port can put frames into
//! a tunnel. So both ends keep a table of which peer belongs to which network
//! identifier, and drop everything else that claims one of these identifiers. Other
//! users of VXLAN on the same port are left alone.
//!
//! The check stands where the packet is about to be delivered, after IPv4 has put
//! fragments together. IPv6 does that only later, so there the first fragment must
//! carry the identifier, or it is dropped.
//!
//! Forwarded packets with one of our identifiers are dropped too: a pod's own packet,
//! masqueraded as its node's, would else pass for the node's tunnel.

use std::net::IpAddr;
use std::path::Path;

use super::namespace::Namespace;
use super::nftables::{Attributes, Base, Family, Kind, Rule, Transaction, Verdict, count};
use super::tunnel::Tunnel;
use crate::{Error, Refusal};

/// Sets: peers with their identifiers, and the identifiers alone.
const PEERS4: &str = "peers4";
const PEERS6: &str = "peers6";
const IDENTIFIERS: &str = "identifiers";

/// Hooks (`linux/netfilter.h`).
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;

/// Before connection tracking and every ordinary filter (`NF_IP_PRI_RAW`).
const RAW: i32 = -300;

/// Facts about a packet.
const FAMILY: u32 = 15;
const PROTOCOL: u32 = 16;

const IPV4: u8 = 2;
const IPV6: u8 = 10;
const UDP: u8 = 17;

/// Where a UDP datagram has the VXLAN network identifier, and how long it is
/// (RFC 7348 section 5).
const IDENTIFIER_AT: u32 = 12;
const IDENTIFIER_LENGTH: u32 = 3;

/// nft's numbers for what is in a set, so that `nft list ruleset` can show it: an
/// IPv4 address, an IPv6 address, a mark, which is any four bytes; six bits each.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_MARK: u32 = 19;

/// Lets the peer of `tunnel` in, and nobody else. Makes what is missing of the table.
pub(super) async fn allow(namespace: &Namespace, tunnel: &Tunnel) -> Result<(), Error> {
    let wanted = tunnel.clone();
    let done = namespace.run(move || {
        let table = &wanted.table;
        let chains = chains(wanted.port);
        let transaction = if is_complete(table, &chains)? {
            Transaction::new(Family::Inet)
        } else {
            rebuild(table, chains)
        };
        transaction
            .create(Kind::NewElement, &element(table, peers(&wanted.remote), &peer_key(&wanted)))
            .create(Kind::NewElement, &element(table, IDENTIFIERS, &identifier_key(wanted.vni)))
            .commit()
    });
    done.await?.map_err(|refusal| failed(namespace, tunnel, "let the peer into", refusal))
}

/// Takes the peer of `tunnel` out again. The table stays: another tunnel may be on its
/// way into it.
pub(super) async fn forbid(namespace: &Namespace, tunnel: &Tunnel) -> Result<(), Error> {
    let wanted = tunnel.clone();
    let done = namespace.run(move || {
        let delete = |set, key: &[u8]| {
            let element = element(&wanted.table, set, key);
            match Transaction::new(Family::Inet).delete(Kind::DeleteElement, &element).commit() {
                Err(refusal) if is_missing(&refusal) => Ok(()),
                other => other,
            }
        };
        delete(peers(&wanted.remote), &peer_key(&wanted))?;
        delete(IDENTIFIERS, &identifier_key(wanted.vni))
    });
    done.await?.map_err(|refusal| failed(namespace, tunnel, "take the peer out of", refusal))
}

/// Whether the peer is let in and everybody else kept out.
pub(super) async fn is_guarded(namespace: &Namespace, tunnel: &Tunnel) -> Result<bool, Error> {
    let wanted = tunnel.clone();
    let looked = namespace.run(move || {
        let table = &wanted.table;
        let has = |set, key: &[u8]| count(Family::Inet, Kind::GetElement, &element(table, set, key), false);
        Ok(is_complete(table, &chains(wanted.port))?
            && has(peers(&wanted.remote), &peer_key(&wanted))? == 1
            && has(IDENTIFIERS, &identifier_key(wanted.vni))? == 1)
    });
    match looked.await? {
        Err(refusal) if is_missing(&refusal) => Ok(false),
        other => other.map_err(|refusal| failed(namespace, tunnel, "look at", refusal)),
    }
}

/// A chain: its name, its hook and its rules.
type Chain = (&'static str, u32, Vec<Rule>);

/// The table's chains. For the namespace's own thread.
fn chains(port: u16) -> Vec<Chain> {
    let mut chains = vec![("input", INPUT, input(port)), ("forward", FORWARD, strangers(port))];
    // Where nothing is tracked there is nothing to keep out of tracking, and the
    // kernel may not know how.
    if Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists() {
        let ours = datagram(port).load(Base::Transport, IDENTIFIER_AT, IDENTIFIER_LENGTH, 0);
        let ours = ours.member_of(IDENTIFIERS).no_track();
        chains.push(("untracked-in", PREROUTING, vec![ours.clone()]));
        chains.push(("untracked-out", OUTPUT, vec![ours]));
    }
    chains
}

/// Whether the table has all its rules.
fn is_complete(table: &str, chains: &[Chain]) -> Result<bool, Refusal> {
    for (name, _, rules) in chains {
        let chain = Attributes::new().text(1, table).text(2, name);
        match count(Family::Inet, Kind::GetRule, &chain, true) {
            Ok(found) if found == rules.len() => {}
            Ok(_) => return Ok(false),
            Err(refusal) if is_missing(&refusal) => return Ok(false),
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(true)
}

/// The whole table with its rules. What is in the sets stays there.
fn rebuild(table: &str, chains: Vec<Chain>) -> Transaction {
    let mut transaction =
        Transaction::new(Family::Inet).create(Kind::NewTable, &Attributes::new().text(1, table));
    let pair = |address| address << 6 | TYPE_MARK;
    let sets =
        [(PEERS4, pair(TYPE_IPV4), 8, 1), (PEERS6, pair(TYPE_IPV6), 20, 2), (IDENTIFIERS, TYPE_MARK, 4, 3)];
    for (name, kind, length, number) in sets {
        let set = Attributes::new()
            .text(1, table)
            .text(2, name)
            .number(3, 0)
            .number(4, kind)
            .number(5, length)
            .number(10, number);
        transaction = transaction.create(Kind::NewSet, &set);
    }
    for (name, hook, rules) in chains {
        let place = Attributes::new().number(1, hook).bytes(2, &RAW.to_be_bytes());
        let chain = Attributes::new().text(1, table).text(3, name).nest(4, place).text(7, "filter");
        transaction = transaction.create(Kind::NewChain, &chain);
        let all = Attributes::new().text(1, table).text(2, name);
        transaction = transaction.delete(Kind::DeleteRule, &all);
        for rule in rules {
            let rule = Attributes::new().text(1, table).text(2, name).nest(4, rule.into_attributes());
            transaction = transaction.create(Kind::NewRule, &rule);
        }
    }
    transaction
}

/// What may come in: each peer with its own identifier.
fn input(port: u16) -> Vec<Rule> {
    let known = |family, source, length: u32, set| {
        Rule::new()
            .fact_is(FAMILY, family)
            .fact_is(PROTOCOL, UDP)
            .bytes_are(Base::Transport, 2, &port.to_be_bytes())
            .load(Base::Network, source, length, 0)
            .load(Base::Transport, IDENTIFIER_AT, IDENTIFIER_LENGTH, length / 4)
            .member_of(set)
            .verdict(Verdict::Accept)
    };
    let mut rules = vec![known(IPV4, 12, 4, PEERS4), known(IPV6, 8, 16, PEERS6)];
    rules.extend(strangers(port));
    rules
}

/// Drops what claims one of our identifiers, and what is too short to say.
fn strangers(port: u16) -> Vec<Rule> {
    let identified = || datagram(port).load(Base::Transport, IDENTIFIER_AT, IDENTIFIER_LENGTH, 0);
    vec![
        identified().member_of(IDENTIFIERS).count().verdict(Verdict::Drop),
        identified().verdict(Verdict::Accept),
        datagram(port).count().verdict(Verdict::Drop),
    ]
}

fn datagram(port: u16) -> Rule {
    Rule::new().fact_is(PROTOCOL, UDP).bytes_are(Base::Transport, 2, &port.to_be_bytes())
}

fn element(table: &str, set: &str, key: &[u8]) -> Attributes {
    let key = Attributes::new().nest(1, Attributes::new().bytes(1, key));
    Attributes::new().text(1, table).text(2, set).nest(3, Attributes::new().nest(1, key))
}

fn peers(remote: &IpAddr) -> &'static str {
    if remote.is_ipv4() { PEERS4 } else { PEERS6 }
}

/// The address, then the identifier.
fn peer_key(tunnel: &Tunnel) -> Vec<u8> {
    let mut key = match tunnel.remote {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    key.extend(identifier_key(tunnel.vni));
    key
}

/// As three bytes of the packet look in a register.
fn identifier_key(vni: u32) -> [u8; 4] {
    let [_, a, b, c] = vni.to_be_bytes();
    [a, b, c, 0]
}

fn is_missing(refusal: &Refusal) -> bool {
    refusal.number() == Some(libc::ENOENT)
}

fn failed(namespace: &Namespace, tunnel: &Tunnel, operation: &'static str, source: Refusal) -> Error {
    Error::Kernel {
        operation,
        object: format!("the packet filter {} of tunnel {}", tunnel.table, tunnel.vni),
        namespace: namespace.path().to_path_buf(),
        source,
    }
}
