//! The runtime side of the Container Network Interface (CNI) 1.1.0 and all
//! versions before it.
//!
//! [`load_directory`] reads network configurations; [`Cni`] runs their plugins:
//! [`add`](Cni::add), [`del`](Cni::del), [`check`](Cni::check),
//! [`status`](Cni::status), [`gc`](Cni::gc) and
//! [`plugin_versions`](Cni::plugin_versions). Attachments are recorded in the
//! files that libcni uses, so that either side can remove what the other made.
//!
//! Plugins run, and files lie, on a [`Host`]. With the feature `local` (on by
//! default) `LocalHost` is this machine; another host may be a machine
//! elsewhere.

mod attachment;
mod cache;
mod capability;
mod cni;
mod config;
mod discovery;
mod error;
mod execute;
mod host;
#[cfg(feature = "local")]
mod local;
mod name;
mod result;
mod validate;
mod version;

pub use attachment::{Attachment, AttachmentId};
pub use cache::CachedAttachment;
pub use capability::{Bandwidth, Capabilities, DnsServers, IpRange, PortMapping, Protocol, RequestedIp};
pub use cni::{AddError, Check, Cleanup, Cni, Collected, Deadlines, Options, Status};
pub use config::{Network, Plugin};
pub use discovery::{ConfigFile, Configurations, load_directory, load_file};
pub use error::{Command, ConfigProblem, Error, ErrorCode, PluginError};
pub use host::{ExecuteError, Executed, Execution, FoundFile, Host, HostError};
#[cfg(feature = "local")]
pub use local::LocalHost;
pub use name::{
    MAX_INTERFACE_NAME, MAX_NAME, check_container_id, check_interface_name, check_network_name,
    check_plugin_type,
};
pub use result::{ConvertError, Dns, Interface, IpConfig, NetworkResult, Route};
pub use validate::PluginReport;
pub use version::{SpecVersion, UnknownVersion};
