//! Images that containers mount.

use kina::cri::v1;
use kina_testkit::images::{File, archive};
use tonic::Code;

use super::{FOREVER, files, spec};
use crate::harness::machine::{self, also_in_apple, also_in_vm};
use crate::harness::{Daemon, IMAGE, script, wait_until};

const FILES: &str = "localhost/files:1";

/// Two layers: the upper one changes a file, hides one and adds one.
fn files_image() -> Vec<u8> {
    let file = |path, content| File { path, mode: 0o644, content };
    let lower = [
        file("data/changed", b"old\n"),
        file("data/hidden", b"hidden\n"),
        File { path: "bin/hello", mode: 0o755, content: b"#!/bin/sh\necho hello\n" },
    ];
    let upper =
        [file("data/changed", b"new\n"), file("data/.wh.hidden", b""), file("data/v1/added", b"added\n")];
    archive(FILES, &[&lower, &upper], serde_json::json!({}))
}

fn mount(image: &str, target: &str, sub_path: &str) -> v1::Mount {
    v1::Mount {
        container_path: target.to_owned(),
        image: spec(image),
        image_sub_path: sub_path.to_owned(),
        readonly: true,
        ..v1::Mount::default()
    }
}

fn with(name: &str, mounts: Vec<v1::Mount>) -> v1::ContainerConfig {
    v1::ContainerConfig { mounts, ..script(name, FOREVER) }
}

#[tokio::test]
async fn files_of_images_and_parts_of_them() {
    let mut daemon = Daemon::start().await;
    daemon.import(&files_image()).await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let mounts = vec![
        mount(FILES, "/files", ""),
        mount(FILES, "/mnt/part", "data/v1/"),
        mount(FILES, "/etc/changed", "data/changed"),
        mount(IMAGE, "/box", ""),
    ];
    let one = cri.run(&pod, with("one", mounts.clone())).await;
    let seen = "cd /files && cat data/changed data/v1/added /mnt/part/added /etc/changed; \
                ls data; bin/hello; /box/bin/busybox echo of the box";
    assert_eq!(cri.sh(&one, seen).await, "new\nadded\nadded\nnew\nchanged\nv1\nhello\nof the box\n");
    for path in ["/files/x", "/files/data/changed", "/mnt/part/x", "/etc/changed", "/box/x"] {
        cri.sh(&one, &format!("! echo x > {path}; ! mount -o remount,rw {path} 2>/dev/null")).await;
    }

    let shown = cri.status(&one).await.unwrap().mounts;
    for (asked, shown) in mounts.into_iter().zip(shown) {
        let mut expected = asked.clone();
        let image = expected.image.as_mut().unwrap();
        image.image_ref = cri.image(&image.image).await.unwrap().id;
        assert_eq!(shown, expected);
    }
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn what_cannot_be_mounted_leaves_nothing() {
    let mut daemon = Daemon::start().await;
    daemon.import(&files_image()).await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let writable = v1::Mount { readonly: false, ..mount(FILES, "/files", "") };
    let cases = [
        (mount("localhost/absent:1", "/files", ""), Code::NotFound, "localhost/absent:1"),
        (
            mount(FILES, "/files", "data/no"),
            Code::InvalidArgument,
            "sub_path: \"data/no\" is not in the image",
        ),
        (mount(FILES, "/files", "../etc"), Code::InvalidArgument, "config.mounts[0].image_sub_path"),
        (writable, Code::InvalidArgument, "config.mounts[0].readonly"),
    ];
    for (mount, code, text) in cases {
        let error = cri.create(&pod, with("one", vec![mount])).await.unwrap_err();
        assert!(error.code() == code && error.message().contains(text), "{error}");
        // The kubelet's word for an image that cannot be had, which it counts.
        let of_image = !text.starts_with("config.");
        assert_eq!(error.message().starts_with("ImageVolumeMountFailed: "), of_image, "{error}");
    }
    assert_eq!(cri.containers(None).await, []);
    // The name is free.
    let one = cri.run(&pod, with("one", vec![mount(FILES, "/files", "data")])).await;
    assert_eq!(cri.sh(&one, "cat /files/changed").await, "new\n");
    daemon.leave_nothing().await;
}

/// Layers that the node has mounted for a daemon.
fn mounted(daemon: &Daemon) -> usize {
    let below = format!("{}/", daemon.place.config().run.join("layers").display());
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(&below)).count()
}

/// An image is removed while a container mounts it: its files stay for that one,
/// also under a new daemon, and go with it.
#[tokio::test]
async fn a_removed_image_stays_for_who_mounts_it() {
    let mut daemon = Daemon::start().await;
    let before = files(&daemon);
    daemon.import(&files_image()).await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, with("one", vec![mount(FILES, "/files", "data")])).await;
    let (all, layers) = (files(&daemon), mounted(&daemon));
    assert!(all.len() > before.len());
    assert_eq!(layers, if machine::is_vm() { 0 } else { 3 });
    let status = cri.status(&one).await.unwrap();
    cri.remove_image(FILES).await;
    daemon.restart().await;
    let cri = daemon.cri();
    assert_eq!((files(&daemon).len(), mounted(&daemon)), (all.len(), layers));
    assert_eq!(cri.sh(&one, "cat /files/changed").await, "new\n");
    assert_eq!(cri.status(&one).await.unwrap().mounts, status.mounts);
    let error = cri.create(&pod, with("two", vec![mount(FILES, "/files", "")])).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    cri.stop(&one, 0).await.unwrap();
    assert_eq!(files(&daemon).len(), all.len());
    cri.remove(&one).await.unwrap();
    wait_until("the image's files to go", async || files(&daemon).len() == before.len()).await;
    wait_until("its layers to be unmounted", async || mounted(&daemon) == 0).await;
    daemon.leave_nothing().await;
}

also_in_vm! {
    files_of_images_and_parts_of_them,
    what_cannot_be_mounted_leaves_nothing,
    a_removed_image_stays_for_who_mounts_it,
}

also_in_apple! {
    files_of_images_and_parts_of_them,
    what_cannot_be_mounted_leaves_nothing,
    a_removed_image_stays_for_who_mounts_it,
}
