//! What is pulled, and what is refused.

use std::time::Duration;

use kina_image::{Error, Images, LayerState};
use serde_json::json;

use crate::fixtures::{Packing, TestImage, TestLayer, descriptor, digest, no_temporary_files, small_image};
use crate::registry::{Manner, Registry, Reply, blob_path, config};

const EROFS_MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();

#[tokio::test]
async fn a_pull_by_tag_brings_everything() {
    let registry = Registry::start().await;
    let layers = vec![
        TestLayer::new("a", b"one", Packing::Gzip),
        TestLayer::new("b", b"two", Packing::Zstd),
        TestLayer::new("c", b"three", Packing::Plain),
        TestLayer::noise("d", 700_000),
    ];
    let test = TestImage::new(layers);
    registry.serve_image("lib/app", "v1", &test);
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let (sender, progress) = tokio::sync::watch::channel(Default::default());
    let image = store.pull(&registry.reference("lib/app:v1"), None, Some(sender)).await.unwrap();

    assert_eq!(image.id, test.id());
    assert_eq!(image.repo_tags, [format!("{}/lib/app:v1", registry.address)]);
    assert_eq!(image.repo_digests, [format!("{}/lib/app@{}", registry.address, test.manifest_digest())]);
    assert_eq!(image.size, test.size());
    assert_eq!(image.config.entrypoint, ["/bin/app"]);
    assert_eq!(image.config.cmd, ["--serve"]);
    assert_eq!(image.config.user, "1000:1000");
    assert_eq!(image.config.working_dir, "/srv");
    assert_eq!(image.config.volumes, ["/data"]);
    assert_eq!(image.config.exposed_ports, ["80/tcp"]);
    assert_eq!(image.config.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(image.architecture, "amd64");
    assert_eq!(image.layers.len(), 4);
    for (layer, made) in image.layers.iter().zip(&test.layers) {
        assert_eq!(layer.diff_id, digest(&made.archive));
        assert_eq!(layer.digest, digest(&made.packed));
        let bytes = std::fs::read(&layer.image_path).unwrap();
        assert_eq!(bytes[1024..1028], EROFS_MAGIC, "{}", made.media_type);
        let blob = root.path().join("oci/blobs/sha256").join(layer.digest.hex());
        assert_eq!(std::fs::read(blob).unwrap(), made.packed);
    }
    assert!(no_temporary_files(root.path()));
    assert_eq!(store.list(), [image]);
    let progress = progress.borrow();
    assert!(
        progress.layers.iter().all(|layer| layer.state == LayerState::Done && layer.fetched == layer.size)
    );
    assert_eq!(progress.layers.len(), 4);
}

#[tokio::test]
async fn a_digest_wins_over_a_tag() {
    let registry = Registry::start().await;
    let test = small_image("x");
    registry.serve_image("app", "v1", &test);
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let digest = test.manifest_digest();
    for rest in [format!("app@{digest}"), format!("app:other@{digest}")] {
        let reference = registry.reference(&rest);
        let image = store.pull(&reference, None, None).await.unwrap();
        assert_eq!(image.id, test.id());
        assert!(image.repo_tags.is_empty());
        assert_eq!(image.repo_digests, [format!("{}/app@{digest}", registry.address)]);
        assert!(store.resolve(&format!("{}/{rest}", registry.address)).is_some());
    }
    assert_eq!(registry.count("/v2/app/manifests/other"), 0);
}

#[tokio::test]
async fn dockers_types_are_understood() {
    let registry = Registry::start().await;
    let test = small_image("x").docker();
    registry.serve_image("app", "v1", &test);
    let root = tempfile::tempdir().unwrap();
    let reference = registry.reference("app:v1");
    let store = registry.store(root.path()).await;
    let image = store.pull(&reference, None, None).await.unwrap();
    assert_eq!(image.manifest_digest, test.manifest_digest());
    // It is read back with its own type.
    drop(store);
    let store = registry.store(root.path()).await;
    assert_eq!(store.list(), [image]);
}

fn index(entries: serde_json::Value) -> Vec<u8> {
    serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    }))
    .unwrap()
}

fn entry(image: &TestImage, platform: serde_json::Value) -> serde_json::Value {
    let mut entry = descriptor(&image.manifest_type, &image.manifest);
    entry["platform"] = platform;
    entry
}

#[tokio::test]
async fn an_index_gives_the_platforms_image() {
    let registry = Registry::start().await;
    let amd = small_image("amd");
    let arm = TestImage::for_architecture(vec![TestLayer::new("f", b"arm", Packing::Gzip)], "arm64");
    registry.serve_image("app", "amd", &amd);
    registry.serve_image("app", "arm", &arm);
    let inner = index(json!([
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha512:00", "size": 1,
         "platform": {"os": "linux", "architecture": "riscv64"}},
        entry(&amd, json!({"os": "unknown", "architecture": "unknown"})),
        entry(&arm, json!({"os": "linux", "architecture": "arm64", "variant": "v8"})),
        entry(&amd, json!({"os": "linux", "architecture": "amd64"})),
    ]));
    let outer = index(json!([descriptor("application/vnd.oci.image.index.v1+json", &inner)]));
    let index_type = "application/vnd.oci.image.index.v1+json";
    registry.route("/v2/app/manifests/inner", Reply::ok(inner.clone()).header("Content-Type", index_type));
    registry.route(&format!("/v2/app/manifests/{}", digest(&inner)), Reply::ok(inner.clone()));
    registry.route("/v2/app/manifests/outer", Reply::ok(outer.clone()));
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let image = store.pull(&registry.reference("app:inner"), None, None).await.unwrap();
    assert_eq!(image.id, amd.id());
    // The digest that people pin is the index's.
    assert_eq!(image.repo_digests, [format!("{}/app@{}", registry.address, digest(&inner))]);
    let image = store.pull(&registry.reference("app:outer"), None, None).await.unwrap();
    assert_eq!(image.id, amd.id());
    assert_eq!(image.repo_tags.len(), 2);
    assert!(store.resolve(&format!("{}/app@{}", registry.address, amd.manifest_digest())).is_some());
    drop(store);

    let arm_root = tempfile::tempdir().unwrap();
    let mut config = registry.config(arm_root.path());
    config.platform = kina_image::Platform::linux("aarch64");
    let store = Images::open(config).await.unwrap();
    assert_eq!(store.pull(&registry.reference("app:inner"), None, None).await.unwrap().id, arm.id());
    // A lone image of another platform is refused too.
    let error = store.pull(&registry.reference("app:amd"), None, None).await.unwrap_err();
    assert!(
        matches!(&error, Error::NoPlatform { available, .. } if *available == ["linux/amd64"]),
        "{error}"
    );
}

#[tokio::test]
async fn endless_indexes_end() {
    let registry = Registry::start().await;
    let mut current = index(json!([]));
    for _ in 0..6 {
        registry.route(&format!("/v2/app/manifests/{}", digest(&current)), Reply::ok(current.clone()));
        current = index(json!([descriptor("application/vnd.oci.image.index.v1+json", &current)]));
    }
    registry.route("/v2/app/manifests/deep", Reply::ok(current));
    let many: Vec<_> = (0..100_u32)
        .map(|number| {
            let manifest = small_image(&number.to_string()).with_manifest(|manifest| {
                manifest["config"]["mediaType"] = json!("application/vnd.example");
            });
            registry.serve_image("app", "unused", &manifest);
            descriptor("application/vnd.oci.image.manifest.v1+json", &manifest.manifest)
        })
        .collect();
    registry.route("/v2/app/manifests/wide", Reply::ok(index(json!(many))));
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    for tag in ["deep", "wide"] {
        let error = store.pull(&registry.reference(&format!("app:{tag}")), None, None).await.unwrap_err();
        assert!(matches!(error, Error::InvalidManifest { .. }), "{tag}: {error}");
    }
    assert!(registry.seen().len() < 30);
}

/// Pulls `app:v1`, expects a failure, and that nothing is left of it.
async fn refused(registry: &Registry) -> Error {
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let error = store.pull(&registry.reference("app:v1"), None, None).await.unwrap_err();
    assert!(store.list().is_empty());
    assert!(no_temporary_files(root.path()));
    store.gc().await.unwrap();
    assert!(crate::fixtures::blobs_in(root.path()).is_empty());
    assert!(crate::fixtures::layers_in(root.path()).is_empty());
    error
}

#[tokio::test]
async fn wrong_digests_are_refused() {
    let test = small_image("right");
    let mut wrong = test.layers[0].packed.clone();
    let last = wrong.len() - 1;
    wrong[last] ^= 1;
    let mut wrong_config = test.blobs[0].clone();
    wrong_config[20] ^= 1;
    let garbage = vec![7; test.blobs[1].len()];
    for (blob, body) in [(1, wrong), (1, garbage), (0, wrong_config)] {
        let registry = Registry::start().await;
        registry.serve_image("app", "v1", &test);
        registry.route(&blob_path("app", &test.blobs[blob]), Reply::ok(body));
        let error = refused(&registry).await;
        assert!(
            matches!(&error, Error::DigestMismatch { expected, .. } if *expected == digest(&test.blobs[blob])),
            "{error}"
        );
    }
    let registry = Registry::start().await;
    registry.serve_image("app", "v1", &test);
    let digest_of_other = small_image("other").manifest_digest();
    let manifest = Reply::ok(test.manifest.clone());
    registry.route(&format!("/v2/app/manifests/{digest_of_other}"), manifest.clone());
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let error =
        store.pull(&registry.reference(&format!("app@{digest_of_other}")), None, None).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    registry
        .route("/v2/app/manifests/v1", manifest.header("Docker-Content-Digest", digest_of_other.as_str()));
    let error = store.pull(&registry.reference("app:v1"), None, None).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn wrong_sizes_are_refused() {
    for (lie, manner) in
        [(1, Manner::Whole), (-1, Manner::Whole), (1, Manner::Chunked), (-1, Manner::Chunked)]
    {
        let registry = Registry::start().await;
        let test = small_image("x").with_manifest(|manifest| {
            let size = manifest["layers"][0]["size"].as_i64().unwrap();
            manifest["layers"][0]["size"] = json!(size + lie);
        });
        registry.serve_image("app", "v1", &test);
        registry.route(&blob_path("app", &test.blobs[1]), Reply::ok(test.blobs[1].clone()).manner(manner));
        let error = refused(&registry).await;
        assert!(matches!(error, Error::SizeMismatch { .. }), "{error}");
    }
}

#[tokio::test]
async fn wrong_diff_ids_are_refused() {
    let registry = Registry::start().await;
    let layer = TestLayer::new("f", b"x", Packing::Gzip);
    let mut config = TestImage::new(vec![layer.clone()]).config;
    config["rootfs"]["diff_ids"] = json!([digest(b"something else")]);
    let test = TestImage::with_config(vec![layer], config);
    registry.serve_image("app", "v1", &test);
    let error = refused(&registry).await;
    assert!(matches!(error, Error::DiffIdMismatch { .. }), "{error}");
}

#[tokio::test]
async fn layers_that_are_no_archives_are_refused() {
    for body in [b"no archive at all, but as long as a block of one is, or longer still. ".repeat(20), {
        let mut cut = crate::fixtures::gzip(&crate::fixtures::tar_of(&[("f", b"x")]));
        cut.truncate(cut.len() - 10);
        cut
    }] {
        let registry = Registry::start().await;
        let layer = TestLayer {
            archive: body.clone(),
            packed: body,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip",
        };
        let test = TestImage::new(vec![layer]);
        registry.serve_image("app", "v1", &test);
        let error = refused(&registry).await;
        assert!(
            matches!(&error, Error::LayerRefused { digest: layer, .. } if *layer == digest(&test.blobs[1])),
            "{error}"
        );
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let registry = Registry::start().await;
    let zeros = TestLayer::new("zeros", &vec![0; 1 << 20], Packing::Gzip);
    let test = TestImage::new(vec![zeros]);
    registry.serve_image("app", "v1", &test);
    let pull = async |edit: fn(&mut kina_image::Limits)| {
        let root = tempfile::tempdir().unwrap();
        let mut config = registry.config(root.path());
        edit(&mut config.limits);
        let store = Images::open(config).await.unwrap();
        store.pull(&registry.reference("app:v1"), None, None).await
    };
    assert!(pull(|_| ()).await.is_ok());
    for edit in [
        (|limits| limits.layer_bytes = 100) as fn(&mut kina_image::Limits),
        |limits| limits.manifest_bytes = 100,
        |limits| limits.config_bytes = 100,
        |limits| limits.layers = 0,
    ] {
        let error = pull(edit).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }
    let error = pull(|limits| limits.unpacked_layer_bytes = 1 << 19).await.unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(matches!(error, Error::LayerRefused { .. }) && source.contains("limit"), "{error}: {source}");
    // Also when the length is not announced.
    registry.route("/v2/app/manifests/v1", Reply::ok(vec![b' '; 200_000]).manner(Manner::Chunked));
    let error = pull(|limits| limits.manifest_bytes = 100_000).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    // And when the bytes are not in files.
    let mut padded = TestLayer::new("small", b"x", Packing::Plain);
    padded.archive.extend(vec![0; 1 << 20]);
    padded.packed = crate::fixtures::gzip(&padded.archive);
    registry.serve_image("app", "v1", &TestImage::new(vec![padded]));
    let error = pull(|limits| limits.unpacked_layer_bytes = 1 << 19).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn foreign_layers_are_refused() {
    let registry = Registry::start().await;
    let test = small_image("x").with_manifest(|manifest| {
        manifest["layers"][0]["mediaType"] =
            json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    });
    registry.serve_image("app", "v1", &test);
    assert!(matches!(refused(&registry).await, Error::ForeignLayer { .. }));
}

#[tokio::test]
async fn a_broken_transfer_is_tried_again() {
    let registry = Registry::start().await;
    let test = TestImage::new(vec![TestLayer::noise("f", 300_000)]);
    registry.serve_image("app", "v1", &test);
    let whole = Reply::ok(test.blobs[1].clone());
    let broken = whole.clone().manner(Manner::HangUpAfter(150_000));
    let path = blob_path("app", &test.blobs[1]);
    registry.route_in_turn(&path, vec![broken.clone(), whole]);
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    store.pull(&registry.reference("app:v1"), None, None).await.unwrap();
    assert_eq!(registry.count(&path), 2);

    registry.route(&path, broken);
    let error = refused(&registry).await;
    assert!(matches!(&error, Error::Unreachable { attempts, .. } if attempts.len() == 1), "{error}");
    registry
        .route_in_turn("/v2/app/manifests/v1", vec![Reply::status(503), Reply::ok(test.manifest.clone())]);
    store.pull(&registry.reference("app:v1"), None, None).await.unwrap();
}

#[tokio::test]
async fn a_stalled_transfer_ends() {
    let registry = Registry::start().await;
    let test = TestImage::new(vec![TestLayer::noise("f", 300_000)]);
    registry.serve_image("app", "v1", &test);
    let path = blob_path("app", &test.blobs[1]);
    registry.route(&path, Reply::ok(test.blobs[1].clone()).manner(Manner::StallAfter(150_000)));
    let root = tempfile::tempdir().unwrap();
    let mut config = registry.config(root.path());
    config.timeouts.stall = Duration::from_millis(100);
    let store = Images::open(config).await.unwrap();
    let error = store.pull(&registry.reference("app:v1"), None, None).await.unwrap_err();
    assert!(error.to_string().contains("stalled"), "{error}");
    assert!(no_temporary_files(root.path()));
    // A manifest has to be there in time.
    drop(store);
    registry.route("/v2/app/manifests/v1", Reply::ok(test.manifest.clone()).manner(Manner::StallAfter(10)));
    let mut config = registry.config(root.path());
    config.timeouts.request = Duration::from_millis(100);
    let store = Images::open(config).await.unwrap();
    let error = store.pull(&registry.reference("app:v1"), None, None).await.unwrap_err();
    assert!(error.to_string().contains("no answer within"), "{error}");
}

#[tokio::test]
async fn what_is_missing_or_unreachable_is_told_apart() {
    let registry = Registry::start().await;
    let error = refused(&registry).await;
    assert!(matches!(&error, Error::NotFound { host, .. } if host.contains(&registry.address)), "{error}");
    // A registry on loopback that turns out not to speak TLS is asked without.
    let root = tempfile::tempdir().unwrap();
    let store = Images::open(config(root.path())).await.unwrap();
    let error = store.pull(&registry.reference("app:v1"), None, None).await.unwrap_err();
    assert!(matches!(&error, Error::NotFound { host, .. } if host.starts_with("http://")), "{error}");
    let error = store.pull(&"127.0.0.1:1/app:v1".parse().unwrap(), None, None).await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { .. }), "{error}");
    assert!(registry.seen().iter().all(|seen| seen.method == "GET"), "{:?}", registry.seen());
}
