//! Plugins run on the node, and their files lie there.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kina_cni::{ExecuteError, Executed, Execution, FoundFile, Host, HostError};
use kina_node::{Error, Node, Output, Program};

use crate::metrics::Metrics;
use crate::spans;

/// The node as the place of plugins.
#[derive(Clone)]
pub(super) struct NodeHost {
    pub(super) node: Arc<dyn Node>,
    /// Where plugins' calls are counted.
    pub(super) metrics: Metrics,
}

#[async_trait]
impl Host for NodeHost {
    async fn list_directory(&self, path: &Path) -> Result<Vec<String>, HostError> {
        Ok(self.node.list_directory(path).await?)
    }

    async fn read_file(&self, path: &Path, limit: usize) -> Result<Option<Vec<u8>>, HostError> {
        match self.node.read_file(path, limit).await {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn write_file(&self, path: &Path, content: &[u8]) -> Result<(), HostError> {
        if let Some(directory) = path.parent() {
            self.node.create_directory(directory, 0o700).await?;
        }
        Ok(self.node.write_file(path, content, 0o600).await?)
    }

    fn temporary_age(&self, name: &str) -> Option<Duration> {
        kina_node::temporary_age(name)
    }

    async fn remove_file(&self, path: &Path) -> Result<(), HostError> {
        Ok(self.node.remove_tree(path).await?)
    }

    async fn find_file(&self, path: &Path) -> Result<Option<FoundFile>, HostError> {
        let identity = self.node.file_identity(path).await?;
        Ok(identity.map(|identity| FoundFile { identity: Some(identity) }))
    }

    async fn execute(&self, execution: &Execution) -> Result<Executed, ExecuteError> {
        let program = Program {
            path: execution.path.clone(),
            args: Vec::new(),
            env: execution.environment.clone(),
            stdin: execution.stdin.clone(),
            deadline: execution.deadline,
            max_output: execution.max_output,
        };
        let command = execution.environment.iter().find(|(name, _)| name == "CNI_COMMAND");
        let operation = command.map_or("", |(_, value)| value.as_str());
        let begin = Instant::now();
        let ran = spans::step(step(operation), async {
            let ran = self.node.run(&program).await;
            let (plugin, result) = self.count(execution, operation, &ran, begin);
            spans::note("plugin", &*plugin);
            match result {
                DONE => Ok(ran),
                // It has run, if to no good end.
                _ => Err(ran),
            }
        });
        let (Ok(ran) | Err(ran)) = ran.await;
        match ran {
            Ok(output) => Ok(Executed { code: output.code, stdout: output.stdout, stderr: output.stderr }),
            Err(Error::ProgramDeadline { .. }) => Err(ExecuteError::Deadline),
            Err(Error::ProgramOutput { .. }) => Err(ExecuteError::TooMuchOutput),
            Err(error) if error.io_kind() == Some(ErrorKind::ExecutableFileBusy) => Err(ExecuteError::Busy),
            Err(error) => Err(ExecuteError::Failed(error.into())),
        }
    }
}

impl NodeHost {
    /// The plugin's name, and its result.
    fn count<'a>(
        &self,
        execution: &'a Execution,
        operation: &str,
        ran: &Result<Output, Error>,
        begin: Instant,
    ) -> (Cow<'a, str>, &'static str) {
        let plugin = execution.path.file_name().unwrap_or_default().to_string_lossy();
        let result = match ran {
            Ok(output) if output.code == 0 => DONE,
            Err(Error::ProgramDeadline { .. }) => "deadline",
            Ok(_) | Err(_) => "failed",
        };
        self.metrics.plugin(&plugin, operation, result, begin);
        (plugin, result)
    }
}

/// A plugin's result where there is nothing to complain of.
const DONE: &str = "done";

/// What a plugin's call is called in a trace.
fn step(operation: &str) -> &'static str {
    match operation {
        "ADD" => "cni-add",
        "DEL" => "cni-del",
        "CHECK" => "cni-check",
        "GC" => "cni-gc",
        "STATUS" => "cni-status",
        _ => "cni-version",
    }
}
