//! Configurations: what is read, in which order, and what is refused.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::FakeHost;
use kina_cni::{ConfigProblem, Error, Network, SpecVersion, load_directory, load_file};
use serde_json::{Value, json};

const NET_D: &str = "/etc/cni/net.d";

fn list(name: &str, plugins: &[&str]) -> Value {
    let plugins: Vec<Value> = plugins.iter().map(|plugin| json!({"type": plugin})).collect();
    json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins})
}

fn write(host: &FakeHost, name: &str, content: &Value) {
    host.write(&format!("{NET_D}/{name}"), content.to_string());
}

fn types(network: &Network) -> Vec<&str> {
    network.plugins().iter().map(kina_cni::Plugin::plugin_type).collect()
}

#[tokio::test]
async fn files_are_read_in_the_order_of_their_bytes() {
    let host = FakeHost::new();
    write(&host, "9-last.conflist", &list("last", &["a"]));
    write(&host, "Z-upper.json", &json!({"cniVersion": "0.3.1", "name": "upper", "type": "b"}));
    write(&host, "a-lower.conf", &json!({"name": "lower", "type": "c"}));
    write(&host, "10-first.conflist", &list("first", &["d"]));
    write(&host, "05-other.conflist.bak", &list("backup", &["a"]));
    write(&host, ".10-hidden.conflist", &list("hidden", &["a"]));
    write(&host, "README", &json!("nothing"));
    let found = load_directory(&*host, Path::new(NET_D)).await.unwrap();
    let names: Vec<_> = found.files.iter().map(|file| file.network.as_ref().unwrap().name()).collect();
    assert_eq!(names, ["first", "last", "upper", "lower"]);
    assert_eq!(found.named("lower").unwrap().version(), SpecVersion::V0_1_0);
    assert_eq!(types(found.named("upper").unwrap()), ["b"]);
    assert!(load_directory(&*host, Path::new("/nowhere")).await.unwrap().files.is_empty());
}

#[tokio::test]
async fn a_broken_file_is_named_and_the_caller_chooses() {
    let host = FakeHost::new();
    host.write(&format!("{NET_D}/05-broken.conflist"), "{\"name\": ");
    write(&host, "10-good.conflist", &list("good", &["a"]));
    let found = load_directory(&*host, Path::new(NET_D)).await.unwrap();
    assert!(found.first().unwrap().network.is_err());
    assert_eq!(found.first_usable().unwrap().name(), "good");
    let (path, error) = found.broken().next().unwrap();
    assert_eq!(path, Path::new("/etc/cni/net.d/05-broken.conflist"));
    assert_eq!(error.to_string(), "network configuration /etc/cni/net.d/05-broken.conflist is not usable");
    assert!(matches!(error, Error::Config { problem: ConfigProblem::Syntax(_), .. }));
    assert_eq!(found.broken().count(), 1);
}

#[tokio::test]
async fn plugins_beside_the_file_belong_to_its_list() {
    let host = FakeHost::new();
    write(&host, "10-pods.conflist", &list("pods", &["main"]));
    write(&host, "pods/20-b.conf", &json!({"type": "b"}));
    write(&host, "pods/10-a.conf", &json!({"type": "a", "own": 1}));
    write(&host, "pods/30-c.conflist", &json!({"type": "c"}));
    let path = Path::new("/etc/cni/net.d/10-pods.conflist");
    let network = load_file(&*host, path).await.unwrap();
    assert_eq!(types(&network), ["main", "a", "b"]);
    // What is cached is complete, and is read back as it is.
    assert_eq!(Network::from_list(network.json()).unwrap().plugins(), network.plugins());

    let mut inlined = list("pods", &["main"]);
    inlined["loadOnlyInlinedPlugins"] = json!("True");
    write(&host, "10-pods.conflist", &inlined);
    let network = load_file(&*host, path).await.unwrap();
    assert_eq!(types(&network), ["main"]);
    assert_eq!(network.json(), inlined.to_string().as_bytes());

    write(&host, "10-pods.conflist", &json!({"cniVersion": "1.0.0", "name": "pods"}));
    assert_eq!(types(&load_file(&*host, path).await.unwrap()), ["a", "b"]);

    write(&host, "pods/10-a.conf", &json!({"name": "no type"}));
    let Err(Error::Config { problem: ConfigProblem::Sibling { path, problem }, .. }) =
        load_file(&*host, path).await
    else {
        panic!("it was taken")
    };
    assert_eq!(path, Path::new("/etc/cni/net.d/pods/10-a.conf"));
    assert!(matches!(*problem, ConfigProblem::Missing("type")));
}

#[test]
fn the_highest_version_is_taken() {
    let version = |version: Value, versions: Value| {
        let mut list = list("pods", &["a"]);
        for (key, value) in [("cniVersion", version), ("cniVersions", versions)] {
            list[key] = value;
        }
        list.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        Network::from_list(list.to_string().as_bytes()).map(|network| network.version())
    };
    use SpecVersion::{V0_1_0, V0_3_1, V0_4_0, V1_0_0, V1_1_0};
    assert_eq!(version(json!(null), json!(null)).unwrap(), V0_1_0);
    assert_eq!(version(json!(""), json!(null)).unwrap(), V0_1_0);
    assert_eq!(version(json!("0.3.1"), json!(null)).unwrap(), V0_3_1);
    assert_eq!(version(json!("1.0.0"), json!(["0.3.1", "0.4.0"])).unwrap(), V1_0_0);
    assert_eq!(version(json!("0.3.1"), json!(["0.4.0", "1.1.0", "1.0.0"])).unwrap(), V1_1_0);
    assert_eq!(version(json!(null), json!(["2.0.0", "0.4.0"])).unwrap(), V0_4_0);
    let refused = version(json!("1.2.0"), json!(["2.0.0"])).unwrap_err();
    assert_eq!(refused.to_string(), "it is for CNI 2.0.0, 1.2.0; the newest version known here is 1.1.0");
    assert!(matches!(version(json!(1), json!(null)), Err(ConfigProblem::WrongType { .. })));
    assert!(matches!(version(json!(null), json!([1])), Err(ConfigProblem::WrongType { .. })));
}

#[test]
fn what_is_wrong_is_said() {
    let refused = |list: Value| Network::from_list(list.to_string().as_bytes()).unwrap_err().to_string();
    let with = |key: &str, value: Value| {
        let mut list = list("pods", &["a"]);
        list[key] = value;
        refused(list)
    };
    assert_eq!(refused(json!([])), "it is not a JSON object");
    assert_eq!(refused(json!({"plugins": []})), "the key `name` is missing");
    assert_eq!(with("name", json!("../x")), "\"../x\" is no valid network name");
    assert_eq!(with("name", json!({})), "`name` must be a text");
    assert_eq!(with("disableCheck", json!("maybe")), "`disableCheck` must be true or false");
    assert_eq!(with("disableGC", json!(1)), "`disableGC` must be true or false");
    assert_eq!(with("plugins", json!({})), "`plugins` must be a list of objects");
    assert_eq!(with("plugins", json!(["a"])), "plugin 1 of its list is not usable");
    let no_plugins = "it has no plugins, and none are in the directory named like the network";
    assert_eq!(with("plugins", json!([])), no_plugins);
    assert_eq!(refused(json!({"name": "pods"})), no_plugins);
    assert_eq!(
        refused(json!({"name": "pods", "loadOnlyInlinedPlugins": true})),
        "`loadOnlyInlinedPlugins` is true, but there is no key `plugins`"
    );
    for plugin in [json!({"type": "../a"}), json!({"type": ".."}), json!({"capabilities": {"mac": 1}})] {
        assert_eq!(with("plugins", json!([{"type": "a"}, plugin])), "plugin 2 of its list is not usable");
    }
    let single = Network::from_single(list("pods", &["a"]).to_string().as_bytes()).unwrap_err();
    assert!(matches!(single, ConfigProblem::ListInSingleFile));
}

#[test]
fn booleans_may_be_texts() {
    let json = json!({
        "name": "pods", "disableCheck": "TRUE", "disableGC": "false",
        "plugins": [
            {"type": "a", "capabilities": {"mac": true, "ips": false, "dns": null}},
            {"type": "b", "capabilities": {"bandwidth": true}},
        ],
    });
    let network = Network::from_list(json.to_string().as_bytes()).unwrap();
    assert!(network.disable_check() && !network.disable_gc());
    assert_eq!(network.capabilities(), BTreeSet::from(["bandwidth", "mac"]));
}

#[test]
fn names_are_checked() {
    use kina_cni::{check_container_id, check_interface_name, check_network_name};
    for good in ["a", "0", "a.b_c-d", "A9"] {
        check_container_id(good).unwrap();
        check_network_name(good).unwrap();
    }
    for bad in ["", "-a", ".a", "_a", "a/b", "a b", "ä", "a\n", &"a".repeat(101)] {
        assert!(check_container_id(bad).is_err(), "{bad:?}");
        assert!(check_network_name(bad).is_err(), "{bad:?}");
    }
    for good in ["eth0", "a", "...", "abcdefghijklmno", "ä-0"] {
        check_interface_name(good).unwrap();
    }
    for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\u{a0}b", "abcdefghijklmnop"] {
        assert!(check_interface_name(bad).is_err(), "{bad:?}");
    }
}
