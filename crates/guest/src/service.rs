//! The guest protocol: decode, call, encode.

use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kina_guest_api::v1;
use kina_guest_api::v1::guest_server;
use kina_guest_api::{OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION};
use kina_launch::Error as LaunchError;
use kina_log::{RecordBuffer, Sink};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::attach;
use crate::error::Error;
use crate::exec;
use crate::forward;
use crate::guest::{Guest, chain, complete};

/// Messages on their way to one reader.
const QUEUE: usize = 4;
/// Log records in one message, in bytes; one record may be larger.
const LOG_PIECE_BYTES: usize = 64 << 10;
/// How long a bulk stream's first message may take.
const FIRST_MESSAGE_PATIENCE: Duration = Duration::from_secs(10);
/// A longer error would not fit the headers that carry it, in bytes.
const MESSAGE_LIMIT: usize = 2048;

/// The calls, on a guest.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    guest: Arc<Guest>,
    /// Whether the kernel, and so its clock, is this guest's alone.
    own_kernel: bool,
}

impl Service {
    pub(crate) fn new(guest: Arc<Guest>, own_kernel: bool) -> Self {
        Self { guest, own_kernel }
    }

    /// Runs an operation to its end even if the caller goes away.
    async fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Status> {
        complete(call, work).await.map_err(|error| self.refuse(call, &error))
    }

    fn refuse(&self, call: &'static str, error: &Error) -> Status {
        let status = status(error);
        self.guest.journal.line(format_args!("{call}: {}", status.message()));
        status
    }
}

/// How an error is told.
fn status(error: &Error) -> Status {
    let mut message = chain(error);
    while message.len() > MESSAGE_LIMIT {
        message.pop();
    }
    Status::new(code(error), message)
}

fn code(error: &Error) -> Code {
    match error {
        Error::NoContainer { .. } => Code::NotFound,
        Error::ContainerExists { .. } => Code::AlreadyExists,
        Error::WrongState { .. }
        | Error::NoPod
        | Error::PodDiffers
        | Error::ShuttingDown
        | Error::Connect { .. } => Code::FailedPrecondition,
        Error::Invalid { .. }
        | Error::UnknownUser { .. }
        | Error::UnknownGroup { .. }
        | Error::NoMountSource { .. } => Code::InvalidArgument,
        Error::Unsupported { .. } => Code::Unimplemented,
        Error::TooMany { .. } => Code::ResourceExhausted,
        Error::Launch { source, .. } => launch_code(source),
        Error::Cgroup { source, .. } => cgroup_code(source),
        Error::Network { source, .. } => match source {
            kina_attachment::Error::BadName { .. } => Code::InvalidArgument,
            _ => Code::Internal,
        },
        Error::ImageVolume { source, .. } => code(source),
        Error::Sysctl { source, .. } => match source.raw_os_error() {
            // There is none of that name, it does not take that value, or a pod may not set it.
            Some(libc::ENOENT | libc::EINVAL | libc::ERANGE | libc::EACCES | libc::EPERM | libc::EROFS) => {
                Code::InvalidArgument
            }
            _ => Code::Internal,
        },
        Error::Log { source, .. } => match source {
            kina_log::Error::Offset { .. } => Code::InvalidArgument,
            _ => Code::Internal,
        },
        Error::File { .. }
        | Error::System { .. }
        | Error::UserNamespace { .. }
        | Error::Inside { .. }
        | Error::Overlay { .. }
        | Error::Interrupted { .. } => Code::Internal,
    }
}

fn launch_code(error: &LaunchError) -> Code {
    match error {
        LaunchError::Refused { .. } | LaunchError::Execute { .. } | LaunchError::OutOfMemory => {
            Code::InvalidArgument
        }
        LaunchError::Gone => Code::FailedPrecondition,
        LaunchError::Cgroup(source) => cgroup_code(source),
        // What the request names does not fit what the image or the machine has.
        LaunchError::Setup { operation, source } if operation.is_asked_for() => {
            match (source.kind(), source.raw_os_error()) {
                (
                    ErrorKind::NotFound
                    | ErrorKind::NotADirectory
                    | ErrorKind::IsADirectory
                    | ErrorKind::AlreadyExists
                    | ErrorKind::PermissionDenied
                    | ErrorKind::ReadOnlyFilesystem
                    | ErrorKind::InvalidInput,
                    _,
                )
                | (_, Some(libc::ELOOP)) => Code::InvalidArgument,
                _ => Code::Internal,
            }
        }
        _ => Code::Internal,
    }
}

fn cgroup_code(error: &kina_cgroup::Error) -> Code {
    match error {
        kina_cgroup::Error::Unsupported { .. } => Code::Unimplemented,
        kina_cgroup::Error::InvalidValue { .. } => Code::InvalidArgument,
        kina_cgroup::Error::Set { source, .. } => match (source.kind(), source.raw_os_error()) {
            (ErrorKind::InvalidInput, _) | (_, Some(libc::ERANGE)) => Code::InvalidArgument,
            // Less memory than is used, say.
            (ErrorKind::ResourceBusy, _) => Code::FailedPrecondition,
            _ => Code::Internal,
        },
        _ => Code::Internal,
    }
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl guest_server::Guest for Service {
    async fn hello(&self, request: Request<v1::HelloRequest>) -> Result<Response<v1::HelloResponse>, Status> {
        let v1::HelloRequest { protocol_version: theirs, time_nanos, .. } = request.into_inner();
        if theirs < OLDEST_PROTOCOL_VERSION {
            return Err(Status::failed_precondition(format!(
                "protocol version {theirs} is too old, {OLDEST_PROTOCOL_VERSION} is the oldest"
            )));
        }
        if self.own_kernel {
            crate::clock::follow(time_nanos);
        }
        let kernel = rustix::system::uname();
        Ok(Response::new(v1::HelloResponse {
            protocol_version: theirs.min(PROTOCOL_VERSION),
            guest_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.guest.boot_id.clone(),
            kernel_release: kernel.release().to_string_lossy().into_owned(),
            architecture: kernel.machine().to_string_lossy().into_owned(),
            pod_id: self.guest.pod_id.clone(),
            pid: std::process::id(),
            features: Some(self.guest.features),
        }))
    }

    async fn setup_pod(
        &self,
        request: Request<v1::SetupPodRequest>,
    ) -> Result<Response<v1::SetupPodResponse>, Status> {
        let guest = Arc::clone(&self.guest);
        let work = async move { guest.setup_pod(request.into_inner()).await };
        self.run("SetupPod", work).await?;
        Ok(Response::new(v1::SetupPodResponse {}))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        let work = Arc::clone(&self.guest).create(request.into_inner());
        self.run("CreateContainer", work).await.map(Response::new)
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        let work = Arc::clone(&self.guest).start(request.into_inner().id);
        self.run("StartContainer", work).await.map(Response::new)
    }

    async fn signal_container(
        &self,
        request: Request<v1::SignalContainerRequest>,
    ) -> Result<Response<v1::SignalContainerResponse>, Status> {
        let request = request.into_inner();
        let work = Arc::clone(&self.guest).signal(request.id, request.signal, request.all);
        self.run("SignalContainer", work).await?;
        Ok(Response::new(v1::SignalContainerResponse {}))
    }

    async fn delete_container(
        &self,
        request: Request<v1::DeleteContainerRequest>,
    ) -> Result<Response<v1::DeleteContainerResponse>, Status> {
        let work = Arc::clone(&self.guest).delete(request.into_inner().id);
        self.run("DeleteContainer", work).await?;
        Ok(Response::new(v1::DeleteContainerResponse {}))
    }

    async fn update_container(
        &self,
        request: Request<v1::UpdateContainerRequest>,
    ) -> Result<Response<v1::UpdateContainerResponse>, Status> {
        let v1::UpdateContainerRequest { id, resources } = request.into_inner();
        let work = Arc::clone(&self.guest).update(id, resources.unwrap_or_default());
        self.run("UpdateContainer", work).await?;
        Ok(Response::new(v1::UpdateContainerResponse {}))
    }

    async fn stats(&self, request: Request<v1::StatsRequest>) -> Result<Response<v1::StatsResponse>, Status> {
        let work = Arc::clone(&self.guest).stats(request.into_inner().ids);
        self.run("Stats", work).await.map(Response::new)
    }

    async fn list_containers(
        &self,
        _request: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        Ok(Response::new(self.guest.list()))
    }

    type EventsStream = BoxStream<v1::Event>;

    async fn events(
        &self,
        request: Request<v1::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let guest = Arc::clone(&self.guest);
        tokio::spawn(send_events(guest, request.into_inner().after, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type ExecStream = BoxStream<v1::ExecResponse>;

    async fn exec(
        &self,
        request: Request<Streaming<v1::ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let mut requests = request.into_inner();
        let start = match first(&mut requests).await?.what {
            Some(v1::exec_request::What::Start(start)) => start,
            Some(_) | None => return Err(Status::invalid_argument("the first message is no start")),
        };
        let work = exec::run(Arc::clone(&self.guest), start, requests);
        let responses = self.run("Exec", work).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    type AttachStream = BoxStream<v1::AttachResponse>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut requests = request.into_inner();
        let start = match first(&mut requests).await?.what {
            Some(v1::attach_request::What::Start(start)) => start,
            Some(_) | None => return Err(Status::invalid_argument("the first message is no start")),
        };
        let attached = attach::run(&self.guest, &start, requests);
        let responses = attached.map_err(|error| self.refuse("Attach", &error))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    type PortForwardStream = BoxStream<v1::PortForwardResponse>;

    async fn port_forward(
        &self,
        request: Request<Streaming<v1::PortForwardRequest>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        let mut requests = request.into_inner();
        let start = match first(&mut requests).await?.what {
            Some(v1::port_forward_request::What::Start(start)) => start,
            Some(_) | None => return Err(Status::invalid_argument("the first message is no start")),
        };
        let work = forward::run(Arc::clone(&self.guest), start, requests);
        let responses = self.run("PortForward", work).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    async fn reopen_log(
        &self,
        request: Request<v1::ReopenLogRequest>,
    ) -> Result<Response<v1::ReopenLogResponse>, Status> {
        self.guest.reopen_log(&request.into_inner().id).map_err(|error| self.refuse("ReopenLog", &error))?;
        Ok(Response::new(v1::ReopenLogResponse {}))
    }

    type ReadLogStream = BoxStream<v1::ReadLogResponse>;

    async fn read_log(
        &self,
        request: Request<Streaming<v1::ReadLogRequest>>,
    ) -> Result<Response<Self::ReadLogStream>, Status> {
        let mut requests = request.into_inner();
        let start = first(&mut requests).await?;
        let refuse = |error: &Error| self.refuse("ReadLog", error);
        let container = self.guest.container(&start.id).map_err(|error| refuse(&error))?;
        let made = container.made("read the log of").map_err(|error| refuse(&error))?;
        let Sink::Stream(buffer) = &made.log else {
            let reason = format!("container {} keeps no records", start.id);
            return Err(refuse(&Error::invalid("id", reason)));
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(take_acknowledgements(requests, Arc::clone(buffer), sender.clone()));
        tokio::spawn(send_records(Arc::clone(buffer), start, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn shutdown(
        &self,
        request: Request<v1::ShutdownRequest>,
    ) -> Result<Response<v1::ShutdownResponse>, Status> {
        let grace = Duration::from_millis(request.into_inner().grace_millis);
        let guest = Arc::clone(&self.guest);
        let work = async move {
            guest.shutdown(grace).await;
            Ok(())
        };
        self.run("Shutdown", work).await?;
        Ok(Response::new(v1::ShutdownResponse {}))
    }
}

/// The first message of a stream, which must come soon.
async fn first<T>(requests: &mut Streaming<T>) -> Result<T, Status> {
    tokio::time::timeout(FIRST_MESSAGE_PATIENCE, requests.next())
        .await
        .map_err(|_| Status::deadline_exceeded("the first message does not come"))?
        .ok_or_else(|| Status::invalid_argument("there is no first message"))?
}

async fn send_events(guest: Arc<Guest>, after: u64, sender: mpsc::Sender<Result<v1::Event, Status>>) {
    let mut newest = guest.events.subscribe();
    let mut after = after;
    loop {
        // Before the look, so that what comes in between wakes the wait below.
        newest.mark_unchanged();
        for event in guest.events.after(after) {
            after = event.sequence;
            if sender.send(Ok(event)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = newest.changed() => if changed.is_err() {
                return;
            },
            () = sender.closed() => return,
        }
    }
}

async fn take_acknowledgements(
    mut requests: Streaming<v1::ReadLogRequest>,
    buffer: Arc<RecordBuffer>,
    sender: mpsc::Sender<Result<v1::ReadLogResponse, Status>>,
) {
    while let Some(Ok(request)) = requests.next().await {
        if let Err(error) = buffer.acknowledge(request.acknowledged) {
            drop(sender.send(Err(Status::invalid_argument(error.to_string()))).await);
            return;
        }
    }
}

async fn send_records(
    buffer: Arc<RecordBuffer>,
    start: v1::ReadLogRequest,
    sender: mpsc::Sender<Result<v1::ReadLogResponse, Status>>,
) {
    let mut offset = start.offset;
    if let Err(error) = buffer.acknowledge(start.acknowledged) {
        drop(sender.send(Err(Status::invalid_argument(error.to_string()))).await);
        return;
    }
    loop {
        let next = tokio::select! {
            next = buffer.next(offset, LOG_PIECE_BYTES) => next,
            () = sender.closed() => return,
        };
        let (message, last) = match next {
            Ok(Some(chunk)) => {
                offset = chunk.end();
                let (offset, records) = (chunk.offset, chunk.bytes);
                (Ok(v1::ReadLogResponse { offset, records, end: false }), false)
            }
            Ok(None) => {
                let records = Vec::new();
                (Ok(v1::ReadLogResponse { offset, records, end: true }), true)
            }
            Err(error) => (Err(Status::invalid_argument(error.to_string())), true),
        };
        if sender.send(message).await.is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use kina_launch::Operation;

    use super::*;

    #[test]
    fn who_is_at_fault_for_a_launch_that_fails() {
        let setup = |operation, errno| LaunchError::Setup {
            operation,
            source: std::io::Error::from_raw_os_error(errno),
        };
        let set = |errno| kina_cgroup::Error::Set {
            field: "cpuset_cpus",
            value: "99".to_owned(),
            path: "/x".into(),
            source: std::io::Error::from_raw_os_error(errno),
        };
        let absent = kina_cgroup::Error::Unsupported { field: "unified", file: "memory.high".to_owned() };
        for (source, expected) in [
            (setup(Operation::WorkingDirectory("/etc/passwd".into()), libc::ENOTDIR), Code::InvalidArgument),
            (setup(Operation::MountPoint("/loop/x".into()), libc::ELOOP), Code::InvalidArgument),
            (setup(Operation::MountPoint("/x".into()), libc::ENOSPC), Code::Internal),
            (setup(Operation::Pivot, libc::EINVAL), Code::Internal),
            (LaunchError::OutOfMemory, Code::InvalidArgument),
            (LaunchError::Gone, Code::FailedPrecondition),
            (LaunchError::Died, Code::Internal),
            (LaunchError::Cgroup(absent), Code::Unimplemented),
            (LaunchError::Cgroup(set(libc::ERANGE)), Code::InvalidArgument),
            (LaunchError::Cgroup(set(libc::EBUSY)), Code::FailedPrecondition),
            (LaunchError::Cgroup(set(libc::EIO)), Code::Internal),
        ] {
            let text = source.to_string();
            let status = status(&Error::Launch { id: "c".to_owned(), source });
            assert_eq!(status.code(), expected, "{text}");
        }
    }
}
