//! AppArmor profiles in this kernel.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use kina_guest_api::v1;

use crate::error::Error;

/// Where the kernel has its profiles.
const DIRECTORY: &str = "/sys/kernel/security/apparmor";
const FIELD: &str = "process.apparmor_profile";

/// Whether it confines, and says what is loaded.
pub(crate) fn enabled() -> bool {
    let on = fs::read("/sys/module/apparmor/parameters/enabled");
    on.is_ok_and(|on| on.starts_with(b"Y")) && Path::new(DIRECTORY).join("profiles").exists()
}

/// Sees to it that the profile of a process is there: loaded already, or by the policy
/// that comes with it.
pub(crate) fn provide(process: &v1::Process) -> Result<(), Error> {
    if process.apparmor_profile.is_empty() {
        return Ok(());
    }
    if !enabled() {
        return Err(Error::Unsupported {
            what: "an AppArmor profile (the kernel has none, or no securityfs)",
        });
    }
    provide_in(Path::new(DIRECTORY), &process.apparmor_profile, &process.apparmor_policy)
}

fn provide_in(directory: &Path, profile: &str, policy: &[u8]) -> Result<(), Error> {
    let profiles = directory.join("profiles");
    let read = || fs::read_to_string(&profiles).map_err(|source| Error::file("read", &profiles, source));
    if lists(&read()?, profile) {
        return Ok(());
    }
    if policy.is_empty() {
        let reason = format!(
            "AppArmor profile {profile:?} is not loaded in the kernel of this pod; load it there, with \
             apparmor_parser --replace, before the container is made"
        );
        return Err(Error::invalid(FIELD, reason));
    }
    load(&directory.join(".load"), policy)?;
    if lists(&read()?, profile) {
        return Ok(());
    }
    Err(Error::invalid(FIELD, format!("profile {profile:?} is not in the policy that came with it")))
}

/// Loads a compiled policy: the kernel wants it whole.
fn load(place: &PathBuf, policy: &[u8]) -> Result<(), Error> {
    let loaded = fs::OpenOptions::new().write(true).open(place).and_then(|mut file| file.write(policy));
    match loaded {
        Ok(count) if count == policy.len() => Ok(()),
        Ok(_) => {
            Err(Error::file("load AppArmor policy by", place, io::Error::from(io::ErrorKind::WriteZero)))
        }
        // Another container's creation was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(Error::file("load AppArmor policy by", place, source)),
    }
}

/// Whether the kernel's list has the profile: `name (mode)`, one a line.
fn lists(profiles: &str, name: &str) -> bool {
    profiles.lines().filter_map(|line| line.rsplit_once(" (")).any(|(known, _)| known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_whole() {
        let list =
            "/usr/bin/man (enforce)\nkina-default (complain)\na b (c) (enforce)\nchild//null-x (enforce)\n";
        for name in ["/usr/bin/man", "kina-default", "a b (c)"] {
            assert!(lists(list, name), "{name}");
        }
        for name in ["", "kina", "kina-default (complain)", "child", "a b"] {
            assert!(!lists(list, name), "{name}");
        }
    }

    /// A directory in which loading a policy writes it down and lists nothing.
    #[test]
    fn what_is_not_loaded_is_refused_or_loaded() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("profiles"), "there (enforce)\n").unwrap();
        fs::write(directory.path().join(".load"), "").unwrap();
        let provide = |name: &str, policy: &[u8]| provide_in(directory.path(), name, policy);
        provide("there", b"").unwrap();
        provide("there", b"policy").unwrap();
        assert_eq!(fs::read(directory.path().join(".load")).unwrap(), b"");
        let error = provide("mine", b"").unwrap_err().to_string();
        assert!(error.contains("\"mine\" is not loaded") && error.contains("apparmor_parser"), "{error}");
        let error = provide("mine", b"policy").unwrap_err().to_string();
        assert!(error.contains("not in the policy"), "{error}");
        assert_eq!(fs::read(directory.path().join(".load")).unwrap(), b"policy");
    }
}
