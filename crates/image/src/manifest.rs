//! Manifests, indexes and configurations: OCI image format 1.1 and Docker's
//! schema 2, parsed into what a pull needs.
//!
//! The documents are hostile. Their size is bounded before they come here, and
//! absent, `null` and empty mean the same, as for the Go programs that write
//! them.

use std::collections::BTreeMap;
use std::sync::Arc;

use kina_model::Digest;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::error::clipped;
use crate::platform::{self, Platform};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a manifest request accepts.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A manifest's word on a piece of content.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a descriptor")]
pub(crate) struct Blob {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// An entry of an index. Its digest is checked when the entry is chosen, so
/// that entries in an unknown algorithm do not spoil the others.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a descriptor")]
pub(crate) struct IndexEntry {
    #[serde(default)]
    pub(crate) media_type: Option<String>,
    digest: String,
    size: u64,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<RawPlatform>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(expecting = "a platform")]
struct RawPlatform {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    variant: Option<String>,
}

impl IndexEntry {
    pub(crate) fn blob(&self, subject: &str) -> Result<Blob, Error> {
        let digest = self.digest.parse().map_err(|_| Error::InvalidManifest {
            subject: subject.to_owned(),
            reason: format!("unsupported digest {:?}", clipped(&self.digest)),
        })?;
        let media_type = self.media_type.clone().unwrap_or_default();
        Ok(Blob { media_type, digest, size: self.size })
    }

    fn is_index(&self) -> bool {
        matches!(self.media_type.as_deref(), Some(OCI_INDEX | DOCKER_LIST))
    }
}

/// A parsed manifest of either kind.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<IndexEntry>),
    Image(Manifest),
}

/// An image manifest whose media types are known to be runnable.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) media_type: &'static str,
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(expecting = "a manifest or an index")]
struct RawDocument {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Blob>,
    #[serde(default)]
    layers: Option<Vec<Blob>>,
    #[serde(default)]
    manifests: Option<Vec<IndexEntry>>,
}

/// Parses a manifest or an index.
///
/// The kind follows from the content. The media types that the document and the
/// transport name must agree with it, or two tools could read one digest
/// differently (CVE-2021-41190).
pub(crate) fn parse(
    bytes: &[u8],
    transport_type: Option<&str>,
    subject: &str,
    max_layers: usize,
) -> Result<Document, Error> {
    let raw: RawDocument = json(bytes, subject, "manifest")?;
    let invalid =
        |reason: &str| Error::InvalidManifest { subject: subject.to_owned(), reason: reason.to_owned() };
    let unsupported = |media_type: &str| Error::UnsupportedMediaType {
        subject: subject.to_owned(),
        media_type: clipped(media_type),
    };
    if raw.schema_version.is_some_and(|version| version != 2) {
        let name = raw.media_type.as_deref().or(transport_type);
        return Err(unsupported(name.unwrap_or("application/vnd.docker.distribution.manifest.v1+json")));
    }
    let own_type = raw.media_type.as_deref().filter(|name| !name.is_empty());
    // Registries that know no better serve blobs of these types.
    let transport_type = transport_type
        .map(|name| name.split(';').next().unwrap_or(name).trim())
        .filter(|name| !matches!(*name, "" | "application/json" | "application/octet-stream" | "text/plain"));
    match (raw.manifests, raw.config, raw.layers) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err(invalid("it is both an index and a manifest")),
        (Some(entries), None, None) => {
            for name in [own_type, transport_type].into_iter().flatten() {
                if !matches!(name, OCI_INDEX | DOCKER_LIST) {
                    return Err(unsupported(name));
                }
            }
            Ok(Document::Index(entries))
        }
        (None, Some(config), layers) => {
            for name in [own_type, transport_type].into_iter().flatten() {
                if !matches!(name, OCI_MANIFEST | DOCKER_MANIFEST) {
                    return Err(unsupported(name));
                }
            }
            if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
                return Err(unsupported(&config.media_type));
            }
            let layers = layers.unwrap_or_default();
            if layers.len() > max_layers {
                return Err(Error::TooLarge {
                    subject: subject.to_owned(),
                    what: "layers",
                    limit: max_layers as u64,
                });
            }
            for layer in &layers {
                check_layer_type(layer)?;
            }
            let docker = own_type.or(transport_type) == Some(DOCKER_MANIFEST);
            let media_type = if docker { DOCKER_MANIFEST } else { OCI_MANIFEST };
            Ok(Document::Image(Manifest { media_type, config, layers }))
        }
        (None, None, _) => Err(invalid("it has neither manifests nor a configuration")),
    }
}

/// Which compression it is shows in the layer's first bytes; here only that it
/// is an archive that may be fetched.
fn check_layer_type(layer: &Blob) -> Result<(), Error> {
    match layer.media_type.as_str() {
        OCI_LAYER
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(()),
        media_type
            if media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
                || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.") =>
        {
            Err(Error::ForeignLayer { digest: layer.digest.clone(), media_type: clipped(media_type) })
        }
        media_type => Err(Error::UnsupportedMediaType {
            subject: format!("layer {}", layer.digest),
            media_type: clipped(media_type),
        }),
    }
}

pub(crate) fn json<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    subject: &str,
    what: &'static str,
) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| {
        // The parser quotes the text that it did not expect, however long.
        let text = source.to_string();
        let short = clipped(&text);
        let source = if short == text {
            source
        } else {
            let place = format!("at line {} column {}", source.line(), source.column());
            <serde_json::Error as serde::de::Error>::custom(format!("{short} {place}"))
        };
        Error::Malformed { subject: subject.to_owned(), what, source: Arc::new(source) }
    })
}

/// The entries worth trying, best first: those for the platform, then nested
/// indexes and entries that do not say theirs.
pub(crate) fn candidates<'a>(entries: &'a [IndexEntry], wanted: &Platform) -> Vec<&'a IndexEntry> {
    let mut ranked: Vec<(u32, &IndexEntry)> = entries
        .iter()
        .filter_map(|entry| {
            let stated = entry.platform.as_ref().and_then(|platform| {
                Some((
                    platform.os.as_deref()?,
                    platform.architecture.as_deref()?,
                    platform.variant.as_deref(),
                ))
            });
            match stated {
                Some((os, architecture, variant)) => {
                    wanted.rank(os, architecture, variant).map(|rank| (rank, entry))
                }
                None if entry.is_index() => Some((u32::MAX - 1, entry)),
                None => Some((u32::MAX, entry)),
            }
        })
        .collect();
    // Stable: among equals the index's order counts.
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, entry)| entry).collect()
}

/// The platforms that an index states, for an error message.
pub(crate) fn offered(entries: &[IndexEntry]) -> Vec<String> {
    const SHOWN: usize = 16;
    entries
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .filter_map(|raw| {
            Some(platform::text(raw.os.as_deref()?, raw.architecture.as_deref()?, raw.variant.as_deref()))
        })
        .filter(|text| text != "unknown/unknown")
        .take(SHOWN)
        .collect()
}

/// What an image says about running it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `user`, `uid`, or either with `:group`; empty means root.
    pub user: String,
    /// `NAME=value` lines.
    pub env: Vec<String>,
    /// The command that `cmd` gives arguments to.
    pub entrypoint: Vec<String>,
    /// The default arguments.
    pub cmd: Vec<String>,
    /// Where the command starts; empty means `/`.
    pub working_dir: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The signal that asks it to stop, by name or number.
    pub stop_signal: Option<String>,
    /// Paths that hold data, for example `/var/lib/data`.
    pub volumes: Vec<String>,
    /// Ports it serves, for example `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// When it was built, RFC 3339, as the image states it.
    pub created: Option<String>,
}

/// A parsed configuration.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    pub(crate) run: ImageConfig,
    pub(crate) os: String,
    pub(crate) architecture: String,
    pub(crate) variant: Option<String>,
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
#[serde(expecting = "an image configuration")]
struct RawConfiguration {
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<RawRun>,
    #[serde(default)]
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize)]
#[serde(expecting = "a list of layers")]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[serde(expecting = "a container's defaults")]
struct RawRun {
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
    #[serde(default)]
    working_dir: Option<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    stop_signal: Option<String>,
    #[serde(default)]
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    #[serde(default)]
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

/// Parses an image configuration, which must name as many layers as `layers`.
pub(crate) fn parse_configuration(
    bytes: &[u8],
    subject: &str,
    layers: usize,
) -> Result<Configuration, Error> {
    let raw: RawConfiguration = json(bytes, subject, "image configuration")?;
    let run = raw.config.unwrap_or_default();
    let diff_ids = raw.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
    if diff_ids.len() != layers {
        return Err(Error::InvalidManifest {
            subject: subject.to_owned(),
            reason: format!("{layers} layers, but {} diff ids in the configuration", diff_ids.len()),
        });
    }
    Ok(Configuration {
        run: ImageConfig {
            user: run.user.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            labels: run.labels.unwrap_or_default(),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
            volumes: run.volumes.unwrap_or_default().into_keys().collect(),
            exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
            created: raw.created,
        },
        os: raw.os.unwrap_or_default(),
        architecture: raw.architecture.unwrap_or_default(),
        variant: raw.variant.filter(|variant| !variant.is_empty()),
        diff_ids,
    })
}

impl Configuration {
    /// Whether it runs on the platform. Images made by hand may leave theirs
    /// out; those are taken at their owner's word.
    pub(crate) fn runs_on(&self, wanted: &Platform) -> bool {
        let os = if self.os.is_empty() { &wanted.os } else { &self.os };
        let (architecture, variant) = if self.architecture.is_empty() {
            (wanted.architecture.as_str(), wanted.variant.as_deref())
        } else {
            (self.architecture.as_str(), self.variant.as_deref())
        };
        wanted.rank(os, architecture, variant).is_some()
    }

    pub(crate) fn platform_text(&self) -> String {
        platform::text(&self.os, &self.architecture, self.variant.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(byte: u8) -> String {
        Digest::from_sha256([byte; 32]).to_string()
    }

    fn image(media_type: &str, layer_type: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{media_type}",
            "config":{{"mediaType":"{OCI_CONFIG}","digest":"{}","size":2}},
            "layers":[{{"mediaType":"{layer_type}","digest":"{}","size":3}}]}}"#,
            digest(1),
            digest(2)
        )
    }

    #[test]
    fn kinds_must_agree() {
        let good = image(OCI_MANIFEST, OCI_LAYER);
        assert!(matches!(parse(good.as_bytes(), None, "x", 9), Ok(Document::Image(_))));
        assert!(matches!(
            parse(good.as_bytes(), Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"), "x", 9),
            Ok(Document::Image(_))
        ));
        for (body, transport) in [
            (good.clone(), Some(OCI_INDEX)),
            (image(OCI_INDEX, OCI_LAYER), None),
            (image("application/vnd.example", OCI_LAYER), None),
            (image(OCI_MANIFEST, "application/vnd.example"), None),
            (r#"{"schemaVersion":1}"#.to_owned(), None),
            (good.replace(OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json"), None),
        ] {
            let error = parse(body.as_bytes(), transport, "x", 9).unwrap_err();
            assert!(matches!(error, Error::UnsupportedMediaType { .. }), "{body}: {error}");
        }
        let both = good.replacen('{', r#"{"manifests":[],"#, 1);
        assert!(matches!(parse(both.as_bytes(), None, "x", 9), Err(Error::InvalidManifest { .. })));
        assert!(matches!(parse(b"{}", None, "x", 9), Err(Error::InvalidManifest { .. })));
        assert!(matches!(parse(b"[", None, "x", 9), Err(Error::Malformed { .. })));
        assert!(matches!(parse(good.as_bytes(), None, "x", 0), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn foreign_layers_are_refused() {
        for kind in [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ] {
            let error = parse(image(OCI_MANIFEST, kind).as_bytes(), None, "x", 9).unwrap_err();
            assert!(matches!(error, Error::ForeignLayer { .. }), "{error}");
        }
    }

    #[test]
    fn nulls_are_absent() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["sh"],
            "Volumes":{"/data":{}},"Labels":null},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let configuration = parse_configuration(text.as_bytes(), "x", 0).unwrap();
        assert_eq!(configuration.run.cmd, ["sh"]);
        assert_eq!(configuration.run.volumes, ["/data"]);
        assert!(configuration.runs_on(&Platform::linux("amd64")));
        assert!(!configuration.runs_on(&Platform::linux("arm64")));
        assert!(parse_configuration(text.as_bytes(), "x", 1).is_err());
    }

    #[test]
    fn error_texts_stay_short_whatever_was_sent() {
        let long = "x".repeat(100_000);
        let digest = format!("sha256:{}", "0".repeat(64));
        let config = format!(r#"{{"mediaType":"{OCI_CONFIG}","digest":"{digest}","size":1}}"#);
        let texts = [
            format!(r#"{{"schemaVersion":1,"mediaType":"{long}"}}"#),
            format!(r#"{{"mediaType":"{long}","config":{config}}}"#),
            format!(r#"{{"config":{{"mediaType":"{long}","digest":"{digest}","size":1}}}}"#),
            format!(
                r#"{{"config":{config},"layers":[{{"mediaType":"{long}","digest":"{digest}","size":1}}]}}"#
            ),
            format!(r#"{{"config":"{long}"}}"#),
            format!(r#"{{"config":{{"digest":"{long}","size":1}}}}"#),
        ];
        let chain = |error: &Error| {
            let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        };
        for text in &texts {
            let error = parse(text.as_bytes(), None, "x", 9).unwrap_err();
            assert!(chain(&error).len() < 400, "{}", chain(&error));
        }
        let error = parse(texts[4].as_bytes(), None, "x", 9).unwrap_err();
        assert!(chain(&error).ends_with("... at line 1 column 100012"), "{}", chain(&error));
        let index = format!(
            r#"{{"manifests":[{{"digest":"{long}","size":1,"platform":{{"os":"{long}","architecture":"a"}}}}]}}"#
        );
        let Document::Index(entries) = parse(index.as_bytes(), None, "x", 9).unwrap() else {
            panic!("an index")
        };
        assert!(chain(&entries[0].blob("x").unwrap_err()).len() < 400);
        assert!(offered(&entries)[0].len() < 400);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, None, "x", 9);
            let _ = parse_configuration(&bytes, "x", 0);
        }
    }
}
