//! The demo's pod, through the CRI as any kubelet would.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::logs;
use super::story::Facts;
use crate::client::Client;
use crate::cri::v1;

const PORT: &str = "8080";

/// Seconds that a container may take to end by itself.
const GRACE_SECONDS: i64 = 1;

/// A pod with a server and a client, as far as it has come.
pub(super) struct Pod {
    image: String,
    logs: PathBuf,
    id: String,
    /// Server and client.
    containers: Vec<String>,
    /// What they were when the daemon was killed.
    identities: Vec<Identity>,
    /// The server's answer to the exec.
    exec_answer: u64,
    /// Lines of the client's log when the daemon was killed.
    seen: std::cell::Cell<usize>,
}

/// What a restart of the daemon must not change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    pid: u64,
    started_at: i64,
}

impl Pod {
    pub(super) fn new(logs: &Path, image: &str) -> Self {
        Self {
            image: image.to_owned(),
            logs: logs.to_owned(),
            id: String::new(),
            containers: Vec::new(),
            identities: Vec::new(),
            exec_answer: 0,
            seen: std::cell::Cell::new(0),
        }
    }

    fn server_log(&self) -> PathBuf {
        self.logs.join("server.log")
    }

    fn client_log(&self) -> PathBuf {
        self.logs.join("client.log")
    }

    fn config(&self) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "demo".to_owned(),
                uid: "demo".to_owned(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: "demo".to_owned(),
            log_directory: self.logs.display().to_string(),
            linux: Some(v1::LinuxPodSandboxConfig::default()),
            ..v1::PodSandboxConfig::default()
        }
    }

    /// RunPodSandbox.
    pub(super) async fn run(&mut self, client: &mut Client) -> anyhow::Result<Facts> {
        let request =
            v1::RunPodSandboxRequest { config: Some(self.config()), runtime_handler: String::new() };
        self.id = client.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        Ok(Facts::default().text(format!("Pod {} is ready.", short(&self.id))))
    }

    /// CreateContainer and StartContainer, twice.
    pub(super) async fn start(&mut self, client: &mut Client) -> anyhow::Result<Facts> {
        let url = format!("http://127.0.0.1:{PORT}/");
        self.container(client, "server", &["serve", PORT]).await?;
        logs::wait(&self.server_log(), 1).await?;
        self.container(client, "client", &["fetch", &url, "--every", "100"]).await?;
        let mut facts = Facts::default();
        for (id, name) in self.containers.iter().zip(["server", "client"]) {
            let (identity, status) = self.identity(client, id).await?;
            ensure!(status.state() == v1::ContainerState::ContainerRunning, "{name} is {:?}", status.state());
            facts = facts.text(format!("{name}: container {}, process {}", short(id), identity.pid));
        }
        Ok(facts)
    }

    async fn container(&mut self, client: &mut Client, name: &str, args: &[&str]) -> anyhow::Result<()> {
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: self.image.clone(), ..v1::ImageSpec::default() }),
            // The image's entry point stays, as with `args` in a pod's manifest.
            args: args.iter().map(|text| (*text).to_owned()).collect(),
            log_path: format!("{name}.log"),
            linux: Some(v1::LinuxContainerConfig::default()),
            ..v1::ContainerConfig::default()
        };
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config()),
        };
        let created = client.runtime.create_container(request).await;
        let id = created.with_context(|| format!("create the {name}"))?.into_inner().container_id;
        self.containers.push(id.clone());
        let started = client.runtime.start_container(v1::StartContainerRequest { container_id: id }).await;
        started.with_context(|| format!("start the {name}"))?;
        Ok(())
    }

    async fn identity(
        &self,
        client: &mut Client,
        id: &str,
    ) -> anyhow::Result<(Identity, v1::ContainerStatus)> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let answer = client.runtime.container_status(request).await?.into_inner();
        let status = answer.status.context("the answer has no status")?;
        let pid = first(&answer.info)?["pid"].as_u64().context("the verbose status has no pid")?;
        Ok((Identity { pid, started_at: status.started_at }, status))
    }

    /// A few lines of each log.
    pub(super) async fn logs(&self) -> anyhow::Result<Facts> {
        let client = logs::wait(&self.client_log(), 3).await?;
        let server = logs::wait(&self.server_log(), 4).await?;
        let mut facts = Facts::default();
        for (name, lines) in [("server", &server[1..]), ("client", &client[..])] {
            for line in &lines[..3] {
                facts = facts.line(format!("{name}  {line}"));
            }
        }
        Ok(facts)
    }

    /// ExecSync.
    pub(super) async fn exec(&mut self, client: &mut Client) -> anyhow::Result<Facts> {
        let container_id = self.containers.get(1).context("there is no client")?.clone();
        let url = format!("http://127.0.0.1:{PORT}/exec");
        let cmd = ["/kina-demo", "demo", "fetch", &url].map(str::to_owned).to_vec();
        let shown = cmd.join(" ");
        let request = v1::ExecSyncRequest { container_id, cmd, timeout: 10 };
        let answer = client.runtime.exec_sync(request).await?.into_inner();
        let stdout = String::from_utf8_lossy(&answer.stdout).trim_end().to_owned();
        let stderr = String::from_utf8_lossy(&answer.stderr);
        ensure!(answer.exit_code == 0, "exit code {}: {stdout} {stderr}", answer.exit_code);
        self.exec_answer = logs::answer(&stdout)?;
        Ok(Facts::default().line(format!("$ {shown}")).line(stdout))
    }

    /// PodSandboxStatus.
    pub(super) async fn status(&mut self, client: &mut Client, room: &str) -> anyhow::Result<Facts> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: true };
        let answer = client.runtime.pod_sandbox_status(request).await?.into_inner();
        let status = answer.status.context("the answer has no status")?;
        ensure!(status.state() == v1::PodSandboxState::SandboxReady, "the pod is {:?}", status.state());
        let info = first(&answer.info)?;
        let text = |key: &str| info[key].as_str().unwrap_or("?").to_owned();
        for id in &self.containers {
            self.identities.push(self.identity(client, id).await?.0);
        }
        Ok(Facts::default()
            .line(format!("state    {}", status.state().as_str_name()))
            .line(format!("machine  {}", text("machine")))
            .line(format!("kernel   {}", text("kernel")))
            .line(format!("boot id  {}", text("bootId")))
            .line(format!("cgroup   {}", text("cgroup")))
            .line(format!("logs     {}", self.logs.display().to_string().replace(room, "..."))))
    }

    /// Lines of the client's log, remembered.
    pub(super) fn seen(&self) -> anyhow::Result<usize> {
        let seen = logs::read(&self.client_log())?.len();
        self.seen.set(seen);
        Ok(seen)
    }

    /// Waits until the client's log has that many lines.
    pub(super) async fn wait_for_requests(&self, lines: usize) -> anyhow::Result<()> {
        logs::wait(&self.client_log(), lines).await.map(|_| ())
    }

    /// Compares the containers with what they were, and reads the logs through.
    pub(super) async fn unharmed(&self, client: &mut Client) -> anyhow::Result<Facts> {
        let mut facts = Facts::default();
        for ((id, before), name) in self.containers.iter().zip(&self.identities).zip(["server", "client"]) {
            let (now, status) = self.identity(client, id).await?;
            ensure!(status.state() == v1::ContainerState::ContainerRunning, "{name} is {:?}", status.state());
            ensure!(now == *before, "{name} was {before:?} and is {now:?}");
            facts = facts.text(format!("{name}: still process {}, started at the same time", now.pid));
        }
        let alone = logs::read(&self.client_log())?.len();
        // Lines from under the new daemon, too.
        let answers = logs::wait(&self.client_log(), alone + 2).await?;
        let requests = logs::wait(&self.server_log(), answers.len()).await?;
        let count = logs::check(&requests, &answers, self.exec_answer)?;
        Ok(facts.text(format!(
            "logs: requests 1 to {count} without a gap, {} of them while no daemon ran",
            alone.saturating_sub(self.seen.get())
        )))
    }

    /// StopPodSandbox and RemovePodSandbox.
    pub(super) async fn remove(&self, client: &mut Client) -> anyhow::Result<()> {
        for id in &self.containers {
            let request = v1::StopContainerRequest { container_id: id.clone(), timeout: GRACE_SECONDS };
            client.runtime.stop_container(request).await.context("stop a container")?;
            let request = v1::RemoveContainerRequest { container_id: id.clone() };
            client.runtime.remove_container(request).await.context("remove a container")?;
        }
        let id = self.id.clone();
        client
            .runtime
            .stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() })
            .await
            .context("stop the pod")?;
        client
            .runtime
            .remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id })
            .await
            .context("remove the pod")?;
        let pods = client.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner();
        ensure!(pods.items.is_empty(), "{} pods are left", pods.items.len());
        Ok(())
    }
}

/// kina's verbose answers are JSON under one key.
fn first(info: &BTreeMap<String, String>) -> anyhow::Result<Value> {
    let text = info.values().next().context("the answer is not verbose")?;
    Ok(serde_json::from_str(text)?)
}

/// As much of an id as crictl shows.
fn short(id: &str) -> &str {
    id.get(..13).unwrap_or(id)
}
