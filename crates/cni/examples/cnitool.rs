//! Adds an interface to a network namespace and removes it, as the `cnitool` of
//! the CNI project does:
//!
//! ```text
//! cnitool add|check|del|gc|status|plugins NETWORK NETNS
//! ```
//!
//! `gc` keeps the attachment of the namespace and removes all others of the
//! network. The environment says the rest: `NETCONFPATH` (/etc/cni/net.d),
//! `CNI_PATH` (/opt/cni/bin), `CNI_CACHE` (/var/lib/cni), `CNI_IFNAME` (eth0),
//! `CNI_CONTAINERID` (the namespace's name), `CNI_ARGS` (`K=V;K=V`) and
//! `CAP_ARGS` (capability arguments as a JSON object).

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use kina_cni::{
    AddError, Attachment, Check, Cleanup, Cni, LocalHost, Network, Options, PluginReport, Status,
    load_directory,
};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, network, netns] = arguments.as_slice() else {
        return Err("usage: cnitool add|check|del|gc|status|plugins NETWORK NETNS".into());
    };

    let mut options = Options::default();
    if let Some(path) = variable("CNI_PATH") {
        options.plugin_directories = std::env::split_paths(&path).collect();
    }
    if let Some(directory) = variable("CNI_CACHE") {
        options.cache_directory = directory.into();
    }
    let host = Arc::new(LocalHost);
    let directory = variable("NETCONFPATH").unwrap_or("/etc/cni/net.d".to_owned());
    let configurations = load_directory(&*host, Path::new(&directory)).await?;
    for (_, error) in configurations.broken() {
        eprintln!("{}", chain(error));
    }
    let network = configurations.named(network).ok_or(format!("no network {network} in {directory}"))?;
    let cni = Cni::new(host, options);
    perform(&cni, command, network, &attachment(netns)?).await
}

async fn perform(
    cni: &Cni,
    command: &str,
    network: &Network,
    attachment: &Attachment,
) -> Result<(), Box<dyn Error>> {
    match command {
        "add" => match cni.add(network, attachment).await {
            Ok(result) => println!("{:#}", result.to_value(network.version())?),
            Err(AddError { cause, cleanup: Cleanup::Failed(error), .. }) => {
                return Err(format!("{}; and the DEL after it: {}", chain(&cause), chain(&error)).into());
            }
            Err(error) => return Err(error.into()),
        },
        "check" => match cni.check(network, attachment).await? {
            Check::Unsupported => return Err("the network's version has no CHECK".into()),
            Check::Passed | Check::Disabled => {}
        },
        "del" => cni.del_cached(network.name(), Some(network), attachment).await?,
        "status" => match cni.status(network).await? {
            Status::NotReady(error) | Status::LimitedConnectivity(error) => return Err(error.into()),
            Status::Ready | Status::Unsupported => {}
        },
        "gc" => {
            let collected = cni.gc(network, std::slice::from_ref(&attachment.id)).await?;
            for id in &collected.removed {
                println!("removed {} {}", id.container_id, id.interface);
            }
            let errors: Vec<_> = collected.errors.iter().map(|error| chain(error)).collect();
            if !errors.is_empty() {
                return Err(errors.join("\n").into());
            }
        }
        "plugins" => {
            for PluginReport { plugin, versions, problem, .. } in cni.inspect(network).await {
                println!("{plugin}: {}", problem.map_or(versions.join(" "), |problem| chain(&problem)));
            }
        }
        other => return Err(format!("there is no command {other}").into()),
    }
    Ok(())
}

fn attachment(netns: &str) -> Result<Attachment, Box<dyn Error>> {
    let netns = std::path::absolute(netns)?.to_string_lossy().into_owned();
    let container_id = variable("CNI_CONTAINERID")
        .or_else(|| netns.rsplit('/').next().map(str::to_owned))
        .unwrap_or_default();
    let interface = variable("CNI_IFNAME").unwrap_or("eth0".to_owned());
    let mut attachment = Attachment::new(&container_id, &interface, &netns);
    for pair in variable("CNI_ARGS").iter().flat_map(|pairs| pairs.split(';')) {
        let (name, value) = pair.split_once('=').ok_or(format!("{pair:?} in CNI_ARGS is no K=V"))?;
        attachment = attachment.with_argument(name, value);
    }
    if let Some(capabilities) = variable("CAP_ARGS") {
        attachment.capabilities = serde_json::from_str(&capabilities)?;
    }
    Ok(attachment)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
