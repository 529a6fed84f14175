//! Control groups v1, hybrid and v2: create, limit, count, kill.
//!
//! The driver is `cgroupfs`: this crate makes directories and writes files, and asks no service
//! manager. A [`Hierarchy`] is found once; a [`Group`] is one path in all of its controllers.
//!
//! Everything is synchronous and every wait has a deadline that the caller gives.
//!
//! Where a control that was asked for does not exist, the call fails and names both the field and
//! the file ([`Error::Unsupported`]): a limit is never dropped silently.
//!
//! The logic for v2 is tested against a fake root directory, and for what a cgroup2 mount without
//! resource controllers can do (groups, `cgroup.kill`, freezing, device programs) against the
//! kernel.
#![cfg(target_os = "linux")]

mod block;
mod devices;
mod error;
mod group;
mod hierarchy;
mod huge_pages;
mod kill;
mod resources;
mod stats;

pub use block::BlockDeviceStats;
pub use devices::{DeviceKind, DeviceRule};
pub use error::Error;
pub use group::Group;
pub use hierarchy::{Hierarchy, Layout};
pub use huge_pages::HugePages;
pub use resources::{HugepageLimit, Resources, ThrottleDevice};
pub use stats::{OomWatch, Pressure, Stall, Stats};
