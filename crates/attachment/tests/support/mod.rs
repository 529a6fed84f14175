//! Network namespaces for tests. They have no names, so nothing has to be cleaned up:
//! they go with the file descriptors that hold them.

#![allow(dead_code, reason = "each test uses its own part")]
#![allow(unreachable_pub, reason = "the tests' own crate")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "this is part of tests")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use kina_attachment::Namespace;
use rustix::thread::{UnshareFlags, unshare_unsafe};

pub mod bpf;
pub mod rig;

pub const PATIENCE: Duration = Duration::from_secs(10);

/// A namespace of the test's own, with loopback up.
pub struct Net {
    file: File,
    pub namespace: Namespace,
}

impl Net {
    pub fn new() -> Self {
        let (sender, receiver) = sync_channel(1);
        thread::spawn(move || {
            unshare(UnshareFlags::NEWNET);
            sender.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
        });
        let file = receiver.recv().unwrap();
        let namespace = Namespace::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        let net = Self { file, namespace };
        net.ip("link set lo up");
        // Tests wait for nothing: addresses are good at once.
        net.sysctl("ipv6/conf/all/accept_dad", "0");
        net.sysctl("ipv6/conf/default/accept_dad", "0");
        net
    }

    /// The namespace's path for other processes.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs something in the namespace, on a thread of its own.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let file = self.file.try_clone().unwrap();
        let inside = thread::spawn(move || {
            use std::os::fd::AsFd;
            rustix::thread::move_into_link_name_space(
                file.as_fd(),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            work()
        });
        inside.join().unwrap()
    }

    /// `ip`, the oracle and the toolbox: its output, or a panic with its complaint.
    pub fn ip(&self, arguments: &str) -> String {
        self.command("ip", arguments).unwrap_or_else(|complaint| panic!("ip {arguments}: {complaint}"))
    }

    pub fn command(&self, program: &'static str, arguments: &str) -> Result<String, String> {
        let words: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        let output = self.run(move || Command::new(program).args(words).output()).unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    pub fn sysctl(&self, name: &str, value: &'static str) {
        let path = format!("/proc/sys/net/{name}");
        self.run(move || std::fs::write(path, value).unwrap());
    }

    /// A veth pair from here to `other`, both ends up.
    pub fn veth(&self, name: &str, other: &Net, peer: &str, mtu: u32) {
        let path = other.path();
        self.ip(&format!("link add {name} mtu {mtu} type veth peer name {peer} mtu {mtu} netns {path}"));
        self.ip(&format!("link set {name} up"));
        other.ip(&format!("link set {peer} up"));
    }

    pub fn udp(&self, address: IpAddr) -> UdpSocket {
        let socket = self.run(move || UdpSocket::bind((address, 0)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Answers every datagram with itself, until one is empty or the test ends.
    pub fn echo(&self, address: IpAddr) -> SocketAddr {
        let socket = self.udp(address);
        let local = socket.local_addr().unwrap();
        socket.set_read_timeout(None).unwrap();
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, from)) = receive(&socket, &mut buffer) {
                if length == 0 || socket.send_to(&buffer[..length], from).is_err() {
                    return;
                }
            }
        });
        local
    }

    /// Bytes sent over TCP to `to` in another namespace arrive as they were.
    pub fn transfer(&self, other: &Net, to: IpAddr, bytes: usize) {
        let listener = other.run(move || TcpListener::bind((to, 0)).unwrap());
        let target = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut seen = 0;
            let mut sum = Sum::default();
            let mut buffer = vec![0; 65_536];
            while seen < bytes {
                let length = uninterrupted(|| stream.read(&mut buffer)).unwrap();
                assert!(length > 0, "ended after {seen} of {bytes} bytes");
                sum.add(&buffer[..length]);
                seen += length;
            }
            stream.write_all(&sum.0.to_be_bytes()).unwrap();
        });
        let mut stream = self.run(move || TcpStream::connect_timeout(&target, PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let data: Vec<u8> =
            (0..bytes).map(|number| (number.wrapping_mul(2_654_435_761) >> 7) as u8).collect();
        let mut sum = Sum::default();
        sum.add(&data);
        stream.write_all(&data).unwrap();
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(u64::from_be_bytes(answer), sum.0, "the bytes arrived changed");
        server.join().unwrap();
    }
}

/// An order-dependent sum (FNV-1a).
struct Sum(u64);

impl Default for Sum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[allow(unsafe_code, reason = "unshare of file descriptors would be unsafe; a namespace is not")]
fn unshare(flags: UnshareFlags) {
    // SAFETY: only the network namespace of this thread changes.
    unsafe { unshare_unsafe(flags) }.unwrap();
}

/// From now on the socket's packets must not be fragmented.
#[allow(unsafe_code, reason = "rustix has no wrapper for this socket option")]
pub fn set_path_mtu_discovery(socket: &UdpSocket, ipv6: bool) {
    let (level, name, value) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    };
    // SAFETY: the option is an int, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            libc::socklen_t::try_from(size_of_val(&value)).unwrap(),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Again if a signal came in between: a call with a timeout is not taken up again by
/// itself.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// The next datagram, within the socket's timeout.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    uninterrupted(|| socket.recv_from(buffer))
}

/// Sends one datagram and gets it back. The first of a pair may wait for neighbours.
pub fn ping(socket: &UdpSocket, target: SocketAddr, length: usize) {
    let sent: Vec<u8> = (0..length).map(|number| number as u8).collect();
    socket.send_to(&sent, target).unwrap_or_else(|error| panic!("{length} bytes to {target}: {error}"));
    let mut buffer = vec![0; 65_536];
    let (received, _) =
        receive(socket, &mut buffer).unwrap_or_else(|error| panic!("{length} bytes from {target}: {error}"));
    assert_eq!(buffer[..received], sent);
}

/// Whether a datagram comes back within a short time.
pub fn answers(socket: &UdpSocket, target: SocketAddr) -> bool {
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let sent = socket.send_to(b"anybody there?", target);
    let came = sent.is_ok() && receive(socket, &mut [0; 64]).is_ok();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    came
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
