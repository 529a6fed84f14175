//! Cold pulls of an image of about 200 MB from a registry on loopback: gzip and
//! zstd, one layer and four.
//!
//! The layers are made of this machine's own files below `/usr`. Both daemons
//! end with an image that a container can start from: containerd with
//! directories, kina with EROFS images. Each pull begins with nothing of the
//! image in the store; the image is removed after it, which is not measured.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kina::cri::v1;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::daemons::Daemon;
use crate::memory;
use crate::place::Place;
use crate::registry::{self, Content};
use crate::report::{percentile, row};

/// Where the files come from.
const SOURCES: [&str; 3] = ["/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share"];

/// Bytes of files in an image; about 200 MB compressed.
const UNCOMPRESSED: u64 = 560 << 20;

/// No single file may make a layer what it is.
const LARGEST_FILE: u64 = 32 << 20;

/// Layers of the image with several.
const LAYERS: usize = 4;

/// How long a pull may take.
const DEADLINE: Duration = Duration::from_secs(300);

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// How layers are compressed.
#[derive(Clone, Copy)]
enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    fn compress(self, bytes: &[u8]) -> Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(bytes)?;
                Ok(encoder.finish()?)
            }
            Self::Zstd => Ok(zstd::encode_all(bytes, 3)?),
        }
    }
}

/// An image in the registry.
struct Image {
    name: String,
    layers: usize,
    /// Of all layers as they are transferred.
    bytes: usize,
}

/// Cold pulls of every image by both daemons, `rounds` of each, turn about.
pub(crate) async fn run(
    place: &Place,
    kina: &Path,
    guest: &Path,
    rounds: usize,
    as_json: bool,
) -> Result<()> {
    eprintln!("lifecycle: making images of {} MiB of files", UNCOMPRESSED >> 20);
    let (images, routes) = images()?;
    let address = registry::serve(routes)?;
    let daemons = [
        Daemon::kina_with(place, kina, guest, "warn", &format!("[image]\nplain_http = [\"{address}\"]\n"))
            .await?,
        Daemon::containerd(place).await?,
    ];
    let other = daemons[1].version().await?;
    let mut results = Vec::new();
    for image in images {
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for turn in 0..daemons.len() {
                let index = (round + turn) % daemons.len();
                times[index].push(cold_pull(&daemons[index], address, &image).await?);
            }
        }
        for side in &mut times {
            side.sort_by(f64::total_cmp);
        }
        results.push((image, times));
    }
    let mut syncs = Vec::new();
    for daemon in &daemons {
        syncs.push(counted_syncs(daemon, address, &results[0].0).await?);
    }
    let memory = [memory::peak_of_daemon(&daemons[0])?, memory::peak_of_daemon(&daemons[1])?];
    if as_json {
        println!("{}", serde_json::to_string_pretty(&report_json(&results, &syncs, memory))?);
    } else {
        print!("{}", report_text(&other, rounds, &results, &syncs, memory));
    }
    Ok(())
}

/// Seconds of one pull; the store has nothing of the image, before and after.
async fn cold_pull(daemon: &Daemon, registry: SocketAddr, image: &Image) -> Result<f64> {
    let reference = format!("{registry}/{}:1", image.name);
    let spec = v1::ImageSpec { image: reference.clone(), ..v1::ImageSpec::default() };
    // What earlier rounds have written shall not be written back during this one.
    rustix::fs::sync();
    let begun = Instant::now();
    let pull = v1::PullImageRequest { image: Some(spec.clone()), ..v1::PullImageRequest::default() };
    let mut client = daemon.images.clone();
    tokio::time::timeout(DEADLINE, client.pull_image(pull))
        .await
        .with_context(|| format!("{} does not finish {reference}", daemon.name))?
        .with_context(|| format!("{} pulls {reference}", daemon.name))?;
    let seconds = begun.elapsed().as_secs_f64();
    client
        .remove_image(v1::RemoveImageRequest { image: Some(spec) })
        .await
        .with_context(|| format!("{} removes {reference}", daemon.name))?;
    Ok(seconds)
}

/// How often a pull calls each of the ways to sync, by strace; empty without it.
async fn counted_syncs(daemon: &Daemon, registry: SocketAddr, image: &Image) -> Result<Vec<(String, u64)>> {
    let report = daemon.directory.join("strace");
    let calls = "trace=fsync,fdatasync,syncfs,sync,sync_file_range,msync";
    let tracer = Command::new("strace")
        .args(["-f", "-c", "-q", "-e", calls, "-o"])
        .arg(&report)
        .args(["-p", &daemon.pid.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut tracer) = tracer else { return Ok(Vec::new()) };
    let attached = || {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid)).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    };
    let begun = Instant::now();
    while !attached() && begun.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let pulled = cold_pull(daemon, registry, image).await;
    if let Some(pid) = rustix::process::Pid::from_raw(tracer.id().cast_signed()) {
        // It prints its summary when it is interrupted.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }
    tracer.wait()?;
    pulled?;
    let text = fs::read_to_string(&report).unwrap_or_default();
    Ok(text
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let name = *words.last()?;
            (name.contains("sync") && words.len() >= 5).then_some(())?;
            Some((name.to_owned(), words[3].parse().ok()?))
        })
        .collect())
}

fn images() -> Result<(Vec<Image>, HashMap<String, Content>)> {
    let tars = layers()?;
    let mut routes = HashMap::new();
    let mut images = Vec::new();
    for compression in Compression::ALL {
        let whole = vec![tars.concat()];
        for tars in [&whole, &tars] {
            let name = format!("{}-{}", compression.name(), tars.len());
            let bytes = publish(&mut routes, &name, tars, compression)?;
            images.push(Image { name, layers: tars.len(), bytes });
        }
    }
    Ok((images, routes))
}

/// Tar streams without their end, so that they can be joined.
fn layers() -> Result<Vec<Vec<u8>>> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(Path::new(source), &mut files)?;
    }
    files.sort();
    // From everywhere, not only what comes first in the alphabet.
    let total: u64 = files.iter().map(|(_, length)| length).sum();
    let every = (total / UNCOMPRESSED).max(1) as usize;
    let mut builders: Vec<tar::Builder<Vec<u8>>> =
        (0..LAYERS).map(|_| tar::Builder::new(Vec::new())).collect();
    let mut sizes = [0_u64; LAYERS];
    for (path, length) in files.iter().step_by(every) {
        let smallest = (0..LAYERS).min_by_key(|index| sizes[*index]).unwrap_or(0);
        let name = path.strip_prefix("/").unwrap_or(path);
        builders[smallest]
            .append_path_with_name(path, name)
            .with_context(|| format!("pack {}", path.display()))?;
        sizes[smallest] += length;
        if sizes.iter().sum::<u64>() >= UNCOMPRESSED {
            break;
        }
    }
    builders
        .into_iter()
        .map(|builder| {
            let mut bytes = builder.into_inner()?;
            bytes.truncate(bytes.len() - 1024);
            Ok(bytes)
        })
        .collect()
}

fn collect(directory: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() {
            let length = entry.metadata()?.len();
            if length <= LARGEST_FILE {
                files.push((entry.path(), length));
            }
        }
    }
    Ok(())
}

/// Adds an image; returns the bytes of its layers.
fn publish(
    routes: &mut HashMap<String, Content>,
    name: &str,
    tars: &[Vec<u8>],
    compression: Compression,
) -> Result<usize> {
    let mut add = |path: String, media_type: &'static str, bytes: Vec<u8>| {
        let digest = digest(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        routes.insert(path + &digest, Content { media_type, digest, bytes });
        descriptor
    };
    let blobs = format!("/v2/{name}/blobs/");
    let (mut diff_ids, mut descriptors, mut total) = (Vec::new(), Vec::new(), 0);
    for tar in tars {
        let mut tar = tar.clone();
        tar.extend_from_slice(&[0; 1024]);
        diff_ids.push(digest(&tar));
        let blob = compression.compress(&tar)?;
        total += blob.len();
        descriptors.push(add(blobs.clone(), compression.media_type(), blob));
    }
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["true"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = add(blobs, CONFIG_TYPE, config.to_string().into_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": descriptors,
    });
    let bytes = manifest.to_string().into_bytes();
    let digest = digest(&bytes);
    for tag in ["1", &digest] {
        let content = Content { media_type: MANIFEST_TYPE, digest: digest.clone(), bytes: bytes.clone() };
        routes.insert(format!("/v2/{name}/manifests/{tag}"), content);
    }
    if total == 0 {
        bail!("there are no files below {SOURCES:?}");
    }
    Ok(total)
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn report_text(
    other: &str,
    rounds: usize,
    results: &[(Image, [Vec<f64>; 2])],
    syncs: &[Vec<(String, u64)>],
    memory: [u64; 2],
) -> String {
    let mut text = format!(
        "cold pulls from a registry on loopback, kina beside {other}, {rounds} of each, turn about; s\n\n"
    );
    let head = ["MB", "kina p50", "max", "containerd", "max", "ratio p50"];
    text += &format!("{}\n", row("", &head));
    for (image, [kina, other]) in results {
        let cells = [
            format!("{}", image.bytes / 1_000_000),
            format!("{:.2}", percentile(kina, 50)),
            format!("{:.2}", percentile(kina, 100)),
            format!("{:.2}", percentile(other, 50)),
            format!("{:.2}", percentile(other, 100)),
            format!("{:.2}", percentile(kina, 50) / percentile(other, 50)),
        ];
        let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
        text += &format!("{}\n", row(&image.name.replace('-', ", layers: "), &cells));
    }
    text += "\nsyncs of one pull (strace)\n";
    for (name, syncs) in ["kina", "containerd"].iter().zip(syncs) {
        let counts: Vec<String> = syncs.iter().map(|(call, count)| format!("{call} {count}")).collect();
        text += &format!(
            "{name}: {}\n",
            if counts.is_empty() { "none seen".to_owned() } else { counts.join(", ") }
        );
    }
    text += &format!(
        "\nlargest Rss of the daemon; MiB\nkina {}, containerd {}\n",
        memory[0] >> 10,
        memory[1] >> 10
    );
    text
}

fn report_json(results: &[(Image, [Vec<f64>; 2])], syncs: &[Vec<(String, u64)>], memory: [u64; 2]) -> Value {
    let pulls: Vec<Value> = results
        .iter()
        .map(|(image, [kina, other])| {
            json!({
                "image": image.name, "layers": image.layers, "bytes": image.bytes,
                "kina_s": kina, "containerd_s": other,
            })
        })
        .collect();
    let counts = |side: &[(String, u64)]| -> Value {
        side.iter().map(|(call, count)| (call.clone(), json!(count))).collect()
    };
    json!({
        "pulls": pulls,
        "syncs": { "kina": counts(&syncs[0]), "containerd": counts(&syncs[1]) },
        "peak_rss_kib": { "kina": memory[0], "containerd": memory[1] },
    })
}
