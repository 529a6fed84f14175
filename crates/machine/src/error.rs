use std::path::PathBuf;

use kina_model::PodId;

/// Why a machine operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such machine.
    #[error("no machine for pod {pod}")]
    NotFound {
        /// The pod asked for.
        pod: PodId,
    },
    /// The operation needs another state.
    #[error("machine of pod {pod} is {state}, cannot {operation}")]
    WrongState {
        /// The pod.
        pod: PodId,
        /// What was asked.
        operation: &'static str,
        /// What it is instead.
        state: &'static str,
    },
    /// This driver cannot do that.
    #[error("machine driver {driver} cannot {operation}")]
    Unsupported {
        /// The driver's name.
        driver: &'static str,
        /// What was asked.
        operation: &'static str,
    },
    /// The guest program is missing or cannot run.
    #[error("guest program {path}")]
    Guest {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it cannot be used.
        #[source]
        source: std::io::Error,
    },
    /// The machine does not come up.
    #[error("machine of pod {pod} does not boot: {reason}")]
    Boot {
        /// The pod.
        pod: PodId,
        /// What was seen: the console's last words, an exit status.
        reason: String,
    },
    /// No stream to the guest.
    #[error("connect to the guest of pod {pod}")]
    Connect {
        /// The pod.
        pod: PodId,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something of the machine survives.
    #[error("machine of pod {pod} does not end: {survivors}")]
    Survives {
        /// The pod.
        pod: PodId,
        /// What is left.
        survivors: String,
    },
    /// A path cannot be shared.
    #[error("share {path} with the machine of pod {pod}")]
    Share {
        /// The pod.
        pod: PodId,
        /// The path on the node.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There are as many machines as there can be.
    #[error("machine driver {driver} runs {limit} machines, and no more can run: remove a pod first")]
    TooMany {
        /// The driver's name.
        driver: &'static str,
        /// How many can run.
        limit: usize,
    },
    /// What the driver works with does not answer now; the same may succeed later.
    #[error("machine driver {driver} cannot {operation} now")]
    Unavailable {
        /// The driver's name.
        driver: &'static str,
        /// What was being done.
        operation: &'static str,
        /// Why, and what to do about it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The node refused an effect.
    #[error("{operation} for the machine of pod {pod}")]
    Node {
        /// The pod.
        pod: PodId,
        /// What was being done.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The driver's machines cannot be listed.
    #[error("list the machines of driver {driver}")]
    List {
        /// The driver's name.
        driver: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// An [`Error::Node`].
    #[must_use]
    pub fn node(
        pod: &PodId,
        operation: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Node { pod: pod.clone(), operation, source: source.into() }
    }

    /// An [`Error::WrongState`].
    #[must_use]
    pub fn wrong_state(pod: &PodId, operation: &'static str, state: &'static str) -> Self {
        Self::WrongState { pod: pod.clone(), operation, state }
    }
}
