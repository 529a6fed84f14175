//! A layer as a registry sends it, to something that can be mounted, three ways in one run:
//!
//! * **kina**: tar.gz or tar.zst to an EROFS image, with the diff id on the way;
//! * **tar**: GNU tar with gzip or zstd to a directory, which is what an overlay of
//!   directories needs;
//! * **tar + mkfs.erofs**: that directory to an EROFS image, uncompressed like kina's.
//!
//! Each round does all of them in turn on the same data, whose input is in the page cache,
//! and times each twice over: until the program ends, and until what it wrote is on the disk
//! (`fsync` of the image; `syncfs` for the directory, which has no cheaper way). First one
//! layer, then several at once.
//!
//! `cargo bench -p kina-erofs`; needs GNU tar, gzip, zstd and erofs-utils, and root, so that
//! tar keeps owners. Figures of different runs do not compare; ratios of one run do.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench talks to its terminal")]

mod data;

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;

/// Compares kina with tar and mkfs.erofs.
#[derive(Debug, Parser)]
struct Arguments {
    /// Rounds; the median is shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Layers at once in the second half.
    #[arg(long, default_value_t = 4)]
    parallel: usize,
    /// What is packed: from /usr, in the order of names, until there is this much.
    #[arg(long, default_value_t = 300)]
    megabytes: u64,
    /// kina alone, again and again: for a profiler.
    #[arg(long)]
    profile: bool,
    /// Where to work; wants four times the data and a few gigabytes more.
    #[arg(long, default_value = "/tmp")]
    directory: PathBuf,
    /// Cargo says so to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One compressed layer.
struct Layer {
    name: &'static str,
    path: PathBuf,
    /// How GNU tar decompresses it.
    option: &'static str,
}

#[derive(Clone, Copy)]
enum Way {
    Kina,
    Tar,
    TarMkfs,
}

const WAYS: [(Way, &str); 3] =
    [(Way::Kina, "kina"), (Way::Tar, "tar -x"), (Way::TarMkfs, "tar -x, mkfs.erofs")];

/// Until the end, and until all is on the disk.
#[derive(Clone, Copy)]
struct Taken {
    written: Duration,
    synced: Duration,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.rounds == 0 || arguments.parallel == 0 {
        bail!("--rounds and --parallel must be at least 1");
    }
    let place = tempfile::Builder::new().prefix("kina-layers-").tempdir_in(&arguments.directory)?;
    let tar = place.path().join("layer.tar");
    let entries = data::pack(&tar, arguments.megabytes << 20)?;
    let bytes = fs::metadata(&tar)?.len();
    let layers = [
        Layer { name: "gzip", path: data::compress(&tar, "gz", &["gzip", "-6"])?, option: "--gzip" },
        Layer { name: "zstd", path: data::compress(&tar, "zst", &["zstd", "-3", "-q"])?, option: "--zstd" },
    ];
    fs::remove_file(&tar)?;
    rustix::fs::sync();
    if arguments.profile {
        for layer in &layers {
            for _ in 0..arguments.rounds {
                measure(Way::Kina, layer, place.path(), 1)?;
            }
        }
        return Ok(());
    }
    println!("{} MB of tar, {entries} entries; median of {} rounds", bytes / 1_000_000, arguments.rounds);
    for layer in &layers {
        let packed = fs::metadata(&layer.path)?.len() / 1_000_000;
        println!("\n{}: {packed} MB", layer.name);
        let decoding = decode_alone(layer)?;
        println!(
            "{:24} {:7.2} s {:6.0} MB/s",
            "decompression alone",
            seconds(decoding),
            rate(bytes, decoding)
        );
        for width in [1, arguments.parallel] {
            compare(layer, place.path(), width, bytes, arguments.rounds)?;
        }
    }
    Ok(())
}

/// All ways in turn, round by round.
fn compare(layer: &Layer, place: &Path, width: usize, bytes: u64, rounds: usize) -> Result<()> {
    let mut taken = WAYS.map(|_| Vec::new());
    let mut sizes = [0; WAYS.len()];
    for round in 0..rounds {
        for turn in 0..WAYS.len() {
            let index = (round + turn) % WAYS.len();
            let (one, size) = measure(WAYS[index].0, layer, place, width)?;
            taken[index].push(one);
            sizes[index] = size;
        }
    }
    println!("{width} at once:");
    let all = bytes * width as u64;
    for (index, (_, name)) in WAYS.iter().enumerate() {
        let written = median(taken[index].iter().map(|one| one.written));
        let synced = median(taken[index].iter().map(|one| one.synced));
        println!(
            "  {name:22} {:7.2} s {:6.0} MB/s   on disk {:7.2} s {:6.0} MB/s   {:5} MB each",
            seconds(written),
            rate(all, written),
            seconds(synced),
            rate(all, synced),
            sizes[index] / 1_000_000,
        );
    }
    Ok(())
}

/// `width` layers at once, each to a place of its own. Gives the size of one result, too.
fn measure(way: Way, layer: &Layer, place: &Path, width: usize) -> Result<(Taken, u64)> {
    let work = place.join("work");
    fs::create_dir(&work)?;
    let outputs: Vec<PathBuf> = (0..width).map(|number| work.join(number.to_string())).collect();
    // Nothing of others is to be written while this is measured.
    rustix::fs::sync();
    let start = Instant::now();
    let written = each(&outputs, |output| make(way, layer, output))?;
    let written = written.into_iter().max().unwrap_or(start).duration_since(start);
    match way {
        Way::Kina | Way::TarMkfs => {
            each(&outputs, |output| Ok(File::open(output.with_extension("erofs"))?.sync_all()?))?;
        }
        Way::Tar => rustix::fs::syncfs(File::open(&work)?)?,
    }
    let taken = Taken { written, synced: start.elapsed() };
    let size = match way {
        Way::Kina | Way::TarMkfs => fs::metadata(outputs[0].with_extension("erofs"))?.len(),
        Way::Tar => data::allocated(&outputs[0])?,
    };
    fs::remove_dir_all(&work)?;
    Ok((taken, size))
}

/// Runs `work` on every path at once; gives when each was done.
fn each(paths: &[PathBuf], work: impl Fn(&Path) -> Result<()> + Sync) -> Result<Vec<Instant>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            paths.iter().map(|path| scope.spawn(|| work(path).map(|()| Instant::now()))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
            .collect()
    })
}

fn make(way: Way, layer: &Layer, output: &Path) -> Result<()> {
    let image = output.with_extension("erofs");
    match way {
        Way::Kina => {
            let reader = BufReader::with_capacity(256 << 10, File::open(&layer.path)?);
            let mut image = File::create(&image)?;
            kina_erofs::write_packed_layer(reader, &mut image, &kina_erofs::Options::default())?;
        }
        Way::Tar | Way::TarMkfs => {
            fs::create_dir(output)?;
            let mut tar = Command::new("tar");
            tar.args([layer.option, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C"]).arg(output);
            run(tar.arg("-xf").arg(&layer.path))?;
        }
    }
    if matches!(way, Way::TarMkfs) {
        run(Command::new("mkfs.erofs").args(["--quiet", "-T0"]).arg(&image).arg(output))?;
    }
    Ok(())
}

/// How fast the layer could be read at best.
fn decode_alone(layer: &Layer) -> Result<Duration> {
    let start = Instant::now();
    let reader = BufReader::with_capacity(256 << 10, File::open(&layer.path)?);
    std::io::copy(&mut kina_erofs::Decoder::sniff(reader)?, &mut std::io::sink())?;
    Ok(start.elapsed())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn median(durations: impl Iterator<Item = Duration>) -> Duration {
    let mut durations: Vec<_> = durations.collect();
    durations.sort_unstable();
    durations[durations.len() / 2]
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

fn rate(bytes: u64, duration: Duration) -> f64 {
    bytes as f64 / 1e6 / duration.as_secs_f64()
}
