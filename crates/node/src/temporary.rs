//! The names of files that are being written.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long ago a temporary file of [`Node::write_file`](crate::Node::write_file)
/// was begun, by its name, `.NAME.PROCESS.TIME.NUMBER`; `None` for any other file.
/// Writing takes moments: an old one is left of a process that was killed.
#[must_use]
pub fn temporary_age(name: &str) -> Option<Duration> {
    let mut parts = name.strip_prefix('.')?.rsplitn(4, '.');
    let (number, time, process) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let nanos = [number, time, process].into_iter().all(whole).then(|| time.parse::<u64>().ok())??;
    parts.next().filter(|name| !name.is_empty())?;
    let begun = UNIX_EPOCH + Duration::from_nanos(nanos);
    // The clock may have been set back.
    Some(SystemTime::now().duration_since(begun).unwrap_or_default())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use super::*;

    const DIRECTORY: &str = "KINA_TEST_WRITE_INTO";

    #[test]
    fn only_own_names_have_an_age() {
        let minute = Duration::from_secs(60);
        assert!(temporary_age(".a-b-eth0.12.1000000000000000000.0").unwrap() > minute);
        assert_eq!(temporary_age(".a.12.9000000000000000000.0"), Some(Duration::ZERO));
        for other in [
            "",
            ".",
            "a.1.2.3",
            ".1.2.3",
            "..1.2.3",
            ".a.1.2",
            ".a.1.2.x",
            ".a.-1.2.3",
            ".a.1.+2.3",
            ".a.1.99999999999999999999.3",
            ".a..2.3",
            ".a.swp",
        ] {
            assert_eq!(temporary_age(other), None, "{other}");
        }
    }

    /// The other process of the test below: writes until it is killed.
    #[test]
    fn writer() {
        let Some(directory) = std::env::var_os(DIRECTORY) else { return };
        let content = vec![1; 16 << 20];
        loop {
            crate::files::write_file(&Path::new(&directory).join("file"), &content, 0o600).unwrap();
        }
    }

    #[test]
    fn what_a_killed_process_leaves_is_known_by_its_name() {
        let deadline = Instant::now() + Duration::from_secs(60);
        let directory = tempfile::tempdir().unwrap();
        let left = || {
            let entries = std::fs::read_dir(directory.path()).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name != "file").collect::<Vec<_>>()
        };
        // Killed between rename and the next file nothing is left.
        while left().is_empty() {
            assert!(Instant::now() < deadline, "the writer leaves nothing");
            let mut writer = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "temporary::tests::writer"])
                .env(DIRECTORY, directory.path())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            while left().is_empty() && Instant::now() < deadline {
                std::thread::yield_now();
            }
            writer.kill().unwrap();
            writer.wait().unwrap();
        }
        let left = left();
        assert_eq!(left.len(), 1, "{left:?}");
        let age = temporary_age(&left[0]).unwrap();
        assert!(age < Duration::from_secs(60), "{left:?}");
    }
}
