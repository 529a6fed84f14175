//! The worst cases within the bounds, in a process of its own whose peak of
//! resident memory is read at its end.

use std::process::Stdio;
use std::time::Duration;

use kina_image::Images;
use serde_json::json;

use super::tar::Raw;
use crate::fixtures::{TestImage, TestLayer, descriptor, gzip};
use crate::registry::{Registry, Reply, Step, blob_path, config};

const ADDRESS: &str = "KINA_TEST_MEMORY_REGISTRY";
const MIB: u64 = 1 << 20;
/// The test binary with its runtime and TLS roots, twice over, and buffers: no
/// input may add more to it than this, but for what [`ENTRY`] says.
const BOUND: u64 = 96 * MIB;
/// What an entry of a layer may cost, with its name.
const ENTRY: u64 = 512;

/// Pulls what the registry at [`ADDRESS`] has, and prints the peak.
#[tokio::test]
#[ignore = "the other tests run it, each in a process of its own"]
async fn pull() {
    let address = std::env::var(ADDRESS).unwrap();
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path());
    config.plain_http = vec![address.clone()];
    let store = Images::open(config).await.unwrap();
    let reference = format!("{address}/app:v1").parse().unwrap();
    let outcome = match store.pull(&reference, None, None).await {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.to_string(),
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("peak:{}:{outcome}", peak.trim().trim_end_matches(" kB"));
}

/// The peak in bytes, and what came of the pull.
async fn peak(registry: &Registry) -> (u64, String) {
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hostile::memory::pull", "--ignored", "--nocapture"])
        .env(ADDRESS, &registry.address)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(90), child).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().find_map(|line| line.split_once("peak:")?.1.split_once(':'));
    let (peak, outcome) =
        found.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (peak.parse::<u64>().unwrap() * 1024, outcome.to_owned())
}

async fn stays_flat(registry: &Registry, bound: u64, expected: &str) {
    let (peak, outcome) = peak(registry).await;
    assert!(outcome.contains(expected), "{outcome}");
    assert!(peak <= bound, "a peak of {} MiB, {} MiB are allowed", peak / MIB, bound / MIB);
}

fn image_of(packed: Vec<u8>, archive: Vec<u8>) -> TestImage {
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    TestImage::new(vec![TestLayer { archive, packed, media_type }])
}

#[tokio::test]
async fn a_bomb_and_an_endless_layer() {
    let registry = Registry::start().await;
    // Taken: it is within the default bounds.
    let archive = Raw::default().file("zeros", &vec![0; 128 << 20]).end();
    registry.serve_image("app", "v1", &image_of(gzip(&archive), archive));
    stays_flat(&registry, BOUND, "ok").await;

    let image = image_of(b"x".to_vec(), Vec::new())
        .with_manifest(|manifest| manifest["layers"][0]["size"] = json!(24 * MIB));
    registry.reset();
    registry.serve_image("app", "v1", &image);
    let mut chunk = b"10000\r\n".to_vec();
    chunk.resize(chunk.len() + 0x10000, b'x');
    chunk.extend(b"\r\n");
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let endless = Reply::raw([Step::Send(head), Step::Forever(chunk, Duration::ZERO)]);
    registry.route(&blob_path("app", &image.blobs[1]), endless);
    stays_flat(&registry, BOUND, "expected 25165824 bytes").await;
}

#[tokio::test]
async fn documents_as_large_as_they_may_be() {
    let registry = Registry::start().await;
    let tag = "/v2/app/manifests/v1";
    let most = |unit: &str| unit.repeat((4 << 20) / unit.len() - 10);
    let entries = format!(
        "{{\"manifests\":[{}{{\"digest\":\"\",\"size\":0}}]}}",
        most("{\"digest\":\"\",\"size\":0},")
    );
    registry.route(tag, Reply::ok(entries));
    stays_flat(&registry, BOUND, "unsupported digest").await;
    registry.route(tag, Reply::ok(format!("{{\"x\":[{}0]}}", most("[],"))));
    stays_flat(&registry, BOUND, "neither manifests nor a configuration").await;
    // A configuration of so many labels.
    let labels: Vec<String> = (0..150_000).map(|number| format!("\"label-{number:06}\":\"value\"")).collect();
    let bytes = format!("{{\"config\":{{\"Labels\":{{{}}}}}}}", labels.join(",")).into_bytes();
    let mut image = image_of(Vec::new(), Vec::new());
    image.blobs[0] = bytes.clone();
    let image = image.with_manifest(|manifest| {
        manifest["layers"] = json!([]);
        manifest["config"] = descriptor("application/vnd.oci.image.config.v1+json", &bytes);
    });
    registry.serve_image("app", "v1", &image);
    stays_flat(&registry, BOUND, "ok").await;
}

#[tokio::test]
async fn entries_cost_what_is_said() {
    const ENTRIES: u64 = 60_000;
    let registry = Registry::start().await;
    let mut header = ::tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_entry_type(::tar::EntryType::Directory);
    header.set_size(0);
    let mut archive = Vec::new();
    for number in 0..ENTRIES {
        // Directories in directories: what costs most.
        let path = format!("{}/{}/{}", number / 2000, number / 40 % 50, number % 40);
        header.set_path(&path).unwrap();
        header.set_cksum();
        archive.extend(header.as_bytes());
    }
    archive.resize(archive.len() + 1024, 0);
    registry.serve_image("app", "v1", &image_of(gzip(&archive), archive));
    stays_flat(&registry, BOUND + ENTRIES * ENTRY, "ok").await;
}
