//! Boots wait for each other: Apple's service does one at a time, and holds a lock
//! meanwhile that the end of a machine takes, too. So machines that are to end
//! come before the next boot.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

/// How long a boot lets ending machines go first, so that it has its turn in the end.
const COURTESY: Duration = Duration::from_secs(10);

/// The queue.
#[derive(Debug)]
pub(super) struct BootQueue {
    /// One permit, given in the order in which it was asked for.
    turn: Semaphore,
    /// Machines that are being ended now.
    ending: watch::Sender<usize>,
}

/// A boot's turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(#[allow(dead_code, reason = "held")] SemaphorePermit<'a>);

/// A machine is being ended, until this is dropped.
#[derive(Debug)]
pub(super) struct Ending<'a>(&'a watch::Sender<usize>);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|ending| *ending -= 1);
    }
}

impl BootQueue {
    pub(super) fn new() -> Self {
        Self { turn: Semaphore::new(1), ending: watch::Sender::new(0) }
    }

    /// Waits for a boot's turn; `None` if it is cancelled first. Dropping the call
    /// leaves the queue.
    pub(super) async fn boot(&self, cancel: &CancellationToken) -> Option<Turn<'_>> {
        let turn = async {
            // The semaphore is never closed.
            let permit = self.turn.acquire().await.ok()?;
            let mut ending = self.ending.subscribe();
            // Too long is long enough.
            drop(tokio::time::timeout(COURTESY, ending.wait_for(|ending| *ending == 0)).await);
            Some(Turn(permit))
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => None,
            turn = turn => turn,
        }
    }

    /// Says that a machine is being ended.
    pub(super) fn end(&self) -> Ending<'_> {
        self.ending.send_modify(|ending| *ending += 1);
        Ending(&self.ending)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn boots_have_their_turn_in_order() {
        let queue = Arc::new(BootQueue::new());
        let order = Arc::new(Mutex::new(Vec::new()));
        let cancel = CancellationToken::new();
        let first = queue.boot(&cancel).await.unwrap();
        let mut tasks = Vec::new();
        for number in 0..5 {
            let (queue, order, cancel) = (Arc::clone(&queue), Arc::clone(&order), cancel.clone());
            tasks.push(tokio::spawn(async move {
                let _turn = queue.boot(&cancel).await.unwrap();
                order.lock().unwrap().push(number);
            }));
            tokio::task::yield_now().await;
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_boot_leaves_the_queue() {
        let queue = BootQueue::new();
        let (first, second) = (CancellationToken::new(), CancellationToken::new());
        let turn = queue.boot(&first).await.unwrap();
        let (cancelled, ()) = tokio::join!(queue.boot(&second), async {
            tokio::task::yield_now().await;
            second.cancel();
        });
        assert!(cancelled.is_none());
        drop(turn);
        assert!(queue.boot(&first).await.is_some());
        assert!(queue.boot(&second).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn ending_machines_go_first_for_a_while() {
        let queue = BootQueue::new();
        let cancel = CancellationToken::new();
        let ending = queue.end();
        let other = queue.end();
        let begin = tokio::time::Instant::now();
        let (turn, ()) = tokio::join!(queue.boot(&cancel), async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(ending);
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(other);
        });
        assert_eq!(begin.elapsed(), Duration::from_secs(4));
        drop(turn);
        let _stuck = queue.end();
        let begin = tokio::time::Instant::now();
        assert!(queue.boot(&cancel).await.is_some());
        assert_eq!(begin.elapsed(), COURTESY);
    }
}
