//! Work that several callers can wait for and that is done once.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Locks a mutex whose data is valid even if a holder panicked.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The work under way, by key. `T` is its result, `P` its progress.
pub(crate) struct Flights<K, T, P> {
    under_way: Mutex<HashMap<K, Weak<Flight<T, P>>>>,
}

/// One piece of work. It is given up when the last holder lets go.
pub(crate) struct Flight<T, P> {
    result: watch::Receiver<Option<T>>,
    progress: watch::Receiver<P>,
    task: JoinHandle<()>,
}

impl<T, P> Drop for Flight<T, P> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<K, T, P> Flights<K, T, P>
where
    K: Eq + Hash,
    T: Clone + Send + Sync + 'static,
    P: Clone + Default + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self { under_way: Mutex::new(HashMap::new()) }
    }

    /// Joins the work of this key, or starts it. The flag tells whether it was
    /// started here. Must be called within a tokio runtime.
    pub(crate) fn join<F>(
        &self,
        key: K,
        start: impl FnOnce(watch::Sender<P>) -> F,
    ) -> (Arc<Flight<T, P>>, bool)
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut under_way = lock(&self.under_way);
        if let Some(flight) = under_way.get(&key).and_then(Weak::upgrade) {
            // What has ended already may be outdated, for example by a moved tag.
            if flight.result.borrow().is_none() && !flight.task.is_finished() {
                return (flight, false);
            }
        }
        under_way.retain(|_, flight| flight.strong_count() > 0);
        let (result_sender, result) = watch::channel(None);
        let (progress_sender, progress) = watch::channel(P::default());
        let work = start(progress_sender);
        let task = tokio::spawn(async move {
            let outcome = work.await;
            result_sender.send_replace(Some(outcome));
        });
        let flight = Arc::new(Flight { result, progress, task });
        under_way.insert(key, Arc::downgrade(&flight));
        (flight, true)
    }
}

impl<T, P> Flight<T, P>
where
    T: Clone,
    P: Clone,
{
    /// Waits for the result, showing progress on the way. `None` if the work
    /// panicked or the runtime is shutting down.
    pub(crate) async fn wait(&self, mut on_progress: impl FnMut(P)) -> Option<T> {
        let mut result = self.result.clone();
        let mut progress = self.progress.clone();
        let mut progress_open = true;
        loop {
            tokio::select! {
                biased;
                outcome = result.wait_for(Option::is_some) => {
                    return outcome.ok().and_then(|outcome| outcome.clone());
                }
                changed = progress.changed(), if progress_open => {
                    progress_open = changed.is_ok();
                    let current = progress.borrow_and_update().clone();
                    on_progress(current);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn work_is_shared_and_outlives_a_caller_but_not_all() {
        let flights: Flights<&str, u32, ()> = Flights::new();
        let started = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Notify::new());
        let alive = Arc::new(());
        let work = || {
            let (started, gate, alive) = (started.clone(), gate.clone(), alive.clone());
            async move {
                let _alive = alive;
                started.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                7
            }
        };
        let (first, is_first) = flights.join("a", |_| work());
        let (second, is_second) = flights.join("a", |_| work());
        assert!(is_first && !is_second);
        drop(first);
        gate.notify_one();
        assert_eq!(second.wait(|()| ()).await, Some(7));
        assert_eq!(started.load(Ordering::SeqCst), 1);

        // What has ended is not joined.
        let (third, is_third) = flights.join("a", |_| work());
        assert!(is_third);
        drop(third);
        while Arc::strong_count(&alive) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
