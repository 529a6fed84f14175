//! kina beside Debian's containerd and runc, in one run: what the calls of a
//! pod's life take, and what an idle pod costs in memory. With `--profile`,
//! kina alone: which effects the time of each call goes to. With `--pulls`: cold
//! pulls of a large image.
//!
//! Both are driven through their CRI sockets by the same client, turn about,
//! so that whatever else the machine does hits both. Figures of different runs
//! do not compare; ratios of one run do. Pods use the host's network, so that
//! no plugin is measured.
//!
//! Needs root, and the Debian packages busybox-static, containerd, runc and strace.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench talks to its terminal")]

mod calls;
mod daemons;
mod memory;
mod place;
mod profile;
mod pull;
mod registry;
mod report;

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use calls::Timings;
use daemons::Daemon;
use place::Place;
use report::Report;

/// Says that this process is in a network namespace of its own.
const INSIDE: &str = "KINA_BENCH_NETWORK";

/// Compares kina with containerd.
#[derive(Debug, Parser)]
struct Arguments {
    /// Lives of a pod that are measured, one after the other.
    #[arg(long, default_value_t = 50)]
    iterations: usize,
    /// Pods that are there at once when memory is measured; 0 leaves it out.
    #[arg(long, default_value_t = 50)]
    pods: usize,
    /// Also measures this many lives at a time, as many as `--iterations` in all.
    #[arg(long, default_value_t = 0)]
    parallel: usize,
    /// Prints the figures as JSON.
    #[arg(long)]
    json: bool,
    /// Measures kina alone, effect by effect.
    #[arg(long)]
    profile: bool,
    /// Measures cold pulls instead, this many of each image.
    #[arg(long, value_name = "ROUNDS", conflicts_with = "profile")]
    pulls: Option<usize>,
    /// Connects the pods by network plugins (Debian's containernetworking-plugins).
    #[arg(long, conflicts_with = "pulls")]
    network: bool,
    /// The daemon.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_kina"))]
    kina: PathBuf,
    /// The static guest, as `cargo xtask guest` builds it.
    #[arg(long, env = "KINA_GUEST")]
    guest: PathBuf,
    /// Cargo says so to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lifecycle: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("only root can run pods");
    }
    if arguments.iterations == 0 {
        bail!("--iterations must be at least 1");
    }
    if arguments.network && std::env::var_os(INSIDE).is_none() {
        // What plugins make on the node goes with this namespace.
        let error = Command::new("unshare")
            .args(["--net", "/bin/sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
            .arg(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "1")
            .exec();
        return Err(error).context("execute unshare");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // Cleans up when it goes, whatever happened; after the runtime's tasks.
    let place = Place::new(arguments.network)?;
    let result = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = work(arguments, &place) => result,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("told to stop"),
        }
    });
    runtime.shutdown_background();
    if result.is_err() {
        place.show_logs();
    }
    result
}

async fn work(arguments: &Arguments, place: &Place) -> Result<()> {
    if arguments.profile {
        let kina = Daemon::kina(place, &arguments.kina, &arguments.guest, profile::LOG_LEVEL).await?;
        return profile::run(&kina, place, arguments.iterations).await;
    }
    if let Some(rounds) = arguments.pulls {
        return pull::run(place, &arguments.kina, &arguments.guest, rounds.max(1), arguments.json).await;
    }
    let load_before = load_average();
    let kina = Daemon::kina(place, &arguments.kina, &arguments.guest, "warn").await?;
    let containerd = Daemon::containerd(place).await?;
    let mut report = Report::new(arguments.iterations, containerd.version().await?, arguments.network);

    report.empty = Some([memory::of_daemon(&kina)?, memory::of_daemon(&containerd)?]);
    if arguments.pods > 0 {
        report.memory = Some([
            memory::measure(&kina, arguments.pods).await?,
            memory::measure(&containerd, arguments.pods).await?,
        ]);
    }

    // What is made once, and what the kernel caches.
    for daemon in [&kina, &containerd] {
        calls::life(daemon, "warm-up").await?;
    }
    for number in 0..arguments.iterations {
        let name = format!("sequential-{number}");
        if number % 2 == 0 {
            report.sequential[0].add(calls::life(&kina, &name).await?);
            report.sequential[1].add(calls::life(&containerd, &name).await?);
        } else {
            report.sequential[1].add(calls::life(&containerd, &name).await?);
            report.sequential[0].add(calls::life(&kina, &name).await?);
        }
    }
    if arguments.parallel > 1 {
        report.parallel = Some(report::Parallel {
            width: arguments.parallel,
            results: [
                parallel(&kina, arguments.iterations, arguments.parallel).await?,
                parallel(&containerd, arguments.iterations, arguments.parallel).await?,
            ],
        });
    }
    report.load = [load_before, load_average()];
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report.json())?);
    } else {
        print!("{}", report.text());
    }
    Ok(())
}

/// `count` lives, `width` at a time; also says how many ended per second.
async fn parallel(daemon: &Daemon, count: usize, width: usize) -> Result<(Timings, f64)> {
    let daemon = Arc::new(daemon.clone());
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    let mut timings = Timings::default();
    for number in 0..count {
        if tasks.len() >= width {
            timings.add(tasks.join_next().await.context("a task")???);
        }
        let daemon = Arc::clone(&daemon);
        tasks.spawn(async move { calls::life(&daemon, &format!("parallel-{number}")).await });
    }
    while let Some(life) = tasks.join_next().await {
        timings.add(life??);
    }
    Ok((timings, count as f64 / begun.elapsed().as_secs_f64()))
}

/// The machine's load averages, as the kernel prints them.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
