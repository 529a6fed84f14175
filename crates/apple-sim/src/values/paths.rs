//! `--masked-path`, `--read-only-path`, `--cap-add` and `--cap-drop`.

use std::str::FromStr;

use oci_spec::runtime::Capability;

use crate::error::Problem;

/// Hidden paths if nothing else is said (`LinuxContainer.defaultMaskedPaths`).
pub const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths that can only be read if nothing else is said (`LinuxContainer.defaultReadonlyPaths`).
pub const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The values of `--masked-path`.
///
/// # Errors
/// A path that is not absolute.
pub fn masked(given: &[String]) -> Result<Option<Vec<String>>, Problem> {
    overrides(given, &MASKED, "masked-path")
}

/// The values of `--read-only-path`.
///
/// # Errors
/// A path that is not absolute.
pub fn readonly(given: &[String]) -> Result<Option<Vec<String>>, Problem> {
    overrides(given, &READONLY, "read-only-path")
}

fn overrides(given: &[String], defaults: &[&str], flag: &str) -> Result<Option<Vec<String>>, Problem> {
    if given.is_empty() {
        return Ok(None);
    }
    let mut paths: Vec<String> = defaults.iter().map(|path| (*path).to_owned()).collect();
    for value in given {
        let path = value.trim();
        if path.eq_ignore_ascii_case("NONE") {
            paths.clear();
            continue;
        }
        if !path.starts_with('/') {
            return Err(Problem::invalid(format!(
                "invalid path '{value}' for --{flag}: path must be absolute, or the NONE sentinel"
            )));
        }
        let trimmed = path.trim_end_matches('/');
        let path = if trimmed.is_empty() { "/" } else { trimmed };
        if !paths.iter().any(|known| known == path) {
            paths.push(path.to_owned());
        }
    }
    Ok(Some(paths))
}

/// The values of `--cap-add` or `--cap-drop`: `ALL`, or `CAP_` and a name.
///
/// # Errors
/// A name that is not known.
pub fn capabilities(given: &[String]) -> Result<Vec<String>, Problem> {
    given
        .iter()
        .map(|name| {
            let upper = name.to_uppercase();
            if upper == "ALL" {
                return Ok(upper);
            }
            let full = if upper.starts_with("CAP_") { upper.clone() } else { format!("CAP_{upper}") };
            capability(&full).map(|_| full).map_err(|_| invalid_capability(&upper))
        })
        .collect()
}

/// A capability by its name with `CAP_`.
///
/// # Errors
/// A name that is not known.
pub fn capability(name: &str) -> Result<Capability, Problem> {
    let bare = name.strip_prefix("CAP_").unwrap_or(name);
    Capability::from_str(bare).map_err(|_| invalid_capability(name))
}

fn invalid_capability(name: &str) -> Problem {
    Problem::invalid(format!("unsupported capability: {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn none_clears_what_was_before_it() {
        assert_eq!(masked(&[]), Ok(None));
        assert_eq!(masked(&words("NONE")), Ok(Some(vec![])));
        assert_eq!(readonly(&words("/a/ none /b/ /b")), Ok(Some(words("/b"))));
        assert_eq!(readonly(&words("/x")).unwrap().unwrap().len(), READONLY.len() + 1);
        let message = masked(&words("x")).unwrap_err().message;
        assert_eq!(
            message,
            "invalid path 'x' for --masked-path: path must be absolute, or the NONE sentinel"
        );
    }

    #[test]
    fn capabilities_have_their_prefix() {
        assert_eq!(
            capabilities(&words("all net_admin CAP_BPF")).unwrap(),
            words("ALL CAP_NET_ADMIN CAP_BPF")
        );
        assert!(capabilities(&words("fly")).is_err());
    }
}
