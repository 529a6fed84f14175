//! Signals by their Linux numbers and names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::SpecError;

/// A Linux signal, 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signal(u8);

/// Signals 1 to 31 as on x86-64 and arm64 (signal(7)).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Other names of the same signals.
const ALIASES: [(&str, u8); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];

/// First and last real-time signal as programs on glibc see them.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

impl Signal {
    /// Asks a process to end.
    pub const TERM: Self = Self(15);
    /// Ends it.
    pub const KILL: Self = Self(9);

    /// The number.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// A signal by its number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        (1..=RTMAX).contains(&number).then_some(Self(number))
    }
}

impl FromStr for Signal {
    type Err = SpecError;

    /// Takes `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `RTMAX-2`, in any case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse =
            || SpecError::invalid("stop_signal", format!("{text:?} is no Linux signal; write SIGTERM or 15"));
        if let Ok(number) = text.parse::<u8>() {
            return Self::from_number(number).ok_or_else(refuse);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(index) = NAMES.iter().position(|known| *known == name) {
            return Ok(Self(index as u8 + 1));
        }
        if let Some((_, number)) = ALIASES.iter().find(|(alias, _)| *alias == name) {
            return Ok(Self(*number));
        }
        let real_time = if let Some(rest) = name.strip_prefix("RTMIN") {
            match rest.strip_prefix('+') {
                Some(offset) => offset.parse::<u8>().ok().and_then(|offset| RTMIN.checked_add(offset)),
                None => rest.is_empty().then_some(RTMIN),
            }
        } else if let Some(rest) = name.strip_prefix("RTMAX") {
            match rest.strip_prefix('-') {
                Some(offset) => offset.parse::<u8>().ok().and_then(|offset| RTMAX.checked_sub(offset)),
                None => rest.is_empty().then_some(RTMAX),
            }
        } else {
            None
        };
        match real_time {
            Some(number) if (RTMIN..=RTMAX).contains(&number) => Ok(Self(number)),
            _ => Err(refuse()),
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            number @ 1..=31 => write!(formatter, "SIG{}", NAMES[usize::from(number) - 1]),
            RTMIN => formatter.write_str("SIGRTMIN"),
            number if number > RTMIN => write!(formatter, "SIGRTMIN+{}", number - RTMIN),
            number => write!(formatter, "{number}"),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl TryFrom<String> for Signal {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Signal> for String {
    fn from(signal: Signal) -> Self {
        signal.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-2", 62),
            ("SIGCLD", 17),
            ("SIGSYS", 31),
        ] {
            assert_eq!(text.parse::<Signal>().unwrap().number(), number, "{text}");
        }
        for bad in ["", "0", "65", "SIGFOO", "RTMIN+40", "RTMAX-40", "-1"] {
            assert!(bad.parse::<Signal>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_signal_reads_back() {
        for number in 1..=RTMAX {
            let signal = Signal::from_number(number).unwrap();
            assert_eq!(signal.to_string().parse::<Signal>().unwrap(), signal);
        }
    }
}
