//! The HTTP server behind exec, attach and port-forward of a container runtime.
//!
//! A runtime answers such a call with a URL; the caller connects to it and
//! upgrades to SPDY/3.1 or WebSocket. [`Server::url_for`] makes URLs, with a
//! token that works once and for a minute. [`Server::serve`] takes connections
//! from a listener, and [`Server::serve_stream`] one from anywhere else. What
//! happens in containers and pods is up to a [`Backend`].
//!
//! | what | over SPDY/3.1 | over WebSocket |
//! |---|---|---|
//! | exec, attach | `v4.channel.k8s.io`, v3, v2, `channel.k8s.io` | `v5.channel.k8s.io`, v4, `channel.k8s.io`, and their base64 forms to v4 |
//! | port-forward | `portforward.k8s.io` | `SPDY/3.1+portforward.k8s.io`, `v4.channel.k8s.io`, `v4.base64.channel.k8s.io` |
//!
//! Between client and backend nothing is stored but small buffers: who does not
//! read holds the other up. When the client goes, the backend's call is
//! dropped; when the backend is done, the client gets all that was written and
//! then the outcome.

mod backend;
mod command;
mod config;
mod error;
mod forward;
mod negotiate;
mod request;
mod server;
mod session;
mod status;
mod token;
mod websocket;

/// What fuzz targets call.
#[doc(hidden)]
pub mod fuzzing;

pub use crate::backend::{
    Backend, BackendError, ByteStream, Duplex, Input, Output, Resizes, SessionIo, TerminalSize,
};
pub use crate::config::{Config, TlsFiles};
pub use crate::error::Error;
pub use crate::request::{Attach, Exec, PortForward, Request, Streams};
pub use crate::server::Server;
