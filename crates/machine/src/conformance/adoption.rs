use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use super::{Case, Subject, chain};
use crate::MachineState;

/// A second instance over the same directories finds, reaches, waits for, stops
/// and starts the machines of the first.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn another_instance_adopts(subject: &dyn Subject) {
    let running = Case::new(subject);
    running.create_and_start().await;
    let mut stream = running.answered().await;
    let created = Case::new(subject);
    created.create().await;

    let another = subject.another();
    assert_eq!(running.listed(&*another).await, Some(MachineState::Running));
    assert_eq!(created.listed(&*another).await, Some(MachineState::Created));
    drop(running.answered_by(&*another).await);
    // Adoption does not disturb the guest.
    if let Err(error) = running.within("the guest's answer", subject.probe(&mut *stream)).await {
        panic!("adoption breaks a stream: {error}");
    }
    let spec = subject.spec(&created.pod).await;
    running.ok("create again", another.create(&spec)).await;
    running.ok("start a created machine", another.start(&created.pod)).await;
    drop(created.answered().await);

    let waiting = tokio::spawn({
        let (another, pod) = (another.clone(), running.pod.clone());
        async move { another.wait(&pod).await }
    });
    running.stop().await;
    match running.within("wait of another instance", waiting).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => panic!("wait: {}", chain(&error)),
        Err(error) => panic!("wait: {error}"),
    }
    assert_eq!(running.listed(&*another).await, Some(MachineState::Stopped));
    running.ok("destroy", another.destroy(&running.pod)).await;
    running.assert_unknown().await;
    running.ok("destroy", another.destroy(&created.pod)).await;
    created.assert_unknown().await;
}

/// Create and start dropped after any number of polls leave nothing that
/// destroy does not remove.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn dropped_calls_leave_nothing(subject: &dyn Subject) {
    for polls in 0..8 {
        let case = Case::new(subject);
        let spec = subject.spec(&case.pod).await;
        let finished = poll_some(polls, case.driver.create(&spec)).await;
        if let Some(Err(error)) = finished {
            panic!("create: {}", chain(&error));
        }
        // What there is of it, if anything, is listed, created again and destroyed.
        case.create().await;
        case.assert_state(MachineState::Created).await;
        let finished = poll_some(polls, case.driver.start(&case.pod)).await;
        if let Some(Err(error)) = finished {
            panic!("start: {}", chain(&error));
        }
        case.destroy().await;
        // A start that went on behind our back would show up again.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        case.assert_unknown().await;
    }
}

/// Polls a future so many times, each after it asked to be polled, then drops it.
async fn poll_some<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
