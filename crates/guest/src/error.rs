use std::io;
use std::path::PathBuf;

/// Why the guest could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no container of that id.
    #[error("no container {id}")]
    NoContainer {
        /// The id asked for.
        id: String,
    },
    /// There is one of that id already.
    #[error("container {id} exists")]
    ContainerExists {
        /// The id asked for.
        id: String,
    },
    /// The operation needs another state.
    #[error("container {id} is {state}, cannot {operation} it")]
    WrongState {
        /// The container.
        id: String,
        /// What it is.
        state: &'static str,
        /// What was asked.
        operation: &'static str,
    },
    /// Containers were asked for before SetupPod.
    #[error("the pod is not set up")]
    NoPod,
    /// SetupPod came a second time with other content.
    #[error("the pod is set up already, and differently")]
    PodDiffers,
    /// The guest is on its way out.
    #[error("the guest is shutting down")]
    ShuttingDown,
    /// A field of the request cannot be honoured as written.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field, as the protocol names it.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The image has no such user.
    #[error("user {user:?} is not in the image's /etc/passwd")]
    UnknownUser {
        /// The name asked for.
        user: String,
    },
    /// The image has no such group.
    #[error("group {group:?} is not in the image's /etc/group")]
    UnknownGroup {
        /// The name asked for.
        group: String,
    },
    /// What should be mounted is not there.
    #[error("mount source {} does not exist", path.display())]
    NoMountSource {
        /// The path in the guest.
        path: PathBuf,
    },
    /// This guest or its kernel cannot do that.
    #[error("{what} is not supported here")]
    Unsupported {
        /// What was asked.
        what: &'static str,
    },
    /// A bound of the guest is reached.
    #[error("more than {limit} {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// An operation on a file or mount failed.
    #[error("{operation} {}", path.display())]
    File {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A system call about no path failed.
    #[error("{operation}")]
    System {
        /// What was done.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Something about a user namespace could not be done.
    #[error("user namespace of {whose} (Linux 5.19 has all that it takes)")]
    UserNamespace {
        /// The pod, or a layer.
        whose: String,
        /// Why.
        #[source]
        source: kina_userns::Error,
    },
    /// A sysctl of the pod did not take its value.
    #[error("sysctl {} of the pod's kernel", .file.display())]
    Sysctl {
        /// Below /proc/sys.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step inside of the pod's user namespace failed.
    #[error("{operation}, in the pod's user namespace")]
    Inside {
        /// What was done, and to what.
        operation: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The layers of a container's image, or of one that it mounts, could not be put together.
    #[error("put together image layers for container {id}{details}")]
    Overlay {
        /// The container.
        id: String,
        /// The kernel's own words, where it gives any.
        details: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// An image that the container mounts cannot be had. The text is a part of the protocol.
    #[error("{}{destination}", kina_guest_api::IMAGE_VOLUME)]
    ImageVolume {
        /// Where it was to be in the container.
        destination: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// Nothing in the pod takes a connection.
    #[error("connect to port {port} in the pod")]
    Connect {
        /// The TCP port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process could not be started.
    #[error("start a process of container {id}")]
    Launch {
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: kina_launch::Error,
    },
    /// A control group operation failed.
    #[error("control group {path}")]
    Cgroup {
        /// The absolute cgroup path.
        path: String,
        /// Why.
        #[source]
        source: kina_cgroup::Error,
    },
    /// The pod's network interface could not be put in place.
    #[error("pod network interface {interface}")]
    Network {
        /// Its name in the pod.
        interface: String,
        /// Why.
        #[source]
        source: kina_attachment::Error,
    },
    /// A log operation failed.
    #[error("log of container {id}")]
    Log {
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: kina_log::Error,
    },
    /// The worker that carried out the operation ended early.
    #[error("{operation} was interrupted")]
    Interrupted {
        /// What was done.
        operation: &'static str,
    },
}

impl Error {
    pub(crate) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::File { operation, path: path.into(), source: source.into() }
    }

    pub(crate) fn system(operation: &'static str, source: impl Into<io::Error>) -> Self {
        Self::System { operation, source: source.into() }
    }

    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into() }
    }
}
