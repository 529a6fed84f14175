//! Booting a machine.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kina_machine::Error as MachineError;
use kina_model::PodId;
use kina_node::Recorded;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::NAME;
use super::look::Now;
use super::machines::{END_PATIENCE, END_PAUSE, Machines, told};
use super::record::{Phase, Record, Started};
use super::shares;
use crate::Error;
use crate::command::{self, Boot, State};

const OPERATION: &str = "boot the machine";

/// How often a boot is tried whose hindrance was put out of the way.
const ATTEMPTS: usize = 3;

/// Bytes of the last words that an error has room for.
const FEW_WORDS: usize = 500;

/// How long a machine may be called running without an address. One that ends at once is for a
/// moment: its address is gone before the service notices its end.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(5);

/// The end of a machine's last words, if there are any.
fn few(words: &[u8]) -> Option<String> {
    let last = String::from_utf8_lossy(&words[words.len().saturating_sub(FEW_WORDS)..]);
    let last = last.trim();
    (!last.is_empty()).then(|| last.escape_debug().to_string())
}

/// Why there is no machine.
enum Failure {
    Cancelled,
    Apple(Error),
    /// It ended at once.
    Ended(String),
}

impl Machines {
    pub(super) async fn start(&self, pod: &PodId, cancel: &CancellationToken) -> Result<(), MachineError> {
        let mut record = self.known(pod).await?;
        match self.now(pod, &record).await? {
            Now::Running => return Ok(()),
            Now::Stopped(_) => return Err(MachineError::wrong_state(pod, "start", "stopped")),
            Now::Created => {}
        }
        let cancelled = || MachineError::Boot {
            pod: pod.clone(),
            reason: "it was stopped before it had booted".to_owned(),
        };
        debug!(pod_id = %pod, "the machine waits for its boot");
        let Some(_turn) = self.queue.boot(cancel).await else { return Err(cancelled()) };
        self.check_limit(pod).await?;
        // What a boot left that was ended in its middle.
        if record.phase == Phase::Booting {
            self.delete(pod).await?;
        }
        debug!(pod_id = %pod, "the machine boots");
        record.phase = Phase::Booting;
        self.write(pod, &record).await?;
        let booted = self.boot(pod, &record, cancel).await;
        match booted {
            Ok(started) => {
                record.phase = Phase::Started(started);
                self.write(pod, &record).await
            }
            Err(failure) => {
                // It is still created, and may be started again.
                match self.delete(pod).await {
                    Ok(()) => {
                        record.phase = Phase::Created;
                        self.write(pod, &record).await?;
                    }
                    // As long as it counts as booting, nobody forgets it.
                    Err(error) => {
                        warn!(pod_id = %pod, %error, "a machine that does not boot is not ended either")
                    }
                }
                Err(match failure {
                    Failure::Cancelled => cancelled(),
                    Failure::Apple(error) if error.is_unavailable() => told(pod, OPERATION, error),
                    Failure::Apple(error) => {
                        MachineError::Boot { pod: pod.clone(), reason: super::chain(&error) }
                    }
                    Failure::Ended(reason) => MachineError::Boot { pod: pod.clone(), reason },
                })
            }
        }
    }

    /// Refuses one machine more than can run.
    async fn check_limit(&self, pod: &PodId) -> Result<(), MachineError> {
        let mut running = 0;
        let pods = self.records.pods().await.map_err(|error| told(pod, OPERATION, error.into()))?;
        for other in pods.iter().filter(|other| *other != pod) {
            // A damaged record keeps its pod from running, not others.
            if let Ok(Recorded::Whole(record)) = self.records.read(other).await
                && matches!(record.phase, Phase::Booting | Phase::Started(_))
            {
                running += 1;
            }
        }
        let limit = self.config.limit;
        if running >= limit { Err(MachineError::TooMany { driver: NAME, limit }) } else { Ok(()) }
    }

    /// Has Apple boot a machine, and asks for its address.
    async fn boot(
        &self,
        pod: &PodId,
        record: &Record,
        cancel: &CancellationToken,
    ) -> Result<Started, Failure> {
        let ports: Vec<_> = record.ports.iter().map(Into::into).collect();
        let (layers, socket) = (shares::layers(&record.storage_directory), self.socket(pod));
        let boot = Boot {
            version: self.version,
            pod,
            home: &self.home,
            image: self.image.name(),
            kernel: self.config.kernel.as_deref(),
            network: &self.config.network,
            mtu: self.config.mtu,
            memory_bytes: record.memory_bytes,
            cpus: record.cpus,
            layers: &layers,
            shareable: &record.shareable,
            ports: &ports,
            socket: &socket,
        };
        // Whether Apple's service may have been asked for the machine.
        let asked = AtomicBool::new(false);
        let run = async {
            let mut left = ATTEMPTS;
            loop {
                left -= 1;
                self.image.ensure(&self.container).await?;
                // One that was left there would be taken for somebody's.
                self.node.remove_tree(&socket).await?;
                asked.store(true, Ordering::Relaxed);
                match self.container.run(command::run(&boot)).await {
                    Err(Error::NoImage { .. }) if left > 0 => self.image.forget(),
                    Err(Error::Exists { .. }) if left > 0 => {
                        self.container.delete(&command::container_name(pod)).await.map(drop)?;
                    }
                    Err(Error::SocketExists { .. }) if left > 0 => {}
                    other => break other,
                }
            }
        };
        let mut run = pin!(run);
        tokio::select! {
            biased;
            () = cancel.cancelled() => {
                if asked.load(Ordering::Relaxed) {
                    self.give_up(pod, run).await;
                }
                return Err(Failure::Cancelled);
            }
            done = &mut run => done.map_err(Failure::Apple)?,
        }
        self.booted(pod, cancel).await
    }

    /// What `container run` has made.
    async fn booted(&self, pod: &PodId, cancel: &CancellationToken) -> Result<Started, Failure> {
        let end = Instant::now() + ADDRESS_PATIENCE;
        loop {
            let Some(container) = self.listed(pod).await.map_err(Failure::Apple)? else {
                return Err(Failure::Apple(Error::NotMade));
            };
            // Its guest tells whether it runs where the list does not.
            if !matches!(container.state, State::Running | State::Unknown) {
                return Err(Failure::Ended(match few(&self.keep_words(pod).await) {
                    Some(words) => format!("it ended at once; last words: {words}"),
                    None => "it ended at once, without a word".to_owned(),
                }));
            }
            if let Some(address) = container.address {
                return Ok(Started {
                    network: self.config.network.clone(),
                    address,
                    image: self.image.name().to_owned(),
                    version: self.version.to_string(),
                });
            }
            if Instant::now() >= end {
                return Err(Failure::Apple(Error::NoAddress));
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(Failure::Cancelled),
                () = tokio::time::sleep(END_PAUSE) => {}
            }
        }
    }

    /// Ends a boot in its middle. A program that is killed may have asked Apple's service for the
    /// machine already, which then makes it, whoever has asked for its removal before: so the
    /// program comes to its end, which it does soon once the machine is removed.
    async fn give_up(&self, pod: &PodId, mut run: impl Future<Output = Result<(), Error>> + Unpin) {
        let name = command::container_name(pod);
        let end = async {
            loop {
                // There may be nothing to remove yet.
                drop(self.container.delete(&name).await);
                if tokio::time::timeout(END_PAUSE, &mut run).await.is_ok() {
                    return;
                }
            }
        };
        if tokio::time::timeout(END_PATIENCE, end).await.is_err() {
            warn!(pod_id = %pod, "the boot of a machine that was stopped is killed");
        }
    }
}
