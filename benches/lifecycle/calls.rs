//! The calls of a pod's life over CRI, each timed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kina::cri::v1;

use crate::daemons::Daemon;

/// The calls, in the order of [`life`].
pub(crate) const CALLS: [&str; 8] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync true",
    "StopContainer(0)",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];

/// What each of [`CALLS`] took.
pub(crate) type Life = [Duration; CALLS.len()];

/// Many lives.
#[derive(Default)]
pub(crate) struct Timings {
    lives: Vec<Life>,
}

impl Timings {
    pub(crate) fn add(&mut self, life: Life) {
        self.lives.push(life);
    }

    /// One call's times, the shortest first, in milliseconds.
    pub(crate) fn of(&self, call: usize) -> Vec<f64> {
        sorted(self.lives.iter().map(|life| life[call]))
    }

    /// Whole lives, the shortest first, in milliseconds.
    pub(crate) fn whole(&self) -> Vec<f64> {
        sorted(self.lives.iter().map(|life| life.iter().sum()))
    }
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1000.0).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// The pods' network, or the host's.
fn network(daemon: &Daemon) -> i32 {
    if daemon.connected { v1::NamespaceMode::Pod.into() } else { v1::NamespaceMode::Node.into() }
}

/// A pod.
pub(crate) fn pod(daemon: &Daemon, name: &str) -> v1::PodSandboxConfig {
    let namespaces = v1::NamespaceOption {
        network: network(daemon),
        pid: v1::NamespaceMode::Container.into(),
        ipc: v1::NamespaceMode::Pod.into(),
        ..v1::NamespaceOption::default()
    };
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.to_owned(),
            uid: name.to_owned(),
            namespace: "bench".to_owned(),
            attempt: 0,
        }),
        hostname: String::new(),
        log_directory: daemon.logs.join(name).display().to_string(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: daemon.cgroup.clone(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces),
                ..v1::LinuxSandboxSecurityContext::default()
            }),
            ..v1::LinuxPodSandboxConfig::default()
        }),
        ..v1::PodSandboxConfig::default()
    }
}

/// A container that does nothing until it is stopped.
fn container(daemon: &Daemon) -> v1::ContainerConfig {
    let namespaces = v1::NamespaceOption {
        network: network(daemon),
        pid: v1::NamespaceMode::Container.into(),
        ipc: v1::NamespaceMode::Pod.into(),
        ..v1::NamespaceOption::default()
    };
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "idle".to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: daemon.image.clone(), ..v1::ImageSpec::default() }),
        command: vec!["/bin/sleep".to_owned(), "1000000".to_owned()],
        log_path: "idle.log".to_owned(),
        linux: Some(v1::LinuxContainerConfig {
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces),
                ..v1::LinuxContainerSecurityContext::default()
            }),
            ..v1::LinuxContainerConfig::default()
        }),
        ..v1::ContainerConfig::default()
    }
}

/// RunPodSandbox; returns the pod's id.
pub(crate) async fn run_pod(daemon: &Daemon, config: &v1::PodSandboxConfig) -> Result<String> {
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let response = daemon.runtime.clone().run_pod_sandbox(request).await;
    Ok(response.with_context(|| format!("{}: RunPodSandbox", daemon.name))?.into_inner().pod_sandbox_id)
}

/// CreateContainer; returns the container's id.
pub(crate) async fn create_container(
    daemon: &Daemon,
    pod_sandbox_id: &str,
    config: &v1::PodSandboxConfig,
) -> Result<String> {
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod_sandbox_id.to_owned(),
        config: Some(container(daemon)),
        sandbox_config: Some(config.clone()),
    };
    let response = daemon.runtime.clone().create_container(request).await;
    Ok(response.with_context(|| format!("{}: CreateContainer", daemon.name))?.into_inner().container_id)
}

/// StartContainer.
pub(crate) async fn start_container(daemon: &Daemon, container: &str) -> Result<()> {
    let request = v1::StartContainerRequest { container_id: container.to_owned() };
    let response = daemon.runtime.clone().start_container(request).await;
    response.with_context(|| format!("{}: StartContainer", daemon.name)).map(|_| ())
}

/// StopPodSandbox and RemovePodSandbox; returns what each took.
pub(crate) async fn end_pod(daemon: &Daemon, pod: &str) -> Result<[Duration; 2]> {
    let mut runtime = daemon.runtime.clone();
    let begun = Instant::now();
    runtime
        .stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() })
        .await
        .with_context(|| format!("{}: StopPodSandbox", daemon.name))?;
    let stopped = Instant::now();
    runtime
        .remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() })
        .await
        .with_context(|| format!("{}: RemovePodSandbox", daemon.name))?;
    Ok([stopped - begun, stopped.elapsed()])
}

/// One pod with one container, from nothing to nothing.
pub(crate) async fn life(daemon: &Daemon, name: &str) -> Result<Life> {
    life_watched(daemon, name, |_| Ok(())).await
}

/// A life that tells after each call which of [`CALLS`] it was.
pub(crate) async fn life_watched(
    daemon: &Daemon,
    name: &str,
    mut after: impl FnMut(usize) -> Result<()>,
) -> Result<Life> {
    let mut runtime = daemon.runtime.clone();
    let mut life = Life::default();
    let config = pod(daemon, name);
    let mut begun = Instant::now();
    let mut lap = |call: usize, begun: &mut Instant| -> Result<()> {
        life[call] = begun.elapsed();
        after(call)?;
        *begun = Instant::now();
        Ok(())
    };

    let pod = run_pod(daemon, &config).await?;
    lap(0, &mut begun)?;
    let container = create_container(daemon, &pod, &config).await?;
    lap(1, &mut begun)?;
    start_container(daemon, &container).await?;
    lap(2, &mut begun)?;

    let request = v1::ExecSyncRequest {
        container_id: container.clone(),
        cmd: vec!["/bin/true".to_owned()],
        timeout: 30,
    };
    let executed = runtime.exec_sync(request).await;
    let executed = executed.with_context(|| format!("{}: ExecSync", daemon.name))?.into_inner();
    if executed.exit_code != 0 {
        bail!("{}: ExecSync: `true` ended with {}", daemon.name, executed.exit_code);
    }
    lap(3, &mut begun)?;

    let request = v1::StopContainerRequest { container_id: container.clone(), timeout: 0 };
    runtime.stop_container(request).await.with_context(|| format!("{}: StopContainer", daemon.name))?;
    lap(4, &mut begun)?;
    let request = v1::RemoveContainerRequest { container_id: container };
    runtime.remove_container(request).await.with_context(|| format!("{}: RemoveContainer", daemon.name))?;
    lap(5, &mut begun)?;

    let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
    runtime.stop_pod_sandbox(request).await.with_context(|| format!("{}: StopPodSandbox", daemon.name))?;
    lap(6, &mut begun)?;
    let request = v1::RemovePodSandboxRequest { pod_sandbox_id: pod };
    runtime
        .remove_pod_sandbox(request)
        .await
        .with_context(|| format!("{}: RemovePodSandbox", daemon.name))?;
    lap(7, &mut begun)?;
    Ok(life)
}
