//! What lists are narrowed by. All parts of a filter must hold.

use std::collections::BTreeMap;

use super::{v1, views};
use crate::pod::view::{ContainerView, PodView};

/// Whether a pod is in a list with that filter.
#[must_use]
pub fn pod_listed(pod: &PodView, filter: Option<&v1::PodSandboxFilter>) -> bool {
    let Some(v1::PodSandboxFilter { id, state, label_selector }) = filter else {
        return true;
    };
    has_id(pod.id.as_str(), id)
        && state.is_none_or(|state| state.state == i32::from(views::pod_state(pod)))
        && has_labels(&pod.spec.labels, label_selector)
}

/// Whether a container is in a list with that filter.
#[must_use]
pub fn container_listed(container: &ContainerView, filter: Option<&v1::ContainerFilter>) -> bool {
    let Some(v1::ContainerFilter { id, state, pod_sandbox_id, label_selector }) = filter else {
        return true;
    };
    has_id(container.id.as_str(), id)
        && state.is_none_or(|state| state.state == i32::from(views::container_state(container)))
        && has_id(container.pod.as_str(), pod_sandbox_id)
        && has_labels(&container.spec.labels, label_selector)
}

/// Whether a pod is in a list of usage with that filter.
#[must_use]
pub fn pod_stats_listed(pod: &PodView, filter: Option<&v1::PodSandboxStatsFilter>) -> bool {
    let Some(v1::PodSandboxStatsFilter { id, label_selector }) = filter else {
        return true;
    };
    has_id(pod.id.as_str(), id) && has_labels(&pod.spec.labels, label_selector)
}

/// Whether a container is in a list of usage with that filter: one that runs.
#[must_use]
pub fn container_stats_listed(container: &ContainerView, filter: Option<&v1::ContainerStatsFilter>) -> bool {
    if views::container_state(container) != v1::ContainerState::ContainerRunning {
        return false;
    }
    let Some(v1::ContainerStatsFilter { id, pod_sandbox_id, label_selector }) = filter else {
        return true;
    };
    has_id(container.id.as_str(), id)
        && has_id(container.pod.as_str(), pod_sandbox_id)
        && has_labels(&container.spec.labels, label_selector)
}

/// An empty text matches all; any other the id that it is, or begins.
fn has_id(id: &str, asked: &str) -> bool {
    id.starts_with(asked)
}

fn has_labels(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
