//! `kina network`: the pods' network, asked through the daemon's socket.

use anyhow::bail;
use clap::Subcommand;
use serde_json::Value;

use super::text::{short, table};
use super::{show, socket};
use crate::admin::v1;

/// Flags and what to do.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    daemon: socket::DaemonSocket,
    /// A JSON object, for programs.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the network configurations, with their plugins.
    #[command(visible_alias = "list")]
    Ls,
    /// Say whether pods get a network, and if not, why. Fails if they get none.
    Status,
    /// Ask the plugins whether a pod's attachment is as they made it.
    Check {
        /// The pod's id, or the beginning of it.
        pod: String,
    },
    /// Undo attachments that no pod has any more.
    Gc,
    /// Try a pod's network from within, and say where it fails.
    Test {
        /// The pod's id, or the beginning of it.
        #[arg(long)]
        from: String,
        /// Whom to reach: a pod or an address, and a TCP port if wanted; without
        /// it only the pod's own side and its name servers are tried.
        #[arg(long, value_name = "POD|IP[:PORT]")]
        to: Option<String>,
        /// What the name servers are asked for.
        #[arg(long, default_value = "kubernetes.default.svc.cluster.local")]
        name: String,
    },
}

/// Runs one of the commands.
pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { daemon, json, command } = arguments;
    socket::block_on(async move {
        let mut admin = daemon.connect().await?.admin;
        match command {
            Command::Ls => {
                let answer = admin.network(v1::NetworkRequest {}).await?.into_inner();
                show(json, &network_json(&answer), || list(&answer))?;
            }
            Command::Status => {
                let answer = admin.network(v1::NetworkRequest {}).await?.into_inner();
                show(json, &network_json(&answer), || status(&answer))?;
                if !answer.ready {
                    bail!("pods get no network");
                }
            }
            Command::Check { pod } => {
                let answer = admin.check_network(v1::CheckNetworkRequest { pod }).await?.into_inner();
                let value = serde_json::json!({
                    "pod": answer.pod, "network": answer.network, "outcome": answer.outcome,
                });
                show(json, &value, || {
                    format!("{}: CHECK of network {}: {}", short(&answer.pod), answer.network, answer.outcome)
                })?;
            }
            Command::Gc => {
                let answer = admin.collect_network(v1::CollectNetworkRequest {}).await?.into_inner();
                let value = serde_json::json!({
                    "network": answer.network, "removed": answer.removed,
                    "pluginsTold": answer.plugins_told, "errors": answer.errors,
                });
                show(json, &value, || collected(&answer))?;
                if !answer.errors.is_empty() {
                    bail!("not all could be collected");
                }
            }
            Command::Test { from, to, name } => {
                let request = v1::TryNetworkRequest { from, to: to.unwrap_or_default(), name };
                let answer = admin.try_network(request).await?.into_inner();
                show(json, &trial_json(&answer), || trial(&answer))?;
                if !answer.failure.is_empty() {
                    bail!("{}", answer.failure);
                }
            }
        }
        Ok(())
    })
}

fn network_json(answer: &v1::NetworkResponse) -> Value {
    let plugin = |plugin: &v1::NetworkPlugin| {
        serde_json::json!({
            "type": plugin.r#type, "path": plugin.path,
            "versions": plugin.versions, "problem": plugin.problem,
        })
    };
    let file = |file: &v1::NetworkFile| {
        serde_json::json!({
            "path": file.path, "problem": file.problem, "name": file.name, "cniVersion": file.cni_version,
            "inForce": file.in_force, "plugins": file.plugins.iter().map(plugin).collect::<Vec<_>>(),
        })
    };
    serde_json::json!({
        "ready": answer.ready, "message": answer.message, "network": answer.network,
        "configDirectory": answer.config_directory, "pluginDirectories": answer.plugin_directories,
        "attachments": answer.attachments, "files": answer.files.iter().map(file).collect::<Vec<_>>(),
    })
}

fn list(answer: &v1::NetworkResponse) -> String {
    let mut rows = vec![["", "NETWORK", "CNI", "FILE", "PLUGINS"].map(str::to_owned).to_vec()];
    for file in &answer.files {
        let plugins = file.plugins.iter().map(|plugin| match (&plugin.problem, plugin.path.is_empty()) {
            (problem, _) if problem.is_empty() => plugin.r#type.clone(),
            (_, true) => format!("{} (missing)", plugin.r#type),
            (problem, false) => format!("{} ({problem})", plugin.r#type),
        });
        let (name, plugins) = if file.problem.is_empty() {
            (file.name.clone(), plugins.collect::<Vec<_>>().join(", "))
        } else {
            ("-".to_owned(), file.problem.clone())
        };
        let mark = if file.in_force { "*" } else { "" };
        rows.push(vec![mark.to_owned(), name, file.cni_version.clone(), file.path.clone(), plugins]);
    }
    if answer.files.is_empty() {
        return format!("no network configurations in {}", answer.config_directory);
    }
    table(&rows)
}

fn status(answer: &v1::NetworkResponse) -> String {
    let network = match answer.network.as_str() {
        "" => "no network".to_owned(),
        name => format!("network {name}"),
    };
    let ready = if answer.ready { "ready" } else { "not ready" };
    let mut text = format!("{network}: {ready}, {} attachments", answer.attachments);
    if !answer.message.is_empty() {
        text.push('\n');
        text.push_str(&answer.message);
    }
    text
}

fn collected(answer: &v1::CollectNetworkResponse) -> String {
    let told = if answer.plugins_told { "the plugins freed the rest" } else { "the plugins know no GC" };
    let mut lines = vec![format!("network {}: {} left over, {told}", answer.network, answer.removed.len())];
    lines.extend(answer.removed.iter().map(|pod| format!("  {}", short(pod))));
    lines.extend(answer.errors.iter().map(|error| format!("  {error}")));
    lines.join("\n")
}

fn step_json(step: &v1::TryStep) -> Value {
    let known = |value: u64| (value != 0).then_some(value);
    serde_json::json!({
        "kind": step.kind, "good": step.good, "detail": step.detail,
        "micros": known(step.micros), "bytes": known(step.bytes.into()),
    })
}

fn trial_json(answer: &v1::TryNetworkResponse) -> Value {
    serde_json::json!({
        "from": answer.from, "to": answer.to, "failure": answer.failure,
        "steps": answer.steps.iter().map(step_json).collect::<Vec<_>>(),
        "fromNode": answer.from_node.iter().map(step_json).collect::<Vec<_>>(),
    })
}

fn trial(answer: &v1::TryNetworkResponse) -> String {
    let row = |whence: &str, step: &v1::TryStep| {
        let good = if step.good { "ok" } else { "FAILED" };
        let took = if step.micros == 0 {
            String::new()
        } else {
            format!("{}.{:03} ms", step.micros / 1000, step.micros % 1000)
        };
        vec![whence.to_owned(), step.kind.clone(), good.to_owned(), took, step.detail.clone()]
    };
    let pod = short(&answer.from);
    let mut rows: Vec<_> = answer.steps.iter().map(|step| row(pod, step)).collect();
    rows.extend(answer.from_node.iter().map(|step| row("the node", step)));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_see() {
        let plugin = |kind: &str, path: &str, problem: &str| v1::NetworkPlugin {
            r#type: kind.into(),
            path: path.into(),
            versions: Vec::new(),
            problem: problem.into(),
        };
        let mut answer = v1::NetworkResponse {
            config_directory: "/etc/cni/net.d".into(),
            message: "said".into(),
            ..Default::default()
        };
        assert_eq!(list(&answer), "no network configurations in /etc/cni/net.d");
        assert_eq!(status(&answer), "no network: not ready, 0 attachments\nsaid");
        answer.files = vec![
            v1::NetworkFile { path: "/a".into(), problem: "bad".into(), ..Default::default() },
            v1::NetworkFile {
                path: "/b".into(),
                name: "pods".into(),
                cni_version: "1.0.0".into(),
                in_force: true,
                plugins: vec![plugin("bridge", "/p/bridge", ""), plugin("none", "", "not there")],
                ..Default::default()
            },
        ];
        let text = list(&answer);
        assert!(text.contains("-         ") && text.contains("/a     bad"), "{text}");
        assert!(text.contains("*   pods      1.0.0   /b     bridge, none (missing)"), "{text}");
        let step = |good, micros| v1::TryStep {
            kind: "echo".into(),
            good,
            detail: "10.0.0.1".into(),
            micros,
            bytes: 0,
        };
        let answer = v1::TryNetworkResponse {
            from: "0123456789abcdef".into(),
            steps: vec![step(true, 1234)],
            from_node: vec![step(false, 0)],
            ..Default::default()
        };
        let text = trial(&answer);
        assert!(text.contains("0123456789ab   echo   ok       1.234 ms   10.0.0.1"), "{text}");
        assert!(text.contains("the node       echo   FAILED"), "{text}");
    }
}
