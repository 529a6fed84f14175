//! Archives to import: OCI layouts and what `docker save` writes.

use serde_json::{Value, json};

use super::Case;
use super::tar::Raw;
use crate::fixtures::{TestImage, descriptor, gzip};

fn raw() -> Raw {
    Raw::default()
}

/// An archive's blob under its own digest.
fn blob(tar: Raw, bytes: &[u8]) -> Raw {
    tar.file(&format!("blobs/sha256/{}", crate::fixtures::digest(bytes).hex()), bytes)
}

fn index(manifests: Value) -> Vec<u8> {
    serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": manifests})).unwrap()
}

fn entry(good: &TestImage) -> Value {
    descriptor(&good.manifest_type, &good.manifest)
}

/// The good image as an OCI layout, but for the index and what `without` names.
fn layout(good: &TestImage, index: &[u8], without: Option<usize>) -> Raw {
    let tar = raw().file("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}").file("index.json", index);
    let tar = blob(tar, &good.manifest);
    good.blobs.iter().enumerate().fold(tar, |tar, (number, bytes)| match without {
        Some(missing) if missing == number => tar,
        _ => blob(tar, bytes),
    })
}

/// What `docker save` writes, with this for `manifest.json`.
fn saved(good: &TestImage, manifest: Value) -> Raw {
    raw()
        .file("config.json", &good.blobs[0])
        .file("layer.tar", &good.layers[0].archive)
        .file("manifest.json", &serde_json::to_vec(&manifest).unwrap())
}

fn saved_entry() -> Value {
    json!({"Config": "config.json", "RepoTags": ["app:v1"], "Layers": ["layer.tar"]})
}

pub(crate) const CASES: &[Case] = &[
    Case::archive("nothing", "invalid image archive: it has neither index.json nor manifest.json", |_| {
        Vec::new()
    }),
    Case::archive(
        "a text",
        "invalid image archive: it is not a readable tar stream: numeric field was not a number: nger tha when getting cksum for This is no archive, but it is longer than a block of one. This i...",
        |_| b"This is no archive, but it is longer than a block of one. ".repeat(20),
    ),
    Case::archive(
        "an archive of something else",
        "invalid image archive: it has neither index.json nor manifest.json",
        |_| raw().file("README", b"hello").end(),
    ),
    Case::archive("an archive cut in a blob", "invalid image archive: it ends inside \"blob\"", |_| {
        let mut archive = raw().file("blob", &[7; 1000]).0;
        archive.truncate(900);
        archive
    }),
    Case::archive(
        "a truncated gzip archive",
        "invalid image archive: it is not a readable tar stream: incomplete deflate stream",
        |good| {
            let mut archive = layout(good, &index(json!([entry(good)])), None).gz();
            archive.truncate(archive.len() - 20);
            archive
        },
    ),
    Case::archive(
        "garbage behind a gzip archive",
        "invalid image archive: it is not a readable tar stream: unexpected end of file",
        |good| [layout(good, &index(json!([entry(good)])), None).gz(), b"garbage".to_vec()].concat(),
    ),
    Case::archive("a bomb", "the image archive: bytes exceed the limit of 4194304", |_| {
        gzip(&raw().file("zeros", &vec![0; 8 << 20]).end())
    }),
    Case::archive(
        "41 entries where 40 are allowed",
        "the image archive: entries exceed the limit of 40",
        |_| (0..41).fold(raw(), |tar, number| tar.file(&format!("f{number}"), b"")).end(),
    ),
    Case::archive("a name of 5000 bytes", "invalid image archive: a name in it is too long", |_| {
        raw().entry("long", b'L', &[b'n'; 5000]).file("n", b"x").end()
    }),
    Case::archive(
        "headers of 3 MiB",
        "invalid image archive: it is not a readable tar stream: the headers of an entry are too long",
        |_| raw().entry("pax", b'x', &vec![b'x'; 3 << 20]).file("n", b"x").end(),
    ),
    Case::archive(
        "a directory with content",
        "invalid image archive: \"d\" has content but is not a plain file",
        |_| raw().entry("index.json", b'0', b"{}").header("d", b'5', |header| header.set_size(512)).end(),
    ),
    // Blobs.
    Case::archive(
        "a blob under another's digest",
        "blobs/sha256/0ed2ce527f84d431ac834628ade8f73c55391b0dc141d977818c3da2fbf08732 of the archive: expected digest (config), content has (other)",
        |good| raw().file(&format!("blobs/sha256/{}", good.id().hex()), b"other").end(),
    ),
    Case::archive(
        "a blob under a name that leads out",
        "invalid image archive: \"blobs/sha256/../../../etc/passwd\" is not named by a digest",
        |_| raw().file("blobs/sha256/../../../etc/passwd", b"x").end(),
    ),
    Case::archive(
        "an index that names a missing manifest",
        "invalid image archive: its index names (other), which it lacks",
        |_| raw().file("index.json", &index(json!([descriptor("", b"missing")]))).end(),
    ),
    Case::archive("a layout without the configuration", "blob (config) not found at the archive", |good| {
        layout(good, &index(json!([entry(good)])), Some(0)).end()
    }),
    Case::archive("a layout without the layer", "layer (layer) not found at the archive", |good| {
        layout(good, &index(json!([entry(good)])), Some(1)).end()
    }),
    Case::archive(
        "an index with a wrong digest",
        "the archive's index: invalid manifest: unsupported digest \"sha256:..\"",
        |good| {
            let mut entry = entry(good);
            entry["digest"] = json!("sha256:..");
            layout(good, &index(json!([entry])), None).end()
        },
    ),
    Case::archive(
        "an index that calls the manifest an index",
        "manifest (manifest) of the archive: unsupported media type \"application/vnd.oci.image.index.v1+json\"",
        |good| {
            let mut entry = entry(good);
            entry["mediaType"] = json!("application/vnd.oci.image.index.v1+json");
            layout(good, &index(json!([entry])), None).end()
        },
    ),
    Case::archive(
        "a layer that is a link out of the archive",
        "layer (layer) not found at the archive",
        |good| {
            let name = format!("blobs/sha256/{}", crate::fixtures::digest(&good.blobs[1]).hex());
            layout(good, &index(json!([entry(good)])), Some(1)).link(&name, b'2', "/etc/passwd").end()
        },
    ),
    // Indexes.
    Case::archive(
        "an index.json that is no JSON",
        "the archive: malformed index.json: EOF while parsing an object at line 1 column N",
        |_| raw().file("index.json", b"{").end(),
    ),
    Case::archive("an index.json without images", "invalid image archive: its index names no image", |_| {
        raw().file("index.json", b"{}").end()
    }),
    Case::archive(
        "an index.json with 300 images",
        "the image archive: images exceed the limit of 256",
        |_| {
            let entries = (0..300_u32).map(|number| descriptor("", &number.to_le_bytes()));
            raw().file("index.json", &index(entries.collect())).end()
        },
    ),
    Case::archive(
        "a manifest.json that is no JSON",
        "the archive: malformed manifest.json: key must be a string at line 1 column N",
        |_| raw().file("manifest.json", b"[{]").end(),
    ),
    Case::archive(
        "a manifest.json without images",
        "invalid image archive: its manifest.json names no image",
        |_| raw().file("manifest.json", b"[]").end(),
    ),
    Case::archive(
        "a manifest.json with 300 images",
        "the image archive: images exceed the limit of 256",
        |good| saved(good, json!(vec![saved_entry(); 300])).end(),
    ),
    // `docker save`.
    Case::archive(
        "a saved image whose name is none",
        "invalid image reference \"../../x:y\": its registry is not a host name",
        |good| {
            let mut entry = saved_entry();
            entry["RepoTags"] = json!(["../../x:y"]);
            saved(good, json!([entry])).end()
        },
    ),
    Case::archive(
        "a saved image whose configuration lies outside",
        "invalid image archive: it lacks \"../../../etc/passwd\"",
        |good| {
            let mut entry = saved_entry();
            entry["Config"] = json!("../../../etc/passwd");
            saved(good, json!([entry])).end()
        },
    ),
    Case::archive(
        "a saved image with a missing layer",
        "invalid image archive: it lacks \"missing/layer.tar\"",
        |good| {
            let mut entry = saved_entry();
            entry["Layers"] = json!(["missing/layer.tar"]);
            saved(good, json!([entry])).end()
        },
    ),
    Case::archive(
        "a saved layer that is a link to a link to itself",
        "invalid image archive: it lacks \"b/layer.tar\"",
        |good| {
            let mut entry = saved_entry();
            entry["Layers"] = json!(["a/layer.tar"]);
            let tar = saved(good, json!([entry]));
            tar.link("a/layer.tar", b'2', "../b/layer.tar").link("b/layer.tar", b'2', "../a/layer.tar").end()
        },
    ),
    Case::archive(
        "a saved layer that is a link out of the archive",
        "invalid image archive: it lacks \"etc/passwd\"",
        |good| {
            let mut entry = saved_entry();
            entry["Layers"] = json!(["a/layer.tar"]);
            saved(good, json!([entry])).link("a/layer.tar", b'2', "../../../../etc/passwd").end()
        },
    ),
    Case::archive(
        "a saved layer that is a hard link out of the archive",
        "invalid image archive: it lacks \"etc/passwd\"",
        |good| {
            let mut entry = saved_entry();
            entry["Layers"] = json!(["a/layer.tar"]);
            saved(good, json!([entry])).link("a/layer.tar", b'1', "/etc/passwd").end()
        },
    ),
    Case::archive(
        "a saved layer with a path that leads out",
        "layer (other) was refused: the path ../x is refused: it has a `..` in it",
        |good| {
            let mut entry = saved_entry();
            entry["Layers"] = json!(["evil.tar"]);
            saved(good, json!([entry])).file("evil.tar", &raw().file("../x", b"x").end()).end()
        },
    ),
    Case::archive(
        "a saved image with another layer than its configuration says",
        "layer (other) of manifest (other) of the archive: expected diff id (layer), unpacks to (other)",
        |good| {
            let mut entry = saved_entry();
            entry["Layers"] = json!(["other.tar"]);
            saved(good, json!([entry])).file("other.tar", &raw().file("x", b"x").end()).end()
        },
    ),
    Case::archive(
        "a saved image with five layers where four are allowed",
        "an image of the archive: layers exceed the limit of 4",
        |good| {
            let mut entry = saved_entry();
            entry["Layers"] = json!(vec!["layer.tar"; 5]);
            saved(good, json!([entry])).end()
        },
    ),
];
