//! Images and volumes.

use super::place::{Place, text};

#[test]
fn images_are_listed_tagged_and_deleted() {
    let place = Place::new();
    assert_eq!(place.ok(&["image", "list", "-q"]), "busybox:1\n");
    assert_eq!(place.ok(&["image", "tag", "busybox:1", "other/name:2"]), "other/name:2\n");
    let image = place.json(&["image", "inspect", "other/name:2"]);
    assert_eq!(image[0]["configuration"]["name"], "docker.io/other/name:2");
    assert_eq!(place.ok(&["image", "rm", "busybox:1"]), "docker.io/library/busybox:1\n");
    assert_eq!(place.fails(&["image", "inspect", "busybox:1"]).1, "Error: image not found: busybox:1");
    assert_eq!(
        place.fails(&["image", "delete", "busybox:1"]).1,
        "Error: failed to delete one or more images: [\"busybox:1\"]"
    );
    place.ok(&["image", "delete", "-f", "busybox:1"]);
    let nowhere = place.output(&["image", "load", "-i", &text(&place.path("nowhere"))]);
    assert_eq!((nowhere.status.code(), nowhere.stderr.len()), (Some(1), 0), "it says nothing");
}

#[test]
fn a_volume_outlives_its_containers() {
    let place = Place::new();
    assert_eq!(place.ok(&["volume", "create", "data"]), "data\n");
    place.ok(&["run", "--rm", "-v", "data:/d", "busybox:1", "sh", "-c", "echo kept > /d/f"]);
    place.run("web", &["-v", "data:/d:ro"], "cat /d/f; touch /d/g; sleep 1000");
    assert!(place.fails(&["volume", "delete", "data"]).1.contains("delete failed"));
    let mount = place.json(&["inspect", "web"])[0]["configuration"]["mounts"][0].clone();
    assert_eq!(mount["type"]["volume"]["name"], "data");
    super::place::wait_until("a log", || place.ok(&["logs", "web"]).contains("kept"));
    place.ok(&["delete", "-f", "web"]);
    assert_eq!(place.ok(&["volume", "delete", "data"]), "data\n");
}
