//! Calls and requests, as short as tests want them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kina::client::Client;
use kina::cri::v1;
use tonic::Status;

use super::{Place, handler, wait_until};

/// The image that every daemon of the tests has: static busybox.
pub(crate) const IMAGE: &str = "localhost/busybox:it";

/// Calls to one daemon. Clones share its connection.
#[derive(Clone)]
pub(crate) struct Cri {
    pub(crate) client: Client,
    logs: PathBuf,
}

/// A shell command.
pub(crate) fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

/// A container that runs a shell script, and logs.
pub(crate) fn script(name: &str, script: &str) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: IMAGE.to_owned(), ..v1::ImageSpec::default() }),
        command: shell(script),
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig {
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                seccomp: Some(v1::SecurityProfile {
                    profile_type: v1::security_profile::ProfileType::RuntimeDefault.into(),
                    localhost_ref: String::new(),
                }),
                ..v1::LinuxContainerSecurityContext::default()
            }),
            resources: None,
        }),
        ..v1::ContainerConfig::default()
    }
}

/// The namespaces that the kubelet asks for: process ids are each container's own.
pub(crate) fn namespaces() -> v1::NamespaceOption {
    v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..v1::NamespaceOption::default() }
}

/// The same container with a changed security context.
pub(crate) fn with_security(
    mut container: v1::ContainerConfig,
    change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
) -> v1::ContainerConfig {
    let linux = container.linux.get_or_insert_default();
    change(linux.security_context.get_or_insert_default());
    container
}

impl Cri {
    pub(super) fn new(client: Client, place: &Place) -> Self {
        Self { client, logs: place.path("logs") }
    }

    /// A pod of that name.
    pub(crate) fn pod(&self, name: &str) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-of-{name}"),
                namespace: "it".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.logs.join(name).display().to_string(),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..v1::LinuxSandboxSecurityContext::default()
                }),
                ..v1::LinuxPodSandboxConfig::default()
            }),
            ..v1::PodSandboxConfig::default()
        }
    }

    /// RunPodSandbox.
    pub(crate) async fn run_pod(&self, config: &v1::PodSandboxConfig) -> Result<String, Status> {
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler() };
        let response = self.client.runtime.clone().run_pod_sandbox(request).await?;
        Ok(response.into_inner().pod_sandbox_id)
    }

    /// A pod of that name, made.
    pub(crate) async fn make_pod(&self, name: &str) -> String {
        self.run_pod(&self.pod(name)).await.unwrap()
    }

    /// StopPodSandbox.
    pub(crate) async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.client.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    /// RemovePodSandbox.
    pub(crate) async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.client.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    /// PodSandboxStatus, verbose.
    pub(crate) async fn pod_status(&self, id: &str) -> Result<v1::PodSandboxStatusResponse, Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        Ok(self.client.runtime.clone().pod_sandbox_status(request).await?.into_inner())
    }

    /// Whether a pod is ready.
    pub(crate) async fn is_ready(&self, id: &str) -> bool {
        let status = self.pod_status(id).await.unwrap().status.unwrap();
        status.state() == v1::PodSandboxState::SandboxReady
    }

    /// Waits until a pod is no longer ready.
    pub(crate) async fn wait_not_ready(&self, id: &str) {
        wait_until("the pod to be NOTREADY", async || !self.is_ready(id).await).await;
    }

    /// ListPodSandbox.
    pub(crate) async fn pods(&self, filter: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let request = v1::ListPodSandboxRequest { filter };
        self.client.runtime.clone().list_pod_sandbox(request).await.unwrap().into_inner().items
    }

    /// CreateContainer.
    pub(crate) async fn create(&self, pod: &str, config: v1::ContainerConfig) -> Result<String, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: None,
        };
        Ok(self.client.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    /// StartContainer.
    pub(crate) async fn start(&self, id: &str) -> Result<(), Status> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        self.client.runtime.clone().start_container(request).await.map(drop)
    }

    /// A container, made and started.
    pub(crate) async fn run(&self, pod: &str, config: v1::ContainerConfig) -> String {
        let id = self.create(pod, config).await.unwrap();
        self.start(&id).await.unwrap();
        id
    }

    /// A container's end and its output.
    pub(crate) async fn run_to_end(
        &self,
        pod: &str,
        config: v1::ContainerConfig,
    ) -> (v1::ContainerStatus, String) {
        let id = self.run(pod, config).await;
        let status = self.wait_exit(&id).await;
        let text = std::fs::read_to_string(&status.log_path).unwrap();
        (status, output(&text))
    }

    /// StopContainer.
    pub(crate) async fn stop(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout };
        self.client.runtime.clone().stop_container(request).await.map(drop)
    }

    /// RemoveContainer.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        self.client.runtime.clone().remove_container(request).await.map(drop)
    }

    /// ContainerStatus.
    pub(crate) async fn status(&self, id: &str) -> Result<v1::ContainerStatus, Status> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let response = self.client.runtime.clone().container_status(request).await?.into_inner();
        Ok(response.status.unwrap())
    }

    /// The process of a container's first process, as the node numbers it.
    pub(crate) async fn container_pid(&self, id: &str) -> u32 {
        self.find_container_pid(id).await.unwrap()
    }

    /// The same of a container that may be gone.
    pub(crate) async fn find_container_pid(&self, id: &str) -> Result<u32, Status> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let response = self.client.runtime.clone().container_status(request).await?.into_inner();
        let info: serde_json::Value = serde_json::from_str(&response.info["info"]).unwrap();
        Ok(info["pid"].as_u64().unwrap().try_into().unwrap())
    }

    /// ListContainers.
    pub(crate) async fn containers(&self, filter: Option<v1::ContainerFilter>) -> Vec<v1::Container> {
        let request = v1::ListContainersRequest { filter };
        self.client.runtime.clone().list_containers(request).await.unwrap().into_inner().containers
    }

    /// Waits for a container's end.
    pub(crate) async fn wait_exit(&self, id: &str) -> v1::ContainerStatus {
        let mut status = None;
        wait_until("the container's end", async || {
            let now = self.status(id).await.unwrap();
            let ended = now.state() == v1::ContainerState::ContainerExited;
            status = Some(now);
            ended
        })
        .await;
        status.unwrap()
    }

    /// ExecSync.
    pub(crate) async fn exec(
        &self,
        id: &str,
        cmd: Vec<String>,
        timeout: i64,
    ) -> Result<v1::ExecSyncResponse, Status> {
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        Ok(self.client.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// What a script in a container prints; it must succeed.
    pub(crate) async fn sh(&self, id: &str, script: &str) -> String {
        let response = self.exec(id, shell(script), 0).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(response.exit_code, 0, "{script}: {} {}", text(&response.stdout), text(&response.stderr));
        text(&response.stdout)
    }

    /// ReopenContainerLog.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let request = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
        self.client.runtime.clone().reopen_container_log(request).await.map(drop)
    }

    /// Waits until a container has printed something.
    pub(crate) async fn wait_output(&self, id: &str, text: &str) {
        let path = self.status(id).await.unwrap().log_path;
        wait_until(&format!("the output {text:?}"), async || {
            std::fs::read_to_string(&path).is_ok_and(|log| output(&log).contains(text))
        })
        .await;
    }
}

/// What a log in the CRI's format says was printed.
pub(crate) fn output(log: &str) -> String {
    let mut text = String::new();
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ');
        let (Some(_time), Some(_stream), Some(tag), content) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            panic!("no line of a log: {line:?}");
        };
        text.push_str(content.unwrap_or_default());
        if tag == "F" {
            text.push('\n');
        }
    }
    text
}

/// Labels.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
