//! What the command line asks beyond the CRI.

use std::io;
use std::time::Duration;

use futures::StreamExt as _;
use kina_image::{Credentials, Image, LayerState, Progress, Reference, Removed};
use kina_model::SpecError;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument as _, Span};

use super::log_span::{debug_span, info_span};
use super::{admin_machine, admin_network, answer, keeping};
use crate::admin::v1::admin_server::AdminServer;
use crate::admin::{CHUNK_LIMIT, v1};
use crate::error::Error;
use crate::runtime::Runtime;
use crate::spans::Cause;

/// Progress is told at most that often.
pub(super) const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// A message with a chunk in it, in bytes.
const MESSAGE_LIMIT: usize = CHUNK_LIMIT + (64 << 10);

/// Bytes of an archive read or written at once.
const CHUNK: usize = 256 << 10;

/// The admin service over a runtime.
pub(super) struct Admin {
    runtime: Runtime,
}

impl Admin {
    pub(super) fn server(runtime: Runtime) -> AdminServer<Self> {
        AdminServer::new(Self { runtime })
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(super::MESSAGE_LIMIT)
    }
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

/// Does the work of a call whose answer is a stream. Its messages wait until
/// the caller takes them; a caller that has gone ends the work.
fn stream<T, F>(span: Span, work: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F) -> Response<Stream<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(2);
    let work = work(sender.clone());
    let task = async move {
        let result = tokio::select! {
            // The span is entered already.
            result = answer(Span::none(), work) => result,
            () = sender.closed() => {
                tracing::info!("the caller has gone");
                return;
            }
        };
        if let Err(status) = result {
            // Whoever has gone does not want to know.
            let _ = sender.send(Err(status)).await;
        }
    };
    tokio::spawn(Cause::current().carry(task.instrument(span)));
    Response::new(ReceiverStream::new(receiver))
}

/// Pulls, and tells how far that is.
async fn pull(
    runtime: Runtime,
    request: v1::PullImageRequest,
    events: mpsc::Sender<Result<v1::PullImageResponse, Status>>,
) -> Result<(), Error> {
    let reference: Reference = request.reference.parse()?;
    let credentials = request.credentials.map(|given| Credentials::basic(given.user, given.password));
    let (sender, mut progress) = watch::channel(Progress::default());
    let pull = runtime.pull_image(&reference, credentials.as_ref(), sender);
    let tell = async {
        // Ends with the pull, which drops the sender.
        while progress.changed().await.is_ok() {
            let event =
                v1::pull_image_response::Event::Progress(encode_progress(&progress.borrow_and_update()));
            if events.send(Ok(v1::PullImageResponse { event: Some(event) })).await.is_err() {
                return;
            }
            tokio::time::sleep(PROGRESS_PAUSE).await;
        }
    };
    let (image, ()) = tokio::join!(pull, tell);
    let image = image?;
    tracing::info!(id = %image.id, bytes = image.size, "image is here");
    let event = Some(v1::pull_image_response::Event::Image(encode_image(&image)));
    let _ = events.send(Ok(v1::PullImageResponse { event })).await;
    Ok(())
}

/// Removes a name, or, given an id, the image.
async fn remove(runtime: &Runtime, name: &str) -> Result<v1::RemoveImageResponse, Error> {
    let images = runtime.images();
    let not_found = || Error::ImageNotFound { reference: name.to_owned() };
    let image = images.resolve(name).ok_or_else(not_found)?;
    let removed = match name.parse::<Reference>() {
        Ok(reference) if names(&image, &reference) => images.untag(&reference).await?,
        _ => images.remove(name).await?,
    };
    match removed {
        Removed::None => Err(not_found()),
        Removed::Name { id } => {
            Ok(v1::RemoveImageResponse { id: id.to_string(), image_removed: false, in_use: false })
        }
        Removed::Image { id, in_use } => {
            Ok(v1::RemoveImageResponse { id: id.to_string(), image_removed: true, in_use })
        }
    }
}

fn names(image: &Image, reference: &Reference) -> bool {
    let name = reference.to_string();
    image.repo_tags.iter().chain(&image.repo_digests).any(|one| *one == name)
}

/// Reads an archive from the messages after the first.
async fn import(
    runtime: &Runtime,
    mut messages: Streaming<v1::ImportImageRequest>,
) -> Result<v1::ImportImageResponse, Error> {
    use v1::import_image_request::Part;
    let first = messages.message().await.ok().flatten().and_then(|message| message.part);
    let Some(Part::Start(start)) = first else {
        return Err(SpecError::invalid("start", "must be the first message").into());
    };
    let name = match start.name.as_str() {
        "" => None,
        name => Some(name.parse::<Reference>()?),
    };
    let chunks = messages.map(|message| match message.map(|message| message.part) {
        Ok(Some(Part::Chunk(chunk))) => Ok(io::Cursor::new(chunk)),
        Ok(Some(Part::Start(_)) | None) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a message without a chunk"))
        }
        Err(status) => Err(io::Error::other(status)),
    });
    let chunks = std::pin::pin!(chunks);
    let images = runtime.images().import(StreamReader::new(chunks), name.as_ref()).await;
    if images.is_err() {
        // Half an archive is of no use to the next try, unlike half a pull.
        runtime.collect_images(Duration::ZERO).await;
    }
    let images = images?;
    Ok(v1::ImportImageResponse { images: images.iter().map(encode_image).collect() })
}

/// Writes an image as an archive.
async fn export(
    runtime: Runtime,
    name: String,
    chunks: mpsc::Sender<Result<v1::ExportImageResponse, Status>>,
) -> Result<(), Error> {
    if runtime.images().resolve(&name).is_none() {
        return Err(Error::ImageNotFound { reference: name });
    }
    let (writer, mut reader) = tokio::io::duplex(CHUNK);
    let write = runtime.images().export(&name, writer);
    let send = async {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            // The pipe itself cannot fail; its other end drops on an error.
            while chunk.len() < CHUNK && reader.read_buf(&mut chunk).await.is_ok_and(|read| read > 0) {}
            let end = chunk.is_empty();
            if end || chunks.send(Ok(v1::ExportImageResponse { chunk })).await.is_err() {
                return;
            }
        }
    };
    let (written, ()) = tokio::join!(write, send);
    tracing::info!(bytes = written?, "image exported");
    Ok(())
}

fn encode_progress(progress: &Progress) -> v1::Progress {
    let layers = progress.layers.iter().map(|layer| v1::Layer {
        digest: layer.digest.to_string(),
        size: layer.size,
        fetched: layer.fetched,
        transferred: layer.transferred,
        resumed: layer.resumed,
        state: match layer.state {
            LayerState::Waiting => v1::layer::State::Waiting,
            LayerState::Fetching => v1::layer::State::Fetching,
            LayerState::Unpacking => v1::layer::State::Unpacking,
            LayerState::Done => v1::layer::State::Done,
        }
        .into(),
    });
    v1::Progress { layers: layers.collect() }
}

pub(super) fn encode_image(image: &Image) -> v1::Image {
    let platform = [Some(&image.os), Some(&image.architecture), image.variant.as_ref()];
    v1::Image {
        id: image.id.to_string(),
        tags: image.repo_tags.clone(),
        digests: image.repo_digests.clone(),
        size: image.size,
        platform: platform.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join("/"),
        layers: u32::try_from(image.layers.len()).unwrap_or(u32::MAX),
        created: image.config.created.clone().unwrap_or_default(),
        stored_size: image.stored_size,
        incomplete: !image.complete,
    }
}

#[tonic::async_trait]
impl v1::admin_server::Admin for Admin {
    type PullImageStream = Stream<v1::PullImageResponse>;
    type ExportImageStream = Stream<v1::ExportImageResponse>;
    type VerifyImagesStream = Stream<v1::VerifyImagesResponse>;

    async fn info(&self, _request: Request<v1::InfoRequest>) -> Result<Response<v1::InfoResponse>, Status> {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let pods = self.runtime.pods();
        Ok(Response::new(v1::InfoResponse {
            version: env!("KINA_VERSION").to_owned(),
            boot_id: self.runtime.boot_id().to_owned(),
            pid: std::process::id(),
            pods: count(pods.len()),
            containers: count(pods.iter().map(|pod| pod.containers.len()).sum()),
            images: count(self.runtime.images().list().len()),
            detail: self.runtime.info().to_string(),
        }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        let request = request.into_inner();
        let span = info_span!("Admin.PullImage", image = request.reference);
        let runtime = self.runtime.clone();
        Ok(stream(span, |events| pull(runtime, request, events)))
    }

    async fn list_images(
        &self,
        _request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        answer(debug_span!("Admin.ListImages"), async {
            let images = self.runtime.images().list();
            Ok(v1::ListImagesResponse { images: images.iter().map(encode_image).collect() })
        })
        .await
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let name = request.into_inner().name;
        answer(info_span!("Admin.RemoveImage", image = name), remove(&self.runtime, &name)).await
    }

    async fn import_image(
        &self,
        request: Request<Streaming<v1::ImportImageRequest>>,
    ) -> Result<Response<v1::ImportImageResponse>, Status> {
        answer(info_span!("Admin.ImportImage"), import(&self.runtime, request.into_inner())).await
    }

    async fn export_image(
        &self,
        request: Request<v1::ExportImageRequest>,
    ) -> Result<Response<Self::ExportImageStream>, Status> {
        let name = request.into_inner().name;
        let span = info_span!("Admin.ExportImage", image = name);
        let runtime = self.runtime.clone();
        Ok(stream(span, |chunks| export(runtime, name, chunks)))
    }

    async fn tag_image(
        &self,
        request: Request<v1::TagImageRequest>,
    ) -> Result<Response<v1::TagImageResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("Admin.TagImage", image = request.source, name = request.target);
        answer(span, keeping::tag(&self.runtime, &request)).await
    }

    async fn inspect_image(
        &self,
        request: Request<v1::InspectImageRequest>,
    ) -> Result<Response<v1::InspectImageResponse>, Status> {
        let name = request.into_inner().name;
        let span = debug_span!("Admin.InspectImage", image = name);
        answer(span, async { keeping::inspect(&self.runtime, &name) }).await
    }

    async fn prune_images(
        &self,
        request: Request<v1::PruneImagesRequest>,
    ) -> Result<Response<v1::PruneImagesResponse>, Status> {
        answer(info_span!("Admin.PruneImages"), keeping::prune(&self.runtime, request.into_inner())).await
    }

    async fn verify_images(
        &self,
        request: Request<v1::VerifyImagesRequest>,
    ) -> Result<Response<Self::VerifyImagesStream>, Status> {
        let request = request.into_inner();
        let span = info_span!("Admin.VerifyImages", repair = request.repair);
        let runtime = self.runtime.clone();
        Ok(stream(span, |events| keeping::verify(runtime, request, events)))
    }

    async fn image_disk_use(
        &self,
        _request: Request<v1::ImageDiskUseRequest>,
    ) -> Result<Response<v1::ImageDiskUseResponse>, Status> {
        answer(debug_span!("Admin.ImageDiskUse"), keeping::disk_use(&self.runtime)).await
    }

    async fn network(
        &self,
        _request: Request<v1::NetworkRequest>,
    ) -> Result<Response<v1::NetworkResponse>, Status> {
        answer(debug_span!("Admin.Network"), admin_network::network(&self.runtime)).await
    }

    async fn check_network(
        &self,
        request: Request<v1::CheckNetworkRequest>,
    ) -> Result<Response<v1::CheckNetworkResponse>, Status> {
        let pod = request.into_inner().pod;
        answer(info_span!("Admin.CheckNetwork", pod), admin_network::check(&self.runtime, &pod)).await
    }

    async fn collect_network(
        &self,
        _request: Request<v1::CollectNetworkRequest>,
    ) -> Result<Response<v1::CollectNetworkResponse>, Status> {
        answer(info_span!("Admin.CollectNetwork"), admin_network::collect(&self.runtime)).await
    }

    async fn try_network(
        &self,
        request: Request<v1::TryNetworkRequest>,
    ) -> Result<Response<v1::TryNetworkResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("Admin.TryNetwork", from = request.from, to = request.to);
        answer(span, admin_network::try_out(&self.runtime, request)).await
    }

    async fn list_machines(
        &self,
        request: Request<v1::ListMachinesRequest>,
    ) -> Result<Response<v1::ListMachinesResponse>, Status> {
        let pod = request.into_inner().pod;
        let span = debug_span!("Admin.ListMachines", pod);
        answer(span, admin_machine::list(&self.runtime, &pod)).await
    }

    async fn machine_console(
        &self,
        request: Request<v1::MachineConsoleRequest>,
    ) -> Result<Response<v1::MachineConsoleResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("Admin.MachineConsole", pod = request.pod);
        answer(span, admin_machine::console(&self.runtime, request)).await
    }
}
