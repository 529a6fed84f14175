//! What Apple's `container` and macOS say of themselves, of all versions: until
//! 0.10 there was no JSON of the system, until 1.0 that of containers and networks
//! had another shape. Pure.

use std::fmt;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde_json::Value;

/// A version: 1.2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32, pub(super) u32);

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// The first version in a text: a number alone, or a whole line such as
    /// `container CLI version 0.9.0 (build: release, commit: abc)`. What follows a
    /// dash or a plus is a build's name.
    pub(super) fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let mut parts = word.split(['-', '+']).next()?.split('.').map(str::parse);
            let version = Self(parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
            parts.next().is_none().then_some(version)
        })
    }
}

/// The `container` command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Container {
    /// It is in no place where programs are.
    Missing,
    /// The configuration names this file, and it is not there.
    NotThere(PathBuf),
    /// It is in the search path, and not where the daemon looks for it.
    Elsewhere(PathBuf),
    /// It is there and says no version; this is what it says.
    Strange(String),
    /// It is there.
    Found {
        /// Where.
        program: PathBuf,
        /// Its version.
        version: Version,
        /// That of the service, if it answers.
        service: Option<Version>,
    },
}

/// The versions of command and service in `container system version --format json`.
pub(super) fn versions(json: &str) -> Option<(Version, Option<Version>)> {
    let all: Vec<Value> = serde_json::from_str(json).ok()?;
    // The service's version is a whole line.
    let version = |entry: Option<&Value>| Version::find(entry?["version"].as_str()?);
    Some((version(all.first())?, version(all.get(1))))
}

/// The service behind the command, a job of launchd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// It answers, and keeps its things there.
    Running {
        /// The directory.
        root: PathBuf,
    },
    /// It does not run; this is its word for it.
    Down(String),
    /// It cannot be told, for this reason.
    Unknown(String),
}

/// Reads `container system status --format json`. That of a service that does not
/// run is an answer as well, though the command then fails.
pub(super) fn service(json: &str) -> Option<Service> {
    let value: Value = serde_json::from_str(json).ok()?;
    match value["status"].as_str()? {
        "running" => Some(Service::Running { root: value["appRoot"].as_str()?.into() }),
        word => Some(Service::Down(word.to_owned())),
    }
}

/// A network of `container`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) name: String,
    /// Its IPv4 addresses, once they are known.
    pub(super) subnet: Option<Ipv4Net>,
}

/// Reads `container network list --format json`.
pub(super) fn networks(json: &str) -> Option<Vec<Network>> {
    let all: Vec<Value> = serde_json::from_str(json).ok()?;
    let network = |value: &Value| {
        let status = &value["status"];
        // Until 1.0 `address`, with the gateway's bits set in some versions.
        let subnet = status["ipv4Subnet"].as_str().or_else(|| status["address"].as_str());
        let subnet: Option<Ipv4Net> = subnet.and_then(|text| text.parse().ok());
        Some(Network { name: value["id"].as_str()?.to_owned(), subnet: subnet.map(|net| net.trunc()) })
    };
    all.iter().map(network).collect()
}

/// A virtual machine that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// What it was given, in bytes.
    pub(super) memory: u64,
}

/// Reads `container list --format json`: those that run.
pub(super) fn machines(json: &str) -> Option<Vec<Machine>> {
    let all: Vec<Value> = serde_json::from_str(json).ok()?;
    let running = all.iter().filter(|value| {
        // Until 1.0 the status was a word.
        let status = &value["status"];
        status.as_str().or_else(|| status["state"].as_str()) == Some("running")
    });
    let memory = |value: &Value| value["configuration"]["resources"]["memoryInBytes"].as_u64();
    Some(running.map(|value| Machine { memory: memory(value).unwrap_or(0) }).collect())
}
