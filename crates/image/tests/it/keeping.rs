//! Who keeps which files, what they take, and removing what nobody uses.

use std::path::Path;
use std::time::Duration;

use kina_image::{Error, Images, Lease, PruneFilter, Removed};

use crate::fixtures::{Packing, TestImage, TestLayer, blobs_in, du, layers_in, small_image, until};
use crate::registry::Registry;

/// Two images that share a layer, and one that shares nothing.
async fn three(root: &Path) -> (Registry, Images, [kina_image::Image; 3]) {
    let registry = Registry::start().await;
    let shared = TestLayer::noise("shared", 200_000);
    let own = |name| TestLayer::new(name, name.as_bytes(), Packing::Gzip);
    let (one, two) = (TestImage::new(vec![shared.clone(), own("1")]), TestImage::new(vec![shared, own("2")]));
    registry.serve_image("one", "v1", &one);
    registry.serve_image("two", "v1", &two);
    registry.serve_image("three", "v1", &small_image("3"));
    let store = registry.store(root).await;
    let mut images = Vec::new();
    for name in ["one:v1", "two:v1", "three:v1"] {
        images.push(store.pull(&registry.reference(name), None, None).await.unwrap());
    }
    (registry, store, images.try_into().unwrap())
}

/// Ends a lease of a store whose directory is about to be removed: nothing is freed beside that.
fn end(store: &Images, lease: Lease) {
    store.close();
    drop(lease);
}

#[tokio::test]
async fn a_shared_layer_stays_for_the_other_image_in_whatever_order() {
    let root = tempfile::tempdir().unwrap();
    let (_registry, store, [one, two, three]) = three(root.path()).await;
    let lease = store.lease(&one.id).unwrap();
    store.remove(three.id.as_str()).await.unwrap();
    assert_eq!(
        store.remove(one.id.as_str()).await.unwrap(),
        Removed::Image { id: one.id.clone(), in_use: true }
    );
    store.remove(two.id.as_str()).await.unwrap();
    // What the leased one needs is here, and nothing more.
    assert!(one.layers.iter().all(|layer| layer.image_path.exists()));
    assert_eq!((layers_in(root.path()).len(), blobs_in(root.path()).len()), (2, 4));
    let report = store.verify(&[], false, None).await.unwrap();
    assert_eq!((report.images, report.findings.len(), report.unreferenced.len()), (1, 0, 0));
    drop(lease);
    until("everything is freed", || layers_in(root.path()).is_empty() && blobs_in(root.path()).is_empty())
        .await;
    store.gc().await.unwrap();
}

#[tokio::test]
async fn an_image_that_comes_back_while_it_is_leased() {
    let root = tempfile::tempdir().unwrap();
    let (registry, store, [one, ..]) = three(root.path()).await;
    let lease = store.lease(&one.id).unwrap();
    store.remove(one.id.as_str()).await.unwrap();
    // By a tag, and by another name: neither fetches a layer again.
    let blob = |digest: &kina_image::Digest| format!("/v2/one/blobs/{digest}");
    let fetched = registry.count(&blob(&one.layers[1].digest));
    assert_eq!(store.pull(&registry.reference("one:v1"), None, None).await.unwrap(), one);
    assert_eq!(registry.count(&blob(&one.layers[1].digest)), fetched);
    drop(lease);
    store.gc().await.unwrap();
    assert!(one.layers.iter().all(|layer| layer.image_path.exists()));
    assert_eq!(store.list().len(), 3);
}

#[tokio::test]
async fn names_are_given_and_taken() {
    let root = tempfile::tempdir().unwrap();
    let (registry, store, [one, two, _]) = three(root.path()).await;
    let name = "localhost/mine:1".parse().unwrap();
    assert_eq!(store.tag(one.id.as_str(), &name).await.unwrap().repo_tags.len(), 2);
    // A name is one image's.
    store.tag("localhost/mine:1", &"localhost/mine:2".parse().unwrap()).await.unwrap();
    assert_eq!(store.tag(two.id.as_str(), &name).await.unwrap().id, two.id);
    assert_eq!(store.resolve("localhost/mine:1").unwrap().id, two.id);
    assert_eq!(store.resolve("localhost/mine:2").unwrap().id, one.id);
    let digest = registry.reference("one").with_digest(&two.manifest_digest);
    assert!(matches!(store.tag("localhost/mine:1", &digest).await, Err(Error::InvalidReference { .. })));
    assert!(matches!(store.tag("localhost/none", &name).await, Err(Error::UnknownImage { .. })));
    let lease = store.lease(&one.id).unwrap();
    store.untag(&"localhost/mine:2".parse().unwrap()).await.unwrap();
    assert_eq!(
        store.untag(&registry.reference("one:v1")).await.unwrap(),
        Removed::Image { id: one.id.clone(), in_use: true }
    );
    assert!(one.layers.iter().all(|layer| layer.image_path.exists()));
    drop(lease);
    until("its own layer is freed", || !one.layers[1].image_path.exists()).await;
    store.gc().await.unwrap();
    assert!(one.layers[0].image_path.exists());
}

#[tokio::test]
async fn the_parts_of_the_store_add_up_to_what_du_says() {
    let root = tempfile::tempdir().unwrap();
    let (_registry, store, [one, two, three]) = three(root.path()).await;
    std::fs::write(root.path().join("oci/blobs/sha256").join("0".repeat(64)), vec![1; 50_000]).unwrap();
    // Another name of a file takes nothing.
    std::fs::hard_link(&three.layers[0].image_path, root.path().join("layers/link")).unwrap();
    let lease = store.lease(&two.id).unwrap();
    store.remove(two.id.as_str()).await.unwrap();
    let found = store.disk_use().await.unwrap();
    assert_eq!((found.total.bytes, found.total.inodes), du(root.path()));
    assert_eq!(store.usage().await.unwrap(), found.total);
    let unique: u64 = found.images.iter().map(|image| image.unique_bytes).sum();
    assert_eq!(
        unique + found.shared_bytes + found.unreferenced_bytes + found.other_bytes,
        found.total.bytes,
        "{found:?}"
    );
    assert!(found.shared_bytes > 400_000 && found.unreferenced_bytes >= 50_000, "{found:?}");
    let of = |id| found.images.iter().find(|image| image.image.id == id).unwrap();
    let (first, second) = (of(one.id.clone()), of(two.id.clone()));
    assert!((first.in_use, first.removed, second.in_use, second.removed) == (false, false, true, true));
    assert_eq!(first.bytes - first.unique_bytes, found.shared_bytes);
    // The length of the files is what callers are told as the image's size.
    assert!(first.bytes >= one.stored_size && first.bytes < one.stored_size + 8 * 4096, "{first:?}");
    let reclaimable = first.unique_bytes + of(three.id).unique_bytes + found.unreferenced_bytes;
    assert_eq!(found.reclaimable_bytes, reclaimable);
    // What is foretold is what is freed, but for the link that holds one file.
    std::fs::remove_file(root.path().join("layers/link")).unwrap();
    let filter = PruneFilter { tagged: true, ..PruneFilter::default() };
    let foretold = store.prune(PruneFilter { dry_run: true, ..filter }).await.unwrap();
    assert_eq!(store.list().len(), 2);
    let done = store.prune(filter).await.unwrap();
    assert_eq!((foretold.images.len(), &foretold), (2, &done));
    assert_eq!(done.freed_bytes, reclaimable);
    let after = store.disk_use().await.unwrap();
    assert_eq!((after.unreferenced_bytes, after.shared_bytes, after.images.len()), (0, 0, 1));
    end(&store, lease);
}

#[tokio::test]
async fn pruning_takes_what_it_is_told_to() {
    let root = tempfile::tempdir().unwrap();
    let (registry, store, [one, two, three]) = three(root.path()).await;
    let nothing = store.prune(PruneFilter::default()).await.unwrap();
    assert_eq!((nothing.images.len(), nothing.freed_bytes, store.list().len()), (0, 0, 3));
    let hour = PruneFilter { tagged: true, age: Duration::from_secs(3600), dry_run: false };
    assert_eq!(store.prune(hour).await.unwrap().images, []);
    // The tag moves on to another image; what it named before is without one.
    registry.serve_image("three", "v1", &small_image("new"));
    store.pull(&registry.reference("three:v1"), None, None).await.unwrap();
    let untagged = store.prune(PruneFilter::default()).await.unwrap();
    assert_eq!(untagged.images.iter().map(|image| &image.id).collect::<Vec<_>>(), [&three.id]);
    assert!(untagged.freed_bytes > 0);
    let lease = store.lease(&one.id).unwrap();
    let all = store.prune(PruneFilter { tagged: true, ..PruneFilter::default() }).await.unwrap();
    assert_eq!(all.images.len(), 2);
    assert!(all.images.iter().any(|image| image.id == two.id));
    assert_eq!(store.list(), [one]);
    end(&store, lease);
}

/// A daemon that ends drops its leases, but the containers go on.
#[tokio::test]
async fn a_process_that_ends_frees_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (registry, store, [one, two, _]) = three(root.path()).await;
    let leases = [store.lease(&one.id).unwrap(), store.lease(&two.id).unwrap()];
    store.remove(one.id.as_str()).await.unwrap();
    let before = (layers_in(root.path()), blobs_in(root.path()));
    store.close();
    drop(leases);
    // Nor does a call that was under way.
    store.remove(two.id.as_str()).await.unwrap();
    assert_eq!((layers_in(root.path()), blobs_in(root.path())), before);
    drop(store);
    let store = registry.store(root.path()).await;
    let lease = store.lease(&one.id).unwrap();
    store.gc().await.unwrap();
    assert!(one.layers.iter().all(|layer| layer.image_path.exists()));
    assert!(!two.layers[1].image_path.exists());
    end(&store, lease);
}
