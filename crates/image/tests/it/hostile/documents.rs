//! Manifests, indexes and configurations.

use serde_json::{Value, json};

use super::{ACCEPTED, Case};
use crate::fixtures::{Packing, TestImage, TestLayer, descriptor, digest, small_image};
use crate::registry::{Manner, Registry, Reply, blob_path};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TAG: &str = "/v2/app/manifests/v1";

/// Serves these bytes at the tag.
fn document(registry: &Registry, bytes: impl Into<Vec<u8>>) {
    registry.route(TAG, Reply::ok(bytes));
}

/// The good image's manifest, edited, at the tag.
fn edited(registry: &Registry, good: &TestImage, edit: impl FnOnce(&mut Value)) {
    document(registry, good.clone().with_manifest(edit).manifest);
}

/// An index of these entries at the tag.
fn index(registry: &Registry, entries: Value) {
    document(registry, index_bytes(&entries));
}

fn index_bytes(entries: &Value) -> Vec<u8> {
    serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})).unwrap()
}

fn entry(image: &TestImage, architecture: &str) -> Value {
    let mut entry = descriptor(MANIFEST, &image.manifest);
    entry["platform"] = json!({"os": "linux", "architecture": architecture});
    entry
}

/// The good image with another configuration.
fn configured(good: &TestImage, edit: impl FnOnce(&mut Value)) -> TestImage {
    let mut config = good.config.clone();
    edit(&mut config);
    TestImage::with_config(good.layers.clone(), config)
}

fn with_layer_type(good: TestImage, media_type: &str) -> TestImage {
    good.with_manifest(|manifest| manifest["layers"][0]["mediaType"] = json!(media_type))
}

/// The good image with these bytes for a configuration, whatever they are.
fn with_config_bytes(mut good: TestImage, bytes: Vec<u8>) -> TestImage {
    good.blobs[0] = bytes.clone();
    good.with_manifest(|manifest| {
        manifest["config"] = descriptor("application/vnd.oci.image.config.v1+json", &bytes);
    })
}

fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    bytes
}

pub(crate) const CASES: &[Case] = &[
    // Digests.
    Case::registry(
        "a manifest other than its `Docker-Content-Digest`",
        "REGISTRY/app:v1: expected digest (other), content has (manifest)",
        |registry, good| {
            let wrong = digest(b"other").to_string();
            registry.route(TAG, Reply::ok(good.manifest.clone()).header("Docker-Content-Digest", wrong));
        },
    ),
    Case::registry("a `Docker-Content-Digest` that is none, which is ignored", ACCEPTED, |registry, good| {
        registry.route(TAG, Reply::ok(good.manifest.clone()).header("Docker-Content-Digest", "../../x"));
    }),
    Case::registry(
        "another manifest than the index names",
        "manifest (manifest) of REGISTRY/app:v1: expected digest (manifest), content has (other)",
        |registry, good| {
            index(registry, json!([entry(good, "amd64")]));
            let path = format!("/v2/app/manifests/{}", good.manifest_digest());
            registry.route(&path, Reply::ok(flipped(&good.manifest)));
        },
    ),
    Case::registry(
        "another configuration than the manifest names",
        "blob (config) of REGISTRY/app:v1: expected digest (config), content has (other)",
        |registry, good| {
            registry.route(&blob_path("app", &good.blobs[0]), Reply::ok(flipped(&good.blobs[0])));
        },
    ),
    Case::registry(
        "another layer than the manifest names",
        "layer (layer): expected digest (layer), content has (other)",
        |registry, good| {
            registry.route(&blob_path("app", &good.blobs[1]), Reply::ok(flipped(&good.blobs[1])));
        },
    ),
    Case::image(
        "a layer that unpacks to something else than its diff id",
        "layer (layer) of REGISTRY/app:v1: expected diff id (other), unpacks to (layer)",
        |good| configured(&good, |config| config["rootfs"]["diff_ids"] = json!([digest(b"other")])),
    )
    .keeps(),
    // Sizes.
    Case::image(
        "a layer longer than its descriptor says",
        "blob (layer) of REGISTRY/app:v1: expected 10 bytes, got 2048",
        |good| good.with_manifest(|manifest| manifest["layers"][0]["size"] = json!(10)),
    ),
    Case::image(
        "a layer shorter than its descriptor says",
        "blob (layer) of REGISTRY/app:v1: expected 100000 bytes, got 2048",
        |good| good.with_manifest(|manifest| manifest["layers"][0]["size"] = json!(100_000)),
    ),
    Case::registry(
        "a layer of unknown length, longer than its descriptor says",
        "layer (layer): expected 2048 bytes, got 2148",
        |registry, good| {
            let long = [&good.blobs[1][..], &[0; 100]].concat();
            registry.route(&blob_path("app", &good.blobs[1]), Reply::ok(long).manner(Manner::Chunked));
        },
    ),
    Case::registry(
        "a layer of unknown length, shorter than its descriptor says",
        "layer (layer): expected 2048 bytes, got 40",
        |registry, good| {
            let short = good.blobs[1][..40].to_vec();
            registry.route(&blob_path("app", &good.blobs[1]), Reply::ok(short).manner(Manner::Chunked));
        },
    ),
    Case::image(
        "a configuration longer than its descriptor says",
        "blob (config) of REGISTRY/app:v1: expected 10 bytes, got 391",
        |good| good.with_manifest(|manifest| manifest["config"]["size"] = json!(10)),
    ),
    Case::registry(
        "a manifest longer than the index says",
        "manifest (manifest) of REGISTRY/app:v1: expected 10 bytes, got 397",
        |registry, good| {
            let mut entry = entry(good, "amd64");
            entry["size"] = json!(10);
            index(registry, json!([entry]));
        },
    ),
    Case::image(
        "a layer of 1 EB",
        "layer (layer) of REGISTRY/app:v1: bytes exceed the limit of 4194304",
        |good| good.with_manifest(|manifest| manifest["layers"][0]["size"] = json!(1_u64 << 60)),
    ),
    Case::image(
        "a configuration larger than the limit",
        "blob (config) of REGISTRY/app:v1: bytes exceed the limit of 16384",
        |good| configured(&good, |config| config["padding"] = json!("x".repeat(20 << 10))),
    ),
    Case::registry(
        "a manifest of 5 MiB",
        "REGISTRY/app:v1: bytes exceed the limit of 4194304",
        |registry, _| document(registry, vec![b' '; 5 << 20]),
    ),
    // JSON.
    Case::registry(
        "a manifest that is no JSON",
        "REGISTRY/app:v1: malformed manifest: key must be a string at line 1 column N",
        |registry, _| document(registry, "{schemaVersion: 2}"),
    ),
    Case::registry(
        "an empty manifest",
        "REGISTRY/app:v1: malformed manifest: EOF while parsing a value at line 1 column N",
        |registry, _| document(registry, ""),
    ),
    Case::registry(
        "a manifest that ends in the middle",
        "REGISTRY/app:v1: malformed manifest: EOF while parsing a string at line 1 column N",
        |registry, good| {
            document(registry, &good.manifest[..good.manifest.len() / 2]);
        },
    ),
    Case::registry(
        "a manifest with something behind it",
        "REGISTRY/app:v1: malformed manifest: trailing characters at line 1 column N",
        |registry, good| {
            document(registry, [&good.manifest[..], b"{}"].concat());
        },
    ),
    Case::registry(
        "a manifest that is not UTF-8",
        "REGISTRY/app:v1: malformed manifest: invalid unicode code point at line 1 column N",
        |registry, _| {
            document(registry, &b"{\"schemaVersion\":2,\"mediaType\":\"\xff\xfe\"}"[..]);
        },
    ),
    Case::registry(
        "a manifest nested 100,000 deep",
        "REGISTRY/app:v1: malformed manifest: invalid type: sequence, expected a string at line 1 column N",
        |registry, _| {
            document(registry, format!("{{\"config\":{}", "[".repeat(100_000)));
        },
    ),
    Case::registry(
        "unknown fields nested 100,000 deep",
        "REGISTRY/app:v1: malformed manifest: EOF while parsing a value at line 1 column N",
        |registry, _| {
            document(registry, format!("{{\"x\":{}", "{\"x\":".repeat(100_000)));
        },
    ),
    Case::registry(
        "a manifest with two configurations",
        "REGISTRY/app:v1: malformed manifest: duplicate field `config` at line 1 column N",
        |registry, good| {
            let text = String::from_utf8(good.manifest.clone()).unwrap();
            let config = good.manifest_value["config"].to_string();
            document(registry, text.replacen('{', &format!("{{\"config\":{config},"), 1));
        },
    ),
    Case::registry(
        "a manifest that is null",
        "REGISTRY/app:v1: malformed manifest: invalid type: null, expected a manifest or an index at line 1 column N",
        |registry, _| document(registry, "null"),
    ),
    Case::registry(
        "a manifest that is a list",
        "REGISTRY/app:v1: invalid manifest: it has neither manifests nor a configuration",
        |registry, _| document(registry, "[]"),
    ),
    Case::registry(
        "a negative size",
        "REGISTRY/app:v1: malformed manifest: invalid value: integer `-1`, expected u64 at line 1 column N",
        |registry, good| {
            edited(registry, good, |manifest| manifest["layers"][0]["size"] = json!(-1));
        },
    ),
    Case::registry(
        "a size with a fraction",
        "REGISTRY/app:v1: malformed manifest: invalid type: floating point `1.5`, expected u64 at line 1 column N",
        |registry, good| {
            edited(registry, good, |manifest| manifest["layers"][0]["size"] = json!(1.5));
        },
    ),
    Case::registry(
        "a size beyond 64 bits",
        "REGISTRY/app:v1: malformed manifest: invalid type: floating point `1e+23`, expected u64 at line 1 column N",
        |registry, good| {
            let text = String::from_utf8(good.manifest.clone()).unwrap();
            document(registry, text.replace("\"size\":", "\"size\":99999999999999999999"));
        },
    ),
    Case::registry(
        "a digest that is a path",
        "REGISTRY/app:v1: malformed manifest: digest \"sha256:../../../etc/passwd\" is not sha256: and 64 lower-case hexadecimal characters at line 1 column N",
        |registry, good| {
            edited(registry, good, |manifest| {
                manifest["layers"][0]["digest"] = json!("sha256:../../../etc/passwd")
            });
        },
    ),
    Case::registry(
        "a digest in an unknown algorithm",
        "REGISTRY/app:v1: malformed manifest: digest \"md5:d41d8cd98f00b204e9800998ecf8427e\" is not sha256: and 64 lower-case hexadecimal characters at line 1 column N",
        |registry, good| {
            edited(registry, good, |manifest| {
                manifest["config"]["digest"] = json!("md5:d41d8cd98f00b204e9800998ecf8427e")
            });
        },
    ),
    Case::registry(
        "a media type of 1 MB",
        "REGISTRY/app:v1: unsupported media type \"xx[...]...\"",
        |registry, good| {
            edited(registry, good, |manifest| manifest["mediaType"] = json!("x".repeat(1 << 20)));
        },
    ),
    // Kinds.
    Case::registry(
        "a manifest of schema 1",
        "REGISTRY/app:v1: unsupported media type \"application/vnd.docker.distribution.manifest.v1+json\"",
        |registry, _| {
            document(registry, r#"{"schemaVersion":1,"name":"app","tag":"v1","fsLayers":[]}"#);
        },
    ),
    Case::registry(
        "a document that is both manifest and index",
        "REGISTRY/app:v1: invalid manifest: it is both an index and a manifest",
        |registry, good| {
            edited(registry, good, |manifest| manifest["manifests"] = json!([]));
        },
    ),
    Case::registry(
        "a manifest that calls itself an index",
        "REGISTRY/app:v1: unsupported media type \"application/vnd.oci.image.index.v1+json\"",
        |registry, good| {
            edited(registry, good, |manifest| manifest["mediaType"] = json!(INDEX));
        },
    ),
    Case::registry(
        "a manifest that the registry calls an index",
        "REGISTRY/app:v1: unsupported media type \"application/vnd.oci.image.index.v1+json\"",
        |registry, good| {
            registry.route(TAG, Reply::ok(good.manifest.clone()).header("Content-Type", INDEX));
        },
    ),
    Case::registry(
        "a manifest without a configuration",
        "REGISTRY/app:v1: invalid manifest: it has neither manifests nor a configuration",
        |registry, good| {
            edited(registry, good, |manifest| manifest["config"] = Value::Null);
        },
    ),
    Case::image(
        "a Helm chart",
        "REGISTRY/app:v1: unsupported media type \"application/vnd.cncf.helm.config.v1+json\"",
        |good| {
            good.with_manifest(|manifest| {
                manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")
            })
        },
    ),
    Case::image(
        "an artifact with an empty configuration",
        "REGISTRY/app:v1: unsupported media type \"application/vnd.oci.empty.v1+json\"",
        |good| {
            good.with_manifest(|manifest| {
                manifest["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json")
            })
        },
    ),
    Case::image(
        "a foreign layer",
        "layer (layer) is not distributable (media type \"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip\")",
        |good| with_layer_type(good, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
    ),
    Case::image(
        "a nondistributable layer",
        "layer (layer) is not distributable (media type \"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip\")",
        |good| with_layer_type(good, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
    ),
    Case::image(
        "an encrypted layer",
        "layer (layer): unsupported media type \"application/vnd.oci.image.layer.v1.tar+gzip+encrypted\"",
        |good| with_layer_type(good, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
    ),
    Case::image(
        "a layer of an unknown type",
        "layer (layer): unsupported media type \"application/x-rar\"",
        |good| with_layer_type(good, "application/x-rar"),
    ),
    Case::image("a layer without a type", "layer (layer): unsupported media type \"\"", |good| {
        with_layer_type(good, "")
    }),
    // Layers and diff ids.
    Case::image(
        "more layers than diff ids",
        "REGISTRY/app:v1: invalid manifest: 1 layers, but 0 diff ids in the configuration",
        |good| configured(&good, |config| config["rootfs"]["diff_ids"] = json!([])),
    ),
    Case::image(
        "fewer layers than diff ids",
        "REGISTRY/app:v1: invalid manifest: 0 layers, but 1 diff ids in the configuration",
        |good| good.with_manifest(|manifest| manifest["layers"] = json!([])),
    ),
    Case::image(
        "five layers where four are allowed",
        "REGISTRY/app:v1: layers exceed the limit of 4",
        |_| {
            let layer = |number: u8| TestLayer::new("f", &[number], Packing::Gzip);
            TestImage::new((0..5).map(layer).collect())
        },
    ),
    Case::image("no layers at all, as an image may have", ACCEPTED, |_| TestImage::new(Vec::new())),
    // Configurations.
    Case::image(
        "a configuration that is no JSON",
        "REGISTRY/app:v1: malformed image configuration: expected ident at line 1 column N",
        |good| with_config_bytes(good, b"no JSON".to_vec()),
    ),
    Case::image(
        "a configuration nested 5,000 deep",
        "REGISTRY/app:v1: malformed image configuration: EOF while parsing a value at line 1 column N",
        |good| with_config_bytes(good, "{\"x\":".repeat(3000).into_bytes()),
    ),
    Case::image(
        "a configuration whose environment is a number",
        "REGISTRY/app:v1: malformed image configuration: invalid type: integer `7`, expected a sequence at line 1 column N",
        |good| configured(&good, |config| config["config"]["Env"] = json!(7)),
    ),
    Case::image(
        "a diff id that is a path",
        "REGISTRY/app:v1: malformed image configuration: digest \"../../x\" is not sha256: and 64 lower-case hexadecimal characters at line 1 column N",
        |good| configured(&good, |config| config["rootfs"]["diff_ids"] = json!(["../../x"])),
    ),
    Case::image(
        "an image for Windows",
        "REGISTRY/app:v1 has no image for linux/amd64 (it has: windows/amd64)",
        |good| configured(&good, |config| config["os"] = json!("windows")),
    ),
    // Indexes.
    Case::registry(
        "an index that lies about the platform",
        "REGISTRY/app:v1 has no image for linux/amd64 (it has: linux/amd64, linux/arm64 by its configuration)",
        |registry, _| {
            let arm = TestImage::for_architecture(small_image("arm").layers, "arm64");
            registry.serve_image("app", "arm", &arm);
            index(registry, json!([entry(&arm, "amd64")]));
        },
    ),
    Case::registry(
        "an index without entries",
        "REGISTRY/app:v1 has no image for linux/amd64 (it has: none)",
        |registry, _| index(registry, json!([])),
    ),
    Case::registry(
        "an index for other platforms",
        "REGISTRY/app:v1 has no image for linux/amd64 (it has: linux/arm64, linux/s390x)",
        |registry, good| {
            index(registry, json!([entry(good, "arm64"), entry(good, "s390x")]));
        },
    ),
    Case::registry(
        "an index whose manifest is missing",
        "manifest (other) of REGISTRY/app:v1 not found at http://REGISTRY",
        |registry, _| {
            index(registry, json!([entry(&small_image("missing"), "amd64")]));
        },
    ),
    Case::registry(
        "an index whose digest is in an unknown algorithm",
        "REGISTRY/app:v1: invalid manifest: unsupported digest \"sha512:00\"",
        |registry, good| {
            let mut entry = entry(good, "amd64");
            entry["digest"] = json!("sha512:00");
            index(registry, json!([entry]));
        },
    ),
    Case::registry(
        "indexes nested seven deep",
        "REGISTRY/app:v1: invalid manifest: indexes are nested deeper than 3",
        |registry, _| {
            let mut inner = index_bytes(&json!([]));
            for _ in 0..6 {
                registry.route(&format!("/v2/app/manifests/{}", digest(&inner)), Reply::ok(inner.clone()));
                inner = index_bytes(&json!([descriptor(INDEX, &inner)]));
            }
            document(registry, inner);
        },
    ),
    Case::registry(
        "an index that is served for every digest it names",
        "manifest (other) of REGISTRY/app:v1: expected 77 bytes, got 236",
        |registry, _| {
            let inner = digest(b"never made");
            let bytes = index_bytes(&json!([{"mediaType": INDEX, "digest": inner, "size": 77}]));
            registry.route(&format!("/v2/app/manifests/{inner}"), Reply::ok(bytes.clone()));
            document(registry, bytes);
        },
    ),
    Case::registry(
        "an index of 10,000 entries, none of them there",
        "REGISTRY/app:v1: invalid manifest: more than 16 manifests have to be fetched to find the platform's",
        |registry, _| {
            let entries = (0..10_000_u32).map(|number| descriptor(MANIFEST, &number.to_le_bytes()));
            index(registry, entries.collect());
        },
    ),
];
