use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::{Case, Subject};
use crate::MachineState;

/// Streams opened at once by the suite.
const STREAMS: usize = 64;

/// Many streams are open at once, each works, and one that nobody reads stalls
/// none.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn many_streams_at_once(subject: &dyn Subject) {
    let case = Case::new(subject);
    case.create_and_start().await;
    let _idle = case.answered().await;
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        open.push(case.answered().await);
    }
    for stream in &mut open {
        if let Err(error) = case.within("the guest's answer", subject.probe(&mut **stream)).await {
            panic!("one of {STREAMS} streams: {error}");
        }
    }
    drop(open);
    drop(case.answered().await);
    case.stop().await;
    case.destroy().await;
}

/// When the machine ends, a reader of its streams is told.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn streams_break_with_the_machine(subject: &dyn Subject) {
    let case = Case::new(subject);
    case.create_and_start().await;
    let mut stream = case.answered().await;
    let reading = tokio::spawn(async move {
        let mut rest = Vec::new();
        // End or error: both tell.
        (&mut *stream).take(1 << 20).read_to_end(&mut rest).await.is_ok()
    });
    let begin = Instant::now();
    case.stop().await;
    if let Err(error) = case.within("the end of a stream", reading).await {
        panic!("the end of a stream: {error}");
    }
    assert!(begin.elapsed() < subject.deadline() + Duration::from_secs(1));
    case.destroy().await;
}

/// What happens to one machine does not happen to another.
///
/// # Panics
/// When the driver breaks the rule.
pub async fn machines_are_apart(subject: &dyn Subject) {
    let first = Case::new(subject);
    let second = Case::new(subject);
    first.create_and_start().await;
    second.create_and_start().await;
    drop(first.answered().await);
    let mut kept = second.answered().await;
    first.stop().await;
    second.assert_state(MachineState::Running).await;
    if let Err(error) = second.within("the guest's answer", subject.probe(&mut *kept)).await {
        panic!("stopping one machine breaks a stream of another: {error}");
    }
    first.destroy().await;
    second.assert_state(MachineState::Running).await;
    second.destroy().await;
}
