//! `kina-vsock`: the vsock device of one virtual machine. The crate's documentation
//! says how it is started and when it ends.

#![allow(clippy::print_stderr, reason = "a message for whoever keeps its standard error")]

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    match linux::serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("kina-vsock: {message}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("kina-vsock: serves QEMU on Linux only");
    ExitCode::FAILURE
}

#[cfg(target_os = "linux")]
mod linux {
    use std::path::PathBuf;

    use kina_vsock::{Config, Device};
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    const USAGE: &str =
        "usage: kina-vsock --vhost SOCKET --host SOCKET [--cid NUMBER] [--streams NUMBER] [--user NUMBER]";
    /// Descriptors that are no streams: rings, memory, listeners; with room to spare.
    const OTHER_DESCRIPTORS: u64 = 64;

    pub(super) fn serve() -> Result<(), String> {
        abort_on_panic();
        let (mut config, user) = arguments(std::env::args().skip(1))?;
        config.streams = config.streams.min(streams_possible());
        let device = Device::bind(&config).map_err(|error| chain(&error))?;
        // The device has no threads yet.
        kina_confine::confine(user).map_err(|error| chain(&error))?;
        device.run().map_err(|error| chain(&error))
    }

    fn chain(error: &dyn std::error::Error) -> String {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        message
    }

    /// A thread that panicked would leave a device that looks alive.
    fn abort_on_panic() {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |information| {
            print(information);
            std::process::abort();
        }));
    }

    fn arguments(mut arguments: impl Iterator<Item = String>) -> Result<(Config, Option<u32>), String> {
        let (mut vhost, mut host, mut user) = (None, None, None);
        let (mut guest_cid, mut streams) = (Config::GUEST_CID, Config::STREAMS);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value; {USAGE}"))?;
            let number = |error| format!("{name} {value:?}: {error}; {USAGE}");
            match name.as_str() {
                "--vhost" => vhost = Some(PathBuf::from(value)),
                "--host" => host = Some(PathBuf::from(value)),
                "--cid" => guest_cid = value.parse().map_err(number)?,
                "--user" => user = Some(value.parse().map_err(number)?),
                "--streams" => streams = value.parse().map_err(number)?,
                _ => return Err(format!("there is no {name}; {USAGE}")),
            }
        }
        if guest_cid < 3 {
            return Err(format!("--cid {guest_cid}: a guest's address is 3 or more"));
        }
        let (Some(vhost), Some(host)) = (vhost, host) else { return Err(USAGE.to_owned()) };
        Ok((Config { guest_cid, streams, ..Config::new(vhost, host) }, user))
    }

    /// As many descriptors as allowed, and how many streams that makes.
    fn streams_possible() -> usize {
        let limits = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, maximum: limits.maximum });
        match getrlimit(Resource::Nofile).current {
            Some(limit) => usize::try_from(limit.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(usize::MAX),
            None => usize::MAX,
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn parse(line: &str) -> Result<(Config, Option<u32>), String> {
            arguments(line.split_whitespace().map(str::to_owned))
        }

        #[test]
        fn arguments_are_what_they_say() {
            let line = "--vhost /a --host /b --cid 77 --streams 9 --user 5";
            let (config, user) = parse(line).unwrap();
            assert_eq!(user, Some(5));
            assert_eq!(config.vhost_socket, PathBuf::from("/a"));
            assert_eq!(config.host_socket, PathBuf::from("/b"));
            assert_eq!((config.guest_cid, config.streams), (77, 9));
            let (config, user) = parse("--vhost /a --host /b").unwrap();
            assert_eq!((config.streams, user), (1024, None));
            for (line, word) in [
                ("", "usage"),
                ("--vhost /a", "usage"),
                ("--vhost", "needs a value"),
                ("--vhost /a --host /b --cid 2", "3 or more"),
                ("--vhost /a --host /b --cid x", "--cid"),
                ("--port 1", "no --port"),
            ] {
                let message = parse(line).unwrap_err();
                assert!(message.contains(word), "{line:?}: {message}");
            }
        }
    }
}
