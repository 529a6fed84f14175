//! Failpoints: places where a test can have the daemon die at once, as if by
//! `kill -9`. There is one before and one after every effect, by construction:
//! effects are only performed through [`around`].
//!
//! Debug builds read `KINA_FAILPOINT` (for example `before:pod-create-network`)
//! once, at the first effect; other builds have no failpoints.

use std::future::Future;
use std::time::Instant;

use kina_model::{ContainerEffect, PodEffect};

/// Performs an effect between its two failpoints, and tells the log, at level
/// debug, what it took.
pub async fn around<T>(name: &str, effect: impl Future<Output = T>) -> T {
    hit("before", name);
    let begun = Instant::now();
    let result = effect.await;
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(effect = name, micros, "effect");
    hit("after", name);
    result
}

#[cfg(debug_assertions)]
fn hit(when: &str, name: &str) {
    use std::sync::OnceLock;

    static ARMED: OnceLock<Option<String>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| std::env::var("KINA_FAILPOINT").ok());
    if armed.as_deref().and_then(|armed| armed.split_once(':')) == Some((when, name)) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(not(debug_assertions))]
fn hit(_when: &str, _name: &str) {}

/// Every failpoint.
pub fn all() -> Vec<String> {
    let pods = PodEffect::ALL.iter().map(|effect| effect.name());
    let containers = ContainerEffect::ALL.iter().map(|effect| effect.name());
    pods.chain(containers).flat_map(|name| [format!("before:{name}"), format!("after:{name}")]).collect()
}
