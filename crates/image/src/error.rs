use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kina_model::Digest;

/// What one registry host answered, or why it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The host as configured: scheme, name and port.
    pub host: String,
    /// The last failure there. Never holds a token, a password or a signed URL.
    pub reason: String,
}

/// Why an operation on images failed.
///
/// Sources are shared, because one pull can have several callers. `Display`
/// leaves the source out; walk the chain to show it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The text is not an image reference.
    #[error("invalid image reference {reference:?}: {reason}")]
    InvalidReference {
        /// The text as given.
        reference: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The credentials cannot be used.
    #[error("invalid registry credentials: {reason}")]
    InvalidCredentials {
        /// What is wrong with them.
        reason: &'static str,
    },
    /// The registry does not have the manifest or blob.
    #[error("{subject} not found at {host}")]
    NotFound {
        /// The reference, or reference and blob digest.
        subject: String,
        /// The host that was asked last.
        host: String,
    },
    /// The registry wants other credentials, or refuses these.
    #[error("{host} denies access to {subject} (HTTP status {status}){}", detail_text(.detail.as_deref()))]
    Denied {
        /// The reference, or reference and blob digest.
        subject: String,
        /// The host that refused.
        host: String,
        /// 401 or 403.
        status: u16,
        /// Why there were no credentials to show, if that is not by intention.
        detail: Option<String>,
    },
    /// No host could be asked, or none answered usefully.
    #[error("cannot fetch {subject}: {}", attempts_text(.attempts))]
    Unreachable {
        /// The reference, or reference and blob digest.
        subject: String,
        /// Each host that was tried, in order.
        attempts: Vec<Attempt>,
    },
    /// None of several hosts served it; the last one had it, but not as it
    /// should be, or does not have it, or does not give it to us.
    #[error("cannot fetch {subject}: {}", attempts_text(.attempts))]
    AllHosts {
        /// The reference, or reference and blob digest.
        subject: String,
        /// Each host that was tried, in order.
        attempts: Vec<Attempt>,
        /// The last host's failure, which tells of what kind this is.
        last: Box<Error>,
    },
    /// A registry answered outside the protocol.
    #[error("unexpected answer from {host} for {subject}: {reason}")]
    Protocol {
        /// The reference, or reference and blob digest.
        subject: String,
        /// The host that answered.
        host: String,
        /// What was unexpected.
        reason: String,
    },
    /// Content does not hash to its digest.
    #[error("{subject}: expected digest {expected}, content has {actual}")]
    DigestMismatch {
        /// What was fetched or read.
        subject: String,
        /// The digest that names it.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// Content is longer or shorter than its descriptor says.
    #[error("{subject}: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// What was fetched or read.
        subject: String,
        /// The size in its descriptor.
        expected: u64,
        /// The bytes that came; when too many, where reading stopped.
        actual: u64,
    },
    /// A layer does not unpack to what the image's configuration says.
    #[error("layer {layer} of {subject}: expected diff id {expected}, unpacks to {actual}")]
    DiffIdMismatch {
        /// The image.
        subject: String,
        /// The digest of the compressed layer.
        layer: Digest,
        /// The diff id in the configuration.
        expected: Digest,
        /// SHA-256 of the uncompressed layer.
        actual: Digest,
    },
    /// A configured limit is exceeded.
    #[error("{subject}: {what} exceed the limit of {limit}")]
    TooLarge {
        /// The manifest, blob or archive.
        subject: String,
        /// What is counted, for example `bytes`.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A manifest, configuration or layer of a kind that kina does not run.
    #[error("{subject}: unsupported media type {media_type:?}")]
    UnsupportedMediaType {
        /// The manifest or blob.
        subject: String,
        /// Its media type.
        media_type: String,
    },
    /// The layer's licence forbids registries to distribute it; its bytes lie
    /// elsewhere, which kina does not follow.
    #[error("layer {digest} is not distributable (media type {media_type:?})")]
    ForeignLayer {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// A document is not the JSON that it should be.
    #[error("{subject}: malformed {what}")]
    Malformed {
        /// The manifest, blob, host or file.
        subject: String,
        /// The kind of document.
        what: &'static str,
        /// The parser's word.
        #[source]
        source: Arc<serde_json::Error>,
    },
    /// A manifest or configuration contradicts itself or the specification.
    #[error("{subject}: invalid manifest: {reason}")]
    InvalidManifest {
        /// The manifest or blob.
        subject: String,
        /// What is wrong.
        reason: String,
    },
    /// The image does not exist for this platform.
    #[error("{subject} has no image for {wanted} (it has: {})", list_text(.available))]
    NoPlatform {
        /// The reference or archive.
        subject: String,
        /// The platform that was looked for.
        wanted: String,
        /// The platforms that the index offers.
        available: Vec<String>,
    },
    /// The layer's archive cannot become a layer image.
    #[error("layer {digest} was refused")]
    LayerRefused {
        /// The layer.
        digest: Digest,
        /// What the writer objected to.
        #[source]
        source: Arc<kina_erofs::Error>,
    },
    /// An archive to import is not an image archive.
    #[error("invalid image archive: {reason}")]
    InvalidArchive {
        /// What is wrong.
        reason: String,
    },
    /// Reading the archive, or writing one, failed.
    #[error("cannot {operation} the image archive")]
    ArchiveStream {
        /// `read` or `write`.
        operation: &'static str,
        /// The stream's error.
        #[source]
        source: Arc<io::Error>,
    },
    /// A name was given for an archive with several images.
    #[error("the archive holds {images} images; a name can be given to one only")]
    AmbiguousName {
        /// How many it holds.
        images: usize,
    },
    /// The store has no such image.
    #[error("no image {name:?}")]
    UnknownImage {
        /// The name or id as given.
        name: String,
    },
    /// Another process has this store open.
    #[error("the image store {path} is in use by another process", path = .path.display())]
    StoreInUse {
        /// The store's root.
        path: PathBuf,
    },
    /// A file of certificates or keys cannot be read.
    #[error("cannot read certificates or keys from {path}", path = .path.display())]
    Certificates {
        /// The PEM file.
        path: PathBuf,
        /// The PEM parser's or file system's error.
        #[source]
        source: Arc<rustls::pki_types::pem::Error>,
    },
    /// A file of certificates or keys is not what it should be.
    #[error("{path} {reason}", path = .path.display())]
    UnusableCertificate {
        /// The PEM file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A registry's `hosts.toml` is wrong. What it is for is not pulled from
    /// anywhere else meanwhile.
    #[error("{path}{}: {reason}", line_text(*.line), path = .path.display())]
    HostsFile {
        /// The file.
        path: PathBuf,
        /// Where in it, counted from 1.
        line: Option<usize>,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A docker configuration file is not the JSON that it should be.
    #[error("{path}:{line}: it is no docker configuration", path = .path.display())]
    DockerConfig {
        /// The file.
        path: PathBuf,
        /// Where the JSON goes wrong.
        line: usize,
    },
    /// An entry of a docker configuration file cannot be used.
    #[error("{path}: the entry for {host} cannot be used: {reason}", path = .path.display())]
    DockerEntry {
        /// The file.
        path: PathBuf,
        /// The host that it was looked up for.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A credential helper gave no usable answer.
    #[error("credential helper {name:?}: {reason}")]
    CredentialHelper {
        /// Its name, without `docker-credential-`.
        name: String,
        /// What went wrong.
        reason: String,
    },
    /// The HTTP client cannot be set up.
    #[error("cannot set up the HTTP client")]
    HttpClient {
        /// The client's error.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A mirror's address in the configuration is not a base URL.
    #[error("mirror {url:?} of {registry} is not an http or https URL")]
    InvalidMirror {
        /// The registry that it mirrors.
        registry: String,
        /// The address as configured.
        url: String,
    },
    /// A file of the store cannot be read or written.
    #[error("cannot {operation} {path}", path = .path.display())]
    Storage {
        /// What was attempted.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: Arc<io::Error>,
    },
    /// The file system has no room for a file of the store.
    #[error(
        "no space left to {operation} {path}: its file system has {free_bytes} bytes and {free_files} files free{}",
        needed_text(*.needed_bytes),
        path = .path.display()
    )]
    NoSpace {
        /// What was attempted.
        operation: &'static str,
        /// The file, or the store's directory.
        path: PathBuf,
        /// Bytes that could be had at least, if that is known.
        needed_bytes: Option<u64>,
        /// Bytes that were free when it failed.
        free_bytes: u64,
        /// Files that could still be made when it failed.
        free_files: u64,
        /// The system's error.
        #[source]
        source: Arc<io::Error>,
    },
    /// An image lacks a file, or has one that is not as it was.
    #[error("image {image} is incomplete: {path} {flaw}; `kina image pull {name}` mends it", path = .path.display())]
    Incomplete {
        /// The image's id.
        image: Digest,
        /// A name to pull it by, or its id.
        name: String,
        /// The file.
        path: PathBuf,
        /// `is missing`, or how long it is and should be.
        flaw: String,
    },
    /// The work was given up before it was done: nobody waited for it any
    /// more, or the runtime is shutting down.
    #[error("{what} was interrupted")]
    Interrupted {
        /// The work.
        what: &'static str,
    },
}

impl Error {
    pub(crate) fn storage(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let (free_bytes, free_files) = free_space(&path);
                let source = Arc::new(source);
                Self::NoSpace { operation, path, needed_bytes: None, free_bytes, free_files, source }
            }
            _ => Self::Storage { operation, path, source: Arc::new(source) },
        }
    }

    /// Whether the disk is at fault, so that giving up space may help.
    pub(crate) fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }
}

/// Bytes and files that a file system still has for us; zero if it does not tell.
pub(crate) fn free_space(path: &Path) -> (u64, u64) {
    // A file that could not be made is asked about by its directory.
    let found = path.ancestors().find_map(|path| rustix::fs::statvfs(path).ok());
    found.map_or((0, 0), |found| (found.f_bavail.saturating_mul(found.f_frsize), found.f_favail))
}

fn needed_text(needed: Option<u64>) -> String {
    needed.map(|needed| format!(", {needed} bytes are needed")).unwrap_or_default()
}

/// What a stranger wrote, short enough for a message: text that a registry
/// chose must not fill logs and answers.
pub(crate) fn clipped(text: &str) -> String {
    const LONGEST: usize = 128;
    match text.char_indices().nth(LONGEST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

fn list_text(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

impl Error {
    /// What kind of failure it is: the last host's, if there were several.
    #[must_use]
    pub fn kind(&self) -> &Self {
        match self {
            Self::AllHosts { last, .. } => last.kind(),
            error => error,
        }
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn detail_text(detail: Option<&str>) -> String {
    detail.map_or_else(String::new, |detail| format!(", {detail}"))
}

fn line_text(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(":{line}"))
}

fn attempts_text(attempts: &[Attempt]) -> String {
    let mut text = String::new();
    for attempt in attempts {
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&attempt.host);
        text.push_str(": ");
        text.push_str(&attempt.reason);
    }
    text
}
