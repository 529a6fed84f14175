//! `[machine]`

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use kina_machine_qemu::{Choice, KernelFiles, QemuConfig, Vsock};

use serde::{Deserialize, Serialize};

use super::apple::Apple;
use super::{ConfigError, absolute, at_least_one, mib, places};
use crate::pod::context::Paths;
use crate::pod::size::SizePolicy;
use crate::pod::volumes::VolumeRoots;
use crate::runtime::MachineConfig;

/// Virtual machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// What runs them.
    pub driver: DriverChoice,
    /// Memory for the containers of a pod without a limit, in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs of such a pod.
    pub cpus: u32,
    /// What a machine's kernel and guest need of its memory, in MiB.
    pub kernel_mib: u64,
    /// What a machine's processes take on the node beside its memory, in MiB.
    pub process_mib: u64,
    /// The least memory of a machine, in MiB.
    pub minimum_mib: u64,
    /// The kubelet's directory, of which a machine sees its pod's part.
    pub kubelet_root: PathBuf,
    /// What pods in machines of their own may mount by a path of the node.
    pub share_roots: Vec<PathBuf>,
    /// The machines that QEMU runs.
    pub qemu: Qemu,
    /// The machines that Apple's `container` runs.
    pub apple: Apple,
}

/// What runs virtual machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverChoice {
    /// Apple's `container` on a Mac, QEMU elsewhere.
    #[default]
    Auto,
    /// QEMU.
    Qemu,
    /// Apple's `container`.
    Apple,
}

/// The machines that QEMU runs. Empty paths take the usual ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Qemu {
    /// Whether there are any.
    pub enabled: bool,
    /// `qemu-system-<architecture>`.
    pub program: PathBuf,
    /// virtiofsd, the one in Rust.
    pub virtiofsd: PathBuf,
    /// kina's own `kina-vsock`.
    pub vsock: PathBuf,
    /// What runs the machines' processors.
    pub accelerator: Choice,
    /// What carries streams to the guests.
    pub streams: Vsock,
    /// The kernel; empty takes the distribution's newest that will do.
    pub kernel: PathBuf,
    /// Its folder of modules.
    pub kernel_modules: PathBuf,
    /// Modules to load beyond those that every machine needs.
    pub modules: Vec<String>,
    /// The most that a machine's containers can write to its disk, in MiB; 0 has
    /// them write into its memory.
    pub disk_mib: u64,
    /// The first user that machines' processes run as: each machine has two of its own.
    pub first_user: u32,
    /// How many users those are, 2 or more.
    pub users: u32,
    /// The most that is kept of a machine's console, in KiB.
    pub console_kib: usize,
    /// Whether kernels tell all that they do on it.
    pub verbose: bool,
    /// Seconds that the boot may take that finds out about KVM.
    pub probe_seconds: u64,
    /// Whether frames of machines are let through whose Ethernet, IP or ARP
    /// source is not their pod's.
    pub allow_forged_addresses: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            driver: DriverChoice::Auto,
            memory_mib: 512,
            cpus: 1,
            kernel_mib: 48,
            process_mib: 64,
            minimum_mib: 128,
            kubelet_root: "/var/lib/kubelet".into(),
            share_roots: Vec::new(),
            qemu: Qemu::default(),
            apple: Apple::default(),
        }
    }
}

impl Default for Qemu {
    fn default() -> Self {
        Self {
            enabled: true,
            program: PathBuf::new(),
            virtiofsd: PathBuf::new(),
            vsock: PathBuf::new(),
            accelerator: Choice::Auto,
            streams: Vsock::Kina,
            kernel: PathBuf::new(),
            kernel_modules: PathBuf::new(),
            modules: Vec::new(),
            disk_mib: 10 << 10,
            first_user: 2_000_000_000,
            users: 1 << 16,
            console_kib: 256,
            verbose: false,
            probe_seconds: 20,
            allow_forged_addresses: false,
        }
    }
}

/// A path that is set.
pub(super) fn set(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}

impl Qemu {
    fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("machine.qemu.first_user", self.first_user.into()),
            ("machine.qemu.users", self.users.into()),
            ("machine.qemu.console_kib", self.console_kib as u64),
            ("machine.qemu.probe_seconds", self.probe_seconds),
        ])?;
        for (key, path) in [
            ("machine.qemu.program", &self.program),
            ("machine.qemu.virtiofsd", &self.virtiofsd),
            ("machine.qemu.vsock", &self.vsock),
            ("machine.qemu.kernel", &self.kernel),
            ("machine.qemu.kernel_modules", &self.kernel_modules),
        ] {
            absolute(key, set(path).as_ref())?;
        }
        let word = |char: char| char.is_ascii_alphanumeric() || "-_.".contains(char);
        if let Some(name) = self.modules.iter().find(|name| name.is_empty() || !name.chars().all(word)) {
            let reason = format!("{name:?} is not a kernel module's name, such as nf_tables");
            return Err(ConfigError::Value { key: "machine.qemu.modules", reason });
        }
        if set(&self.kernel).is_some() != set(&self.kernel_modules).is_some() {
            let reason = "is set together with machine.qemu.kernel, or neither is".to_owned();
            return Err(ConfigError::Value { key: "machine.qemu.kernel_modules", reason });
        }
        if self.users < 2 {
            let reason = "is less than 2, which is what one machine takes".to_owned();
            return Err(ConfigError::Value { key: "machine.qemu.users", reason });
        }
        if self.first_user.checked_add(self.users).is_none() {
            let reason = "reaches beyond the last user id".to_owned();
            return Err(ConfigError::Value { key: "machine.qemu.users", reason });
        }
        Ok(())
    }

    /// `None` if there shall be none.
    fn runtime(&self, guest: &Path, paths: &Paths) -> Option<QemuConfig> {
        const VSOCK: &str = "kina-vsock";
        if !self.enabled {
            return None;
        }
        let vsock = set(&self.vsock).unwrap_or_else(|| {
            let places = places(VSOCK);
            // Of those that are not there the first is named as missing.
            let found = places.iter().find(|path| path.is_file()).or(places.first());
            found.cloned().unwrap_or_else(|| VSOCK.into())
        });
        let defaults = QemuConfig::new(guest.to_owned(), vsock, paths.machines(), paths.run_pods());
        Some(QemuConfig {
            qemu: set(&self.program).unwrap_or_else(|| defaults.qemu.clone()),
            virtiofsd: set(&self.virtiofsd).unwrap_or_else(|| defaults.virtiofsd.clone()),
            kernel: set(&self.kernel)
                .map(|image| KernelFiles { image, modules: self.kernel_modules.clone() }),
            modules: self.modules.clone(),
            users: self.first_user..self.first_user.saturating_add(self.users),
            disk_bytes: mib(self.disk_mib),
            accelerator: self.accelerator,
            streams: self.streams,
            verbose: self.verbose,
            probe_deadline: Duration::from_secs(self.probe_seconds),
            console_limit: self.console_kib.saturating_mul(1 << 10),
            forging: self.allow_forged_addresses,
            ..defaults
        })
    }
}

impl Machine {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least_one(&[
            ("machine.memory_mib", self.memory_mib),
            ("machine.cpus", self.cpus.into()),
            ("machine.minimum_mib", self.minimum_mib),
        ])?;
        absolute("machine.kubelet_root", [&self.kubelet_root])?;
        absolute("machine.share_roots", &self.share_roots)?;
        let climbs = |path: &&PathBuf| path.components().any(|part| part == Component::ParentDir);
        if let Some(path) = self.share_roots.iter().find(climbs) {
            let reason = format!("{} has \"..\" in it", path.display());
            return Err(ConfigError::Value { key: "machine.share_roots", reason });
        }
        self.qemu.check()?;
        self.apple.check()
    }

    /// What the daemon makes machines by.
    pub(crate) fn runtime(&self, guest: &Path, paths: &Paths) -> MachineConfig {
        let apple = match self.driver {
            DriverChoice::Auto => std::env::consts::OS == "macos",
            DriverChoice::Apple => true,
            DriverChoice::Qemu => false,
        };
        MachineConfig {
            sizes: SizePolicy {
                memory_bytes: mib(self.memory_mib),
                cpus: self.cpus,
                kernel_bytes: mib(self.kernel_mib),
                process_bytes: mib(self.process_mib),
                minimum_bytes: mib(self.minimum_mib),
            },
            qemu: if apple { None } else { self.qemu.runtime(guest, paths) },
            apple: apple.then(|| self.apple.runtime(paths)),
            volumes: VolumeRoots { kubelet: self.kubelet_root.clone(), shared: self.share_roots.clone() },
        }
    }
}
