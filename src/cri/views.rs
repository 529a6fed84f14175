//! Pods and containers as their callers see them.

use kina_model::{ContainerState, Exit, PodState, RunAs};

use super::{container, mounts, resources, security, v1};
use crate::pod::view::{ContainerView, PodView};

pub(super) fn pod_state(pod: &PodView) -> v1::PodSandboxState {
    match pod.state {
        PodState::Ready(_) => v1::PodSandboxState::SandboxReady,
        PodState::Starting
        | PodState::Stopping(_)
        | PodState::StopFailed { .. }
        | PodState::Stopped(_)
        | PodState::Removing
        | PodState::Removed => v1::PodSandboxState::SandboxNotready,
    }
}

pub(super) fn pod_metadata(pod: &PodView) -> v1::PodSandboxMetadata {
    let metadata = &pod.spec.metadata;
    v1::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

/// A pod in a list.
#[must_use]
pub fn pod(pod: &PodView) -> v1::PodSandbox {
    v1::PodSandbox {
        id: pod.id.to_string(),
        metadata: Some(pod_metadata(pod)),
        state: pod_state(pod).into(),
        created_at: pod.created_at,
        labels: pod.spec.labels.clone(),
        annotations: pod.spec.annotations.clone(),
        runtime_handler: pod.spec.handler.clone(),
    }
}

/// A pod's status.
#[must_use]
pub fn pod_status(pod: &PodView) -> v1::PodSandboxStatus {
    let addresses: &[_] = if let PodState::Ready(ready) = &pod.state { &ready.addresses } else { &[] };
    let mut addresses = addresses.iter().map(ToString::to_string);
    v1::PodSandboxStatus {
        id: pod.id.to_string(),
        metadata: Some(pod_metadata(pod)),
        state: pod_state(pod).into(),
        created_at: pod.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(security::namespaces_message(pod.spec.namespaces)),
            }),
        }),
        labels: pod.spec.labels.clone(),
        annotations: pod.spec.annotations.clone(),
        runtime_handler: pod.spec.handler.clone(),
    }
}

pub(super) fn container_state(container: &ContainerView) -> v1::ContainerState {
    match container.state {
        ContainerState::Creating | ContainerState::Created | ContainerState::Starting => {
            v1::ContainerState::ContainerCreated
        }
        ContainerState::Running(_) => v1::ContainerState::ContainerRunning,
        ContainerState::Exited(_) | ContainerState::Removing(_) => v1::ContainerState::ContainerExited,
        ContainerState::Gone => v1::ContainerState::ContainerUnknown,
    }
}

pub(super) fn container_metadata(container: &ContainerView) -> v1::ContainerMetadata {
    let metadata = &container.spec.metadata;
    v1::ContainerMetadata { name: metadata.name.clone(), attempt: metadata.attempt }
}

fn container_image(container: &ContainerView) -> v1::ImageSpec {
    v1::ImageSpec {
        image: container.image.requested.clone(),
        annotations: container.image.annotations.clone(),
        user_specified_image: container.image.user_specified.clone(),
        runtime_handler: String::new(),
        image_ref: String::new(),
    }
}

/// A container in a list.
#[must_use]
pub fn container(container: &ContainerView) -> v1::Container {
    v1::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.pod.to_string(),
        metadata: Some(container_metadata(container)),
        image: Some(container_image(container)),
        image_ref: container.image.reference.clone(),
        state: container_state(container).into(),
        created_at: container.created_at,
        labels: container.spec.labels.clone(),
        annotations: container.spec.annotations.clone(),
        image_id: container.image.id.to_string(),
    }
}

/// The image's name that people know: the kubelet asks for containers by the image's
/// id, and shows what their status says.
pub(super) fn image_name(container: &ContainerView) -> &str {
    let image = &container.image;
    if image.user_specified.is_empty() { &image.requested } else { &image.user_specified }
}

/// A container's status.
#[must_use]
pub fn container_status(container: &ContainerView) -> v1::ContainerStatus {
    let (started_at, exit) = match &container.state {
        ContainerState::Running(running) => (running.started_at, None),
        ContainerState::Exited(exit) | ContainerState::Removing(exit) => (exit.started_at, Some(exit)),
        ContainerState::Creating
        | ContainerState::Created
        | ContainerState::Starting
        | ContainerState::Gone => (0, None),
    };
    let of_exit = |text: fn(&Exit) -> String| exit.map(text).unwrap_or_default();
    v1::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(container_metadata(container)),
        state: container_state(container).into(),
        created_at: container.created_at,
        started_at,
        finished_at: exit.map_or(0, |exit| exit.finished_at),
        exit_code: exit.map_or(0, |exit| exit.code),
        image: Some(v1::ImageSpec { image: image_name(container).to_owned(), ..container_image(container) }),
        image_ref: container.image.reference.clone(),
        reason: of_exit(|exit| exit.reason.as_str().to_owned()),
        message: of_exit(|exit| exit.message.clone()),
        labels: container.spec.labels.clone(),
        annotations: container.spec.annotations.clone(),
        mounts: mounts::messages(&container.spec.mounts, &container.image_volumes),
        log_path: container
            .log_path
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        resources: Some(v1::ContainerResources {
            linux: Some(resources::message(&container.spec.resources)),
            windows: None,
        }),
        image_id: container.image.id.to_string(),
        user: user(container),
        stop_signal: container::signal_message(container.process.stop_signal).into(),
    }
}

/// Who it runs as, once the guest has said it; before that as far as the
/// specification tells.
fn user(container: &ContainerView) -> Option<v1::ContainerUser> {
    let linux = match (&container.identity, &container.spec.security.user) {
        (Some(identity), _) => v1::LinuxContainerUser {
            uid: identity.uid.into(),
            gid: identity.gid.into(),
            supplemental_groups: identity.supplemental_groups.iter().map(|group| i64::from(*group)).collect(),
        },
        (None, Some(RunAs::Uid(uid))) => v1::LinuxContainerUser {
            uid: i64::from(*uid),
            gid: container.spec.security.group.unwrap_or(0).into(),
            supplemental_groups: Vec::new(),
        },
        (None, Some(RunAs::Name(_)) | None) => return None,
    };
    Some(v1::ContainerUser { linux: Some(linux) })
}
