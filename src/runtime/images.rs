//! The images: brought in, kept for who uses them, and collected.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kina_image::{Credentials, Image, Images, Lease, Progress, Reference};
use kina_node::FilesystemUsage;
use tokio::sync::watch;

use super::Runtime;
use crate::error::Error;
use crate::spans;

/// How often what failed pulls have left is looked for.
const COLLECT_PAUSE: Duration = Duration::from_secs(10 * 60);

/// How long it stays: longer than the kubelet waits between two tries of a pull,
/// which then finds the layers that it has brought already.
const COLLECT_AGE: Duration = Duration::from_secs(60 * 60);

impl Runtime {
    /// The images.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.inner.images
    }

    /// Brings an image in; see [`Images::pull`].
    ///
    /// # Errors
    /// As [`Images::pull`].
    pub async fn pull_image(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        progress: watch::Sender<Progress>,
    ) -> Result<Image, Error> {
        let counted = self.metrics().pull(progress.subscribe());
        let pull = self.inner.images.pull(reference, credentials, Some(progress));
        let pulled = spans::step("image-pull", pull).await;
        counted.ended(pulled.is_ok());
        Ok(pulled?)
    }

    /// Removes an image with all its names. An unknown one is removed already.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn remove_image(&self, reference: &str) -> Result<(), Error> {
        self.inner.images.remove(reference).await?;
        Ok(())
    }

    /// What images and what containers use of their file systems.
    ///
    /// # Errors
    /// When the node cannot count it.
    pub async fn image_usage(&self) -> Result<(FilesystemUsage, FilesystemUsage), Error> {
        let context = &self.inner.context;
        let images = context.node.usage(&context.paths.images()).await?;
        let containers = context.node.usage(&context.paths.pods()).await?;
        Ok((images, containers))
    }

    /// Where the file system of the writable layers is mounted, as [`Runtime::image_usage`]
    /// has it. Found out once; until then, if that fails, where the layers lie.
    pub(crate) async fn writable_filesystem(&self) -> PathBuf {
        let context = &self.inner.context;
        let pods = context.paths.pods();
        let find = async || Ok::<_, kina_node::Error>(context.node.usage(&pods).await?.mountpoint);
        self.inner.writable_filesystem.get_or_try_init(find).await.cloned().unwrap_or(pods)
    }

    /// Keeps an image that is here with all its files.
    pub(super) async fn lease_image(&self, reference: &str) -> Result<Lease, Error> {
        let missing = || Error::ImageNotPulled { reference: reference.to_owned() };
        let image = self.inner.images.resolve(reference).ok_or_else(missing)?;
        let lease = self.inner.images.lease(&image.id).ok_or_else(missing)?;
        self.inner.images.check(&image.id).await?;
        Ok(lease)
    }

    /// Keeps the image of a recorded container that no pod holds.
    pub(crate) fn keep_image(&self, id: &kina_model::Digest) {
        let mut kept = self.inner.kept_images.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(self.inner.images.lease(id));
    }

    /// Frees what no image needs and what came into the store at least `age`
    /// ago. A failure is logged; the next time may do better.
    pub(crate) async fn collect_images(&self, age: Duration) {
        match self.inner.images.gc_older(age).await {
            Ok(freed) if freed.inodes == 0 => {}
            Ok(freed) => tracing::info!(files = freed.inodes, bytes = freed.bytes, "collected unused layers"),
            Err(error) => tracing::warn!(error = crate::error::chain(&error), "collect unused layers"),
        }
    }

    /// Collects from now on, until the runtime is gone.
    pub(super) fn keep_collecting_images(&self) {
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(COLLECT_PAUSE).await;
                // Ends with the runtime.
                let Some(inner) = inner.upgrade() else { return };
                Self { inner }.collect_images(COLLECT_AGE).await;
            }
        });
    }
}
