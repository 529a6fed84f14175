//! Guests in memory, speaking the real protocol over the streams of
//! [`kina_machine::fake::FakeDriver`]. Containers are entries of a table; the
//! test says when one exits, and what it prints.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kina_guest_api::v1;
use kina_guest_api::v1::guest_server::{Guest, GuestServer};
use kina_log::RecordBuffer;
use kina_model::PodId;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

/// The guests of all pods. Clones share them.
#[derive(Clone, Default)]
pub struct FakeGuests {
    world: Arc<Mutex<HashMap<PodId, Arc<State>>>>,
    manners: Arc<Mutex<Manners>>,
}

/// How guests behave that do not behave.
#[derive(Default)]
struct Manners {
    /// Calls that are refused, and how often.
    refusals: BTreeMap<&'static str, u32>,
    /// Calls that are never answered.
    ignored: BTreeSet<&'static str>,
    /// Calls that wait until the other end is dropped.
    held: BTreeMap<&'static str, watch::Receiver<()>>,
    /// What new streams get.
    streams: Streams,
    version: Option<u32>,
    /// What they say that their kernel can do.
    features: v1::Features,
    /// Bytes of the version in words.
    boast: usize,
    /// Events without end that say nothing true.
    flood: bool,
    lies: VecDeque<Vec<v1::ReadLogResponse>>,
}

#[derive(Clone, Default)]
enum Streams {
    #[default]
    Served,
    /// Held open, never answered.
    Silent,
    /// This, again and again, whatever is asked.
    Garbage(Vec<u8>),
}

struct State {
    table: Mutex<Table>,
    sequence: watch::Sender<u64>,
}

/// A byte stream to a fake guest.
pub trait FakeStream: AsyncRead + AsyncWrite + Connected + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Connected + Send + Unpin + 'static> FakeStream for T {}

#[derive(Default)]
struct Table {
    /// How containers were asked for.
    requests: BTreeMap<String, v1::CreateContainerRequest>,
    /// How often the guest was asked to end.
    shutdowns: u32,
    containers: BTreeMap<String, v1::ContainerStatus>,
    /// Of containers made with `log.stream`.
    logs: BTreeMap<String, Arc<RecordBuffer>>,
    events: Vec<v1::Event>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeGuests {
    /// Serves one stream; for [`kina_machine::fake::FakeDriver::new`].
    pub fn accept(&self, pod: PodId, mut stream: impl FakeStream) {
        let streams = lock(&self.manners).streams.clone();
        match streams {
            Streams::Served => {}
            Streams::Silent => {
                tokio::spawn(async move {
                    let _stream = stream;
                    std::future::pending::<()>().await;
                });
                return;
            }
            Streams::Garbage(garbage) => {
                tokio::spawn(async move { while stream.write_all(&garbage).await.is_ok() {} });
                return;
            }
        }
        let state =
            Arc::clone(lock(&self.world).entry(pod.clone()).or_insert_with(|| {
                Arc::new(State { table: Mutex::default(), sequence: watch::Sender::new(0) })
            }));
        let guest = FakeGuest { pod, state, manners: Arc::clone(&self.manners) };
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(stream));
        let server = tonic::transport::Server::builder().add_service(GuestServer::new(guest));
        tokio::spawn(server.serve_with_incoming(incoming.chain(tokio_stream::pending())));
    }

    /// What is printed by a container of a pod, made with a log that is read:
    /// whole records. Waits while nobody takes them.
    pub async fn print(&self, pod: &PodId, container: &str, records: &[u8]) {
        let log = lock(&self.world)
            .get(pod)
            .and_then(|state| lock(&state.table).logs.get(container).cloned())
            .expect("a container whose log is read");
        log.append(records).await.expect("it has not ended");
    }

    /// Bytes that a container's log keeps because nobody has taken them.
    pub fn kept(&self, pod: &PodId, container: &str) -> u64 {
        let world = lock(&self.world);
        let log = world.get(pod).and_then(|state| lock(&state.table).logs.get(container).cloned());
        log.map_or(0, |log| log.end() - log.start())
    }

    /// The next ReadLog is answered with this, whatever was printed.
    pub fn lie(&self, answers: Vec<v1::ReadLogResponse>) {
        lock(&self.manners).lies.push_back(answers);
    }

    /// The next `count` calls of that name are refused.
    pub fn refuse(&self, call: &'static str, count: u32) {
        lock(&self.manners).refusals.insert(call, count);
    }

    /// They speak that protocol version from now on, whatever the caller's.
    pub fn speak(&self, version: u32) {
        lock(&self.manners).version = Some(version);
    }

    /// They say whether they can have user namespaces.
    pub fn have_user_namespaces(&self, able: bool) {
        lock(&self.manners).features.user_namespaces = able;
    }

    /// They say that their kernel can do that.
    pub fn have_features(&self, features: v1::Features) {
        lock(&self.manners).features = features;
    }

    /// New streams get no answer.
    pub fn be_silent(&self) {
        lock(&self.manners).streams = Streams::Silent;
    }

    /// New streams get these bytes again and again, whatever is asked.
    pub fn talk_garbage(&self, garbage: &[u8]) {
        lock(&self.manners).streams = Streams::Garbage(garbage.to_vec());
    }

    /// Calls of that name are never answered.
    pub fn ignore(&self, call: &'static str) {
        lock(&self.manners).ignored.insert(call);
    }

    /// Calls of that name wait until the returned value is dropped.
    #[must_use]
    pub fn hold(&self, call: &'static str) -> watch::Sender<()> {
        let (hold, held) = watch::channel(());
        lock(&self.manners).held.insert(call, held);
        hold
    }

    /// They say what version they are in that many bytes.
    pub fn boast(&self, bytes: usize) {
        lock(&self.manners).boast = bytes;
    }

    /// They tell events without end, of containers that there are not.
    pub fn flood_events(&self) {
        lock(&self.manners).flood = true;
    }

    /// A container of a pod ends.
    pub fn exit(&self, pod: &PodId, container: &str, code: i32, oom_killed: bool) {
        if let Some(state) = lock(&self.world).get(pod) {
            state.exit(container, code, oom_killed);
        }
    }

    /// How a container of a pod was asked for.
    pub fn request(&self, pod: &PodId, container: &str) -> Option<v1::CreateContainerRequest> {
        lock(&lock(&self.world).get(pod)?.table).requests.get(container).cloned()
    }

    /// How often the guest of a pod was asked to end.
    pub fn shutdowns(&self, pod: &PodId) -> u32 {
        lock(&self.world).get(pod).map_or(0, |state| lock(&state.table).shutdowns)
    }

    /// The ids of a pod's containers, as its guest knows them.
    pub fn containers(&self, pod: &PodId) -> Vec<String> {
        let world = lock(&self.world);
        world
            .get(pod)
            .map(|state| lock(&state.table).containers.keys().cloned().collect())
            .unwrap_or_default()
    }
}

impl State {
    fn exit(&self, container: &str, code: i32, oom_killed: bool) {
        let mut table = lock(&self.table);
        let sequence = table.events.len() as u64 + 1;
        let exit = v1::Exit { code, finished_at_nanos: 2_000, oom_killed };
        match table.containers.get_mut(container) {
            Some(status) if status.exit.is_none() => {
                status.state = v1::ContainerState::Exited.into();
                status.exit = Some(exit);
            }
            _ => return,
        }
        if let Some(log) = table.logs.get(container) {
            log.close();
        }
        let exited = v1::ContainerExited { id: container.to_owned(), exit: Some(exit) };
        table.events.push(v1::Event { sequence, what: Some(v1::event::What::Exited(exited)) });
        self.sequence.send_replace(sequence);
    }
}

struct FakeGuest {
    pod: PodId,
    state: Arc<State>,
    manners: Arc<Mutex<Manners>>,
}

impl FakeGuest {
    async fn may(&self, call: &'static str) -> Result<(), Status> {
        if lock(&self.manners).ignored.contains(call) {
            std::future::pending::<()>().await;
        }
        let held = lock(&self.manners).held.get(call).cloned();
        if let Some(mut held) = held {
            // An error says that it was dropped; nothing is ever sent.
            let _ = held.changed().await;
        }
        match lock(&self.manners).refusals.get_mut(call) {
            Some(left) if *left > 0 => {
                *left -= 1;
                Err(Status::internal("ordered by the test"))
            }
            _ => Ok(()),
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Guest for FakeGuest {
    async fn hello(&self, request: Request<v1::HelloRequest>) -> Result<Response<v1::HelloResponse>, Status> {
        self.may("hello").await?;
        let (version, boast, features) = {
            let manners = lock(&self.manners);
            (manners.version, manners.boast, manners.features)
        };
        Ok(Response::new(v1::HelloResponse {
            protocol_version: version.unwrap_or(request.into_inner().protocol_version),
            guest_version: if boast == 0 { "fake".to_owned() } else { "x".repeat(boast) },
            boot_id: "fake-boot".to_owned(),
            kernel_release: "fake-kernel".to_owned(),
            architecture: "fake".to_owned(),
            pod_id: self.pod.to_string(),
            pid: 1,
            features: Some(features),
        }))
    }

    async fn setup_pod(
        &self,
        _request: Request<v1::SetupPodRequest>,
    ) -> Result<Response<v1::SetupPodResponse>, Status> {
        self.may("setup_pod").await?;
        Ok(Response::new(v1::SetupPodResponse::default()))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        self.may("create_container").await?;
        let request = request.into_inner();
        let status = v1::ContainerStatus {
            id: request.id.clone(),
            state: v1::ContainerState::Created.into(),
            pid: 7,
            created_at_nanos: 1_000,
            ..v1::ContainerStatus::default()
        };
        let mut table = lock(&self.state.table);
        let target = request.log.as_ref().and_then(|log| log.target.as_ref());
        if let Some(v1::log_target::Target::Stream(_)) = target {
            table.logs.insert(request.id.clone(), Arc::default());
        }
        table.containers.insert(request.id.clone(), status);
        table.requests.insert(request.id.clone(), request);
        drop(table);
        Ok(Response::new(v1::CreateContainerResponse::default()))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        self.may("start_container").await?;
        let mut table = lock(&self.state.table);
        let status = table
            .containers
            .get_mut(&request.into_inner().id)
            .ok_or_else(|| Status::not_found("container"))?;
        status.state = v1::ContainerState::Running.into();
        status.started_at_nanos = 1_500;
        Ok(Response::new(v1::StartContainerResponse {
            started_at_nanos: 1_500,
            pid: 7,
            ..v1::StartContainerResponse::default()
        }))
    }

    /// SIGKILL ends a container, other signals do not.
    async fn signal_container(
        &self,
        request: Request<v1::SignalContainerRequest>,
    ) -> Result<Response<v1::SignalContainerResponse>, Status> {
        self.may("signal_container").await?;
        let request = request.into_inner();
        if request.signal == 9 {
            self.state.exit(&request.id, 137, false);
        }
        Ok(Response::new(v1::SignalContainerResponse {}))
    }

    async fn delete_container(
        &self,
        request: Request<v1::DeleteContainerRequest>,
    ) -> Result<Response<v1::DeleteContainerResponse>, Status> {
        self.may("delete_container").await?;
        let id = request.into_inner().id;
        let mut table = lock(&self.state.table);
        table.containers.remove(&id);
        if let Some(log) = table.logs.remove(&id) {
            log.close();
        }
        Ok(Response::new(v1::DeleteContainerResponse {}))
    }

    async fn update_container(
        &self,
        request: Request<v1::UpdateContainerRequest>,
    ) -> Result<Response<v1::UpdateContainerResponse>, Status> {
        self.may("update_container").await?;
        let id = request.into_inner().id;
        if !lock(&self.state.table).containers.contains_key(&id) {
            return Err(Status::not_found(format!("no container {id}")));
        }
        Ok(Response::new(v1::UpdateContainerResponse {}))
    }

    async fn stats(
        &self,
        _request: Request<v1::StatsRequest>,
    ) -> Result<Response<v1::StatsResponse>, Status> {
        self.may("stats").await?;
        let used = |id: &String| v1::ContainerStats { id: id.clone(), ..v1::ContainerStats::default() };
        let containers = lock(&self.state.table).containers.keys().map(used).collect();
        Ok(Response::new(v1::StatsResponse { containers, ..v1::StatsResponse::default() }))
    }

    async fn list_containers(
        &self,
        _request: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        self.may("list_containers").await?;
        let table = lock(&self.state.table);
        Ok(Response::new(v1::ListContainersResponse {
            containers: table.containers.values().cloned().collect(),
            sequence: table.events.len() as u64,
        }))
    }

    type EventsStream = Answers<v1::Event>;

    async fn events(
        &self,
        request: Request<v1::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        if lock(&self.manners).flood {
            let lie = |sequence| {
                let id = PodId::random().to_string();
                let exited = v1::ContainerExited { id, exit: Some(v1::Exit::default()) };
                Ok(v1::Event { sequence, what: Some(v1::event::What::Exited(exited)) })
            };
            return Ok(Response::new(Box::pin(tokio_stream::iter((1..).map(lie)))));
        }
        let state = Arc::clone(&self.state);
        let mut next = request.into_inner().after as usize;
        let changes = tokio_stream::wrappers::WatchStream::new(state.sequence.subscribe());
        let events = changes.map(move |_| {
            let table = lock(&state.table);
            let news: Vec<_> = table.events.iter().skip(next).cloned().map(Ok).collect();
            next = table.events.len();
            tokio_stream::iter(news)
        });
        Ok(Response::new(Box::pin(futures::StreamExt::flatten(events))))
    }

    type ExecStream = Answers<v1::ExecResponse>;

    async fn exec(
        &self,
        _request: Request<Streaming<v1::ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::unimplemented("the fake runs nothing"))
    }

    type AttachStream = Answers<v1::AttachResponse>;

    async fn attach(
        &self,
        _request: Request<Streaming<v1::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        Err(Status::unimplemented("the fake runs nothing"))
    }

    type PortForwardStream = Answers<v1::PortForwardResponse>;

    async fn port_forward(
        &self,
        _request: Request<Streaming<v1::PortForwardRequest>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        Err(Status::unimplemented("the fake has no network"))
    }

    async fn reopen_log(
        &self,
        _request: Request<v1::ReopenLogRequest>,
    ) -> Result<Response<v1::ReopenLogResponse>, Status> {
        self.may("reopen_log").await?;
        Ok(Response::new(v1::ReopenLogResponse {}))
    }

    type ReadLogStream = Answers<v1::ReadLogResponse>;

    async fn read_log(
        &self,
        request: Request<Streaming<v1::ReadLogRequest>>,
    ) -> Result<Response<Self::ReadLogStream>, Status> {
        self.may("read_log").await?;
        let mut requests = request.into_inner();
        let start = requests.message().await?.ok_or_else(|| Status::invalid_argument("no first message"))?;
        let lie = lock(&self.manners).lies.pop_front();
        if let Some(lie) = lie {
            let answers = tokio_stream::iter(lie.into_iter().map(Ok));
            // Held open: not even its end is told.
            return Ok(Response::new(Box::pin(answers.chain(tokio_stream::pending()))));
        }
        let log = lock(&self.state.table).logs.get(&start.id).cloned();
        let log = log.ok_or_else(|| Status::not_found("container"))?;
        log.acknowledge(start.acknowledged).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(serve_log(log, start.offset, requests, sender));
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    async fn shutdown(
        &self,
        _request: Request<v1::ShutdownRequest>,
    ) -> Result<Response<v1::ShutdownResponse>, Status> {
        lock(&self.state.table).shutdowns += 1;
        self.may("shutdown").await?;
        Ok(Response::new(v1::ShutdownResponse {}))
    }
}

/// Sends records and takes acknowledgements until the reader goes away.
async fn serve_log(
    log: Arc<RecordBuffer>,
    mut offset: u64,
    mut requests: Streaming<v1::ReadLogRequest>,
    sender: mpsc::Sender<Result<v1::ReadLogResponse, Status>>,
) {
    let mut ended = false;
    loop {
        let answer = tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => match log.acknowledge(request.acknowledged) {
                    Ok(()) => continue,
                    Err(error) => Err(Status::invalid_argument(error.to_string())),
                },
                Ok(None) | Err(_) => return,
            },
            next = log.next(offset, 64 << 10), if !ended => match next {
                Ok(Some(chunk)) => {
                    offset = chunk.end();
                    Ok(v1::ReadLogResponse { offset: chunk.offset, records: chunk.bytes, end: false })
                }
                Ok(None) => {
                    ended = true;
                    Ok(v1::ReadLogResponse { offset, records: Vec::new(), end: true })
                }
                Err(error) => Err(Status::invalid_argument(error.to_string())),
            },
        };
        let failed = answer.is_err();
        if sender.send(answer).await.is_err() || failed {
            return;
        }
    }
}
