//! Specifications for tests.

use std::collections::BTreeMap;

use crate::{ContainerMetadata, ContainerSpec, Resources, Security};

/// A container of that name that asks for nothing.
pub(crate) fn container_spec(name: &str) -> ContainerSpec {
    ContainerSpec {
        metadata: ContainerMetadata { name: name.to_owned(), attempt: 0 },
        image: "image".to_owned(),
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
