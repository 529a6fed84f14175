//! Docker's configuration files: credentials by registry, and who else has them.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{AuthFields, Credentials, canonical, helper};
use crate::Error;
use crate::config::Config;
use crate::images::blocking;
use crate::reference::DEFAULT_REGISTRY;

const FILE_LIMIT: u64 = 1 << 20;
/// Docker Hub's name in these files, and for helpers.
const HUB: &str = "https://index.docker.io/v1/";

/// The files, in the order in which they are asked. They are read anew every
/// time: people log in while the daemon runs.
#[derive(Debug)]
pub(crate) struct DockerConfigs {
    paths: Vec<PathBuf>,
    helper_directories: Vec<PathBuf>,
    helper_deadline: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: Option<BTreeMap<String, Option<Entry>>>,
    #[serde(default)]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, rename = "identitytoken")]
    identity_token: Option<String>,
    #[serde(default, rename = "registrytoken")]
    registry_token: Option<String>,
}

impl DockerConfigs {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            paths: config.docker_configs.clone(),
            helper_directories: config.credential_helper_directories.clone(),
            helper_deadline: config.timeouts.credential_helper,
        }
    }

    /// What there is for a repository at a host, from the first file that has
    /// anything.
    pub(crate) async fn find(&self, host: &str, repository: &str) -> Result<Option<Credentials>, Error> {
        for path in &self.paths {
            let Some(file) = read(path).await? else { continue };
            // As docker has it: a helper that is named for the host comes first,
            // and the store for all hosts last.
            if let Some(name) = file.helper_for(host) {
                if let Some(found) = self.ask(name, host).await? {
                    return Ok(Some(found));
                }
                continue;
            }
            if let Some(found) = file.entry_for(host, repository, path)? {
                return Ok(Some(found));
            }
            if let Some(name) = file.store(std::env::consts::OS)
                && let Some(found) = self.ask(name, host).await?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn ask(&self, name: &str, host: &str) -> Result<Option<Credentials>, Error> {
        let server = if host == DEFAULT_REGISTRY { HUB } else { host };
        helper::get(name, server, &self.helper_directories, self.helper_deadline).await
    }
}

async fn read(path: &Path) -> Result<Option<File>, Error> {
    let path = path.to_owned();
    blocking("reading a docker configuration", move || {
        let mut bytes = Vec::new();
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(Error::storage("open", &path)(error)),
        };
        file.take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(Error::storage("read", &path))?;
        let subject = || path.display().to_string();
        if bytes.len() as u64 > FILE_LIMIT {
            return Err(Error::TooLarge { subject: subject(), what: "bytes", limit: FILE_LIMIT });
        }
        // The parser's word could hold a part of the file.
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| Error::DockerConfig { path: path.clone(), line: source.line() })
    })
    .await
}

impl File {
    fn helper_for(&self, host: &str) -> Option<&str> {
        let helpers = self.cred_helpers.as_ref()?;
        let found = helpers.iter().find(|(key, _)| Key::parse(key).is_some_and(|key| key.host == host));
        found.map(|(_, name)| name.as_str()).filter(|name| !name.is_empty())
    }

    /// On a Mac, Docker keeps credentials in the keychain unless told otherwise.
    fn store(&self, os: &str) -> Option<&str> {
        match self.creds_store.as_deref() {
            None if os == "macos" => Some("osxkeychain"),
            Some("") | None => None,
            store => store,
        }
    }

    /// The most specific entry that is not empty.
    fn entry_for(&self, host: &str, repository: &str, path: &Path) -> Result<Option<Credentials>, Error> {
        let mut matching: Vec<(Key<'_>, &Entry)> = self
            .auths
            .iter()
            .flatten()
            .filter_map(|(key, entry)| Some((Key::parse(key)?, entry.as_ref()?)))
            .filter(|(key, _)| key.matches(host, repository))
            .collect();
        matching.sort_by_key(|(key, _)| std::cmp::Reverse((key.path.len(), key.exact())));
        for (_, entry) in matching {
            let text = |field: &Option<String>| field.clone().unwrap_or_default();
            let fields = AuthFields {
                username: text(&entry.username),
                password: text(&entry.password),
                auth: text(&entry.auth),
                server_address: String::new(),
                identity_token: text(&entry.identity_token),
                registry_token: text(&entry.registry_token),
            };
            let found = Credentials::from_fields(fields).map_err(|error| Error::DockerEntry {
                path: path.to_owned(),
                host: host.to_owned(),
                reason: error.to_string(),
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// A key of `auths`: a host, maybe with wildcards, port and path, in any of the
/// forms that docker and the kubelet accept.
#[derive(Debug, PartialEq, Eq)]
struct Key<'a> {
    host: &'a str,
    /// Without slashes at its ends.
    path: &'a str,
}

impl<'a> Key<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        // Docker's keys have an API version where others have a repository.
        let path = match path.split_once('/').unwrap_or((path, "")) {
            ("v1" | "v2", rest) => rest,
            _ => path,
        };
        (!host.is_empty()).then(|| Self { host: canonical(host), path: path.trim_matches('/') })
    }

    fn exact(&self) -> bool {
        !self.host.contains(['*', '?'])
    }

    /// As the kubelet matches, but a path ends at a slash: `team` is not for
    /// `team-two`.
    fn matches(&self, host: &str, repository: &str) -> bool {
        let under = repository
            .strip_prefix(self.path)
            .is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with('/'));
        under && host_matches(self.host, host)
    }
}

/// Label by label, so that `*.example` is not for `a.b.example`; ports must be
/// the same.
fn host_matches(pattern: &str, host: &str) -> bool {
    let split = |text: &str| -> (String, String) {
        match text.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name.to_ascii_lowercase(), port.to_owned()),
            _ => (text.to_ascii_lowercase(), String::new()),
        }
    };
    let ((pattern, pattern_port), (host, port)) = (split(pattern), split(host));
    let (patterns, labels): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    pattern_port == port
        && patterns.len() == labels.len()
        && patterns.iter().zip(labels).all(|(pattern, label)| glob(pattern.as_bytes(), label.as_bytes()))
}

/// `*` is any text, `?` any character. After a mismatch only the last `*` takes
/// one character more, so the work is bounded by the product of the lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut position) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while position < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, position));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[position] => {
                at += 1;
                position += 1;
            }
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                (at, position) = (star_at + 1, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::credentials::Kind;

    fn name(file: &str, host: &str, repository: &str) -> Option<String> {
        let file: File = serde_json::from_str(file).unwrap();
        let found = file.entry_for(host, repository, Path::new("config.json")).unwrap()?;
        match found.kind() {
            Kind::Basic { username, .. } => Some(username.clone()),
            Kind::IdentityToken(token) | Kind::RegistryToken(token) => Some(token.clone()),
        }
    }

    #[test]
    fn every_form_of_a_key_is_understood() {
        for (key, host, repository, found) in [
            ("https://index.docker.io/v1/", "docker.io", "library/x", true),
            ("index.docker.io", "docker.io", "library/x", true),
            ("docker.io", "docker.io", "library/x", true),
            ("https://index.docker.io/v1/", "index.docker.io.evil", "x", false),
            ("a.example", "a.example", "x/y", true),
            ("https://a.example", "a.example", "x/y", true),
            ("https://a.example/v2/", "a.example", "x/y", true),
            ("http://a.example:5000/v1", "a.example:5000", "x", true),
            ("a.example", "a.example:5000", "x", false),
            ("a.example:5000", "a.example", "x", false),
            ("a.example/team", "a.example", "team/x", true),
            ("a.example/team/", "a.example", "team", true),
            ("a.example/team", "a.example", "team-two/x", false),
            ("a.example/team", "a.example", "other", false),
            ("a.example/v2/team", "a.example", "team/x", true),
            ("*.example", "a.example", "x", true),
            ("*.example", "a.b.example", "x", false),
            ("*.*.example", "a.b.example", "x", true),
            ("*", "example", "x", true),
            ("*", "a.example", "x", false),
            ("re*y-?.example:5000", "registry-1.example:5000", "x", true),
            ("re*y-?.example:5000", "registry-12.example:5000", "x", false),
            ("[::1]:5000", "[::1]:5000", "x", true),
            ("[::1]", "[::1]", "x", true),
            ("A.Example", "a.example", "x", true),
            ("", "a.example", "x", false),
            ("https://", "a.example", "x", false),
        ] {
            let file = format!(r#"{{"auths":{{"{key}":{{"username":"u","password":"p"}}}}}}"#);
            assert_eq!(name(&file, host, repository).is_some(), found, "{key} for {host}/{repository}");
        }
    }

    #[test]
    fn the_most_specific_entry_wins_and_empty_ones_do_not_count() {
        let file = r#"{"auths":{
            "*.example":{"username":"any"},
            "a.example":{"username":"host"},
            "a.example/team":{"username":"team"},
            "a.example/team/x":{},
            "b.example":null,
            "c.example":{"auth":"dTpw"},
            "d.example":{"auth":"dTpw","identitytoken":"refresh"},
            "e.example":{"registrytoken":"bearer"}
        },"HttpHeaders":{"x":"y"},"credsStore":""}"#;
        let name = |host: &str, repository: &str| name(file, host, repository);
        assert_eq!(name("a.example", "team/x").as_deref(), Some("team"));
        assert_eq!(name("a.example", "other").as_deref(), Some("host"));
        assert_eq!(name("b.example", "x").as_deref(), Some("any"));
        assert_eq!(name("c.example", "x").as_deref(), Some("u"));
        assert_eq!(name("d.example", "x").as_deref(), Some("refresh"));
        assert_eq!(name("e.example", "x").as_deref(), Some("bearer"));
        assert_eq!(name("a.elsewhere", "x"), None);
    }

    #[test]
    fn helpers_and_stores() {
        let file: File = serde_json::from_str(
            r#"{"credHelpers":{"https://index.docker.io/v1/":"hub","a.example:5000":"five","b":""}}"#,
        )
        .unwrap();
        assert_eq!(file.helper_for("docker.io"), Some("hub"));
        assert_eq!(file.helper_for("a.example:5000"), Some("five"));
        assert_eq!(file.helper_for("a.example"), None);
        assert_eq!(file.helper_for("b"), None);
        assert_eq!(file.store("macos"), Some("osxkeychain"));
        assert_eq!(file.store("linux"), None);
        let file: File = serde_json::from_str(r#"{"credsStore":"desktop"}"#).unwrap();
        assert_eq!(file.store("macos"), Some("desktop"));
    }

    #[test]
    fn a_bad_entry_is_named_without_its_content() {
        let file: File = serde_json::from_str(r#"{"auths":{"a":{"auth":"hush%%%"}}}"#).unwrap();
        let error = file.entry_for("a", "x", Path::new("config.json")).unwrap_err();
        assert!(error.to_string().contains("config.json") && !format!("{error:?}").contains("hush"));
    }

    proptest! {
        #[test]
        fn matching_never_panics(
            key in "\\PC{0,30}|[a*?.:/\\[\\]]{0,30}",
            host in "[a.:0\\[\\]]{0,20}",
        ) {
            if let Some(key) = Key::parse(&key) {
                let _ = key.matches(&host, "a/b");
            }
        }

        #[test]
        fn globs_match_what_they_were_made_from(parts in proptest::collection::vec("[ab]{0,3}", 1..5)) {
            prop_assert!(glob(parts.join("*").as_bytes(), parts.concat().as_bytes()));
        }
    }
}
