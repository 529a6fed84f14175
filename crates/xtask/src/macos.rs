//! `cargo xtask macos`: type-checks and links kina for macOS on a Linux machine.
//!
//! rustup's standard library for macOS is not on every machine, so the standard
//! library is compiled from source too (`-Zbuild-std`). Debian's backports carry
//! that source for recent compilers; a copy of the toolchain, made of hard links,
//! takes it in. zig serves as C compiler and linker. It knows macOS' libSystem and
//! none of Apple's frameworks: a dependency that asks for one fails here.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{Workspace, output, run as run_command, run_watching};
use crate::steps::Outcome;
use crate::{debian, setup, tools};

const TARGET: &str = "aarch64-apple-darwin";

/// The suite that carries the sources of recent compilers.
const SUITE: &str = "trixie-backports";

/// The first eight bytes of a 64-bit Mach-O file for arm64.
const MACH_O_ARM64: [u8; 8] = [0xcf, 0xfa, 0xed, 0xfe, 0x0c, 0x00, 0x00, 0x01];

/// The command.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    if let Some(argument) = arguments.first() {
        bail!("`macos` takes no argument, got `{argument}`");
    }
    setup::install(workspace, &[&setup::MACOS])?;
    match link(workspace)? {
        Outcome::Done => Ok(()),
        Outcome::Skipped(reason) => bail!("{reason}"),
    }
}

/// Builds `kina`, and with it every crate that a Mac needs.
pub(crate) fn link(workspace: &Workspace) -> Result<Outcome> {
    if !debian::present() {
        return Ok(Outcome::Skipped(
            "the standard library's source comes from Debian; on a Mac, run `cargo build`".into(),
        ));
    }
    let toolchain = match toolchain(workspace)? {
        Some(toolchain) => toolchain,
        None => {
            return Ok(Outcome::Skipped(format!(
                "{SUITE} has no source of this compiler's standard library: \
                 nothing was checked for macOS"
            )));
        }
    };
    let folder = workspace.target("macos");
    let mut frameworks = Vec::new();
    let mut command = tools::wheel_command(workspace, &tools::ZIGBUILD)?;
    let built = run_watching(
        command
            .env("PATH", search_path(&[toolchain.join("bin"), tools::python_bin(workspace)])?)
            .env("CARGO", toolchain.join("bin/cargo"))
            .env("RUSTC", toolchain.join("bin/rustc"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTFLAGS")
            .env_remove("LD_LIBRARY_PATH")
            .env("XDG_CACHE_HOME", folder.join("cache"))
            .env("CARGO_TARGET_DIR", folder.join("build"))
            .args(["zigbuild", "--quiet", "-Zbuild-std=std,panic_abort", "--target", TARGET])
            .args(["--package", "kina", "--bin", "kina"]),
        |line| frameworks.extend(framework(line)),
    );
    frameworks.sort();
    frameworks.dedup();
    if !frameworks.is_empty() {
        bail!(
            "a dependency links Apple's {}, which no cross linker has; \
             `cargo tree --target {TARGET} --invert` shows which",
            frameworks.join(", ")
        );
    }
    built?;
    let program = folder.join("build").join(TARGET).join("debug/kina");
    let size = check_mach_o(&program)?;
    eprintln!("{}: Mach-O for arm64, {size} bytes", program.display());
    Ok(Outcome::Done)
}

/// The framework that a linker's line says it cannot find.
fn framework(line: &str) -> Option<String> {
    let rest = line.split_once("unable to find framework '")?.1;
    Some(rest.split('\'').next()?.to_owned())
}

fn search_path(first: &[PathBuf]) -> Result<std::ffi::OsString> {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let all = first.iter().cloned().chain(std::env::split_paths(&inherited));
    std::env::join_paths(all).context("PATH")
}

fn check_mach_o(program: &Path) -> Result<u64> {
    let context = || format!("read {}", program.display());
    let mut file = fs::File::open(program).with_context(context)?;
    let mut head = [0; MACH_O_ARM64.len()];
    file.read_exact(&mut head).with_context(context)?;
    if head != MACH_O_ARM64 {
        bail!("{} is not a Mach-O file for arm64", program.display());
    }
    Ok(file.metadata().with_context(context)?.len())
}

/// A toolchain with the source of its standard library, made once per compiler
/// version. `None` when the archive does not have that version.
fn toolchain(workspace: &Workspace) -> Result<Option<PathBuf>> {
    let version = output(Command::new("rustc").arg("--version"))?;
    let version = release(&version)?;
    let folder = workspace.target("macos").join(format!("rust-{version}"));
    let toolchain = folder.join("toolchain");
    // Linked in last: where it is, all is there.
    let library = toolchain.join("lib/rustlib/src/rust");
    if library.join("library/std/Cargo.toml").exists() {
        return Ok(Some(toolchain));
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;

    let Some(archive) = download_source(&folder, &version)? else {
        return Ok(None);
    };
    let unpacked = folder.join("source");
    debian::unpack(&archive, &unpacked)?;
    fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
    copy_toolchain(&toolchain)?;
    let parent = library.parent().context("the library has a parent folder")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    let source = unpacked.join("usr/src").join(format!("rustc-{version}"));
    if library.exists() {
        return Ok(Some(toolchain));
    }
    std::os::unix::fs::symlink(&source, &library).with_context(|| format!("link {}", library.display()))?;
    Ok(Some(toolchain))
}

/// The number in `rustc 1.95.0 (59807616e 2026-04-14)`.
fn release(version: &str) -> Result<String> {
    version
        .split_whitespace()
        .nth(1)
        .map(str::to_owned)
        .with_context(|| format!("rustc names no version: `{}`", version.trim()))
}

/// Hard links cost nothing; across file systems it has to be a copy.
fn copy_toolchain(to: &Path) -> Result<()> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let sysroot = sysroot.trim();
    let linked = Command::new("cp").args(["-al", sysroot]).arg(to).output().context("start `cp`")?;
    if linked.status.success() {
        return Ok(());
    }
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("remove {}", to.display()))?;
    }
    run_command(Command::new("cp").args(["-a", sysroot]).arg(to))
}

/// Downloads `rust-src` of exactly this compiler, through a configuration of apt
/// that leaves the machine's own alone.
fn download_source(folder: &Path, version: &str) -> Result<Option<PathBuf>> {
    let apt = folder.join("apt");
    let sources = apt.join("sources");
    for needed in [&sources, &apt.join("lists/partial"), &apt.join("cache/archives/partial")] {
        fs::create_dir_all(needed).with_context(|| format!("create {}", needed.display()))?;
    }
    let address = match debian::archive_address() {
        Ok(address) => address,
        // A fresh machine has no lists, and apt then does not know whose archives these are.
        Err(_) => {
            debian::update()?;
            debian::archive_address()?
        }
    };
    let list = sources.join("source.sources");
    let text = format!(
        "Types: deb\nURIs: {address}\nSuites: {SUITE}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    fs::write(&list, text).with_context(|| format!("write {}", list.display()))?;

    let options = private_options(&apt);
    run_command(Command::new("apt-get").args(&options).args(["update", "--quiet=2"]))?;
    let listing = output(Command::new("apt-cache").args(&options).args(["madison", "rust-src"]))?;
    match matching(&listing, version) {
        Some(package_version) => {
            debian::download(&format!("rust-src={package_version}"), folder, &options).map(Some)
        }
        None => Ok(None),
    }
}

/// Options that keep every list, cache and hook of apt below `folder`.
fn private_options(folder: &Path) -> Vec<String> {
    let folder = folder.display();
    [
        "Dir::Etc::SourceList=/dev/null".to_owned(),
        format!("Dir::Etc::SourceParts={folder}/sources"),
        format!("Dir::State::Lists={folder}/lists"),
        format!("Dir::Cache={folder}/cache"),
        "APT::Sandbox::User=root".to_owned(),
        "APT::Update::Post-Invoke::=".to_owned(),
        "APT::Update::Post-Invoke-Success::=".to_owned(),
    ]
    .into_iter()
    .flat_map(|option| ["-o".to_owned(), option])
    .collect()
}

/// The Debian version of a package that packages exactly this release.
fn matching(madison: &str, release: &str) -> Option<String> {
    madison
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
        .find(|version| {
            version.strip_prefix(release).is_some_and(|rest| rest.starts_with('+') || rest.starts_with('-'))
        })
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_release_will_do() {
        let madison = "rust-src | 1.96.1+dfsg1-2~bpo13+1 | archive\n\
                       rust-src | 1.95.0+dfsg1-2~bpo13+1 | archive\n";
        assert_eq!(matching(madison, "1.95.0").as_deref(), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(matching(madison, "1.95"), None);
        assert_eq!(matching(madison, "1.94.1"), None);
    }

    #[test]
    fn the_release_of_a_compiler() {
        assert_eq!(release("rustc 1.95.0 (59807616e 2026-04-14)\n").unwrap(), "1.95.0");
        assert!(release("rustc").is_err());
    }

    #[test]
    fn a_missing_framework_is_named() {
        let line = "error: unable to find framework 'Security'. searched paths: none";
        assert_eq!(framework(line).as_deref(), Some("Security"));
        assert_eq!(framework("error: other"), None);
    }
}
