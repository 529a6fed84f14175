//! Which layers are mounted on the node, and for whom. One task owns that
//! knowledge, so that mounting for one container and unmounting for another
//! cannot cross.
//!
//! A layer is mounted for its first container and unmounted after its last.
//! Nothing here is stored: a starting daemon counts anew from the records of
//! its containers and from the node's mount table.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use kina_model::ContainerId;
use kina_node::{LayerImage, Node};
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;

/// Requests that may wait.
const QUEUE: usize = 256;

enum Request {
    Acquire {
        container: ContainerId,
        layers: Vec<LayerImage>,
        reply: oneshot::Sender<Result<Vec<PathBuf>, Error>>,
    },
    Release {
        container: ContainerId,
        reply: oneshot::Sender<Result<(), Error>>,
    },
}

/// The owner of the node's layer mounts; clones talk to the same one.
#[derive(Clone, Debug)]
pub struct Layers {
    requests: mpsc::Sender<Request>,
}

impl Layers {
    /// Takes over a node's layer mounts: those of `users` (container and the
    /// diff ids of its layers) stay, all others are unmounted.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub async fn adopt(
        node: Arc<dyn Node>,
        users: impl IntoIterator<Item = (ContainerId, Vec<String>)>,
    ) -> Result<Self, Error> {
        let mut owner = Owner { node, users: BTreeMap::new() };
        for (container, layers) in users {
            for layer in layers {
                owner.users.entry(layer).or_default().insert(container.clone());
            }
        }
        for mounted in owner.node.mounted_layers().await? {
            if !owner.users.contains_key(&mounted) {
                tracing::info!(layer = %mounted, "unmounting a layer that no container uses");
                if let Err(error) = owner.node.unmount_layer(&mounted).await {
                    tracing::warn!(layer = %mounted, error = crate::error::chain(&error), "unmount a layer");
                }
            }
        }
        let (requests, mailbox) = mpsc::channel(QUEUE);
        tokio::spawn(owner.run(mailbox));
        Ok(Self { requests })
    }

    /// Has the layers mounted for a container and returns their directories,
    /// in the order given.
    ///
    /// # Errors
    /// When one cannot be mounted; none is held for the container then.
    pub async fn acquire(
        &self,
        container: &ContainerId,
        layers: Vec<LayerImage>,
    ) -> Result<Vec<PathBuf>, Error> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Acquire { container: container.clone(), layers, reply };
        self.requests.send(request).await.map_err(|_| Error::ShuttingDown)?;
        answer.await.map_err(|_| Error::ShuttingDown)?
    }

    /// Gives up whatever a container holds, and unmounts what nobody else does.
    ///
    /// # Errors
    /// When an unmount fails; it is tried again with the next release.
    pub async fn release(&self, container: &ContainerId) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Release { container: container.clone(), reply };
        self.requests.send(request).await.map_err(|_| Error::ShuttingDown)?;
        answer.await.map_err(|_| Error::ShuttingDown)?
    }
}

struct Owner {
    node: Arc<dyn Node>,
    /// Containers by layer. An empty set is a layer whose unmount failed.
    users: BTreeMap<String, BTreeSet<ContainerId>>,
}

impl Owner {
    async fn run(mut self, mut mailbox: mpsc::Receiver<Request>) {
        while let Some(request) = mailbox.recv().await {
            // A caller that is gone does not matter: its container's record
            // says what to release.
            match request {
                Request::Acquire { container, layers, reply } => {
                    let result = self.acquire(&container, &layers).await;
                    let _ = reply.send(result);
                }
                Request::Release { container, reply } => {
                    let result = self.release(&container).await;
                    let _ = reply.send(result);
                }
            }
        }
    }

    async fn acquire(
        &mut self,
        container: &ContainerId,
        layers: &[LayerImage],
    ) -> Result<Vec<PathBuf>, Error> {
        let mut directories = Vec::with_capacity(layers.len());
        for layer in layers {
            self.users.entry(layer.diff_id.clone()).or_default().insert(container.clone());
            match self.node.mount_layer(layer).await {
                Ok(directory) => directories.push(directory),
                Err(error) => {
                    if let Err(undo) = self.release(container).await {
                        tracing::warn!(%container, error = crate::error::chain(&undo), "release layers");
                    }
                    return Err(error.into());
                }
            }
        }
        Ok(directories)
    }

    async fn release(&mut self, container: &ContainerId) -> Result<(), Error> {
        let mut unused = Vec::new();
        for (layer, users) in &mut self.users {
            users.remove(container);
            if users.is_empty() {
                unused.push(layer.clone());
            }
        }
        let mut result = Ok(());
        for layer in unused {
            match self.node.unmount_layer(&layer).await {
                Ok(()) => {
                    self.users.remove(&layer);
                }
                Err(error) => result = Err(error.into()),
            }
        }
        result
    }
}
