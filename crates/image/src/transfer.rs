//! One layer's way from the hosts into the store.
//!
//! A transfer that breaks off goes on where it was, at the same host or the next,
//! while the unpacking waits: what the worker reads is one stream, and its digest
//! is that of the whole. If pieces turn out not to fit together, nobody knows
//! whose fault that was; the layer is then fetched again in one piece.

use std::sync::Arc;
use std::time::Duration;

use kina_model::Digest;
use reqwest::header::HeaderValue;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Error;
use crate::config::{Config, Timeouts};
use crate::images::Inner;
use crate::manifest::Blob;
use crate::pipe::{PipeWriter, pipe};
use crate::progress::LayerWork;
use crate::registry::{BlobBody, Failure, Host, Session, chain};
use crate::unpack::{LayerSource, unpack};

const PROGRESS_STEP: u64 = 256 << 10;

/// Fetches and unpacks a layer; returns its diff id.
pub(crate) async fn fetch_layer(
    inner: &Arc<Inner>,
    session: &Arc<Session>,
    blob: &Blob,
    progress: &watch::Sender<LayerWork>,
) -> Result<Digest, Error> {
    let mut tries = session.tries(format!("layer {} of {}", blob.digest, session.reference()));
    let mut work = LayerWork::default();
    let mut in_pieces = true;
    loop {
        let (writer, reader) = pipe();
        let worker = {
            let (layout, blob, limits) = (inner.layout.clone(), blob.clone(), inner.config.limits.clone());
            tokio::task::spawn_blocking(move || {
                unpack(&layout, LayerSource::Transfer(reader), &blob, &limits)
            })
        };
        work.fetched = 0;
        let mut transfer = Transfer {
            config: &inner.config,
            session,
            blob,
            writer,
            work,
            source: None,
            pieces: 0,
            progress,
        };
        // Whether all was handed over, or the worker reads no more.
        let mut complete = false;
        while let Some(host) = tries.next().await {
            let before = transfer.work.fetched;
            match transfer.run(&host).await {
                Ok(()) => {
                    complete = true;
                    break;
                }
                Err(failure) => {
                    let advanced = transfer.work.fetched > before;
                    if in_pieces && advanced && transfer.work.resumed < inner.config.limits.resumes {
                        tries.advanced();
                    }
                    tries.failed(failure);
                    if !in_pieces {
                        break;
                    }
                }
            }
        }
        let Transfer { writer, pieces, work: so_far, .. } = transfer;
        work = so_far;
        if complete {
            work.unpacking = true;
            progress.send_replace(work);
            work.unpacking = false;
            writer.finish().await;
        } else {
            // The worker fails, and takes what it has away.
            drop(writer);
        }
        let outcome = worker.await.unwrap_or(Err(Error::Interrupted { what: "unpacking a layer" }));
        match outcome {
            Ok(diff_id) => return Ok(diff_id),
            Err(_) if !complete => {
                if in_pieces || tries.is_over() {
                    return Err(tries.into_error());
                }
            }
            Err(Error::DigestMismatch { .. } | Error::SizeMismatch { .. }) if pieces > 1 => {
                tracing::debug!(layer = %blob.digest, pieces, "the pieces are no whole; fetching it at once");
                in_pieces = false;
            }
            Err(error @ (Error::DigestMismatch { .. } | Error::SizeMismatch { .. })) => {
                tries.failed(Failure::Content(error));
                if tries.is_over() {
                    return Err(tries.into_error());
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// A layer's bytes on their way to the worker.
struct Transfer<'a> {
    config: &'a Config,
    session: &'a Session,
    blob: &'a Blob,
    writer: PipeWriter,
    /// `fetched` is what the worker was given.
    work: LayerWork,
    /// The last host, and what names the content there.
    source: Option<(Arc<Host>, Option<HeaderValue>)>,
    /// Answers that the bytes come from.
    pieces: u32,
    progress: &'a watch::Sender<LayerWork>,
}

impl Transfer<'_> {
    /// Goes on with this host until the end, or until it fails.
    async fn run(&mut self, host: &Arc<Host>) -> Result<(), Failure> {
        let from = self.work.fetched;
        let validator = match &self.source {
            Some((source, validator)) if Arc::ptr_eq(source, host) => validator.clone(),
            Some(_) | None => None,
        };
        let body = self.session.blob(host, self.blob, from, validator.as_ref()).await?;
        if from > 0 {
            self.work.resumed += 1;
        }
        self.source = Some((host.clone(), body.validator.clone()));
        let outcome = self.pass_on(body).await;
        if self.work.fetched > from {
            self.pieces += 1;
        }
        self.progress.send_replace(self.work);
        match outcome {
            // Only the sign that this is the end was missing.
            Err(Failure::Transient { .. }) if self.work.fetched == self.blob.size => Ok(()),
            outcome => outcome,
        }
    }

    /// Passes a body on as it comes, and gives up if it hardly does.
    async fn pass_on(&mut self, body: BlobBody) -> Result<(), Failure> {
        let BlobBody { mut response, mut known, .. } = body;
        let stall = self.config.timeouts.stall;
        let stalled = || Failure::transient(format!("stalled for {stall:?}"));
        let mut shown = self.work.transferred;
        // Only time spent on the network counts, not time waiting for the disk.
        let (mut waited, mut since) = (Duration::ZERO, 0);
        loop {
            let before = Instant::now();
            let mut chunk = match tokio::time::timeout(stall, response.chunk()).await {
                Err(_) => return Err(stalled()),
                Ok(Err(error)) => return Err(Failure::transient(chain(error))),
                Ok(Ok(None)) => break,
                Ok(Ok(Some(chunk))) => chunk,
            };
            let length = chunk.len() as u64;
            waited += before.elapsed();
            since += length;
            if waited >= stall {
                if since < Timeouts::MIN_RATE * stall.as_secs() {
                    return Err(stalled());
                }
                (waited, since) = (Duration::ZERO, 0);
            }
            self.work.transferred += length;
            let skipped = known.min(length);
            known -= skipped;
            let chunk = chunk.split_off(usize::try_from(skipped).unwrap_or(chunk.len()));
            self.work.fetched += chunk.len() as u64;
            if self.work.transferred - shown >= PROGRESS_STEP {
                shown = self.work.transferred;
                self.progress.send_replace(self.work);
            }
            // The worker has its reason when it stops reading.
            if !chunk.is_empty() && !self.writer.write(chunk).await {
                return Ok(());
            }
        }
        Ok(())
    }
}
