//! `--publish` and `--publish-socket`.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::FileTypeExt;

use super::{absolute, swift_split};
use crate::error::Problem;
use crate::resources::{PublishedPort, PublishedSocket};

/// A value of `--publish-socket`. What is not a socket at the host's path is removed, and the
/// directories above it are made.
///
/// # Errors
/// A form that is not understood, or a socket that is there.
pub fn socket(text: &str) -> Result<PublishedSocket, Problem> {
    let parts = swift_split(text, ':', usize::MAX);
    let [host, guest] = parts.as_slice() else {
        return Err(Problem::invalid(format!(
            "invalid publish-socket format {text}. Expected: host_path:container_path"
        )));
    };
    let host = absolute(host);
    let shown = host.display();
    if let Ok(metadata) = fs::symlink_metadata(&host) {
        if metadata.file_type().is_socket() {
            let message = format!("host socket {shown} already exists and may be in use");
            return Err(Problem::invalid(message));
        }
        // What cannot be removed is found again when the socket is made.
        drop(fs::remove_file(&host));
    }
    if let Some(directory) = host.parent() {
        fs::create_dir_all(directory)?;
    }
    if !guest.starts_with('/') {
        return Err(Problem::invalid(format!("containerPath must be absolute: {guest}")));
    }
    Ok(PublishedSocket {
        container_path: (*guest).to_owned(),
        host_path: host.to_string_lossy().into_owned(),
    })
}

/// A value of `--publish`: `[ip:]host[-end]:guest[-end][/tcp|udp]`.
///
/// # Errors
/// A form that is not understood.
pub fn port(text: &str) -> Result<PublishedPort, Problem> {
    let wrong = || Problem::invalid(format!("invalid publish value: {text}"));
    let (rest, proto) = match text.rsplit_once('/') {
        Some((rest, proto)) => (rest, proto.to_lowercase()),
        None => (text, "tcp".to_owned()),
    };
    if proto != "tcp" && proto != "udp" {
        return Err(Problem::invalid(format!("invalid publish protocol: {proto}")));
    }
    let (rest, guest) = rest.rsplit_once(':').ok_or_else(wrong)?;
    let (address, host) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (address, host) = bracketed.split_once("]:").ok_or_else(wrong)?;
            let valid = address.is_empty() || address.parse::<Ipv6Addr>().is_ok();
            if !valid {
                return Err(Problem::invalid(format!("invalid publish IPv6 address: {text}")));
            }
            (address, host)
        }
        None => match rest.rsplit_once(':') {
            Some((address, host)) => {
                if address.parse::<Ipv4Addr>().is_err() {
                    return Err(Problem::invalid(format!("invalid publish IPv4 address: {text}")));
                }
                (address, host)
            }
            None => ("", rest),
        },
    };
    if host.is_empty() {
        return Err(wrong());
    }
    let (host_first, host_last) = range(host, "host")?;
    let (guest_first, guest_last) = range(guest, "container")?;
    for (which, given, (first, last)) in
        [("host", host, (host_first, host_last)), ("container", guest, (guest_first, guest_last))]
    {
        if first <= 1 || first > last {
            return Err(Problem::invalid(format!("invalid publish {which} port range: {given}")));
        }
    }
    let count = host_last - host_first + 1;
    if count != guest_last - guest_first + 1 {
        return Err(Problem::invalid(format!(
            "publish host and container port counts are not equal: {host}:{guest}"
        )));
    }
    Ok(PublishedPort {
        host_address: if address.is_empty() { "0.0.0.0" } else { address }.to_owned(),
        host_port: host_first,
        container_port: guest_first,
        proto,
        count,
    })
}

fn range(text: &str, which: &str) -> Result<(u16, u16), Problem> {
    let wrong = || Problem::invalid(format!("invalid publish {which} port: {text}"));
    let number = |part: &str| part.parse::<u16>().map_err(|_| wrong());
    match swift_split(text, '-', usize::MAX).as_slice() {
        [one] => Ok((number(one)?, number(one)?)),
        [first, last] => Ok((number(first)?, number(last)?)),
        _ => Err(wrong()),
    }
}

/// Whether two of them want the same port of the host.
#[must_use]
pub fn overlap(ports: &[PublishedPort]) -> bool {
    let mut taken = BTreeSet::new();
    ports.iter().any(|port| {
        (0..port.count).any(|offset| !taken.insert((port.host_port.wrapping_add(offset), port.proto.clone())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_come_in_ranges() {
        let parsed = port("127.0.0.1:8000-8001:80-81/UDP").unwrap();
        assert_eq!((parsed.host_address.as_str(), parsed.host_port, parsed.count), ("127.0.0.1", 8000, 2));
        assert_eq!((parsed.container_port, parsed.proto.as_str()), (80, "udp"));
        assert_eq!(port("[::1]:80:80").unwrap().host_address, "::1");
        for (text, expected) in [
            ("80", "invalid publish value: 80"),
            ("0:80", "invalid publish host port range: 0"),
            ("1:80", "invalid publish host port range: 1"),
            ("80:1", "invalid publish container port range: 1"),
            ("80:x", "invalid publish container port: x"),
            ("80-82:80-81", "publish host and container port counts are not equal: 80-82:80-81"),
            ("x:80:80", "invalid publish IPv4 address: x:80:80"),
            ("80:80/sctp", "invalid publish protocol: sctp"),
        ] {
            assert_eq!(port(text).unwrap_err().message, expected);
        }
        assert!(overlap(&[port("80-82:80-82").unwrap(), port("82:1000").unwrap()]));
        assert!(!overlap(&[port("80:80").unwrap(), port("80:80/udp").unwrap()]));
    }

    #[test]
    fn a_socket_in_the_way_is_refused_and_a_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/s");
        let text = format!("{}:/a.sock", path.display());
        let parsed = socket(&text).unwrap();
        assert_eq!(parsed.container_path, "/a.sock");
        fs::write(&path, "").unwrap();
        socket(&text).unwrap();
        assert!(!path.exists());
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let message = socket(&text).unwrap_err().message;
        assert_eq!(message, format!("host socket {} already exists and may be in use", path.display()));
        // Empty parts are dropped.
        fs::remove_file(&path).unwrap();
        assert!(socket(&format!(":{text}:")).is_ok());
        assert!(socket("/a").is_err() && socket("/a:/b:/c").is_err());
    }
}
