//! Going through the hosts.

use std::sync::Arc;
use std::time::Duration;

use super::{Failure, Host};
use crate::Error;
use crate::config::Config;
use crate::error::{Attempt, chain};

/// The longest wait between two tries of its own accord.
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// Goes through the hosts, trying each again after transient failures.
#[derive(Debug)]
pub(crate) struct Tries<'a> {
    config: &'a Config,
    subject: String,
    hosts: Vec<Arc<Host>>,
    host: usize,
    /// Failures of the current host in a row.
    attempt: u32,
    /// Whether the current host was of use since its last failure.
    advanced: bool,
    /// Whether the current host was asked before.
    again: bool,
    /// When the current host wants to be asked again.
    after: Option<Duration>,
    attempts: Vec<Attempt>,
    last: Option<(String, Failure)>,
}

impl<'a> Tries<'a> {
    pub(super) fn new(config: &'a Config, subject: String, hosts: Vec<Arc<Host>>) -> Self {
        Self {
            config,
            subject,
            hosts,
            host: 0,
            attempt: 0,
            advanced: false,
            again: false,
            after: None,
            attempts: Vec::new(),
            last: None,
        }
    }

    /// Notes a host that is not asked at all.
    pub(super) fn leave_out(&mut self, host: &Host, reason: &str) {
        self.attempts.push(Attempt { host: host.label(), reason: reason.to_owned() });
    }

    /// The next host to ask, after a wait if it is asked again.
    pub(crate) async fn next(&mut self) -> Option<Arc<Host>> {
        let host = self.hosts.get(self.host)?.clone();
        if self.again {
            let delay = delay(self.config.retry_delay, self.attempt.max(1));
            tokio::time::sleep(self.after.take().map_or(delay, |after| after.max(delay))).await;
        }
        Some(host)
    }

    /// Whether every host has failed.
    pub(crate) fn is_over(&self) -> bool {
        self.host >= self.hosts.len()
    }

    /// Notes that the current host was of use: its next failure does not count,
    /// and those before it no more.
    pub(crate) fn advanced(&mut self) {
        self.advanced = true;
    }

    /// Notes why the host did not serve it.
    pub(crate) fn failed(&mut self, failure: Failure) {
        let Some(host) = self.hosts.get(self.host) else { return };
        let label = host.label();
        let mut again = false;
        let mut reason = match &failure {
            Failure::Missing => "not found".to_owned(),
            Failure::Denied { status, detail } => {
                let mut reason = format!("access denied (HTTP status {status})");
                if let Some(detail) = detail {
                    reason.push_str(", ");
                    reason.push_str(detail);
                }
                reason
            }
            Failure::Transient { reason, after } => {
                // What would take too long is not waited for.
                again = after.is_none_or(|after| after <= self.config.timeouts.retry_after);
                self.after = *after;
                match after {
                    Some(after) => format!("{reason}, to be asked again in {} s", after.as_secs()),
                    None => reason.clone(),
                }
            }
            Failure::Certificate(reason) | Failure::Protocol(reason) => reason.clone(),
            Failure::Content(error) => chain(error),
        };
        self.attempt = if std::mem::take(&mut self.advanced) { 0 } else { self.attempt + 1 };
        tracing::debug!(subject = %self.subject, host = %label, %reason, attempt = self.attempt, "fetch failed");
        if !again || self.attempt >= self.config.attempts {
            if self.attempt > 1 {
                reason = format!("{reason} (after {} tries)", self.attempt);
            }
            self.attempts.push(Attempt { host: label.clone(), reason });
            self.attempt = 0;
            self.host += 1;
            again = false;
        }
        self.again = again;
        self.last = Some((label, failure));
    }

    /// The error once there are no more hosts. Its kind is that of the last one,
    /// which is the registry itself; its text names each with its reason.
    pub(crate) fn into_error(self) -> Error {
        let Self { subject, attempts, last, .. } = self;
        let error = match last {
            Some((host, Failure::Missing)) => Error::NotFound { subject: subject.clone(), host },
            Some((host, Failure::Denied { status, detail })) => {
                Error::Denied { subject: subject.clone(), host, status, detail }
            }
            Some((host, Failure::Protocol(reason))) => {
                Error::Protocol { subject: subject.clone(), host, reason }
            }
            Some((_, Failure::Content(error))) => error,
            Some((_, Failure::Transient { .. } | Failure::Certificate(_))) | None => {
                return Error::Unreachable { subject, attempts };
            }
        };
        if attempts.len() > 1 {
            return Error::AllHosts { subject, attempts, last: Box::new(error) };
        }
        error
    }
}

/// Doubled for every try, a random half of it, so that many nodes that were cut
/// off together do not come back together.
fn delay(first: Duration, attempt: u32) -> Duration {
    let factor = 1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX);
    let whole = first.saturating_mul(factor).min(LONGEST_DELAY);
    whole.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_end() {
        let first = Duration::from_millis(100);
        for (attempt, whole) in [(1, 100), (2, 200), (5, 1600), (40, 30_000)] {
            let got = delay(first, attempt);
            let whole = Duration::from_millis(whole);
            assert!(got >= whole / 2 && got <= whole, "{attempt}: {got:?}");
        }
    }
}
