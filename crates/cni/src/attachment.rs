//! What an attachment of a container to a network is made with.

use serde::{Deserialize, Serialize};

use crate::capability::Capabilities;
use crate::error::Error;
use crate::name::{check_container_id, check_interface_name};

/// Which attachment to a network: an interface of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentId {
    /// The container, or the pod sandbox.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface in it.
    #[serde(rename = "ifname")]
    pub interface: String,
}

impl AttachmentId {
    /// Both names are parts of a file name and of an environment.
    pub(crate) fn check(&self) -> Result<(), Error> {
        check_container_id(&self.container_id)?;
        check_interface_name(&self.interface)
    }
}

/// An attachment with its parameters. ADD, CHECK and DEL want the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// The container and the interface.
    pub id: AttachmentId,
    /// Path of the network namespace. DEL works without one.
    pub netns: Option<String>,
    /// `CNI_ARGS`, in order. All plugins get them.
    pub arguments: Vec<(String, String)>,
    /// What plugins get that have the capability.
    pub capabilities: Capabilities,
}

impl Attachment {
    /// Without arguments and capabilities.
    #[must_use]
    pub fn new(container_id: &str, interface: &str, netns: &str) -> Self {
        Self {
            id: AttachmentId { container_id: container_id.to_owned(), interface: interface.to_owned() },
            netns: Some(netns.to_owned()),
            arguments: Vec::new(),
            capabilities: Capabilities::new(),
        }
    }

    /// Adds an argument for all plugins.
    #[must_use]
    pub fn with_argument(mut self, name: &str, value: &str) -> Self {
        self.arguments.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What ADD refuses.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.id.check()?;
        for (name, value) in &self.arguments {
            let clean = |text: &str| !text.contains([';', '=', '\0']);
            if name.is_empty() || !clean(name) || !clean(value) {
                return Err(Error::InvalidArgument { name: name.clone() });
            }
        }
        match &self.netns {
            Some(netns) if netns.contains('\0') => {
                Err(Error::InvalidName { what: "network namespace", name: netns.clone() })
            }
            _ => Ok(()),
        }
    }

    /// The value of `CNI_ARGS`.
    pub(crate) fn arguments_text(&self) -> String {
        let pairs: Vec<_> = self.arguments.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join(";")
    }
}
