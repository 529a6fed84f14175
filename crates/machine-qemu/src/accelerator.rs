//! Which accelerator machines run with.
//!
//! `/dev/kvm` may open, and run instructions, and still boot no kernel: hosts
//! that are machines themselves do that. So KVM is taken by itself only after a
//! machine has booted on it, the real kernel with the real guest, within a
//! deadline. The result is kept until QEMU, the boot files or the host's boot
//! change.

mod probe;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::Choice;
use crate::Error;
use crate::boot::BootFiles;

/// How QEMU runs a machine's processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The kernel's, at the processor's own speed.
    Kvm,
    /// Every instruction translated: slow, works anywhere.
    Tcg,
}

impl Accelerator {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The value of `-machine`, to which a memory backend may be added. The
    /// interrupt controller and timer of old are left out; the clock stays,
    /// without which the firmware waits for a second.
    pub fn machine(self) -> String {
        format!("microvm,accel={},pit=off,pic=off", self.name())
    }

    /// The value of `-cpu`.
    pub fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            // Five levels of page tables cost an emulated processor at every miss.
            Self::Tcg => "max,la57=off",
        }
    }
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(Error::AcceleratorUnknown { name: text.to_owned() }),
        }
    }
}

/// What it takes to find out whether a machine boots.
#[derive(Debug)]
pub struct ProbeConfig<'a> {
    /// The emulator.
    pub qemu: &'a Path,
    /// What the machine boots from.
    pub files: &'a BootFiles,
    /// The device of KVM: `/dev/kvm`.
    pub device: &'a Path,
    /// The file in which the result is kept.
    pub result: &'a Path,
    /// How long a boot may take: seconds on KVM.
    pub deadline: Duration,
}

/// Decides which accelerator machines run with. Blocks, for
/// [`ProbeConfig::deadline`] at most and a little: a probe that hangs is killed.
///
/// # Errors
/// When there is none: [`Choice::Tcg`] only emulates when it is asked for.
pub fn choose(choice: Choice, config: &ProbeConfig<'_>) -> Result<Accelerator, Error> {
    match choice {
        Choice::Tcg => Ok(Accelerator::Tcg),
        Choice::Kvm => open(config.device).map(|()| Accelerator::Kvm),
        Choice::Auto => {
            open(config.device)?;
            let key = Key::read(config)?;
            let outcome = match Kept::read(config.result, &key) {
                Some(outcome) => outcome,
                None => {
                    let outcome = probe(config, Accelerator::Kvm)?;
                    Kept { key, outcome: outcome.clone() }.write(config.result);
                    outcome
                }
            };
            match outcome {
                Outcome::Booted => Ok(Accelerator::Kvm),
                Outcome::Failed { reason } => {
                    Err(Error::NoAccelerator { device: config.device.to_owned(), reason })
                }
            }
        }
    }
}

fn open(device: &Path) -> Result<(), Error> {
    let opened = OpenOptions::new().read(true).write(true).open(device);
    opened.map(drop).map_err(|source| Error::NoKvm { device: device.to_owned(), source })
}

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The guest listened, and the machine switched itself off.
    Booted,
    /// It did not come so far.
    Failed {
        /// What happened instead.
        reason: String,
    },
}

/// Boots a machine without devices and waits for its guest. Nothing of it is
/// left afterwards.
///
/// # Errors
/// When QEMU cannot be started or ended.
pub fn probe(config: &ProbeConfig<'_>, accelerator: Accelerator) -> Result<Outcome, Error> {
    probe::run(config, accelerator)
}

/// What a kept result depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    qemu: String,
    files: String,
    host_boot: String,
}

impl Key {
    fn read(config: &ProbeConfig<'_>) -> Result<Self, Error> {
        let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
        let host_boot = fs::read_to_string(&path).map_err(|source| Error::Read { path, source })?;
        Ok(Self {
            qemu: probe::qemu_version(config.qemu)?,
            files: config.files.digest.clone(),
            host_boot: host_boot.trim().to_owned(),
        })
    }
}

/// The file of a result.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    key: Key,
    outcome: Outcome,
}

impl Kept {
    /// The result kept for `key`. What cannot be read is not there.
    fn read(path: &Path, key: &Key) -> Option<Outcome> {
        let kept: Self = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        (kept.key == *key).then_some(kept.outcome)
    }

    /// Keeps the result; without, the next start probes again.
    fn write(&self, path: &Path) {
        let write = || -> std::io::Result<()> {
            let folder = path.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)?;
            File::open(folder)?.sync_all()
        };
        if let Err(error) = write() {
            tracing::warn!(path = %path.display(), %error, "cannot keep the result of the probe of KVM");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(qemu: &str) -> Key {
        Key { qemu: qemu.to_owned(), files: "digest".to_owned(), host_boot: "boot".to_owned() }
    }

    #[test]
    fn a_result_is_kept_for_what_it_was_found_with() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/kvm.json");
        assert_eq!(Kept::read(&path, &key("7.2")), None);
        let outcome = Outcome::Failed { reason: "it hung".to_owned() };
        Kept { key: key("7.2"), outcome: outcome.clone() }.write(&path);
        assert_eq!(Kept::read(&path, &key("7.2")), Some(outcome));
        assert_eq!(Kept::read(&path, &key("8.0")), None);
        Kept { key: key("8.0"), outcome: Outcome::Booted }.write(&path);
        assert_eq!(Kept::read(&path, &key("8.0")), Some(Outcome::Booted));
        fs::write(&path, "{").unwrap();
        assert_eq!(Kept::read(&path, &key("8.0")), None);
    }

    #[test]
    fn choices_are_read() {
        assert_eq!("auto".parse::<Choice>().unwrap(), Choice::Auto);
        assert_eq!("kvm".parse::<Choice>().unwrap(), Choice::Kvm);
        assert_eq!("tcg".parse::<Choice>().unwrap(), Choice::Tcg);
        let error = "xen".parse::<Choice>().unwrap_err().to_string();
        assert!(error.contains("xen") && error.contains("auto, kvm and tcg"), "{error}");
    }

    #[test]
    fn without_the_device_there_is_no_kvm() {
        let error = open(Path::new("/nowhere/kvm")).unwrap_err().to_string();
        assert!(error.starts_with("no accelerator: /nowhere/kvm"), "{error}");
        assert!(error.contains("machine.qemu.accelerator = \"tcg\""), "{error}");
    }
}
