//! What the kernel's command line says to kina.

use std::time::Duration;

/// The port when the command line names none.
const DEFAULT_PORT: &str = "1024";

/// The words that begin with `kina.`; the rest is the kernel's.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// `kina.pod=ID`.
    pub(super) pod: String,
    /// `kina.vsock=PORT`.
    pub(super) port: Option<String>,
    /// `kina.share=TAG:PATH`, as often as there are shared directories.
    pub(super) shares: Vec<Mounted>,
    /// `kina.disk=DEVICE:PATH`, the pod's own disk.
    pub(super) disk: Option<Mounted>,
    /// `kina.program=PATH`: run that in place of the guest, with the guest's arguments.
    pub(super) program: Option<String>,
    /// `kina.probe`: say how the boot went, and switch off.
    pub(super) probe: bool,
}

/// A source and where it appears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) source: String,
    pub(super) at: String,
}

impl Options {
    pub(super) fn parse(line: &str) -> Self {
        let mut options = Self::default();
        for word in line.split_whitespace() {
            match word.split_once('=') {
                Some(("kina.pod", value)) => value.clone_into(&mut options.pod),
                Some(("kina.vsock", value)) => options.port = Some(value.to_owned()),
                Some(("kina.share", value)) => options.shares.extend(Mounted::parse(value)),
                Some(("kina.disk", value)) => options.disk = Mounted::parse(value),
                Some(("kina.program", value)) => options.program = Some(value.to_owned()),
                Some(_) => {}
                None => options.probe |= word == "kina.probe",
            }
        }
        options
    }

    /// The guest's arguments.
    pub(super) fn serve(&self) -> Vec<String> {
        let port = self.port.as_deref().unwrap_or(DEFAULT_PORT);
        let words = ["serve", "--pod", self.pod.as_str(), "--listen"];
        let mut arguments: Vec<String> = words.into_iter().map(str::to_owned).collect();
        arguments.push(format!("vsock:{port}"));
        arguments
    }
}

impl Mounted {
    /// Reads `SOURCE:PATH`.
    fn parse(value: &str) -> Option<Self> {
        let (source, at) = value.split_once(':')?;
        (!source.is_empty() && at.starts_with('/'))
            .then(|| Self { source: source.to_owned(), at: at.to_owned() })
    }
}

/// How long the machine has been on, its total memory and what of it is free or
/// can be freed, for people: `1.234 s on, 123456 of 234567 KiB available`, and what has
/// the rest, as far as the kernel (`/proc/meminfo`) and the guest (its `/proc/PID/status`)
/// tell: `; KiB: Slab 20000, ...; guest 3000`.
pub(super) fn report(uptime: Duration, meminfo: &str, guest: &str) -> String {
    let of = |text: &'_ str, name: &str| -> Option<String> {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.split_whitespace().next().map(str::to_owned)
    };
    let field = |name| of(meminfo, name).unwrap_or_else(|| "?".to_owned());
    let parts = ["SReclaimable", "SUnreclaim", "VmallocUsed", "KernelStack", "PageTables", "Percpu", "Shmem"];
    format!(
        "{}.{:03} s on, {} of {} KiB available; KiB: {}; guest {}",
        uptime.as_secs(),
        uptime.subsec_millis(),
        field("MemAvailable"),
        field("MemTotal"),
        parts.map(|name| format!("{name} {}", field(name))).join(", "),
        of(guest, "RssAnon").unwrap_or_else(|| "?".to_owned()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_read() {
        let options = Options::parse(
            "console=ttyS0 kina.pod=p1 kina.vsock=77 kina.share=layers:/share kina.share=v:/volumes \
             kina.disk=/dev/vda:/run/kina quiet kina.program=/share/init kina.probe\n",
        );
        let mounted = |source: &str, at: &str| Mounted { source: source.to_owned(), at: at.to_owned() };
        assert_eq!(options.shares, [mounted("layers", "/share"), mounted("v", "/volumes")]);
        assert_eq!(options.disk, Some(mounted("/dev/vda", "/run/kina")));
        assert_eq!(options.program.as_deref(), Some("/share/init"));
        assert!(options.probe);
        assert_eq!(options.serve().join(" "), "serve --pod p1 --listen vsock:77");
    }

    #[test]
    fn without_words_of_kina_the_defaults_hold() {
        let options = Options::parse("console=ttyS0 kina.share=nowhere kina.disk=:/x");
        assert_eq!(options, Options::default());
        assert_eq!(options.serve().last().map(String::as_str), Some("vsock:1024"));
    }

    #[test]
    fn the_report_is_of_total_and_available_memory() {
        let meminfo = "MemTotal:         219892 kB\nMemFree:   1 kB\nMemAvailable:     200000 kB\n";
        let meminfo = format!("{meminfo}SUnreclaim:  9000 kB\n");
        let text = report(Duration::from_millis(1234), &meminfo, "VmRSS:\t 7 kB\nRssAnon:\t 512 kB\n");
        assert!(text.starts_with("1.234 s on, 200000 of 219892 KiB available; KiB: "), "{text}");
        assert!(text.contains("SUnreclaim 9000, ") && text.ends_with("; guest 512"), "{text}");
    }
}
