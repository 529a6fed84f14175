//! The local node keeps the rules of every node, and the bare one those of files.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use async_trait::async_trait;
use kina_node::conformance::{self, Subject};
use kina_node::{BareNode, LayerImage, LocalNodeConfig, Node};
use support::Place;

#[async_trait]
impl Subject for Place {
    fn node(&self) -> &dyn Node {
        &self.node
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn cgroup(&self) -> &str {
        &self.cgroup
    }

    async fn layer(&self) -> LayerImage {
        self.image(&[("hello", b"layer\n")])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_node_conforms() {
    conformance::all(&Place::new()).await;
}

/// A bare node, and a local one beside it that runs programs.
struct Bare {
    node: BareNode,
    place: Place,
}

#[async_trait]
impl Subject for Bare {
    fn node(&self) -> &dyn Node {
        &self.node
    }

    fn programs(&self) -> &dyn Node {
        &self.place.node
    }

    fn directory(&self) -> &Path {
        self.place.directory.path()
    }

    fn cgroup(&self) -> &str {
        &self.place.cgroup
    }

    async fn layer(&self) -> LayerImage {
        self.place.layer().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bare_node_has_files_as_every_node() {
    let place = Place::new();
    let subject = Bare { node: BareNode::new(LocalNodeConfig::new(place.path("run"))), place };
    conformance::boot_ids_are_stable(&subject).await;
    conformance::files_are_read_and_replaced(&subject).await;
    conformance::trees_are_measured_and_removed(&subject).await;
}
