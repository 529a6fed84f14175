//! Stands in for `kina-guest` in the driver's tests: takes its arguments,
//! listens where it is told, and sends back what it reads. The byte 4 makes it
//! exit, the byte 5 start a child that ignores being asked to end. It never
//! ends by itself otherwise.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1).cloned()
    };
    let (Some("serve"), Some(pod), Some(listen), Some(cgroup), Some(log)) = (
        args.first().map(String::as_str),
        value("--pod"),
        value("--listen"),
        value("--cgroup"),
        value("--log"),
    ) else {
        return ExitCode::from(2);
    };
    let Some(socket) = listen.strip_prefix("unix:") else { return ExitCode::from(2) };
    // Before it can be reached: who reaches it reads what it wrote.
    if std::fs::write(log, format!("{pod} {cgroup}\n")).is_err() {
        return ExitCode::from(4);
    }
    let Ok(listener) = UnixListener::bind(socket) else { return ExitCode::from(3) };
    for stream in listener.incoming().flatten() {
        thread::spawn(move || echo(stream));
    }
    ExitCode::from(5)
}

fn echo(mut stream: UnixStream) {
    let mut buffer = [0; 4096];
    while let Ok(length) = stream.read(&mut buffer) {
        let Some(read) = buffer.get(..length).filter(|read| !read.is_empty()) else { return };
        match read {
            [4] => exit(),
            [5] => {
                let child = Command::new("/bin/sh")
                    .args(["-c", "trap '' TERM HUP; while :; do sleep 1000; done"])
                    .stdin(Stdio::null())
                    .spawn();
                if child.is_err() {
                    return;
                }
            }
            _ => {}
        }
        if stream.write_all(read).is_err() {
            return;
        }
    }
}

#[allow(clippy::exit, reason = "the stand-in is asked to end from a thread of a stream")]
fn exit() {
    std::process::exit(0);
}
