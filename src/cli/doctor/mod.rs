//! `kina doctor`: what this machine can and cannot do, and how to mend it.

mod judge;
mod mac;
mod probe;

use std::path::{Path, PathBuf};

use super::program::search_path;
use super::text::paragraph;
use super::{print_line, socket};
use crate::config::{Config, Locations, home};
use judge::{Check, Grade, serves};

/// Columns before a finding.
const INDENT: usize = 30;

/// Flags of `kina doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration of the daemon in question [default: /etc/kina/config.toml, on a Mac
    /// ~/.kina/config.toml, if it exists].
    #[arg(long)]
    config: Option<PathBuf>,
    /// A JSON array, for programs.
    #[arg(long, conflicts_with = "first_run")]
    json: bool,
    /// Print the first run on a Mac step by step, with what each should print.
    #[arg(long)]
    first_run: bool,
    /// Do these steps, up to the first that prints something else.
    #[arg(long, requires = "first_run")]
    run: bool,
}

/// Something keeps `kina serve` from working.
#[derive(Debug, thiserror::Error)]
#[error("`kina serve` will not work here; see the problems above")]
struct Unfit;

/// Examines the machine.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    socket::block_on(async {
        if arguments.first_run {
            return first_run(arguments).await;
        }
        let checks = examine(std::env::consts::OS, arguments.config.as_deref()).await;
        if arguments.json {
            print_line(&serde_json::to_string_pretty(&checks)?)?;
        } else {
            print_line(&report(&checks))?;
        }
        if serves(&checks) { Ok(()) } else { Err(Unfit.into()) }
    })
}

/// The first run on a Mac, of this kina.
async fn first_run(arguments: &Arguments) -> anyhow::Result<()> {
    let socket = Config::load(arguments.config.as_deref())?.socket_path();
    if !arguments.run {
        print_line(&mac::first_run::list(&socket))?;
        return Ok(());
    }
    let exe = std::env::current_exe()?;
    let beside: Vec<PathBuf> = exe.parent().map(Path::to_owned).into_iter().collect();
    mac::first_run::run(&beside, &search_path(), &socket).await
}

/// `system` is an operating system's name in [`std::env::consts::OS`].
async fn examine(system: &str, file: Option<&Path>) -> Vec<Check> {
    let loaded = Config::load(file).and_then(|config| config.check().map(|()| config));
    let named = file.map_or_else(|| Locations::here().config, Path::to_owned);
    let shown = if named.exists() { named.display().to_string() } else { "the defaults".to_owned() };
    let (config, error) = match loaded {
        Ok(config) => (config, None),
        Err(error) => (Config::default(), Some(crate::error::chain(&error))),
    };
    let release = probe::release();
    let mut checks = vec![judge::configuration(error.as_deref(), &shown)];
    match system {
        "linux" => checks.extend(linux(&config, &release)),
        _ => {
            checks.push(judge::darwin(&release, std::env::consts::ARCH));
            checks.extend(mac::examine(&config, &search_path(), &home()).await);
        }
    }
    let root = config.root.display().to_string();
    let socket = config.socket_path();
    checks.extend([
        judge::registries(&probe::registries(&config)),
        judge::disk(probe::disk(&config.root), &root),
        judge::open_files(probe::open_files()),
        judge::daemon(&probe::daemon(&socket).await, &socket.display().to_string()),
    ]);
    checks
}

/// What only Linux has.
fn linux(config: &Config, release: &str) -> Vec<Check> {
    let root = config.root.display().to_string();
    let networks = &config.network.config_directory;
    vec![
        judge::kernel(release),
        judge::root(rustix::process::geteuid().as_raw()),
        judge::capabilities(probe::capabilities()),
        judge::namespaces(&probe::namespaces()),
        judge::user_namespaces(probe::user_namespaces()),
        judge::seccomp(probe::seccomp().as_deref()),
        judge::cgroups(&probe::cgroups()),
        judge::layers(probe::layers(release), release),
        judge::overlay(probe::overlay(release)),
        judge::upper(&probe::file_system_of(&config.root), &root),
        judge::machines(probe::machine_programs(config).as_deref()),
        judge::kvm(probe::device("/dev/kvm")),
        judge::vsock(probe::device("/dev/vhost-vsock"), config.machine.qemu.streams),
        judge::tun(probe::device("/dev/net/tun")),
        judge::cni(&probe::cni(networks), &networks.display().to_string()),
        // A Mac's machines have theirs in their image.
        judge::guest(probe::guest(config)),
    ]
}

/// The checks for people, and a word at the end.
fn report(checks: &[Check]) -> String {
    let mut lines: Vec<String> = checks.iter().map(line).collect();
    let count = |grade| checks.iter().filter(|check| check.grade == grade).count();
    let (problems, warnings) = (count(Grade::Problem), count(Grade::Warning));
    lines.push(String::new());
    lines.push(match (problems, warnings) {
        (0, 0) => "Everything is as it should be.".to_owned(),
        (0, warnings) => format!("`kina serve` works here. Warnings: {warnings}."),
        (problems, warnings) => format!("Problems: {problems}. Warnings: {warnings}."),
    });
    lines.join("\n")
}

fn line(check: &Check) -> String {
    let grade = match check.grade {
        Grade::Ok => "ok",
        Grade::Warning => "warning",
        Grade::Problem => "problem",
    };
    let mut text = format!("{grade:8} {:20} ", check.name);
    // The finding's first line stands beside the name.
    text.push_str(paragraph(&check.finding, INDENT).trim_start());
    if !check.remedy.is_empty() {
        text.push('\n');
        text.push_str(&paragraph(&format!("-> {}", check.remedy), INDENT));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(grade: Grade, remedy: &str) -> Check {
        Check { name: "thing", grade, finding: "found ".repeat(20), remedy: remedy.to_owned() }
    }

    #[test]
    fn a_report_fits_and_sums_up() {
        let text = report(&[check(Grade::Ok, ""), check(Grade::Warning, "mend it")]);
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(text.contains("-> mend it"));
        assert!(text.ends_with("`kina serve` works here. Warnings: 1."));
        assert!(report(&[check(Grade::Problem, "x")]).ends_with("Problems: 1. Warnings: 0."));
        assert!(report(&[]).ends_with("as it should be."));
    }

    #[tokio::test]
    async fn a_bad_configuration_is_a_problem_and_the_rest_is_looked_at() {
        let checks = examine("linux", Some(Path::new("/nowhere/kina.toml"))).await;
        assert_eq!(checks[0].grade, Grade::Problem);
        assert!(checks.len() > 4);
    }

    #[tokio::test]
    async fn what_is_looked_at_is_what_the_system_has() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kina.toml");
        let networks = directory.path().join("net.d");
        std::fs::write(&file, format!("[network]\nconfig_directory = {networks:?}\n")).unwrap();
        for (system, there, not) in
            [("linux", "guest", "machines' image"), ("macos", "machines' image", "guest")]
        {
            let checks = examine(system, Some(&file)).await;
            let named = |name: &str| checks.iter().find(|check| check.name == name);
            assert!(named(there).is_some() && named(not).is_none(), "{system}: {checks:?}");
            if let Some(check) = named("CNI") {
                assert!(check.finding.contains(&networks.display().to_string()), "{check:?}");
            }
        }
    }
}
