//! What the command line asks about keeping images: their disk, their health,
//! their names and their end.

use std::time::Duration;

use kina_image::{Digest, Image, PruneFilter, Reference, Repair, VerifyProgress};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::admin::{PROGRESS_PAUSE, encode_image};
use crate::admin::v1;
use crate::cri;
use crate::error::Error;
use crate::runtime::Runtime;

fn find(runtime: &Runtime, name: &str) -> Result<Image, Error> {
    runtime.images().resolve(name).ok_or_else(|| Error::ImageNotFound { reference: name.to_owned() })
}

/// Gives an image another name.
pub(super) async fn tag(
    runtime: &Runtime,
    request: &v1::TagImageRequest,
) -> Result<v1::TagImageResponse, Error> {
    let target: Reference = request.target.parse()?;
    let image = find(runtime, &request.source)?;
    let image = runtime.images().tag(image.id.as_str(), &target).await?;
    Ok(v1::TagImageResponse { image: Some(encode_image(&image)) })
}

/// All about an image.
pub(super) fn inspect(runtime: &Runtime, name: &str) -> Result<v1::InspectImageResponse, Error> {
    let image = find(runtime, name)?;
    let pods = runtime.pods();
    let containers = pods.iter().flat_map(|pod| pod.containers.values().map(move |one| (pod, one)));
    let users: Vec<_> = containers
        .filter(|(_, container)| container.images().any(|id| *id == image.id))
        .map(|(pod, container)| {
            json!({
                "id": container.id,
                "name": container.spec.metadata.name,
                "pod": format!("{}/{}", pod.spec.metadata.namespace, pod.spec.metadata.name),
                "state": container.state.name(),
            })
        })
        .collect();
    let mut info = cri::image_info(&image);
    if let Some(info) = info.as_object_mut() {
        info.insert("tags".to_owned(), json!(image.repo_tags));
        info.insert("digests".to_owned(), json!(image.repo_digests));
        info.insert("size".to_owned(), json!(image.size));
        info.insert("storedSize".to_owned(), json!(image.stored_size));
        info.insert("complete".to_owned(), json!(image.complete));
        info.insert("containers".to_owned(), json!(users));
    }
    Ok(v1::InspectImageResponse { json: info.to_string() })
}

/// Removes images that no container uses.
pub(super) async fn prune(
    runtime: &Runtime,
    request: v1::PruneImagesRequest,
) -> Result<v1::PruneImagesResponse, Error> {
    let v1::PruneImagesRequest { all, age_seconds, dry_run } = request;
    let filter = PruneFilter { tagged: all, age: Duration::from_secs(age_seconds), dry_run };
    let pruned = runtime.images().prune(filter).await?;
    if !dry_run {
        tracing::info!(images = pruned.images.len(), bytes = pruned.freed_bytes, "images pruned");
    }
    Ok(v1::PruneImagesResponse {
        images: pruned.images.iter().map(encode_image).collect(),
        freed_bytes: pruned.freed_bytes,
    })
}

/// Verifies, and tells how far that is.
pub(super) async fn verify(
    runtime: Runtime,
    request: v1::VerifyImagesRequest,
    events: mpsc::Sender<Result<v1::VerifyImagesResponse, Status>>,
) -> Result<(), Error> {
    use v1::verify_images_response::Event;
    let mut ids = Vec::with_capacity(request.names.len());
    for name in &request.names {
        ids.push(find(&runtime, name)?.id);
    }
    let (sender, mut progress) = watch::channel(VerifyProgress::default());
    let verify = runtime.images().verify(&ids, request.repair, Some(sender));
    let tell = async {
        // Ends with the reading, which drops the sender.
        while progress.changed().await.is_ok() {
            let VerifyProgress { bytes, total_bytes } = *progress.borrow_and_update();
            let event = Some(Event::Progress(v1::VerifyProgress { bytes, total_bytes }));
            if events.send(Ok(v1::VerifyImagesResponse { event })).await.is_err() {
                return;
            }
            tokio::time::sleep(PROGRESS_PAUSE).await;
        }
    };
    let (report, ()) = tokio::join!(verify, tell);
    let report = encode_report(&runtime, report?);
    for finding in &report.findings {
        tracing::warn!(
            path = finding.path,
            problem = finding.problem,
            reason = finding.reason,
            "damaged file"
        );
    }
    let event = Some(Event::Report(report));
    let _ = events.send(Ok(v1::VerifyImagesResponse { event })).await;
    Ok(())
}

fn encode_report(runtime: &Runtime, report: kina_image::Report) -> v1::VerifyReport {
    use v1::verify_report::{self, Repair as State};
    let images = runtime.images().list();
    let name = |id: &Digest| {
        let image = images.iter().find(|image| image.id == *id);
        let name = image.and_then(|image| image.repo_tags.iter().chain(&image.repo_digests).next());
        name.cloned().unwrap_or_else(|| id.to_string())
    };
    let findings = report.findings.into_iter().map(|finding| {
        let (repair, reason) = match finding.repair {
            None => (State::NotTried, String::new()),
            Some(Repair::Done) => (State::Done, String::new()),
            Some(Repair::Failed { reason }) => (State::Failed, reason),
        };
        verify_report::Finding {
            path: finding.path.display().to_string(),
            problem: finding.problem.to_string(),
            images: finding.images.iter().map(name).collect(),
            in_use: finding.in_use,
            repair: repair.into(),
            reason,
        }
    });
    v1::VerifyReport {
        findings: findings.collect(),
        images: u32::try_from(report.images).unwrap_or(u32::MAX),
        files: report.files,
        bytes: report.bytes,
        unreferenced: report.unreferenced.iter().map(|path| path.display().to_string()).collect(),
    }
}

/// What images take of the disk.
pub(super) async fn disk_use(runtime: &Runtime) -> Result<v1::ImageDiskUseResponse, Error> {
    let found = runtime.images().disk_use().await?;
    let images = found.images.iter().map(|image| v1::image_disk_use_response::ImageUse {
        image: Some(encode_image(&image.image)),
        bytes: image.bytes,
        unique_bytes: image.unique_bytes,
        in_use: image.in_use,
        removed: image.removed,
    });
    Ok(v1::ImageDiskUseResponse {
        images: images.collect(),
        total_bytes: found.total.bytes,
        total_inodes: found.total.inodes,
        shared_bytes: found.shared_bytes,
        unreferenced_bytes: found.unreferenced_bytes,
        other_bytes: found.other_bytes,
        reclaimable_bytes: found.reclaimable_bytes,
    })
}
