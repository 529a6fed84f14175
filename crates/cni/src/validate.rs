//! VERSION, and whether a network's plugins are there and speak its version.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::cni::Cni;
use crate::config::Network;
use crate::error::{Command, Error};
use crate::execute::{Clock, Variables, excerpt};
use crate::result::ConvertError;
use crate::version::SpecVersion;

/// Most versions of a plugin that are remembered.
const MAX_VERSIONS: usize = 64;

/// A plugin of a network, as it was found.
#[derive(Debug)]
pub struct PluginReport {
    /// Its type.
    pub plugin: String,
    /// Its executable, if there is one.
    pub path: Option<PathBuf>,
    /// The versions that it says it speaks.
    pub versions: Vec<String>,
    /// Why it cannot be used: not found, does not say its versions, or does not
    /// speak the network's.
    pub problem: Option<Error>,
}

impl Cni {
    /// The versions that a plugin says it speaks. They are remembered until the
    /// executable changes. A plugin that does not know VERSION speaks 0.1.0.
    ///
    /// # Errors
    /// The plugin is missing, or does not answer as it should.
    pub async fn plugin_versions(&self, plugin_type: &str) -> Result<Vec<String>, Error> {
        crate::check_plugin_type(plugin_type)?;
        self.versions_of(plugin_type).await.1
    }

    async fn versions_of(&self, plugin_type: &str) -> (Option<PathBuf>, Result<Vec<String>, Error>) {
        let (path, found) = match self.find(plugin_type).await {
            Ok(located) => located,
            Err(error) => return (None, Err(error)),
        };
        if let Some(versions) = self.known_versions.get(&path, found.identity.as_deref()) {
            return (Some(path), Ok(versions));
        }
        let versions = self.ask_versions(plugin_type, path.clone()).await;
        if let (Some(identity), Ok(versions)) = (found.identity, &versions) {
            self.known_versions.set(&path, identity, versions.clone());
        }
        (Some(path), versions)
    }

    async fn ask_versions(&self, plugin_type: &str, path: PathBuf) -> Result<Vec<String>, Error> {
        // Old plugins want these variables for every command.
        let dummies =
            Variables { netns: "dummy", interface: "dummy", path: Some("dummy"), ..Variables::default() };
        let request = json!({"cniVersion": SpecVersion::NEWEST.as_str()}).to_string().into_bytes();
        let clock = Clock::start(self.options.deadlines.version);
        let command = Command::Version;
        let asked = self.execute_file(command, plugin_type, path, &dummies, request, clock).await;
        let output = match asked {
            Ok(output) => output,
            // What plugins of 0.1.0 say.
            Err(Error::Plugin(error)) if error.message == "unknown CNI_COMMAND: VERSION" => {
                return Ok(vec![SpecVersion::V0_1_0.to_string()]);
            }
            Err(error) => return Err(error),
        };
        versions_in(&output).map_err(|source| Error::BadResult {
            plugin: plugin_type.to_owned(),
            command,
            output: excerpt(&output),
            source,
        })
    }

    /// Looks at all plugins of a network: whether they are there, and speak its
    /// version. The network can be used if no report has a problem.
    pub async fn inspect(&self, network: &Network) -> Vec<PluginReport> {
        let mut reports = Vec::new();
        for plugin in network.plugins() {
            let plugin = plugin.plugin_type().to_owned();
            let (path, versions) = self.versions_of(&plugin).await;
            reports.push(match versions {
                Err(problem) => PluginReport { plugin, path, versions: Vec::new(), problem: Some(problem) },
                Ok(versions) => {
                    let wanted = network.version();
                    let speaks = versions.iter().any(|version| version == wanted.as_str());
                    let problem = (!speaks).then(|| Error::PluginVersion {
                        plugin: plugin.clone(),
                        wanted,
                        supported: versions.clone(),
                    });
                    PluginReport { plugin, path, versions, problem }
                }
            });
        }
        reports
    }

    /// Checks that all plugins of a network are there and speak its version.
    ///
    /// # Errors
    /// The first problem; [`inspect`](Self::inspect) has them all.
    pub async fn validate(&self, network: &Network) -> Result<(), Error> {
        match self.inspect(network).await.into_iter().find_map(|report| report.problem) {
            Some(problem) => Err(problem),
            None => Ok(()),
        }
    }

    /// The network in the highest of its versions that all its plugins speak.
    /// (libcni takes the highest that the runtime speaks, and fails if a plugin
    /// does not.)
    ///
    /// # Errors
    /// A plugin is missing or does not answer, or they have no version in common;
    /// then the error is about the version that would have been taken.
    pub async fn negotiate(&self, network: &Network) -> Result<Network, Error> {
        let reports = self.inspect(network).await;
        let spoken_by_all = |version: &SpecVersion| {
            let speaks =
                |report: &PluginReport| report.versions.iter().any(|known| known == version.as_str());
            reports.iter().all(speaks)
        };
        let common = network.versions().iter().rev().find(|version| spoken_by_all(version));
        match common.and_then(|version| network.with_version(*version)) {
            Some(network) => Ok(network),
            None => match reports.into_iter().find_map(|report| report.problem) {
                Some(problem) => Err(problem),
                None => Ok(network.clone()),
            },
        }
    }
}

/// What executables said about their versions, by path, with the identity that
/// the file then had. They are as few as there are plugins.
#[derive(Default)]
pub(crate) struct KnownVersions(Mutex<HashMap<PathBuf, (String, Vec<String>)>>);

impl KnownVersions {
    fn get(&self, path: &Path, identity: Option<&str>) -> Option<Vec<String>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (then, versions) = known.get(path)?;
        (identity == Some(then)).then(|| versions.clone())
    }

    fn set(&self, path: &Path, identity: String, versions: Vec<String>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(path.to_owned(), (identity, versions));
    }
}

/// The answer to VERSION.
fn versions_in(output: &[u8]) -> Result<Vec<String>, ConvertError> {
    let answer: Value = serde_json::from_slice(output)?;
    let answer = answer.as_object().ok_or(ConvertError::NotAnObject)?;
    let stated = answer.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
    let supported = answer.get("supportedVersions").and_then(Value::as_array);
    let versions: Vec<String> = supported
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .take(MAX_VERSIONS)
        .map(|version| version.chars().take(64).collect())
        .collect();
    match (stated, versions.is_empty()) {
        ("", _) => Err(ConvertError::MissingKey("cniVersion")),
        // That version did not have the list.
        ("0.2.0", true) => Ok(vec!["0.1.0".to_owned(), "0.2.0".to_owned()]),
        (_, true) => Err(ConvertError::MissingKey("supportedVersions")),
        (_, false) => Ok(versions),
    }
}
