//! Damage is found, named and mended.

use std::fs;
use std::path::{Path, PathBuf};

use kina_image::{Error, Image, Images, Problem, Repair, Report};

use crate::fixtures::{Packing, TestImage, TestLayer, blobs_in, layers_in, no_temporary_files};
use crate::registry::{Registry, Reply, blob_path};

/// Changes one byte in the middle.
fn corrupt(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn shorten(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

async fn verify(store: &Images, repair: bool) -> Report {
    store.verify(&[], repair, None).await.unwrap()
}

/// The files of an image: manifest, configuration, then blob and image of each layer.
fn files(root: &Path, image: &Image) -> Vec<PathBuf> {
    let blob = |hex: &str| root.join("oci/blobs/sha256").join(hex);
    let mut files = vec![blob(image.manifest_digest.hex()), blob(image.id.hex())];
    for layer in &image.layers {
        files.extend([blob(layer.digest.hex()), layer.image_path.clone()]);
    }
    files
}

fn two_layers() -> TestImage {
    TestImage::new(vec![TestLayer::noise("noise", 300_000), TestLayer::new("text", b"text", Packing::Zstd)])
}

#[tokio::test]
async fn every_kind_of_damage_to_every_file_is_found_and_mended() {
    let registry = Registry::start().await;
    registry.serve_image("app", "v1", &two_layers());
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let image = store.pull(&registry.reference("app:v1"), None, None).await.unwrap();
    let whole = verify(&store, false).await;
    assert_eq!((whole.images, whole.files, whole.findings.len()), (1, 6, 0), "{whole:?}");
    let files = files(root.path(), &image);
    let lengths = files.iter().map(|file| fs::metadata(file).unwrap().len());
    assert_eq!(whole.bytes, lengths.sum::<u64>());
    let contents: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    for (number, file) in files.iter().enumerate() {
        for damage in [corrupt, shorten, remove] {
            damage(file);
            for (repair, mended) in [(false, None), (true, Some(Repair::Done))] {
                let report = verify(&store, repair).await;
                let [finding] = &report.findings[..] else { panic!("{report:?}") };
                assert_eq!((&finding.path, &finding.repair), (file, &mended), "{finding:?}");
                assert_eq!(finding.images, std::slice::from_ref(&image.id));
                assert!(!finding.in_use);
                assert!(repair || file.exists() != (finding.problem == Problem::Missing), "{finding:?}");
            }
            assert_eq!(fs::read(file).unwrap(), contents[number]);
            assert_eq!(verify(&store, false).await.findings, []);
            assert!(store.list()[0].complete && no_temporary_files(root.path()));
            assert_eq!(store.list()[0].repo_tags, image.repo_tags);
            assert_eq!(store.list()[0].repo_digests, image.repo_digests);
        }
    }
    // Layer images are made again from their blobs; only damaged blobs are fetched.
    let test = two_layers();
    assert_eq!(registry.count(&blob_path("app", &test.blobs[1])), 4);
    // All at once, and what was recorded of them holds for the next process.
    for file in &files {
        corrupt(file);
    }
    let report = verify(&store, true).await;
    assert_eq!(report.findings.len(), 6);
    assert!(report.findings.iter().all(|finding| finding.repair == Some(Repair::Done)), "{report:?}");
    drop(store);
    let store = registry.store(root.path()).await;
    assert_eq!(verify(&store, false).await.findings, []);
    assert!(store.list()[0].complete);
}

#[tokio::test]
async fn what_cannot_be_mended_says_why_and_comes_with_the_next_pull() {
    let registry = Registry::start().await;
    let test = two_layers();
    registry.serve_image("app", "v1", &test);
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let reference = registry.reference("app:v1");
    let image = store.pull(&reference, None, None).await.unwrap();
    let lease = store.lease(&image.id).unwrap();
    let files = files(root.path(), &image);
    corrupt(&files[2]);
    corrupt(&files[3]);
    let blob = blob_path("app", &test.blobs[1]);
    registry.route(&blob, Reply::status(404));
    let report = verify(&store, true).await;
    for finding in &report.findings {
        let Some(Repair::Failed { reason }) = &finding.repair else { panic!("{finding:?}") };
        assert!(reason.contains("not found"), "{reason}");
        assert!(finding.in_use);
    }
    assert_eq!(report.findings.len(), 2);
    // Nothing mounts what is known to be corrupt.
    let error = store.check(&image.id).await.unwrap_err();
    assert!(matches!(&error, Error::Incomplete { path, .. } if *path == files[3]), "{error}");
    assert!(!store.list()[0].complete);
    registry.route(&blob, Reply::ok(test.blobs[1].clone()));
    assert!(store.pull(&reference, None, None).await.unwrap().complete);
    store.check(&image.id).await.unwrap();
    assert_eq!(verify(&store, false).await.findings, []);
    store.close();
    drop(lease);
}

/// A pull does not say that an image is here when a file of it is not.
#[tokio::test]
async fn a_pull_brings_back_what_is_missing_or_cut_off() {
    let registry = Registry::start().await;
    registry.serve_image("app", "v1", &two_layers());
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let reference = registry.reference("app:v1");
    let image = store.pull(&reference, None, None).await.unwrap();
    for file in files(root.path(), &image) {
        for damage in [shorten, remove] {
            damage(&file);
            store.pull(&reference, None, None).await.unwrap();
            assert_eq!(verify(&store, false).await.findings, [], "{}", file.display());
        }
    }
}

#[tokio::test]
async fn a_selection_is_looked_at_and_orphans_are_no_damage() {
    let registry = Registry::start().await;
    let (one, two) = (two_layers(), crate::fixtures::small_image("two"));
    registry.serve_image("one", "v1", &one);
    registry.serve_image("two", "v1", &two);
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let first = store.pull(&registry.reference("one:v1"), None, None).await.unwrap();
    let second = store.pull(&registry.reference("two:v1"), None, None).await.unwrap();
    corrupt(&first.layers[0].image_path);
    let orphan = root.path().join("oci/blobs/sha256").join("0".repeat(64));
    fs::write(&orphan, "orphan").unwrap();
    let report = store.verify(std::slice::from_ref(&second.id), false, None).await.unwrap();
    assert_eq!((report.images, report.files, report.findings.len()), (1, 4, 0));
    let report = verify(&store, false).await;
    assert_eq!((report.images, report.findings.len(), report.unreferenced), (2, 1, vec![orphan]));
    let unknown = kina_image::Digest::from_sha256([0; 32]);
    assert!(matches!(store.verify(&[unknown], false, None).await, Err(Error::UnknownImage { .. })));
    // What an image is made of may go while it is verified, but not from under it.
    store.remove(first.id.as_str()).await.unwrap();
    store.remove(second.id.as_str()).await.unwrap();
    store.gc().await.unwrap();
    assert!(blobs_in(root.path()).is_empty() && layers_in(root.path()).is_empty());
    assert_eq!(verify(&store, true).await, Report::default());
}
