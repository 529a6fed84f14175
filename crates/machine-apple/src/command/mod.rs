//! Apple's `container`, asked by its command line: what it is asked for, what its
//! answers mean.

mod arguments;
mod classify;
mod json;
mod process;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

pub(crate) use arguments::{
    Boot, HOME_LABEL, LAYERS_IN_GUEST, POD_LABEL, SOCKET_IN_GUEST, container_name, run, shareable_in_guest,
};
pub(crate) use process::{Process, Relay};

use crate::{AppleConfig, Error, Version};

/// A container as the list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: String,
    pub(crate) state: State,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) image: String,
    /// Of the first network, IPv4; none unless it runs. Of IPv6 the list tells what
    /// an address would be, not that the machine has it.
    pub(crate) address: Option<IpAddr>,
}

/// What the list says a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    Stopping,
    Stopped,
    Unknown,
}

/// An image as the list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) name: String,
    /// `sha256:` and its digits, of the index.
    pub(crate) digest: String,
}

/// The most of a log that is asked for, in lines.
const LOG_LINES: &str = "400";

/// The program with what it is run with.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    process: Process,
    call: Duration,
    boot: Duration,
}

impl Container {
    pub(crate) fn new(config: &AppleConfig) -> Self {
        Self {
            process: Process::new(config.program.clone(), config.environment.clone()),
            call: config.call_deadline,
            boot: config.boot_deadline,
        }
    }

    async fn call(&self, words: &[&str]) -> Result<Vec<u8>, Error> {
        self.process.run(words.iter().map(OsString::from).collect(), self.call).await
    }

    /// The older of the versions of program and service; the program's alone while
    /// the service cannot be asked.
    pub(crate) async fn version(&self) -> Result<Version, Error> {
        let asked = self.call(&["system", "version", "--format", "json"]).await;
        let versions = match asked {
            Ok(output) => json::versions(&output).unwrap_or_default(),
            Err(error @ Error::Program { .. }) => return Err(error),
            Err(_) => Vec::new(),
        };
        if let Some(oldest) = versions.into_iter().min() {
            return Ok(oldest);
        }
        let output = self.call(&["--version"]).await?;
        let words = String::from_utf8_lossy(&output);
        Version::find(&words).ok_or_else(|| Error::NoVersion { words: words.trim().to_owned() })
    }

    /// All containers.
    pub(crate) async fn list(&self) -> Result<Vec<Listed>, Error> {
        let words = ["list", "--all", "--format", "json"];
        let output = self.call(&words).await?;
        json::containers(&output).map_err(|source| Error::Output { command: words.join(" "), source })
    }

    /// All images.
    pub(crate) async fn images(&self) -> Result<Vec<Image>, Error> {
        let words = ["image", "list", "--format", "json"];
        let output = self.call(&words).await?;
        json::images(&output).map_err(|source| Error::Output { command: words.join(" "), source })
    }

    /// Loads an archive of images. It may take as long as a boot.
    pub(crate) async fn load_image(&self, archive: &Path) -> Result<(), Error> {
        let mut words: Vec<OsString> = ["image", "load", "--input"].map(OsString::from).into();
        words.push(archive.into());
        self.process.run(words, self.boot).await.map(drop)
    }

    /// Removes an image.
    pub(crate) async fn delete_image(&self, name: &str) -> Result<(), Error> {
        self.call(&["image", "delete", name]).await.map(drop)
    }

    /// Boots a machine. Whoever drops the call ends the program; what the service
    /// has begun by then it may go on with.
    pub(crate) async fn run(&self, arguments: Vec<OsString>) -> Result<(), Error> {
        self.process.run(arguments, self.boot).await.map(drop)
    }

    /// Ends a machine and removes all of it. Whether it names what it has removed.
    pub(crate) async fn delete(&self, name: &str) -> Result<bool, Error> {
        let said = self.call(&["delete", "--force", name]).await?;
        Ok(String::from_utf8_lossy(&said).contains(name))
    }

    /// What the machine's kernel and init said.
    pub(crate) async fn boot_log(&self, name: &str) -> Result<Vec<u8>, Error> {
        self.call(&["logs", "--boot", "-n", LOG_LINES, name]).await
    }

    /// What the guest said.
    pub(crate) async fn log(&self, name: &str) -> Result<Vec<u8>, Error> {
        self.call(&["logs", "-n", LOG_LINES, name]).await
    }

    /// A stream to the guest, by a program that runs beside it.
    pub(crate) fn relay(&self, name: &str) -> std::io::Result<Relay> {
        self.process.relay(&["exec", "--interactive", name, "/kina-guest", "relay", "--to", SOCKET_IN_GUEST])
    }
}
