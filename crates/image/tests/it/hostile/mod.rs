//! Everything that a registry, a layer or an archive can throw at the store:
//! tables of what is sent and the error that it ends in, word by word.
//!
//! After each case the list is as before, no file is left, and a good pull of
//! the same reference works. `docs/hostile-images.md` is made of the tables.

mod archives;
mod documents;
mod layers;
mod memory;
mod registries;
mod tar;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use kina_image::{Config, Error, Images};

use crate::fixtures::{Packing, TestImage, TestLayer, digest, no_temporary_files, small_image, until};
use crate::registry::Registry;

/// Instead of an error: it is taken, and why that is right stands in the name.
pub(crate) const ACCEPTED: &str = "accepted";

/// One row: what is sent, and the whole chain of the error that comes of it.
pub(crate) struct Case {
    name: &'static str,
    error: &'static str,
    sent: Sent,
    /// Waits are cut short, as the case would use them up.
    hasty: bool,
    /// A complete layer stays until the next collection, as documented.
    keeps: bool,
}

pub(crate) enum Sent {
    /// The only layer of an image, as transferred.
    Layer(fn() -> Vec<u8>),
    /// An image made from the good one.
    Image(fn(TestImage) -> TestImage),
    /// The good image, by a registry that does this.
    Registry(fn(&Registry, &TestImage)),
    /// An archive to import, made with the good image.
    Archive(fn(&TestImage) -> Vec<u8>),
}

impl Case {
    const fn new(name: &'static str, error: &'static str, sent: Sent) -> Self {
        Self { name, error, sent, hasty: false, keeps: false }
    }

    const fn layer(name: &'static str, error: &'static str, make: fn() -> Vec<u8>) -> Self {
        Self::new(name, error, Sent::Layer(make))
    }

    const fn image(name: &'static str, error: &'static str, make: fn(TestImage) -> TestImage) -> Self {
        Self::new(name, error, Sent::Image(make))
    }

    const fn registry(name: &'static str, error: &'static str, change: fn(&Registry, &TestImage)) -> Self {
        Self::new(name, error, Sent::Registry(change))
    }

    /// What was read of an archive stays until the next collection.
    const fn archive(name: &'static str, error: &'static str, make: fn(&TestImage) -> Vec<u8>) -> Self {
        Self { keeps: true, ..Self::new(name, error, Sent::Archive(make)) }
    }

    const fn hasty(self) -> Self {
        Self { hasty: true, ..self }
    }

    const fn keeps(self) -> Self {
        Self { keeps: true, ..self }
    }
}

/// The image that every case changes: its layer is not compressed, so that its
/// sizes do not depend on the compressor.
fn good_image() -> TestImage {
    TestImage::new(vec![TestLayer::new("file", b"good", Packing::Plain)])
}

/// Bounds that small inputs exceed.
pub(crate) fn bounded(mut config: Config, hasty: bool) -> Config {
    config.limits.layers = 4;
    config.limits.config_bytes = 16 << 10;
    config.limits.layer_bytes = 4 << 20;
    config.limits.unpacked_layer_bytes = 1 << 20;
    config.limits.layer_entries = 64;
    config.limits.archive_bytes = 4 << 20;
    config.limits.archive_entries = 40;
    config.limits.redirects = 3;
    if hasty {
        config.attempts = 1;
        config.timeouts.request = Duration::from_secs(1);
        config.timeouts.stall = Duration::from_secs(1);
    }
    config
}

async fn run(cases: &[Case]) {
    let registry = Registry::start().await;
    let root = tempfile::tempdir().unwrap();
    let base = small_image("base");
    registry.serve_image("base", "v1", &base);
    let mut store = open(&registry, root.path(), false).await;
    store.pull(&registry.reference("base:v1"), None, None).await.unwrap();
    let mut problems = String::new();
    for case in cases {
        if case.hasty {
            drop(store);
            store = open(&registry, root.path(), true).await;
        }
        let before = (store.list(), files(root.path()));
        let found = act(case, &registry, &store, root.path(), &before.1).await;
        if case.hasty {
            drop(store);
            store = open(&registry, root.path(), false).await;
        }
        let after = recover(&registry, &store).await;
        let mut complain = |text: String| writeln!(problems, "{}: {text}", case.name).unwrap();
        for problem in found.into_iter().chain(after) {
            complain(problem);
        }
        if (store.list(), files(root.path())) != before {
            complain("the store is not as it was before".to_owned());
        }
    }
    assert!(problems.is_empty(), "\n{problems}");
}

async fn open(registry: &Registry, root: &Path, hasty: bool) -> Images {
    loop {
        match Images::open(bounded(registry.config(root), hasty)).await {
            Ok(store) => return store,
            // Work that was given up may hold the store for a moment.
            Err(Error::StoreInUse { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn act(
    case: &Case,
    registry: &Registry,
    store: &Images,
    root: &Path,
    before: &BTreeMap<String, u64>,
) -> Vec<String> {
    let mut problems = Vec::new();
    let good = good_image();
    let sent = match &case.sent {
        Sent::Layer(make) => {
            let packed = make();
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            TestImage::new(vec![TestLayer { archive: tar::unpacked(&packed), packed, media_type }])
        }
        Sent::Image(make) => make(good.clone()),
        Sent::Registry(_) | Sent::Archive(_) => good.clone(),
    };
    registry.reset();
    registry.serve_image("app", "v1", &sent);
    if let Sent::Registry(change) = &case.sent {
        change(registry, &good);
    }
    let list = store.list();
    let outcome = match &case.sent {
        Sent::Archive(make) => {
            let archive = std::io::Cursor::new(make(&good));
            tokio::time::timeout(Duration::from_secs(30), store.import(archive, None))
                .await
                .map(|done| done.map(drop))
        }
        _ => {
            let reference = registry.reference("app:v1");
            let pull = store.pull(&reference, None, None);
            tokio::time::timeout(Duration::from_secs(30), pull).await.map(|done| done.map(drop))
        }
    };
    let refused = !matches!(outcome, Ok(Ok(())));
    let text = match outcome {
        Ok(Ok(())) => ACCEPTED.to_owned(),
        Ok(Err(error)) => shown(&error, registry, &sent),
        Err(_) => "it does not end".to_owned(),
    };
    if text != case.error {
        problems.push(format!("ends in\n      {text}\n  not {}", case.error));
    }
    until("temporary files are gone", || no_temporary_files(root)).await;
    if refused {
        if store.list() != list {
            problems.push("the list changed".to_owned());
        }
        if !case.keeps && files(root) != *before {
            problems.push("files are left".to_owned());
        }
    } else {
        for image in store.list().iter().filter(|image| !list.contains(image)) {
            store.remove(image.id.as_str()).await.unwrap();
        }
    }
    store.gc().await.unwrap();
    if files(root) != *before {
        problems.push("files are left after a collection".to_owned());
    }
    problems
}

/// Pulls the good image from where the bad one was, and removes it again.
async fn recover(registry: &Registry, store: &Images) -> Option<String> {
    let good = good_image();
    registry.reset();
    registry.serve_image("app", "v1", &good);
    let problem = match store.pull(&registry.reference("app:v1"), None, None).await {
        Ok(image) if image.id == good.id() => None,
        Ok(image) => Some(format!("a good pull gives {}", image.id)),
        Err(error) => Some(format!("a good pull fails: {error}")),
    };
    store.remove(good.id().as_str()).await.unwrap();
    problem
}

/// The error with its causes; digests and addresses by what they are.
fn shown(error: &Error, registry: &Registry, sent: &TestImage) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        write!(text, ": {cause}").unwrap();
        source = cause.source();
    }
    if let Error::SizeMismatch { actual, .. } = error
        && *actual > 2200
    {
        // Where reading stopped is the network's choice.
        text = text.replace(&format!("got {actual}"), "got more");
    }
    let mut names = vec![(sent.manifest_digest(), "(manifest)"), (digest(&sent.blobs[0]), "(config)")];
    names.extend(sent.blobs[1..].iter().map(|blob| (digest(blob), "(layer)")));
    for (digest, name) in names {
        text = text.replace(digest.as_str(), name);
    }
    let mut plain = String::new();
    for (number, part) in text.replace(&registry.address, "REGISTRY").split("sha256:").enumerate() {
        let hex = part.chars().take_while(char::is_ascii_hexdigit).count();
        match (number, hex) {
            (0, _) => plain.push_str(part),
            (_, 64) => write!(plain, "(other){}", &part[hex..]).unwrap(),
            _ => write!(plain, "sha256:{part}").unwrap(),
        }
    }
    // Which depends on the order of keys.
    let columns = plain.split("column ").enumerate().map(|(number, part)| match number {
        0 => part.to_owned(),
        _ => format!("column N{}", part.trim_start_matches(|digit: char| digit.is_ascii_digit())),
    });
    without_repeats(&columns.collect::<String>())
}

/// Long runs of one or two characters in short.
fn without_repeats(text: &str) -> String {
    let mut short = String::new();
    let mut rest = text;
    'outer: while let Some(first) = rest.chars().next() {
        for length in [1, 2] {
            let Some(unit) = rest.get(..length) else { continue };
            let times = rest.as_bytes().chunks(length).take_while(|chunk| *chunk == unit.as_bytes()).count();
            if times >= 20 {
                write!(short, "{unit}{unit}[...]").unwrap();
                rest = &rest[times * length..];
                continue 'outer;
            }
        }
        short.push(first);
        rest = &rest[first.len_utf8()..];
    }
    short
}

/// Every file of the store by its path, with its size.
fn files(root: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            } else {
                found.insert(entry.path().display().to_string(), entry.metadata().unwrap().len());
            }
        }
    }
    found
}

#[tokio::test]
async fn layers_that_are_refused() {
    run(layers::CASES).await;
}

#[tokio::test]
async fn documents_that_are_refused() {
    run(documents::CASES).await;
}

#[tokio::test]
async fn registries_that_misbehave() {
    run(registries::CASES).await;
}

#[tokio::test]
async fn archives_that_are_refused() {
    run(archives::CASES).await;
}

const SECTIONS: [(&str, &[Case]); 4] = [
    ("Layers", layers::CASES),
    ("Manifests, indexes and configurations", documents::CASES),
    ("Registries", registries::CASES),
    ("Archives to import", archives::CASES),
];

fn page() -> String {
    let count: usize = SECTIONS.iter().map(|(_, cases)| cases.len()).sum();
    let mut page = format!(
        "# Hostile images\n\n\
         What registries, layers and archives may throw at kina, and what comes of it: {count} cases, each a\n\
         test (`crates/image/tests/it/hostile`). After every one the list of images is as before, no file is\n\
         left (a layer that had arrived whole stays until the next collection), and a good pull of the same\n\
         reference works. This page is generated from the tests' tables.\n\n\
         The words in parentheses stand for digests: `(layer)`, `(config)` and `(manifest)` for those of the\n\
         image that is sent, `(other)` for any other. `REGISTRY` is the registry's address.\n"
    );
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    for (title, cases) in SECTIONS {
        write!(page, "\n## {title}\n\n| what is sent | what comes of it |\n|---|---|\n").unwrap();
        for case in cases {
            let error = match case.error {
                ACCEPTED => ACCEPTED.to_owned(),
                error if error.contains('`') => format!("`` {} ``", cell(error)),
                error => format!("`{}`", cell(error)),
            };
            writeln!(page, "| {} | {error} |", cell(case.name)).unwrap();
        }
    }
    page
}

#[test]
fn the_documentation_says_the_same() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/hostile-images.md");
    if std::env::var_os("KINA_UPDATE_DOCS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page(), "docs/hostile-images.md is out of date; run this test with KINA_UPDATE_DOCS=1");
}

#[test]
fn every_case_has_a_name_of_its_own() {
    let mut names: Vec<_> =
        SECTIONS.iter().flat_map(|(_, cases)| cases.iter().map(|case| case.name)).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(count >= 60);
}
