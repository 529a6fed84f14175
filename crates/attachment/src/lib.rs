//! Joins a machine to a pod's network namespace on the Kubernetes node.
//!
//! CNI plugins make an interface in a network namespace of the node (the
//! *sandbox namespace*). The pod's containers run in a machine, which may have a
//! kernel of its own. This crate carries the interface over, in one of three ways:
//!
//! - [`direct`]: the machine shares the node's kernel; the containers enter the
//!   sandbox namespace. Nothing is made, everything is checked.
//! - [`tap`]: the machine is a virtual machine on the node. A tap device in the
//!   sandbox namespace is joined with the CNI interface, frame by frame.
//! - [`tunnel`]: the machine is a virtual machine beside the node, on the same L2.
//!   A VXLAN of the pod's own joins the CNI interface with the pod's namespace in
//!   the machine.
//!
//! In all three each packet of the pod still passes the node's end of the CNI
//! interface, so what the CNI plugin does there (policy, load balancing,
//! accounting) holds.
//!
//! What a machine needs to know is an [`Interface`]: read in the sandbox namespace
//! ([`inspect`]), planned ([`plan`]), sent to the machine, and put in place there
//! ([`apply()`]), in the pod's own namespace ([`carry`] moves the device). [`vni`] hands out the numbers of tunnels.
//!
//! [`Interface`], [`plan`] and [`vni`] exist on every platform, the rest on Linux.

mod error;
mod model;
#[cfg(target_os = "linux")]
mod own;
pub mod plan;
pub mod vni;

#[cfg(target_os = "linux")]
mod linux;

pub use error::{Error, Refusal};
#[cfg(target_os = "linux")]
pub use linux::{
    apply::{Target, apply, carry},
    direct,
    inspect::inspect,
    namespace::Namespace,
    tap, tunnel,
};
pub use model::{Address, Damage, Interface, Mac, Neighbour, Prefix, Route, Rule};
