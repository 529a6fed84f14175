//! Images that pods use: what keeps them, and what is said of them.

mod volumes;

use std::path::{Path, PathBuf};

use kina::cri::v1;
use tonic::Code;

use crate::harness::{Cri, Daemon, IMAGE, Options, busybox, output, script, wait_until};

const FOREVER: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done";

fn spec(image: &str) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec { image: image.to_owned(), ..v1::ImageSpec::default() })
}

impl Cri {
    async fn images(&self) -> Vec<v1::Image> {
        let request = v1::ListImagesRequest::default();
        self.client.images.clone().list_images(request).await.unwrap().into_inner().images
    }

    async fn image(&self, name: &str) -> Option<v1::Image> {
        let request = v1::ImageStatusRequest { image: spec(name), verbose: false };
        self.client.images.clone().image_status(request).await.unwrap().into_inner().image
    }

    async fn remove_image(&self, name: &str) {
        let request = v1::RemoveImageRequest { image: spec(name) };
        self.client.images.clone().remove_image(request).await.unwrap();
    }
}

/// The files of images.
fn files(daemon: &Daemon) -> Vec<PathBuf> {
    let images = daemon.place.config().root.join("images");
    let list = |directory: &Path| {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    [list(&images.join("layers")), list(&images.join("oci/blobs/sha256"))].concat()
}

/// An image is removed while a container runs it: the container goes on, also
/// under new daemons, another one cannot be made, and what it used goes with it.
#[tokio::test]
async fn a_removed_image_stays_for_its_containers() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let created = cri.create(&pod, script("created", "echo late; cat /bin/yes | wc -c")).await.unwrap();
    cri.wait_output(&one, "up").await;
    let before = files(&daemon);
    assert!(!before.is_empty());
    let status = cri.status(&one).await.unwrap();
    cri.remove_image(IMAGE).await;
    for graceful in [None, Some(false), Some(true), Some(false)] {
        match graceful {
            None => {}
            Some(false) => daemon.restart().await,
            Some(true) => {
                daemon.stop().await;
                daemon.start_again(Options::default()).await;
            }
        }
        let cri = daemon.cri();
        assert_eq!(cri.images().await, []);
        assert_eq!(cri.image(IMAGE).await, None);
        assert_eq!(files(&daemon), before);
        assert_eq!(cri.sh(&one, "cat /bin/yes | wc -c; echo here").await.lines().last(), Some("here"));
        assert_eq!(cri.status(&one).await.unwrap(), status);
        let error = cri.create(&pod, script("two", FOREVER)).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{error}");
    }
    let cri = daemon.cri();
    // One that was made before may still start.
    cri.start(&created).await.unwrap();
    let ended = cri.wait_exit(&created).await;
    let log = std::fs::read_to_string(&ended.log_path).unwrap();
    assert!(ended.exit_code == 0 && output(&log).starts_with("late"), "{log}");
    cri.remove(&created).await.unwrap();
    assert_eq!(files(&daemon), before);
    // Half of the users is gone; a new daemon counts the same.
    daemon.restart().await;
    assert_eq!(files(&daemon), before);
    let cri = daemon.cri();
    cri.stop(&one, 60).await.unwrap();
    assert_eq!(files(&daemon), before);
    cri.remove(&one).await.unwrap();
    wait_until("the image's files to go", async || files(&daemon).is_empty()).await;
    daemon.leave_nothing().await;
}

/// Every call that tells an image's id tells the same, and references by digest
/// are the same everywhere, too.
#[tokio::test]
async fn ids_are_the_same_in_every_call() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let listed = cri.images().await;
    let [image] = &listed[..] else { panic!("{listed:?}") };
    assert!(image.id.starts_with("sha256:") && image.repo_tags == [IMAGE], "{image:?}");
    let [reference] = &image.repo_digests[..] else { panic!("{image:?}") };
    for name in [IMAGE, &image.id, &image.id["sha256:".len()..], reference] {
        assert_eq!(cri.image(name).await.as_ref(), Some(image), "{name}");
        let filter = Some(v1::ImageFilter { image: spec(name) });
        let filtered = cri.client.images.clone().list_images(v1::ListImagesRequest { filter }).await;
        assert_eq!(filtered.unwrap().into_inner().images, listed, "{name}");
        let mut container = script("one", FOREVER);
        container.image = spec(name);
        let id = cri.run(&pod, container).await;
        let status = cri.status(&id).await.unwrap();
        assert_eq!((&status.image_id, &status.image_ref), (&image.id, reference), "{name}");
        assert_eq!(status.image.unwrap().image, name);
        let containers = cri.containers(None).await;
        let container = containers.iter().find(|container| container.id == id).unwrap();
        assert_eq!((&container.image_id, &container.image_ref), (&image.id, reference), "{name}");
        cri.stop(&id, 0).await.unwrap();
        cri.remove(&id).await.unwrap();
    }
    // What is said of its size is what its files take.
    let request = v1::ImageFsInfoRequest {};
    let info = cri.client.images.clone().image_fs_info(request).await.unwrap().into_inner();
    let used = info.image_filesystems[0].used_bytes.unwrap().value;
    assert!(image.size < used && used < image.size + 256 * 1024, "{} of {used}", image.size);
    daemon.leave_nothing().await;
}

/// A layer's file is cut off or gone: no container is made of it, the error says
/// what helps, and the kubelet is not told that the image is here.
#[tokio::test]
async fn a_missing_layer_is_named_and_comes_back() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let layers = daemon.place.config().root.join("images/layers");
    let layer = std::fs::read_dir(layers).unwrap().next().unwrap().unwrap().path();
    let content = std::fs::read(&layer).unwrap();
    for damage in [&content[..100], &[]] {
        std::fs::remove_file(&layer).unwrap();
        if !damage.is_empty() {
            std::fs::write(&layer, damage).unwrap();
        }
        let error = cri.create(&pod, script("one", FOREVER)).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        for part in [&*layer.display().to_string(), "kina image pull", IMAGE] {
            assert!(error.message().contains(part), "{error}");
        }
        assert_eq!(cri.image(IMAGE).await, None);
        assert_eq!(cri.images().await, []);
        // A new daemon sees it at once.
        daemon.restart().await;
        assert_eq!(daemon.cri().images().await, []);
        // Importing makes it from the blob that is here.
        daemon.import(busybox()).await;
        assert_eq!(std::fs::read(&layer).unwrap(), content);
        let cri = daemon.cri();
        assert_eq!(cri.images().await.len(), 1);
        let id = cri.run(&pod, script("one", FOREVER)).await;
        cri.stop(&id, 0).await.unwrap();
        cri.remove(&id).await.unwrap();
    }
    daemon.leave_nothing().await;
}
