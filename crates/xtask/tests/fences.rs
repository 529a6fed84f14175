//! The fences between the crates: who may depend on whom, and what may be named
//! where. [`HOUSE`] is the rule; the tests hold the manifests and sources to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// One crate and what it is allowed.
struct Room {
    name: &'static str,
    /// The folder, from the root of the workspace.
    folder: &'static str,
    /// The crates of the workspace that it may depend on, build scripts included.
    uses: &'static [&'static str],
    /// Further allowances.
    may: &'static [May],
}

/// Something that is refused unless a room has it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum May {
    /// Speak gRPC: depend on tonic and prost.
    Grpc,
    /// Ask which operating system it is built for. (Tests may anywhere.)
    Platform,
    /// Contain unsafe code. (Tests may anywhere.)
    Unsafe,
    /// Use anyhow, whose errors nobody can match on: programs and tools only.
    Anyhow,
}

use May::{Anyhow, Grpc, Platform, Unsafe};

/// From the ground up: a room stands on rooms above it in this list only.
const HOUSE: &[Room] = &[
    // Useful by themselves, or the vocabulary of all others: they stand on nothing.
    Room { name: "kina-model", folder: "crates/model", uses: &[], may: &[] },
    Room { name: "kina-erofs", folder: "crates/erofs", uses: &[], may: &[] },
    Room { name: "kina-cgroup", folder: "crates/cgroup", uses: &[], may: &[Platform, Unsafe] },
    Room { name: "kina-confine", folder: "crates/confine", uses: &[], may: &[Platform] },
    Room { name: "kina-cni", folder: "crates/cni", uses: &[], may: &[] },
    Room { name: "kina-attachment", folder: "crates/attachment", uses: &[], may: &[Platform, Unsafe] },
    Room { name: "kina-log", folder: "crates/log", uses: &[], may: &[] },
    Room { name: "kina-spdy", folder: "crates/spdy", uses: &[], may: &[] },
    Room { name: "kina-store", folder: "crates/store", uses: &[], may: &[] },
    Room { name: "kina-fork", folder: "crates/fork", uses: &[], may: &[Platform, Unsafe] },
    Room { name: "kina-userns", folder: "crates/userns", uses: &["kina-fork"], may: &[Platform, Unsafe] },
    Room { name: "kina-vsock", folder: "crates/vsock", uses: &["kina-confine"], may: &[Platform] },
    Room { name: "kina-guest-api", folder: "crates/guest-api", uses: &["kina-model"], may: &[Grpc] },
    // One concern each.
    Room {
        name: "kina-launch",
        folder: "crates/launch",
        uses: &["kina-cgroup", "kina-fork", "kina-userns"],
        may: &[Platform, Unsafe],
    },
    Room { name: "kina-image", folder: "crates/image", uses: &["kina-erofs", "kina-model"], may: &[] },
    Room {
        name: "kina-node",
        folder: "crates/node",
        uses: &["kina-cgroup", "kina-fork", "kina-model", "kina-userns"],
        may: &[Platform, Unsafe],
    },
    Room { name: "kina-streaming", folder: "crates/streaming", uses: &["kina-spdy"], may: &[] },
    Room {
        name: "kina-machine",
        folder: "crates/machine",
        uses: &["kina-attachment", "kina-model"],
        may: &[],
    },
    Room {
        name: "kina-machine-host",
        folder: "crates/machine-host",
        uses: &["kina-machine", "kina-model", "kina-node"],
        may: &[Platform, Unsafe],
    },
    Room {
        name: "kina-machine-apple",
        folder: "crates/machine-apple",
        uses: &["kina-machine", "kina-model", "kina-node"],
        may: &[],
    },
    Room {
        name: "kina-machine-qemu",
        folder: "crates/machine-qemu",
        uses: &[
            "kina-attachment",
            "kina-cgroup",
            "kina-guest-api",
            "kina-machine",
            "kina-model",
            "kina-node",
            "kina-vsock",
        ],
        may: &[Platform, Unsafe],
    },
    // The program inside every machine. The daemon knows it by its protocol only.
    Room {
        name: "kina-guest",
        folder: "crates/guest",
        uses: &[
            "kina-attachment",
            "kina-cgroup",
            "kina-confine",
            "kina-guest-api",
            "kina-launch",
            "kina-log",
            "kina-userns",
        ],
        may: &[Grpc, Platform, Unsafe, Anyhow],
    },
    // The daemon. It starts no process in a namespace and touches no cgroup itself:
    // the guest and the node do.
    Room {
        name: "kina",
        folder: ".",
        uses: &[
            "kina-attachment",
            "kina-cni",
            "kina-guest-api",
            "kina-image",
            "kina-log",
            "kina-machine",
            "kina-machine-apple",
            "kina-machine-host",
            "kina-machine-qemu",
            "kina-model",
            "kina-node",
            "kina-spdy",
            "kina-store",
            "kina-streaming",
        ],
        may: &[Grpc, Anyhow],
    },
    // For development only. Any room may use the test kit in its tests.
    Room {
        name: TESTKIT,
        folder: "crates/testkit",
        uses: &[
            "kina",
            "kina-cgroup",
            "kina-erofs",
            "kina-guest-api",
            "kina-image",
            "kina-launch",
            "kina-log",
            "kina-machine",
            "kina-machine-host",
            "kina-machine-qemu",
            "kina-model",
            "kina-node",
            "kina-store",
            "kina-vsock",
        ],
        may: &[Grpc, Platform, Unsafe, Anyhow],
    },
    // Boots machines where Apple's program does, with the parts of the driver that boots
    // QEMU's, so that nothing is written twice.
    Room {
        name: "kina-apple-sim",
        folder: "crates/apple-sim",
        uses: &[
            "kina-attachment",
            "kina-cgroup",
            "kina-launch",
            "kina-machine-qemu",
            "kina-node",
            "kina-vsock",
        ],
        may: &[Platform],
    },
    Room {
        name: "kina-fuzz",
        folder: "crates/fuzz",
        uses: &["kina", "kina-erofs", "kina-image", "kina-spdy", "kina-streaming", "kina-vsock"],
        may: &[],
    },
    Room { name: "xtask", folder: "crates/xtask", uses: &[], may: &[Platform, Anyhow] },
];

const TESTKIT: &str = "kina-testkit";

/// Crates that speak gRPC, or generate code that does.
const GRPC: &[&str] = &["tonic", "tonic-prost", "tonic-prost-build", "prost", "prost-types"];

#[test]
fn every_crate_has_its_row_and_every_row_its_crate() {
    let members: BTreeSet<String> = members().into_keys().collect();
    let rows: BTreeSet<String> = HOUSE.iter().map(|room| room.name.to_owned()).collect();
    assert_eq!(members, rows);
    for room in HOUSE {
        let manifest = workspace().join(room.folder).join("Cargo.toml");
        assert!(manifest.exists(), "{} is not in {}", room.name, room.folder);
    }
}

#[test]
fn the_table_has_no_way_up() {
    let mut below = BTreeSet::new();
    for room in HOUSE {
        for used in room.uses {
            assert!(below.contains(used), "{} stands on {used}, which is not below it", room.name);
        }
        below.insert(room.name);
    }
}

#[test]
fn crates_depend_on_what_they_may() {
    assert_none(edge_breaches(&members()));
}

#[test]
fn an_edge_that_is_not_in_the_table_is_found() {
    let dependency = |name: &str, kind: Kind| Dependency { name: name.to_owned(), kind };
    let members = BTreeMap::from([
        ("kina-log".to_owned(), vec![dependency("kina-model", Kind::Normal), dependency(TESTKIT, Kind::Dev)]),
        (
            "kina-image".to_owned(),
            vec![
                dependency("kina-model", Kind::Normal),
                dependency("tonic", Kind::Normal),
                dependency("anyhow", Kind::Dev),
            ],
        ),
    ]);
    let breaches = edge_breaches(&members);
    assert_eq!(
        breaches,
        [
            "kina-image depends on tonic: it may not speak gRPC",
            "kina-log depends on kina-model, which its row does not list",
        ]
    );
}

#[test]
fn platforms_are_asked_for_where_they_differ() {
    let words = ["target_os", "target_family", "cfg(unix)", "cfg(windows)", "cfg!(unix)"];
    assert_none(mentions(Platform, &words));
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    assert_none(mentions(Unsafe, &["allow(unsafe_code", "expect(unsafe_code"]));
}

#[test]
fn the_lower_crates_know_no_cri() {
    // In two parts, or this file would mention it.
    let word = concat!("runtime", ".v1");
    let breaches = HOUSE
        .iter()
        .filter(|room| room.folder != ".")
        .flat_map(|room| lines_with(room, &EVERYWHERE, &[word]))
        .collect();
    assert_none(breaches);
}

#[test]
fn only_one_file_makes_a_grpc_status() {
    let home = Path::new("src/service/status.rs");
    let made = [
        "Status::new(",
        "Status::with_",
        "Status::cancelled(",
        "Status::unknown(",
        "Status::invalid_argument(",
        "Status::deadline_exceeded(",
        "Status::not_found(",
        "Status::already_exists(",
        "Status::permission_denied(",
        "Status::resource_exhausted(",
        "Status::failed_precondition(",
        "Status::aborted(",
        "Status::out_of_range(",
        "Status::unimplemented(",
        "Status::internal(",
        "Status::unavailable(",
        "Status::data_loss(",
        "Status::unauthenticated(",
    ];
    let daemon = HOUSE.iter().find(|room| room.name == "kina").expect("the daemon has a row");
    let breaches = lines_with(daemon, &PRODUCT, &made)
        .into_iter()
        .filter(|breach| !breach.starts_with(&home.display().to_string()))
        .collect();
    assert_none(breaches);
}

#[test]
fn every_crate_inherits_the_lints() {
    for room in HOUSE {
        let manifest = read(&workspace().join(room.folder).join("Cargo.toml"));
        let lints = manifest.split("\n[lints]\n").nth(1).unwrap_or_default();
        assert!(
            lints.starts_with("workspace = true"),
            "{}: no `[lints] workspace = true` in its manifest",
            room.name
        );
    }
}

/// A dependency of one crate, whatever platform it is for.
struct Dependency {
    name: String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Normal,
    Build,
    Dev,
}

/// The crates of the workspace with what they depend on, as cargo sees them.
fn members() -> BTreeMap<String, Vec<Dependency>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(workspace())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo speaks JSON");
    metadata["packages"]
        .as_array()
        .expect("a list of packages")
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"]
                .as_array()
                .expect("a list of dependencies")
                .iter()
                .map(|dependency| Dependency {
                    name: text(&dependency["name"]),
                    kind: match dependency["kind"].as_str() {
                        None => Kind::Normal,
                        Some("build") => Kind::Build,
                        Some(_) => Kind::Dev,
                    },
                })
                .collect();
            (text(&package["name"]), dependencies)
        })
        .collect()
}

/// What the manifests say and the table does not allow.
fn edge_breaches(members: &BTreeMap<String, Vec<Dependency>>) -> Vec<String> {
    let own: BTreeSet<&str> = HOUSE.iter().map(|room| room.name).collect();
    let mut breaches = Vec::new();
    for (member, dependencies) in members {
        let Some(room) = HOUSE.iter().find(|room| room.name == member) else {
            continue;
        };
        for Dependency { name, kind } in dependencies {
            let name = name.as_str();
            let for_tests = *kind == Kind::Dev;
            // Tests may use the test kit, and turn on features of their own crate.
            let free = for_tests && (name == TESTKIT || name == member);
            if own.contains(name) && !room.uses.contains(&name) && !free {
                breaches.push(format!("{member} depends on {name}, which its row does not list"));
            }
            if GRPC.contains(&name) && !room.may.contains(&Grpc) {
                breaches.push(format!("{member} depends on {name}: it may not speak gRPC"));
            }
            if name == "anyhow" && !for_tests && !room.may.contains(&Anyhow) {
                breaches.push(format!("{member} depends on anyhow: its errors must have names"));
            }
        }
    }
    breaches
}

/// Lines with one of `words` in the rooms that lack the allowance.
fn mentions(allowance: May, words: &[&str]) -> Vec<String> {
    HOUSE
        .iter()
        .filter(|room| !room.may.contains(&allowance) && room.name != "xtask")
        .flat_map(|room| lines_with(room, &PRODUCT, words))
        .collect()
}

/// What a room's product is made of.
const PRODUCT: [&str; 2] = ["src", "proto"];

/// That, and what tests it.
const EVERYWHERE: [&str; 4] = ["src", "proto", "tests", "benches"];

/// The lines of a room's manifest, build script and `parts` that hold one of `words`.
fn lines_with(room: &Room, parts: &[&str], words: &[&str]) -> Vec<String> {
    let folder = workspace().join(room.folder);
    let mut files = vec![folder.join("Cargo.toml"), folder.join("build.rs")];
    for part in parts {
        collect(&folder.join(part), &mut files);
    }
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.exists()) {
        let shown = file.strip_prefix(workspace()).unwrap_or(file);
        let shown = shown.strip_prefix(".").unwrap_or(shown).display();
        let text = read(file);
        // Unit tests stand at the end of a file and are not part of the product.
        let tests = text.find("\n#[cfg(test)]\nmod tests {").filter(|_| parts.len() == PRODUCT.len());
        for (number, line) in text[..tests.unwrap_or(text.len())].lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{shown}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    found
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|kind| kind == "rs" || kind == "proto") {
            files.push(path);
        }
    }
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("xtask lies two folders below the root")
        .to_path_buf()
}

#[track_caller]
fn assert_none(breaches: Vec<String>) {
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}
