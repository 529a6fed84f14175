//! Where the programs and files are that a machine takes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kina_machine_qemu::boot::{self, BootConfig, BootFiles, KernelFiles};

/// The processor of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// x86_64, which the tests run on.
    X86,
    /// arm64, that of a Mac's machines.
    Arm,
}

/// What it takes to boot a machine.
#[derive(Clone, Debug)]
pub struct Prerequisites {
    /// What the emulator emulates.
    pub processor: Processor,
    /// The emulator.
    pub qemu: PathBuf,
    /// The kernel's image.
    pub kernel: PathBuf,
    /// The kernel's folder of modules.
    pub modules: PathBuf,
    /// Shares a folder with a machine.
    pub virtiofsd: PathBuf,
    /// Joins a machine's vsock to a unix socket.
    pub vsock_device: PathBuf,
    /// The static guest.
    pub guest: PathBuf,
    /// Where made boot files are kept.
    pub cache: PathBuf,
}

impl Prerequisites {
    /// Finds everything: by the variables that xtask sets, or where xtask puts it.
    ///
    /// # Errors
    /// When something is not there; the message names the command that mends it.
    pub fn find() -> Result<Self> {
        let setup = "cargo xtask setup test";
        Ok(Self {
            processor: Processor::X86,
            qemu: there("/usr/bin/qemu-system-x86_64".into(), setup)?,
            kernel: below("KINA_TEST_KERNEL", "kernel/vmlinuz", setup)?,
            modules: below("KINA_TEST_MODULES", "kernel/modules", setup)?,
            virtiofsd: below("KINA_TEST_VIRTIOFSD", "tools/bin/virtiofsd", setup)?,
            vsock_device: below("KINA_TEST_VSOCK_DEVICE", "debug/kina-vsock", "cargo build -p kina-vsock")?,
            guest: below(
                "KINA_GUEST",
                "guest/x86_64-unknown-linux-gnu/guest/kina-guest",
                "cargo xtask guest",
            )?,
            cache: target().join("boot"),
        })
    }

    /// The same for an arm64 machine.
    ///
    /// # Errors
    /// As [`Prerequisites::find`].
    pub fn find_arm64() -> Result<Self> {
        let setup = "cargo xtask setup arm64-machine";
        Ok(Self {
            processor: Processor::Arm,
            qemu: there("/usr/bin/qemu-system-aarch64".into(), setup)?,
            kernel: there(target().join("kernel-arm64/vmlinuz"), setup)?,
            modules: there(target().join("kernel-arm64/modules"), setup)?,
            guest: there(
                target().join("guest/aarch64-unknown-linux-gnu/guest/kina-guest"),
                "cargo xtask guest --target aarch64",
            )?,
            ..Self::find()?
        })
    }

    /// What the simulator of Apple's `container` takes for virtual machines, which are emulated:
    /// its setting `programs`.
    #[must_use]
    pub fn simulator_programs(&self) -> serde_json::Value {
        serde_json::json!({
            "qemu": self.qemu,
            "virtiofsd": self.virtiofsd,
            "vsock": self.vsock_device,
            "guest": self.guest,
            "init": self.guest.with_file_name("container"),
            "kernel": self.kernel,
            "modules": self.modules,
            "cache": self.cache,
            "accelerator": "tcg",
        })
    }

    /// What machines boot from, made where it is not there yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn boot_files(&self) -> Result<BootFiles> {
        let kernel = KernelFiles { image: self.kernel.clone(), modules: self.modules.clone() };
        let config = BootConfig {
            kernel: Some(kernel),
            modules: Vec::new(),
            guest: self.guest.clone(),
            cache: self.cache.clone(),
        };
        boot::prepare(&config).context("make what machines boot from")
    }
}

/// A static busybox for arm64 machines.
///
/// # Errors
/// When it is not there; the message names the command that mends it.
pub fn arm64_busybox() -> Result<PathBuf> {
    there(target().join("kernel-arm64/busybox/bin/busybox"), "cargo xtask setup arm64-machine")
}

/// The folder that cargo and xtask build in.
fn target() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    workspace.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The file that a variable names, or that is below the target folder.
fn below(variable: &str, path: &str, command: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable).map_or_else(|| target().join(path), PathBuf::from);
    there(path, command)
}

fn there(path: PathBuf, command: &str) -> Result<PathBuf> {
    if !path.exists() {
        bail!("{} is not there: run `{command}`", path.display());
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let error = there("/nowhere/tool".into(), "cargo xtask setup test").unwrap_err().to_string();
        assert_eq!(error, "/nowhere/tool is not there: run `cargo xtask setup test`");
    }
}
