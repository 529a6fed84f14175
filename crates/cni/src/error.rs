//! What can go wrong.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::host::HostError;
use crate::result::ConvertError;
use crate::version::SpecVersion;

/// A failed operation. The causes are in [`std::error::Error::source`] and not
/// in the text: print the whole chain.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that the specification refuses.
    #[error("{name:?} is no valid {what}")]
    InvalidName {
        /// What it should be.
        what: &'static str,
        /// The name, or its beginning.
        name: String,
    },
    /// An argument for `CNI_ARGS` that cannot be written there.
    #[error(
        "the CNI argument {name:?} must have a name, and neither name nor value may hold `;`, `=` or NUL"
    )]
    InvalidArgument {
        /// Its name.
        name: String,
    },
    /// An ADD without a network namespace.
    #[error("container {container_id} has no network namespace to add an interface to")]
    NoNamespace {
        /// The container.
        container_id: String,
    },
    /// A directory cannot be listed.
    #[error("list {}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: HostError,
    },
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: HostError,
    },
    /// A file cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: HostError,
    },
    /// A file cannot be removed.
    #[error("remove {}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: HostError,
    },
    /// A network configuration that is not usable.
    #[error("network configuration {origin} is not usable")]
    Config {
        /// The file, or what else it came from.
        origin: String,
        /// What is wrong with it.
        #[source]
        problem: ConfigProblem,
    },
    /// A cached attachment that is neither a result nor libcni's record of one.
    #[error("the cached attachment {} is damaged", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: HostError,
    },
    /// There is no cached result, so the attachment was never made, or has been
    /// removed.
    #[error("container {container_id} is not attached to network {network} with {interface}")]
    NotAttached {
        /// The network.
        network: String,
        /// The container.
        container_id: String,
        /// The interface in the container.
        interface: String,
    },
    /// An attachment whose configuration is neither current nor cached.
    #[error("no configuration of network {network} is there, neither current nor cached")]
    NoConfig {
        /// The network.
        network: String,
    },
    /// An executable is in none of the directories.
    #[error("plugin {plugin} is not in {}", listed(directories))]
    PluginNotFound {
        /// The plugin's type, which is the name of its executable.
        plugin: String,
        /// Where it was looked for.
        directories: Vec<PathBuf>,
    },
    /// It cannot be found out whether an executable is there.
    #[error("look for plugin {}", path.display())]
    FindPlugin {
        /// The executable.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: HostError,
    },
    /// A plugin does not speak the configuration's version.
    #[error("plugin {plugin} does not speak CNI {wanted}, only {}", supported.join(", "))]
    PluginVersion {
        /// The plugin's type.
        plugin: String,
        /// The configuration's version.
        wanted: SpecVersion,
        /// What the plugin says it speaks.
        supported: Vec<String>,
    },
    /// A plugin could not be executed.
    #[error("execute plugin {plugin} ({command})")]
    Execute {
        /// The plugin's type.
        plugin: String,
        /// What it should do.
        command: Command,
        /// What the host says.
        #[source]
        source: HostError,
    },
    /// A plugin's file stayed open for writing.
    #[error("plugin {plugin} ({command}) cannot be executed: its file is being written")]
    Busy {
        /// The plugin's type.
        plugin: String,
        /// What it should do.
        command: Command,
    },
    /// A plugin was killed at its deadline.
    #[error("plugin {plugin} ({command}) did not end within the {deadline:?} of the whole operation")]
    Deadline {
        /// The plugin's type.
        plugin: String,
        /// What it should do.
        command: Command,
        /// Of the operation, which may consist of several plugins.
        deadline: Duration,
    },
    /// A plugin was killed because it printed too much.
    #[error("plugin {plugin} ({command}) printed more than {limit} bytes")]
    TooMuchOutput {
        /// The plugin's type.
        plugin: String,
        /// What it should do.
        command: Command,
        /// Most bytes on either stream.
        limit: usize,
    },
    /// A plugin failed and said why.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A plugin failed without an error object.
    #[error("plugin {plugin} ({command}) ended with code {exit_code} and no error object{}", said(output))]
    PluginCrashed {
        /// The plugin's type.
        plugin: String,
        /// What it should do.
        command: Command,
        /// Its exit code; 128 plus the signal's number where one ended it.
        exit_code: i32,
        /// The end of what it printed on standard error, or else on standard
        /// output.
        output: String,
    },
    /// A plugin succeeded and printed what is not a result.
    #[error("plugin {plugin} ({command}) printed no usable result{}", said(output))]
    BadResult {
        /// The plugin's type.
        plugin: String,
        /// What it did.
        command: Command,
        /// The end of what it printed.
        output: String,
        /// What is wrong with it.
        #[source]
        source: ConvertError,
    },
}

impl Error {
    /// The code by which a plugin said what is wrong.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Plugin(error) => Some(error.code),
            _ => None,
        }
    }
}

/// A plugin's own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("plugin {plugin} ({command}) failed with code {code}: {message}{}", detailed(details))]
pub struct PluginError {
    /// The plugin's type.
    pub plugin: String,
    /// What it should do.
    pub command: Command,
    /// The kind of error.
    pub code: ErrorCode,
    /// `msg` of its error object.
    pub message: String,
    /// `details` of its error object, or nothing.
    pub details: String,
    /// The end of what it printed on standard error.
    pub stderr: String,
}

/// What a plugin is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Make an interface, or change it.
    Add,
    /// Undo that.
    Del,
    /// Say whether it is as it was made.
    Check,
    /// Remove what belongs to no valid attachment.
    Gc,
    /// Say whether an ADD would work.
    Status,
    /// Say which versions it speaks.
    Version,
}

impl Command {
    /// The value of `CNI_COMMAND`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The kind of a plugin's error: the codes of the specification, and any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// 1: the plugin does not speak the configuration's version.
    IncompatibleVersion,
    /// 2: a field of the configuration is not supported.
    UnsupportedField,
    /// 3: the container does not exist.
    UnknownContainer,
    /// 4: an environment variable is missing or wrong.
    InvalidEnvironment,
    /// 5: reading or writing failed.
    Io,
    /// 6: something cannot be decoded.
    Decoding,
    /// 7: the configuration is wrong.
    InvalidConfig,
    /// 8: the network namespace is wrong (in use, not in the specification).
    InvalidNamespace,
    /// 11: it may work later.
    TryAgainLater,
    /// 50: the plugin cannot do an ADD.
    NotAvailable,
    /// 51: as 50, and existing attachments may have lost connectivity.
    LimitedConnectivity,
    /// 999: a bug in the plugin (in use, not in the specification).
    Internal,
    /// Any other. From 100 on they are the plugin's own.
    Other(u64),
}

impl From<u64> for ErrorCode {
    fn from(code: u64) -> Self {
        match code {
            1 => Self::IncompatibleVersion,
            2 => Self::UnsupportedField,
            3 => Self::UnknownContainer,
            4 => Self::InvalidEnvironment,
            5 => Self::Io,
            6 => Self::Decoding,
            7 => Self::InvalidConfig,
            8 => Self::InvalidNamespace,
            11 => Self::TryAgainLater,
            50 => Self::NotAvailable,
            51 => Self::LimitedConnectivity,
            999 => Self::Internal,
            other => Self::Other(other),
        }
    }
}

impl From<ErrorCode> for u64 {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::IncompatibleVersion => 1,
            ErrorCode::UnsupportedField => 2,
            ErrorCode::UnknownContainer => 3,
            ErrorCode::InvalidEnvironment => 4,
            ErrorCode::Io => 5,
            ErrorCode::Decoding => 6,
            ErrorCode::InvalidConfig => 7,
            ErrorCode::InvalidNamespace => 8,
            ErrorCode::TryAgainLater => 11,
            ErrorCode::NotAvailable => 50,
            ErrorCode::LimitedConnectivity => 51,
            ErrorCode::Internal => 999,
            ErrorCode::Other(other) => other,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", u64::from(*self))
    }
}

/// What is wrong with a network configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigProblem {
    /// It is not JSON.
    #[error("it is not JSON")]
    Syntax(#[source] serde_json::Error),
    /// It is JSON but not an object.
    #[error("it is not a JSON object")]
    NotAnObject,
    /// A key is missing.
    #[error("the key `{0}` is missing")]
    Missing(&'static str),
    /// A list in a file for a single plugin.
    #[error("the key `type` is missing; a list of plugins belongs in a file named .conflist")]
    ListInSingleFile,
    /// A value of another type than the key has.
    #[error("`{key}` must be {expected}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// What its value must be.
        expected: &'static str,
    },
    /// A name that the specification refuses.
    #[error("{name:?} is no valid {what}")]
    InvalidName {
        /// What it should be.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// None of its versions is one that this crate speaks.
    #[error("it is for CNI {}; the newest version known here is {}", offered.join(", "), SpecVersion::NEWEST)]
    Version {
        /// Its versions.
        offered: Vec<String>,
    },
    /// No plugins, neither in the list nor beside it.
    #[error("it has no plugins, and none are in the directory named like the network")]
    NoPlugins,
    /// `loadOnlyInlinedPlugins` without plugins.
    #[error("`loadOnlyInlinedPlugins` is true, but there is no key `plugins`")]
    OnlyInlined,
    /// One of the plugins is wrong.
    #[error("plugin {position} of its list is not usable")]
    Plugin {
        /// Its place, from 1.
        position: usize,
        /// What is wrong with it.
        #[source]
        problem: Box<ConfigProblem>,
    },
    /// A file of the directory named like the network is wrong.
    #[error("the plugin in {} is not usable", path.display())]
    Sibling {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        problem: Box<ConfigProblem>,
    },
    /// A file cannot be read.
    #[error("it cannot be read")]
    Unreadable(#[source] HostError),
    /// The file has gone between listing and reading.
    #[error("it has gone")]
    Gone,
}

fn listed(directories: &[PathBuf]) -> String {
    if directories.is_empty() {
        return "any directory: none is configured".to_owned();
    }
    directories.iter().map(|directory| directory.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn said(output: &str) -> String {
    if output.is_empty() { ", and printed nothing".to_owned() } else { format!("; it said: {output}") }
}

fn detailed(details: &str) -> String {
    if details.is_empty() { String::new() } else { format!(" ({details})") }
}
