//! Which network configuration is in force.

use std::path::PathBuf;
use std::sync::Arc;

use kina_cni::{Configurations, Network};

use super::NetworkConfig;
use crate::error::chain;

/// The network that new pods come into.
#[derive(Debug, PartialEq)]
pub struct InForce {
    /// The file that it is from.
    pub path: PathBuf,
    /// The network.
    pub network: Network,
}

/// A file of the configuration directory.
#[derive(Clone, Debug, PartialEq)]
pub struct FileState {
    /// The file.
    pub path: PathBuf,
    /// Its network, or what is wrong with it.
    pub network: Result<Network, String>,
}

/// Whether the plugins of the network in force are ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// Nobody has asked them yet.
    #[default]
    Unknown,
    /// They are.
    Ready,
    /// They are not, and why.
    NotReady(String),
}

/// What is known about the network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkState {
    /// The files of the configuration directory, in order.
    pub files: Vec<FileState>,
    /// Why the directory could not be read.
    pub unreadable: Option<String>,
    /// The network that new pods come into.
    pub in_force: Option<Arc<InForce>>,
    /// Whether its file is broken now: it is the last good one then.
    pub kept: bool,
    /// Whether there has been one since the daemon started.
    pub seen: bool,
    /// Whether its plugins are ready.
    pub readiness: Readiness,
}

impl NetworkState {
    /// What another look at the directory comes to. The first usable file in
    /// order holds; a file that was in force and has become broken holds as it
    /// was, so that a slip of the editor moves no pod to another network.
    pub(super) fn next(&self, found: Result<Configurations, kina_cni::Error>) -> Self {
        let found = match found {
            Ok(found) => found,
            Err(error) => return Self { unreadable: Some(chain(&error)), ..self.clone() },
        };
        let files: Vec<FileState> = found
            .files
            .into_iter()
            .map(|file| FileState { path: file.path, network: file.network.map_err(|error| chain(&error)) })
            .collect();
        let choice = files.iter().find_map(|file| match (&file.network, &self.in_force) {
            (Ok(network), Some(before)) if before.path == file.path && before.network == *network => {
                Some((Arc::clone(before), false))
            }
            (Ok(network), _) => {
                Some((Arc::new(InForce { path: file.path.clone(), network: network.clone() }), false))
            }
            (Err(_), Some(before)) if before.path == file.path => Some((Arc::clone(before), true)),
            (Err(_), _) => None,
        });
        let (in_force, kept) = choice.map_or((None, false), |(network, kept)| (Some(network), kept));
        let same = match (&in_force, &self.in_force) {
            (Some(now), Some(before)) => Arc::ptr_eq(now, before),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let readiness = if same { self.readiness.clone() } else { Readiness::Unknown };
        let seen = self.seen || in_force.is_some();
        Self { files, unreadable: None, in_force, kept, seen, readiness }
    }

    /// Whether pods get a network now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.in_force.is_some() && self.readiness == Readiness::Ready
    }

    /// Why they get none, and what is wrong beside that; empty if all is well.
    #[must_use]
    pub fn message(&self, config: &NetworkConfig) -> String {
        let directory = config.config_directory.display();
        let mut parts = Vec::new();
        match (&self.in_force, &self.readiness) {
            (None, _) if self.seen || config.required => {
                parts.push(format!("no usable network configuration in {directory}"));
            }
            (None, _) => parts.push(format!(
                "no usable network configuration in {directory}; until there is one, pods get loopback only"
            )),
            (Some(one), Readiness::Unknown) => {
                parts.push(format!("the plugins of network {:?} are still being asked", one.network.name()));
            }
            (Some(one), Readiness::NotReady(reason)) => {
                parts.push(format!("network {:?} is not ready: {reason}", one.network.name()));
            }
            (Some(_), Readiness::Ready) => {}
        }
        if let Some(reason) = &self.unreadable {
            parts.push(format!("the network configurations cannot be read: {reason}"));
        }
        let broken = self.files.iter().filter_map(|file| Some((file, file.network.as_ref().err()?)));
        for (file, reason) in broken {
            let kept = self.kept && self.in_force.as_ref().is_some_and(|one| one.path == file.path);
            let holds = if kept { "; what it said before holds on" } else { "" };
            // The reason names the file.
            parts.push(format!("{reason}{holds}"));
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kina_cni::ConfigFile;

    use super::*;

    fn network(name: &str) -> Network {
        let list = format!(r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [{{"type": "x"}}]}}"#);
        Network::from_list(list.as_bytes()).unwrap()
    }

    /// Files by name; an empty network is a broken one.
    fn files(files: &[(&str, &str)]) -> Result<Configurations, kina_cni::Error> {
        let files = files.iter().map(|(path, name)| ConfigFile {
            path: path.into(),
            network: match *name {
                "" => Err(kina_cni::Error::Config {
                    origin: (*path).to_owned(),
                    problem: kina_cni::ConfigProblem::NotAnObject,
                }),
                name => Ok(network(name)),
            },
        });
        Ok(Configurations { files: files.collect() })
    }

    fn config() -> NetworkConfig {
        let config = crate::config::Config::default();
        config.network.runtime()
    }

    fn name(state: &NetworkState) -> Option<&str> {
        state.in_force.as_ref().map(|one| one.network.name())
    }

    #[test]
    fn the_first_usable_file_holds() {
        let none = NetworkState::default();
        assert_eq!(name(&none.next(files(&[]))), None);
        assert!(none.next(files(&[])).message(&config()).contains("loopback only"));
        let state = none.next(files(&[("a", ""), ("b", "two"), ("c", "three")]));
        assert_eq!(name(&state), Some("two"));
        assert!(state.seen && !state.kept);
        assert!(state.message(&config()).contains("network configuration a is not usable"));
    }

    #[test]
    fn a_file_that_breaks_holds_as_it_was() {
        let mut state = NetworkState::default().next(files(&[("a", "one"), ("b", "two")]));
        state.readiness = Readiness::Ready;
        let broken = state.next(files(&[("a", ""), ("b", "two")]));
        assert_eq!((name(&broken), broken.kept, &broken.readiness), (Some("one"), true, &Readiness::Ready));
        assert!(broken.is_ready());
        assert!(broken.message(&config()).contains("a is not usable"), "{}", broken.message(&config()));
        assert!(broken.message(&config()).contains("holds on"));
        // It comes to its senses.
        let mended = broken.next(files(&[("a", "new"), ("b", "two")]));
        assert_eq!(
            (name(&mended), mended.kept, &mended.readiness),
            (Some("new"), false, &Readiness::Unknown)
        );
        // It goes.
        assert_eq!(name(&broken.next(files(&[("b", "two")]))), Some("two"));
        let gone = broken.next(files(&[]));
        assert_eq!(name(&gone), None);
        assert!(gone.seen && !gone.is_ready());
        assert!(!gone.message(&config()).contains("loopback"), "{}", gone.message(&config()));
    }

    #[test]
    fn a_directory_that_cannot_be_read_changes_nothing() {
        let state = NetworkState::default().next(files(&[("a", "one")]));
        let error =
            kina_cni::Error::List { path: Path::new("/x").to_owned(), source: "no".to_owned().into() };
        let next = state.next(Err(error));
        assert_eq!(name(&next), Some("one"));
        assert!(next.message(&config()).contains("list /x"));
        assert_eq!(next.next(files(&[("a", "one")])), state);
    }
}
