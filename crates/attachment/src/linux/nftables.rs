//! The part of the nf_tables netlink interface that the packet filters here
//! need: tables, chains, rules and sets, changed in transactions.
//!
//! Spoken directly and not through `nft`, because the machine's end needs the same
//! filter and a machine's system is one static program.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr};

use super::netlink::words;
use crate::Refusal;

/// `NETLINK_NETFILTER`.
const NETFILTER: isize = 12;

/// The header of a netlink message and, after it, netfilter's own.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

/// Where a table's packets come from (`NFPROTO_*`).
#[derive(Clone, Copy)]
pub(super) enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// A device, whatever comes in by it.
    Netdev = 5,
}

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;

/// The frame of a transaction: `NFNL_MSG_BATCH_BEGIN` and `_END`.
const BEGIN: u16 = 16;
const END: u16 = 17;

const NESTED: u16 = 1 << 15;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Kinds of nf_tables messages.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    NewRule = 6,
    GetRule = 7,
    DeleteRule = 8,
    NewSet = 9,
    NewElement = 12,
    GetElement = 13,
    DeleteElement = 14,
}

/// Attributes of one message or of one nest, as they go to the kernel.
#[derive(Clone, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // Longer values do not occur: the longest is a rule.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// A list of expressions: what a rule is made of (`linux/netfilter/nf_tables.h`).
/// Registers are the 32-bit ones, counted from 0.
#[derive(Clone, Default)]
pub(super) struct Rule(Attributes);

/// `NFT_REG32_00`.
const FIRST_REGISTER: u32 = 8;

impl Rule {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn expression(self, name: &str, data: Attributes) -> Self {
        let expression = Attributes::new().text(1, name).nest(2, data);
        Self(self.0.nest(1, expression))
    }

    /// Goes on if a fact about the packet is `value` (`NFT_META_*`).
    pub(super) fn fact_is(self, fact: u32, value: u8) -> Self {
        let load = Attributes::new().number(1, FIRST_REGISTER).number(2, fact);
        self.expression("meta", load).equals(&[value])
    }

    /// Goes on if the bytes at `offset` of a header are `value`.
    pub(super) fn bytes_are(self, base: Base, offset: u32, value: &[u8]) -> Self {
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.load(base, offset, length, 0).equals(value)
    }

    /// Loads bytes of the packet. Goes on if the packet has them.
    pub(super) fn load(self, base: Base, offset: u32, length: u32, register: u32) -> Self {
        let data = Attributes::new()
            .number(1, FIRST_REGISTER + register)
            .number(2, base as u32)
            .number(3, offset)
            .number(4, length);
        self.expression("payload", data)
    }

    fn equals(self, value: &[u8]) -> Self {
        const EQUAL: u32 = 0;
        let data = Attributes::new()
            .number(1, FIRST_REGISTER)
            .number(2, EQUAL)
            .nest(3, Attributes::new().bytes(1, value));
        self.expression("cmp", data)
    }

    /// Goes on if the registers from 0 on are an element of `set`.
    pub(super) fn member_of(self, set: &str) -> Self {
        self.expression("lookup", Attributes::new().text(1, set).number(2, FIRST_REGISTER))
    }

    /// Counts the packets that come this far.
    pub(super) fn count(self) -> Self {
        self.expression("counter", Attributes::new())
    }

    /// Keeps connection tracking from the packet.
    pub(super) fn no_track(self) -> Self {
        self.expression("notrack", Attributes::new())
    }

    /// Ends with a verdict.
    pub(super) fn verdict(self, verdict: Verdict) -> Self {
        const VERDICT_REGISTER: u32 = 0;
        let verdict = Attributes::new().number(1, verdict as u32);
        let data = Attributes::new().number(1, VERDICT_REGISTER).nest(2, Attributes::new().nest(2, verdict));
        self.expression("immediate", data)
    }

    pub(super) fn into_attributes(self) -> Attributes {
        self.0
    }
}

/// Where bytes of a packet are counted from.
#[derive(Clone, Copy)]
pub(super) enum Base {
    Network = 1,
    Transport = 2,
}

#[derive(Clone, Copy)]
pub(super) enum Verdict {
    Drop = 0,
    Accept = 1,
}

/// Messages that take effect together or not at all.
pub(super) struct Transaction {
    family: Family,
    bytes: Vec<u8>,
    messages: u32,
}

impl Transaction {
    pub(super) fn new(family: Family) -> Self {
        let mut transaction = Self { family, bytes: Vec::new(), messages: 0 };
        transaction.push(BEGIN, REQUEST, 0, SUBSYSTEM, &Attributes::new());
        transaction
    }

    /// Makes something, or changes nothing if it is there. Rules come after those that
    /// are there.
    pub(super) fn create(mut self, kind: Kind, attributes: &Attributes) -> Self {
        self.push(message(kind), REQUEST | ACK | CREATE | APPEND, self.family as u8, 0, attributes);
        self
    }

    /// Removes something.
    pub(super) fn delete(mut self, kind: Kind, attributes: &Attributes) -> Self {
        self.push(message(kind), REQUEST | ACK, self.family as u8, 0, attributes);
        self
    }

    fn push(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &Attributes) {
        self.messages += 1;
        push(&mut self.bytes, kind, flags, self.messages, family, resource, attributes);
    }

    /// Commits. Blocks no longer than the kernel takes to do it. For the namespace's
    /// own thread: the socket is made here.
    pub(super) fn commit(mut self) -> Result<(), Refusal> {
        self.push(END, REQUEST, 0, SUBSYSTEM, &Attributes::new());
        exchange(&self.bytes).map(drop)
    }
}

/// How many things of a kind there are; one, when it is asked for by name.
pub(super) fn count(
    family: Family,
    kind: Kind,
    attributes: &Attributes,
    dump: bool,
) -> Result<usize, Refusal> {
    let mut bytes = Vec::new();
    let flags = REQUEST | if dump { DUMP } else { 0 };
    push(&mut bytes, message(kind), flags, 1, family as u8, 0, attributes);
    exchange(&bytes)
}

fn message(kind: Kind) -> u16 {
    SUBSYSTEM << 8 | kind as u16
}

fn push(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    attributes: &Attributes,
) {
    // Transactions here are a few kilobytes.
    let length = u32::try_from(HEADER + FAMILY_HEADER + attributes.0.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The sender's number: the kernel knows.
    bytes.extend([0; 4]);
    bytes.push(family);
    // The version of the interface.
    bytes.push(0);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(&attributes.0);
}

/// Sends and reads all answers. The kernel has put them into the socket when the send
/// returns (a dump's continuation when the one before is read), so nothing waits.
fn exchange(bytes: &[u8]) -> Result<usize, Refusal> {
    let mut socket = Socket::new(NETFILTER)?;
    socket.bind_auto()?;
    // An old kernel says less; that is no reason to fail.
    let _ = socket.set_ext_ack(true);
    let _ = socket.set_cap_ack(true);
    socket.set_non_blocking(true)?;
    socket.send_to(bytes, &SocketAddr::new(0, 0), 0)?;
    let mut things = 0;
    loop {
        let answer = match socket.recv_from_full() {
            Ok((answer, _)) => answer,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(things),
            Err(error) => return Err(error.into()),
        };
        let mut rest = answer.as_slice();
        while let Some((kind, payload, length)) = first_message(rest) {
            match kind {
                ERROR => check(payload)?,
                DONE => return Ok(things),
                _ => things += 1,
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The kind, the payload and the whole length of the first message.
fn first_message(bytes: &[u8]) -> Option<(u16, &[u8], usize)> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    let length = usize::try_from(length).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    Some((kind, bytes.get(HEADER..length)?, length))
}

/// An answer that carries a number: zero is an acknowledgement.
fn check(payload: &[u8]) -> Result<(), Refusal> {
    let number = payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if number == 0 {
        return Ok(());
    }
    let source = io::Error::from_raw_os_error(number.saturating_neg());
    Err(Refusal::new(source, words(payload.get(4..).unwrap_or_default())))
}
