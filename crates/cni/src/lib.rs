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
//!
//! # A network of one plugin
//!
//! ```
//! use std::fs;
//! use std::os::unix::fs::PermissionsExt;
//! use std::sync::Arc;
//!
//! use kina_cni::{Attachment, Cleanup, Cni, ErrorCode, LocalHost, Options, load_directory};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let plugin = folder.path().join("fixed");
//! fs::write(
//!     &plugin,
//!     r#"#!/bin/sh
//! case $CNI_COMMAND:$CNI_CONTAINERID in
//!     ADD:pod1) echo '{"ips": [{"address": "192.0.2.7/24"}]}' ;;
//!     ADD:*) echo '{"code": 11, "msg": "no address is free"}'; exit 1 ;;
//! esac"#,
//! )?;
//! fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755))?;
//! fs::write(
//!     folder.path().join("10-pods.conflist"),
//!     r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "fixed"}]}"#,
//! )?;
//!
//! let host = Arc::new(LocalHost);
//! let configurations = load_directory(&*host, folder.path()).await?;
//! let network = configurations.named("pods").ok_or("no such network")?;
//! let cni = Cni::new(
//!     host,
//!     Options {
//!         plugin_directories: vec![folder.path().to_owned()],
//!         cache_directory: folder.path().join("cache"),
//!         ..Options::default()
//!     },
//! );
//!
//! let first = Attachment::new("pod1", "eth0", "/var/run/netns/pod1");
//! let result = cni.add(network, &first).await?;
//! assert_eq!(result.ips[0].address.to_string(), "192.0.2.7/24");
//!
//! let second = Attachment::new("pod2", "eth0", "/var/run/netns/pod2");
//! let error = cni.add(network, &second).await.unwrap_err();
//! assert_eq!(error.cause.code(), Some(ErrorCode::TryAgainLater));
//! assert!(matches!(error.cleanup, Cleanup::Done));
//!
//! cni.del(network, &first).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Files, names, order
//!
//! Requests and cached attachments are JSON with sorted keys, as libcni writes
//! them. Unknown keys of configurations and results are kept.
//!
//! An attachment is recorded in `<cache>/results/<network>-<container>-<interface>`
//! once all its plugins have succeeded. A runtime that may be killed during an
//! ADD has to remember itself that it called it, and call
//! [`del`](Cni::del) or [`del_cached`](Cni::del_cached) afterwards: plugins
//! must accept a DEL of what they do not know.
//!
//! This crate keeps no locks: see [`Cni`] for what the caller must not do at
//! the same time.

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

/// The example of the README compiles.
#[cfg(all(doctest, feature = "local"))]
#[doc = include_str!("../README.md")]
struct Readme;
