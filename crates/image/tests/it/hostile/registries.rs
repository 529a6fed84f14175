//! Registries that stall, drip, lie, redirect and change their mind.

use std::time::Duration;

use super::{ACCEPTED, Case};
use crate::fixtures::TestImage;
use crate::registry::{Manner, Registry, Reply, Step, blob_path};

const TAG: &str = "/v2/app/manifests/v1";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\n";
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";

fn manifest(registry: &Registry, reply: Reply) {
    registry.route(TAG, reply);
}

fn layer(registry: &Registry, good: &TestImage, reply: Reply) {
    registry.route(&blob_path("app", &good.blobs[1]), reply);
}

fn send(bytes: &[u8]) -> Step {
    Step::Send(bytes.to_vec())
}

/// One chunk of a chunked body, over and over.
fn endless() -> Step {
    let mut chunk = b"10000\r\n".to_vec();
    chunk.resize(chunk.len() + 0x10000, b' ');
    chunk.extend(b"\r\n");
    Step::Forever(chunk, Duration::ZERO)
}

fn redirect(location: &str) -> Reply {
    Reply::status(302).header("Location", location)
}

/// A 401 whose token server is at this path of the registry.
fn challenge(registry: &Registry, path: &str) {
    challenge_to(registry, &format!("http://{}{path}", registry.address));
}

fn challenge_to(registry: &Registry, realm: &str) {
    manifest(registry, Reply::status(401).header("WWW-Authenticate", format!("Bearer realm=\"{realm}\"")));
}

pub(crate) const CASES: &[Case] = &[
    // Slow.
    Case::registry(
        "silence instead of an answer",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: no answer within 1s",
        |registry, _| {
            manifest(registry, Reply::raw([Step::Silence]));
        },
    )
    .hasty(),
    Case::registry(
        "silence within the headers",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: no answer within 1s",
        |registry, _| {
            manifest(registry, Reply::raw([send(HEAD), Step::Silence]));
        },
    )
    .hasty(),
    Case::registry(
        "headers a byte at a time",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: no answer within 1s",
        |registry, _| {
            let drip = Step::Forever(b"x".to_vec(), Duration::from_millis(10));
            manifest(registry, Reply::raw([send(HEAD), drip]));
        },
    )
    .hasty(),
    Case::registry(
        "silence within a manifest",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: no answer within 1s",
        |registry, good| {
            manifest(registry, Reply::ok(good.manifest.clone()).manner(Manner::StallAfter(10)));
        },
    )
    .hasty(),
    Case::registry(
        "silence within a configuration",
        "cannot fetch blob (config) of REGISTRY/app:v1: http://REGISTRY: no answer within 1s",
        |registry, good| {
            let reply = Reply::ok(good.blobs[0].clone()).manner(Manner::StallAfter(10));
            registry.route(&blob_path("app", &good.blobs[0]), reply);
        },
    )
    .hasty(),
    Case::registry(
        "silence within a layer",
        "cannot fetch layer (layer) of REGISTRY/app:v1: http://REGISTRY: stalled for 1s",
        |registry, good| {
            layer(registry, good, Reply::ok(good.blobs[1].clone()).manner(Manner::StallAfter(10)));
        },
    )
    .hasty(),
    Case::registry(
        "a layer a byte at a time",
        "cannot fetch layer (layer) of REGISTRY/app:v1: http://REGISTRY: stalled for 1s",
        |registry, good| {
            let drip = Step::Forever(b"1\r\nx\r\n".to_vec(), Duration::from_millis(20));
            layer(registry, good, Reply::raw([send(CHUNKED), drip]));
        },
    )
    .hasty(),
    Case::registry(
        "silence instead of a token",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: no answer within 1s",
        |registry, _| {
            challenge(registry, "/tokens");
            registry.route("/tokens", Reply::raw([Step::Silence]));
        },
    )
    .hasty(),
    // Endless.
    Case::registry(
        "a manifest without end",
        "REGISTRY/app:v1: bytes exceed the limit of 4194304",
        |registry, _| {
            manifest(registry, Reply::raw([send(CHUNKED), endless()]));
        },
    ),
    Case::registry(
        "a configuration without end",
        "blob (config) of REGISTRY/app:v1: bytes exceed the limit of 16384",
        |registry, good| {
            let path = blob_path("app", &good.blobs[0]);
            registry.route(&path, Reply::raw([send(CHUNKED), endless()]));
        },
    ),
    Case::registry(
        "a layer without end",
        "layer (layer): expected 2048 bytes, got more",
        |registry, good| {
            layer(registry, good, Reply::raw([send(CHUNKED), endless()]));
        },
    ),
    Case::registry(
        "headers without end",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: error sending request: client error (SendRequest): message head is too large (after 2 tries)",
        |registry, _| {
            let header = Step::Forever(b"X-Header: value\r\n".to_vec(), Duration::ZERO);
            manifest(registry, Reply::raw([send(HEAD), header]));
        },
    ),
    Case::registry(
        "one header without end",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: error sending request: client error (SendRequest): message head is too large (after 2 tries)",
        |registry, _| {
            let more = Step::Forever(vec![b'x'; 1 << 16], Duration::ZERO);
            manifest(registry, Reply::raw([send(HEAD), send(b"X-Header: "), more]));
        },
    ),
    Case::registry(
        "a token answer of 2 MiB",
        "http://REGISTRY: bytes exceed the limit of 1048576",
        |registry, _| {
            challenge(registry, "/tokens");
            registry.route("/tokens", Reply::ok(vec![b' '; 2 << 20]));
        },
    ),
    // Not HTTP, or not all of it.
    Case::registry(
        "a connection that is closed at once",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: error sending request: client error (SendRequest): connection closed before message completed (after 2 tries)",
        |registry, _| manifest(registry, Reply::raw([])),
    ),
    Case::registry(
        "an answer that is not HTTP",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: error sending request: client error (SendRequest): invalid HTTP version parsed (after 2 tries)",
        |registry, _| {
            manifest(registry, Reply::raw([send(b"220 smtp.example ESMTP\r\n")]));
        },
    ),
    Case::registry(
        "a length that is no number",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: error sending request: client error (SendRequest): invalid content-length parsed (after 2 tries)",
        |registry, _| {
            manifest(registry, Reply::raw([send(HEAD), send(b"Content-Length: many\r\n\r\n")]));
        },
    ),
    Case::registry(
        "two lengths",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: error sending request: client error (SendRequest): invalid content-length parsed (after 2 tries)",
        |registry, _| {
            manifest(
                registry,
                Reply::raw([send(HEAD), send(b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx")]),
            );
        },
    ),
    Case::registry(
        "a manifest that ends before its length",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: error decoding response body: error reading a body from connection: end of file before message length reached (after 2 tries)",
        |registry, good| {
            manifest(registry, Reply::ok(good.manifest.clone()).manner(Manner::HangUpAfter(10)));
        },
    ),
    Case::registry(
        "a layer that ends before its length, every time",
        "cannot fetch layer (layer) of REGISTRY/app:v1: http://REGISTRY: error decoding response body: error reading a body from connection: end of file before message length reached (after 2 tries)",
        |registry, good| {
            layer(registry, good, Reply::ok(good.blobs[1].clone()).manner(Manner::HangUpAfter(10)));
        },
    ),
    Case::registry(
        "a layer whose length is another than its descriptor's",
        "blob (layer) of REGISTRY/app:v1: expected 2048 bytes, got 500",
        |registry, good| {
            layer(registry, good, Reply::ok(vec![0; 500]));
        },
    ),
    Case::registry(
        "a layer that is encoded on the way",
        "blob (layer) of REGISTRY/app:v1: expected 2048 bytes, got 500",
        |registry, good| {
            let twice = Reply::ok(vec![0x1f; 500]).header("Content-Encoding", "gzip");
            layer(registry, good, twice);
        },
    ),
    Case::registry(
        "a chunk size that is no number",
        "cannot fetch layer (layer) of REGISTRY/app:v1: http://REGISTRY: error decoding response body: error reading a body from connection: Invalid chunk size line: missing size digit (after 2 tries)",
        |registry, good| {
            layer(registry, good, Reply::raw([send(CHUNKED), send(b"zz\r\nxx\r\n")]));
        },
    ),
    // Redirects.
    Case::registry(
        "a redirect to itself",
        "unexpected answer from http://REGISTRY for REGISTRY/app:v1: more than 3 redirects",
        |registry, _| manifest(registry, redirect(TAG)),
    ),
    Case::registry(
        "a redirect to a file",
        "unexpected answer from http://REGISTRY for REGISTRY/app:v1: it redirects to a file: URL, which is neither http nor https",
        |registry, _| {
            manifest(registry, redirect("file:///etc/passwd"));
        },
    ),
    Case::registry(
        "a redirect to FTP",
        "unexpected answer from http://REGISTRY for layer (layer) of REGISTRY/app:v1: it redirects to a ftp: URL, which is neither http nor https",
        |registry, good| {
            layer(registry, good, redirect("ftp://127.0.0.1/layer"));
        },
    ),
    Case::registry(
        "a redirect to something that is no URL",
        "unexpected answer from http://REGISTRY for REGISTRY/app:v1: it redirects to what is no URL",
        |registry, _| {
            manifest(registry, redirect("http://[::1"));
        },
    ),
    Case::registry(
        "a redirect without a target",
        "unexpected answer from http://REGISTRY for REGISTRY/app:v1: it redirects to what is no URL",
        |registry, _| manifest(registry, Reply::status(307)),
    ),
    Case::registry(
        "a redirect to a host that nobody has",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: http://127.0.0.1:0, where it sends us: error sending request: client error (Connect): tcp connect error: Connection refused (os error 111) (after 2 tries)",
        |registry, _| {
            manifest(registry, redirect("http://127.0.0.1:0/"));
        },
    ),
    // Pages, statuses and tokens.
    Case::registry(
        "a login page instead of a manifest",
        "REGISTRY/app:v1: malformed manifest: expected value at line 1 column N",
        |registry, _| {
            manifest(registry, Reply::ok("<html>Please log in.</html>").header("Content-Type", "text/html"));
        },
    ),
    Case::registry(
        "a login page instead of a layer",
        "blob (layer) of REGISTRY/app:v1: expected 2048 bytes, got 27",
        |registry, good| {
            layer(registry, good, Reply::ok("<html>Please log in.</html>"));
        },
    ),
    Case::registry(
        "a login page instead of a token",
        "http://REGISTRY: malformed token answer: expected value at line 1 column N",
        |registry, _| {
            challenge(registry, "/tokens");
            registry.route("/tokens", Reply::ok("<html>Please log in.</html>"));
        },
    ),
    Case::registry(
        "a 401 without a challenge",
        "http://REGISTRY denies access to REGISTRY/app:v1 (HTTP status 401)",
        |registry, _| manifest(registry, Reply::status(401)),
    ),
    Case::registry(
        "a 401 with a challenge that nobody knows",
        "http://REGISTRY denies access to REGISTRY/app:v1 (HTTP status 401)",
        |registry, _| {
            manifest(registry, Reply::status(401).header("WWW-Authenticate", "Negotiate"));
        },
    ),
    Case::registry(
        "a 401 for each token it gave",
        "http://REGISTRY denies access to REGISTRY/app:v1 (HTTP status 401)",
        |registry, _| {
            challenge(registry, "/tokens");
            registry.route("/tokens", Reply::ok(r#"{"token":"worthless"}"#));
        },
    ),
    Case::registry(
        "a token server that gives none",
        "unexpected answer from http://REGISTRY for REGISTRY/app:v1: its token server gave no token",
        |registry, _| {
            challenge(registry, "/tokens");
            registry.route("/tokens", Reply::ok("{}"));
        },
    ),
    Case::registry(
        "a token with a line break",
        "unexpected answer from http://REGISTRY for REGISTRY/app:v1: its token server gave no token",
        |registry, _| {
            challenge(registry, "/tokens");
            registry.route("/tokens", Reply::ok("{\"token\":\"a\\r\\nX-Evil: b\"}"));
        },
    ),
    Case::registry(
        "a token server that is a file",
        "unexpected answer from http://REGISTRY for REGISTRY/app:v1: its token server is a file: URL, which is neither http nor https",
        |registry, _| challenge_to(registry, "file:///etc/passwd"),
    ),
    Case::registry(
        "a token server that is no URL",
        "unexpected answer from http://REGISTRY for REGISTRY/app:v1: its token server has no valid URL",
        |registry, _| challenge_to(registry, "//"),
    ),
    Case::registry(
        "a token server that redirects to itself",
        "unexpected answer from http://REGISTRY for REGISTRY/app:v1: more than 3 redirects",
        |registry, _| {
            challenge(registry, "/tokens");
            registry.route("/tokens", redirect("/tokens"));
        },
    ),
    Case::registry(
        "a token server that denies",
        "http://REGISTRY denies access to REGISTRY/app:v1 (HTTP status 403)",
        |registry, _| {
            challenge(registry, "/tokens");
            registry.route("/tokens", Reply::status(403));
        },
    ),
    Case::registry(
        "a server error, every time",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: HTTP status 500 (after 2 tries)",
        |registry, _| manifest(registry, Reply::status(500)),
    ),
    Case::registry(
        "too many requests, every time",
        "cannot fetch REGISTRY/app:v1: http://REGISTRY: HTTP status 429 (after 2 tries)",
        |registry, _| manifest(registry, Reply::status(429)),
    ),
    Case::registry(
        "a status that means nothing here",
        "unexpected answer from http://REGISTRY for REGISTRY/app:v1: HTTP status 418",
        |registry, _| manifest(registry, Reply::status(418)),
    ),
    Case::registry(
        "no content",
        "unexpected answer from http://REGISTRY for REGISTRY/app:v1: HTTP status 204",
        |registry, _| manifest(registry, Reply::status(204)),
    ),
    Case::registry(
        "a part of a layer that nobody asked for",
        "unexpected answer from http://REGISTRY for layer (layer) of REGISTRY/app:v1: HTTP status 206",
        |registry, good| {
            let reply = Reply { status: 206, ..Reply::ok(good.blobs[1].clone()) };
            layer(registry, good, reply.header("Content-Range", "bytes 5-10/20"));
        },
    ),
    Case::registry(
        "a layer that is missing",
        "layer (layer) of REGISTRY/app:v1 not found at http://REGISTRY",
        |registry, good| layer(registry, good, Reply::status(404)),
    ),
    Case::registry(
        "a layer that is denied",
        "http://REGISTRY denies access to layer (layer) of REGISTRY/app:v1 (HTTP status 403)",
        |registry, good| layer(registry, good, Reply::status(403)),
    ),
    // Changing its mind.
    Case::registry(
        "a layer that is another after a broken transfer",
        "layer (layer): expected digest (layer), content has (other)",
        |registry, good| {
            let whole = Reply::ok(good.blobs[1].clone());
            let other = Reply::ok(vec![7; good.blobs[1].len()]);
            registry.route_in_turn(
                &blob_path("app", &good.blobs[1]),
                vec![whole.manner(Manner::HangUpAfter(20)), other],
            );
        },
    ),
    Case::registry("a manifest that comes after an error, which is no harm", ACCEPTED, |registry, good| {
        registry.route_in_turn(TAG, vec![Reply::status(503), Reply::ok(good.manifest.clone())]);
    }),
];
