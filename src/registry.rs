//! Which pods there are. Names and ids are reserved atomically: there is no
//! moment between looking and taking.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use kina_model::{ContainerId, PodId, PodMetadata, PodSpec};

use crate::error::Error;
use crate::pod::PodHandle;
use crate::pod::view::{ContainerView, PodView};

/// All pods. Cheap to clone. Its lock is only ever held for a look or a change
/// in memory.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    inner: Arc<RwLock<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    pods: BTreeMap<PodId, PodHandle>,
    names: HashMap<PodMetadata, PodId>,
    containers: BTreeMap<ContainerId, PodId>,
}

/// A registry that others keep alive.
#[derive(Clone, Debug)]
pub struct WeakRegistry {
    inner: Weak<RwLock<Inner>>,
}

impl WeakRegistry {
    /// The registry, if it is still there.
    #[must_use]
    pub fn upgrade(&self) -> Option<Registry> {
        self.inner.upgrade().map(|inner| Registry { inner })
    }
}

/// What [`Registry::reserve`] found.
pub enum Reservation<T> {
    /// The name was free and is taken now.
    New(PodHandle, T),
    /// A pod of that name and configuration is there.
    Existing(PodHandle),
    /// The name will be free when this pod is gone.
    Leaving(PodHandle),
}

impl Registry {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        // Nothing panics while it holds the lock for writing.
        self.inner.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A reference that does not keep it alive.
    #[must_use]
    pub fn downgrade(&self) -> WeakRegistry {
        WeakRegistry { inner: Arc::downgrade(&self.inner) }
    }

    /// Takes a pod's name and id, or finds the pod that has the name already:
    /// a caller that repeats its request gets the same pod.
    ///
    /// # Errors
    /// [`Error::NameTaken`] if that pod is configured differently, or has ended.
    pub fn reserve<T>(
        &self,
        spec: &PodSpec,
        make: impl FnOnce() -> (PodHandle, T),
    ) -> Result<Reservation<T>, Error> {
        let mut inner = self.write();
        if let Some(handle) = inner.names.get(&spec.metadata).and_then(|id| inner.pods.get(id)) {
            let view = handle.view();
            // A removed one is forgotten a moment after it says so.
            if matches!(view.state, kina_model::PodState::Removing | kina_model::PodState::Removed) {
                return Ok(Reservation::Leaving(handle.clone()));
            }
            let alive = matches!(view.state, kina_model::PodState::Starting | kina_model::PodState::Ready(_));
            if alive && *view.spec == *spec {
                return Ok(Reservation::Existing(handle.clone()));
            }
            let PodMetadata { name, uid, namespace, attempt } = &spec.metadata;
            return Err(Error::NameTaken {
                what: "pod sandbox",
                name: format!("{namespace}/{name} (uid {uid}, attempt {attempt})"),
                id: handle.id().to_string(),
            });
        }
        let (handle, rest) = make();
        inner.names.insert(spec.metadata.clone(), handle.id().clone());
        inner.pods.insert(handle.id().clone(), handle.clone());
        Ok(Reservation::New(handle, rest))
    }

    /// Takes in a pod of an earlier daemon, with its containers.
    pub fn adopt(
        &self,
        handle: PodHandle,
        metadata: PodMetadata,
        containers: impl IntoIterator<Item = ContainerId>,
    ) {
        let mut inner = self.write();
        inner.names.insert(metadata, handle.id().clone());
        for container in containers {
            inner.containers.insert(container, handle.id().clone());
        }
        inner.pods.insert(handle.id().clone(), handle);
    }

    /// Forgets a removed pod.
    pub fn remove(&self, id: &PodId) {
        let mut inner = self.write();
        inner.pods.remove(id);
        inner.names.retain(|_, owner| owner != id);
        inner.containers.retain(|_, owner| owner != id);
    }

    /// Says in which pod a container will be found.
    pub fn add_container(&self, container: ContainerId, pod: &PodId) {
        self.write().containers.insert(container, pod.clone());
    }

    /// Forgets a container.
    pub fn remove_container(&self, container: &ContainerId) {
        self.write().containers.remove(container);
    }

    /// All pods, by id.
    #[must_use]
    pub fn pods(&self) -> Vec<PodHandle> {
        self.read().pods.values().cloned().collect()
    }

    /// A pod by its id, or by a beginning of it that is unique.
    ///
    /// # Errors
    /// [`Error::PodNotFound`], [`Error::AmbiguousId`].
    pub fn pod(&self, id: &str) -> Result<PodHandle, Error> {
        let inner = self.read();
        let handle = by_prefix(&inner.pods, id, PodId::as_str)?.map(|(_, handle)| handle.clone());
        handle.ok_or_else(|| Error::PodNotFound { id: id.to_owned() })
    }

    /// The container of that id, or of a unique beginning of it, and its pod.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], [`Error::AmbiguousId`].
    pub fn container(&self, id: &str) -> Result<(ContainerId, PodHandle), Error> {
        let inner = self.read();
        by_prefix(&inner.containers, id, ContainerId::as_str)?
            .and_then(|(id, pod)| Some((id.clone(), inner.pods.get(pod)?.clone())))
            .ok_or_else(|| Error::ContainerNotFound { id: id.to_owned() })
    }

    /// A container's snapshot.
    ///
    /// # Errors
    /// As [`Registry::container`].
    pub fn container_view(&self, id: &str) -> Result<(Arc<PodView>, Arc<ContainerView>), Error> {
        let (container, pod) = self.container(id)?;
        let pod = pod.view();
        match pod.containers.get(&container).cloned() {
            Some(view) => Ok((pod, view)),
            None => Err(Error::ContainerNotFound { id: id.to_owned() }),
        }
    }
}

/// The entry whose key is `id` or begins with it.
fn by_prefix<'a, K: Ord, V>(
    map: &'a BTreeMap<K, V>,
    id: &str,
    text: impl Fn(&K) -> &str,
) -> Result<Option<(&'a K, &'a V)>, Error> {
    if id.is_empty() {
        return Ok(None);
    }
    let mut found = map.iter().filter(|(key, _)| text(key).starts_with(id));
    match (found.next(), found.next()) {
        (Some((key, _)), Some(_)) if text(key) != id => Err(Error::AmbiguousId { id: id.to_owned() }),
        (first, _) => Ok(first),
    }
}
