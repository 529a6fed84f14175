//! Which hosts serve a registry's content, and how they are spoken to.
//!
//! Read anew for every pull: people edit these files while the daemon runs.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue};

use super::hosts_file::{self, Entry, HostsFile, Tls};
use super::transport::{Clients, Transport, authority};
use crate::Error;
use crate::config::Config;
use crate::credentials::Credentials;
use crate::flight::lock;
use crate::reference::{DEFAULT_REGISTRY, Reference};

/// Where docker.io's API is.
const DOCKER_HOST: &str = "registry-1.docker.io";
const FILE_NAME: &str = "hosts.toml";
/// The directory for registries without their own.
const DEFAULT_NAME: &str = "_default";
const FILE_LIMIT: u64 = 1 << 20;
/// Files in a directory of certificates.
const MAX_FILES: usize = 1024;

/// A host that may serve a repository.
#[derive(Debug)]
pub(crate) struct Host {
    /// Ends in `/`.
    base: Url,
    /// The registry that it stands in for, unless it is that itself.
    namespace: Option<String>,
    /// May serve content by digest.
    pull: bool,
    /// May say what a tag means.
    resolve: bool,
    /// For this host alone.
    pub(super) headers: HeaderMap,
    pub(super) clients: Clients,
    /// Whether http is tried where https turns out not to be spoken.
    ambiguous: bool,
    plain: AtomicBool,
    /// What the caller gave for it.
    pub(super) given: Option<Credentials>,
    /// What was found for it elsewhere, or why that failed.
    pub(super) found: tokio::sync::OnceCell<Result<Option<Credentials>, String>>,
    authorization: Mutex<Option<HeaderValue>>,
    /// Held while a token is fetched, so that one is enough for all layers.
    pub(super) authorizing: tokio::sync::Mutex<()>,
    /// Whether it can continue in the middle of a blob, as far as is known.
    ranges: AtomicBool,
}

impl Host {
    /// Scheme, host and port, for messages.
    pub(crate) fn label(&self) -> String {
        let mut url = self.base.clone();
        self.adapt(&mut url);
        url.origin().ascii_serialization()
    }

    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// The name under which credentials for it are kept.
    pub(super) fn name(&self) -> String {
        match authority(&self.base) {
            Some(host) if host == DOCKER_HOST => DEFAULT_REGISTRY.to_owned(),
            Some(host) => host,
            None => String::new(),
        }
    }

    pub(super) fn url(&self, path: &str) -> Result<Url, super::Failure> {
        let mut url =
            self.base.join(path).map_err(|_| super::Failure::Protocol("its URL is malformed".to_owned()))?;
        self.adapt(&mut url);
        if let Some(registry) = &self.namespace {
            // containerd's convention, for mirrors of several registries.
            url.query_pairs_mut().append_pair("ns", registry);
        }
        Ok(url)
    }

    /// Whether a URL is on this very host, with the same scheme and port.
    pub(super) fn is_at(&self, url: &Url) -> bool {
        let mut base = self.base.clone();
        self.adapt(&mut base);
        base.origin() == url.origin()
    }

    /// Whether it is spoken to without TLS.
    pub(super) fn is_plain(&self) -> bool {
        self.base.scheme() == "http" || self.plain.load(Ordering::Relaxed)
    }

    /// Goes on without TLS, if that is allowed.
    pub(super) fn fall_back(&self) -> bool {
        if self.ambiguous {
            self.plain.store(true, Ordering::Relaxed);
        }
        self.ambiguous
    }

    pub(super) fn make_plain(&self, url: &mut Url) {
        self.adapt(url);
    }

    fn adapt(&self, url: &mut Url) {
        if self.plain.load(Ordering::Relaxed) && url.set_scheme("http").is_err() {
            tracing::debug!("a URL of an odd scheme");
        }
    }

    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        lock(&self.authorization).clone()
    }

    pub(super) fn set_authorization(&self, header: HeaderValue) {
        *lock(&self.authorization) = Some(header);
    }

    pub(crate) fn has_ranges(&self) -> bool {
        self.ranges.load(Ordering::Relaxed)
    }

    pub(super) fn without_ranges(&self) {
        self.ranges.store(false, Ordering::Relaxed);
    }

    pub(super) fn pulls(&self) -> bool {
        self.pull
    }

    pub(super) fn resolves(&self) -> bool {
        self.pull && self.resolve
    }
}

/// The hosts for a reference, in the order in which they are tried. Blocking.
pub(super) fn hosts_for(
    config: &Config,
    transport: &Transport,
    reference: &Reference,
    credentials: Option<&Credentials>,
) -> Result<Vec<Host>, Error> {
    let registry = reference.registry();
    let (mut entries, own) = entries_for(config, registry)?;
    entries.push(own);
    entries.into_iter().map(|entry| make_host(config, transport, reference, entry, credentials)).collect()
}

/// The configured hosts, and the registry's own.
fn entries_for(config: &Config, registry: &str) -> Result<(Vec<Entry>, Entry), Error> {
    if let Some(directory) = find(&config.hosts_directories, &directory_names(registry))? {
        return Ok(match load(&directory)? {
            Directory::Hosts(file) => (file.hosts, file.server),
            Directory::Certificates(tls) => (mirrors(config, registry)?, Entry { tls, ..Entry::default() }),
        });
    }
    if config.mirrors.contains_key(registry) {
        return Ok((mirrors(config, registry)?, Entry::default()));
    }
    match find(&config.hosts_directories, &[DEFAULT_NAME.to_owned()])? {
        Some(directory) => Ok(match load(&directory)? {
            Directory::Hosts(file) => (file.hosts, file.server),
            Directory::Certificates(tls) => (Vec::new(), Entry { tls, ..Entry::default() }),
        }),
        None => Ok((Vec::new(), Entry::default())),
    }
}

/// The short form in the configuration, as the same entries.
fn mirrors(config: &Config, registry: &str) -> Result<Vec<Entry>, Error> {
    let urls = config.mirrors.get(registry).into_iter().flatten();
    urls.map(|url| {
        let base = mirror_base(registry, url)?;
        Ok(Entry { base: Some(base), ..Entry::default() })
    })
    .collect()
}

/// A configured mirror's base URL. Its scheme must be written out.
pub(super) fn mirror_base(registry: &str, url: &str) -> Result<Url, Error> {
    let invalid = || Error::InvalidMirror { registry: registry.to_owned(), url: url.to_owned() };
    if !url.contains("://") {
        return Err(invalid());
    }
    hosts_file::base_url(url, false).map_err(|_| invalid())
}

fn make_host(
    config: &Config,
    transport: &Transport,
    reference: &Reference,
    entry: Entry,
    credentials: Option<&Credentials>,
) -> Result<Host, Error> {
    let registry = reference.registry();
    let Entry { base, pull, resolve, mut tls, headers, dial_timeout } = entry;
    let configured = base.is_some();
    let mut ambiguous = false;
    let base = match base {
        Some(mut base) => {
            let host = authority(&base);
            if matches!(host.as_deref(), Some("docker.io" | "index.docker.io")) {
                // There is no API; files that name it mean the one beside it.
                let _ = base.set_host(Some(DOCKER_HOST));
            }
            if base.scheme() == "http" && base.port().is_some() && tls != Tls::default() {
                // As containerd reads it: settings for TLS mean that TLS is
                // worth a try.
                ambiguous = base.set_scheme("https").is_ok();
            }
            base
        }
        None => {
            let (base, maybe_plain) = own_base(config, reference)?;
            ambiguous = maybe_plain;
            if base.scheme() == "https" && is_loopback(registry) && tls.skip_verify.is_none() {
                tls.skip_verify = Some(true);
            }
            base
        }
    };
    let own = !configured || is_registry(&base, registry);
    let host = authority(&base).unwrap_or_default();
    if tls.skip_verify == Some(true) && !is_loopback(&host) {
        tracing::warn!(%host, "its certificate is not verified (skip_verify)");
    }
    let given = credentials
        .filter(|credentials| (own && credentials.applies_to(reference)) || credentials.is_for(&host))
        .cloned();
    let authorization = given.as_ref().and_then(Credentials::ready_made);
    Ok(Host {
        clients: transport.clients(&tls, dial_timeout)?,
        namespace: (!own).then(|| registry.to_owned()),
        base,
        pull,
        resolve,
        headers,
        ambiguous,
        plain: AtomicBool::new(false),
        given,
        found: tokio::sync::OnceCell::new(),
        authorization: Mutex::new(authorization),
        authorizing: tokio::sync::Mutex::new(()),
        ranges: AtomicBool::new(true),
    })
}

/// Where the registry itself is, and whether http may be tried after https:
/// containerd's defaults. Beyond loopback nothing goes without TLS unasked.
fn own_base(config: &Config, reference: &Reference) -> Result<(Url, bool), Error> {
    let registry = reference.registry();
    let host = if registry == DEFAULT_REGISTRY { DOCKER_HOST } else { registry };
    let port = registry.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.contains(']'));
    let local = is_loopback(registry);
    let plain = config.plain_http.iter().any(|plain| plain == registry) || (local && port == Some("80"));
    let scheme = if plain { "http" } else { "https" };
    let base = Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|_| Error::InvalidReference {
        reference: reference.to_string(),
        reason: "its registry cannot be part of a URL",
    })?;
    let ambiguous = local && !plain && !matches!(port, None | Some("443"));
    Ok((base, ambiguous))
}

/// Whether a URL is the registry's own, whatever its scheme.
fn is_registry(base: &Url, registry: &str) -> bool {
    let host = authority(base).unwrap_or_default();
    let with_port =
        base.port_or_known_default().map(|port| format!("{}:{port}", base.host_str().unwrap_or_default()));
    let registry = registry.to_ascii_lowercase();
    host == registry
        || with_port.is_some_and(|host| host == registry)
        || (registry == DEFAULT_REGISTRY && host == DOCKER_HOST)
}

fn is_loopback(registry: &str) -> bool {
    let url = Url::parse(&format!("https://{registry}/"));
    let Ok(url) = url else { return false };
    let Some(host) = url.host_str() else { return false };
    host == "localhost"
        || host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// The names that a registry's directory can have, as containerd looks for them.
fn directory_names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':').filter(|(host, _)| !host.is_empty()) {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names
}

/// The first directory that has one of the names.
fn find(directories: &[PathBuf], names: &[String]) -> Result<Option<PathBuf>, Error> {
    for directory in directories {
        for name in names {
            let path = directory.join(name);
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => return Ok(Some(path)),
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(Error::storage("look for", &path)(error)),
            }
        }
    }
    Ok(None)
}

/// What a registry's directory holds.
enum Directory {
    Hosts(Box<HostsFile>),
    /// Docker's layout: `*.crt` are authorities, `*.cert` with `*.key` the client's.
    Certificates(Tls),
}

fn load(directory: &Path) -> Result<Directory, Error> {
    let path = directory.join(FILE_NAME);
    let broken = |line, reason: String| Error::HostsFile { path: path.clone(), line, reason };
    let mut bytes = Vec::new();
    match File::open(&path) {
        Ok(file) => {
            file.take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(Error::storage("read", &path))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::storage("open", &path)(error)),
    }
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(broken(None, format!("it has more than {FILE_LIMIT} bytes")));
    }
    if bytes.is_empty() {
        return Ok(Directory::Certificates(certificates(directory)?));
    }
    let text = String::from_utf8(bytes).map_err(|_| broken(None, "it is not UTF-8".to_owned()))?;
    let file = hosts_file::parse(&text, directory).map_err(|fault| broken(fault.line, fault.reason))?;
    for warning in &file.warnings {
        tracing::warn!(file = %path.display(), "{warning}");
    }
    Ok(Directory::Hosts(Box::new(file)))
}

fn certificates(directory: &Path) -> Result<Tls, Error> {
    let failed = || Error::storage("list", directory);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed())?.take(MAX_FILES) {
        names.push(entry.map_err(failed())?.path());
    }
    // So that the same file is first every time.
    names.sort();
    let mut tls = Tls::default();
    for path in names {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.authorities.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = if key.exists() { key } else { path.clone() };
                tls.client.push((path, key));
            }
            Some(_) | None => {}
        }
    }
    Ok(tls)
}

/// Reads every file of every registry as a pull would, without any host.
pub(super) fn check(config: &Config) -> Result<Vec<Error>, Error> {
    let transport = Transport::new(config)?;
    let mut problems = Vec::new();
    for directory in &config.hosts_directories {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for path in entries.flatten().take(MAX_FILES).map(|entry| entry.path()) {
            if !path.is_dir() {
                continue;
            }
            let checked = load(&path).and_then(|found| {
                let entries = match found {
                    Directory::Hosts(file) => file.hosts.into_iter().chain([file.server]).collect(),
                    Directory::Certificates(tls) => vec![Entry { tls, ..Entry::default() }],
                };
                entries
                    .iter()
                    .try_for_each(|entry| transport.clients(&entry.tls, entry.dial_timeout).map(drop))
            });
            problems.extend(checked.err());
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_named_as_containerd_names_them() {
        assert_eq!(directory_names("docker.io"), ["docker.io"]);
        assert_eq!(directory_names("a.b:5000"), ["a.b_5000_", "a.b:5000"]);
        assert_eq!(directory_names("[::1]:5000"), ["[::1]_5000_", "[::1]:5000"]);
    }

    #[test]
    fn only_loopback_may_do_without_tls() {
        let config = Config { plain_http: vec!["plain.example".to_owned()], ..Config::default() };
        for (registry, base, ambiguous) in [
            ("a.example", "https://a.example/v2/", false),
            ("a.example:5000", "https://a.example:5000/v2/", false),
            ("a.example:80", "https://a.example:80/v2/", false),
            ("plain.example", "http://plain.example/v2/", false),
            ("docker.io", "https://registry-1.docker.io/v2/", false),
            ("localhost", "https://localhost/v2/", false),
            ("localhost:443", "https://localhost/v2/", false),
            ("localhost:80", "http://localhost/v2/", false),
            ("localhost:5000", "https://localhost:5000/v2/", true),
            ("127.0.0.2:5000", "https://127.0.0.2:5000/v2/", true),
            ("[::1]:5000", "https://[::1]:5000/v2/", true),
            ("[::1]", "https://[::1]/v2/", false),
        ] {
            let reference = format!("{registry}/x/y").parse().unwrap();
            let (got, maybe) = own_base(&config, &reference).unwrap();
            assert_eq!((got.as_str(), maybe), (base, ambiguous), "{registry}");
        }
    }

    #[test]
    fn a_registry_knows_its_own_url() {
        let is = |url: &str, registry: &str| is_registry(&Url::parse(url).unwrap(), registry);
        assert!(is("https://a.example/v2/", "a.example"));
        assert!(is("https://a.example/v2/", "a.example:443"));
        assert!(is("http://A.example:5000/v2/", "a.Example:5000"));
        assert!(is("https://registry-1.docker.io/v2/", "docker.io"));
        assert!(!is("https://a.example:5000/v2/", "a.example"));
        assert!(!is("https://registry-1.docker.io/v2/", "quay.io"));
        assert!(!is("https://docker.io.evil.example/v2/", "docker.io"));
    }
}
