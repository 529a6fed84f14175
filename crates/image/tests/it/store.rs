//! What the store keeps, frees and survives.

use std::fs;

use kina_image::{Error, Images, Removed};

use crate::fixtures::{
    Packing, TestImage, TestLayer, blobs_in, copy_tree, du, layers_in, no_temporary_files, small_image, until,
};
use crate::registry::{Registry, Reply, blob_path, config};

#[tokio::test]
async fn images_outlive_a_restart_and_leftovers_do_not() {
    let registry = Registry::start().await;
    registry.serve_image("app", "v1", &small_image("x"));
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let image = store.pull(&registry.reference("app:v1"), None, None).await.unwrap();
    assert!(matches!(Images::open(config(root.path())).await, Err(Error::StoreInUse { .. })));
    drop(store);
    for leftover in ["oci/.incoming-1-2", "oci/blobs/sha256/.incoming-1-2", "layers/.incoming-9-9"] {
        fs::write(root.path().join(leftover), "half").unwrap();
    }
    let store = registry.store(root.path()).await;
    assert_eq!(store.list(), [image]);
    assert!(no_temporary_files(root.path()));
    // Nothing is fetched again but the manifest and the configuration.
    let before = registry.seen().len();
    store.pull(&registry.reference("app:v1"), None, None).await.unwrap();
    assert_eq!(registry.seen().len() - before, 2);
}

#[tokio::test]
async fn a_damaged_image_is_noticed_and_comes_back() {
    let registry = Registry::start().await;
    let (one, two) = (small_image("one"), small_image("two"));
    registry.serve_image("one", "v1", &one);
    registry.serve_image("two", "v1", &two);
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let first = store.pull(&registry.reference("one:v1"), None, None).await.unwrap();
    let second = store.pull(&registry.reference("two:v1"), None, None).await.unwrap();
    drop(store);
    fs::remove_file(&first.layers[0].image_path).unwrap();
    let manifest = root.path().join("oci/blobs/sha256").join(second.manifest_digest.hex());
    let mut bytes = fs::read(&manifest).unwrap();
    bytes[5] ^= 1;
    fs::write(&manifest, bytes).unwrap();

    let store = registry.store(root.path()).await;
    // The one that lacks a layer is known to; of the other nothing is known any more.
    let left = store.list();
    assert_eq!((left.len(), left[0].id.clone(), left[0].complete), (1, one.id(), false));
    let error = store.check(&one.id()).await.unwrap_err().to_string();
    assert!(error.contains("is missing") && error.contains("kina image pull"), "{error}");
    assert_eq!(store.pull(&registry.reference("one:v1"), None, None).await.unwrap(), first);
    store.check(&one.id()).await.unwrap();
    // The layer's image was made from the blob that is here.
    assert_eq!(registry.count(&blob_path("one", &one.blobs[1])), 1);
    assert_eq!(store.pull(&registry.reference("two:v1"), None, None).await.unwrap().id, second.id);
    // A damaged layer blob is noticed when it is needed, and fetched again.
    drop(store);
    fs::remove_file(&first.layers[0].image_path).unwrap();
    let blob = root.path().join("oci/blobs/sha256").join(first.layers[0].digest.hex());
    fs::write(&blob, vec![0; fs::metadata(&blob).unwrap().len() as usize]).unwrap();
    let store = registry.store(root.path()).await;
    store.pull(&registry.reference("one:v1"), None, None).await.unwrap();
    assert_eq!(fs::read(&blob).unwrap(), one.blobs[1]);
    drop(store);
    let store = registry.store(root.path()).await;
    assert_eq!(store.list().len(), 2);
}

#[tokio::test]
async fn removal_frees_what_nobody_else_uses() {
    let registry = Registry::start().await;
    let shared = TestLayer::new("shared", b"s", Packing::Gzip);
    let one = TestImage::new(vec![shared.clone(), TestLayer::new("own", b"1", Packing::Gzip)]);
    let two = TestImage::new(vec![shared.clone(), TestLayer::new("own", b"2", Packing::Gzip)]);
    registry.serve_image("one", "v1", &one);
    registry.serve_image("one", "latest", &one);
    registry.serve_image("two", "v1", &two);
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    store.pull(&registry.reference("one:v1"), None, None).await.unwrap();
    let image = store.pull(&registry.reference("one"), None, None).await.unwrap();
    assert_eq!(image.repo_tags.len(), 2);
    assert_eq!(image.repo_digests.len(), 1);
    let other = store.pull(&registry.reference("two:v1"), None, None).await.unwrap();
    assert_eq!(blobs_in(root.path()).len(), 7);
    assert_eq!(layers_in(root.path()).len(), 3);
    let removed = store.remove(&format!("{}/one:v1", registry.address)).await.unwrap();
    assert_eq!(removed, Removed::Image { id: image.id.clone(), in_use: false });
    assert_eq!(store.list(), std::slice::from_ref(&other));
    assert_eq!(blobs_in(root.path()).len(), 4);
    assert_eq!(layers_in(root.path()).len(), 2);
    assert!(no_temporary_files(root.path()));
    assert_eq!(store.remove(image.id.as_str()).await.unwrap(), Removed::None);
    assert_eq!(store.remove("not a name").await.unwrap(), Removed::None);
    store.remove(other.id.hex()).await.unwrap();
    assert!(blobs_in(root.path()).is_empty() && layers_in(root.path()).is_empty());
    drop(store);
    assert!(registry.store(root.path()).await.list().is_empty());
}

#[tokio::test]
async fn names_go_one_by_one() {
    let registry = Registry::start().await;
    let (old, new) = (small_image("old"), small_image("new"));
    registry.serve_image("app", "v1", &old);
    registry.serve_image("app", "latest", &old);
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let latest = registry.reference("app");
    store.pull(&latest, None, None).await.unwrap();
    store.pull(&registry.reference("app:v1"), None, None).await.unwrap();
    // A tag that moves leaves the old image its other names.
    registry.serve_image("app", "latest", &new);
    let moved = store.pull(&latest, None, None).await.unwrap();
    assert_eq!(moved.id, new.id());
    let image = store.resolve(old.id().as_str()).unwrap();
    assert_eq!(image.repo_tags, [registry.reference("app:v1").to_string()]);
    assert_eq!(image.repo_digests.len(), 1);

    assert_eq!(store.untag(&registry.reference("app:none")).await.unwrap(), Removed::None);
    // The last tag takes the digest along, and with that the image goes.
    let removed = store.untag(&registry.reference("app:v1")).await.unwrap();
    assert_eq!(removed, Removed::Image { id: old.id(), in_use: false });
    assert_eq!(store.list(), [moved]);
    let digest = latest.with_digest(&new.manifest_digest());
    assert_eq!(store.untag(&digest).await.unwrap(), Removed::Name { id: new.id() });
    assert!(store.resolve(&latest.to_string()).unwrap().repo_digests.is_empty());
}

#[tokio::test]
async fn leased_layers_stay() {
    let registry = Registry::start().await;
    let test = small_image("x");
    registry.serve_image("app", "v1", &test);
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let reference = registry.reference("app:v1");
    let image = store.pull(&reference, None, None).await.unwrap();
    let leases = [store.lease(&image.id).unwrap(), store.lease(&image.id).unwrap()];
    let removed = store.remove(&reference.to_string()).await.unwrap();
    assert_eq!(removed, Removed::Image { id: image.id.clone(), in_use: true });
    assert!(store.list().is_empty());
    assert!(store.resolve(image.id.as_str()).is_none());
    assert_eq!(store.remove(image.id.as_str()).await.unwrap(), Removed::None);
    store.gc().await.unwrap();
    assert!(image.layers[0].image_path.exists());

    // The daemon is killed: its leases are gone, the container is not.
    drop(leases);
    drop(store);
    until("the last lease's work is done", || layers_in(root.path()).is_empty()).await;
    let store = loop {
        match Images::open(registry.config(root.path())).await {
            Ok(store) => break store,
            // The work that freed the layer still holds the store.
            Err(Error::StoreInUse { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(blobs_in(root.path()).is_empty());
    assert!(store.lease(&image.id).is_none());
}

#[tokio::test]
async fn leased_layers_outlive_a_crash() {
    let registry = Registry::start().await;
    registry.serve_image("app", "v1", &small_image("x"));
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let reference = registry.reference("app:v1");
    let image = store.pull(&reference, None, None).await.unwrap();
    let lease = store.lease(&image.id).unwrap();
    store.remove(image.id.as_str()).await.unwrap();
    // A copy of the files is what a kill at this moment leaves.
    let copy = tempfile::tempdir().unwrap();
    copy_tree(root.path(), copy.path());
    drop((lease, store));

    let store = registry.store(copy.path()).await;
    assert!(store.list().is_empty());
    let again = store.lease(&image.id).unwrap();
    assert_eq!(again.image().layers[0].diff_id, image.layers[0].diff_id);
    store.gc().await.unwrap();
    assert_eq!(layers_in(copy.path()).len(), 1);
    drop(again);
    until("the layer is freed", || layers_in(copy.path()).is_empty() && blobs_in(copy.path()).is_empty())
        .await;

    // Without a container that takes it again, collection frees it.
    drop(store);
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    store.pull(&reference, None, None).await.unwrap();
    let lease = store.lease(&image.id).unwrap();
    store.remove(image.id.as_str()).await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    copy_tree(root.path(), copy.path());
    drop((lease, store));
    let store = registry.store(copy.path()).await;
    store.gc().await.unwrap();
    assert!(blobs_in(copy.path()).is_empty() && layers_in(copy.path()).is_empty());
    // Pulled again, it is as if it had never been removed.
    let image = store.pull(&reference, None, None).await.unwrap();
    let lease = store.lease(&image.id).unwrap();
    store.remove(image.id.as_str()).await.unwrap();
    store.pull(&reference, None, None).await.unwrap();
    drop(lease);
    store.gc().await.unwrap();
    assert_eq!(store.list(), [image]);
    assert_eq!(layers_in(copy.path()).len(), 1);
}

#[tokio::test]
async fn collection_frees_what_failed_pulls_leave() {
    let registry = Registry::start().await;
    let layers = vec![TestLayer::new("a", b"a", Packing::Gzip), TestLayer::new("b", b"b", Packing::Gzip)];
    let test = TestImage::new(layers);
    registry.serve_image("app", "v1", &test);
    let broken = blob_path("app", &test.blobs[2]);
    registry.route(&broken, Reply::status(404));
    let root = tempfile::tempdir().unwrap();
    let mut config = registry.config(root.path());
    config.max_concurrent_layers = 1;
    let store = Images::open(config).await.unwrap();
    let reference = registry.reference("app:v1");
    let error = store.pull(&reference, None, None).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    // The layer that came is kept for the next try.
    assert_eq!(layers_in(root.path()).len(), 1);
    registry.route(&broken, Reply::ok(test.blobs[2].clone()));
    store.pull(&reference, None, None).await.unwrap();
    assert_eq!(registry.count(&blob_path("app", &test.blobs[1])), 1);

    let other = small_image("other");
    registry.serve_image("other", "v1", &other);
    registry.route(&blob_path("other", &other.blobs[1]), Reply::status(404));
    store.pull(&registry.reference("other:v1"), None, None).await.unwrap_err();
    let (blobs, layers) = (blobs_in(root.path()), layers_in(root.path()));
    fs::write(root.path().join("layers").join(format!("{}.erofs", "0".repeat(64))), "orphan").unwrap();
    fs::write(root.path().join("oci/blobs/sha256").join("0".repeat(64)), "orphan").unwrap();
    store.gc().await.unwrap();
    assert_eq!((blobs_in(root.path()), layers_in(root.path())), (blobs, layers));
}

#[tokio::test]
async fn images_are_found_in_every_way() {
    let registry = Registry::start().await;
    let test = small_image("x");
    registry.serve_image("app", "v1", &test);
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    store.pull(&registry.reference("app:v1"), None, None).await.unwrap();
    let id = test.id();
    let name = format!("{}/app", registry.address);
    for text in [
        id.as_str(),
        id.hex(),
        &id.hex()[..7],
        &format!("sha256:{}", &id.hex()[..12]),
        &format!("{name}:v1"),
        &format!("{name}@{}", test.manifest_digest()),
        &format!("{name}:whatever@{}", test.manifest_digest()),
    ] {
        assert_eq!(store.resolve(text).map(|image| image.id), Some(id.clone()), "{text}");
    }
    for text in [
        "",
        "app:v1",
        &name,
        &id.hex()[..6],
        &format!("{name}:v2"),
        &format!("other/app@{}", test.manifest_digest()),
        &format!("{name}@{id}"),
    ] {
        assert_eq!(store.resolve(text), None, "{text}");
    }
}

#[tokio::test]
async fn usage_is_true_to_the_disk() {
    let registry = Registry::start().await;
    let test = TestImage::new(vec![TestLayer::noise("f", 500_000)]);
    registry.serve_image("app", "v1", &test);
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let empty = store.usage().await.unwrap();
    store.pull(&registry.reference("app:v1"), None, None).await.unwrap();
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.bytes, usage.inodes), du(root.path()));
    assert!(usage.bytes - empty.bytes > 1_000_000, "{usage:?}");
    store.remove(test.id().as_str()).await.unwrap();
    assert_eq!(store.usage().await.unwrap().inodes, empty.inodes + 1, "index.json is new");
}
