//! The command line, parsed by hand: the guest stays small.

use std::path::PathBuf;

use crate::console::Console;

/// The commands, for people who typed something else.
pub(crate) const USAGE: &str = "\
usage: kina-guest serve --pod ID --listen unix:PATH|vsock:PORT [--cgroup PATH] [--log PATH] [--own-kernel]
       kina-guest entry --pod ID --listen unix:PATH
       kina-guest relay --to PATH
       kina-guest console --from PIPE --to FILE --limit BYTES [--user UID]
       kina-guest demo serve PORT | fetch URL [--every MILLISECONDS] | sleep
       kina-guest --version";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Serve(Serve),
    /// The first process of a virtual machine that has an init of its own.
    Entry(Entry),
    /// Carries standard input and output to a guest's socket.
    Relay(PathBuf),
    /// The first process of a pod's PID namespace.
    Pause,
    /// What is made from inside of the pod's user namespace.
    Inside,
    /// On the node: keeps the end of what a virtual machine says.
    Console(Console),
    Demo(Vec<String>),
    Version,
}

/// The options of `serve`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Serve {
    pub(crate) pod: String,
    pub(crate) listen: Listen,
    /// The pod's cgroup; the guest moves into its child `guest`.
    pub(crate) cgroup: Option<String>,
    pub(crate) log: Option<PathBuf>,
    /// Whether the kernel, and so its clock, is this guest's alone.
    pub(crate) own_kernel: bool,
}

/// The options of `entry`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) pod: String,
    /// Where the guest proper listens, as it is told.
    pub(crate) listen: String,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    Unix(PathBuf),
    Vsock(u32),
}

impl Listen {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("vsock", port)) => {
                port.parse().map(Self::Vsock).map_err(|_| format!("no vsock port: {port:?}"))
            }
            Some(_) | None => Err(format!("nowhere to listen: {text:?}")),
        }
    }
}

/// Parses everything after the program's name.
pub(crate) fn parse(arguments: &[String]) -> Result<Command, String> {
    let (command, rest) = arguments.split_first().ok_or("no command")?;
    match command.as_str() {
        "serve" => parse_serve(rest).map(Command::Serve),
        "entry" => parse_entry(rest).map(Command::Entry),
        "relay" => parse_relay(rest).map(Command::Relay),
        "pause" => Ok(Command::Pause),
        "inside" => Ok(Command::Inside),
        "console" => parse_console(rest).map(Command::Console),
        "demo" => Ok(Command::Demo(rest.to_vec())),
        "--version" => Ok(Command::Version),
        other => Err(format!("no such command: {other:?}")),
    }
}

fn parse_serve(arguments: &[String]) -> Result<Serve, String> {
    let (mut pod, mut listen, mut cgroup, mut log) = (None, None, None, None);
    let mut own_kernel = false;
    let mut rest = arguments.iter();
    while let Some(option) = rest.next() {
        if option == "--own-kernel" {
            own_kernel = true;
            continue;
        }
        let value = rest.next().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--pod" => pod = Some(value.clone()),
            "--listen" => listen = Some(Listen::parse(value)?),
            "--cgroup" => cgroup = Some(value.clone()),
            "--log" => log = Some(PathBuf::from(value)),
            other => return Err(format!("no such option: {other:?}")),
        }
    }
    Ok(Serve {
        pod: pod.ok_or("--pod is missing")?,
        listen: listen.ok_or("--listen is missing")?,
        cgroup,
        log,
        own_kernel,
    })
}

fn parse_entry(arguments: &[String]) -> Result<Entry, String> {
    let (mut pod, mut listen) = (None, None);
    let mut rest = arguments.iter();
    while let Some(option) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--pod" => pod = Some(value.clone()),
            "--listen" => {
                Listen::parse(value)?;
                listen = Some(value.clone());
            }
            other => return Err(format!("no such option: {other:?}")),
        }
    }
    Ok(Entry { pod: pod.ok_or("--pod is missing")?, listen: listen.ok_or("--listen is missing")? })
}

fn parse_relay(arguments: &[String]) -> Result<PathBuf, String> {
    match arguments {
        [option, path] if option == "--to" && path.starts_with('/') => Ok(path.into()),
        _ => Err("relay needs --to and an absolute path".to_owned()),
    }
}

fn parse_console(arguments: &[String]) -> Result<Console, String> {
    let (mut from, mut to, mut limit, mut user) = (None, None, None, None);
    let mut rest = arguments.iter();
    while let Some(option) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--from" => from = Some(PathBuf::from(value)),
            "--to" => to = Some(PathBuf::from(value)),
            "--limit" => limit = Some(value.parse().map_err(|_| format!("no number of bytes: {value:?}"))?),
            "--user" => user = Some(value.parse().map_err(|_| format!("no number of a user: {value:?}"))?),
            other => return Err(format!("no such option: {other:?}")),
        }
    }
    Ok(Console {
        from: from.ok_or("--from is missing")?,
        to: to.ok_or("--to is missing")?,
        limit: limit.ok_or("--limit is missing")?,
        user,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn serve_is_parsed() {
        let parsed = parse(&words("serve --pod p --listen unix:/s --cgroup /kina/p --log /l"));
        assert_eq!(
            parsed,
            Ok(Command::Serve(Serve {
                pod: "p".to_owned(),
                listen: Listen::Unix("/s".into()),
                cgroup: Some("/kina/p".to_owned()),
                log: Some("/l".into()),
                own_kernel: false,
            }))
        );
        let parsed = parse(&words("serve --own-kernel --pod p --listen unix:/s"));
        assert!(matches!(parsed, Ok(Command::Serve(Serve { own_kernel: true, .. }))), "{parsed:?}");
        let parsed = parse(&words("entry --pod p --listen unix:/s"));
        let entry = Entry { pod: "p".to_owned(), listen: "unix:/s".to_owned() };
        assert_eq!(parsed, Ok(Command::Entry(entry)));
        assert_eq!(parse(&words("relay --to /s")), Ok(Command::Relay("/s".into())));
        assert_eq!(Listen::parse("vsock:1024"), Ok(Listen::Vsock(1024)));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("", "command"),
            ("dance", "dance"),
            ("serve --listen unix:/s", "--pod"),
            ("serve --pod p", "--listen"),
            ("serve --pod", "--pod"),
            ("serve --pod p --listen tcp:1", "tcp:1"),
            ("serve --pod p --listen unix:relative", "relative"),
            ("serve --pod p --listen vsock:x", "x"),
            ("serve --pod p --what x", "--what"),
            ("entry --pod p", "--listen"),
            ("entry --listen unix:/s", "--pod"),
            ("entry --pod p --listen tcp:1", "tcp:1"),
            ("entry --pod p --what x", "--what"),
            ("relay", "--to"),
            ("relay --to relative", "absolute"),
            ("console --from /p --to /f", "--limit"),
            ("console --from /p --to /f --limit x", "x"),
        ] {
            let error = parse(&words(line)).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
