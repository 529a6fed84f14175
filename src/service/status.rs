//! The only place where an error becomes a gRPC status. Callers get the whole
//! chain of causes as text.

use kina_attachment::vni::LeaseError;
use kina_guest_api::{GuestError, Refusal};
use kina_model::SpecError;
use tonic::{Code, Status};

use crate::error::{Error, chain};

/// The longest text of a status, in bytes. It travels in a header, and some
/// clients take no more than 16 KiB of those.
const TEXT_LIMIT: usize = 4096;

/// The status that says an error.
pub(crate) fn status(error: &Error) -> Status {
    let mut text = chain(error);
    if text.len() > TEXT_LIMIT {
        let end = (0..=TEXT_LIMIT).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    Status::new(code(error), text)
}

/// The answer to a call that this version does not have.
pub(super) fn later(call: &'static str) -> Status {
    tracing::debug!(call, "not implemented");
    Status::unimplemented(format!("{call} is not implemented in this version of kina"))
}

/// The answer to a call whose caller waits no longer.
pub(super) fn too_late() -> Status {
    Status::deadline_exceeded("the caller's deadline has passed")
}

/// The answer to a call of a service that is not here.
pub(super) fn no_service(name: &str, known: &[&str]) -> Status {
    Status::unimplemented(format!("there is no service {name:?} here, only {}", known.join(", ")))
}

/// `InvalidArgument`: the request is at fault, whatever the daemon's state.
/// `Unimplemented`: it would make sense, but not here. `NotFound`,
/// `AlreadyExists`, `FailedPrecondition`: the state is at fault.
/// `Unavailable`: the same request may succeed later. `Internal`: a bug, or the
/// node is broken.
pub(super) fn code(error: &Error) -> Code {
    match error {
        Error::Spec(SpecError::Invalid { .. }) | Error::AmbiguousId { .. } => Code::InvalidArgument,
        Error::Spec(SpecError::Unsupported { .. }) => Code::Unimplemented,
        Error::PodNotFound { .. }
        | Error::ContainerNotFound { .. }
        | Error::ImageNotFound { .. }
        | Error::ImageNotPulled { .. } => Code::NotFound,
        Error::ImageVolume(source) => code(source),
        Error::NameTaken { .. } => Code::AlreadyExists,
        Error::PodState { .. }
        | Error::ContainerState { .. }
        | Error::ContainerFailed { .. }
        | Error::LogOver { .. }
        | Error::MachineTooSmall { .. }
        | Error::NotAttached { .. } => Code::FailedPrecondition,
        Error::StartFailed { .. }
        | Error::TeardownFailed { .. }
        | Error::Busy { .. }
        | Error::NetworkUnavailable { .. }
        | Error::NoAddress { .. }
        | Error::PluginsBusy
        | Error::ShuttingDown => Code::Unavailable,
        Error::Deadline { .. } => Code::DeadlineExceeded,
        Error::EventsLost { .. } | Error::ListTooLarge { .. } => Code::ResourceExhausted,
        Error::Guest { source, .. } => guest(source),
        Error::Attach(error) => network(&error.cause),
        Error::Network(source) => network(source),
        Error::Tunnel(source) => tunnel(source),
        Error::Machine(source) => machine(source),
        Error::Node(source) => node(source),
        Error::Image(source) => image(source),
        // The kubelet reads the text of errors without a code only.
        Error::RegistryUnavailable(_) => Code::Unknown,
        Error::Store(source) => store(source),
        Error::Streaming(source) => streaming(source),
        Error::Encode { .. }
        | Error::AppArmorProfile { .. }
        | Error::Log { .. }
        | Error::Listen { .. }
        | Error::ListenMetrics { .. } => Code::Internal,
    }
}

fn streaming(error: &kina_streaming::Error) -> Code {
    use kina_streaming::Error;
    match error {
        Error::NoStreams | Error::TtyWithStderr => Code::InvalidArgument,
        Error::TooManyTokens { .. } => Code::ResourceExhausted,
        Error::Certificate { .. }
        | Error::Key { .. }
        | Error::Tls { .. }
        | Error::ClientAuthority { .. }
        | Error::Accept(_) => Code::Internal,
    }
}

fn tunnel(error: &LeaseError<kina_store::Error>) -> Code {
    match error {
        LeaseError::Exhausted { .. } => Code::ResourceExhausted,
        LeaseError::Table { source, .. } => store(source),
        LeaseError::OtherPeer { .. } | LeaseError::PeerTaken { .. } => Code::FailedPrecondition,
        LeaseError::BadRange { .. } | LeaseError::Contradiction { .. } => Code::Internal,
    }
}

fn guest(error: &GuestError) -> Code {
    match error {
        GuestError::Connect { .. } | GuestError::Handshake { .. } | GuestError::Gone { .. } => {
            Code::Unavailable
        }
        GuestError::Version { .. } => Code::FailedPrecondition,
        GuestError::Deadline { .. } => Code::DeadlineExceeded,
        GuestError::Refused { code, .. } => match code {
            Refusal::NotFound => Code::NotFound,
            Refusal::AlreadyExists => Code::AlreadyExists,
            Refusal::WrongState => Code::FailedPrecondition,
            Refusal::Invalid => Code::InvalidArgument,
            Refusal::Unsupported => Code::Unimplemented,
            Refusal::Exhausted => Code::ResourceExhausted,
            Refusal::Internal => Code::Internal,
        },
        GuestError::Protocol { .. } => Code::Internal,
    }
}

fn machine(error: &kina_machine::Error) -> Code {
    use kina_machine::Error;
    match error {
        // The pod is known, or the request would not have come so far: its
        // machine has just ended. NotFound would speak of the pod.
        Error::NotFound { .. } => Code::Unavailable,
        Error::WrongState { .. } | Error::Guest { .. } => Code::FailedPrecondition,
        Error::Unsupported { .. } => Code::Unimplemented,
        Error::Boot { .. } | Error::Connect { .. } | Error::Survives { .. } | Error::Unavailable { .. } => {
            Code::Unavailable
        }
        Error::TooMany { .. } => Code::ResourceExhausted,
        Error::List { .. } | Error::Share { .. } | Error::Node { .. } => Code::Internal,
    }
}

fn network(error: &kina_cni::Error) -> Code {
    use kina_cni::Error;
    match error {
        Error::InvalidName { .. } | Error::InvalidArgument { .. } => Code::InvalidArgument,
        Error::Deadline { .. } => Code::DeadlineExceeded,
        // The administrator's to mend, or the plugin's own business: the same
        // request may succeed then.
        Error::Config { .. }
        | Error::NoConfig { .. }
        | Error::PluginNotFound { .. }
        | Error::PluginVersion { .. }
        | Error::Busy { .. }
        | Error::Plugin(_)
        | Error::PluginCrashed { .. } => Code::Unavailable,
        Error::NotAttached { .. } => Code::FailedPrecondition,
        Error::Cache { .. } => Code::DataLoss,
        Error::NoNamespace { .. }
        | Error::List { .. }
        | Error::Read { .. }
        | Error::Write { .. }
        | Error::Remove { .. }
        | Error::FindPlugin { .. }
        | Error::Execute { .. }
        | Error::TooMuchOutput { .. }
        | Error::BadResult { .. } => Code::Internal,
    }
}

fn image(error: &kina_image::Error) -> Code {
    use kina_image::Error;
    match error {
        Error::AllHosts { last, .. } => image(last),
        Error::InvalidReference { .. }
        | Error::InvalidCredentials { .. }
        | Error::InvalidArchive { .. }
        | Error::AmbiguousName { .. } => Code::InvalidArgument,
        Error::NotFound { .. } | Error::NoPlatform { .. } | Error::UnknownImage { .. } => Code::NotFound,
        Error::Denied { status: 401, .. } => Code::Unauthenticated,
        Error::Denied { .. } => Code::PermissionDenied,
        Error::Unreachable { .. }
        | Error::Protocol { .. }
        | Error::Interrupted { .. }
        | Error::CredentialHelper { .. } => Code::Unavailable,
        Error::DigestMismatch { .. } | Error::SizeMismatch { .. } | Error::DiffIdMismatch { .. } => {
            Code::DataLoss
        }
        Error::TooLarge { .. } | Error::NoSpace { .. } => Code::ResourceExhausted,
        Error::UnsupportedMediaType { .. } | Error::ForeignLayer { .. } => Code::Unimplemented,
        Error::Malformed { .. }
        | Error::InvalidManifest { .. }
        | Error::LayerRefused { .. }
        | Error::Incomplete { .. }
        | Error::StoreInUse { .. }
        | Error::Certificates { .. }
        | Error::UnusableCertificate { .. }
        | Error::HostsFile { .. }
        | Error::DockerConfig { .. }
        | Error::DockerEntry { .. }
        | Error::InvalidMirror { .. } => Code::FailedPrecondition,
        Error::ArchiveStream { .. } => Code::Aborted,
        Error::HttpClient { .. } => Code::Internal,
        Error::Storage { source, .. } => io(source.kind()),
    }
}

fn io(kind: std::io::ErrorKind) -> Code {
    use std::io::ErrorKind;
    // The standard library's list has no end, so what remains is `Internal`.
    if matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::OutOfMemory) {
        Code::ResourceExhausted
    } else {
        Code::Internal
    }
}

fn node(error: &kina_node::Error) -> Code {
    use kina_node::Error;
    match error {
        Error::Io { source, .. } => io(source.kind()),
        Error::NeedsLinux { .. } | Error::UserNamespace { .. } => Code::Unimplemented,
        // A path of the pod's specification.
        Error::NotBindable { .. } => Code::InvalidArgument,
        Error::LoopDevices { .. } | Error::Cgroups { .. } => Code::ResourceExhausted,
        Error::ProgramDeadline { .. } => Code::DeadlineExceeded,
        Error::Survivors { .. } | Error::Interrupted { .. } => Code::Unavailable,
        Error::TooLarge { .. }
        | Error::NotAFile { .. }
        | Error::MountInside { .. }
        | Error::Moved { .. }
        | Error::SocketPath { .. }
        | Error::LayerName { .. }
        | Error::Execute { .. }
        | Error::ProgramOutput { .. }
        | Error::Process { .. }
        | Error::Record { .. }
        | Error::Cgroup { .. } => Code::Internal,
    }
}

fn store(error: &kina_store::Error) -> Code {
    use kina_store::Error;
    match error {
        // A specification that is kept whole must fit a record.
        Error::ValueTooLong { .. } => Code::ResourceExhausted,
        Error::Open { .. } | Error::Locked { .. } | Error::NewerSchema { .. } | Error::NewerRecord { .. } => {
            Code::FailedPrecondition
        }
        Error::Corrupt { .. } | Error::Decode { .. } | Error::Migrate { .. } => Code::DataLoss,
        Error::Unavailable { .. } | Error::Stopped { .. } => Code::Unavailable,
        Error::Encode { .. }
        | Error::KeyLength { .. }
        | Error::Exists { .. }
        | Error::Read { .. }
        | Error::Write { .. }
        | Error::Thread { .. } => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;

    use kina_model::{ContainerId, PodId};

    use super::*;

    fn refused(code: Refusal) -> Error {
        let source = GuestError::Refused { call: "CreateContainer", code, message: "no".into() };
        Error::Guest { pod: PodId::random(), source }
    }

    fn guest(source: GuestError) -> Error {
        Error::Guest { pod: PodId::random(), source }
    }

    fn storage(kind: io::ErrorKind) -> Error {
        Error::Image(kina_image::Error::Storage {
            operation: "write",
            path: "/x".into(),
            source: Arc::new(kind.into()),
        })
    }

    fn denied(status: u16) -> Error {
        Error::Image(kina_image::Error::Denied {
            subject: "a/b".into(),
            host: "https://h".into(),
            status,
            detail: None,
        })
    }

    #[test]
    fn codes() {
        let pod = PodId::random;
        let container = ContainerId::random;
        let id = || "x".to_owned();
        for (error, expected) in [
            (Error::Spec(SpecError::invalid("f", "r")), Code::InvalidArgument),
            (Error::Spec(SpecError::unsupported("f", "r")), Code::Unimplemented),
            (Error::AmbiguousId { id: id() }, Code::InvalidArgument),
            (Error::PodNotFound { id: id() }, Code::NotFound),
            (Error::ContainerNotFound { id: id() }, Code::NotFound),
            (Error::ImageNotFound { reference: id() }, Code::NotFound),
            (Error::ImageNotPulled { reference: id() }, Code::NotFound),
            (Error::ImageVolume(Box::new(Error::ImageNotPulled { reference: id() })), Code::NotFound),
            (Error::NameTaken { what: "container", name: id(), id: id() }, Code::AlreadyExists),
            (Error::PodState { pod: pod(), state: "stopped", operation: "go" }, Code::FailedPrecondition),
            (
                Error::ContainerState { container: container(), state: "created", operation: "go" },
                Code::FailedPrecondition,
            ),
            (
                Error::ContainerFailed { container: container(), operation: "start", reason: id() },
                Code::FailedPrecondition,
            ),
            (Error::StartFailed { pod: pod(), reason: id() }, Code::Unavailable),
            (Error::TeardownFailed { pod: pod(), reason: id() }, Code::Unavailable),
            (Error::Busy { pod: pod() }, Code::Unavailable),
            (Error::ShuttingDown, Code::Unavailable),
            (Error::NetworkUnavailable { reason: id() }, Code::Unavailable),
            (Error::NotAttached { pod: pod() }, Code::FailedPrecondition),
            (Error::PluginsBusy, Code::Unavailable),
            (Error::ListTooLarge { bytes: 2, limit: 1, instead: "StreamImages" }, Code::ResourceExhausted),
            (Error::Tunnel(Box::new(LeaseError::Exhausted { count: 1 })), Code::ResourceExhausted),
            (kina_cni::Error::NoConfig { network: id() }.into(), Code::Unavailable),
            (Error::Deadline { what: "it", limit: Duration::from_secs(1) }, Code::DeadlineExceeded),
            (refused(Refusal::NotFound), Code::NotFound),
            (refused(Refusal::AlreadyExists), Code::AlreadyExists),
            (refused(Refusal::WrongState), Code::FailedPrecondition),
            (refused(Refusal::Invalid), Code::InvalidArgument),
            (refused(Refusal::Unsupported), Code::Unimplemented),
            (refused(Refusal::Exhausted), Code::ResourceExhausted),
            (refused(Refusal::Internal), Code::Internal),
            (guest(GuestError::Gone { call: "Exec" }), Code::Unavailable),
            (guest(GuestError::Deadline { call: "Exec" }), Code::DeadlineExceeded),
            (guest(GuestError::Protocol { call: "Exec", violation: "v" }), Code::Internal),
            (Error::Machine(kina_machine::Error::NotFound { pod: pod() }), Code::Unavailable),
            (
                Error::Node(kina_node::Error::io("open", "/x".as_ref(), io::ErrorKind::NotFound)),
                Code::Internal,
            ),
            (
                Error::Node(kina_node::Error::io("write", "/x".as_ref(), io::ErrorKind::StorageFull)),
                Code::ResourceExhausted,
            ),
            (
                Error::RegistryUnavailable(kina_image::Error::Unreachable {
                    subject: id(),
                    attempts: Vec::new(),
                }),
                Code::Unknown,
            ),
            (denied(401), Code::Unauthenticated),
            (denied(403), Code::PermissionDenied),
            (storage(io::ErrorKind::StorageFull), Code::ResourceExhausted),
            (storage(io::ErrorKind::PermissionDenied), Code::Internal),
            (Error::Store(kina_store::Error::Unavailable { path: "/x".into() }), Code::Unavailable),
        ] {
            let status = status(&error);
            assert_eq!(status.code(), expected, "{error}");
            assert_eq!(status.message(), chain(&error));
        }
    }

    #[test]
    fn the_causes_are_told() {
        let status = status(&refused(Refusal::Invalid));
        assert!(status.message().starts_with("guest of pod sandbox "), "{status}");
        assert!(status.message().ends_with(": guest refuses CreateContainer: no"), "{status}");
    }

    #[test]
    fn long_texts_are_cut() {
        let long = "ä".repeat(TEXT_LIMIT);
        let status = status(&Error::PodNotFound { id: long });
        assert!(status.message().len() <= TEXT_LIMIT + '…'.len_utf8());
        assert!(status.message().ends_with('…'));
    }
}
