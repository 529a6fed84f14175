//! `cargo xtask guest`: the static `kina-guest` that every machine runs.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::setup;
use crate::shell::{Workspace, run as run_command};

/// The Rust target of the guest: Linux of this machine's architecture. The C
/// library is linked statically, so any Linux can run it.
#[cfg(target_arch = "x86_64")]
const TARGET: &str = "x86_64-unknown-linux-gnu";
#[cfg(target_arch = "aarch64")]
const TARGET: &str = "aarch64-unknown-linux-gnu";

/// The command: build, and print the path on standard output.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    if let Some(argument) = arguments.first() {
        bail!("`guest` takes no argument, got `{argument}`");
    }
    setup::install(workspace, &[])?;
    println!("{}", build(workspace)?.display());
    Ok(())
}

/// Builds the guest where its sources changed, and returns its path.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target("guest");
    run_command(
        workspace
            .cargo()
            .env("CARGO_TARGET_DIR", &folder)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .args(["build", "--quiet", "--package", "kina-guest", "--bin", "kina-guest"])
            .args(["--profile", "guest", "--target", TARGET]),
    )?;
    Ok(path(workspace))
}

/// Where the guest is once built.
pub(crate) fn path(workspace: &Workspace) -> PathBuf {
    workspace.target("guest").join(TARGET).join("guest/kina-guest")
}
