//! Tokens: who knows one may use what it stands for, once and not for long.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;

use crate::error::Error;
use crate::request::{Kind, Request};

/// Random bytes of a token: nobody guesses 256 bits.
const BYTES: usize = 32;
/// Their characters in a URL.
const CHARACTERS: usize = 43;

/// The tokens that wait for their client.
#[derive(Debug)]
pub(crate) struct Tokens {
    lifetime: Duration,
    limit: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: HashMap<String, Request>,
    /// In the order in which they expire, used ones included.
    expiries: VecDeque<(Instant, String)>,
}

impl Tokens {
    pub(crate) fn new(lifetime: Duration, limit: usize) -> Self {
        Self { lifetime, limit, waiting: Mutex::default() }
    }

    /// A token that stands for `request`.
    pub(crate) fn issue(&self, request: Request) -> Result<String, Error> {
        let token = URL_SAFE_NO_PAD.encode(rand::random::<[u8; BYTES]>());
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.expire();
        if waiting.requests.len() >= self.limit {
            return Err(Error::TooManyTokens { limit: self.limit });
        }
        // Used tokens leave here too, or a busy minute would be kept whole.
        if waiting.expiries.len() >= self.limit.saturating_mul(2) {
            let Waiting { requests, expiries } = &mut *waiting;
            expiries.retain(|(_, token)| requests.contains_key(token));
        }
        waiting.requests.insert(token.clone(), request);
        waiting.expiries.push_back((Instant::now() + self.lifetime, token.clone()));
        Ok(token)
    }

    /// What a token stands for. It works once, and where it belongs.
    pub(crate) fn redeem(&self, kind: Kind, token: &str) -> Option<Request> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.expire();
        if waiting.requests.get(token)?.kind() != kind {
            return None;
        }
        waiting.requests.remove(token)
    }
}

impl Waiting {
    fn expire(&mut self) {
        let now = Instant::now();
        while self.expiries.front().is_some_and(|(expiry, _)| *expiry <= now) {
            if let Some((_, token)) = self.expiries.pop_front() {
                self.requests.remove(&token);
            }
        }
    }
}

/// What a URL's path asks for: `/exec/TOKEN` and the like, nothing more and nothing less.
pub(crate) fn parse_path(path: &str) -> Option<(Kind, &str)> {
    let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
    let kind =
        [Kind::Exec, Kind::Attach, Kind::PortForward].into_iter().find(|known| known.name() == kind)?;
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (token.len() == CHARACTERS && token.bytes().all(harmless)).then_some((kind, token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::PortForward;

    fn request(pod: &str) -> Request {
        Request::PortForward(PortForward { pod: pod.to_owned(), ports: Vec::new() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_works_once_in_its_place_and_for_its_time() {
        let tokens = Tokens::new(Duration::from_secs(60), 10);
        let token = tokens.issue(request("a")).unwrap();
        assert_eq!(tokens.redeem(Kind::Exec, &token), None);
        assert_eq!(tokens.redeem(Kind::PortForward, &token), Some(request("a")));
        assert_eq!(tokens.redeem(Kind::PortForward, &token), None);

        let token = tokens.issue(request("b")).unwrap();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(tokens.redeem(Kind::PortForward, &token), None);
    }

    #[tokio::test(start_paused = true)]
    async fn their_number_is_bounded() {
        let tokens = Tokens::new(Duration::from_secs(60), 3);
        // Used ones do not count, and are not kept.
        for _ in 0..100 {
            let token = tokens.issue(request("a")).unwrap();
            tokens.redeem(Kind::PortForward, &token).unwrap();
        }
        assert!(tokens.waiting.lock().unwrap().expiries.len() <= 6);
        for _ in 0..3 {
            tokens.issue(request("a")).unwrap();
        }
        assert!(matches!(tokens.issue(request("a")), Err(Error::TooManyTokens { limit: 3 })));
        tokio::time::advance(Duration::from_secs(60)).await;
        tokens.issue(request("a")).unwrap();
    }

    #[test]
    fn only_whole_paths_are_taken() {
        let token = "a".repeat(CHARACTERS);
        assert_eq!(parse_path(&format!("/exec/{token}")), Some((Kind::Exec, token.as_str())));
        assert_eq!(parse_path(&format!("/portforward/{token}")), Some((Kind::PortForward, token.as_str())));
        let bad = ["", "/", "/exec", "/exec/", "/exec/abc", "exec/x", "//"].map(str::to_owned);
        let tails = [format!("/exec/{token}/"), format!("/exec/{token}a"), format!("/Exec/{token}")];
        let inner = [format!("/exec//{token}"), format!("/exec/{}%", &token[1..])];
        for path in bad.iter().chain(&tails).chain(&inner) {
            assert_eq!(parse_path(path), None, "{path}");
        }
    }
}
