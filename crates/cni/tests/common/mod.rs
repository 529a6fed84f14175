//! A host in memory, with plugins that are closures.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use kina_cni::{
    Attachment, Cni, ExecuteError, Executed, Execution, FoundFile, Host, HostError, Network, Options,
};
use serde_json::{Value, json};

type Behaviour = dyn Fn(&Call) -> Result<Executed, ExecuteError> + Send + Sync;

/// One execution, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) plugin: String,
    pub(crate) command: String,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) stdin: Value,
}

impl Call {
    pub(crate) fn previous(&self) -> Option<&Value> {
        self.stdin.get("prevResult")
    }
}

#[derive(Default)]
pub(crate) struct FakeHost {
    pub(crate) files: Mutex<BTreeMap<PathBuf, Vec<u8>>>,
    plugins: Mutex<BTreeMap<String, Arc<Behaviour>>>,
    calls: Mutex<Vec<Call>>,
}

pub(crate) const BIN: &str = "/opt/cni/bin";
pub(crate) const CACHE: &str = "/var/lib/cni";

impl FakeHost {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn cni(self: &Arc<Self>) -> Cni {
        let environment = vec![("PATH".to_owned(), "/bin".to_owned())];
        Cni::new(Arc::clone(self) as Arc<dyn Host>, Options { environment, ..Options::default() })
    }

    /// Installs a plugin.
    pub(crate) fn plugin(
        &self,
        name: &str,
        behaviour: impl Fn(&Call) -> Result<Executed, ExecuteError> + Send + Sync + 'static,
    ) {
        self.plugins.lock().unwrap().insert(name.to_owned(), Arc::new(behaviour));
    }

    /// Installs plugins that do what they should: ADD passes the previous
    /// result on, or makes one up.
    pub(crate) fn good_plugins(&self, names: &[&str]) {
        for name in names {
            self.plugin(name, good);
        }
    }

    pub(crate) fn remove_plugin(&self, name: &str) {
        self.plugins.lock().unwrap().remove(name);
    }

    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        self.files.lock().unwrap().insert(path.into(), content.as_ref().to_vec());
    }

    pub(crate) fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.files.lock().unwrap().get(Path::new(path)).cloned()
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    /// `<command> <plugin>` of each call since the last look.
    pub(crate) fn order(&self) -> Vec<String> {
        self.calls().iter().map(|call| format!("{} {}", call.command, call.plugin)).collect()
    }
}

pub(crate) fn good(call: &Call) -> Result<Executed, ExecuteError> {
    match call.command.as_str() {
        "ADD" => {
            let version = call.stdin["cniVersion"].clone();
            let made_up = json!({"cniVersion": version, "ips": [{"address": "10.1.0.5/16"}]});
            success(&call.previous().cloned().unwrap_or(made_up))
        }
        "VERSION" => {
            let all = kina_cni::SpecVersion::ALL.map(kina_cni::SpecVersion::as_str);
            success(&json!({"cniVersion": "1.1.0", "supportedVersions": all}))
        }
        _ => Ok(Executed { code: 0, stdout: Vec::new(), stderr: Vec::new() }),
    }
}

pub(crate) fn success(value: &Value) -> Result<Executed, ExecuteError> {
    Ok(Executed { code: 0, stdout: value.to_string().into_bytes(), stderr: Vec::new() })
}

pub(crate) fn failure(code: u64, message: &str) -> Result<Executed, ExecuteError> {
    let error = json!({"cniVersion": "1.1.0", "code": code, "msg": message, "details": "more"});
    Ok(Executed { code: 1, stdout: error.to_string().into_bytes(), stderr: b"a line of its log".to_vec() })
}

#[async_trait]
impl Host for FakeHost {
    async fn list_directory(&self, path: &Path) -> Result<Vec<String>, HostError> {
        let files = self.files.lock().unwrap();
        let inside = files.keys().filter(|file| file.parent() == Some(path));
        // The wrong way round, since a directory has no order.
        Ok(inside.rev().map(|file| file.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    async fn read_file(&self, path: &Path, limit: usize) -> Result<Option<Vec<u8>>, HostError> {
        match self.files.lock().unwrap().get(path) {
            Some(content) if content.len() > limit => Err("too large".into()),
            content => Ok(content.cloned()),
        }
    }

    async fn write_file(&self, path: &Path, content: &[u8]) -> Result<(), HostError> {
        self.files.lock().unwrap().insert(path.to_owned(), content.to_vec());
        Ok(())
    }

    fn temporary_age(&self, name: &str) -> Option<std::time::Duration> {
        name.strip_prefix(".writing-")?.parse().ok().map(std::time::Duration::from_secs)
    }

    async fn remove_file(&self, path: &Path) -> Result<(), HostError> {
        self.files.lock().unwrap().remove(path);
        Ok(())
    }

    async fn find_file(&self, path: &Path) -> Result<Option<FoundFile>, HostError> {
        if self.files.lock().unwrap().contains_key(path) {
            return Ok(Some(FoundFile { identity: None }));
        }
        let plugins = self.plugins.lock().unwrap();
        let name = path.strip_prefix(BIN).ok().and_then(Path::to_str);
        let found = name.and_then(|name| plugins.get(name));
        Ok(found.map(|plugin| FoundFile { identity: Some(format!("{:p}", Arc::as_ptr(plugin))) }))
    }

    async fn execute(&self, execution: &Execution) -> Result<Executed, ExecuteError> {
        let plugin = execution.path.file_name().unwrap().to_str().unwrap().to_owned();
        let environment: BTreeMap<_, _> = execution.environment.iter().cloned().collect();
        let call = Call {
            command: environment["CNI_COMMAND"].clone(),
            stdin: serde_json::from_slice(&execution.stdin).unwrap(),
            plugin: plugin.clone(),
            environment,
        };
        self.calls.lock().unwrap().push(call.clone());
        let behaviour = Arc::clone(&self.plugins.lock().unwrap()[&plugin]);
        behaviour(&call)
    }
}

/// A list of plugins that have all the capabilities used here.
pub(crate) fn network(version: &str, plugins: &[&str]) -> Network {
    let capabilities = json!({"portMappings": true, "mac": true, "bandwidth": false});
    let plugins: Vec<Value> = plugins
        .iter()
        .map(|plugin| json!({"type": plugin, "capabilities": capabilities, "own": {"b": [1], "a": null}}))
        .collect();
    let list = json!({"cniVersion": version, "name": "pods", "plugins": plugins});
    Network::from_list(list.to_string().as_bytes()).unwrap()
}

pub(crate) fn attachment() -> Attachment {
    let mut attachment = Attachment::new("pod1", "eth0", "/var/run/netns/pod1")
        .with_argument("IgnoreUnknown", "1")
        .with_argument("K8S_POD_NAME", "web-0");
    attachment.capabilities.mac("02:00:00:00:00:01").device_id("0000:04:00.5");
    attachment
}
