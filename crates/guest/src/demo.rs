//! A tiny HTTP server and client: the program inside the image that `kina demo`
//! makes. Standard library only.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// No request or answer is longer, in bytes.
const MESSAGE_LIMIT: u64 = 64 << 10;
const USAGE: &str = "usage: kina-guest demo serve PORT\n\
                     \x20      kina-guest demo fetch http://HOST:PORT/PATH [--every MILLISECONDS]\n\
                     \x20      kina-guest demo sleep";

/// Runs a demo command.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["serve", port] => match port.parse() {
            Ok(port) => serve(port),
            Err(_) => return usage(),
        },
        ["fetch", url] => fetch(url).and_then(|answer| say(&answer)),
        ["fetch", url, "--every", pause] => match pause.parse() {
            Ok(pause) => fetch_again_and_again(url, Duration::from_millis(pause)),
            Err(_) => return usage(),
        },
        ["sleep"] => loop {
            std::thread::park();
        },
        _ => return usage(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "{error}"));
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    drop(writeln!(io::stderr(), "{USAGE}"));
    ExitCode::from(2)
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", line.trim_end())?;
    out.flush()
}

fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    say(&format!("listening on {}", listener.local_addr()?))?;
    let mut count = 0_u64;
    loop {
        let (stream, peer) = listener.accept()?;
        count += 1;
        // One client's mistake is not the end of the server.
        match answer(stream, count) {
            Ok(request) => say(&format!("{count} {peer} {request}"))?,
            Err(error) => say(&format!("{count} {peer} {error}"))?,
        }
    }
}

/// Answers one request and returns its first line.
fn answer(stream: TcpStream, count: u64) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.take(MESSAGE_LIMIT));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let body = format!("hello {count} from {}\n", host_name());
    write!(
        reader.into_inner().into_inner(),
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(request.trim_end().to_owned())
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "nobody".to_owned(), |name| name.trim().to_owned())
}

fn fetch_again_and_again(url: &str, pause: Duration) -> io::Result<()> {
    loop {
        match fetch(url) {
            Ok(answer) => say(&answer)?,
            Err(error) => say(&format!("{url}: {error}"))?,
        }
        std::thread::sleep(pause);
    }
}

/// The body of the answer to a GET.
fn fetch(url: &str) -> io::Result<String> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
    let rest = url.strip_prefix("http://").ok_or_else(|| invalid("the URL must begin with http://"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MESSAGE_LIMIT).read_to_string(&mut answer)?;
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "that is no HTTP answer"))?;
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}/path", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || answer(listener.accept().unwrap().0, 7).unwrap());
        assert!(fetch(&url).unwrap().starts_with("hello 7 from "));
        assert_eq!(server.join().unwrap(), "GET /path HTTP/1.1");
        assert!(fetch("ftp://x").is_err());
    }
}
