//! Failpoints: places where a test can have the daemon die at once, as if by
//! `kill -9`. There is one before and one after every effect, by construction:
//! effects are only performed through [`around`].
//!
//! Debug builds read `KINA_FAILPOINT` once, at the first effect: for example
//! `before:pod-create-network`, or `after:pod-record#3` to die only at the third
//! time. Other builds have no failpoints.

use std::future::Future;
use std::time::Instant;

use kina_model::{ContainerEffect, PodEffect};

use crate::spans;

/// Performs an effect between its two failpoints, as a step of the call that it is done
/// for ([`spans`]), and tells the log, at level debug, what it took.
///
/// # Errors
/// The effect's.
pub async fn around<T, E>(name: &'static str, effect: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    hit("before", name);
    let begun = Instant::now();
    let result = spans::step(name, effect).await;
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(effect = name, micros, "effect");
    hit("after", name);
    result
}

/// The same for each change that the image store makes to its files, if this
/// build has failpoints.
pub const OF_IMAGES: Option<kina_image::Failpoint> = if cfg!(debug_assertions) { Some(hit) } else { None };

#[cfg(debug_assertions)]
fn hit(when: &str, name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Times that the armed failpoint has been passed.
    static PASSED: AtomicU32 = AtomicU32::new(0);
    static ARMED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| {
        let armed = std::env::var("KINA_FAILPOINT").ok()?;
        let (point, time) = armed.split_once('#').unwrap_or((&armed, "1"));
        Some((point.to_owned(), time.parse().unwrap_or(1)))
    });
    let Some((point, time)) = armed else { return };
    if point.split_once(':') == Some((when, name)) && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *time {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(not(debug_assertions))]
fn hit(_when: &str, _name: &str) {}

/// Every failpoint of pods and containers. Those of the image store are at
/// [`kina_image::STEPS`], and have tests of their own.
pub fn all() -> Vec<String> {
    let pods = PodEffect::ALL.iter().map(|effect| effect.name());
    let containers = ContainerEffect::ALL.iter().map(|effect| effect.name());
    pods.chain(containers).flat_map(|name| [format!("before:{name}"), format!("after:{name}")]).collect()
}
