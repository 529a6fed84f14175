//! Import and export.

use std::io::Cursor;

use kina_image::{Error, Images};
use serde_json::json;

use crate::fixtures::{
    Packing, TestImage, TestLayer, blobs_in, digest, gzip, layers_in, no_temporary_files, small_image, tar_of,
};
use crate::registry::{Registry, config};

async fn empty_store() -> (tempfile::TempDir, Images) {
    let root = tempfile::tempdir().unwrap();
    let store = Images::open(config(root.path())).await.unwrap();
    (root, store)
}

#[tokio::test]
async fn what_is_exported_can_be_imported() {
    let registry = Registry::start().await;
    let layers = vec![
        TestLayer::new("a", b"a", Packing::Gzip),
        TestLayer::noise("noise", 300_000),
        TestLayer::new("b", b"b", Packing::Zstd),
        TestLayer::new("a", b"a", Packing::Gzip),
    ];
    registry.serve_image("app", "v1", &TestImage::new(layers));
    let (_root, store) = {
        let root = tempfile::tempdir().unwrap();
        let store = registry.store(root.path()).await;
        (root, store)
    };
    let image = store.pull(&registry.reference("app:v1"), None, None).await.unwrap();
    let mut archive = Vec::new();
    let written = store.export(&image.repo_tags[0], &mut archive).await.unwrap();
    assert_eq!(written, archive.len() as u64);
    // Other tools can read it.
    let names: Vec<_> = tar::Archive::new(&archive[..])
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names[..3], ["oci-layout", "index.json", "manifest.json"]);
    assert_eq!(names.len(), 3 + 2 + 3);

    for archive in [archive.clone(), gzip(&archive), zstd::encode_all(&archive[..], 1).unwrap()] {
        let (root, other) = empty_store().await;
        let imported = other.import(Cursor::new(archive.clone()), None).await.unwrap();
        assert_eq!(imported.len(), 1);
        assert_eq!(imported[0].id, image.id);
        assert_eq!(imported[0].repo_tags, image.repo_tags);
        assert_eq!(imported[0].repo_digests, image.repo_digests);
        assert_eq!(imported[0].manifest_digest, image.manifest_digest);
        assert!(imported[0].layers.iter().all(|layer| layer.image_path.exists()));
        let mut again = Vec::new();
        other.export(image.id.as_str(), &mut again).await.unwrap();
        assert_eq!(again.len() as u64, written);
        // Nothing is left beside the image.
        let before = (blobs_in(root.path()), layers_in(root.path()));
        other.gc().await.unwrap();
        assert_eq!((blobs_in(root.path()), layers_in(root.path())), before);
        assert!(no_temporary_files(root.path()));
        // Twice is once.
        other.import(Cursor::new(archive), None).await.unwrap();
        assert_eq!(other.list(), imported);
    }
    let (_root, other) = empty_store().await;
    let name = "example.org/renamed:v9".parse().unwrap();
    let imported = other.import(Cursor::new(archive), Some(&name)).await.unwrap();
    assert_eq!(imported[0].repo_tags, ["example.org/renamed:v9"]);
    assert!(imported[0].repo_digests.is_empty());
    let error = other.export("missing", &mut Vec::new()).await.unwrap_err();
    assert!(matches!(error, Error::UnknownImage { .. }));
}

/// As `docker save` wrote before it wrote OCI layouts.
fn saved(images: &[(&TestImage, &[&str])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut entries = Vec::new();
    let add = |builder: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    for (number, (image, tags)) in images.iter().enumerate() {
        let config = format!("{}.json", image.id().hex());
        add(&mut builder, &config, &image.blobs[0]);
        let mut names = Vec::new();
        for (position, layer) in image.layers.iter().enumerate() {
            let name = format!("{number}-{position}/layer.tar");
            let same = image.layers[..position].iter().position(|other| other.archive == layer.archive);
            if let Some(same) = same {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, &name, format!("../{number}-{same}/layer.tar")).unwrap();
            } else {
                add(&mut builder, &name, &layer.archive);
            }
            names.push(name);
        }
        entries.push(json!({"Config": config, "RepoTags": tags, "Layers": names}));
    }
    add(&mut builder, "repositories", b"{}");
    add(&mut builder, "manifest.json", &serde_json::to_vec(&entries).unwrap());
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn docker_saves_are_imported() {
    let same = TestLayer::new("same", b"same", Packing::Plain);
    let one = TestImage::new(vec![same.clone(), TestLayer::new("b", b"b", Packing::Plain), same]);
    let two = small_image("two");
    let archive = saved(&[(&one, &["busybox:1", "example.org/box:1"]), (&two, &[])]);
    let (root, store) = empty_store().await;
    let images = store.import(Cursor::new(archive.clone()), None).await.unwrap();
    assert_eq!(images.len(), 2);
    assert_eq!(images[0].id, one.id());
    assert_eq!(images[0].repo_tags, ["docker.io/library/busybox:1", "example.org/box:1"]);
    assert_eq!(images[0].layers.len(), 3);
    assert_eq!(images[0].layers[0], images[0].layers[2]);
    assert_eq!(images[1].id, two.id());
    assert!(images[1].repo_tags.is_empty());
    assert!(store.resolve("busybox:1").is_some());
    // Nameless images outlive a restart.
    drop(store);
    let store = Images::open(config(root.path())).await.unwrap();
    let mut expected = images;
    expected.sort_by(|one, other| one.id.cmp(&other.id));
    assert_eq!(store.list(), expected);
    let name = "a".parse().unwrap();
    let error = store.import(Cursor::new(archive), Some(&name)).await.unwrap_err();
    assert!(matches!(error, Error::AmbiguousName { images: 2 }));
}

#[tokio::test]
async fn broken_archives_are_refused() {
    let image = small_image("x");
    let whole = saved(&[(&image, &["a:1"])]);
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": image.manifest_type, "digest": image.manifest_digest(), "size": image.manifest.len(),
    }]});
    let index = serde_json::to_vec(&index).unwrap();
    let blob_name = |blob: &[u8]| format!("blobs/sha256/{}", digest(blob).hex());
    let (manifest_name, config_name) = (blob_name(&image.manifest), blob_name(&image.blobs[0]));
    let layer_name = blob_name(&image.blobs[1]);
    let special = |kind: tar::EntryType, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_path("special").unwrap();
        header.set_cksum();
        let mut archive = header.as_bytes().to_vec();
        archive.extend(vec![b'x'; size]);
        archive.extend(&whole);
        archive
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("endless name", special(tar::EntryType::GNULongName, 4 << 20)),
        ("long name", special(tar::EntryType::GNULongName, 8 << 10)),
        ("endless attributes", special(tar::EntryType::XHeader, 4 << 20)),
        ("content in a directory", special(tar::EntryType::Directory, 512)),
        ("empty", Vec::new()),
        ("noise", vec![7; 5000]),
        ("no index", tar_of(&[("hello", b"x")])),
        ("cut", whole[..1000].to_vec()),
        ("cut gzip", gzip(&whole)[..300].to_vec()),
        ("no manifest", tar_of(&[("index.json", &index)])),
        ("wrong digest", tar_of(&[("index.json", &index), (&manifest_name, b"{}")])),
        ("bad blob name", tar_of(&[("index.json", &index), ("blobs/sha256/..x", b"{}")])),
        (
            "no layer",
            tar_of(&[
                ("index.json", &index),
                (&manifest_name, &image.manifest),
                (&config_name, &image.blobs[0]),
            ]),
        ),
        ("empty index", tar_of(&[("index.json", br#"{"manifests":[]}"#)])),
        ("outside", tar_of(&[("manifest.json", br#"[{"Config":"../../../etc/passwd","Layers":[]}]"#)])),
    ];
    for (what, archive) in cases {
        let (root, store) = empty_store().await;
        let error = store.import(Cursor::new(archive), None).await.unwrap_err();
        let expected = matches!(
            error,
            Error::InvalidArchive { .. } | Error::DigestMismatch { .. } | Error::NotFound { .. }
        );
        assert!(expected, "{what}: {error}");
        assert!(store.list().is_empty());
        assert!(no_temporary_files(root.path()), "{what}");
        store.gc().await.unwrap();
        assert!(blobs_in(root.path()).is_empty(), "{what}");
    }
    // The control: the same index with everything is fine, and what lies about
    // in the archive does no harm.
    let (root, store) = empty_store().await;
    let archive = tar_of(&[
        ("index.json", &index),
        (&manifest_name, &image.manifest),
        (&config_name, &image.blobs[0]),
        (&layer_name, &image.blobs[1]),
        ("other/file", b"x"),
    ]);
    let images = store.import(Cursor::new(archive), None).await.unwrap();
    assert_eq!(images[0].id, image.id());
    store.gc().await.unwrap();
    assert_eq!(blobs_in(root.path()).len(), 3);
}

#[tokio::test]
async fn archives_have_limits() {
    let archive = saved(&[(&small_image("x"), &["a:1"])]);
    for edit in [
        (|limits| limits.archive_bytes = 1024) as fn(&mut kina_image::Limits),
        |limits| limits.archive_entries = 2,
        |limits| limits.manifest_bytes = 10,
    ] {
        let root = tempfile::tempdir().unwrap();
        let mut config = config(root.path());
        edit(&mut config.limits);
        let store = Images::open(config).await.unwrap();
        let error = store.import(Cursor::new(archive.clone()), None).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }
}
