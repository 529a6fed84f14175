//! What the command line asks about the pods' network.

use std::net::{IpAddr, SocketAddr};

use kina_cni::Check;
use kina_model::{PodState, SpecError};
use kina_node::ProbeStep;

use crate::admin::v1;
use crate::error::{Error, chain};
use crate::network::TrialTarget;
use crate::runtime::Runtime;

/// What name servers are asked for if nothing else is wanted: in a cluster it
/// has an address, elsewhere any server says that it does not.
const DEFAULT_NAME: &str = "kubernetes.default.svc.cluster.local";

pub(super) async fn network(runtime: &Runtime) -> Result<v1::NetworkResponse, Error> {
    let network = runtime.network();
    let (state, config) = (network.state(), network.config());
    let mut files = Vec::new();
    for file in &state.files {
        let path = file.path.display().to_string();
        files.push(match &file.network {
            Err(problem) => v1::NetworkFile { path, problem: problem.clone(), ..Default::default() },
            Ok(found) => v1::NetworkFile {
                path,
                problem: String::new(),
                name: found.name().to_owned(),
                cni_version: found.version().to_string(),
                in_force: state.in_force.as_ref().is_some_and(|one| one.path == file.path),
                plugins: network.inspect(found).await.into_iter().map(plugin).collect(),
            },
        });
    }
    Ok(v1::NetworkResponse {
        ready: state.is_ready(),
        message: state.message(config),
        network: state.in_force.as_ref().map(|one| one.network.name().to_owned()).unwrap_or_default(),
        config_directory: config.config_directory.display().to_string(),
        plugin_directories: config.plugin_directories.iter().map(|path| path.display().to_string()).collect(),
        files,
        attachments: u32::try_from(network.attachments()?).unwrap_or(u32::MAX),
    })
}

fn plugin(report: kina_cni::PluginReport) -> v1::NetworkPlugin {
    v1::NetworkPlugin {
        r#type: report.plugin,
        path: report.path.map(|path| path.display().to_string()).unwrap_or_default(),
        versions: report.versions,
        problem: report.problem.as_ref().map(|problem| chain(problem)).unwrap_or_default(),
    }
}

pub(super) async fn check(runtime: &Runtime, pod: &str) -> Result<v1::CheckNetworkResponse, Error> {
    let pod = runtime.find_pod(pod)?;
    let outcome = match runtime.network().check(&pod.id, &pod.spec).await? {
        Check::Passed => "passed",
        Check::Disabled => "disabled by the configuration",
        Check::Unsupported => "unsupported by the configuration's version",
    };
    let network = match &pod.state {
        PodState::Ready(ready) => ready.network.clone().unwrap_or_default(),
        PodState::Starting
        | PodState::Stopping(_)
        | PodState::StopFailed { .. }
        | PodState::Stopped(_)
        | PodState::Removing
        | PodState::Removed => String::new(),
    };
    Ok(v1::CheckNetworkResponse { pod: pod.id.to_string(), network, outcome: outcome.to_owned() })
}

pub(super) async fn collect(runtime: &Runtime) -> Result<v1::CollectNetworkResponse, Error> {
    let collected = runtime.network().collect().await?;
    Ok(v1::CollectNetworkResponse {
        network: collected.network,
        removed: collected.removed,
        plugins_told: collected.plugins_told,
        errors: collected.errors,
    })
}

pub(super) async fn try_out(
    runtime: &Runtime,
    request: v1::TryNetworkRequest,
) -> Result<v1::TryNetworkResponse, Error> {
    let v1::TryNetworkRequest { from, to, name } = request;
    let from = ready(runtime, &from)?;
    let target = (!to.is_empty()).then(|| target(runtime, &to)).transpose()?;
    let name = if name.is_empty() { DEFAULT_NAME } else { &name };
    let trial = runtime.network().try_out(&from.id, &from.spec, target, name).await?;
    Ok(v1::TryNetworkResponse {
        from: from.id.to_string(),
        to: target.map(|target| target.address.to_string()).unwrap_or_default(),
        steps: trial.steps.into_iter().map(step).collect(),
        from_node: trial.from_node.into_iter().map(step).collect(),
        failure: trial.failure.unwrap_or_default(),
    })
}

fn step(step: ProbeStep) -> v1::TryStep {
    let micros = step.took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    v1::TryStep {
        kind: step.kind.name().to_owned(),
        good: step.good,
        detail: step.detail,
        micros: micros.unwrap_or(0),
        bytes: step.bytes.unwrap_or(0),
    }
}

fn ready(runtime: &Runtime, pod: &str) -> Result<std::sync::Arc<crate::pod::view::PodView>, Error> {
    let view = runtime.find_pod(pod)?;
    if view.state.is_ready() {
        return Ok(view);
    }
    let (pod, state) = (view.id.clone(), view.state.name());
    Err(Error::PodState { pod, state, operation: "try its network" })
}

/// `IP`, `IP:PORT`, `[IP]:PORT`, `POD` or `POD:PORT`.
fn target(runtime: &Runtime, text: &str) -> Result<TrialTarget, Error> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(TrialTarget { address, port: None });
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(TrialTarget { address: address.ip(), port: Some(address.port()) });
    }
    let (pod, port) = match text.split_once(':') {
        None => (text, None),
        Some((pod, port)) => {
            let number = port.parse().ok().filter(|port| *port > 0);
            let number = number.ok_or_else(|| SpecError::invalid("to", format!("{port:?} is no port")))?;
            (pod, Some(number))
        }
    };
    let view = ready(runtime, pod)?;
    let address = match &view.state {
        PodState::Ready(ready) => ready.addresses.first().copied(),
        PodState::Starting
        | PodState::Stopping(_)
        | PodState::StopFailed { .. }
        | PodState::Stopped(_)
        | PodState::Removing
        | PodState::Removed => None,
    };
    let address = address.ok_or_else(|| Error::NotAttached { pod: view.id.clone() })?;
    Ok(TrialTarget { address, port })
}
