//! Processes that an earlier daemon has left, found by their environment.

use std::fs;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::process;
use crate::Error;

/// How often it is looked again whether they have ended.
const PAUSE: Duration = Duration::from_millis(5);

/// Kills every process that has an entry of the environment which is `wanted`,
/// and waits until none is left. Blocks.
pub(crate) fn kill(wanted: impl Fn(&str) -> bool, deadline: Duration) -> Result<usize, Error> {
    let begun = Instant::now();
    let mut killed = 0;
    loop {
        let strays = find(&wanted)?;
        let Some(first) = strays.first() else { return Ok(killed) };
        if begun.elapsed() > deadline {
            return Err(Error::Process {
                operation: "wait for the end of",
                pid: *first,
                source: std::io::ErrorKind::TimedOut.into(),
            });
        }
        for pid in &strays {
            let number = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            match number.map(|number| rustix::process::kill_process(number, Signal::KILL)) {
                Some(Ok(())) => killed += 1,
                None | Some(Err(Errno::SRCH)) => {}
                Some(Err(source)) => {
                    return Err(Error::Process { operation: "kill", pid: *pid, source: source.into() });
                }
            }
        }
        // A child may have been forked meanwhile: looked for again.
        std::thread::sleep(PAUSE);
    }
}

/// Living processes with such an entry.
fn find(wanted: &impl Fn(&str) -> bool) -> Result<Vec<u32>, Error> {
    let own = std::process::id();
    let directory = std::path::Path::new("/proc");
    let entries = fs::read_dir(directory).map_err(|source| Error::io("list", directory, source))?;
    let mut found = Vec::new();
    for name in entries.flatten().map(|entry| entry.file_name()) {
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that has ended meanwhile cannot be read; neither can a kernel thread.
        let Ok(environment) = fs::read(directory.join(&name).join("environ")) else { continue };
        let mut entries =
            environment.split(|byte| *byte == 0).filter_map(|one| std::str::from_utf8(one).ok());
        let has = entries.any(wanted);
        if has
            && pid != own
            && process::identity(pid)?.is_some_and(|one| process::lives(one).unwrap_or(false))
        {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_those_with_the_entry_are_killed() {
        let entry = format!("KINA_STRAY=/of/{}/", std::process::id());
        let (name, value) = entry.split_once('=').unwrap();
        let start = |value: &str| Command::new("sleep").arg("1000").env(name, value).spawn().unwrap();
        let mut stray = start(&format!("{value}one"));
        let mut other = start("/of/none");
        assert_eq!(kill(|one| one.starts_with(&entry), Duration::from_secs(10)).unwrap(), 1);
        assert_eq!(stray.wait().unwrap().signal(), Some(9));
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(kill(|one| one.starts_with(&entry), Duration::from_secs(10)).unwrap(), 0);
    }
}
