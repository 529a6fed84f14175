//! What can be set about the simulator itself. None of it exists in Apple's.
//!
//! The settings lie in `simulator.json` of the application root and are read whenever one of
//! them matters, so that a test can change them while everything runs. Environment variables
//! outrank the file in the process that sees them: `CONTAINER_SIM_VERSION`,
//! `CONTAINER_SIM_BOOT_MS`, `CONTAINER_SIM_TRAPS`, `CONTAINER_SIM_KIND` and `CONTAINER_SIM_PROGRAMS`.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::programs::Programs;

/// A release of apple/container. The order is that of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Release {
    /// The last with the old shape of the output.
    V0_12_3,
    /// The first with today's shape.
    V1_0_0,
    /// Adds `variant` to attachments.
    V1_1_0,
    /// Adds `--kernel-arg`; limits names to 63 characters.
    V1_2_0,
    /// Adds `--masked-path` and `--read-only-path`.
    V1_2_1,
    /// The newest that is known.
    V1_2_2,
}

impl Release {
    /// All of them, oldest first.
    pub const ALL: [Self; 6] =
        [Self::V0_12_3, Self::V1_0_0, Self::V1_1_0, Self::V1_2_0, Self::V1_2_1, Self::V1_2_2];

    /// Its number.
    #[must_use]
    pub fn number(self) -> &'static str {
        match self {
            Self::V0_12_3 => "0.12.3",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
            Self::V1_2_0 => "1.2.0",
            Self::V1_2_1 => "1.2.1",
            Self::V1_2_2 => "1.2.2",
        }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.number())
    }
}

impl FromStr for Release {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|release| release.number() == text)
            .ok_or_else(|| format!("no such release: {text:?}; known are {}", join(Self::ALL)))
    }
}

impl TryFrom<String> for Release {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Release> for String {
    fn from(release: Release) -> Self {
        release.number().to_owned()
    }
}

/// Something that goes wrong on purpose. The README says which line of the contract each is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trap {
    /// No connection to the server is possible.
    ServerDown,
    /// The server accepts connections and never answers.
    ServerHangs,
    /// A create never ends, and holds the server's lock.
    CreateHangs,
    /// A bootstrap never ends, and holds the server's lock.
    BootHangs,
    /// A virtual machine does not boot.
    BootFails,
    /// The relay of a published socket ends at its next connection.
    RelayDies,
    /// The guest's end of a published socket is not there for two seconds after the host's is.
    RelayLate,
    /// The first process ends just after it was started.
    InitDies,
    /// A stop never ends.
    StopHangs,
    /// No process can be started in a running container.
    ExecFails,
    /// No figures can be had.
    StatsFail,
    /// Images cannot be loaded.
    LoadFails,
}

impl Trap {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::ServerDown,
        Self::ServerHangs,
        Self::CreateHangs,
        Self::BootHangs,
        Self::BootFails,
        Self::RelayDies,
        Self::RelayLate,
        Self::InitDies,
        Self::StopHangs,
        Self::ExecFails,
        Self::StatsFail,
        Self::LoadFails,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::ServerDown => "server-down",
            Self::ServerHangs => "server-hangs",
            Self::CreateHangs => "create-hangs",
            Self::BootHangs => "boot-hangs",
            Self::BootFails => "boot-fails",
            Self::RelayDies => "relay-dies",
            Self::RelayLate => "relay-late",
            Self::InitDies => "init-dies",
            Self::StopHangs => "stop-hangs",
            Self::ExecFails => "exec-fails",
            Self::StatsFail => "stats-fail",
            Self::LoadFails => "load-fails",
        }
    }
}

impl fmt::Display for Trap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Trap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|trap| trap.name() == text)
            .ok_or_else(|| format!("no such trap: {text:?}; known are {}", join(Self::ALL)))
    }
}

/// What a machine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Namespaces of the host's kernel.
    #[default]
    Namespaces,
    /// A virtual machine, with a kernel of its own.
    Microvm,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "namespaces" => Ok(Self::Namespaces),
            "microvm" => Ok(Self::Microvm),
            other => Err(format!("no such kind of machine: {other:?}; known are namespaces, microvm")),
        }
    }
}

fn join<T: fmt::Display>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}

/// The settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Which release's behaviour and output to have.
    pub version: Release,
    /// How long a virtual machine takes to boot, in milliseconds.
    pub boot_ms: u64,
    /// How many virtual machines may run at once.
    pub machines: usize,
    /// Of the time limits of Apple's clients, how many hundredths are waited.
    pub patience_percent: u64,
    /// What goes wrong on purpose.
    pub traps: BTreeSet<Trap>,
    /// What new containers' machines are.
    pub kind: Kind,
    /// What virtual machines take.
    pub programs: Programs,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            version: Release::V1_2_2,
            boot_ms: 800,
            machines: 128,
            patience_percent: 100,
            traps: BTreeSet::new(),
            kind: Kind::default(),
            programs: Programs::default(),
        }
    }
}

impl Settings {
    /// The settings in force for an application root.
    ///
    /// # Errors
    /// A text that names what cannot be understood.
    pub fn load(root: &Path) -> Result<Self, String> {
        let mut settings = Self::saved(root)?;
        for (variable, key) in [
            ("CONTAINER_SIM_VERSION", "version"),
            ("CONTAINER_SIM_BOOT_MS", "boot-ms"),
            ("CONTAINER_SIM_TRAPS", "traps"),
            ("CONTAINER_SIM_KIND", "kind"),
            ("CONTAINER_SIM_PROGRAMS", "programs"),
        ] {
            if let Ok(value) = std::env::var(variable) {
                settings.set(key, &value).map_err(|error| format!("{variable}: {error}"))?;
            }
        }
        Ok(settings)
    }

    /// The settings in the file of an application root, whatever the environment says.
    ///
    /// # Errors
    /// A text that names what cannot be understood.
    pub fn saved(root: &Path) -> Result<Self, String> {
        let file = Self::file(root);
        match fs::read(&file) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", file.display()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(format!("{}: {error}", file.display())),
        }
    }

    /// Changes one setting, by its name in the file.
    ///
    /// # Errors
    /// A text that names what cannot be understood.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<u64>().map_err(|_| format!("no number: {value:?}"));
        match key {
            "version" => self.version = value.parse()?,
            "boot-ms" => self.boot_ms = number()?,
            "machines" => self.machines = usize::try_from(number()?).map_err(|error| error.to_string())?,
            "patience-percent" => self.patience_percent = number()?,
            "traps" => {
                let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
                self.traps = names.map(str::parse).collect::<Result<_, _>>()?;
            }
            "kind" => self.kind = value.parse()?,
            "programs" => {
                self.programs = serde_json::from_str(value).map_err(|error| format!("programs: {error}"))?;
            }
            other => return Err(format!("no such setting: {other:?}")),
        }
        Ok(())
    }

    /// Makes them those of an application root.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self, root: &Path) -> io::Result<()> {
        fs::create_dir_all(root)?;
        let file = Self::file(root);
        let new = file.with_extension(format!("{}.new", std::process::id()));
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(new, file)
    }

    /// Whether something goes wrong on purpose.
    #[must_use]
    pub fn trapped(&self, trap: Trap) -> bool {
        self.traps.contains(&trap)
    }

    /// How long a boot takes.
    #[must_use]
    pub fn boot_time(&self) -> Duration {
        Duration::from_millis(self.boot_ms)
    }

    /// A time limit of Apple's, as long as it is here.
    #[must_use]
    pub fn patience(&self, limit: Duration) -> Duration {
        limit.mul_f64(self.patience_percent as f64 / 100.0)
    }

    fn file(root: &Path) -> PathBuf {
        root.join("simulator.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_from_their_file() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Settings::load(root.path()).unwrap(), Settings::default());
        let mut settings = Settings::default();
        settings.set("version", "0.12.3").unwrap();
        settings.set("traps", "server-hangs, relay-dies").unwrap();
        settings.set("boot-ms", "10").unwrap();
        settings.set("kind", "microvm").unwrap();
        settings.set("programs", r#"{"virtiofsd": "/v"}"#).unwrap();
        settings.save(root.path()).unwrap();
        let read = Settings::load(root.path()).unwrap();
        assert_eq!(read, settings);
        assert!(read.trapped(Trap::RelayDies) && !read.trapped(Trap::ServerDown));
    }

    #[test]
    fn mistakes_are_named() {
        let mut settings = Settings::default();
        for (key, value, word) in [
            ("traps", "x", "\"x\""),
            ("version", "9", "1.2.2"),
            ("boot-ms", "-1", "-1"),
            ("kind", "x", "microvm"),
            ("programs", r#"{"x": 1}"#, "`x`"),
            ("y", "", "\"y\""),
        ] {
            let error = settings.set(key, value).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn names_of_traps_are_those_of_the_file() {
        for trap in Trap::ALL {
            assert_eq!(serde_json::to_value(trap).unwrap(), trap.name());
            assert_eq!(trap.name().parse(), Ok(trap));
        }
    }

    #[test]
    fn all_of_them_are_in_the_readme() {
        let readme = include_str!("../README.md");
        let rows: Vec<&str> = readme.lines().filter(|line| line.starts_with("| `")).collect();
        let settings = serde_json::to_value(Settings::default()).unwrap();
        let settings = settings.as_object().unwrap().keys().cloned();
        for name in settings.chain(Trap::ALL.map(|trap| trap.to_string())) {
            let word = format!("`{name}`");
            let told = |row: &&str| row.split('|').nth(1).is_some_and(|cell| cell.contains(&word));
            assert_eq!(rows.iter().copied().filter(told).count(), 1, "{name}");
        }
        for release in Release::ALL {
            assert!(readme.contains(release.number()), "{release}");
        }
    }
}
