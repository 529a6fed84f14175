//! Fuzz targets: what strangers send, given to the code that reads it first.
//!
//! A target is a function over bytes that panics when something that must hold
//! does not. `cargo xtask fuzz` gives it inputs that LLVM's fuzzer finds by
//! coverage; the tests of this crate run it over its seeds and over what a
//! small [`mutate()`] makes of them, in every run of CI. What the fuzzer finds
//! becomes a test beside the code that was wrong.

mod erofs;
mod layer;
mod mutate;
mod seeds;
mod spdy;
mod tar;

pub use crate::mutate::{Random, mutate};

/// One fuzz target.
pub struct Target {
    /// How it is called on the command line.
    pub name: &'static str,
    /// What it reads, and what it checks.
    pub about: &'static str,
    /// Runs it once. Panics when it found something.
    pub run: fn(&[u8]),
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What inputs are made of, for both mutators.
    pub words: &'static [&'static str],
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "tar",
        about: "a layer's stream, its header checksums made right; its image is read back",
        run: tar::run,
        seeds: seeds::tar,
        words: seeds::TAR_WORDS,
    },
    Target {
        name: "erofs",
        about: "entries of every kind in any order; their image is read back",
        run: layer::run,
        seeds: seeds::layer,
        words: &[],
    },
    Target {
        name: "manifest",
        about: "manifests and indexes, with a media type in the first line",
        run: kina_image::fuzzing::manifest,
        seeds: seeds::manifest,
        words: seeds::MANIFEST_WORDS,
    },
    Target {
        name: "configuration",
        about: "image configurations",
        run: kina_image::fuzzing::configuration,
        seeds: seeds::configuration,
        words: seeds::CONFIGURATION_WORDS,
    },
    Target {
        name: "archive",
        about: "the index.json and the manifest.json of archives to import",
        run: kina_image::fuzzing::archive_index,
        seeds: seeds::archive,
        words: seeds::MANIFEST_WORDS,
    },
    Target {
        name: "reference",
        about: "image references; what is shown reads as the same again",
        run: reference,
        seeds: seeds::reference,
        words: &["@sha256:", ":latest", "docker.io/", "localhost:5000/", "[::1]:5000/", "library/"],
    },
    Target {
        name: "challenge",
        about: "WWW-Authenticate headers; what is understood, written out, reads as the same again",
        run: kina_image::fuzzing::challenges,
        seeds: seeds::challenge,
        words: &["Bearer ", "Basic ", "realm=", "service=", "scope=", "\\\"", "\"", ",", "Negotiate "],
    },
    Target {
        name: "vsock",
        about: "a virtual machine's packets between clients that come and go; nothing is lost or left",
        run: kina_vsock::fuzz,
        seeds: seeds::vsock,
        words: &[],
    },
    Target {
        name: "vsock-rings",
        about: "a virtual machine's rings: descriptors, indices and headers of packets as it likes",
        run: kina_vsock::fuzz_rings,
        seeds: seeds::vsock_rings,
        words: &[],
    },
    Target {
        name: "hosts",
        about: "hosts.toml files; URLs and paths that come out are whole",
        run: kina_image::fuzzing::hosts_file,
        seeds: seeds::hosts,
        words: &[
            "server = ",
            "[host.",
            "https://",
            "capabilities = ",
            "\"pull\"",
            "ca = ",
            "client = ",
            "header",
            "dial_timeout = ",
            "override_path = true",
            "skip_verify = ",
            "[[",
            "/v2/",
        ],
    },
    Target {
        name: "spdy",
        about: "SPDY as bytes, after the length of its pieces; frames that come out encode to the same",
        run: spdy::frames,
        seeds: spdy::frame_seeds,
        words: &[],
    },
    Target {
        name: "spdy-connection",
        about: "SPDY frames of every kind in any order to a connection; nothing is left of it",
        run: spdy::connection,
        seeds: spdy::connection_seeds,
        words: &[],
    },
    Target {
        name: "streaming-url",
        about: "paths with tokens and queries with ports of streaming URLs",
        run: kina_streaming::fuzzing::url,
        seeds: seeds::streaming_url,
        words: &["/exec/", "/attach/", "/portforward/", "?", "port=", "&", ",", "%2C", "65535", seeds::TOKEN],
    },
    Target {
        name: "request",
        about: "CRI requests as bytes; they become specifications that their records give back, or few words",
        run: kina::fuzzing::request,
        seeds: kina::fuzzing::requests,
        words: kina::fuzzing::WORDS,
    },
    Target {
        name: "authority",
        about: "HTTP/2 frames whose :authority may be a path; they keep their length, and are mended at once",
        run: kina::fuzzing::authority,
        seeds: kina::fuzzing::authorities,
        words: &[":authority", "%2F", "/tmp/", "PRI * HTTP/2.0"],
    },
    Target {
        name: "websocket",
        about: "messages of WebSocket channels, and sizes of terminals; what is understood reads as the same",
        run: kina_streaming::fuzzing::message,
        seeds: seeds::websocket,
        words: &["{\"Width\":", "\"Height\":", "}", "80", "65536", "-1", "null", "Zm9v", "===="],
    },
];

/// The target of a name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

fn reference(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(reference) = text.parse::<kina_image::Reference>() else { return };
    let shown = reference.to_string();
    let again: Result<kina_image::Reference, _> = shown.parse();
    assert!(again.is_ok_and(|again| again == reference), "{text:?} is shown as {shown:?}");
    assert!(reference.tag().is_some() != reference.digest().is_some(), "{shown}");
    // These become part of a URL's path.
    for part in [reference.repository(), reference.tag().unwrap_or_default()] {
        let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
        assert!(part.bytes().all(harmless), "{shown}");
        assert!(part.split('/').all(|component| component != ".." && component != "."), "{shown}");
    }
}
