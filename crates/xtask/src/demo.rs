//! `cargo xtask demo`: from a fresh machine to `kina demo`.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{Workspace, run as run_command};
use crate::{guest, setup};

/// The command. Its arguments are those of `kina demo`.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    setup::install(workspace, &[&setup::DEMO])?;
    let guest = guest::build(workspace)?;
    run_command(workspace.cargo().args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "kina",
        "--bin",
        "kina",
    ]))?;
    // Its standard input stays the terminal's.
    let status = Command::new(workspace.target("release/kina"))
        .arg("demo")
        .arg("--guest")
        .arg(&guest)
        .args(arguments)
        .env("KINA_GUEST", &guest)
        .status()
        .context("start `kina demo`")?;
    if !status.success() {
        bail!("`kina demo` failed: {status}");
    }
    Ok(())
}
