//! `cargo xtask macos`: type-checks and links kina for macOS on a Linux machine.
//!
//! The standard library is compiled from source too (see `rust_source`). zig serves
//! as C compiler and linker. It knows macOS' libSystem and none of Apple's
//! frameworks: a dependency that asks for one fails here.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::shell::{Workspace, run_watching};
use crate::steps::Outcome;
use crate::{debian, mach_o, rust_source, setup, tools};

pub(crate) const TARGET: &str = "aarch64-apple-darwin";

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

/// Builds `kina`, and with it every crate that a Mac needs, quickly.
pub(crate) fn link(workspace: &Workspace) -> Result<Outcome> {
    if !debian::present() {
        return Ok(Outcome::Skipped(
            "the standard library's source comes from Debian; on a Mac, run `cargo build`".into(),
        ));
    }
    match build(workspace, "dev", "debug")? {
        Some(_) => Ok(Outcome::Done),
        None => Ok(Outcome::Skipped(format!("{}: nothing was checked for macOS", rust_source::MISSING))),
    }
}

/// Builds `kina` with a profile, whose folder that is, and returns the program.
/// `None` when there is no standard library for it.
pub(crate) fn build(workspace: &Workspace, profile: &str, profile_folder: &str) -> Result<Option<PathBuf>> {
    let Some(toolchain) = rust_source::toolchain(workspace)? else { return Ok(None) };
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
            .args(["--package", "kina", "--bin", "kina", "--profile", profile]),
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
    let program = folder.join("build").join(TARGET).join(profile_folder).join("kina");
    let content = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    mach_o::check(&content).with_context(|| program.display().to_string())?;
    eprintln!("{}: Mach-O for arm64, signed, {} bytes", program.display(), content.len());
    Ok(Some(program))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_framework_is_named() {
        let line = "error: unable to find framework 'Security'. searched paths: none";
        assert_eq!(framework(line).as_deref(), Some("Security"));
        assert_eq!(framework("error: other"), None);
    }
}
