//! Running programs, and where things lie in the source tree.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The source tree that this build of xtask belongs to.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Finds the tree: from the variable that `cargo run` sets, or, when the
    /// binary is run by itself, from where it was built.
    pub(crate) fn locate() -> Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .and_then(Path::parent)
            .context("xtask does not lie two folders below the root of the workspace")?
            .to_path_buf();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => std::path::absolute(folder).context("CARGO_TARGET_DIR")?,
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// The root of the workspace.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A tree in another place.
    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_path_buf(), target: root.join("target") }
    }

    /// A path below the target folder, where everything that a task makes goes.
    pub(crate) fn target(&self, path: impl AsRef<Path>) -> PathBuf {
        self.target.join(path)
    }

    /// A cargo command in the root of the workspace.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        self.prepare(&mut command);
        command
    }

    /// Sets the working directory, and removes what `cargo run` told xtask about
    /// itself: build scripts that watch those variables would run again on
    /// each change between `cargo` and `cargo xtask`.
    pub(crate) fn prepare(&self, command: &mut Command) {
        command.current_dir(&self.root);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            let of_xtask = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
            if of_xtask || name == "CARGO_PRIMARY_PACKAGE" {
                command.env_remove(&*name);
            }
        }
    }
}

/// A command as a person would type it.
fn describe(command: &Command) -> String {
    let mut text = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Runs a command, shown before it starts, with its output passed through.
///
/// Fails when it cannot be started or does not exit with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    eprintln!("$ {line}");
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a command with its standard error copied through, each line also given
/// to `watch`. Fails as [`run`] does.
pub(crate) fn run_watching(command: &mut Command, mut watch: impl FnMut(&str)) -> Result<()> {
    let line = describe(command);
    eprintln!("$ {line}");
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start `{line}`"))?;
    if let Some(stderr) = child.stderr.take() {
        for text in BufReader::new(stderr).split(b'\n') {
            let text = text.with_context(|| format!("read the output of `{line}`"))?;
            let text = String::from_utf8_lossy(&text);
            eprintln!("{text}");
            watch(&text);
        }
    }
    let status = child.wait().with_context(|| format!("wait for `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// What a command prints on standard output. Quiet unless it fails, and then
/// the error carries what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of `{line}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_what_the_program_said() {
        let error = output(Command::new("sh").args(["-c", "echo reason >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.ends_with("reason"), "{text}");
    }

    #[test]
    fn watching_sees_every_line_and_the_exit_code() {
        let mut lines = Vec::new();
        let result =
            run_watching(Command::new("sh").args(["-c", "printf 'one\\ntwo' >&2; exit 1"]), |line| {
                lines.push(line.to_owned())
            });
        assert_eq!(lines, ["one", "two"]);
        assert!(result.is_err());
    }
}
