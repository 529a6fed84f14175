//! The image calls.

use kina::cri::v1;
use kina::oci::{Entry, SmallImage};
use tonic::Code;

use crate::harness::{Daemon, IMAGE, script};

#[tokio::test]
async fn images_are_listed_used_and_removed() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let mut images = cri.client.images.clone();
    let spec = |image: &str| Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
    let listed = images.list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(listed.len(), 1);
    let id = listed[0].id.clone();
    assert_eq!(listed[0].repo_tags, [IMAGE]);
    assert!(listed[0].size > 1 << 20);
    let filter = |image| v1::ListImagesRequest { filter: Some(v1::ImageFilter { image: spec(image) }) };
    assert_eq!(images.list_images(filter(IMAGE)).await.unwrap().into_inner().images.len(), 1);
    assert_eq!(images.list_images(filter("localhost/other")).await.unwrap().into_inner().images.len(), 0);
    for name in [IMAGE, &id, id.trim_start_matches("sha256:"), &id.trim_start_matches("sha256:")[..12]] {
        let request = v1::ImageStatusRequest { image: spec(name), verbose: true };
        let status = images.image_status(request).await.unwrap().into_inner();
        assert_eq!(status.image.unwrap_or_else(|| panic!("{name}")).id, id);
        assert!(!status.info.is_empty());
    }
    let request = v1::ImageStatusRequest { image: spec("localhost/other:1"), verbose: false };
    assert!(images.image_status(request).await.unwrap().into_inner().image.is_none());
    let usage = images.image_fs_info(v1::ImageFsInfoRequest {}).await.unwrap().into_inner();
    let used = usage.image_filesystems[0].used_bytes.as_ref().unwrap().value;
    assert!(used > 1 << 20, "{used}");

    // A container keeps the files of an image that loses its name.
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", "sleep 1000")).await;
    let remove = || v1::RemoveImageRequest { image: spec(IMAGE) };
    images.remove_image(remove()).await.unwrap();
    images.remove_image(remove()).await.unwrap();
    assert_eq!(images.list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner().images, []);
    assert_eq!(cri.create(&pod, script("two", "true")).await.unwrap_err().code(), Code::NotFound);
    daemon.restart().await;
    let cri = daemon.cri();
    let images = cri.client.images.clone();
    assert!(cri.sh(&one, "wc -c < /bin/busybox").await.trim().parse::<u64>().unwrap() > 1 << 20);
    cri.remove(&one).await.unwrap();
    cri.stop_pod(&pod).await.unwrap();
    cri.remove_pod(&pod).await.unwrap();
    drop(images);

    // Another image in its place.
    let entries = [Entry::File { path: "only", mode: 0o644, content: b"x" }];
    let small = SmallImage::new(&entries, &serde_json::json!({})).unwrap();
    daemon.import(&small.archive("localhost/small:1").unwrap()).await;
    let mut images = daemon.cri().client.images;
    let listed = images.list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(listed.len(), 1);
    let missing = v1::PullImageRequest { image: spec("127.0.0.1:1/no/registry:1"), ..Default::default() };
    let error = images.pull_image(missing).await.unwrap_err();
    // The kubelet's word for it, which it looks for in errors without a code.
    assert_eq!(error.code(), Code::Unknown, "{error}");
    assert!(error.message().starts_with("RegistryUnavailable: cannot fetch 127.0.0.1:1/no/"), "{error}");
    let bad = v1::PullImageRequest { image: spec("Not A Reference"), ..Default::default() };
    assert_eq!(images.pull_image(bad).await.unwrap_err().code(), Code::InvalidArgument);
    drop((cri, images));
    daemon.leave_nothing().await;
}
