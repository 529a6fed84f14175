//! Signals to processes, and how they end.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::error::Problem;

/// Waits for a child.
pub(super) fn exit_code(pidfd: &OwnedFd) -> i32 {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                let signalled = || status.terminating_signal().map(|signal| 128 + signal);
                return status.exit_status().or_else(signalled).unwrap_or(-1);
            }
            Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(_) => return -1,
        }
    }
}

/// A signal by its number, or by its name with or without `SIG`.
pub(super) fn parse_signal(text: &str) -> Result<Signal, Problem> {
    use std::str::FromStr;
    let upper = text.to_uppercase();
    let full = if upper.starts_with("SIG") { upper.clone() } else { format!("SIG{upper}") };
    let number = match text.parse::<i32>() {
        Ok(number) => Some(number),
        Err(_) => nix::sys::signal::Signal::from_str(&full).ok().map(|signal| signal as i32),
    };
    number.and_then(Signal::from_named_raw).ok_or_else(|| Problem::invalid(format!("invalid signal: {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["9", "KILL", "sigkill", "SIGKILL"] {
            assert_eq!(parse_signal(text).unwrap(), Signal::KILL);
        }
        assert!(parse_signal("DANCE").is_err() && parse_signal("0").is_err());
    }
}
