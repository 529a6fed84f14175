//! Packages from the Debian archive that this machine is set up for.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{output, run};

/// The script that Debian's packages ask before they start a service.
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// Whether this machine takes Debian packages at all.
pub(crate) fn present() -> bool {
    Path::new("/usr/bin/dpkg-query").exists() && Path::new("/usr/bin/apt-get").exists()
}

/// The names among `packages` that are not installed. Asks no network.
pub(crate) fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    // dpkg-query fails when it knows none of one name, and still lists the others.
    let listing = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status} ${Package}\n"])
        .args(packages)
        .output()
        .context("start `dpkg-query`")?;
    Ok(not_installed(packages, &String::from_utf8_lossy(&listing.stdout)))
}

fn not_installed<'a>(packages: &[&'a str], listing: &str) -> Vec<&'a str> {
    let installed: BTreeSet<&str> =
        listing.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    packages.iter().copied().filter(|name| !installed.contains(name)).collect()
}

/// Installs packages, without what they merely recommend and without starting
/// the services that come with them.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if !is_root()? {
        bail!(
            "these packages are missing and only root can install them: apt-get install {}",
            packages.join(" ")
        );
    }
    update()?;
    let _policy = ServicePolicy::deny()?;
    run(Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "--yes", "--quiet=2", "--no-install-recommends"])
        .args(["-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0"])
        .args(packages))
}

/// Brings the lists of packages up to date.
pub(crate) fn update() -> Result<()> {
    run(Command::new("apt-get").args(["update", "--quiet=2"]))
}

fn is_root() -> Result<bool> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}

/// Downloads one package into `folder` and returns the file. `options` are
/// apt's own, for a private configuration.
fn download(package: &str, folder: &Path, options: &[String]) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let name = package.split('=').next().unwrap_or(package);
    remove_archives(folder, name)?;
    run(Command::new("apt-get")
        .current_dir(folder)
        .args(options)
        // The folder may be closed to the user that apt drops to.
        .args(["-o", "APT::Sandbox::User=root", "--quiet=2", "download", package]))?;
    archives(folder, name)?.pop().with_context(|| format!("`apt-get download {package}` left no file"))
}

/// Downloads one package of the machine's own archives into `folder` and returns
/// the file.
pub(crate) fn download_own(package: &str, folder: &Path) -> Result<PathBuf> {
    download(package, folder, &[])
}

/// Unpacks a package's files below `folder`, without installing anything.
pub(crate) fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(folder))
}

fn archives(folder: &Path, package: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&format!("{package}_")) && name.ends_with(".deb") {
            found.push(path);
        }
    }
    Ok(found)
}

fn remove_archives(folder: &Path, package: &str) -> Result<()> {
    for old in archives(folder, package)? {
        fs::remove_file(&old).with_context(|| format!("remove {}", old.display()))?;
    }
    Ok(())
}

/// Where this machine gets Debian's main archive from, as apt says it.
fn archive_address() -> Result<String> {
    let targets = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    main_archive(&targets).context("apt knows no source of Debian's main archive; is its list up to date?")
}

fn main_archive(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|")).map(str::to_owned)
}

/// Debian's main archive as another machine sees it: one suite, perhaps of another
/// architecture, through a configuration of apt that leaves the machine's own alone.
pub(crate) struct Archive {
    options: Vec<String>,
}

impl Archive {
    /// Fetches the suite's lists into `folder`.
    pub(crate) fn open(folder: &Path, suite: &str, architecture: Option<&str>) -> Result<Self> {
        let sources = folder.join("sources");
        for needed in [&sources, &folder.join("lists/partial"), &folder.join("cache/archives/partial")] {
            fs::create_dir_all(needed).with_context(|| format!("create {}", needed.display()))?;
        }
        let address = match archive_address() {
            Ok(address) => address,
            // A fresh machine has no lists, and apt then does not know whose archives these are.
            Err(_) => {
                update()?;
                archive_address()?
            }
        };
        let list = sources.join("source.sources");
        let text = format!(
            "Types: deb\nURIs: {address}\nSuites: {suite}\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
        fs::write(&list, text).with_context(|| format!("write {}", list.display()))?;
        let archive = Self { options: private_options(folder, architecture) };
        run(Command::new("apt-get").args(&archive.options).args(["update", "--quiet=2"]))?;
        Ok(archive)
    }

    /// What apt-cache answers.
    pub(crate) fn query(&self, arguments: &[&str]) -> Result<String> {
        output(Command::new("apt-cache").args(&self.options).args(arguments))
    }

    /// Downloads one package into `folder` and returns the file.
    pub(crate) fn download(&self, package: &str, folder: &Path) -> Result<PathBuf> {
        download(package, folder, &self.options)
    }
}

/// Options that keep every list, cache and hook of apt below `folder`. Another
/// architecture's packages have nothing to do with those that are installed.
fn private_options(folder: &Path, architecture: Option<&str>) -> Vec<String> {
    let folder = folder.display();
    let mut options = vec![
        "Dir::Etc::SourceList=/dev/null".to_owned(),
        format!("Dir::Etc::SourceParts={folder}/sources"),
        format!("Dir::State::Lists={folder}/lists"),
        format!("Dir::Cache={folder}/cache"),
        "APT::Sandbox::User=root".to_owned(),
        "APT::Update::Post-Invoke::=".to_owned(),
        "APT::Update::Post-Invoke-Success::=".to_owned(),
    ];
    if let Some(architecture) = architecture {
        options.extend([
            format!("APT::Architecture={architecture}"),
            format!("APT::Architectures={architecture}"),
            "Dir::State::status=/dev/null".to_owned(),
        ]);
    }
    options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect()
}

/// The code name of this machine's release: `bookworm`.
pub(crate) fn code_name() -> Result<String> {
    const RELEASE: &str = "/etc/os-release";
    let text = fs::read_to_string(RELEASE).with_context(|| format!("read {RELEASE}"))?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.with_context(|| format!("{RELEASE} names no release"))?.trim_matches('"').to_owned())
}

/// A policy that no service is started, in place as long as this lives.
struct ServicePolicy {
    ours: bool,
}

impl ServicePolicy {
    /// Leaves a policy of the machine's own alone.
    fn deny() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        if Path::new(SERVICE_POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(SERVICE_POLICY, "#!/bin/sh\n# Put here by cargo xtask while it installs.\nexit 101\n")
            .with_context(|| format!("write {SERVICE_POLICY}"))?;
        let policy = Self { ours: true };
        fs::set_permissions(SERVICE_POLICY, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {SERVICE_POLICY} executable"))?;
        Ok(policy)
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(SERVICE_POLICY)
        {
            eprintln!("xtask: remove {SERVICE_POLICY}: {error}");
        }
    }
}

/// Keeps services that came with packages from running, now and from the next
/// boot on.
pub(crate) fn disable_services(services: &[&str]) -> Result<()> {
    if services.is_empty() || !Path::new("/usr/bin/systemctl").exists() {
        return Ok(());
    }
    let mut command = Command::new("systemctl");
    command.args(["disable", "--quiet"]);
    // In a container there is systemctl, and no systemd to stop anything.
    if Path::new("/run/systemd/system").exists() {
        command.arg("--now");
    }
    run(command.args(services))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count_as_there() {
        let listing = "installed runc\nnot-installed kmod\nconfig-files cpio\n";
        assert_eq!(
            not_installed(&["runc", "kmod", "cpio", "erofs-utils"], listing),
            ["kmod", "cpio", "erofs-utils"]
        );
    }

    #[test]
    fn the_security_archive_is_not_the_main_one() {
        let targets = "Debian|Debian-Security|http://one/security/\n\
                       Debian|Debian|http://one/debian/\n";
        assert_eq!(main_archive(targets).as_deref(), Some("http://one/debian/"));
        assert_eq!(main_archive("Other|Other|http://two/\n"), None);
    }
}
