//! Finding and executing one plugin.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::attachment::Attachment;
use crate::cni::Cni;
use crate::config::{Network, Plugin};
use crate::error::{Command, Error, PluginError};
use crate::host::{ExecuteError, Executed, Execution, FoundFile};

/// Most bytes of a plugin's output that an error shows.
const EXCERPT: usize = 2048;

/// How long an executable that is being written is waited for, and how often it
/// is tried in that time.
const BUSY: (Duration, u32) = (Duration::from_millis(250), 20);

/// The time of one operation.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    until: Instant,
    whole: Duration,
}

impl Clock {
    pub(crate) fn start(whole: Duration) -> Self {
        // A year is as good as more, and can be added.
        Self { until: Instant::now() + whole.min(Duration::from_secs(365 * 86_400)), whole }
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// A plugin to execute, with its executable.
pub(crate) struct Located<'a> {
    pub(crate) plugin: &'a Plugin,
    pub(crate) path: PathBuf,
}

impl Cni {
    /// A plugin with its executable.
    pub(crate) async fn locate<'a>(&self, plugin: &'a Plugin) -> Result<Located<'a>, Error> {
        let (path, _) = self.find(plugin.plugin_type()).await?;
        Ok(Located { plugin, path })
    }

    /// The executable of a plugin: the first in the directories.
    pub(crate) async fn find(&self, plugin_type: &str) -> Result<(PathBuf, FoundFile), Error> {
        for directory in &self.options.plugin_directories {
            let path = directory.join(plugin_type);
            match self.host.find_file(&path).await {
                Ok(Some(found)) => return Ok((path, found)),
                Ok(None) => {}
                Err(source) => return Err(Error::FindPlugin { path, source }),
            }
        }
        let directories = self.options.plugin_directories.clone();
        Err(Error::PluginNotFound { plugin: plugin_type.to_owned(), directories })
    }

    /// Executes a plugin for an attachment.
    pub(crate) async fn attach(
        &self,
        command: Command,
        network: &Network,
        located: &Located<'_>,
        attachment: &Attachment,
        previous: Option<&Value>,
        clock: Clock,
    ) -> Result<Vec<u8>, Error> {
        let mut extra = Map::new();
        if let Some(previous) = previous {
            extra.insert("prevResult".to_owned(), previous.clone());
        }
        if let Some(config) = located.plugin.runtime_config(&attachment.capabilities) {
            extra.insert("runtimeConfig".to_owned(), config);
        }
        let variables = Variables {
            container_id: &attachment.id.container_id,
            netns: attachment.netns.as_deref().unwrap_or_default(),
            interface: &attachment.id.interface,
            arguments: attachment.arguments_text(),
            path: None,
        };
        let request = located.plugin.request(network, extra);
        self.execute(command, located, &variables, request, clock).await
    }

    /// Executes a plugin; its standard output if it succeeds.
    pub(crate) async fn execute(
        &self,
        command: Command,
        located: &Located<'_>,
        variables: &Variables<'_>,
        stdin: Vec<u8>,
        clock: Clock,
    ) -> Result<Vec<u8>, Error> {
        let plugin = located.plugin.plugin_type();
        self.execute_file(command, plugin, located.path.clone(), variables, stdin, clock).await
    }

    pub(crate) async fn execute_file(
        &self,
        command: Command,
        plugin: &str,
        path: PathBuf,
        variables: &Variables<'_>,
        stdin: Vec<u8>,
        clock: Clock,
    ) -> Result<Vec<u8>, Error> {
        let plugin = plugin.to_owned();
        let max_output = self.options.max_output;
        let environment = self.environment(command, variables);
        let mut execution = Execution { path, environment, stdin, deadline: clock.left(), max_output };
        let (pause, tries) = BUSY;
        for _ in 0..tries {
            execution.deadline = clock.left();
            if execution.deadline.is_zero() {
                return Err(Error::Deadline { plugin, command, deadline: clock.whole });
            }
            return match self.host.execute(&execution).await {
                Ok(executed) if executed.code == 0 => Ok(executed.stdout),
                Ok(executed) => Err(failure(plugin, command, &executed)),
                Err(ExecuteError::Busy) => {
                    tokio::time::sleep(pause.min(clock.left())).await;
                    continue;
                }
                Err(ExecuteError::Deadline) => {
                    Err(Error::Deadline { plugin, command, deadline: clock.whole })
                }
                Err(ExecuteError::TooMuchOutput) => {
                    Err(Error::TooMuchOutput { plugin, command, limit: max_output })
                }
                Err(ExecuteError::Failed(source)) => Err(Error::Execute { plugin, command, source }),
            };
        }
        Err(Error::Busy { plugin, command })
    }

    /// The inherited environment, overlaid with the variables of the protocol,
    /// which are always set, also to nothing.
    fn environment(&self, command: Command, variables: &Variables<'_>) -> Vec<(String, String)> {
        let own = [
            ("CNI_COMMAND", command.as_str().to_owned()),
            ("CNI_CONTAINERID", variables.container_id.to_owned()),
            ("CNI_NETNS", variables.netns.to_owned()),
            ("CNI_ARGS", variables.arguments.clone()),
            ("CNI_IFNAME", variables.interface.to_owned()),
            ("CNI_PATH", variables.path.map_or_else(|| self.search_path(), str::to_owned)),
        ];
        let mut environment: Vec<(String, String)> = Vec::new();
        // Of a name that is there twice the later one counts.
        let inherited = self.options.environment.iter().cloned();
        for (name, value) in inherited.chain(own.map(|(name, value)| (name.to_owned(), value))) {
            match environment.iter_mut().find(|(known, _)| *known == name) {
                Some(entry) => entry.1 = value,
                None => environment.push((name, value)),
            }
        }
        environment
    }

    fn search_path(&self) -> String {
        let directories = self.options.plugin_directories.iter();
        directories.map(|directory| directory.display().to_string()).collect::<Vec<_>>().join(":")
    }
}

/// The variables of the protocol besides the command.
#[derive(Default)]
pub(crate) struct Variables<'a> {
    pub(crate) container_id: &'a str,
    pub(crate) netns: &'a str,
    pub(crate) interface: &'a str,
    pub(crate) arguments: String,
    /// Instead of the directories of plugins.
    pub(crate) path: Option<&'a str>,
}

/// What a plugin's failure means. The error object belongs on standard output;
/// one passage of the specification says standard error.
fn failure(plugin: String, command: Command, executed: &Executed) -> Error {
    let stderr = excerpt(&executed.stderr);
    match error_object(&executed.stdout).or_else(|| error_object(&executed.stderr)) {
        Some((code, message, details)) => {
            PluginError { plugin, command, code: code.into(), message, details, stderr }.into()
        }
        None => {
            let exit_code = executed.code;
            let output = if stderr.is_empty() { excerpt(&executed.stdout) } else { stderr };
            Error::PluginCrashed { plugin, command, exit_code, output }
        }
    }
}

/// Code, message and details of an error object: JSON with a code or a message.
fn error_object(output: &[u8]) -> Option<(u64, String, String)> {
    let value: Value = serde_json::from_slice(output).ok()?;
    let object = value.as_object()?;
    let text = |key| object.get(key).and_then(Value::as_str).map(|text| excerpt(text.as_bytes()));
    let code = object.get("code").and_then(Value::as_u64);
    let message = text("msg");
    if code.is_none() && message.is_none() {
        return None;
    }
    Some((code.unwrap_or_default(), message.unwrap_or_default(), text("details").unwrap_or_default()))
}

/// The end of an output, without control characters.
pub(crate) fn excerpt(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let text = text.trim();
    let mut from = text.len().saturating_sub(EXCERPT);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let shown = text[from..].chars().map(|each| match each {
        '\n' | '\t' => ' ',
        control if control.is_control() => char::REPLACEMENT_CHARACTER,
        other => other,
    });
    if from == 0 { shown.collect() } else { std::iter::once('…').chain(shown).collect() }
}
