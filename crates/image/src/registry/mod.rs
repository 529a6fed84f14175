//! The registry side: hosts, authentication, manifests and blobs (OCI
//! distribution-spec 1.1, pull).

mod auth;
mod hosts;
mod hosts_file;
mod session;
mod tls;
mod token;
mod transport;
mod tries;

pub(crate) use self::auth::{Challenge, challenges};
pub(crate) use self::hosts::Host;
pub(crate) use self::hosts_file::parse as parse_hosts_file;
pub(crate) use self::session::{BlobBody, FetchedManifest, Session};
pub(crate) use self::transport::{chain, secret_header};

use std::sync::Arc;
use std::time::Duration;

use self::transport::Transport;
use crate::Error;
use crate::config::Config;
use crate::credentials::{Credentials, DockerConfigs};
use crate::images::blocking;
use crate::reference::Reference;

/// Connections and settings shared by all pulls.
#[derive(Debug)]
pub(crate) struct Registry {
    transport: Transport,
    config: Config,
    docker: DockerConfigs,
}

/// Why one host did not serve a request.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It does not have it.
    Missing,
    /// It wants other credentials.
    Denied {
        status: u16,
        /// Why there are none, if that is not by intention.
        detail: Option<String>,
    },
    /// It may work at the next try, or at another host.
    Transient {
        reason: String,
        /// When to come back, if it says so.
        after: Option<Duration>,
    },
    /// One of us does not take the other's certificate. Trying again is of no use;
    /// what to do is part of the reason.
    Certificate(String),
    /// It does not keep to the protocol, so trying again is of no use.
    Protocol(String),
    /// It served something wrong; another host may do better.
    Content(Error),
}

impl Failure {
    pub(crate) fn transient(reason: impl Into<String>) -> Self {
        Self::Transient { reason: reason.into(), after: None }
    }

    fn denied(status: u16) -> Self {
        Self::Denied { status, detail: None }
    }
}

impl Registry {
    pub(crate) fn new(config: &Config) -> Result<Arc<Self>, Error> {
        for (registry, mirrors) in &config.mirrors {
            for url in mirrors {
                hosts::mirror_base(registry, url)?;
            }
        }
        Ok(Arc::new(Self {
            transport: Transport::new(config)?,
            docker: DockerConfigs::new(config),
            config: config.clone(),
        }))
    }

    /// Opens a session: reads which hosts there are. Nothing is sent yet.
    pub(crate) async fn session(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Arc<Session>, Error> {
        let (registry, reference, credentials) = (self.clone(), reference.clone(), credentials.cloned());
        blocking("reading the registry's hosts", move || {
            let Self { config, transport, .. } = &*registry;
            let hosts = hosts::hosts_for(config, transport, &reference, credentials.as_ref())?;
            Ok(Arc::new(Session::new(registry.clone(), reference, hosts)))
        })
        .await
    }
}

/// Reads every registry's `hosts.toml` and certificates as a pull would, and
/// tells what is wrong with them. Blocking; no host is asked.
///
/// # Errors
///
/// What is wrong with the configuration itself.
pub fn check_hosts(config: &Config) -> Result<Vec<Error>, Error> {
    hosts::check(config)
}
