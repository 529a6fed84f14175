//! The attachments themselves.

pub(crate) mod apply;
pub mod direct;
mod firewall;
pub(crate) mod inspect;
mod link;
pub(crate) mod namespace;
mod netlink;
mod nftables;
mod redirect;
mod sink;
pub mod tap;
pub mod tunnel;
