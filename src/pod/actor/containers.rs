//! The actor's dealings with containers.

use super::*;
use crate::pod::containers::ImageLayers;

/// An image's layers, the lowest first. An image may name a layer twice, which
/// overlayfs refuses: the upper one hides all of the lower.
fn layer_images(image: &kina_image::Image) -> Vec<LayerImage> {
    let mut layers: Vec<LayerImage> = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let diff_id = layer.diff_id.to_string();
        layers.retain(|known| known.diff_id != diff_id);
        layers.push(LayerImage { diff_id, path: layer.image_path.clone() });
    }
    layers
}

impl Pod {
    fn container_error(&self, id: &ContainerId) -> Error {
        Error::ContainerNotFound { id: id.to_string() }
    }

    pub(super) async fn create(&mut self, new: NewContainer, reply: Reply<ContainerId>) {
        let Some(guest) = self.guest.clone().filter(|_| self.state.is_ready()) else {
            let _ = reply.send(Err(self.wrong_state("create a container in it")));
            return;
        };
        let same_name =
            self.containers.values_mut().find(|known| known.view.spec.metadata == new.spec.metadata);
        if let Some(known) = same_name {
            let same = *known.view.spec == new.spec;
            match known.view.state {
                // The caller gave up on the first call and asks again.
                ContainerState::Creating if same => known.creators.push(reply),
                ContainerState::Created if same => drop(reply.send(Ok(known.view.id.clone()))),
                // The name will be free in a moment.
                ContainerState::Removing(_) => {
                    known.waiting.push(Request::new(Command::CreateContainer(Box::new(new), reply)));
                }
                _ => {
                    let metadata = &new.spec.metadata;
                    let name = format!("{} (attempt {})", metadata.name, metadata.attempt);
                    let id = known.view.id.to_string();
                    let _ = reply.send(Err(Error::NameTaken { what: "container", name, id }));
                }
            }
            return;
        }

        let NewContainer { id, spec, process, image: lease, image_volumes, log_path } = new;
        let image = lease.image();
        let volumes: Vec<&kina_image::Image> = image_volumes.iter().map(Lease::image).collect();
        let layers = ImageLayers {
            root: layer_images(image),
            volumes: volumes.iter().map(|image| layer_images(image)).collect(),
        };
        let all = std::iter::once(image).chain(volumes.iter().copied()).flat_map(|image| &image.layers);
        let view = ContainerView {
            id: id.clone(),
            pod: self.subject.id.clone(),
            image: ContainerImage {
                requested: spec.image.clone(),
                user_specified: spec.user_specified_image.clone(),
                annotations: spec.image_annotations.clone(),
                id: image.id.clone(),
                reference: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
                volumes: image.config.volumes.clone(),
            },
            image_volumes: volumes.iter().map(|image| image.id.clone()).collect(),
            spec: Arc::new(spec),
            process,
            log_path,
            state: ContainerState::Creating,
            created_at: now(),
            identity: None,
        };
        let container = Container {
            view: view.clone(),
            layers: all.map(|layer| layer.diff_id.clone()).collect(),
            _leases: std::iter::once(lease).chain(image_volumes).collect(),
            log: None,
            ending: false,
            early_end: None,
            stop_asked: Arc::default(),
            waiting: Vec::new(),
            creators: vec![reply],
            starters: Vec::new(),
            removers: Vec::new(),
        };
        self.containers.insert(id.clone(), container);
        if let Err(error) = self.record_container(&id).await {
            self.spawn(async move { Done::Created(id, Err(error)) });
            return;
        }
        let subject = self.subject.clone();
        let work = Arc::clone(&self.container_work).read_owned();
        self.spawn(async move {
            let _work = work.await;
            let result = subject.create_container(&guest, &view, layers).await;
            Done::Created(id, result)
        });
    }

    pub(super) async fn created(
        &mut self,
        id: &ContainerId,
        result: Result<(Identity, Option<ContainerLog>), Error>,
    ) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        match result {
            Ok((identity, log)) => {
                container.view.identity = Some(identity);
                container.log = log;
                self.container_event(id, ContainerEvent::Created).await;
                if let Some(container) = self.containers.get_mut(id) {
                    for reply in std::mem::take(&mut container.creators) {
                        let _ = reply.send(Ok(id.clone()));
                    }
                }
            }
            Err(error) => {
                let mut replies = std::mem::take(&mut container.creators).into_iter();
                let reason = chain(&error);
                warn!(pod = %self.subject.id, container = %id, reason, "the container was not made");
                // The first asked first and gets the error as it is.
                if let Some(reply) = replies.next() {
                    let _ = reply.send(Err(error));
                }
                for reply in replies {
                    let (container, reason) = (id.clone(), reason.clone());
                    let _ =
                        reply.send(Err(Error::ContainerFailed { container, operation: "create", reason }));
                }
                self.container_event(id, ContainerEvent::CreateFailed).await;
            }
        }
        self.replay(id).await;
    }

    pub(super) async fn start_container(&mut self, id: ContainerId, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(&id) else {
            let _ = reply.send(Err(self.container_error(&id)));
            return;
        };
        // A start under way answers all who ask for it.
        if container.view.state == ContainerState::Starting {
            container.starters.push(reply);
            return;
        }
        if self.guest.is_none() && container.view.state == ContainerState::Created {
            let _ = reply.send(Err(self.wrong_state("start a container in it")));
            return;
        }
        match container.view.state.step(ContainerEvent::StartAsked) {
            Ok((_, effects)) if effects.is_empty() => drop(reply.send(Ok(()))),
            Ok((next, effects)) => {
                container.starters.push(reply);
                container.view.state = next;
                self.perform_container(&id, effects).await;
                self.publish();
            }
            Err(ContainerDenied::Later) => {
                container.waiting.push(Request::new(Command::StartContainer(id, reply)))
            }
            Err(ContainerDenied::AlreadyRan | ContainerDenied::Impossible) => {
                let state = container.view.state.name();
                let _ =
                    reply.send(Err(Error::ContainerState { container: id, state, operation: "start it" }));
            }
        }
    }

    pub(super) async fn started(&mut self, id: &ContainerId, result: Result<(Nanos, u32), Error>) {
        let identity = self.containers.get_mut(id).and_then(|container| container.view.identity.as_mut());
        let event = match &result {
            Ok((started_at, pid)) => {
                identity.into_iter().for_each(|identity| identity.pid = *pid);
                ContainerEvent::Started(*started_at)
            }
            Err(error) => ContainerEvent::StartFailed(now(), chain(error)),
        };
        let (early_end, replies) = self
            .containers
            .get_mut(id)
            .map(|container| (container.early_end.take(), std::mem::take(&mut container.starters)))
            .unwrap_or_default();
        // What has ended did run, whatever became of the answer.
        let (before, after) = if result.is_ok() { (None, early_end) } else { (early_end, None) };
        if let Some(end) = before {
            self.container_event(id, end).await;
        }
        self.container_event(id, event).await;
        let mut replies = replies.into_iter();
        match result {
            Ok(_) => replies.for_each(|reply| drop(reply.send(Ok(())))),
            Err(error) => {
                let reason = chain(&error);
                if let Some(reply) = replies.next() {
                    let _ = reply.send(Err(error));
                }
                for reply in replies {
                    let (container, reason) = (id.clone(), reason.clone());
                    let _ = reply.send(Err(Error::ContainerFailed { container, operation: "start", reason }));
                }
            }
        }
        if let Some(end) = after {
            self.container_event(id, end).await;
        }
        self.replay(id).await;
    }

    pub(super) fn update_container(&mut self, id: ContainerId, resources: Box<Resources>, reply: Reply<()>) {
        let Some(container) = self.containers.get(&id) else {
            let _ = reply.send(Err(self.container_error(&id)));
            return;
        };
        match (&container.view.state, self.guest.clone()) {
            (ContainerState::Created | ContainerState::Running(_), Some(guest)) => {
                let subject = self.subject.clone();
                self.spawn(async move {
                    let result = subject.update_container(&guest, &id, &resources).await;
                    Done::Updated(id, resources, result, reply)
                });
            }
            (state, _) => {
                let (state, operation) = (state.name(), "change its limits");
                let _ = reply.send(Err(Error::ContainerState { container: id, state, operation }));
            }
        }
    }

    pub(super) async fn updated(
        &mut self,
        id: &ContainerId,
        resources: &Resources,
        result: Result<(), Error>,
        reply: Reply<()>,
    ) {
        if result.is_ok()
            && let Some(container) = self.containers.get_mut(id)
        {
            let mut spec = (*container.view.spec).clone();
            spec.resources.update(resources);
            container.view.spec = Arc::new(spec);
            // The limits hold whatever the record says.
            let _ = self.record_container(id).await;
            self.publish();
        }
        let _ = reply.send(result);
    }

    pub(super) fn stop_container(&mut self, id: &ContainerId, timeout: Duration, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(id) else {
            let _ = reply.send(Ok(()));
            return;
        };
        match (&container.view.state, &self.guest) {
            (ContainerState::Running(_), Some(guest)) => {
                let (subject, guest) = (self.subject.clone(), guest.clone());
                let (view, pod) = (container.view.clone(), self.publish.subscribe());
                let asked = Arc::clone(&container.stop_asked);
                self.spawn(async move {
                    Done::Answer(subject.stop_container(&guest, &view, timeout, &asked, pod).await, reply)
                });
            }
            (ContainerState::Creating | ContainerState::Starting, _) => {
                container.waiting.push(Request::new(Command::StopContainer(id.clone(), timeout, reply)));
            }
            // Nothing runs; or the pod is being torn down, which ends it.
            (
                ContainerState::Running(_)
                | ContainerState::Created
                | ContainerState::Exited(_)
                | ContainerState::Removing(_)
                | ContainerState::Gone,
                _,
            ) => drop(reply.send(Ok(()))),
        }
    }

    pub(super) async fn remove_container(&mut self, id: ContainerId, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(&id) else {
            let _ = reply.send(Ok(()));
            return;
        };
        // One that runs is ended first; the request comes back when it has.
        if matches!(container.view.state, ContainerState::Running(_)) {
            container.waiting.push(Request::new(Command::RemoveContainer(id.clone(), reply)));
            let (unheard, _) = oneshot::channel();
            self.stop_container(&id, Duration::ZERO, unheard);
            return;
        }
        match container.view.state.step(ContainerEvent::RemoveAsked(now())) {
            Ok((next, effects)) => {
                container.removers.push(reply);
                container.view.state = next;
                self.perform_container(&id, effects).await;
                self.publish();
            }
            Err(ContainerDenied::Later) => {
                container.waiting.push(Request::new(Command::RemoveContainer(id, reply)))
            }
            Err(ContainerDenied::AlreadyRan | ContainerDenied::Impossible) => {
                let state = container.view.state.name();
                let _ =
                    reply.send(Err(Error::ContainerState { container: id, state, operation: "remove it" }));
            }
        }
    }

    pub(super) async fn removed(&mut self, id: &ContainerId, result: Result<(), String>) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let replies = std::mem::take(&mut container.removers);
        let event = if result.is_ok() { ContainerEvent::Removed } else { ContainerEvent::RemoveFailed };
        self.container_event(id, event).await;
        for reply in replies {
            let answer = result.clone().map_err(|reason| Error::ContainerFailed {
                container: id.clone(),
                operation: "remove",
                reason,
            });
            let _ = reply.send(answer);
        }
        if self.containers.get(id).is_none_or(|container| container.view.state != ContainerState::Gone) {
            self.replay(id).await;
            return;
        }
        // Requests that waited find that it is gone, and its name free.
        let waiting = self.containers.remove(id).map(|gone| gone.waiting).unwrap_or_default();
        self.publish();
        for request in waiting {
            self.obey_again(request).await;
        }
    }

    /// Something happened to a container.
    pub(super) async fn container_event(&mut self, id: &ContainerId, event: ContainerEvent) {
        let Some(container) = self.containers.get_mut(id) else {
            debug!(pod = %self.subject.id, container = %id, ?event, "news of an unknown container");
            return;
        };
        debug!(pod = %self.subject.id, container = %id, state = container.view.state.name(), ?event, "container event");
        let ended = matches!(event, ContainerEvent::ExitSeen { .. } | ContainerEvent::MachineEnded(..));
        match container.view.state.step(event) {
            Ok((next, effects)) => {
                let changed = next != container.view.state;
                container.view.state = next;
                self.perform_container(id, effects).await;
                if changed {
                    self.publish();
                }
            }
            Err(denied) => warn!(pod = %self.subject.id, container = %id, %denied, "container event ignored"),
        }
        if ended {
            self.replay(id).await;
        }
    }

    /// Requests that waited for the container come again.
    async fn replay(&mut self, id: &ContainerId) {
        let waiting = self
            .containers
            .get_mut(id)
            .map(|container| std::mem::take(&mut container.waiting))
            .unwrap_or_default();
        for request in waiting {
            self.obey_again(request).await;
        }
    }

    /// Performs effects on a container: records at once, the rest in a task.
    pub(super) async fn perform_container(&mut self, id: &ContainerId, effects: Vec<ContainerEffect>) {
        let mut rest = effects.into_iter().peekable();
        while rest.next_if_eq(&ContainerEffect::Record).is_some() {
            // The guest, or what is found after a restart, tells what the
            // record would have told.
            let _ = self.record_container(id).await;
        }
        let rest: Vec<ContainerEffect> = rest.collect();
        let work = Arc::clone(&self.container_work).read_owned();
        let log = self.containers.get(id).and_then(|container| container.log.clone());
        let (subject, guest, id) = (self.subject.clone(), self.guest.clone(), id.clone());
        match (rest.first(), guest) {
            (None, _) => {}
            (Some(ContainerEffect::GuestStart), Some(guest)) => {
                self.spawn(async move {
                    let _work = work.await;
                    let result = subject.start_container(&guest, &id).await;
                    Done::Started(id, result)
                });
            }
            (Some(_), guest) => {
                self.spawn(async move {
                    let _work = work.await;
                    let result = subject.remove_container(guest.as_ref(), &id, &rest, log.as_ref()).await;
                    Done::Removed(id, result)
                });
            }
        }
    }

    async fn record_container(&self, id: &ContainerId) -> Result<(), Error> {
        let Some(container) = self.containers.get(id) else {
            return Ok(());
        };
        let view = &container.view;
        let record = ContainerRecord {
            id: view.id.clone(),
            pod: view.pod.clone(),
            spec: (*view.spec).clone(),
            image: view.image.clone(),
            image_volumes: view.image_volumes.clone(),
            layers: container.layers.clone(),
            process: view.process.clone(),
            log_path: view.log_path.clone(),
            state: view.state.clone(),
            created_at: view.created_at,
            identity: view.identity.clone(),
        };
        let table = self.subject.context.store.table::<ContainerRecord>();
        let write = table.put(id.as_str(), &record);
        let result = failpoint::around(ContainerEffect::Record.name(), write).await;
        if let Err(error) = &result {
            warn!(pod = %self.subject.id, container = %id, error = chain(error), "write the container's record");
        }
        Ok(result?)
    }
}
