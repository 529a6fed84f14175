//! The property list by which launchd runs kina. Pure.

use std::path::{Path, PathBuf};

use plist::{Dictionary, Value};

use super::Service;

/// The name of the service. kina has no domain of its own to reverse.
pub(super) const LABEL: &str = "kina.daemon";

/// Where the daemon finds programs: Apple's `container` is in `/usr/local/bin`,
/// what Homebrew brings in one of the first two. launchd's own path has neither.
const PATH: &str = "/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// Seconds between two starts of a daemon that fails.
const THROTTLE_SECONDS: i64 = 10;

/// Seconds after which a daemon told to stop is killed: twice the time that it
/// gives the calls under way, and some.
const EXIT_SECONDS: i64 = 30;

/// Open files: some for each pod's streams. macOS starts programs with 256.
const FILES: i64 = 16_384;

/// Permission bits that files of the daemon do not get: they are its user's alone.
const UMASK: i64 = 0o077;

/// The property list's place.
pub(super) fn file(home: &Path) -> PathBuf {
    home.join("Library/LaunchAgents").join(format!("{LABEL}.plist"))
}

/// The log's place, where macOS' own viewer of logs finds it.
pub(super) fn log(home: &Path) -> PathBuf {
    home.join("Library/Logs/kina/kina.log")
}

/// The property list as XML.
pub(super) fn render(service: &Service, home: &Path) -> anyhow::Result<Vec<u8>> {
    let text = |value: &str| Value::String(value.to_owned());
    let path = |value: &Path| Value::String(value.display().to_string());
    let number = |value: i64| Value::Integer(value.into());
    let limits = Value::Dictionary(Dictionary::from_iter([("NumberOfFiles", number(FILES))]));
    let list = Dictionary::from_iter([
        ("Label", text(LABEL)),
        ("ProgramArguments", Value::Array(service.command().iter().map(|word| text(word)).collect())),
        ("EnvironmentVariables", Value::Dictionary(Dictionary::from_iter([("PATH", text(PATH))]))),
        // With the user's session, which Apple's `container` belongs to.
        ("LimitLoadToSessionType", text("Aqua")),
        ("RunAtLoad", Value::Boolean(true)),
        // Started again when it fails, and not when it was told to end.
        ("KeepAlive", Value::Dictionary(Dictionary::from_iter([("SuccessfulExit", Value::Boolean(false))]))),
        ("ThrottleInterval", number(THROTTLE_SECONDS)),
        ("ExitTimeOut", number(EXIT_SECONDS)),
        // Pods wait for it: no throttling of processor and disk as for chores.
        ("ProcessType", text("Interactive")),
        // What it started for pods outlives it.
        ("AbandonProcessGroup", Value::Boolean(true)),
        ("SoftResourceLimits", limits),
        ("Umask", number(UMASK)),
        ("StandardOutPath", path(&log(home))),
        ("StandardErrorPath", path(&log(home))),
    ]);
    let mut xml = Vec::new();
    Value::Dictionary(list).to_writer_xml(&mut xml)?;
    xml.push(b'\n');
    Ok(xml)
}

/// The program that a property list runs.
pub(super) fn program(xml: &[u8]) -> Option<PathBuf> {
    let list = Value::from_reader_xml(xml).ok()?;
    let words = list.as_dictionary()?.get("ProgramArguments")?.as_array()?;
    Some(words.first()?.as_string()?.into())
}

/// What `launchctl print` tells of a service that is loaded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Printed {
    /// `running`, `not running`, `spawn scheduled` ...
    pub(super) state: String,
    /// Its process.
    pub(super) pid: Option<u32>,
    /// How the one before ended: `0`, `78`, `(never exited)`.
    pub(super) last_exit: Option<String>,
}

/// Reads it. Only the service's own lines count, which are indented once; those
/// of its endpoints and sockets are deeper.
pub(super) fn printed(text: &str) -> Printed {
    let own = |key: &str| {
        text.lines()
            .filter_map(|line| line.strip_prefix('\t').filter(|line| !line.starts_with('\t')))
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))
    };
    Printed {
        state: own("state").unwrap_or("unknown").to_owned(),
        pid: own("pid").and_then(|pid| pid.parse().ok()),
        last_exit: own("last exit code").or_else(|| own("last terminating signal")).map(str::to_owned),
    }
}
