//! What the simulator's processes say to each other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Problem;
use crate::resources::{
    Attachment, Configuration, ImageDescription, Network, NetworkConfiguration, Process, Snapshot, State,
    Stats, Volume,
};
use crate::settings::Kind;

/// What a client asks of the server. The names are those of Apple's routes: error texts have them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "route", rename_all = "camelCase")]
pub enum Request {
    /// Is anybody there?
    Ping,
    /// Make a container.
    ContainerCreate {
        /// All about it.
        configuration: Box<Configuration>,
        /// Whether it goes when it stops.
        auto_remove: bool,
        /// Words for its kernel.
        kernel_arguments: Vec<String>,
    },
    /// All containers.
    ContainerList,
    /// Boot a container's machine. Carries its standard streams.
    ContainerBootstrap {
        /// Whose.
        id: String,
        /// Whether standard input is among the streams.
        stdin: bool,
    },
    /// Start a process: the first one has the container's id.
    ContainerStartProcess {
        /// Whose.
        id: String,
        /// Which.
        process: String,
    },
    /// Prepare one more process. Carries its standard streams.
    ContainerCreateProcess {
        /// Whose.
        id: String,
        /// Its name.
        process: String,
        /// All about it.
        configuration: Process,
        /// Whether standard input is among the streams.
        stdin: bool,
    },
    /// The end of a process.
    ContainerWait {
        /// Whose.
        id: String,
        /// Which.
        process: String,
    },
    /// A signal.
    ContainerKill {
        /// Whose.
        id: String,
        /// Which.
        process: String,
        /// Its name or number.
        signal: String,
    },
    /// Stop.
    ContainerStop {
        /// Which.
        id: String,
        /// In seconds.
        timeout: i32,
        /// Its name or number.
        signal: Option<String>,
    },
    /// Delete.
    ContainerDelete {
        /// Which.
        id: String,
        /// Even if it runs.
        force: bool,
    },
    /// The logs: standard output and error, and the boot's.
    ContainerLogs {
        /// Whose.
        id: String,
    },
    /// Figures.
    ContainerStats {
        /// Whose.
        id: String,
    },
    /// All images.
    ImageList,
    /// Take images in.
    ImageLoad {
        /// The archive.
        path: String,
    },
    /// Give an image one more name.
    ImageTag {
        /// Which.
        image: ImageDescription,
        /// The name.
        reference: String,
    },
    /// Take a name away.
    ImageDelete {
        /// Which.
        reference: String,
    },
    /// Fetch an image.
    ImagePull {
        /// Which.
        reference: String,
    },
    /// All networks.
    NetworkList,
    /// Make a network.
    NetworkCreate {
        /// All about it.
        configuration: NetworkConfiguration,
    },
    /// Delete a network.
    NetworkDelete {
        /// Which.
        id: String,
    },
    /// All volumes.
    VolumeList,
    /// Make a volume.
    VolumeCreate {
        /// All about it; where it lies is the server's to say.
        volume: Volume,
    },
    /// Delete a volume.
    VolumeDelete {
        /// Which.
        name: String,
    },
    /// Make a kernel the default one.
    InstallKernel {
        /// Its file.
        path: String,
        /// Whether in place of another.
        force: bool,
    },
    /// The default kernel.
    GetDefaultKernel,
}

/// What the server answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// It is done.
    Done,
    /// Somebody is there.
    Health {
        /// Where the server's data lies.
        app_root: String,
        /// Where its programs lie.
        install_root: String,
        /// Where its logs lie, if that was said.
        log_root: Option<String>,
        /// Its release.
        version: String,
    },
    /// Containers.
    Containers(Vec<Snapshot>),
    /// The end of a process.
    Exit(i32),
    /// Figures.
    Stats(Stats),
    /// Images.
    Images(Vec<ImageDescription>),
    /// Networks.
    Networks(Vec<Network>),
    /// Volumes.
    Volumes(Vec<Volume>),
    /// A path.
    Path(String),
    /// It went wrong.
    Failed(Problem),
}

/// What the server asks of the process that keeps a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "route", rename_all = "camelCase")]
pub enum HelperRequest {
    /// Boot. Carries the first process' standard streams.
    Bootstrap {
        /// Whether standard input is among the streams.
        stdin: bool,
    },
    /// Start a process.
    Start {
        /// Which.
        process: String,
    },
    /// Prepare one more process. Carries its standard streams.
    Create {
        /// Its name.
        process: String,
        /// All about it.
        configuration: Process,
        /// Whether standard input is among the streams.
        stdin: bool,
    },
    /// The end of a process.
    Wait {
        /// Which.
        process: String,
    },
    /// A signal.
    Kill {
        /// Which.
        process: String,
        /// Its name or number.
        signal: String,
    },
    /// Stop the machine.
    Stop {
        /// In seconds.
        timeout: i32,
        /// Its name or number.
        signal: Option<String>,
    },
    /// Answer what was asked; the end comes next.
    Shutdown,
    /// How it is.
    State,
    /// Figures.
    Stats,
}

/// What the process that keeps a container answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HelperAnswer {
    /// It is done.
    Done,
    /// How it is.
    State {
        /// What it does.
        state: State,
        /// Where it is reached.
        networks: Vec<Attachment>,
        /// Its first process, if there is one.
        pid: Option<i32>,
    },
    /// The end of a process.
    Exit(i32),
    /// Figures.
    Stats(Stats),
    /// It went wrong.
    Failed(Problem),
}

/// What is asked of the process that keeps the networks. A connection that has been given
/// addresses holds them until it ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "route", rename_all = "camelCase")]
pub enum NetworkRequest {
    /// Make a network's bridge.
    Start {
        /// Which.
        network: String,
        /// Its subnet.
        subnet: String,
    },
    /// Take a network's bridge away.
    Stop {
        /// Which.
        network: String,
    },
    /// An address and a card for a machine.
    Attach {
        /// In which network.
        network: String,
        /// For whom.
        hostname: String,
        /// Of the card.
        mac: Option<String>,
        /// The largest packet.
        mtu: u32,
        /// What joins the two.
        card: Card,
        /// Of the network, if it has any.
        ipv6_prefix: Option<String>,
    },
    /// The process whose network namespace the networks are in.
    Where,
}

/// What joins a machine to a network.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Card {
    /// A pair of cards, one of them in the machine's network namespace, with its address.
    Pair {
        /// A process in that namespace.
        pid: i32,
        /// The number of the card.
        index: usize,
    },
    /// A tap in the networks' namespace that somebody has open. It goes when that ends.
    Tap {
        /// Its name.
        name: String,
    },
}

/// What the process that keeps the networks answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NetworkAnswer {
    /// It is done.
    Done,
    /// An address and a card.
    Attached(Attachment),
    /// A process.
    Process(i32),
    /// It went wrong.
    Failed(Problem),
}

/// What lies in a container's directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bundle {
    /// All about the container.
    pub configuration: Configuration,
    /// Whether it goes when it stops.
    pub auto_remove: bool,
    /// Words for its kernel.
    pub kernel_arguments: Vec<String>,
    /// Prefixes of its networks that have any.
    pub ipv6_prefixes: BTreeMap<String, String>,
    /// What its machine is.
    pub kind: Kind,
}

/// The name of the route of a request.
#[must_use]
pub fn route(request: &Request) -> String {
    match serde_json::to_value(request) {
        Ok(Value::Object(fields)) => {
            fields.get("route").and_then(Value::as_str).unwrap_or_default().to_owned()
        }
        Ok(_) | Err(_) => String::new(),
    }
}
