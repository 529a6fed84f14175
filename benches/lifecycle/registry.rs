//! A registry on loopback that answers out of memory, so that a pull's time is
//! the puller's own.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result};

/// What is at a path.
pub(crate) struct Content {
    pub(crate) media_type: &'static str,
    pub(crate) digest: String,
    pub(crate) bytes: Vec<u8>,
}

/// Serves until the process ends.
pub(crate) fn serve(routes: HashMap<String, Content>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen for pulls")?;
    let address = listener.local_addr()?;
    let routes = Arc::new(routes);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let routes = Arc::clone(&routes);
            // A client that hangs up in the middle is its own affair.
            thread::spawn(move || drop(converse(&stream, &routes)));
        }
    });
    Ok(address)
}

/// Answers the requests of one connection, in order.
fn converse(stream: &TcpStream, routes: &HashMap<String, Content>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 && line != "\r\n" {
            line.clear();
        }
        let mut words = request.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default();
        match routes.get(path) {
            Some(content) => {
                write!(
                    writer,
                    "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n\r\n",
                    content.media_type,
                    content.bytes.len(),
                    content.digest
                )?;
                if method == "GET" {
                    writer.write_all(&content.bytes)?;
                }
            }
            None if path == "/v2/" => write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?,
            None => write!(writer, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
        }
    }
}
