use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kina_model::PodId;
use tokio::sync::Semaphore;

use crate::Error;

/// Lets the changes of each machine happen one after another.
#[derive(Default)]
pub struct Turns {
    /// One permit for each machine that is being changed.
    machines: Mutex<HashMap<PodId, Weak<Semaphore>>>,
}

impl Turns {
    /// Runs one change in a task of its own, when no other change of that
    /// machine runs. A caller that is dropped before the change has its turn
    /// takes it back; later it runs to its end.
    ///
    /// # Errors
    /// Those of the change; [`Error::Node`] when it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        pod: &PodId,
        operation: &'static str,
        change: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let permit = self.turn(pod).acquire_owned().await;
        let permit = permit.map_err(|closed| Error::node(pod, operation, closed))?;
        let task = tokio::spawn(async move {
            let result = change.await;
            drop(permit);
            result
        });
        task.await.unwrap_or_else(|broken| Err(Error::node(pod, operation, broken)))
    }

    fn turn(&self, pod: &PodId) -> Arc<Semaphore> {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.retain(|_, turn| turn.strong_count() > 0);
        machines.get(pod).and_then(Weak::upgrade).unwrap_or_else(|| {
            let turn = Arc::new(Semaphore::new(1));
            machines.insert(pod.clone(), Arc::downgrade(&turn));
            turn
        })
    }
}
