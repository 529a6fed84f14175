//! Ways in for the fuzz targets of `crates/fuzz`, and no part of the interface:
//! each reads its input as a stranger's and panics if what must hold does not.

use crate::error::Error;
use crate::import;
use crate::manifest::{self, Document};
use crate::platform::Platform;
use crate::registry::{self, Challenge};

const LAYERS: usize = 8;

/// A manifest or index; the first line is the media type that came with it.
pub fn manifest(input: &[u8]) {
    let (media_type, bytes) = match input.iter().position(|byte| *byte == b'\n') {
        Some(end) => (std::str::from_utf8(&input[..end]).ok(), &input[end + 1..]),
        None => (None, input),
    };
    match manifest::parse(bytes, media_type, "the manifest", LAYERS) {
        Ok(Document::Image(image)) => {
            assert!(image.layers.len() <= LAYERS, "too many layers");
        }
        Ok(Document::Index(entries)) => {
            assert!(manifest::offered(&entries).len() <= 16, "an endless error text");
            let chosen = manifest::candidates(&entries, &Platform::linux("amd64"));
            assert!(chosen.len() <= entries.len(), "entries from nowhere");
            for entry in chosen {
                if let Ok(blob) = entry.blob("the index") {
                    assert!(blob.digest.hex().len() == 64, "a digest that names no file");
                }
            }
        }
        Err(error) => shown(&error),
    }
}

/// An image configuration.
pub fn configuration(input: &[u8]) {
    for layers in 0..3 {
        match manifest::parse_configuration(input, "the configuration", layers) {
            Ok(configuration) => {
                assert_eq!(configuration.diff_ids.len(), layers, "diff ids");
                configuration.runs_on(&Platform::linux("arm64"));
                configuration.platform_text();
            }
            Err(error) => shown(&error),
        }
    }
}

/// An archive's `index.json` or `manifest.json`.
pub fn archive_index(input: &[u8]) {
    if let Err(error) = import::fuzz_index(input) {
        shown(&error);
    }
}

/// The value of a `WWW-Authenticate` header.
pub fn challenges(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let quoted = |value: &str| format!("\"{}\"", value.replace('\\', r"\\").replace('"', r#"\""#));
    let found = registry::challenges([text]);
    for challenge in &found {
        let written = match challenge {
            Challenge::Basic => "Basic".to_owned(),
            Challenge::Bearer { realm, service, scope } => {
                let mut written = format!("Bearer realm={}", quoted(realm));
                for (name, value) in [("service", service), ("scope", scope)] {
                    if let Some(value) = value {
                        written.push_str(&format!(",{name}={}", quoted(value)));
                    }
                }
                written
            }
        };
        let again = registry::challenges([written.as_str()]);
        assert_eq!(again, std::slice::from_ref(challenge), "{written}");
    }
}

/// A `hosts.toml`.
pub fn hosts_file(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let directory = std::path::Path::new("/certs.d/registry");
    let file = match registry::parse_hosts_file(text, directory) {
        Ok(file) => file,
        Err(fault) => {
            let lines = text.lines().count() + 1;
            assert!(fault.line.is_none_or(|line| (1..=lines).contains(&line)), "a line from nowhere");
            return;
        }
    };
    for entry in file.hosts.iter().chain([&file.server]) {
        if let Some(base) = &entry.base {
            assert!(matches!(base.scheme(), "http" | "https") && base.has_host(), "{base}");
            assert!(base.path().ends_with('/') && base.query().is_none(), "{base}");
        }
        for path in &entry.tls.authorities {
            assert!(path.is_absolute(), "a path from nowhere");
        }
    }
}

/// An error's text must not be as long as what a stranger sent.
fn shown(error: &Error) {
    let mut cause: &dyn std::error::Error = error;
    loop {
        assert!(cause.to_string().len() < 4096, "an endless error text");
        match cause.source() {
            Some(source) => cause = source,
            None => break,
        }
    }
}
