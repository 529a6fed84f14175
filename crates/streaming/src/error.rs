//! What can go wrong before a client connects.

use std::io;
use std::path::PathBuf;

/// Why there is no URL, or no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither input nor output was asked for.
    #[error("none of stdin, stdout and stderr is asked for; at least one must be")]
    NoStreams,
    /// A terminal has one output only.
    #[error("stderr cannot be asked for together with a terminal, whose output is all stdout")]
    TtyWithStderr,
    /// As many URLs wait for their client as may.
    #[error(
        "{limit} streaming URLs wait to be used, which is all that may; use them, or try again in a minute"
    )]
    TooManyTokens {
        /// The bound.
        limit: usize,
    },
    /// The certificate file cannot be read.
    #[error("cannot read the certificates in {}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The authorities of clients cannot be used.
    #[error("the certificates in {} cannot be those of clients' authorities", path.display())]
    ClientAuthority {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::server::VerifierBuilderError,
    },
    /// The key file cannot be read.
    #[error("cannot read a private key in {}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not go together, or are not supported.
    #[error("cannot use the certificate {} with its key", path.display())]
    Tls {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The listener gives no more connections.
    #[error("cannot accept streaming connections")]
    Accept(#[source] io::Error),
}
