//! The kernel's command line: what the kernel is told, and what the guest is.

use super::clock;
use crate::{Accelerator, Error};

/// What the kernel reads of it (`COMMAND_LINE_SIZE` of x86 and arm64).
const LIMIT: usize = 2047;

/// Words for every machine.
const ALWAYS: &[&str] = &[
    "console=ttyS0",
    // A kernel that panicked switches off: the pod has failed, and the console says why.
    "panic=-1",
    // Only what is wrong: each character costs a trip out of the machine.
    "quiet",
    // The kernel's own tests of its ciphers: the distribution has run them.
    "cryptomgr.notests",
    // Mounts and modules wait for grace periods, which nobody else cares for at boot.
    "rcupdate.rcu_expedited=1",
    // A machine has none.
    "i8042.noaux",
    "i8042.nokbd",
];
/// Words for emulated processors.
const EMULATED: &[&str] = &[
    // With the counter's frequency given: see `build`.
    "no_timer_check",
    // Emulated processors do not speculate: against them, the measures only cost.
    // What the host's processor speculates in QEMU is the host's to guard.
    "mitigations=off",
];

/// Builds a kernel's command line.
#[derive(Clone, Debug)]
pub struct CommandLine {
    words: Vec<String>,
}

impl CommandLine {
    /// With what the kernel needs on that accelerator. Takes 20 ms for
    /// [`Accelerator::Tcg`]: a clock is measured.
    pub fn new(accelerator: Accelerator) -> Self {
        let mut words: Vec<String> = ALWAYS.iter().map(|word| (*word).to_owned()).collect();
        match accelerator {
            Accelerator::Kvm => {}
            Accelerator::Tcg => {
                words.extend(EMULATED.iter().map(|word| (*word).to_owned()));
                // Against the emulated timer the kernel measures the counter in
                // vain now and then, and hangs. It is the host's own.
                words.extend(clock::counter_khz().map(|khz| format!("tsc_early_khz={khz}")));
            }
        }
        Self { words }
    }

    /// The pod whose machine it is.
    #[must_use]
    pub fn pod(self, id: &str) -> Self {
        self.word(format!("kina.pod={id}"))
    }

    /// The vsock port that the guest listens on.
    #[must_use]
    pub fn port(self, port: u32) -> Self {
        self.word(format!("kina.vsock={port}"))
    }

    /// Mounts the virtiofs device with that tag at that absolute path before the
    /// guest serves; for each device once. A machine that cannot switches off.
    #[must_use]
    pub fn share(self, tag: &str, at: &str) -> Self {
        self.word(format!("kina.share={tag}:{at}"))
    }

    /// Mounts the ext4 file system on that device (`/dev/vda`) at that absolute
    /// path before the guest serves. A machine that cannot switches off.
    #[must_use]
    pub fn disk(self, device: &str, at: &str) -> Self {
        self.word(format!("kina.disk={device}:{at}"))
    }

    /// Runs that program, absolute in the machine, in place of the guest and with its
    /// arguments: one of a share, once that is mounted. For development.
    #[must_use]
    pub fn program(self, path: &str) -> Self {
        self.word(format!("kina.program={path}"))
    }

    /// Says on the console how the boot went once the guest listens, and
    /// switches off.
    #[must_use]
    pub fn probe(self) -> Self {
        self.word("kina.probe".to_owned())
    }

    /// The kernel tells everything that it does.
    #[must_use]
    pub fn verbose(mut self) -> Self {
        self.words.retain(|word| word != "quiet");
        self
    }

    fn word(mut self, word: String) -> Self {
        self.words.push(word);
        self
    }

    /// The line.
    ///
    /// # Errors
    /// When a value has characters that the kernel takes for the end of a word,
    /// or the line is longer than kernels read.
    pub fn build(&self) -> Result<String, Error> {
        let odd = |character: char| character.is_whitespace() || character.is_control() || character == '"';
        if let Some(word) = self.words.iter().find(|word| word.contains(odd)) {
            return Err(Error::CommandLineWord { word: word.clone() });
        }
        let line = self.words.join(" ");
        if line.len() > LIMIT {
            return Err(Error::CommandLineLength { length: line.len(), limit: LIMIT });
        }
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_told_what_it_needs() {
        let line = CommandLine::new(Accelerator::Kvm)
            .pod("p1")
            .port(1024)
            .share("layers", "/share")
            .share("volumes", "/volumes")
            .disk("/dev/vda", "/run/kina")
            .program("/share/init")
            .build()
            .unwrap();
        let words = "kina.pod=p1 kina.vsock=1024 kina.share=layers:/share kina.share=volumes:/volumes \
                     kina.disk=/dev/vda:/run/kina kina.program=/share/init";
        assert!(line.starts_with("console=ttyS0 ") && line.ends_with(words), "{line}");
        assert!(!line.contains("tsc_early_khz") && !line.contains("mitigations"), "{line}");
    }

    #[test]
    fn emulated_processors_are_told_their_frequency() {
        let line = CommandLine::new(Accelerator::Tcg).verbose().probe().build().unwrap();
        assert_eq!(line.contains(" tsc_early_khz="), cfg!(target_arch = "x86_64"), "{line}");
        assert!(line.contains("no_timer_check") && !line.contains("quiet"), "{line}");
        assert!(line.ends_with(" kina.probe"), "{line}");
    }

    #[test]
    fn values_cannot_become_words() {
        for value in ["a b", "a\nb", "a\"b", "a\tinit=/bin/sh"] {
            let error = CommandLine::new(Accelerator::Kvm).pod(value).build().unwrap_err();
            assert!(matches!(error, Error::CommandLineWord { .. }), "{error}");
        }
        let long = "x".repeat(LIMIT);
        let error = CommandLine::new(Accelerator::Kvm).share("a", &long).build().unwrap_err();
        assert!(matches!(error, Error::CommandLineLength { .. }), "{error}");
    }
}
