//! What devices change in a container.

use std::path::{Component, Path, PathBuf};

use kina_model::{Mount, MountSource, Propagation};

use super::spec;

/// What containers get that ask for devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// `NAME=value`; they win over the container's own.
    pub env: Vec<String>,
    /// Device nodes.
    pub devices: Vec<DeviceNode>,
    /// Mounts from the node.
    pub mounts: Vec<Mount>,
    /// Further group ids of its process.
    pub groups: Vec<u32>,
}

/// A device node in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// Its path there.
    pub container_path: PathBuf,
    /// Its path on the node.
    pub host_path: PathBuf,
    /// Of `r`, `w` and `m`.
    pub permissions: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Permission bits, if they differ from those on the node.
    pub mode: Option<u32>,
    /// The owner; without, the container's user.
    pub uid: Option<u32>,
    /// The group; without, the container's.
    pub gid: Option<u32>,
}

impl DeviceNode {
    /// Whether it may differ from what the node has at its path.
    pub(super) fn is_described(&self) -> bool {
        let Self { kind, mode, uid, gid, .. } = self;
        matches!(kind, DeviceKind::Number { .. }) || mode.is_some() || uid.is_some() || gid.is_some()
    }
}

/// What a device node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The same as on the node.
    OfNode {
        /// Whether that must be a block device, or a character device.
        block: Option<bool>,
    },
    /// This, whatever the node has at its path.
    Number {
        /// Whether it is a block device; else a character device.
        block: bool,
        /// The driver.
        major: u32,
        /// Which of the driver's.
        minor: u32,
    },
}

impl Edits {
    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds others, whose devices stand in for those at the same path.
    pub(super) fn add(&mut self, other: Self) {
        let Self { env, devices, mounts, groups } = other;
        self.env.extend(env);
        self.devices.retain(|known| devices.iter().all(|new| new.container_path != known.container_path));
        self.devices.extend(devices);
        self.mounts.extend(mounts);
        self.groups.extend(groups);
    }

    /// What a specification says.
    ///
    /// # Errors
    /// What of it cannot be had.
    pub(super) fn of(edits: &spec::ContainerEdits) -> Result<Self, String> {
        let mut made = Self::default();
        let spec::ContainerEdits { env, device_nodes, mounts, hooks, intel_rdt, additional_gids } = edits;
        if let Some(hook) = hooks.first() {
            return Err(format!(
                "it wants the hook {} ({}) to be run, which kina does not do; specify the device without hooks",
                hook.hook_name, hook.path
            ));
        }
        if intel_rdt.is_some() {
            return Err(
                "it asks for intelRdt (cache and memory bandwidth), which kina does not set".to_owned()
            );
        }
        for variable in env {
            let is_variable = variable.split_once('=').is_some_and(|(name, _)| !name.is_empty());
            if !is_variable || variable.contains('\0') {
                return Err("one of its env is no NAME=value".to_owned());
            }
            made.env.push(variable.clone());
        }
        made.devices = device_nodes.iter().map(device).collect::<Result<_, _>>()?;
        made.mounts = mounts.iter().map(mount).collect::<Result<_, _>>()?;
        // The interface's own implementation takes 0 for a value that is not set.
        made.groups.extend(additional_gids.iter().filter(|gid| **gid != 0));
        Ok(made)
    }
}

/// An absolute path without `..`.
fn absolute(what: &str, text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    if path.is_absolute() && path.components().all(plain) && !text.contains('\0') {
        return Ok(path.to_owned());
    }
    Err(format!("{what} {text:?} is not an absolute path without \"..\""))
}

fn device(node: &spec::Node) -> Result<DeviceNode, String> {
    let container_path = absolute("deviceNodes.path", &node.path)?;
    let host_path = match node.host_path.as_str() {
        "" => container_path.clone(),
        path => absolute("deviceNodes.hostPath", path)?,
    };
    let refuse = |what: String| Err(format!("device node {}: {what}", node.path));
    let permissions = match node.permissions.as_str() {
        "" => "rwm",
        text if text.bytes().all(|byte| b"rwm".contains(&byte)) && text.len() <= 3 => text,
        text => return refuse(format!("permissions {text:?} are not of r, w and m")),
    };
    let block = match node.kind.as_str() {
        "" => None,
        "b" => Some(true),
        "c" | "u" => Some(false),
        "p" => return refuse("is a pipe, which kina does not make".to_owned()),
        kind => return refuse(format!("type {kind:?} is none of b, c and u")),
    };
    let kind = match (block, node.major, node.minor) {
        (block, 0, 0) => DeviceKind::OfNode { block },
        (None, _, _) => return refuse("has a major or minor number and no type".to_owned()),
        (Some(block), major, minor) => match (u32::try_from(major), u32::try_from(minor)) {
            (Ok(major), Ok(minor)) => DeviceKind::Number { block, major, minor },
            _ => return refuse(format!("{major}:{minor} is no device")),
        },
    };
    if node.file_mode.is_some_and(|mode| mode & !0o7777 != 0) {
        return refuse("fileMode has more than permission bits".to_owned());
    }
    Ok(DeviceNode {
        container_path,
        host_path,
        permissions: permissions.to_owned(),
        kind,
        mode: node.file_mode,
        uid: node.uid,
        gid: node.gid,
    })
}

fn mount(mount: &spec::Mount) -> Result<Mount, String> {
    let host_path = absolute("mounts.hostPath", &mount.host_path)?;
    let container_path = absolute("mounts.containerPath", &mount.container_path)?;
    let refuse = |what: String| Err(format!("mount {}: {what}", mount.container_path));
    if container_path == Path::new("/") {
        return refuse("the root itself cannot be mounted over".to_owned());
    }
    if !matches!(mount.kind.as_str(), "" | "none" | "bind") {
        return refuse(format!("type {:?} is not bind", mount.kind));
    }
    let mut made = Mount {
        relabel: false,
        container_path: mount.container_path.clone(),
        source: MountSource::HostPath(host_path),
        readonly: false,
        recursive_read_only: false,
        mapped: None,
        propagation: Propagation::Private,
        options: Vec::new(),
    };
    for option in &mount.options {
        match option.as_str() {
            "bind" | "rbind" => {}
            "rw" => made.readonly = false,
            "ro" => made.readonly = true,
            "private" | "rprivate" => made.propagation = Propagation::Private,
            "slave" | "rslave" => made.propagation = Propagation::HostToContainer,
            "shared" | "rshared" => made.propagation = Propagation::Bidirectional,
            known if Mount::OPTIONS.contains(&known) => made.options.push(known.to_owned()),
            other => return refuse(format!("option {other:?} is not known")),
        }
    }
    Ok(made)
}
