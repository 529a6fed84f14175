//! Asks Apple's `container` and macOS. Nothing is changed.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::facts::{self, Container, Machine, Network, Service, Version};
use super::judge::Kernel;
use super::kernel;
use super::routes::{self, Route};
use crate::cli::program::{Said, ask, find};
use crate::config::Config;

/// How long a program may take: `container system status` itself waits ten seconds
/// for its service.
const PATIENCE: Duration = Duration::from_secs(20);

/// The largest image of a kernel, in bytes.
const KERNEL_LIMIT: u64 = 256 << 20;

/// `program` is what the daemon runs, and may have been `configured`.
pub(super) async fn container(program: &Path, configured: bool, search: &[PathBuf]) -> Container {
    if !program.is_file() {
        return match find("container", search) {
            _ if configured => Container::NotThere(program.to_owned()),
            Some(elsewhere) => Container::Elsewhere(elsewhere),
            None => Container::Missing,
        };
    }
    let strange = |error: String| Container::Strange(format!("{}: {error}", program.display()));
    match ask(program, &["system", "version", "--format", "json"], PATIENCE).await {
        Ok(said) if said.status.success() => match facts::versions(&said.stdout) {
            Some((version, service)) => Container::Found { program: program.to_owned(), version, service },
            None => strange(said.words().to_owned()),
        },
        // Old ones do not know the question.
        Ok(_) => match ask(program, &["--version"], PATIENCE).await {
            Ok(said) => match Version::find(&said.stdout) {
                Some(version) => Container::Found { program: program.to_owned(), version, service: None },
                None => strange(said.words().to_owned()),
            },
            Err(error) => strange(format!("{error:#}")),
        },
        Err(error) => strange(format!("{error:#}")),
    }
}

pub(super) async fn service(program: &Path) -> Service {
    match ask(program, &["system", "status", "--format", "json"], PATIENCE).await {
        Ok(said) => facts::service(&said.stdout).unwrap_or_else(|| Service::Unknown(said.words().to_owned())),
        Err(error) => Service::Unknown(format!("{error:#}")),
    }
}

/// The kernel that machines boot: `machine.apple.kernel`, or if that is empty the
/// one that `container` has been given.
pub(super) fn kernel(configured: &Path, root: &Path) -> Kernel {
    let link = match configured.as_os_str().is_empty() {
        true => root.join("kernels/default.kernel-arm64"),
        false => configured.to_owned(),
    };
    let Ok(path) = link.canonicalize() else { return Kernel::Missing(link) };
    let mut image = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(KERNEL_LIMIT).read_to_end(&mut image));
    match read {
        Ok(_) => Kernel::There { config: kernel::embedded(&image), path },
        Err(error) => Kernel::Unreadable(format!("{}: {error}", path.display())),
    }
}

pub(super) async fn networks(program: &Path) -> Result<Vec<Network>, String> {
    list(program, &["network", "list", "--format", "json"], facts::networks).await
}

pub(super) async fn machines(program: &Path) -> Result<Vec<Machine>, String> {
    list(program, &["list", "--format", "json"], facts::machines).await
}

async fn list<T>(
    program: &Path,
    arguments: &[&str],
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, String> {
    let said = ask(program, arguments, PATIENCE).await.map_err(|error| format!("{error:#}"))?;
    let failed = || format!("container {}: {}", arguments.join(" "), said.words());
    if !said.status.success() {
        return Err(failed());
    }
    read(&said.stdout).ok_or_else(failed)
}

pub(super) async fn routes(search: &[PathBuf]) -> Result<Vec<Route>, String> {
    let said = system(search, "netstat", &["-rn", "-f", "inet"]).await?;
    Ok(routes::routes(&said.stdout))
}

/// Bytes of memory that the Mac has.
pub(super) async fn memory(search: &[PathBuf]) -> Option<u64> {
    let said = system(search, "sysctl", &["-n", "hw.memsize"]).await.ok()?;
    said.stdout.trim().parse().ok()
}

async fn system(search: &[PathBuf], name: &str, arguments: &[&str]) -> Result<Said, String> {
    let program = find(name, search).ok_or_else(|| format!("there is no {name}"))?;
    let said = ask(&program, arguments, PATIENCE).await.map_err(|error| format!("{error:#}"))?;
    if said.status.success() { Ok(said) } else { Err(format!("{name}: {}", said.words())) }
}

/// The image that machines boot, and whether it is there.
pub(super) fn image(config: &Config) -> (PathBuf, bool) {
    let image = config.pod_image();
    let there = image.is_file();
    (image, there)
}

/// Whether kina is a service of launchd.
pub(super) fn agent(home: &Path) -> bool {
    fs::exists(crate::cli::service::agent_file(home)).unwrap_or(false)
}
