//! The local node keeps the rules of every node.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use async_trait::async_trait;
use kina_node::conformance::{self, Subject};
use kina_node::{LayerImage, Node};
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
