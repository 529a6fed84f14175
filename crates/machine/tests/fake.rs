//! The fake driver keeps the rules of every driver, and fails when told to.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kina_machine::conformance::{self, Subject};
use kina_machine::fake::{FakeDriver, Operation};
use kina_machine::{Driver, Error, MachineSpec, MachineState, SandboxNetwork, Share, ShareKind, Stream};
use kina_model::PodId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Guests that echo, and end their machine on this byte.
const END: u8 = 4;

fn echoing() -> FakeDriver {
    let (ending, mut ended) = tokio::sync::mpsc::channel::<PodId>(16);
    let driver = FakeDriver::new(move |pod, mut stream| {
        let ending = ending.clone();
        tokio::spawn(async move {
            let mut byte = [0];
            while stream.read_exact(&mut byte).await.is_ok() {
                if byte[0] == END {
                    drop(ending.send(pod.clone()).await);
                } else if stream.write_all(&byte).await.is_err() {
                    break;
                }
            }
        });
    });
    let killer = driver.clone();
    tokio::spawn(async move {
        while let Some(pod) = ended.recv().await {
            killer.kill(&pod);
        }
    });
    driver
}

struct Fakes(FakeDriver);

#[async_trait]
impl Subject for Fakes {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(self.0.clone())
    }

    fn another(&self) -> Arc<dyn Driver> {
        Arc::new(self.0.clone())
    }

    async fn spec(&self, pod: &PodId) -> MachineSpec {
        spec(pod)
    }

    async fn probe(&self, stream: &mut dyn Stream) -> io::Result<()> {
        stream.write_all(b"x").await?;
        assert_eq!(stream.read_u8().await?, b'x');
        Ok(())
    }

    async fn ask_to_end(&self, _pod: &PodId, mut stream: Box<dyn Stream>) -> io::Result<()> {
        stream.write_all(&[END]).await
    }

    async fn crash(&self, pod: &PodId) {
        assert!(self.0.kill(pod));
    }

    fn share(&self) -> Share {
        Share {
            source: PathBuf::from("/tmp"),
            readonly: false,
            readonly_below: false,
            kind: ShareKind::State,
        }
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(5)
    }
}

fn spec(pod: &PodId) -> MachineSpec {
    MachineSpec {
        pod: pod.clone(),
        directory: PathBuf::from("/nowhere"),
        storage_directory: PathBuf::from("/nowhere"),
        cgroup: format!("/kina/{pod}"),
        network: Some(SandboxNetwork { namespace: PathBuf::from("/proc/self/ns/net"), interface: None }),
        ports: Vec::new(),
        shareable: Vec::new(),
        memory_bytes: 1 << 30,
        cpus: 1,
        user: None,
    }
}

#[tokio::test(start_paused = true)]
async fn the_fake_conforms() {
    conformance::all(&Fakes(echoing())).await;
}

#[tokio::test]
async fn failures_come_once_in_order_before_or_after_the_effect() {
    let driver = echoing();
    let pod = PodId::random();
    let boot = |reason: &str| Error::Boot { pod: pod.clone(), reason: reason.to_owned() };
    driver.create(&spec(&pod)).await.unwrap();
    driver.fail_next(Operation::Start, boot("first"));
    driver.fail_next_after_effect(Operation::Start, boot("second"));
    assert!(driver.start(&pod).await.unwrap_err().to_string().ends_with("first"));
    assert_eq!(driver.status(&pod).await.unwrap(), MachineState::Created);
    assert!(driver.start(&pod).await.unwrap_err().to_string().ends_with("second"));
    assert_eq!(driver.status(&pod).await.unwrap(), MachineState::Running);
    driver.start(&pod).await.unwrap();
    assert_eq!(driver.calls().iter().filter(|(call, _)| *call == Operation::Start).count(), 3);
}

#[tokio::test]
async fn a_gate_holds_one_call_before_its_effect() {
    let driver = echoing();
    let pod = PodId::random();
    driver.create(&spec(&pod)).await.unwrap();
    let gate = driver.gate(Operation::Start);
    let held = tokio::spawn({
        let (driver, pod) = (driver.clone(), pod.clone());
        async move { driver.start(&pod).await }
    });
    gate.reached().await;
    assert_eq!(driver.status(&pod).await.unwrap(), MachineState::Created);
    // Stop overtakes the held start, which then finds a stopped machine.
    driver.stop(&pod, Duration::ZERO).await.unwrap();
    gate.open();
    assert!(matches!(held.await.unwrap(), Err(Error::WrongState { .. })));
}
