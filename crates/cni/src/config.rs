//! Network configurations and what plugins get of them.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::capability::Capabilities;
use crate::error::{ConfigProblem, Error};
use crate::name::{check_network_name, check_plugin_type};
use crate::version::SpecVersion;

/// A network: a name and the plugins that make an attachment to it.
///
/// Invariants: the name is valid, there is at least one plugin, and the version
/// is one that this crate speaks.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    name: String,
    version: SpecVersion,
    versions: BTreeSet<SpecVersion>,
    disable_check: bool,
    disable_gc: bool,
    plugins: Vec<Plugin>,
    json: Vec<u8>,
}

/// One plugin of a network with its configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugin {
    plugin_type: String,
    capabilities: BTreeSet<String>,
    config: Map<String, Value>,
}

/// A list that may still lack its plugins.
pub(crate) struct Draft {
    pub(crate) network: Network,
    pub(crate) load_only_inlined: bool,
}

impl Network {
    /// Reads a list of plugins, the content of a `.conflist` file. Plugins that
    /// lie beside such a file are not looked for: see
    /// [`load_directory`](crate::load_directory).
    ///
    /// ```
    /// use kina_cni::{Network, SpecVersion};
    ///
    /// let network = Network::from_list(
    ///     br#"{"cniVersions": ["0.4.0", "1.0.0", "9.0.0"], "name": "pods", "plugins": [{"type": "ptp"}]}"#,
    /// )?;
    /// assert_eq!(network.version(), SpecVersion::V1_0_0);
    /// # Ok::<(), kina_cni::ConfigProblem>(())
    /// ```
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_list(json: &[u8]) -> Result<Self, ConfigProblem> {
        let draft = Draft::from_list(json)?;
        if draft.network.plugins.is_empty() {
            return Err(ConfigProblem::NoPlugins);
        }
        Ok(draft.network)
    }

    /// Reads a single plugin, the content of a `.conf` or `.json` file, as a
    /// list of one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_single(json: &[u8]) -> Result<Self, ConfigProblem> {
        let single = object(json)?;
        if single.contains_key("plugins") && !single.contains_key("type") {
            return Err(ConfigProblem::ListInSingleFile);
        }
        let name = text(&single, "name")?.ok_or(ConfigProblem::Missing("name"))?;
        let version = text(&single, "cniVersion")?.unwrap_or_default();
        let list = json!({"name": name, "cniVersion": version, "plugins": [single]});
        // libcni caches exactly these three keys.
        Self::from_list(list.to_string().as_bytes())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version that its plugins are spoken to in: the highest of those that
    /// the configuration lists and this crate speaks.
    #[must_use]
    pub fn version(&self) -> SpecVersion {
        self.version
    }

    /// The versions that the configuration lists and this crate speaks.
    #[must_use]
    pub fn versions(&self) -> &BTreeSet<SpecVersion> {
        &self.versions
    }

    /// The same network, spoken to in another of its versions; `None` if the
    /// configuration does not list it.
    #[must_use]
    pub fn with_version(&self, version: SpecVersion) -> Option<Self> {
        self.versions.contains(&version).then(|| Self { version, ..self.clone() })
    }

    /// Whether CHECK must not be used.
    #[must_use]
    pub fn disable_check(&self) -> bool {
        self.disable_check
    }

    /// Whether GC must not be used.
    #[must_use]
    pub fn disable_gc(&self) -> bool {
        self.disable_gc
    }

    /// Its plugins in the order of ADD.
    #[must_use]
    pub fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    /// The capabilities that at least one plugin has.
    #[must_use]
    pub fn capabilities(&self) -> BTreeSet<&str> {
        self.plugins.iter().flat_map(|plugin| plugin.capabilities.iter().map(String::as_str)).collect()
    }

    /// As JSON: what was read, as it was, unless plugins beside the file belong
    /// to it. Then all plugins are in the list, and `loadOnlyInlinedPlugins` is
    /// set, so that who reads it does not add them again.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        &self.json
    }
}

impl Draft {
    pub(crate) fn from_list(json: &[u8]) -> Result<Self, ConfigProblem> {
        let list = object(json)?;
        let name = text(&list, "name")?.ok_or(ConfigProblem::Missing("name"))?;
        check_network_name(&name).map_err(invalid_name)?;
        let versions = versions(&list)?;
        let version = versions.last().copied().unwrap_or(SpecVersion::V0_1_0);
        let load_only_inlined = boolean(&list, "loadOnlyInlinedPlugins")?;
        let plugins = match list.get("plugins") {
            None if load_only_inlined => return Err(ConfigProblem::OnlyInlined),
            None => Vec::new(),
            Some(Value::Array(plugins)) if plugins.is_empty() => return Err(ConfigProblem::NoPlugins),
            Some(Value::Array(plugins)) => plugins
                .iter()
                .enumerate()
                .map(|(index, plugin)| {
                    Plugin::from_value(plugin).map_err(|problem| ConfigProblem::Plugin {
                        position: index + 1,
                        problem: Box::new(problem),
                    })
                })
                .collect::<Result<_, _>>()?,
            Some(_) => {
                return Err(ConfigProblem::WrongType { key: "plugins", expected: "a list of objects" });
            }
        };
        let network = Network {
            name,
            version,
            versions,
            disable_check: boolean(&list, "disableCheck")?,
            disable_gc: boolean(&list, "disableGC")?,
            plugins,
            json: json.to_vec(),
        };
        Ok(Self { network, load_only_inlined })
    }

    /// Adds the plugins that lie beside the list.
    pub(crate) fn with_siblings(mut self, siblings: Vec<Plugin>) -> Result<Network, ConfigProblem> {
        if siblings.is_empty() {
            return if self.network.plugins.is_empty() {
                Err(ConfigProblem::NoPlugins)
            } else {
                Ok(self.network)
            };
        }
        self.network.plugins.extend(siblings);
        let mut list = object(&self.network.json)?;
        let plugins = self.network.plugins.iter().map(|plugin| Value::Object(plugin.config.clone()));
        list.insert("plugins".to_owned(), plugins.collect());
        list.insert("loadOnlyInlinedPlugins".to_owned(), Value::Bool(true));
        self.network.json = Value::Object(list).to_string().into_bytes();
        Ok(self.network)
    }
}

impl Plugin {
    /// Reads the configuration of one plugin.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, ConfigProblem> {
        Self::from_value(&serde_json::from_slice(json).map_err(ConfigProblem::Syntax)?)
    }

    fn from_value(value: &Value) -> Result<Self, ConfigProblem> {
        let config = value.as_object().ok_or(ConfigProblem::NotAnObject)?.clone();
        let plugin_type = text(&config, "type")?.ok_or(ConfigProblem::Missing("type"))?;
        check_plugin_type(&plugin_type).map_err(invalid_name)?;
        let wrong = ConfigProblem::WrongType { key: "capabilities", expected: "an object of booleans" };
        let capabilities = match config.get("capabilities") {
            None | Some(Value::Null) => BTreeSet::new(),
            Some(Value::Object(capabilities)) => {
                let mut supported = BTreeSet::new();
                for (name, value) in capabilities {
                    match value {
                        Value::Bool(true) => drop(supported.insert(name.clone())),
                        Value::Bool(false) | Value::Null => {}
                        _ => return Err(wrong),
                    }
                }
                supported
            }
            Some(_) => return Err(wrong),
        };
        Ok(Self { plugin_type, capabilities, config })
    }

    /// Its type: the name of its executable.
    #[must_use]
    pub fn plugin_type(&self) -> &str {
        &self.plugin_type
    }

    /// The capabilities that it has.
    #[must_use]
    pub fn capabilities(&self) -> &BTreeSet<String> {
        &self.capabilities
    }

    /// Its configuration with all keys, also those that nobody here knows.
    #[must_use]
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// What the plugin reads from standard input: its configuration with the
    /// network's name and version, and with what `extra` adds. `capabilities`
    /// stays, as it does with libcni: plugins that call other plugins read it.
    pub(crate) fn request(&self, network: &Network, extra: Map<String, Value>) -> Vec<u8> {
        let mut request = self.config.clone();
        // Only the runtime knows a previous result.
        request.remove("prevResult");
        request.insert("name".to_owned(), Value::from(network.name()));
        request.insert("cniVersion".to_owned(), Value::from(network.version().as_str()));
        request.extend(extra);
        Value::Object(request).to_string().into_bytes()
    }

    /// The `runtimeConfig` of this plugin: what it has the capability for, out of
    /// what the runtime offers; `None` if that is nothing.
    pub(crate) fn runtime_config(&self, offered: &Capabilities) -> Option<Value> {
        let wanted: Map<String, Value> = offered
            .iter()
            .filter(|(name, _)| self.capabilities.contains(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        (!wanted.is_empty()).then_some(Value::Object(wanted))
    }
}

fn object(json: &[u8]) -> Result<Map<String, Value>, ConfigProblem> {
    match serde_json::from_slice(json).map_err(ConfigProblem::Syntax)? {
        Value::Object(object) => Ok(object),
        _ => Err(ConfigProblem::NotAnObject),
    }
}

/// A text; the empty one is as good as none.
fn text(object: &Map<String, Value>, key: &'static str) -> Result<Option<String>, ConfigProblem> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(ConfigProblem::WrongType { key, expected: "a text" }),
    }
}

/// A boolean, which may be written as a text.
fn boolean(object: &Map<String, Value>, key: &'static str) -> Result<bool, ConfigProblem> {
    match object.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(ConfigProblem::WrongType { key, expected: "true or false" }),
    }
}

/// The versions of a list that this crate speaks, of which there is one at least.
fn versions(list: &Map<String, Value>) -> Result<BTreeSet<SpecVersion>, ConfigProblem> {
    let mut offered: Vec<String> = match list.get("cniVersions") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(versions)) => versions
            .iter()
            .map(|version| version.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or(ConfigProblem::WrongType { key: "cniVersions", expected: "a list of texts" })?,
        Some(_) => {
            return Err(ConfigProblem::WrongType { key: "cniVersions", expected: "a list of texts" });
        }
    };
    match text(list, "cniVersion")? {
        Some(version) => offered.push(version),
        None if offered.is_empty() => offered.push(SpecVersion::V0_1_0.to_string()),
        None => {}
    }
    let known: BTreeSet<SpecVersion> = offered.iter().filter_map(|version| version.parse().ok()).collect();
    if known.is_empty() { Err(ConfigProblem::Version { offered }) } else { Ok(known) }
}

fn invalid_name(error: Error) -> ConfigProblem {
    match error {
        Error::InvalidName { what, name } => ConfigProblem::InvalidName { what, name },
        // The checks of names give no other.
        _ => ConfigProblem::NotAnObject,
    }
}
