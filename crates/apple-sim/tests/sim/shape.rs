//! The output of each release, against the fields that the Swift sources declare
//! (`golden/fields.tsv`, made by `golden/fields.sh`).

use std::collections::BTreeMap;

use serde_json::Value;

use super::place::{Place, text};

const RELEASES: [&str; 6] = ["0.12.3", "1.0.0", "1.1.0", "1.2.0", "1.2.1", "1.2.2"];

/// What a field of a type holds, where that has fields too.
const INSIDE: &[(&str, &str, &str)] = &[
    ("Container", "configuration", "Configuration"),
    ("Container", "networks", "Attachment"),
    ("ContainerStatus", "networks", "Attachment"),
    ("Configuration", "image", "ImageDescription"),
    ("Configuration", "mounts", "Filesystem"),
    ("Configuration", "publishedPorts", "PublishPort"),
    ("Configuration", "publishedSockets", "PublishSocket"),
    ("Configuration", "networks", "AttachmentConfiguration"),
    ("Configuration", "dns", "Dns"),
    ("Configuration", "initProcess", "Process"),
    ("Configuration", "resources", "Resources"),
    ("Process", "rlimits", "Rlimit"),
    ("AttachmentConfiguration", "options", "AttachmentOptions"),
    ("Network", "config", "NetworkConfiguration"),
    ("Network", "configuration", "NetworkConfiguration"),
    ("Network", "status", "NetworkStatus"),
    ("Image", "configuration", "ImageConfiguration"),
    ("Image", "variants", "Variant"),
    ("VolumeResource", "configuration", "Volume"),
];

/// By release and type, the fields and whether they may be missing.
pub(super) type Table = BTreeMap<(&'static str, &'static str), BTreeMap<&'static str, bool>>;

pub(super) fn table() -> Table {
    let mut table = Table::new();
    for line in include_str!("../../golden/fields.tsv").lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        let [release, kind, field, optional, _] = columns[..] else { panic!("{line}") };
        table.entry((release, kind)).or_default().insert(field, optional == "?");
    }
    table
}

/// Holds a value, or each of a list, to the fields of a type.
pub(super) fn check(table: &Table, release: &'static str, kind: &'static str, value: &Value) {
    if let Value::Array(items) = value {
        return items.iter().for_each(|item| check(table, release, kind, item));
    }
    let declared = table.get(&(release, kind)).unwrap_or_else(|| panic!("{release} has no {kind}"));
    let fields = value.as_object().unwrap_or_else(|| panic!("{release} {kind}: {value}"));
    for (field, inner) in fields {
        assert!(declared.contains_key(field.as_str()), "{release} {kind} has no {field}");
        let inside = INSIDE.iter().find(|(of, name, _)| *of == kind && name == field);
        if let Some((_, _, inside)) = inside {
            check(table, release, inside, inner);
        } else if kind == "Container" && field == "status" && inner.is_object() {
            check(table, release, "ContainerStatus", inner);
        }
    }
    for (field, optional) in declared {
        assert!(*optional || fields.contains_key(*field), "{release} {kind} lacks {field}");
    }
}

#[test]
fn every_release_has_the_fields_of_its_sources() {
    let place = Place::new();
    place.set("patience-percent", "1");
    let share = place.path("share");
    std::fs::create_dir(&share).unwrap();
    let socket = format!("{}:/a.sock", text(&place.path("s")));
    place.ok(&["volume", "create", "data"]);
    place.ok(&["network", "create", "--subnet", "10.7.0.0/24", "back"]);
    place.run(
        "web",
        &[
            "--publish-socket",
            &socket,
            "-v",
            &format!("{}:/in", text(&share)),
            "-v",
            "data:/d",
            "--tmpfs",
            "/t",
            "-l",
            "creationDate=1",
            "--ulimit",
            "nofile=100",
            "-p",
            "127.0.0.1:65001:80",
            "--network",
            "default,mac=f2:00:00:00:00:01",
            "--network",
            "back",
            "--masked-path",
            "NONE",
            "--shm-size",
            "1M",
            "-u",
            "root",
        ],
        "sleep 1000",
    );
    place.ok(&["create", "--name", "idle", "busybox:1"]);
    let table = table();
    for release in RELEASES {
        place.set("version", release);
        let old = release.starts_with('0');
        let look = |words: &[&str], kind: &'static str| {
            let value = place.json(words);
            check(&table, release, kind, &value);
            value
        };
        let listed = look(&["list", "-a", "--format", "json"], "Container");
        assert_eq!(look(&["inspect", "web", "idle"], "Container"), listed);
        assert_eq!(listed[1]["configuration"]["labels"]["creationDate"], "1", "labels are no dates");
        look(&["network", "list", "--format", "json"], "Network");
        look(&["network", "inspect", "back"], "Network");
        look(&["image", "list", "--format", "json"], if old { "ListedImage" } else { "Image" });
        look(&["image", "inspect", "busybox:1"], "Image");
        look(&["volume", "list", "--format", "json"], if old { "Volume" } else { "VolumeResource" });
        look(&["stats", "--format", "json"], "Stats");
        look(&["system", "status", "--format", "json"], "SystemStatus");
        look(&["system", "version", "--format", "json"], "Version");
    }
}

#[test]
fn older_releases_have_other_values() {
    let place = Place::new();
    place.run("web", &["--publish-socket", &format!("{}:/a.sock", text(&place.path("s")))], "sleep 1000");
    place.set("version", "0.12.3");
    let old = place.json(&["list", "--format", "json"]);
    assert_eq!(old[0]["status"], "running");
    assert_eq!(old[0]["networks"][0]["ipv4Address"], "192.168.64.2/24");
    assert!(old[0]["startedDate"].as_f64().unwrap() > 700_000_000.0);
    assert_eq!(old[0]["configuration"]["publishedSockets"][0]["containerPath"], "file:///a.sock");
    assert_eq!(place.ok(&["inspect", "nothing"]), "[]\n");
    assert_eq!(place.ok(&["network", "inspect", "nothing"]), "[]\n");
    let network = place.json(&["network", "list", "--format", "json"]);
    assert_eq!((&network[0]["state"], &network[0]["config"]["id"]), (&"running".into(), &"default".into()));
    place.set("version", "1.2.2");
    let new = place.ok(&["inspect", "web"]);
    assert!(new.contains("\"destination\"") || new.contains("\"containerPath\" : \"\\/a.sock\""), "{new}");
    let started = place.json(&["inspect", "web"])[0]["status"]["startedDate"].clone();
    let started = started.as_str().unwrap().to_owned();
    assert!(started.len() == 20 && started.ends_with('Z'), "{started}");
}
