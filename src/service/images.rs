//! The image service.

use kina_image::Reference;
use kina_model::SpecError;
use tokio::sync::watch;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::log_span::{debug_span, info_span};
use super::streams::pieces;
use super::{answer, info, whole};
use crate::cri::v1::image_service_server::ImageService;
use crate::cri::{self, v1};
use crate::error::Error;
use crate::placement;
use crate::pod::context::now;
use crate::runtime::Runtime;

/// The image service over a runtime.
pub(super) struct Images {
    runtime: Runtime,
}

impl Images {
    pub(super) fn new(runtime: Runtime) -> Self {
        Self { runtime }
    }

    async fn list(&self, request: v1::ListImagesRequest) -> Result<v1::ListImagesResponse, Error> {
        let spec = request.filter.and_then(|filter| filter.image).unwrap_or_default();
        let mut images = if spec.image.is_empty() {
            placement::known("filter.image.runtime_handler", &spec.runtime_handler)?;
            self.runtime.images().list()
        } else {
            let asked = cri::image_name("filter.image", spec)?;
            self.runtime.images().resolve(&asked).into_iter().collect()
        };
        // One that lacks a layer is not here: so the kubelet pulls it.
        images.retain(|image| image.complete);
        Ok(v1::ListImagesResponse { images: images.iter().map(cri::image).collect() })
    }

    /// An unknown image is no error: the answer has none. Nor has it one that
    /// lacks a layer, so that the kubelet pulls it.
    async fn status(&self, request: v1::ImageStatusRequest) -> Result<v1::ImageStatusResponse, Error> {
        let found = self.runtime.images().resolve(&name(request.image)?);
        let Some(image) = found.filter(|image| image.complete) else {
            return Ok(v1::ImageStatusResponse::default());
        };
        Ok(v1::ImageStatusResponse {
            image: Some(cri::image(&image)),
            info: if request.verbose { info("info", &cri::image_info(&image)) } else { Default::default() },
        })
    }

    /// The answer is the image's id, as everywhere else.
    async fn pull(&self, request: v1::PullImageRequest) -> Result<v1::PullImageResponse, Error> {
        let v1::PullImageRequest { image, auth, sandbox_config: _ } = request;
        let reference: Reference = name(image)?.parse()?;
        let credentials = cri::credentials(auth)?;
        let pulled =
            self.runtime.pull_image(&reference, credentials.as_ref(), watch::Sender::default()).await;
        let image = pulled.map_err(|error| match error {
            Error::Image(source @ kina_image::Error::Unreachable { .. }) => {
                Error::RegistryUnavailable(source)
            }
            other => other,
        })?;
        tracing::info!(id = %image.id, bytes = image.size, "image is here");
        Ok(v1::PullImageResponse { image_ref: image.id.to_string() })
    }

    async fn remove(&self, request: v1::RemoveImageRequest) -> Result<v1::RemoveImageResponse, Error> {
        self.runtime.remove_image(&name(request.image)?).await?;
        Ok(v1::RemoveImageResponse {})
    }

    async fn usage(&self) -> Result<v1::ImageFsInfoResponse, Error> {
        let (images, containers) = self.runtime.image_usage().await?;
        let timestamp = now();
        let message = |usage: kina_node::FilesystemUsage| v1::FilesystemUsage {
            timestamp,
            fs_id: Some(v1::FilesystemIdentifier {
                mountpoint: usage.mountpoint.to_string_lossy().into_owned(),
            }),
            used_bytes: Some(v1::UInt64Value { value: usage.used_bytes }),
            inodes_used: Some(v1::UInt64Value { value: usage.used_inodes }),
        };
        Ok(v1::ImageFsInfoResponse {
            image_filesystems: vec![message(images)],
            container_filesystems: vec![message(containers)],
        })
    }
}

/// The image that a request names.
fn name(spec: Option<v1::ImageSpec>) -> Result<String, SpecError> {
    cri::image_name("image", spec.unwrap_or_default())
}

/// For spans: the name alone.
fn named(spec: &Option<v1::ImageSpec>) -> &str {
    spec.as_ref().map_or("", |spec| spec.image.as_str())
}

#[tonic::async_trait]
impl ImageService for Images {
    type StreamImagesStream = BoxStream<v1::StreamImagesResponse>;

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let list = async { whole(self.list(request.into_inner()).await?, "StreamImages") };
        answer(debug_span!("ListImages"), list).await
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let asked = v1::ListImagesRequest { filter: request.into_inner().filter };
        let images = answer(debug_span!("StreamImages"), self.list(asked)).await?.into_inner().images;
        let images = pieces(images.into_iter(), |images| v1::StreamImagesResponse { images });
        Ok(Response::new(images))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        answer(debug_span!("ImageStatus", image = named(&request.image)), self.status(request)).await
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let request = request.into_inner();
        answer(info_span!("PullImage", image = named(&request.image)), self.pull(request)).await
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let request = request.into_inner();
        answer(info_span!("RemoveImage", image = named(&request.image)), self.remove(request)).await
    }

    async fn image_fs_info(
        &self,
        _request: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        answer(debug_span!("ImageFsInfo"), self.usage()).await
    }
}
