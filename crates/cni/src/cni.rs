//! The operations on networks and attachments.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::attachment::{Attachment, AttachmentId};
use crate::cache::{Cache, Cached, CachedAttachment};
use crate::config::Network;
use crate::error::{Command, Error, PluginError};
use crate::execute::{Clock, Located, Variables, excerpt};
use crate::host::Host;
use crate::name::check_network_name;
use crate::result::NetworkResult;
use crate::validate::KnownVersions;

/// Where plugins and cached results are, and what plugins may take.
#[derive(Clone)]
pub struct Options {
    /// Where executables of plugins are looked for, in order. Plugins look for
    /// those that they call in the same places (`CNI_PATH`).
    pub plugin_directories: Vec<PathBuf>,
    /// Where attachments are recorded, in the subdirectory `results`. Runtimes
    /// that share it share their attachments: GC by one removes those of the
    /// other.
    pub cache_directory: PathBuf,
    /// The environment that plugins inherit. Theirs is this one, overlaid with
    /// the variables of the protocol. What traces plugins (`TRACEPARENT`)
    /// belongs here too.
    pub environment: Vec<(String, String)>,
    /// Most bytes that a plugin may print on either stream.
    pub max_output: usize,
    /// How long operations may take.
    pub deadlines: Deadlines,
}

impl fmt::Debug for Options {
    /// Of the environment only the names: values may be secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.environment.iter().map(|(name, _)| name).collect();
        formatter
            .debug_struct("Options")
            .field("plugin_directories", &self.plugin_directories)
            .field("cache_directory", &self.cache_directory)
            .field("environment", &names)
            .field("max_output", &self.max_output)
            .field("deadlines", &self.deadlines)
            .finish()
    }
}

impl Default for Options {
    /// `/opt/cni/bin`, `/var/lib/cni`, this process's environment as libcni
    /// does, 1 MiB.
    fn default() -> Self {
        // Names and values that are not UTF-8 are left out.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            plugin_directories: vec![PathBuf::from("/opt/cni/bin")],
            cache_directory: PathBuf::from("/var/lib/cni"),
            environment: std::env::vars_os().filter_map(text).collect(),
            max_output: 1 << 20,
            deadlines: Deadlines::default(),
        }
    }
}

/// How long an operation may take, all its plugins together. At its end the
/// plugin that runs is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// ADD. The DEL after one that failed has the time of DEL on top.
    pub add: Duration,
    /// DEL.
    pub del: Duration,
    /// CHECK.
    pub check: Duration,
    /// GC, without the DEL of each attachment.
    pub gc: Duration,
    /// STATUS.
    pub status: Duration,
    /// VERSION, for each plugin.
    pub version: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            add: Duration::from_secs(120),
            del: Duration::from_secs(60),
            check: Duration::from_secs(60),
            gc: Duration::from_secs(60),
            status: Duration::from_secs(30),
            version: Duration::from_secs(10),
        }
    }
}

/// A runtime's side of CNI.
///
/// Clones share what plugins said about their versions. Every operation may be
/// repeated. A dropped call kills the plugin that runs; what the plugins before
/// it did stays done: after an ADD of which the end was not seen, call
/// [`del`](Self::del).
///
/// What the specification asks of the caller:
/// - no two operations for the same container at the same time;
/// - no ADD and DEL during GC, and no GC during them;
/// - a DEL for each ADD. One that [`add`](Self::add) reports as failed has had
///   its DEL, unless the report says that this failed too.
#[derive(Clone)]
pub struct Cni {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) options: Arc<Options>,
    pub(crate) known_versions: Arc<KnownVersions>,
}

/// An ADD that failed.
#[derive(Debug, thiserror::Error)]
#[error("add container {} to network {network} as {}", id.container_id, id.interface)]
pub struct AddError {
    /// The network.
    pub network: String,
    /// The attachment.
    pub id: AttachmentId,
    /// Why.
    #[source]
    pub cause: Error,
    /// What became of the DEL that the specification wants then.
    pub cleanup: Cleanup,
}

/// The DEL after an ADD that failed.
#[derive(Debug)]
pub enum Cleanup {
    /// No plugin was executed, so nothing is to be removed.
    NotNeeded,
    /// It succeeded.
    Done,
    /// It failed: call [`Cni::del`] again later.
    Failed(Error),
}

/// What CHECK found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The attachment is as it was made.
    Passed,
    /// The configuration forbids CHECK.
    Disabled,
    /// The configuration's version has no CHECK.
    Unsupported,
}

/// What STATUS found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// All plugins are ready for ADD.
    Ready,
    /// A plugin is not.
    NotReady(PluginError),
    /// A plugin is not, and existing attachments may have lost connectivity.
    LimitedConnectivity(PluginError),
    /// The configuration's version has no STATUS.
    Unsupported,
}

/// What GC did.
#[derive(Debug, Default)]
pub struct Collected {
    /// Cached attachments that were not valid and have been removed.
    pub removed: Vec<AttachmentId>,
    /// Whether plugins were told which attachments are valid: not if the
    /// configuration forbids GC or its version has none.
    pub plugins_told: bool,
    /// What failed. GC goes on after a failure.
    pub errors: Vec<Error>,
}

impl Cni {
    /// With plugins and files on a host.
    #[must_use]
    pub fn new(host: Arc<dyn Host>, options: Options) -> Self {
        Self { host, options: Arc::new(options), known_versions: Arc::default() }
    }

    /// The same with more environment for plugins, such as a trace's.
    #[must_use]
    pub fn with_environment(&self, more: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut options = Options::clone(&self.options);
        options.environment.extend(more);
        Self { options: Arc::new(options), ..self.clone() }
    }

    /// What it was made with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn cache(&self) -> Cache<'_> {
        Cache { host: &*self.host, directory: &self.options.cache_directory }
    }

    /// Adds a container to a network and records it in the cache.
    ///
    /// If anything fails after the first plugin was started, all plugins are
    /// asked to DEL.
    ///
    /// # Errors
    /// What failed, and what became of the DEL.
    pub async fn add(&self, network: &Network, attachment: &Attachment) -> Result<NetworkResult, AddError> {
        let failed = |cause, cleanup| AddError {
            network: network.name().to_owned(),
            id: attachment.id.clone(),
            cause,
            cleanup,
        };
        let clock = Clock::start(self.options.deadlines.add);
        let located = self.prepare(network, attachment).await;
        let located = located.map_err(|cause| failed(cause, Cleanup::NotNeeded))?;
        match self.add_located(network, &located, attachment, clock).await {
            Ok(result) => Ok(result),
            Err(cause) => {
                let cleanup = match self.del(network, attachment).await {
                    Ok(()) => Cleanup::Done,
                    Err(error) => Cleanup::Failed(error),
                };
                Err(failed(cause, cleanup))
            }
        }
    }

    /// What ADD needs before the first plugin runs.
    async fn prepare<'a>(
        &self,
        network: &'a Network,
        attachment: &Attachment,
    ) -> Result<Vec<Located<'a>>, Error> {
        attachment.check()?;
        if attachment.netns.as_deref().unwrap_or_default().is_empty() {
            return Err(Error::NoNamespace { container_id: attachment.id.container_id.clone() });
        }
        // All, before the first is used: what is missing is better known then.
        let mut located = Vec::new();
        for plugin in network.plugins() {
            located.push(self.locate(plugin).await?);
        }
        Ok(located)
    }

    async fn add_located(
        &self,
        network: &Network,
        located: &[Located<'_>],
        attachment: &Attachment,
        clock: Clock,
    ) -> Result<NetworkResult, Error> {
        let version = network.version();
        let mut previous: Option<Value> = None;
        let mut result = NetworkResult::default();
        for each in located {
            let output =
                self.attach(Command::Add, network, each, attachment, previous.as_ref(), clock).await?;
            let read = NetworkResult::parse(&output, version)
                .and_then(|result| result.to_value(version).map(|value| (result, value)));
            let (read, value) = read.map_err(|source| Error::BadResult {
                plugin: each.plugin.plugin_type().to_owned(),
                command: Command::Add,
                output: excerpt(&output),
                source,
            })?;
            result = read;
            previous = Some(value);
        }
        self.cache().store(network, attachment, previous.unwrap_or_default()).await?;
        Ok(result)
    }

    /// Removes a container from a network and from the cache.
    ///
    /// From 0.4.0 on plugins get the cached result; without one, or with a
    /// damaged one, they are asked all the same. After the first plugin that
    /// fails no other is asked, and the cache stays, for a repeated call.
    ///
    /// # Errors
    /// A plugin is missing or failed.
    pub async fn del(&self, network: &Network, attachment: &Attachment) -> Result<(), Error> {
        attachment.id.check()?;
        let clock = Clock::start(self.options.deadlines.del);
        let previous = if network.version().has_check() {
            // Better no result than none of the plugins removing anything.
            let cached = self.cached_result(network, &attachment.id).await.unwrap_or_default();
            cached.and_then(|result| result.to_value(network.version()).ok())
        } else {
            None
        };
        for plugin in network.plugins().iter().rev() {
            let located = self.locate(plugin).await?;
            self.attach(Command::Del, network, &located, attachment, previous.as_ref(), clock).await?;
        }
        self.cache().remove(network.name(), &attachment.id).await
    }

    /// As [`del`](Self::del), with the configuration and the parameters with
    /// which the attachment was made, if the cache has them; otherwise with
    /// those given. The configuration may have changed or gone since the ADD.
    ///
    /// # Errors
    /// [`Error::NoConfig`] if the configuration is neither cached nor given; or
    /// a plugin is missing or failed.
    pub async fn del_cached(
        &self,
        network: &str,
        current: Option<&Network>,
        attachment: &Attachment,
    ) -> Result<(), Error> {
        let cached = self.cached(network, &attachment.id).await.unwrap_or_default();
        let then = cached.as_ref().and_then(CachedAttachment::network);
        match (&cached, &then) {
            (Some(cached), Some(then)) if then.name() == network => self.del(then, &cached.attachment).await,
            _ => match current {
                Some(current) => self.del(current, attachment).await,
                None => Err(Error::NoConfig { network: network.to_owned() }),
            },
        }
    }

    /// Asks all plugins whether an attachment is as it was made. The parameters
    /// must be those of the ADD. The first that fails is reported.
    ///
    /// # Errors
    /// [`Error::NotAttached`]; what is wrong with the attachment; or a plugin is
    /// missing.
    pub async fn check(&self, network: &Network, attachment: &Attachment) -> Result<Check, Error> {
        attachment.id.check()?;
        if !network.version().has_check() {
            return Ok(Check::Unsupported);
        }
        if network.disable_check() {
            return Ok(Check::Disabled);
        }
        let clock = Clock::start(self.options.deadlines.check);
        let Some(previous) = self.cached_result(network, &attachment.id).await? else {
            return Err(Error::NotAttached {
                network: network.name().to_owned(),
                container_id: attachment.id.container_id.clone(),
                interface: attachment.id.interface.clone(),
            });
        };
        // From 0.4.0 on every result can be written.
        let previous = previous.to_value(network.version()).unwrap_or_default();
        for plugin in network.plugins() {
            let located = self.locate(plugin).await?;
            self.attach(Command::Check, network, &located, attachment, Some(&previous), clock).await?;
        }
        Ok(Check::Passed)
    }

    /// Asks all plugins whether they are ready for ADD, up to the first that is
    /// not.
    ///
    /// # Errors
    /// A plugin is missing, or failed without saying why.
    pub async fn status(&self, network: &Network) -> Result<Status, Error> {
        if !network.version().has_status_and_gc() {
            return Ok(Status::Unsupported);
        }
        let clock = Clock::start(self.options.deadlines.status);
        for plugin in network.plugins() {
            let located = self.locate(plugin).await?;
            let request = plugin.request(network, Map::new());
            match self.execute(Command::Status, &located, &Variables::default(), request, clock).await {
                Ok(_) => {}
                Err(Error::Plugin(error)) if error.code == crate::ErrorCode::LimitedConnectivity => {
                    return Ok(Status::LimitedConnectivity(error));
                }
                Err(Error::Plugin(error)) => return Ok(Status::NotReady(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(Status::Ready)
    }

    /// Removes what belongs to no valid attachment of a network: first each
    /// cached attachment that is not among `valid`, by DEL with the parameters
    /// of its ADD; then, from 1.1.0 on, plugins are told which are valid and
    /// remove the rest. Does nothing if the configuration forbids GC.
    ///
    /// # Errors
    /// The cache cannot be listed. All else is collected in the report.
    pub async fn gc(&self, network: &Network, valid: &[AttachmentId]) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        if network.disable_gc() {
            return Ok(collected);
        }
        let keep: BTreeSet<&AttachmentId> = valid.iter().collect();
        for cached in self.cache().all().await? {
            if cached.network != network.name() || keep.contains(&cached.attachment.id) {
                continue;
            }
            match self.del_cached(network.name(), Some(network), &cached.attachment).await {
                Ok(()) => collected.removed.push(cached.attachment.id),
                Err(error) => collected.errors.push(error),
            }
        }
        collected.errors.extend(self.remove_leftovers().await.err());
        if !network.version().has_status_and_gc() {
            return Ok(collected);
        }
        collected.plugins_told = true;
        let attachments = serde_json::to_value(valid).unwrap_or_default();
        let clock = Clock::start(self.options.deadlines.gc);
        for plugin in network.plugins() {
            // The specification once called the first the second.
            let names = ["cni.dev/valid-attachments", "cni.dev/attachments"];
            let extra = names.map(|name| (name.to_owned(), attachments.clone())).into_iter().collect();
            let request = plugin.request(network, extra);
            let told = match self.locate(plugin).await {
                Ok(located) => {
                    self.execute(Command::Gc, &located, &Variables::default(), request, clock).await
                }
                Err(error) => Err(error),
            };
            collected.errors.extend(told.err());
        }
        Ok(collected)
    }

    /// Removes files from the cache that processes left which were killed while
    /// they wrote; returns how many. [`gc`](Self::gc) does so as well.
    ///
    /// # Errors
    /// The cache cannot be listed, or a file not be removed.
    pub async fn remove_leftovers(&self) -> Result<usize, Error> {
        self.cache().remove_leftovers().await
    }

    /// An attachment as it was recorded by ADD; `None` if there is none, or only
    /// a bare result of an old libcni.
    ///
    /// # Errors
    /// The record is damaged or cannot be read.
    pub async fn cached(&self, network: &str, id: &AttachmentId) -> Result<Option<CachedAttachment>, Error> {
        check_network_name(network)?;
        id.check()?;
        Ok(match self.cache().load(network, id).await? {
            Some(Cached::Record(record)) => Some(*record),
            Some(Cached::Bare(_)) | None => None,
        })
    }

    /// All recorded attachments, of all networks. Files that are no records are
    /// left out.
    ///
    /// # Errors
    /// The cache cannot be listed.
    pub async fn cached_attachments(&self) -> Result<Vec<CachedAttachment>, Error> {
        self.cache().all().await
    }

    async fn cached_result(
        &self,
        network: &Network,
        id: &AttachmentId,
    ) -> Result<Option<NetworkResult>, Error> {
        match self.cache().load(network.name(), id).await? {
            None => Ok(None),
            Some(Cached::Bare(result)) => Ok(Some(*result)),
            Some(Cached::Record(record)) => match record.result() {
                Ok(result) => Ok(Some(result)),
                Err(error) => {
                    let path = self.cache().path(network.name(), id);
                    Err(Error::Cache { path, source: error.into() })
                }
            },
        }
    }
}
