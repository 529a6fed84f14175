//! What it takes to run machines as virtual machines: programs and files of the host.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where they are. What is not said is looked for where cargo, xtask and Debian put it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Programs {
    /// QEMU.
    pub qemu: Option<PathBuf>,
    /// Shares directories with a machine.
    pub virtiofsd: Option<PathBuf>,
    /// `kina-vsock`, which carries streams to a machine.
    pub vsock: Option<PathBuf>,
    /// The static `kina-guest`, which boots the machine.
    pub guest: Option<PathBuf>,
    /// This program, static: what runs in the machine.
    pub init: Option<PathBuf>,
    /// The kernel, and the folder of its modules; both or none. The newest of the host's that
    /// has all that is needed otherwise.
    pub kernel: Option<PathBuf>,
    /// See `kernel`.
    pub modules: Option<PathBuf>,
    /// Where what is made to boot from is kept; several simulators may share it.
    pub cache: Option<PathBuf>,
    /// `auto`, `kvm` or `tcg`; `auto` if nothing is said.
    pub accelerator: Option<String>,
}

impl Programs {
    /// QEMU.
    #[must_use]
    pub fn qemu(&self) -> PathBuf {
        let usual = || PathBuf::from(format!("/usr/bin/qemu-system-{}", std::env::consts::ARCH));
        self.qemu.clone().unwrap_or_else(usual)
    }

    /// virtiofsd.
    #[must_use]
    pub fn virtiofsd(&self) -> PathBuf {
        self.virtiofsd.clone().unwrap_or_else(|| PathBuf::from("/usr/libexec/virtiofsd"))
    }

    /// `kina-vsock`, which cargo builds beside this program.
    #[must_use]
    pub fn vsock(&self) -> PathBuf {
        self.vsock.clone().unwrap_or_else(|| own_directory().join("kina-vsock"))
    }

    /// The static guest, where `cargo xtask guest` puts it.
    #[must_use]
    pub fn guest(&self) -> PathBuf {
        self.guest.clone().unwrap_or_else(|| made("kina-guest"))
    }

    /// This program, where `cargo xtask pod-image` puts the static one.
    #[must_use]
    pub fn init(&self) -> PathBuf {
        self.init.clone().unwrap_or_else(|| made("container"))
    }
}

fn own_directory() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.parent().unwrap_or(Path::new("/")).to_owned()
}

/// A static program, from `target/debug` or `target/release`.
fn made(name: &str) -> PathBuf {
    let target = own_directory().parent().unwrap_or(Path::new("/")).to_owned();
    target.join(format!("guest/{}-unknown-linux-gnu/guest", std::env::consts::ARCH)).join(name)
}
