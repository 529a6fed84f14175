//! The effects on one container.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kina_guest_api::{GuestClient, GuestError, Refusal, v1};
use kina_machine::{LayerAccess, Share, ShareKind, Shares};
use kina_model::{
    ContainerEffect, ContainerId, ContainerSpec, Mount, MountSource, Nanos, Resources, SpecError, container,
};
use kina_node::LayerImage;
use kina_store::Batch;
use tokio::sync::watch;

use super::apparmor::Confinement;
use super::context::{Context, pod_cgroup};
use super::guest_request;
use super::logs::{ContainerLog, LogRecord};
use super::record::ContainerRecord;
use super::selinux;
use super::start::Subject;
use super::view::{ContainerView, Identity, PodView};
use super::volumes::{self, Source};
use crate::cdi;
use crate::error::{Error, chain};
use crate::failpoint;

/// How long a killed container may take to be reported as ended.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// How long the log of a container that its guest has forgotten may take to end
/// by itself.
const LAST_LINES_DEADLINE: Duration = Duration::from_secs(1);

/// The layers of a container's images.
#[derive(Clone, Debug, Default)]
pub(super) struct ImageLayers<L> {
    /// Of the one that it runs.
    pub(super) root: Vec<L>,
    /// Of each that it mounts, in the order of its mounts.
    pub(super) volumes: Vec<Vec<L>>,
}

impl<L> ImageLayers<L> {
    fn images(&self) -> impl Iterator<Item = &Vec<L>> {
        std::iter::once(&self.root).chain(&self.volumes)
    }
}

/// What a container gets that the node has found or made.
struct FromNode<'a> {
    /// Where its mounts come from, in their order.
    mounts: &'a [Source],
    /// Its devices.
    edits: &'a cdi::Edits,
    confinement: Confinement,
}

impl Subject {
    fn guest_error(&self, source: GuestError) -> Error {
        Error::Guest { pod: self.id.clone(), source }
    }

    /// Makes a container: its layers, then the guest's part. What an earlier
    /// effect made stays when a later one fails; the caller removes it.
    pub(super) async fn create_container(
        &self,
        guest: &GuestClient,
        view: &ContainerView,
        layers: ImageLayers<LayerImage>,
    ) -> Result<(Identity, Option<ContainerLog>), Error> {
        // Before anything is made: what cannot be had is refused here.
        let sources = self.mount_sources(&view.spec).await?;
        let Context { node, cdi_directories, .. } = &*self.context;
        // In a user namespace no device node can be made.
        let as_they_are = self.spec.namespaces.user.is_some();
        let edits = cdi::edits(&**node, cdi_directories, &view.spec.cdi_devices, as_they_are).await?;
        let features = guest.hello().features.unwrap_or_default();
        let security = &view.spec.security;
        let selinux = selinux::of_container(features, &self.spec, security)?;
        let apparmor = self.context.apparmor.confinement(&**node, features, security).await?;
        let confinement = Confinement { selinux, ..apparmor };
        let outside = FromNode { mounts: &sources, edits: &edits, confinement };
        let mut guest_layers = ImageLayers::default();
        for effect in container::CREATE {
            match effect {
                ContainerEffect::MountLayers => {
                    guest_layers =
                        failpoint::around(effect.name(), self.mount_layers(&view.id, layers.clone())).await?;
                }
                ContainerEffect::GuestCreate => {
                    let layers = std::mem::take(&mut guest_layers);
                    let create = self.guest_create(guest, view, layers, &outside);
                    return failpoint::around(effect.name(), create).await;
                }
                // The actor has recorded the intent.
                ContainerEffect::Record
                | ContainerEffect::GuestStart
                | ContainerEffect::GuestDelete
                | ContainerEffect::ReleaseLayers
                | ContainerEffect::RemoveFiles
                | ContainerEffect::DeleteRecord => {}
            }
        }
        Err(Error::ContainerFailed {
            container: view.id.clone(),
            operation: "create",
            reason: "the effects do not include the guest".to_owned(),
        })
    }

    /// Where a container's mounts come from. A guest on the node's own kernel
    /// finds them where they are.
    async fn mount_sources(&self, spec: &ContainerSpec) -> Result<Vec<Source>, Error> {
        if self.driver.capabilities().own_kernel {
            let Context { node, volumes, .. } = &*self.context;
            return volumes::sources(node, volumes, &self.spec, spec).await;
        }
        let source = |mount: &Mount| match &mount.source {
            MountSource::HostPath(path) => Source::Shared(path.clone()),
            MountSource::Image(_) => Source::Image,
        };
        Ok(spec.mounts.iter().map(source).collect())
    }

    /// Layers as the guest shall find them, topmost first.
    async fn mount_layers(
        &self,
        container: &ContainerId,
        layers: ImageLayers<LayerImage>,
    ) -> Result<ImageLayers<v1::Layer>, Error> {
        use v1::layer::Source;
        let all: Vec<LayerImage> = layers.images().flatten().cloned().collect();
        let mut sources = Vec::with_capacity(all.len());
        match self.driver.capabilities().layers {
            LayerAccess::Mounted => {
                let directories = self.context.layers.acquire(container, all).await?;
                let mounted = directories.into_iter().map(|path| Source::Mounted(path.display().to_string()));
                sources.extend(mounted);
            }
            LayerAccess::ImageFile => {
                for layer in all {
                    let share = Share {
                        source: layer.path,
                        readonly: true,
                        readonly_below: true,
                        kind: ShareKind::Layer,
                    };
                    let path = self.driver.share(&self.id, &share).await?;
                    sources.push(Source::Image(path.display().to_string()));
                }
            }
        }
        let mut sources = sources.into_iter();
        let mut found = |image: Vec<LayerImage>| {
            let layers = image.into_iter().zip(&mut sources);
            let mut layers: Vec<v1::Layer> = layers
                .map(|(layer, source)| v1::Layer { diff_id: layer.diff_id, source: Some(source) })
                .collect();
            layers.reverse();
            layers
        };
        Ok(ImageLayers {
            root: found(layers.root),
            volumes: layers.volumes.into_iter().map(&mut found).collect(),
        })
    }

    async fn guest_create(
        &self,
        guest: &GuestClient,
        view: &ContainerView,
        layers: ImageLayers<v1::Layer>,
        outside: &FromNode<'_>,
    ) -> Result<(Identity, Option<ContainerLog>), Error> {
        use v1::log_target::Target;
        let mut images = layers.volumes.into_iter();
        let mut mounts = Vec::with_capacity(view.spec.mounts.len());
        for (index, (mount, source)) in view.spec.mounts.iter().zip(outside.mounts).enumerate() {
            let shared = async |share: &Share| {
                self.driver.share(&self.id, share).await.map_err(|error| share_error(index, error))
            };
            mounts.push(match source {
                // The node sees to it: a guest would make all of it read-only, which is what is left
                // where directories are shared whole.
                Source::SharedTopReadonly(path) if self.driver.capabilities().shares == Shares::Dynamic => {
                    let kind = ShareKind::Volume(view.id.clone());
                    let share = Share { source: path.clone(), readonly: true, readonly_below: false, kind };
                    let source = shared(&share).await?;
                    let mut request = guest_request::mount(mount, &source);
                    request.readonly = false;
                    request.set_propagation(v1::MountPropagation::Private);
                    request.mapped = None;
                    request
                }
                Source::Shared(path) | Source::SharedTopReadonly(path) => {
                    let kind = ShareKind::Volume(view.id.clone());
                    let share =
                        Share { source: path.clone(), readonly: mount.readonly, readonly_below: true, kind };
                    let source = shared(&share).await?;
                    let mut request = guest_request::mount(mount, &source);
                    if self.driver.capabilities().own_kernel {
                        // What the node mounts later comes with the share, as do mapped ids.
                        request.set_propagation(v1::MountPropagation::Private);
                        request.mapped = None;
                    }
                    request
                }
                Source::Kept(volume) => guest_request::kept_mount(mount, volume.clone()),
                Source::Image => guest_request::image_mount(mount, images.next().unwrap_or_default()),
            });
        }
        if let Some(directory) = view.log_path.as_ref().and_then(|path| path.parent()) {
            self.context.node.create_directory(directory, 0o755).await?;
        }
        let source = self.log_source(guest, view);
        let log = match (&view.log_path, &source) {
            (None, _) => Target::Discard(v1::Empty {}),
            (Some(path), None) => Target::Path(path.display().to_string()),
            (Some(_), Some(_)) => Target::Stream(v1::Empty {}),
        };
        let (id, volumes) = (view.id.as_str(), &view.image.volumes);
        let mut request =
            guest_request::create_container(id, &view.spec, &view.process, layers.root, volumes, mounts, log);
        guest_request::edit(&mut request, outside.edits);
        guest_request::confine(&mut request, &outside.confinement);
        let made = guest.create_container(request).await.map_err(|source| match &source {
            GuestError::Refused { message, .. } if message.starts_with(kina_guest_api::IMAGE_VOLUME) => {
                Error::ImageVolume(Box::new(self.guest_error(source)))
            }
            _ => self.guest_error(source),
        })?;
        // Before it is started: from its first line on somebody takes its output.
        let log = match source {
            Some(source) => Some(ContainerLog::begin(source).await?.0),
            None => None,
        };
        let identity =
            Identity { pid: 0, uid: made.uid, gid: made.gid, supplemental_groups: made.supplemental_groups };
        Ok((identity, log))
    }

    /// Runs a made container; returns when it was started, and as which process.
    pub(super) async fn start_container(
        &self,
        guest: &GuestClient,
        container: &ContainerId,
    ) -> Result<(Nanos, u32), Error> {
        let request = v1::StartContainerRequest { id: container.to_string() };
        let start = async { guest.start_container(request).await.map_err(|source| self.guest_error(source)) };
        let started = failpoint::around(ContainerEffect::GuestStart.name(), start).await?;
        for warning in &started.warnings {
            tracing::warn!(pod = %self.id, %container, warning, "container started with a restriction");
        }
        Ok((started.started_at_nanos, started.pid))
    }

    /// Changes the limits of a container that has not ended.
    pub(super) async fn update_container(
        &self,
        guest: &GuestClient,
        container: &ContainerId,
        resources: &Resources,
    ) -> Result<(), Error> {
        let resources = Some(guest_request::resources(resources));
        let request = v1::UpdateContainerRequest { id: container.to_string(), resources };
        guest.update_container(request).await.map(|_| ()).map_err(|source| self.guest_error(source))
    }

    /// Undoes everything of a container; all is tried.
    pub(super) async fn remove_container(
        &self,
        guest: Option<&GuestClient>,
        container: &ContainerId,
        effects: &[ContainerEffect],
        log: Option<&ContainerLog>,
    ) -> Result<(), String> {
        let mut failures = Vec::new();
        for effect in effects {
            if let (ContainerEffect::DeleteRecord, Some(log)) = (*effect, log) {
                // It must not record anything any more.
                log.finish(if guest.is_some() { LAST_LINES_DEADLINE } else { Duration::ZERO }).await;
            }
            // The record is what finds the rest again: it goes only when all else is gone.
            if *effect == ContainerEffect::DeleteRecord && !failures.is_empty() {
                break;
            }
            let result =
                failpoint::around(effect.name(), self.undo_container(guest, container, *effect)).await;
            if let Err(error) = result {
                failures.push(format!("{}: {}", effect.name(), chain(&error)));
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    async fn undo_container(
        &self,
        guest: Option<&GuestClient>,
        container: &ContainerId,
        effect: ContainerEffect,
    ) -> Result<(), Error> {
        match effect {
            ContainerEffect::GuestDelete => {
                let Some(guest) = guest else {
                    return Ok(());
                };
                let request = v1::DeleteContainerRequest { id: container.to_string() };
                match guest.delete_container(request).await {
                    // A guest that is gone holds nothing.
                    Ok(_) | Err(GuestError::Gone { .. }) => Ok(()),
                    Err(source) => Err(self.guest_error(source)),
                }
            }
            ContainerEffect::ReleaseLayers => self.context.layers.release(container).await,
            ContainerEffect::RemoveFiles => {
                self.driver.unshare(&self.id, container).await?;
                let directory = self.context.paths.container(&self.id, container);
                self.context.remove_directory(&directory).await?;
                let group = format!("{}/{container}", pod_cgroup(&self.spec.cgroup_parent, &self.id));
                Ok(self.context.node.kill_cgroup(&group, KILL_DEADLINE).await?)
            }
            ContainerEffect::DeleteRecord => {
                let mut batch = Batch::new();
                batch.delete::<ContainerRecord>(container.as_str());
                batch.delete::<LogRecord>(container.as_str());
                Ok(self.context.store.commit(batch).await?)
            }
            ContainerEffect::Record
            | ContainerEffect::MountLayers
            | ContainerEffect::GuestCreate
            | ContainerEffect::GuestStart => Ok(()),
        }
    }

    /// Ends a running container: its stop signal, unless it was `asked` by that before, then
    /// SIGKILL after `timeout`; returns when its end has been seen.
    pub(super) async fn stop_container(
        &self,
        guest: &GuestClient,
        view: &ContainerView,
        timeout: Duration,
        asked: &AtomicBool,
        mut pod: watch::Receiver<Arc<PodView>>,
    ) -> Result<(), Error> {
        let polite = !timeout.is_zero();
        if polite {
            if !asked.swap(true, Ordering::Relaxed) {
                let signal = u32::from(view.process.stop_signal.number());
                let sent = self.signal(guest, &view.id, signal, false).await;
                sent.inspect_err(|_| asked.store(false, Ordering::Relaxed))?;
            }
            if tokio::time::timeout(timeout, ended(&mut pod, &view.id)).await.is_ok() {
                return Ok(());
            }
        }
        self.signal(guest, &view.id, u32::from(kina_model::Signal::KILL.number()), true).await?;
        tokio::time::timeout(KILL_DEADLINE, ended(&mut pod, &view.id))
            .await
            .map_err(|_| Error::Deadline { what: "the end of a killed container", limit: KILL_DEADLINE })
    }

    async fn signal(
        &self,
        guest: &GuestClient,
        container: &ContainerId,
        signal: u32,
        all: bool,
    ) -> Result<(), Error> {
        let request = v1::SignalContainerRequest { id: container.to_string(), signal, all };
        match guest.signal_container(request).await {
            // Its end is on the way.
            Ok(_) | Err(GuestError::Gone { .. } | GuestError::Refused { code: Refusal::NotFound, .. }) => {
                Ok(())
            }
            Err(source) => Err(self.guest_error(source)),
        }
    }
}

/// A mount's source that is not there is the caller's mistake.
fn share_error(index: usize, error: kina_machine::Error) -> Error {
    match &error {
        kina_machine::Error::Share { path, source, .. }
            if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
        {
            let reason = format!("{} is not there; make it first", path.display());
            SpecError::invalid(format!("config.mounts[{index}].host_path"), reason).into()
        }
        _ => error.into(),
    }
}

/// Waits until a container has ended or is gone.
async fn ended(pod: &mut watch::Receiver<Arc<PodView>>, container: &ContainerId) {
    let over = |view: &Arc<PodView>| {
        view.containers.get(container).is_none_or(|container| container.state.exit().is_some())
    };
    // An error says that the pod's actor has ended, and the container with it.
    let _ = pod.wait_for(over).await;
}
