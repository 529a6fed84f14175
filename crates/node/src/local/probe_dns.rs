//! One question to a name server (RFC 1035), over UDP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Asks for a name's addresses; what the server says, in a word. That a name
/// does not exist is an answer, too.
pub(crate) fn ask(server: SocketAddr, name: &str, patience: Duration) -> Result<String, String> {
    let query = query(name).ok_or_else(|| format!("{name:?} is no name that can be asked for"))?;
    let failed = |error: io::Error| error.to_string();
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).map_err(failed)?;
    socket.connect(server).map_err(failed)?;
    let deadline = Instant::now() + patience;
    socket.send(&query).map_err(failed)?;
    let mut buffer = [0; 1500];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("does not answer".to_owned());
        }
        socket.set_read_timeout(Some(left)).map_err(failed)?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                if let Some(answer) = answer(&buffer[..length], &query) {
                    return Ok(answer);
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err("nobody listens there".to_owned());
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

/// A recursive question for the address (type A) of a name.
fn query(name: &str) -> Option<Vec<u8>> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let [.., high, low] = now.subsec_nanos().to_be_bytes();
    let mut message = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        message.push(length);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    // A name has 255 bytes at most.
    (message.len() <= 12 + 255 + 4).then_some(message)
}

/// What an answer to that question says; `None` for anything else.
fn answer(message: &[u8], query: &[u8]) -> Option<String> {
    let header = message.get(..12)?;
    if header[..2] != query[..2] || header[2] & 0x80 == 0 {
        return None;
    }
    let records = u16::from_be_bytes([header[6], header[7]]);
    Some(match header[3] & 0x0f {
        0 => format!("NOERROR with {records} records"),
        1 => "FORMERR".to_owned(),
        2 => "SERVFAIL".to_owned(),
        3 => "NXDOMAIN".to_owned(),
        4 => "NOTIMP".to_owned(),
        5 => "REFUSED".to_owned(),
        code => format!("code {code}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let mut buffer = [0; 600];
            let (length, peer) = server.recv_from(&mut buffer).unwrap();
            // Something else first.
            server.send_to(b"noise", peer).unwrap();
            let mut answer = buffer[..length].to_vec();
            answer[2] |= 0x80;
            answer[3] |= 3;
            server.send_to(&answer, peer).unwrap();
        });
        assert_eq!(ask(address, "a.example.", Duration::from_secs(10)), Ok("NXDOMAIN".to_owned()));
        serving.join().unwrap();
        assert!(ask(address, "a.example", Duration::from_secs(1)).is_err());
        assert!(ask(address, "", Duration::from_secs(1)).unwrap_err().contains("no name"));
    }
}
