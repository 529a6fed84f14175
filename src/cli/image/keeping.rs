//! `kina image tag`, `inspect`, `du`, `prune` and `verify`.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{image_json, write_progress};
use crate::admin::v1;
use crate::cli::text::{bytes, short, table};
use crate::cli::{print_line, socket};

/// Flags of `kina image prune`.
#[derive(Debug, clap::Args)]
pub(super) struct Prune {
    /// Remove images with a tag, too.
    #[arg(long)]
    all: bool,
    /// Leave images that came less than this ago, for example 90m, 36h or 7d.
    #[arg(long, value_name = "AGE", value_parser = age)]
    until: Option<Duration>,
    /// Tell only what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// A JSON object, for programs.
    #[arg(long)]
    json: bool,
}

/// Flags of `kina image verify`.
#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    /// Names, ids or beginnings of ids [default: all images].
    images: Vec<String>,
    /// Make damaged files again: layer images from what was pulled, and that
    /// from its registry.
    #[arg(long)]
    repair: bool,
    /// A JSON object, for programs.
    #[arg(long)]
    json: bool,
}

/// A number and a unit of time.
fn age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no age; write for example 45s, 90m, 36h or 7d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// A name of an image, or `(none)`.
fn name(image: &v1::Image) -> &str {
    image.tags.first().or(image.digests.first()).map_or("(none)", String::as_str)
}

pub(super) async fn tag(daemon: &socket::DaemonSocket, source: String, target: String) -> anyhow::Result<()> {
    let mut client = daemon.connect().await?;
    let image = client.admin.tag_image(v1::TagImageRequest { source, target }).await?.into_inner().image;
    let image = image.context("the daemon named no image")?;
    print_line(&image.id)?;
    Ok(())
}

pub(super) async fn inspect(daemon: &socket::DaemonSocket, images: Vec<String>) -> anyhow::Result<()> {
    let mut client = daemon.connect().await?;
    let mut found: Vec<Value> = Vec::new();
    for name in images {
        let json = client.admin.inspect_image(v1::InspectImageRequest { name }).await?.into_inner().json;
        found.push(serde_json::from_str(&json).context("read the daemon's answer")?);
    }
    print_line(&serde_json::to_string_pretty(&found)?)?;
    Ok(())
}

pub(super) async fn disk_use(daemon: &socket::DaemonSocket, json: bool) -> anyhow::Result<()> {
    let mut client = daemon.connect().await?;
    let found = client.admin.image_disk_use(v1::ImageDiskUseRequest {}).await?.into_inner();
    if json {
        print_line(&serde_json::to_string_pretty(&use_json(&found))?)?;
    } else {
        print_line(&use_text(&found))?;
    }
    Ok(())
}

fn use_json(found: &v1::ImageDiskUseResponse) -> Value {
    let images = found.images.iter().map(|one| {
        json!({
            "image": one.image.as_ref().map(image_json),
            "bytes": one.bytes,
            "uniqueBytes": one.unique_bytes,
            "sharedBytes": one.bytes - one.unique_bytes.min(one.bytes),
            "reclaimableBytes": if one.in_use { 0 } else { one.unique_bytes },
            "inUse": one.in_use,
            "removed": one.removed,
        })
    });
    json!({
        "images": images.collect::<Vec<_>>(),
        "totalBytes": found.total_bytes,
        "totalInodes": found.total_inodes,
        "sharedBytes": found.shared_bytes,
        "unreferencedBytes": found.unreferenced_bytes,
        "otherBytes": found.other_bytes,
        "reclaimableBytes": found.reclaimable_bytes,
    })
}

fn use_text(found: &v1::ImageDiskUseResponse) -> String {
    let mut rows = Vec::new();
    for one in &found.images {
        let unnamed = v1::Image::default();
        let image = one.image.as_ref().unwrap_or(&unnamed);
        let state = match (one.removed, one.in_use) {
            (true, _) => "removed, but in use",
            (false, true) => "in use",
            (false, false) => "",
        };
        let shared = one.bytes - one.unique_bytes.min(one.bytes);
        let reclaimable = if one.in_use { 0 } else { one.unique_bytes };
        let mut row = vec![name(image).to_owned(), short(&image.id).to_owned()];
        row.extend([one.bytes, one.unique_bytes, shared, reclaimable].map(bytes));
        row.push(state.to_owned());
        rows.push(row);
    }
    rows.sort();
    rows.insert(0, ["NAME", "ID", "SIZE", "UNIQUE", "SHARED", "RECLAIMABLE", ""].map(str::to_owned).to_vec());
    let unique = found.images.iter().map(|one| one.unique_bytes).sum();
    let totals = [
        ("unique to an image", unique),
        ("shared by images", found.shared_bytes),
        ("of no image", found.unreferenced_bytes),
        ("directories and lists", found.other_bytes),
        ("total", found.total_bytes),
        ("reclaimable", found.reclaimable_bytes),
    ];
    let totals = totals.map(|(what, count)| vec![what.to_owned(), bytes(count)]);
    format!("{}\n\n{}", table(&rows), table(&totals))
}

pub(super) async fn prune(daemon: &socket::DaemonSocket, arguments: &Prune) -> anyhow::Result<()> {
    let mut client = daemon.connect().await?;
    let request = v1::PruneImagesRequest {
        all: arguments.all,
        age_seconds: arguments.until.map_or(0, |age| age.as_secs()),
        dry_run: arguments.dry_run,
    };
    let pruned = client.admin.prune_images(request).await?.into_inner();
    if arguments.json {
        let images: Vec<Value> = pruned.images.iter().map(image_json).collect();
        let answer =
            json!({ "dryRun": arguments.dry_run, "images": images, "freedBytes": pruned.freed_bytes });
        print_line(&serde_json::to_string_pretty(&answer)?)?;
        return Ok(());
    }
    let (removed, freed) =
        if arguments.dry_run { ("would be removed", "would be freed") } else { ("removed", "freed") };
    for image in &pruned.images {
        print_line(&format!("{}: image {} {removed}", name(image), short(&image.id)))?;
    }
    print_line(&format!("{} {freed}", bytes(pruned.freed_bytes)))?;
    Ok(())
}

pub(super) async fn verify(daemon: &socket::DaemonSocket, arguments: Verify) -> anyhow::Result<()> {
    use v1::verify_images_response::Event;
    let mut client = daemon.connect().await?;
    let request = v1::VerifyImagesRequest { names: arguments.images, repair: arguments.repair };
    let mut events = client.admin.verify_images(request).await?.into_inner();
    let terminal = std::io::stderr().is_terminal() && !arguments.json;
    let mut report = None;
    while let Some(message) = events.message().await? {
        match message.event {
            Some(Event::Progress(progress)) if terminal => {
                let (done, total) = (bytes(progress.bytes), bytes(progress.total_bytes));
                // Overwrites itself, and erases what is left of a longer one.
                write_progress(&format!("\r{done} of {total} read\u{1b}[K"))?;
            }
            Some(Event::Report(found)) => report = Some(found),
            Some(Event::Progress(_)) | None => {}
        }
    }
    if terminal {
        write_progress("\r\u{1b}[K")?;
    }
    let Some(report) = report else { bail!("the daemon ended the verification without a result") };
    if arguments.json {
        print_line(&serde_json::to_string_pretty(&report_json(&report))?)?;
    } else {
        print_line(&report_text(&report))?;
    }
    let damaged = damaged(&report);
    if damaged > 0 {
        let advice = if arguments.repair {
            "pull their images again, or remove them"
        } else {
            "`kina image verify --repair` mends them"
        };
        bail!("{damaged} damaged {}; {advice}", if damaged == 1 { "file" } else { "files" });
    }
    Ok(())
}

/// Files that are damaged still.
fn damaged(report: &v1::VerifyReport) -> usize {
    let done = v1::verify_report::Repair::Done;
    report.findings.iter().filter(|finding| finding.repair() != done).count()
}

fn report_json(report: &v1::VerifyReport) -> Value {
    use v1::verify_report::Repair;
    let findings = report.findings.iter().map(|finding| {
        let repair = match finding.repair() {
            Repair::NotTried => Value::Null,
            Repair::Done => json!("done"),
            Repair::Failed => json!("failed"),
        };
        json!({
            "path": finding.path,
            "problem": finding.problem,
            "images": finding.images,
            "inUse": finding.in_use,
            "repair": repair,
            "reason": finding.reason,
        })
    });
    json!({
        "images": report.images,
        "files": report.files,
        "bytes": report.bytes,
        "findings": findings.collect::<Vec<_>>(),
        "unreferenced": report.unreferenced,
    })
}

fn report_text(report: &v1::VerifyReport) -> String {
    use v1::verify_report::Repair;
    let mut lines = Vec::new();
    for finding in &report.findings {
        lines.push(format!("{} {}", finding.path, finding.problem));
        let used = if finding.in_use { "; in use, which ends with its containers" } else { "" };
        lines.push(format!("    of {}{used}", finding.images.join(", ")));
        match finding.repair() {
            Repair::NotTried => {}
            Repair::Done => lines.push("    repaired".to_owned()),
            Repair::Failed => lines.push(format!("    not repaired: {}", finding.reason)),
        }
    }
    let found = match damaged(report) {
        0 => "nothing is wrong".to_owned(),
        count => format!("{count} damaged"),
    };
    let read = bytes(report.bytes);
    lines.push(format!("{} images, {} files, {read} read: {found}", report.images, report.files));
    if !report.unreferenced.is_empty() {
        let count = report.unreferenced.len();
        lines.push(format!("{count} files belong to no image; `kina image prune` frees them"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (text, seconds) in [("45s", 45), ("90m", 5400), ("36h", 129_600), ("7d", 604_800), ("0s", 0)] {
            assert_eq!(age(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "7", "h", "-1h", "1.5h", "7w", "9999999999999999999d", "1ä"] {
            assert!(age(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_report_for_people() {
        use v1::verify_report::{Finding, Repair};
        let finding = |repair: Repair, reason: &str| Finding {
            path: "/s/layers/1.erofs".to_owned(),
            problem: "is missing".to_owned(),
            images: vec!["a:1".to_owned(), "b:2".to_owned()],
            in_use: repair == Repair::Failed,
            repair: repair.into(),
            reason: reason.to_owned(),
        };
        let mut report = v1::VerifyReport { images: 2, files: 9, bytes: 2048, ..Default::default() };
        assert_eq!(report_text(&report), "2 images, 9 files, 2.0 KiB read: nothing is wrong");
        report.findings = vec![finding(Repair::Done, ""), finding(Repair::Failed, "no registry")];
        report.unreferenced = vec!["/s/x".to_owned()];
        assert_eq!(
            report_text(&report),
            "/s/layers/1.erofs is missing\n    of a:1, b:2\n    repaired\n\
             /s/layers/1.erofs is missing\n    of a:1, b:2; in use, which ends with its containers\n    \
             not repaired: no registry\n\
             2 images, 9 files, 2.0 KiB read: 1 damaged\n\
             1 files belong to no image; `kina image prune` frees them"
        );
        assert_eq!(damaged(&report), 1);
    }

    #[test]
    fn disk_use_for_people_and_programs() {
        let image = v1::Image { id: "sha256:0123456789abcdef".to_owned(), ..Default::default() };
        let one = v1::image_disk_use_response::ImageUse {
            image: Some(image),
            bytes: 3072,
            unique_bytes: 2048,
            in_use: false,
            removed: false,
        };
        let found = v1::ImageDiskUseResponse {
            images: vec![one],
            total_bytes: 4096,
            shared_bytes: 1024,
            other_bytes: 1024,
            ..Default::default()
        };
        let text = use_text(&found);
        assert!(text.contains("(none)   0123456789ab   3.0 KiB   2.0 KiB   1.0 KiB   2.0 KiB"), "{text}");
        assert!(text.contains("total                   4.0 KiB"), "{text}");
        let json = use_json(&found);
        assert_eq!(json["images"][0]["sharedBytes"], 1024);
        assert_eq!(json["images"][0]["reclaimableBytes"], 2048);
    }
}
