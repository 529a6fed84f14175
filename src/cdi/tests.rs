use std::os::unix::fs::symlink;

use kina_model::{MountSource, Propagation};
use kina_node::{LocalNode, LocalNodeConfig};

use super::*;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["low", "high"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self { directory }
    }

    fn write(&self, name: &str, devices: &serde_json::Value, common: &serde_json::Value) {
        let spec = serde_json::json!({
            "cdiVersion": "1.0.0", "kind": "v/c", "devices": devices, "containerEdits": common,
        });
        std::fs::write(self.directory.path().join(name), spec.to_string()).unwrap();
    }

    async fn ask(&self, devices: &[&str]) -> Result<Edits, String> {
        self.ask_as(devices, false).await
    }

    async fn ask_as(&self, devices: &[&str], as_they_are: bool) -> Result<Edits, String> {
        let node = LocalNode::new(LocalNodeConfig::new(self.directory.path().join("run")));
        let directories = ["low", "high", "absent"].map(|name| self.directory.path().join(name));
        let devices: Vec<String> = devices.iter().map(|device| (*device).to_owned()).collect();
        edits(&node, &directories, &devices, as_they_are).await.map_err(|error| error.to_string())
    }
}

fn device(name: &str, edits: serde_json::Value) -> serde_json::Value {
    serde_json::json!([{ "name": name, "containerEdits": edits }])
}

fn env(text: &str) -> serde_json::Value {
    serde_json::json!({ "env": [text] })
}

#[tokio::test]
async fn devices_are_found_by_name() {
    let place = Place::new();
    assert_eq!(place.ask(&[]).await.unwrap(), Edits::default());
    place.write("low/a.json", &device("one", env("ONE=low")), &env("ALL=low"));
    place.write("low/b.json", &device("two", env("TWO=low")), &env("ALL=b"));
    place.write("high/a.json", &device("one", env("ONE=high")), &env("ALL=high"));
    place.write("high/ignored.txt", &device("three", env("THREE=3")), &env("ALL=3"));
    // The later directory counts; what a file says for all its devices is said once.
    let edits = place.ask(&["v/c=one", "v/c=two", "v/c=one"]).await.unwrap();
    assert_eq!(edits.env, ["ALL=high", "ONE=high", "ALL=b", "TWO=low", "ONE=high"]);
    for (asked, part) in [
        ("v/c=three", "config.CDI_devices[0].name: v/c=three: no CDI specification in "),
        ("v/d=one", "v/d=one"),
        ("one", "config.CDI_devices[0].name: \"one\""),
    ] {
        let error = place.ask(&[asked]).await.unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    place.write("high/c.json", &device("one", env("ONE=again")), &env("ALL=c"));
    let error = place.ask(&["v/c=two", "v/c=one"]).await.unwrap_err();
    assert!(
        error.starts_with("config.CDI_devices[1].name: v/c=one: both ") && error.contains("c.json"),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_that_is_not_understood_takes_no_other_along() {
    let place = Place::new();
    place.write("low/a.json", &device("one", env("ONE=1")), &env("ALL=1"));
    std::fs::write(place.directory.path().join("high/broken.yaml"), "kind: [").unwrap();
    symlink("/no/such/file", place.directory.path().join("high/dangling.json")).unwrap();
    std::fs::write(place.directory.path().join("high/large.json"), vec![b' '; FILE_LIMIT + 1]).unwrap();
    assert_eq!(place.ask(&["v/c=one"]).await.unwrap().env, ["ALL=1", "ONE=1"]);
    let error = place.ask(&["v/c=two"]).await.unwrap_err();
    for part in ["not understood: ", "broken.yaml", "dangling.json", "large.json"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn what_devices_change() {
    let place = Place::new();
    let data = place.directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let edits = serde_json::json!({
        "deviceNodes": [
            { "path": "/dev/zero" },
            { "path": "/dev/x", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3,
              "permissions": "rw", "fileMode": 0o600, "uid": 5, "gid": 6 },
            { "path": "/dev/b", "type": "b", "major": 7, "minor": 0 },
        ],
        "mounts": [{
            "hostPath": data, "containerPath": "/data", "type": "bind",
            "options": ["ro", "rbind", "nosuid", "rslave"],
        }],
        "additionalGids": [0, 44],
    });
    place.write("low/a.json", &device("one", edits), &serde_json::json!({}));
    let edits = place.ask(&["v/c=one"]).await.unwrap();
    let [zero, x, b] = &edits.devices[..] else { panic!("{edits:?}") };
    assert_eq!((zero.host_path.as_path(), zero.permissions.as_str()), (Path::new("/dev/zero"), "rwm"));
    assert_eq!((zero.mode, zero.uid, zero.gid), (None, None, None));
    assert_eq!(zero.kind, DeviceKind::OfNode { block: None });
    assert_eq!((x.host_path.as_path(), x.permissions.as_str()), (Path::new("/dev/null"), "rw"));
    assert_eq!(x.kind, DeviceKind::Number { block: false, major: 1, minor: 3 });
    assert_eq!((x.mode, x.uid, x.gid), (Some(0o600), Some(5), Some(6)));
    assert_eq!(b.kind, DeviceKind::Number { block: true, major: 7, minor: 0 });
    let [mount] = &edits.mounts[..] else { panic!("{edits:?}") };
    assert_eq!(mount.source, MountSource::HostPath(data));
    assert!(mount.readonly && mount.propagation == Propagation::HostToContainer);
    assert_eq!(mount.options, ["nosuid"]);
    assert_eq!(edits.groups, [44]);
}

#[tokio::test]
async fn what_cannot_be_had_is_refused_by_the_devices_name() {
    let place = Place::new();
    let hook = serde_json::json!({ "hooks": [{ "hookName": "createContainer", "path": "/bin/ldconfig", "args": [] }] });
    let mount = |options: &[&str], kind: &str, to: &str| {
        serde_json::json!({ "mounts": [
            { "hostPath": "/etc", "containerPath": to, "options": options, "type": kind },
        ]})
    };
    let node = |node: serde_json::Value| serde_json::json!({ "deviceNodes": [node] });
    let cases = [
        (hook, "createContainer (/bin/ldconfig)"),
        (serde_json::json!({ "intelRdt": { "closID": "x" } }), "intelRdt"),
        (env("NOTHING"), "NAME=value"),
        (mount(&["remount"], "", "/x"), "remount"),
        (mount(&[], "tmpfs", "/x"), "tmpfs"),
        (mount(&[], "", "/x/../y"), "mounts.containerPath"),
        (mount(&[], "", "/"), "root itself"),
        (node(serde_json::json!({ "path": "dev/x" })), "deviceNodes.path"),
        (node(serde_json::json!({ "path": "/dev/x", "type": "p" })), "pipe"),
        (node(serde_json::json!({ "path": "/dev/x", "major": 1 })), "no type"),
        (node(serde_json::json!({ "path": "/dev/x", "permissions": "rx" })), "\"rx\""),
        (node(serde_json::json!({ "path": "/dev/x", "type": "c", "major": -1 })), "-1:0"),
        (node(serde_json::json!({ "path": "/dev/no-such-device" })), "/dev/no-such-device"),
        (node(serde_json::json!({ "path": "/dev/null", "type": "b" })), "other type"),
        (node(serde_json::json!({ "path": "/etc/passwd" })), "no device"),
        (
            serde_json::json!({ "mounts": [{ "hostPath": "/no/such", "containerPath": "/x" }] }),
            "mount /no/such",
        ),
    ];
    for (edits, part) in cases {
        place.write("low/a.json", &device("one", edits), &serde_json::json!({}));
        let error = place.ask(&["v/c=one"]).await.unwrap_err();
        assert!(error.starts_with("config.CDI_devices[0].name: v/c=one: "), "{error}");
        assert!(error.contains(part) && error.contains("a.json"), "{part}: {error}");
    }
}

#[tokio::test]
async fn a_described_device_is_refused_where_none_can_be_made() {
    let place = Place::new();
    for described in [
        serde_json::json!({ "type": "c", "major": 1, "minor": 3 }),
        serde_json::json!({ "fileMode": 0o666 }),
        serde_json::json!({ "uid": 0 }),
        serde_json::json!({ "gid": 0 }),
        serde_json::json!({}),
    ] {
        let mut node = serde_json::json!({ "path": "/dev/null", "type": "c", "permissions": "rw" });
        node.as_object_mut().unwrap().extend(described.as_object().unwrap().clone());
        let edits = serde_json::json!({ "deviceNodes": [node] });
        place.write("low/a.json", &device("one", edits), &serde_json::json!({}));
        place.ask_as(&["v/c=one"], false).await.unwrap();
        let asked = place.ask_as(&["v/c=one"], true).await;
        let Err(error) = asked else {
            assert_eq!(described, serde_json::json!({}));
            continue;
        };
        assert!(error.starts_with("config.CDI_devices[0].name: v/c=one: "), "{error}");
        for part in ["a.json: device node /dev/null: ", "hostUsers"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
