//! Calls end when their callers' deadlines pass, and say so.
//!
//! A caller names its patience in the header `grpc-timeout` (gRPC over HTTP/2,
//! "Requests"). tonic ends such a call as `Cancelled`; gRPC's word for it, which
//! callers look for, is `DeadlineExceeded`.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tonic::codegen::http;

/// The most digits that the header's number may have.
const DIGITS: usize = 8;

/// How long the caller waits for the answer to begin; `None` for a caller
/// without a limit, or with one that makes no sense.
pub(super) fn patience(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > DIGITS || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 60 * 60),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// A call that ends at its caller's deadline, if there is one. What the call
/// had under way is dropped then, as when the caller goes away.
pub(super) struct Bounded<F> {
    call: Pin<Box<F>>,
    limit: Option<Pin<Box<Sleep>>>,
}

impl<F> Bounded<F> {
    pub(super) fn new(call: F, patience: Option<Duration>) -> Self {
        let limit = patience.map(|patience| Box::pin(tokio::time::sleep(patience)));
        Self { call: Box::pin(call), limit }
    }
}

impl<F: Future<Output = Result<http::Response<Body>, Infallible>>> Future for Bounded<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(answer) = self.call.as_mut().poll(context) {
            return Poll::Ready(answer);
        }
        let Some(limit) = &mut self.limit else { return Poll::Pending };
        // tonic has a timer of its own for the same moment. Whichever rings
        // first, the clock says here that it is time.
        let over = limit.as_mut().poll(context).is_ready() || Instant::now() >= limit.deadline();
        if over { Poll::Ready(Ok(super::status::too_late().into_http())) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_a_number_and_a_unit() {
        let ask = |text: &str| {
            let mut headers = http::HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            patience(&headers)
        };
        assert_eq!(patience(&http::HeaderMap::new()), None);
        assert_eq!(ask("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(ask("3M"), Some(Duration::from_secs(180)));
        assert_eq!(ask("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(ask("15m"), Some(Duration::from_millis(15)));
        assert_eq!(ask("999850u"), Some(Duration::from_micros(999_850)));
        assert_eq!(ask("7n"), Some(Duration::from_nanos(7)));
        for bad in ["", "S", "1", "1s", "-1S", "+1S", "123456789S", "1.5S", "1 S"] {
            assert_eq!(ask(bad), None, "{bad:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_at_its_deadline() {
        let begin = Instant::now();
        let late = Bounded::new(std::future::pending(), Some(Duration::from_millis(20)));
        let Ok(answer) = late.await;
        assert_eq!(answer.headers()["grpc-status"], "4");
        assert!(begin.elapsed() >= Duration::from_millis(20));
        let done = Bounded::new(std::future::ready(Ok(http::Response::default())), Some(Duration::ZERO));
        let Ok(answer) = done.await;
        assert!(!answer.headers().contains_key("grpc-status"));
    }
}
