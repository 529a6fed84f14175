//! Why a machine has ended, from its last words.

/// The reason when nothing is known but that it has.
const UNKNOWN: &str = "its machine has ended";

/// What the guest's first process says last.
const GUEST_ENDED: &str = "kina-guest: the guest has ended: ";

const PANIC: &str = "Kernel panic - not syncing: ";
const LONGEST: usize = 200;

/// Reads it out of the words of kernel and guest.
pub(super) fn reason(words: &[u8]) -> String {
    let words = String::from_utf8_lossy(words);
    let after = |mark: &str| {
        let line = words.lines().rev().find_map(|line| Some(line.split_once(mark)?.1))?;
        Some(line.trim().chars().filter(|char| !char.is_control()).take(LONGEST).collect::<String>())
    };
    if let Some(panic) = after(PANIC) {
        return format!("its kernel panicked: {panic}");
    }
    match after(GUEST_ENDED).as_deref() {
        Some("exit status: 0") => "its guest has ended".to_owned(),
        Some(status) => format!("its guest has ended: {status}"),
        None => UNKNOWN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_last_words() {
        for (words, expected) in [
            ("", UNKNOWN),
            ("booting\nkina-guest: the guest has ended: exit status: 0\n", "its guest has ended"),
            (
                "kina-guest: the guest has ended: signal: 9 (SIGKILL)\n",
                "its guest has ended: signal: 9 (SIGKILL)",
            ),
            (
                "[    1.0] Kernel panic - not syncing: Attempted to kill init!\r\nmore\n",
                "its kernel panicked: Attempted to kill init!",
            ),
        ] {
            assert_eq!(reason(words.as_bytes()), expected);
        }
        let hostile = format!("{GUEST_ENDED}\x1b[2J{}", "x".repeat(5000));
        assert!(reason(hostile.as_bytes()).len() < 300);
    }
}
