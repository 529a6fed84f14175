//! Concurrent pulls.

use std::sync::Arc;

use kina_image::Error;
use tokio::sync::Semaphore;

use crate::fixtures::{TestImage, TestLayer, no_temporary_files, until};
use crate::registry::{Manner, Registry, Reply, blob_path};

struct Gated {
    registry: Registry,
    gate: Arc<Semaphore>,
    layer: String,
    root: tempfile::TempDir,
}

/// `one` and `two` share a layer that comes only when the gate is opened.
async fn gated() -> Gated {
    let registry = Registry::start().await;
    let shared = TestLayer::noise("shared", 200_000);
    let one = TestImage::new(vec![shared.clone()]);
    let two = TestImage::new(vec![shared.clone(), TestLayer::noise("own", 1000)]);
    registry.serve_image("one", "v1", &one);
    registry.serve_image("two", "v1", &two);
    let gate = Arc::new(Semaphore::new(0));
    let reply = Reply::ok(shared.packed.clone()).manner(Manner::Gated(gate.clone()));
    for repository in ["one", "two"] {
        registry.route(&blob_path(repository, &shared.packed), reply.clone());
    }
    let layer = blob_path("one", &shared.packed);
    Gated { registry, gate, layer, root: tempfile::tempdir().unwrap() }
}

#[tokio::test]
async fn pulls_of_one_image_are_one() {
    let gated = gated().await;
    let store = gated.registry.store(gated.root.path()).await;
    let pulls: Vec<_> = (0..8)
        .map(|_| {
            let (store, reference) = (store.clone(), gated.registry.reference("one:v1"));
            tokio::spawn(async move { store.pull(&reference, None, None).await })
        })
        .collect();
    until("the layer is asked for", || gated.registry.count(&gated.layer) == 1).await;
    // Callers that give up do not end the others' pull.
    for pull in &pulls[..4] {
        pull.abort();
    }
    gated.gate.add_permits(1);
    for (number, pull) in pulls.into_iter().enumerate() {
        match pull.await {
            Ok(image) => assert_eq!(image.unwrap().layers.len(), 1),
            Err(error) => assert!(error.is_cancelled() && number < 4),
        }
    }
    assert_eq!(gated.registry.count("/v2/one/manifests/v1"), 1);
    assert_eq!(gated.registry.count(&gated.layer), 1);
    assert_eq!(store.list().len(), 1);
}

#[tokio::test]
async fn a_layer_of_two_images_is_fetched_once() {
    let gated = gated().await;
    let store = gated.registry.store(gated.root.path()).await;
    let pull = |repository: &str| {
        let (store, reference) = (store.clone(), gated.registry.reference(&format!("{repository}:v1")));
        tokio::spawn(async move { store.pull(&reference, None, None).await })
    };
    let one = pull("one");
    until("the layer is asked for", || gated.registry.count(&gated.layer) == 1).await;
    let two = pull("two");
    let (_, digest) = gated.layer.rsplit_once('/').unwrap();
    until("the other pull is at its layers", || {
        gated.registry.seen().iter().any(|seen| seen.path.starts_with("/v2/two/blobs/"))
    })
    .await;
    gated.gate.add_permits(1);
    let (one, two) = (one.await.unwrap().unwrap(), two.await.unwrap().unwrap());
    assert_eq!(one.layers[0].image_path, two.layers[0].image_path);
    let fetched = gated.registry.seen().iter().filter(|seen| seen.path.ends_with(digest)).count();
    assert_eq!(fetched, 1);
}

#[tokio::test]
async fn another_pulls_failure_is_not_ours() {
    let gated = gated().await;
    // Repository `one` breaks off in the middle and stays broken.
    let store = gated.registry.store(gated.root.path()).await;
    let bytes = TestLayer::noise("shared", 200_000).packed;
    let half = bytes.len() / 2;
    let broken = Reply::ok(bytes.clone()).manner(Manner::HangUpAfter(half));
    let gate = Reply::ok(bytes.clone()).manner(Manner::Gated(gated.gate.clone()));
    gated.registry.route_in_turn(&gated.layer, vec![gate, broken]);
    gated.registry.route(&blob_path("two", &bytes), Reply::ok(bytes.clone()));
    gated.registry.route(
        "/v2/one/manifests/v1",
        Reply::ok(TestImage::new(vec![TestLayer::noise("shared", 200_000)]).manifest),
    );
    let pull = |repository: &str| {
        let (store, reference) = (store.clone(), gated.registry.reference(&format!("{repository}:v1")));
        tokio::spawn(async move { store.pull(&reference, None, None).await })
    };
    let one = pull("one");
    until("the layer is asked for", || gated.registry.count(&gated.layer) == 1).await;
    let two = pull("two");
    until("the other pull is at its layers", || {
        gated.registry.seen().iter().any(|seen| seen.path.starts_with("/v2/two/blobs/"))
    })
    .await;
    gated.gate.close();
    assert!(matches!(one.await.unwrap(), Err(Error::Unreachable { .. })));
    two.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_ends() {
    let gated = gated().await;
    let store = gated.registry.store(gated.root.path()).await;
    let reference = gated.registry.reference("one:v1");
    let pull = {
        let (store, reference) = (store.clone(), reference.clone());
        tokio::spawn(async move { store.pull(&reference, None, None).await })
    };
    let blobs = gated.root.path().join("oci/blobs/sha256");
    until("bytes arrive", || {
        std::fs::read_dir(&blobs)
            .unwrap()
            .any(|entry| entry.unwrap().metadata().is_ok_and(|data| data.len() > 0))
    })
    .await;
    pull.abort();
    assert!(pull.await.unwrap_err().is_cancelled());
    until("temporary files go away", || no_temporary_files(gated.root.path())).await;
    assert!(store.list().is_empty());
    // And it can be had after all.
    gated.gate.add_permits(1);
    store.pull(&reference, None, None).await.unwrap();
}

#[tokio::test]
async fn a_failure_reaches_every_caller() {
    let registry = Registry::start().await;
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    let reference = registry.reference("none:v1");
    let (one, two) = tokio::join!(store.pull(&reference, None, None), store.pull(&reference, None, None));
    assert!(matches!(one, Err(Error::NotFound { .. })));
    assert!(matches!(two, Err(Error::NotFound { .. })));
    assert_eq!(registry.count("/v2/none/manifests/v1"), 1);
}
