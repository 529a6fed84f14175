//! What every driver must do, as one suite. A driver's tests give it a
//! [`Subject`] and call [`all`]; a broken rule panics with its name.
//!
//! The suite uses tokio's clock, so a driver without real time in it can be
//! tested with a paused one.

mod adoption;
mod lifecycle;
mod streams;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kina_model::PodId;
use tokio::time::Instant;

use crate::{Driver, Error, MachineSpec, MachineState, Share, Stream};

pub use adoption::{another_instance_adopts, dropped_calls_leave_nothing};
pub use lifecycle::{
    a_created_machine_can_be_stopped, a_graceful_end_is_not_waited_out, answers_match_capabilities,
    destroy_works_from_every_state, life_in_order, out_of_order_is_refused, steps_repeat,
    stop_ends_a_guest_that_ignores_it, wait_ends_with_the_machine,
};
pub use streams::{machines_are_apart, many_streams_at_once, streams_break_with_the_machine};

/// A driver with what the suite needs around it.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The driver: the same instance each time.
    fn driver(&self) -> Arc<dyn Driver>;

    /// A new instance over the same directories, as a restarted daemon makes it.
    fn another(&self) -> Arc<dyn Driver>;

    /// What a machine of that pod is made from, its directories and its network
    /// (with an interface, if the driver carries one over) existing. Repeated
    /// for one pod it is the same.
    async fn spec(&self, pod: &PodId) -> MachineSpec;

    /// Exchanges something with the guest over a fresh stream.
    async fn probe(&self, stream: &mut dyn Stream) -> io::Result<()>;

    /// Asks the guest of a pod to end by itself, over a fresh stream or this one,
    /// on which it has answered; does not wait for it.
    async fn ask_to_end(&self, pod: &PodId, stream: Box<dyn Stream>) -> io::Result<()>;

    /// Ends a running machine behind the driver's back, as a crash does.
    async fn crash(&self, pod: &PodId);

    /// Something that can be shared with a machine.
    fn share(&self) -> Share;

    /// How long one step may take, and a guest to answer after its start.
    fn deadline(&self) -> Duration;
}

/// Runs the whole suite, two rules at a time: where machines take long to boot,
/// that is what it takes long for.
///
/// # Panics
/// When the driver breaks a rule.
pub async fn all(subject: &dyn Subject) {
    let one = async {
        life_in_order(subject).await;
        steps_repeat(subject).await;
        out_of_order_is_refused(subject).await;
        destroy_works_from_every_state(subject).await;
        a_created_machine_can_be_stopped(subject).await;
        dropped_calls_leave_nothing(subject).await;
        machines_are_apart(subject).await;
    };
    let other = async {
        stop_ends_a_guest_that_ignores_it(subject).await;
        a_graceful_end_is_not_waited_out(subject).await;
        wait_ends_with_the_machine(subject).await;
        answers_match_capabilities(subject).await;
        another_instance_adopts(subject).await;
        many_streams_at_once(subject).await;
        streams_break_with_the_machine(subject).await;
    };
    tokio::join!(one, other);
}

/// One machine under test.
struct Case<'a> {
    subject: &'a dyn Subject,
    driver: Arc<dyn Driver>,
    pod: PodId,
}

impl<'a> Case<'a> {
    fn new(subject: &'a dyn Subject) -> Self {
        Self { subject, driver: subject.driver(), pod: PodId::random() }
    }

    /// Bounds a step, so that a driver that hangs fails by name.
    async fn within<T>(&self, what: &str, step: impl Future<Output = T>) -> T {
        match tokio::time::timeout(self.subject.deadline(), step).await {
            Ok(result) => result,
            Err(_elapsed) => panic!("{what} takes longer than {:?}", self.subject.deadline()),
        }
    }

    async fn ok<T>(&self, what: &str, step: impl Future<Output = Result<T, Error>>) -> T {
        match self.within(what, step).await {
            Ok(value) => value,
            Err(error) => panic!("{what} fails: {}", chain(&error)),
        }
    }

    async fn create(&self) {
        let spec = self.subject.spec(&self.pod).await;
        self.ok("create", self.driver.create(&spec)).await;
    }

    async fn create_and_start(&self) {
        self.create().await;
        self.ok("start", self.driver.start(&self.pod)).await;
    }

    async fn stop(&self) {
        self.ok("stop", self.driver.stop(&self.pod, Duration::ZERO)).await;
    }

    async fn destroy(&self) {
        self.ok("destroy", self.driver.destroy(&self.pod)).await;
        self.assert_unknown().await;
    }

    async fn listed(&self, driver: &dyn Driver) -> Option<MachineState> {
        let found = self.ok("list", driver.list()).await;
        let mut own = found.iter().filter(|found| found.pod == self.pod);
        let first = own.next().map(|found| found.state);
        assert!(own.next().is_none(), "list shows a machine twice");
        first
    }

    async fn assert_state(&self, expected: MachineState) {
        let status = self.ok("status", self.driver.status(&self.pod)).await;
        assert_eq!(status, expected, "status");
        assert_eq!(self.listed(&*self.driver).await, Some(expected), "list");
    }

    async fn assert_unknown(&self) {
        let status = self.within("status", self.driver.status(&self.pod)).await;
        self.assert_not_found("status", status);
        assert_eq!(self.listed(&*self.driver).await, None, "list shows what is not there");
    }

    fn assert_not_found<T>(&self, what: &str, result: Result<T, Error>) {
        match result {
            Err(Error::NotFound { pod }) => assert_eq!(pod, self.pod, "{what} names the pod"),
            Err(error) => panic!("{what} of an unknown machine: {}", chain(&error)),
            Ok(_) => panic!("{what} of an unknown machine succeeds"),
        }
    }

    /// A stream on which the guest answered, tried until it does.
    async fn answered_by(&self, driver: &dyn Driver) -> Box<dyn Stream> {
        let begin = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            let failure = match self.within("connect", driver.connect(&self.pod)).await {
                Ok(mut stream) => {
                    match self.within("the guest's answer", self.subject.probe(&mut *stream)).await {
                        Ok(()) => return stream,
                        Err(error) => error.to_string(),
                    }
                }
                Err(error @ Error::Connect { .. }) => chain(&error),
                Err(error) => panic!("connect: {}", chain(&error)),
            };
            assert!(begin.elapsed() < self.subject.deadline(), "no answer from the guest: {failure}");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    async fn answered(&self) -> Box<dyn Stream> {
        self.answered_by(&*self.driver).await
    }

    /// A machine that has ended gives no stream, and says so at once.
    async fn assert_not_connectable(&self) {
        let begin = Instant::now();
        match self.within("connect", self.driver.connect(&self.pod)).await {
            Err(Error::Connect { pod, .. }) => assert_eq!(pod, self.pod),
            Err(error) => panic!("connect fails as {}", chain(&error)),
            Ok(_) => panic!("connect to a machine that does not run succeeds"),
        }
        assert!(begin.elapsed() < Duration::from_secs(1), "a refused connect takes {:?}", begin.elapsed());
    }
}

fn assert_wrong_state<T>(what: &str, result: Result<T, Error>) {
    match result {
        Err(Error::WrongState { .. }) => {}
        Err(error) => panic!("{what} fails as {}", chain(&error)),
        Ok(_) => panic!("{what} succeeds"),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
