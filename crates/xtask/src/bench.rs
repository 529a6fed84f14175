//! `cargo xtask bench`: kina beside Debian's containerd and runc.

use anyhow::Result;

use crate::shell::{Workspace, run as run_command};
use crate::{guest, setup};

/// The command. Its arguments are those of `benches/lifecycle`.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    setup::install(workspace, &[&setup::BENCH])?;
    let guest = guest::build(workspace)?;
    // Builds the daemon, too, as it is released.
    run_command(
        workspace
            .cargo()
            .env("KINA_GUEST", &guest)
            .args(["bench", "--quiet", "--package", "kina", "--bench", "lifecycle", "--"])
            .args(arguments),
    )
}
