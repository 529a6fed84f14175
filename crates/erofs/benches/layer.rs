//! One tar stream to a mountable layer, three ways in one run:
//!
//! * this crate, tar to image;
//! * GNU tar, tar to a directory (what an overlay of directories needs);
//! * GNU tar and then `mkfs.erofs` over that directory.
//!
//! `cargo bench -p kina-erofs -- [TREE]`; TREE is packed first, `/usr/share` unless given.
//! The best of several rounds is shown, with everything in the page cache.
#![allow(clippy::print_stdout, reason = "figures are its output")]

use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kina_erofs::{Options, write_layer};

const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let tree = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let tree = tree.unwrap_or_else(|| "/usr/share".to_owned());
    let directory = tempfile::tempdir()?;
    let tar = directory.path().join("layer.tar");
    let pack = ["--format=posix", "--xattrs", "-C", tree.as_str(), "-cf"];
    run(Command::new("tar").args(pack).arg(&tar).arg("."))?;
    let bytes = fs::metadata(&tar)?.len();

    let image = directory.path().join("ours.erofs");
    let mut summary = None;
    let ours = best(|| {
        let mut file = File::create(&image)?;
        summary = Some(write_layer(File::open(&tar)?, &mut file, &Options::default())?);
        Ok(())
    })?;
    let summary = summary.ok_or("no round was run")?;

    let unpacked = directory.path().join("unpacked");
    let untar = best(|| {
        clear(&unpacked)?;
        run(Command::new("tar").arg("-C").arg(&unpacked).arg("-xf").arg(&tar))
    })?;
    let theirs = directory.path().join("theirs.erofs");
    let make = best(|| run(Command::new("mkfs.erofs").arg("--quiet").arg(&theirs).arg(&unpacked)))?;

    println!("{tree}: {} MB of tar, {} entries, {} inodes", bytes >> 20, summary.entries, summary.inodes);
    let line = |name: &str, time: Duration, size: u64| {
        let speed = bytes as f64 / 1e6 / time.as_secs_f64();
        println!("{name:24} {:7.3} s {speed:7.0} MB/s {:6} MB", time.as_secs_f64(), size >> 20);
    };
    line("kina-erofs", ours, summary.image_bytes);
    line("tar -x", untar, summary.unpacked_bytes);
    line("tar -x, mkfs.erofs", untar + make, fs::metadata(&theirs)?.len());
    Ok(())
}

fn best(mut round: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        round()?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}

/// Emptying is no part of unpacking, but little beside it; the same for every round.
fn clear(path: &Path) -> Result<(), Box<dyn Error>> {
    if path.exists() {
        fs::remove_dir_all(path)?;
    }
    Ok(fs::create_dir(path)?)
}

fn run(command: &mut Command) -> Result<(), Box<dyn Error>> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}
