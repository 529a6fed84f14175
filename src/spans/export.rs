//! The export to a collector, which may be slow, or not there: spans wait in a queue that
//! takes no more when it is full, a thread of the library's sends them in batches, and
//! nobody waits for it but the daemon's end, for a moment.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use tokio::runtime::Handle;
use tonic::codegen::http::Uri;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tracing::{info, warn};

use super::TRACER;

/// What this daemon is called where nothing else is said (`OTEL_SERVICE_NAME`).
const SERVICE: &str = "kina";

/// Spans that wait for the collector; more are dropped.
const QUEUE: usize = 2048;
/// Spans that are sent at once.
const BATCH: usize = 512;
/// How long spans wait for others.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a batch may take, with connecting and trying again.
const EXPORT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a daemon that ends waits for what is still to be sent.
const LAST_DEADLINE: Duration = Duration::from_secs(2);

/// How often a collector that takes nothing is told of, at most.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(5 * 60);

/// Where spans go and which are made.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportConfig {
    /// The collector: scheme, host and port.
    pub endpoint: Uri,
    /// PEM file of further authorities for its certificate.
    pub ca_bundle: Option<PathBuf>,
    /// Which part of the calls without a traced caller is traced, from 0 to 1.
    pub sampled: f64,
}

/// Why nothing can be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The authorities cannot be read.
    #[error("tracing.ca_bundle: read {path}")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file holds none.
    #[error("tracing.ca_bundle: {path} holds no certificate; a PEM file is expected")]
    NoAuthority {
        /// The file.
        path: PathBuf,
    },
    /// Something of it is no certificate, or the endpoint is none.
    #[error("tracing: set up the connection to {endpoint}")]
    Connection {
        /// The collector.
        endpoint: Uri,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The library refuses what it was given, by a variable `OTEL_…` for example.
    #[error("tracing: make the exporter; a variable OTEL_EXPORTER_OTLP_… may say what kina cannot do")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    /// There is an export in this process.
    #[error("tracing: spans are exported already")]
    Twice,
}

/// An export that goes on.
#[derive(Debug)]
pub struct Export {
    provider: SdkTracerProvider,
}

impl Export {
    /// Starts it, once in a process. It connects when there is something to send. To be
    /// called in a Tokio runtime, which does the sending.
    ///
    /// # Errors
    /// When there is something wrong with the configuration, or with a variable `OTEL_…`.
    pub fn start(config: &ExportConfig) -> Result<Self, ExportError> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(endpoint(config)?.connect_lazy())
            .with_timeout(EXPORT_DEADLINE)
            .build()
            .map_err(ExportError::Exporter)?;
        let provider = provider(Reporting::new(exporter), config.sampled);
        let scope = InstrumentationScope::builder(SERVICE).with_version(env!("KINA_VERSION")).build();
        TRACER.set(provider.tracer_with_scope(scope)).map_err(|_| ExportError::Twice)?;
        info!(endpoint = %config.endpoint, sampled = config.sampled, "traces are exported");
        Ok(Self { provider })
    }

    /// Sends what is left, for as long as a daemon that ends can wait.
    pub async fn stop(self) {
        let stop = move || self.provider.shutdown_with_timeout(LAST_DEADLINE);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(stop).await {
            warn!(%error, "the last traces may be lost");
        }
    }
}

fn endpoint(config: &ExportConfig) -> Result<Endpoint, ExportError> {
    let failed = |source| ExportError::Connection { endpoint: config.endpoint.clone(), source };
    let endpoint =
        Endpoint::from(config.endpoint.clone()).connect_timeout(EXPORT_DEADLINE).timeout(EXPORT_DEADLINE);
    if config.endpoint.scheme_str() != Some("https") {
        return Ok(endpoint);
    }
    let mut tls = ClientTlsConfig::new().with_webpki_roots();
    if let Some(path) = &config.ca_bundle {
        let pem =
            std::fs::read(path).map_err(|source| ExportError::Authorities { path: path.clone(), source })?;
        if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") {
            return Err(ExportError::NoAuthority { path: path.clone() });
        }
        tls = tls.ca_certificate(Certificate::from_pem(pem));
    }
    endpoint.tls_config(tls).map_err(failed)
}

fn provider(exporter: impl SpanExporter + 'static, sampled: f64) -> SdkTracerProvider {
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(PAUSE)
        .build();
    SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sampled))))
        .with_resource(resource())
        .with_span_processor(BatchSpanProcessor::new(exporter, batches))
        .build()
}

/// What is the same of all spans. What `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`
/// say comes first.
fn resource() -> Resource {
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let resource = Resource::builder_empty()
        .with_service_name(SERVICE)
        .with_attributes([
            KeyValue::new("service.version", env!("KINA_VERSION")),
            KeyValue::new("host.name", node),
        ])
        .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())]);
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name).build(),
        Ok(_) | Err(_) => resource.build(),
    }
}

/// An exporter that sends from Tokio's threads, in bounded time, and tells the log now and
/// then that it cannot.
#[derive(Debug)]
struct Reporting<E> {
    exporter: Arc<E>,
    runtime: Handle,
    losses: Mutex<Losses>,
}

impl<E> Reporting<E> {
    fn new(exporter: E) -> Self {
        Self { exporter: Arc::new(exporter), runtime: Handle::current(), losses: Mutex::default() }
    }
}

impl<E: SpanExporter + 'static> SpanExporter for Reporting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let exporter = Arc::clone(&self.exporter);
        // The library's thread has no timers. A task ends with the daemon, whatever the
        // collector does.
        let sent = self.runtime.spawn(async move {
            match tokio::time::timeout(EXPORT_DEADLINE, exporter.export(batch)).await {
                Ok(result) => result,
                Err(_) => Err(OTelSdkError::Timeout(EXPORT_DEADLINE)),
            }
        });
        let result = sent.await.unwrap_or(Err(OTelSdkError::AlreadyShutdown));
        let mut losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
        match (&result, losses.note(count, result.is_ok(), Instant::now())) {
            (Err(error), Some(lost)) => warn!(%error, lost, "traces cannot be exported; spans are lost"),
            (Ok(()), Some(lost)) => info!(lost, "traces are exported again"),
            (_, None) => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        // Nothing is exported before it is set, so that nobody else has it.
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}

/// What was lost, and what of that the log has been told.
#[derive(Debug, Default)]
struct Losses {
    /// Spans that the log has not been told of.
    lost: usize,
    told: Option<Instant>,
    /// The log was told of a failure last, not of a success.
    complained: bool,
}

impl Losses {
    /// So many spans were sent or lost. If it is time to tell of it: how many have been lost
    /// since somebody was told.
    fn note(&mut self, spans: usize, sent: bool, now: Instant) -> Option<usize> {
        if sent {
            return std::mem::take(&mut self.complained).then(|| std::mem::take(&mut self.lost));
        }
        self.lost += spans;
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < COMPLAINT_PAUSE) {
            return None;
        }
        self.told = Some(now);
        self.complained = true;
        Some(std::mem::take(&mut self.lost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_that_takes_nothing_is_told_of_now_and_then() {
        let mut losses = Losses::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(losses.note(5, true, at(0)), None);
        assert_eq!(losses.note(5, false, at(1)), Some(5));
        assert_eq!(losses.note(7, false, at(2)), None);
        assert_eq!(losses.note(1, false, at(299)), None);
        assert_eq!(losses.note(1, false, at(301)), Some(9));
        // One that comes and goes is no reason to say more.
        assert_eq!(losses.note(1, false, at(302)), None);
        assert_eq!(losses.note(1, true, at(303)), Some(1));
        assert_eq!(losses.note(1, true, at(304)), None);
        assert_eq!(losses.note(2, false, at(305)), None);
        assert_eq!(losses.note(1, true, at(306)), None);
        assert_eq!(losses.note(2, false, at(602)), Some(4));
    }

    /// An exporter that takes what it gets after as long as it is told.
    #[derive(Debug)]
    struct Slow(Duration);

    impl SpanExporter for Slow {
        async fn export(&self, _batch: Vec<SpanData>) -> OTelSdkResult {
            tokio::time::sleep(self.0).await;
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_export_ends() {
        let quick = Reporting::new(Slow(EXPORT_DEADLINE / 2));
        quick.export(Vec::new()).await.unwrap();
        let hanging = Reporting::new(Slow(Duration::MAX));
        let error = hanging.export(Vec::new()).await.unwrap_err();
        assert!(matches!(error, OTelSdkError::Timeout(EXPORT_DEADLINE)), "{error}");
    }

    #[test]
    fn authorities_that_are_none_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let config = |name: &str| ExportConfig {
            endpoint: Uri::from_static("https://localhost:4317"),
            ca_bundle: Some(directory.path().join(name)),
            sampled: 0.0,
        };
        std::fs::write(directory.path().join("text"), "nothing").unwrap();
        assert!(matches!(endpoint(&config("missing")), Err(ExportError::Authorities { .. })));
        assert!(matches!(endpoint(&config("text")), Err(ExportError::NoAuthority { .. })));
        let plain = ExportConfig { endpoint: Uri::from_static("http://localhost:4317"), ..config("text") };
        endpoint(&plain).unwrap();
    }
}
