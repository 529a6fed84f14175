//! Specifications that ask for nothing.

use std::collections::BTreeMap;

use crate::{
    ContainerMetadata, ContainerSpec, PidMode, Placement, PodMetadata, PodNamespaces, PodSpec, Resources,
    Security,
};

/// A pod of that name, with a network of its own, on the node's kernel.
#[must_use]
pub fn pod(name: &str) -> PodSpec {
    PodSpec {
        metadata: PodMetadata {
            name: name.into(),
            uid: "uid".into(),
            namespace: "default".into(),
            attempt: 0,
        },
        hostname: name.into(),
        log_directory: None,
        dns: None,
        port_mappings: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        handler: String::new(),
        placement: Placement::Shared,
        cgroup_parent: String::new(),
        sysctls: BTreeMap::new(),
        namespaces: PodNamespaces {
            user: None,
            host_network: false,
            host_ipc: false,
            pid: PidMode::Container,
        },
        privileged: false,
        overhead: None,
        resources: None,
        selinux: None,
    }
}

/// A container of that name and image.
#[must_use]
pub fn container(name: &str, image: &str) -> ContainerSpec {
    ContainerSpec {
        metadata: ContainerMetadata { name: name.into(), attempt: 0 },
        image: image.into(),
        user_specified_image: String::new(),
        image_annotations: BTreeMap::new(),
        command: Vec::new(),
        args: Vec::new(),
        working_dir: String::new(),
        env: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        cdi_devices: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: String::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        resources: Resources::default(),
        security: Security::default(),
        stop_signal: None,
    }
}
