//! Which layers are mounted on the node, and for whom. One task owns that
//! knowledge, so that mounting for one container and unmounting for another
//! cannot cross.
//!
//! A layer is mounted for its first container and unmounted a moment after its
//! last: who removes a container often makes one of the same image.
//! Nothing here is stored: a starting daemon counts anew from the records of
//! its containers and from the node's mount table.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kina_model::ContainerId;
use kina_node::{LayerImage, Node};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, chain};

/// Requests that may wait.
const QUEUE: usize = 256;
/// Before the next attempt at unmounting a layer, after one that failed.
const RETRY: Duration = Duration::from_secs(5);

enum Request {
    Acquire {
        container: ContainerId,
        layers: Vec<LayerImage>,
        reply: oneshot::Sender<Result<Vec<PathBuf>, Error>>,
    },
    Release {
        container: ContainerId,
        reply: oneshot::Sender<()>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// The owner of the node's layer mounts; clones talk to the same one.
#[derive(Clone, Debug)]
pub struct Layers {
    requests: mpsc::Sender<Request>,
}

impl Layers {
    /// Takes over a node's layer mounts: those of `users` (container and the
    /// diff ids of its layers) stay, all others are unmounted. A layer that loses
    /// its last user is kept mounted for `kept`.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub async fn adopt(
        node: Arc<dyn Node>,
        users: impl IntoIterator<Item = (ContainerId, Vec<String>)>,
        kept: Duration,
    ) -> Result<Self, Error> {
        let mut owner = Owner { node, kept, layers: BTreeMap::new() };
        for (container, layers) in users {
            for layer in layers {
                owner.layers.entry(layer).or_default().users.insert(container.clone());
            }
        }
        for mounted in owner.node.mounted_layers().await? {
            if !owner.layers.contains_key(&mounted) {
                tracing::info!(layer = %mounted, "unmounting a layer that no container uses");
                if let Err(error) = owner.node.unmount_layer(&mounted).await {
                    tracing::warn!(layer = %mounted, error = chain(&error), "unmount a layer");
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

    /// Gives up whatever a container holds. What nobody else does is unmounted a
    /// moment later; an unmount that fails is tried again and again.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`].
    pub async fn release(&self, container: &ContainerId) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Release { container: container.clone(), reply };
        self.requests.send(request).await.map_err(|_| Error::ShuttingDown)?;
        answer.await.map_err(|_| Error::ShuttingDown)
    }

    /// Unmounts now what nobody uses. For a daemon that ends.
    pub async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Close { reply }).await.is_ok() {
            // An owner that is gone has nothing more to say.
            let _ = answer.await;
        }
    }
}

/// A layer that is mounted, or may be.
#[derive(Default)]
struct Layer {
    users: BTreeSet<ContainerId>,
    /// When it is unmounted, if it has no users.
    until: Option<Instant>,
}

struct Owner {
    node: Arc<dyn Node>,
    kept: Duration,
    layers: BTreeMap<String, Layer>,
}

impl Owner {
    async fn run(mut self, mut mailbox: mpsc::Receiver<Request>) {
        loop {
            let request = match self.layers.values().filter_map(|layer| layer.until).min() {
                None => mailbox.recv().await,
                Some(until) => match timeout_at(until, mailbox.recv()).await {
                    Ok(request) => request,
                    Err(_) => {
                        self.unmount(Instant::now()).await;
                        continue;
                    }
                },
            };
            // A caller that is gone does not matter: its container's record
            // says what to release.
            match request {
                Some(Request::Acquire { container, layers, reply }) => {
                    let result = self.acquire(&container, &layers).await;
                    let _ = reply.send(result);
                }
                Some(Request::Release { container, reply }) => {
                    self.release(&container).await;
                    let _ = reply.send(());
                }
                Some(Request::Close { reply }) => {
                    self.unmount(Instant::now() + self.kept.max(RETRY)).await;
                    let _ = reply.send(());
                }
                None => return,
            }
        }
    }

    async fn acquire(
        &mut self,
        container: &ContainerId,
        layers: &[LayerImage],
    ) -> Result<Vec<PathBuf>, Error> {
        let mut directories = Vec::with_capacity(layers.len());
        for image in layers {
            let layer = self.layers.entry(image.diff_id.clone()).or_default();
            layer.users.insert(container.clone());
            layer.until = None;
            match self.node.mount_layer(image).await {
                Ok(directory) => directories.push(directory),
                Err(error) => {
                    self.release(container).await;
                    return Err(error.into());
                }
            }
        }
        Ok(directories)
    }

    async fn release(&mut self, container: &ContainerId) {
        let now = Instant::now();
        for layer in self.layers.values_mut() {
            if layer.users.remove(container) && layer.users.is_empty() {
                layer.until = Some(now + self.kept);
            }
        }
        if self.kept.is_zero() {
            self.unmount(now).await;
        }
    }

    /// Unmounts what was to be kept until `now` at most.
    async fn unmount(&mut self, now: Instant) {
        let due = self.layers.iter().filter(|(_, layer)| layer.until.is_some_and(|until| until <= now));
        let due: Vec<String> = due.map(|(diff_id, _)| diff_id.clone()).collect();
        for diff_id in due {
            match self.node.unmount_layer(&diff_id).await {
                Ok(()) => drop(self.layers.remove(&diff_id)),
                Err(error) => {
                    tracing::warn!(layer = %diff_id, error = chain(&error), "unmount a layer");
                    if let Some(layer) = self.layers.get_mut(&diff_id) {
                        layer.until = Some(Instant::now() + self.kept.max(RETRY));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kina_testkit::fake_node::FakeNode;

    use super::*;

    const KEPT: Duration = Duration::from_secs(2);

    fn image(name: char) -> LayerImage {
        let hex: String = std::iter::repeat_n(name, 64).collect();
        LayerImage { diff_id: format!("sha256:{hex}"), path: PathBuf::from("/image") }
    }

    fn mounted(node: &FakeNode) -> Vec<(char, u32)> {
        let name = |diff_id: &str| diff_id.chars().last().unwrap();
        node.world().layers.iter().map(|(diff_id, times)| (name(diff_id), *times)).collect()
    }

    async fn layers(node: &FakeNode) -> Layers {
        Layers::adopt(Arc::new(node.clone()), [], KEPT).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_layer_is_kept_a_moment_after_its_last_container() {
        let node = FakeNode::default();
        let layers = layers(&node).await;
        let [one, two] = [ContainerId::random(), ContainerId::random()];
        layers.acquire(&one, vec![image('a'), image('b')]).await.unwrap();
        layers.acquire(&two, vec![image('b')]).await.unwrap();
        layers.release(&one).await.unwrap();
        tokio::time::sleep(KEPT / 2).await;
        assert_eq!(mounted(&node).len(), 2);
        tokio::time::sleep(KEPT).await;
        assert_eq!(mounted(&node), [('b', 2)], "the other container's stays");
        // Whoever comes within that moment finds it, and it is theirs.
        layers.release(&two).await.unwrap();
        tokio::time::sleep(KEPT / 2).await;
        layers.acquire(&one, vec![image('b')]).await.unwrap();
        tokio::time::sleep(KEPT * 2).await;
        assert_eq!(mounted(&node), [('b', 3)]);
        layers.release(&one).await.unwrap();
        tokio::time::sleep(KEPT * 2).await;
        assert_eq!(mounted(&node), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_ends_leaves_no_unused_layer() {
        let node = FakeNode::default();
        let layers = layers(&node).await;
        let [one, two] = [ContainerId::random(), ContainerId::random()];
        layers.acquire(&one, vec![image('a')]).await.unwrap();
        layers.acquire(&two, vec![image('b')]).await.unwrap();
        layers.release(&one).await.unwrap();
        layers.close().await;
        assert_eq!(mounted(&node), [('b', 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unmount_that_fails_is_tried_again() {
        let node = FakeNode::default();
        let layers = layers(&node).await;
        let one = ContainerId::random();
        layers.acquire(&one, vec![image('a')]).await.unwrap();
        node.fail("unmount_layer", 1);
        layers.release(&one).await.unwrap();
        tokio::time::sleep(KEPT * 2).await;
        assert_eq!(mounted(&node), [('a', 1)]);
        tokio::time::sleep(RETRY).await;
        assert_eq!(mounted(&node), []);
    }
}
