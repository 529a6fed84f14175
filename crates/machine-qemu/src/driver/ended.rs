//! Why a machine has ended, from what can still be seen of it. Pure.

use kina_node::ExitStatus;

/// Longest reason that the machine itself had a say in, in bytes.
const LIMIT: usize = 200;

const GUEST_ENDED: &str = "its guest has ended";

/// What is left of a machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Remains {
    /// A process beside QEMU that ended first.
    pub(super) helper: Option<&'static str>,
    /// How QEMU ended, where that is known.
    pub(super) status: Option<ExitStatus>,
    /// How many of its processes the node has killed for lack of memory.
    pub(super) out_of_memory: u64,
    /// The end of its console. The guest wrote it.
    pub(super) console: Vec<u8>,
}

/// The reason, as a sentence without an end. What the node knows goes before
/// what the guest says.
pub(super) fn reason(remains: &Remains) -> String {
    if remains.out_of_memory > 0 {
        return "out of memory on the node: its kernel killed the machine".to_owned();
    }
    if let Some(helper) = remains.helper {
        return format!("its process {helper} has ended, without which it cannot go on");
    }
    if let Some(ExitStatus::Signal(signal)) = remains.status {
        return format!("QEMU was killed by signal {signal}");
    }
    let console = String::from_utf8_lossy(&remains.console);
    if let Some(panic) = kernel_panic(&console) {
        return format!("its kernel panicked: {}", printable(panic));
    }
    match remains.status {
        Some(ExitStatus::Code(code)) if code != 0 => {
            let last = console.lines().rev().find(|line| line.contains("qemu-system")).unwrap_or_default();
            let words = last.split_once(": ").map_or(last, |(_, words)| words);
            let words = if words.is_empty() { String::new() } else { format!(": {}", printable(words)) };
            format!("QEMU ended with status {code}{words}")
        }
        Some(ExitStatus::Code(_) | ExitStatus::Signal(_)) => guest_ended(&console),
        None if switched_off(&console) => guest_ended(&console),
        // Another daemon has started it, and its parent is told how it ended.
        None => "it has ended".to_owned(),
    }
}

/// That the guest has ended, and how where it did not end by itself: the machine's first
/// process says so last.
fn guest_ended(console: &str) -> String {
    const MARK: &str = "kina-guest: the guest has ended: ";
    let status = console.lines().rev().find_map(|line| Some(line.split_once(MARK)?.1));
    match status.map(printable) {
        Some(status) if status != "exit status: 0" => format!("{GUEST_ENDED}: {status}"),
        Some(_) | None => GUEST_ENDED.to_owned(),
    }
}

/// The words of the last panic on a console.
fn kernel_panic(console: &str) -> Option<&str> {
    const MARK: &str = "Kernel panic - not syncing: ";
    let line =
        console.lines().rev().find(|line| line.contains(MARK) && !line.contains("end Kernel panic"))?;
    line.split_once(MARK).map(|(_, words)| words)
}

/// Whether the kernel's last words are that it was told to end.
fn switched_off(console: &str) -> bool {
    let last = console.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    ["reboot: Power down", "reboot: System halted", "reboot: Restarting system"]
        .iter()
        .any(|words| last.trim_end().ends_with(words))
}

/// What may go to a terminal.
fn printable(words: &str) -> String {
    let mut text: String =
        words.chars().filter(|character| character.is_ascii_graphic() || *character == ' ').collect();
    text.truncate(LIMIT);
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_knows_goes_first() {
        let panic = b"[    1.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x9\x1b[2J\n\
            [    1.1] ---[ end Kernel panic - not syncing: Attempted to kill init! ]---\n";
        let all = Remains {
            helper: Some("virtiofsd"),
            status: Some(ExitStatus::Signal(9)),
            out_of_memory: 1,
            console: panic.to_vec(),
        };
        assert!(reason(&all).starts_with("out of memory"));
        let helper = Remains { out_of_memory: 0, ..all };
        assert!(reason(&helper).contains("virtiofsd"));
        let killed = Remains { helper: None, ..helper };
        assert_eq!(reason(&killed), "QEMU was killed by signal 9");
        let ended = Remains { status: Some(ExitStatus::Code(0)), ..killed };
        assert_eq!(reason(&ended), "its kernel panicked: Attempted to kill init! exitcode=0x9[2J");
        let clean = Remains { console: Vec::new(), ..ended };
        assert_eq!(reason(&clean), "its guest has ended");
        let unknown = Remains { status: None, ..clean };
        assert_eq!(reason(&unknown), "it has ended");
        let off = b"[    9.0] reboot: Power down\r\n".to_vec();
        assert_eq!(reason(&Remains { console: off, ..unknown.clone() }), "its guest has ended");
        let killed =
            b"kina-guest: the guest has ended: signal: 9 (SIGKILL)\r\n[    9.0] reboot: Power down\r\n";
        let killed = Remains { console: killed.to_vec(), ..unknown.clone() };
        assert_eq!(reason(&killed), "its guest has ended: signal: 9 (SIGKILL)");
        let asked =
            b"kina-guest: the guest has ended: exit status: 0\n[    9.0] reboot: Power down\n".to_vec();
        assert_eq!(reason(&Remains { console: asked, ..unknown.clone() }), "its guest has ended");
        let earlier = b"[    9.0] reboot: Power down\r\nmore\n".to_vec();
        assert_eq!(reason(&Remains { console: earlier, ..unknown }), "it has ended");
    }

    #[test]
    fn qemus_own_words_are_told_in_bounds() {
        let words = "x".repeat(1000);
        let console = format!("qemu-system-x86_64: -netdev tap: {words}\n").into_bytes();
        let failed = Remains { status: Some(ExitStatus::Code(1)), console, ..Remains::default() };
        let told = reason(&failed);
        assert!(told.starts_with("QEMU ended with status 1: -netdev tap: xxx") && told.len() < 300, "{told}");
    }
}
