//! `cargo xtask guest`: the static `kina-guest` that every machine runs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{Workspace, run as run_command};
use crate::{rust_source, setup};

/// The processor of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processor {
    X86,
    Arm,
}

impl Processor {
    /// This machine's.
    pub(crate) const HERE: Self = if cfg!(target_arch = "aarch64") { Self::Arm } else { Self::X86 };

    /// As Rust and the command line call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Arm => "aarch64",
        }
    }

    /// All that guests are built for, this machine's first.
    pub(crate) const ALL: [Self; 2] =
        if matches!(Self::HERE, Self::Arm) { [Self::Arm, Self::X86] } else { [Self::X86, Self::Arm] };

    /// As images of containers call it.
    pub(crate) fn oci_name(self) -> &'static str {
        match self {
            Self::X86 => "amd64",
            Self::Arm => "arm64",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|processor| processor.name() == name)
    }

    /// The Rust target. The C library is linked statically, so any Linux can run it.
    fn target(self) -> String {
        format!("{}-unknown-linux-gnu", self.name())
    }

    /// The C compiler for it, which also links.
    fn compiler(self) -> String {
        format!("{}-linux-gnu-gcc", self.name())
    }
}

/// The command: build, and print the path on standard output.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let processor = match arguments[..] {
        [] => Processor::HERE,
        ["--target", name] => Processor::parse(name)
            .with_context(|| format!("--target: no guest for `{name}`; there is x86_64 and aarch64"))?,
        _ => bail!("`guest` takes `--target x86_64|aarch64` or nothing, got `{}`", arguments.join(" ")),
    };
    let other = processor == Processor::Arm && processor != Processor::HERE;
    let groups: &[&setup::Group] = if other { &[&setup::ARM64_COMPILER] } else { &[] };
    setup::install(workspace, groups)?;
    match build_for(workspace, processor)? {
        Some(path) => println!("{}", path.display()),
        None => bail!("{}", rust_source::MISSING),
    }
    Ok(())
}

/// Builds this machine's guest where its sources changed, and returns its path.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    compile(workspace, workspace.cargo(), Processor::HERE, &GUEST, &[])
}

/// Builds what runs in the virtual machines of the simulator of Apple's `container`: the
/// simulator itself, where its sources changed.
pub(crate) fn build_simulator(workspace: &Workspace) -> Result<PathBuf> {
    compile(workspace, workspace.cargo(), Processor::HERE, &SIMULATOR, &[])
}

/// Builds the guest of a processor. `None` when it is another than this machine's
/// and there is no standard library for it.
pub(crate) fn build_for(workspace: &Workspace, processor: Processor) -> Result<Option<PathBuf>> {
    if processor == Processor::HERE {
        return build(workspace).map(Some);
    }
    let Some(toolchain) = rust_source::toolchain(workspace)? else { return Ok(None) };
    let mut cargo = Command::new(toolchain.join("bin/cargo"));
    workspace.prepare(&mut cargo);
    let variable = processor.target().replace('-', "_");
    cargo
        .env("RUSTC", toolchain.join("bin/rustc"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("LD_LIBRARY_PATH")
        .env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), processor.compiler())
        .env(format!("CC_{variable}"), processor.compiler());
    compile(workspace, cargo, processor, &GUEST, &["-Zbuild-std=std,panic_abort"]).map(Some)
}

/// A program that runs in machines.
struct Program {
    package: &'static str,
    name: &'static str,
    options: &'static [&'static str],
}

const GUEST: Program = Program { package: "kina-guest", name: "kina-guest", options: &[] };
/// Without the half that boots machines.
const SIMULATOR: Program =
    Program { package: "kina-apple-sim", name: "container", options: &["--no-default-features"] };

fn compile(
    workspace: &Workspace,
    mut cargo: Command,
    processor: Processor,
    program: &Program,
    options: &[&str],
) -> Result<PathBuf> {
    run_command(
        cargo
            .env("CARGO_TARGET_DIR", workspace.target("guest"))
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .args(["build", "--quiet", "--package", program.package, "--bin", program.name])
            .args(["--profile", "guest", "--target", &processor.target()])
            .args(program.options)
            .args(options),
    )?;
    Ok(path_for(workspace, processor).with_file_name(program.name))
}

/// Where this machine's guest is once built.
pub(crate) fn path(workspace: &Workspace) -> PathBuf {
    path_for(workspace, Processor::HERE)
}

/// Where the guest of a processor is once built.
pub(crate) fn path_for(workspace: &Workspace, processor: Processor) -> PathBuf {
    workspace.target("guest").join(processor.target()).join("guest/kina-guest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_by_name() {
        assert_eq!(Processor::parse("aarch64"), Some(Processor::Arm));
        assert_eq!(Processor::parse("arm64"), None);
        assert_eq!(Processor::ALL[0], Processor::HERE);
        assert_eq!(Processor::Arm.compiler(), "aarch64-linux-gnu-gcc");
        let error = run(&Workspace::at(std::path::Path::new("/w")), &["--target".into(), "mips".into()]);
        assert!(error.unwrap_err().to_string().contains("x86_64 and aarch64"));
    }
}
