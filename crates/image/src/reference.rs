//! Image references, normalised as Docker does it.

use std::fmt;
use std::str::FromStr;

use kina_model::Digest;

use crate::Error;
use crate::error::clipped;

/// The registry of names without one.
pub const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A normalised image reference: registry, repository, and a tag or a digest.
///
/// `busybox` is `docker.io/library/busybox:latest`. A reference with both tag
/// and digest means the digest; the tag is checked and dropped, as kubelet and
/// containerd do.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    version: Version,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Version {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    /// Host and optional port, for example `docker.io` or `127.0.0.1:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry, for example `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, unless the reference is by digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }

    /// The digest, unless the reference is by tag.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        match &self.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(digest),
        }
    }

    /// The same repository at a digest.
    #[must_use]
    pub fn with_digest(&self, digest: &Digest) -> Self {
        Self { version: Version::Digest(digest.clone()), ..self.clone() }
    }

    /// Registry and repository, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            Version::Tag(tag) => write!(formatter, ":{tag}"),
            Version::Digest(digest) => write!(formatter, "@{digest}"),
        }
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|reason| Error::InvalidReference { reference: clipped(text), reason })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    // The longest valid one: name, tag and digest with their separators.
    if text.len() > MAX_NAME + 1 + MAX_TAG + 1 + 71 {
        return Err("it is too long");
    }
    if !text.is_ascii() {
        return Err("it has characters outside ASCII");
    }
    let (rest, digest) = match text.split_once('@') {
        None => (text, None),
        Some((rest, digest)) => {
            let digest = digest.parse::<Digest>().map_err(|_| match digest.split_once(':') {
                Some(("sha512" | "sha384" | "blake3", _)) => {
                    "kina knows no digests but sha256; name it by tag, or by its sha256 digest"
                }
                Some(_) | None => "its digest is not sha256: and 64 lower-case hexadecimal characters",
            })?;
            (rest, Some(digest))
        }
    };
    // A colon after the last slash starts the tag; before it, a port.
    let last_slash = rest.rfind('/').map_or(0, |position| position + 1);
    let (name, tag) = match rest[last_slash..].find(':') {
        None => (rest, None),
        Some(position) => {
            let position = last_slash + position;
            (&rest[..position], Some(&rest[position + 1..]))
        }
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    if name.len() == 64 && name.bytes().all(is_lower_hex) {
        return Err("64 hexadecimal characters are an image id, not a name");
    }
    let (registry, path) = split_registry(name);
    check_registry(registry)?;
    if path.is_empty() {
        return Err("it has no repository name");
    }
    for component in path.split('/') {
        check_component(component)?;
    }
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err("its name is longer than 255 characters");
    }
    let version = match (digest, tag) {
        (Some(digest), _) => Version::Digest(digest),
        (None, Some(tag)) => Version::Tag(tag.to_owned()),
        (None, None) => Version::Tag(DEFAULT_TAG.to_owned()),
    };
    Ok(Reference { registry: registry.to_owned(), repository, version })
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// The first component is a registry if it could not be a repository's name,
/// or is `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            if first == "index.docker.io" {
                (DEFAULT_REGISTRY, rest)
            } else {
                (first, rest)
            }
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let host = if let Some(inner) = registry.strip_prefix('[') {
        let Some((address, port)) = inner.split_once(']') else {
            return Err("its registry has an opening bracket without a closing one");
        };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("its registry is not an IPv6 address");
        }
        if port.is_empty() {
            return Ok(());
        }
        return port.strip_prefix(':').map_or(Err("its registry is malformed"), check_port);
    } else if let Some((host, port)) = registry.split_once(':') {
        check_port(port)?;
        host
    } else {
        registry
    };
    for label in host.split('.') {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        if !edge(bytes.first())
            || !edge(bytes.last())
            || !bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
        {
            return Err("its registry is not a host name");
        }
    }
    Ok(())
}

fn check_port(port: &str) -> Result<(), &'static str> {
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    if digits && port.parse::<u16>().is_ok_and(|port| port != 0) {
        Ok(())
    } else {
        Err("its registry's port is not a number between 1 and 65535")
    }
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    if tag.is_empty() {
        return Err("its tag is empty");
    }
    if tag.len() > MAX_TAG {
        return Err("its tag is longer than 128 characters");
    }
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let first = tag.bytes().next().is_some_and(word);
    if first && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-')) {
        Ok(())
    } else {
        Err("its tag has characters other than letters, digits, '_', '.' and '-', or starts with '.' or '-'")
    }
}

/// Runs of lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
fn check_component(component: &str) -> Result<(), &'static str> {
    let alphanumeric = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
    if component.is_empty() {
        return Err("its name has an empty component");
    }
    if component.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("its repository name must be lower case");
    }
    let mut separator = String::new();
    let mut seen = false;
    for byte in component.bytes() {
        if alphanumeric(byte) {
            let allowed = matches!(separator.as_str(), "" | "." | "_" | "__")
                || separator.bytes().all(|byte| byte == b'-');
            if !allowed || (!seen && !separator.is_empty()) {
                return Err("its name has misplaced separators");
            }
            separator.clear();
            seen = true;
        } else if matches!(byte, b'.' | b'_' | b'-') {
            separator.push(char::from(byte));
        } else {
            return Err(
                "its name has characters other than lower-case letters, digits, '.', '_', '-' and '/'",
            );
        }
    }
    if separator.is_empty() { Ok(()) } else { Err("its name has misplaced separators") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_normalised() {
        let digest = format!("sha256:{HEX}");
        let table = [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("grafana/loki:2.9", "docker.io/grafana/loki:2.9".to_owned()),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10".to_owned()),
            ("localhost/a", "localhost/a:latest".to_owned()),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest".to_owned()),
            ("127.0.0.1:5000/a:v1", "127.0.0.1:5000/a:v1".to_owned()),
            ("[::1]:5000/a:v1", "[::1]:5000/a:v1".to_owned()),
            ("[2001:db8::1]/a", "[2001:db8::1]/a:latest".to_owned()),
            ("Registry/a", "Registry/a:latest".to_owned()),
            ("a__b/c---d.e_f", "docker.io/a__b/c---d.e_f:latest".to_owned()),
            ("sha256:abcdef", "docker.io/library/sha256:abcdef".to_owned()),
            (&format!("busybox@{digest}"), format!("docker.io/library/busybox@{digest}")),
            (&format!("quay.io/x/y:v1@{digest}"), format!("quay.io/x/y@{digest}")),
        ];
        for (text, expected) in table {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), expected, "{text}");
            let again: Reference = expected.parse().unwrap();
            assert_eq!(again, reference, "{text}");
        }
    }

    #[test]
    fn bad_references_are_refused_with_a_reason() {
        let long_tag = format!("a:{}", "x".repeat(129));
        let long_name = format!("a.b/{}", "x".repeat(260));
        let table = [
            ("", "empty"),
            (HEX, "image id"),
            ("Busybox", "lower case"),
            ("a:", "tag is empty"),
            ("a:b:c", "tag has characters"),
            ("a:-b", "tag has characters"),
            (&long_tag, "tag is longer"),
            (&long_name, "255"),
            ("a//b", "empty component"),
            ("/a", "empty component"),
            ("a/", "empty component"),
            ("a.b/", "no repository"),
            ("-a", "misplaced"),
            ("a-", "misplaced"),
            ("a._b", "misplaced"),
            ("a___b", "misplaced"),
            ("a b", "characters"),
            ("ä", "ASCII"),
            ("a@sha256:12", "digest"),
            ("a@sha512:00", "name it by tag, or by its sha256 digest"),
            ("a@md5:00", "its digest is not sha256"),
            ("a@", "digest"),
            ("localhost:0/a", "port"),
            ("localhost:x/a", "port"),
            ("-.x/a", "host name"),
            ("[::1/a", "bracket"),
            ("[nonsense:x]/a", "IPv6"),
            ("https://registry.k8s.io/pause", "port"),
        ];
        for (text, reason) in table {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_stable(text in "\\PC{0,80}|[a-zA-Z0-9:/@._\\[\\]-]{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().unwrap();
                prop_assert_eq!(again, reference);
            }
        }
    }
}
