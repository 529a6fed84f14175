//! What the daemon tells of itself to Prometheus.
//!
//! [`Metrics`] is what is counted as it happens; whoever does the work has a clone
//! and keeps a guard while it goes on, so that work that is given up is counted,
//! too. What can be looked at (pods, containers, the process) is counted when
//! somebody asks (`present`). Labels come from closed sets or from the node's
//! administrator, never from pods: the number of series is bounded.
//! docs/metrics.md is made from all of it.

mod endpoint;
mod present;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use kina_image::Progress;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::prometheus_text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

pub use endpoint::Endpoint;

/// What the names of all metrics but the process's begin with.
const PREFIX: &str = "kina";

/// Upper bounds of the buckets of durations, in seconds: from a list to a boot
/// that is at its deadline.
const QUICK: [f64; 13] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

/// Likewise of pulls.
const LONG: [f64; 10] = [0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 180.0, 600.0, 1800.0];

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MethodLabels {
    service: &'static str,
    method: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    service: &'static str,
    method: String,
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BootLabels {
    driver: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PluginLabels {
    plugin: String,
    operation: String,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SessionLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SessionEndLabels {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// What is counted as it happens. Clones are the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    calls: Family<CallLabels, Counter>,
    call_durations: Durations<MethodLabels>,
    boots: Durations<BootLabels>,
    pulls: Durations<ResultLabels>,
    pulled_bytes: Counter,
    plugins: Durations<PluginLabels>,
    sessions: Family<SessionLabels, Gauge>,
    session_ends: Family<SessionEndLabels, Counter>,
    log_bytes: Counter,
    log_waits: Counter,
    logs_waiting: Gauge,
    events_lost: Counter,
}

fn quick() -> Histogram {
    Histogram::new(QUICK)
}

fn long() -> Histogram {
    Histogram::new(LONG)
}

fn durations<L: Clone + std::hash::Hash + Eq>(make: fn() -> Histogram) -> Durations<L> {
    Family::new_with_constructor(make)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let (calls, call_durations) = (Family::default(), durations(quick));
        registry.register("calls", "gRPC calls that have ended, by their code", calls.clone());
        registry.register(
            "call_duration_seconds",
            "How long gRPC calls took; of those with a stream of answers, until its end",
            call_durations.clone(),
        );
        let boots = durations(quick);
        registry.register(
            "machine_boot_duration_seconds",
            "From a machine's start to its guest's answer, or to the failure",
            boots.clone(),
        );
        let (pulls, pulled_bytes) = (durations(long), Counter::default());
        registry.register("pull_duration_seconds", "How long pulls of images took", pulls.clone());
        registry.register(
            "pulled_bytes",
            "Bytes of layers that registries have sent; of a pull that several callers wait for, to each",
            pulled_bytes.clone(),
        );
        let plugins = durations(quick);
        registry.register(
            "cni_call_duration_seconds",
            "How long network plugins took; a failure is what the plugin says, or that it cannot run",
            plugins.clone(),
        );
        let (sessions, session_ends) = (Family::default(), Family::default());
        registry.register("streaming_sessions", "Sessions of clients that go on now", sessions.clone());
        registry.register(
            "streaming_sessions_ended",
            "Sessions that came to their end, failed, or were cut with one of their ends",
            session_ends.clone(),
        );
        let (log_bytes, log_waits, logs_waiting) = (Counter::default(), Counter::default(), Gauge::default());
        registry.register(
            "log_written_bytes",
            "Bytes of logs that the daemon has written for machines with a kernel of their own",
            log_bytes.clone(),
        );
        registry.register(
            "log_waits",
            "How often such a log could not be written, so that its container was held back",
            log_waits.clone(),
        );
        registry.register("logs_waiting", "Such logs that cannot be written now", logs_waiting.clone());
        let events_lost = Counter::default();
        registry.register(
            "event_streams_lost",
            "Readers of container events that were too slow and lost their stream",
            events_lost.clone(),
        );
        let build: Family<BuildLabels, Gauge> = Family::default();
        build.get_or_create(&BuildLabels { version: env!("KINA_VERSION") }).set(1);
        registry.register("build_info", "Which kina this is", build);
        let inner = Inner {
            registry,
            calls,
            call_durations,
            boots,
            pulls,
            pulled_bytes,
            plugins,
            sessions,
            session_ends,
            log_bytes,
            log_waits,
            logs_waiting,
            events_lost,
        };
        Self { inner: Arc::new(inner) }
    }
}

impl Metrics {
    /// All of them, in Prometheus' text format.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub fn write(&self, text: &mut String) -> fmt::Result {
        encode(text, &self.inner.registry)
    }

    /// A gRPC call has ended.
    pub(crate) fn called(&self, service: &'static str, method: &str, code: &'static str, begin: Instant) {
        let method = method.to_owned();
        let seconds = begin.elapsed().as_secs_f64();
        self.inner.calls.get_or_create(&CallLabels { service, method: method.clone(), code }).inc();
        self.inner.call_durations.get_or_create(&MethodLabels { service, method }).observe(seconds);
    }

    /// A machine is started; see [`Boot::ready`].
    pub(crate) fn boot(&self, driver: &'static str) -> Boot {
        Boot { metrics: self.clone(), driver, begin: Instant::now(), result: "failed" }
    }

    /// An image is pulled, which that channel tells the progress of.
    pub(crate) fn pull(&self, progress: watch::Receiver<Progress>) -> Pull {
        Pull { metrics: self.clone(), progress, begin: Instant::now(), result: "cancelled" }
    }

    /// A network plugin has been called.
    pub(crate) fn plugin(&self, plugin: &str, operation: &str, result: &'static str, begin: Instant) {
        let labels = PluginLabels { plugin: plugin.to_owned(), operation: operation.to_owned(), result };
        self.inner.plugins.get_or_create(&labels).observe(begin.elapsed().as_secs_f64());
    }

    /// A session of that kind begins.
    pub(crate) fn session(&self, kind: &'static str) -> Session {
        self.inner.sessions.get_or_create(&SessionLabels { kind }).inc();
        Session { metrics: self.clone(), kind, result: "cut" }
    }

    /// So much of a log is in its file.
    pub(crate) fn log_written(&self, bytes: usize) {
        self.inner.log_bytes.inc_by(bytes as u64);
    }

    /// A log cannot be written, for as long as the answer is kept.
    pub(crate) fn log_wait(&self) -> LogWait {
        self.inner.log_waits.inc();
        self.inner.logs_waiting.inc();
        LogWait { metrics: self.clone() }
    }

    /// A reader of events was too slow.
    pub(crate) fn events_lost(&self) {
        self.inner.events_lost.inc();
    }
}

/// A machine that boots. Dropped before it is ready, it has failed or was given up.
#[derive(Debug)]
pub(crate) struct Boot {
    metrics: Metrics,
    driver: &'static str,
    begin: Instant,
    result: &'static str,
}

impl Boot {
    /// Its guest has answered.
    pub(crate) fn ready(mut self) {
        self.result = "ready";
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        let labels = BootLabels { driver: self.driver, result: self.result };
        self.metrics.inner.boots.get_or_create(&labels).observe(self.begin.elapsed().as_secs_f64());
    }
}

/// An image that is pulled. Dropped before it has ended, its caller has gone.
#[derive(Debug)]
pub(crate) struct Pull {
    metrics: Metrics,
    progress: watch::Receiver<Progress>,
    begin: Instant,
    result: &'static str,
}

impl Pull {
    /// It has ended, well or not.
    pub(crate) fn ended(mut self, well: bool) {
        self.result = if well { "done" } else { "failed" };
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        let inner = &self.metrics.inner;
        let labels = ResultLabels { result: self.result };
        inner.pulls.get_or_create(&labels).observe(self.begin.elapsed().as_secs_f64());
        let bytes = self.progress.borrow().layers.iter().map(|layer| layer.transferred).sum();
        inner.pulled_bytes.inc_by(bytes);
    }
}

/// A session that goes on. Dropped before it has ended, it was cut.
#[derive(Debug)]
pub(crate) struct Session {
    metrics: Metrics,
    kind: &'static str,
    result: &'static str,
}

impl Session {
    /// It has ended, well or not.
    pub(crate) fn ended(mut self, well: bool) {
        self.result = if well { "done" } else { "failed" };
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Self { metrics, kind, result } = self;
        metrics.inner.sessions.get_or_create(&SessionLabels { kind }).dec();
        metrics.inner.session_ends.get_or_create(&SessionEndLabels { kind, result }).inc();
    }
}

/// A log that cannot be written.
#[derive(Debug)]
pub(crate) struct LogWait {
    metrics: Metrics,
}

impl Drop for LogWait {
    fn drop(&mut self) {
        self.metrics.inner.logs_waiting.dec();
    }
}

#[cfg(test)]
mod tests;
