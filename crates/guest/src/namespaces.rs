//! The namespaces that a pod's containers share. The guest holds them as
//! descriptors: they end with it, and nothing of them is on disk.

use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;

use crate::error::Error;
use crate::ids::Ids;
use crate::inside;
use crate::pause::Pause;

/// For the threads that change their own namespaces and end.
const STACK_BYTES: usize = 128 << 10;

/// What to make.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) ipc: bool,
    pub(crate) uts: bool,
    pub(crate) network: Network,
    pub(crate) hostname: String,
    /// Files below /proc/sys with their values.
    pub(crate) sysctls: Vec<(PathBuf, String)>,
}

/// The pod's network namespace.
#[derive(Debug)]
pub(crate) enum Network {
    Host,
    /// The machine's, which is the pod's alone.
    Machine,
    Existing(OwnedFd),
    /// One that a user namespace owns: the pod's.
    Owned(Owned),
}

/// A network namespace and the user namespace that owns it.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) user: OwnedFd,
    pub(crate) network: OwnedFd,
}

/// The namespaces, made; `None` is the machine's own.
#[derive(Debug)]
pub(crate) struct PodNamespaces {
    /// Owns the others.
    pub(crate) user: Option<OwnedFd>,
    pub(crate) ipc: Option<OwnedFd>,
    pub(crate) uts: Option<OwnedFd>,
    pub(crate) network: Option<OwnedFd>,
    /// Whether its network is the pod's alone.
    pub(crate) owns_network: bool,
    /// What the pod can be reached by in its own network namespace.
    pub(crate) addresses: Vec<IpAddr>,
}

impl PodNamespaces {
    /// Makes the first process of a PID namespace beside these. It must be called on the guest's
    /// main thread (see [`Pause`]).
    pub(crate) fn first_process(&self, ids: &Ids, hostname: &str) -> Result<Pause, Error> {
        match (&self.user, &self.network) {
            (Some(user), Some(network)) => {
                let made = inside::create(user, network, ids, hostname, &[], true)?;
                made.pause.ok_or(Error::Interrupted { operation: "make a PID namespace" })
            }
            (Some(_), None) | (None, _) => Pause::start(),
        }
    }
}

/// Makes the namespaces in a thread that ends, and writes host name and sysctls
/// inside of them; those of a user namespace by a process that ends. `pid` asks for
/// the first process of a PID namespace as well; it must be called on the guest's main
/// thread then (see [`Pause`]).
pub(crate) fn create(plan: Plan, ids: &Ids, pid: bool) -> Result<(PodNamespaces, Option<Pause>), Error> {
    match plan.network {
        Network::Owned(Owned { user, network }) => {
            let made = inside::create(&user, &network, ids, &plan.hostname, &plan.sysctls, pid)?;
            let copy = network.try_clone().map_err(|e| Error::system("duplicate a descriptor", e))?;
            let addresses = in_thread("list the pod's addresses", move || {
                enter_network(&copy)?;
                own_addresses()
            })?;
            let namespaces = PodNamespaces {
                user: Some(user),
                ipc: Some(made.ipc),
                uts: Some(made.uts),
                network: Some(network),
                owns_network: true,
                addresses,
            };
            Ok((namespaces, made.pause))
        }
        Network::Host | Network::Machine | Network::Existing(_) => {
            let namespaces = in_thread("make the pod's namespaces", move || create_here(plan))?;
            Ok((namespaces, pid.then(Pause::start).transpose()?))
        }
    }
}

/// Runs `work` in a thread of its own, whose namespaces it may change.
pub(crate) fn in_thread<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(work)
        .map_err(|source| Error::system(operation, source))?
        .join()
        .unwrap_or(Err(Error::Interrupted { operation }))
}

fn failed(operation: &'static str, errno: nix::errno::Errno) -> Error {
    Error::system(operation, errno)
}

fn create_here(plan: Plan) -> Result<PodNamespaces, Error> {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWIPC, plan.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, plan.uts);
    nix::sched::unshare(flags).map_err(|e| failed("unshare", e))?;
    let owns_network = !matches!(plan.network, Network::Host);
    let (network, addresses) = match plan.network {
        Network::Host => (None, Vec::new()),
        Network::Machine => (None, own_addresses()?),
        Network::Existing(namespace) | Network::Owned(Owned { network: namespace, .. }) => {
            enter_network(&namespace)?;
            (Some(namespace), own_addresses()?)
        }
    };
    if plan.uts {
        nix::unistd::sethostname(&plan.hostname).map_err(|e| failed("set the host name", e))?;
    }
    for (file, value) in &plan.sysctls {
        set_sysctl(file, value).map_err(|source| Error::Sysctl { file: file.clone(), source })?;
    }
    let ipc = plan.ipc.then(|| own_namespace("ipc")).transpose()?;
    let uts = plan.uts.then(|| own_namespace("uts")).transpose()?;
    Ok(PodNamespaces { user: None, ipc, uts, network, owns_network, addresses })
}

/// Writes that value to that file below /proc/sys, as the namespaces that this thread is in have it.
pub(crate) fn set_sysctl(file: &Path, value: &str) -> io::Result<()> {
    let mut open = File::options().write(true).open(Path::new("/proc/sys").join(file))?;
    open.write_all(value.as_bytes())
}

/// Makes a network namespace with loopback only.
pub(crate) fn loopback() -> Result<OwnedFd, Error> {
    in_thread("make a network namespace", || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed("unshare", e))?;
        bring_loopback_up()?;
        own_namespace("net")
    })
}

/// Makes a user namespace, and a network namespace with loopback only that it owns.
pub(crate) fn owned_loopback(mapping: &kina_userns::Mapping) -> Result<Owned, Error> {
    let failed = |source| Error::UserNamespace { whose: "the pod".to_owned(), source };
    let made = kina_userns::create(mapping, kina_userns::With::Network).map_err(failed)?;
    let network = made.network.ok_or(Error::Interrupted { operation: "make a network namespace" })?;
    let copy = network.try_clone().map_err(|e| Error::system("duplicate a descriptor", e))?;
    in_thread("bring loopback up", move || {
        enter_network(&copy)?;
        bring_loopback_up()
    })?;
    Ok(Owned { user: made.user, network })
}

/// Moves the calling thread, which must be one of a moment, into a network namespace.
pub(crate) fn enter_network(namespace: &OwnedFd) -> Result<(), Error> {
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET)
        .map_err(|e| failed("join the network namespace", e))
}

/// The addresses of the calling thread's network namespace that others know it by, IPv4 first.
fn own_addresses() -> Result<Vec<IpAddr>, Error> {
    let all = nix::ifaddrs::getifaddrs().map_err(|e| failed("list the pod's addresses", e))?;
    let mut addresses: Vec<IpAddr> = all
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .filter(|address| match address {
            IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
            IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
        })
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(addresses)
}

fn own_namespace(kind: &str) -> Result<OwnedFd, Error> {
    let path = format!("/proc/thread-self/ns/{kind}");
    File::open(&path).map(OwnedFd::from).map_err(|source| Error::file("open", path, source))
}

/// Sets the loopback interface of the calling thread's network namespace up.
#[allow(unsafe_code, reason = "an ioctl that no crate wraps")]
pub(crate) fn bring_loopback_up() -> Result<(), Error> {
    let operation = "bring loopback up";
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| Error::system(operation, errno))?;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(i16::MAX);
    let descriptor = socket.as_raw_fd();
    // SAFETY: the descriptor is open, and the request lives through the call.
    let result = unsafe { libc::ioctl(descriptor, libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(Error::system(operation, io::Error::last_os_error())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(namespace: &OwnedFd) -> u64 {
        rustix::fs::fstat(namespace).unwrap().st_ino
    }

    fn own_inode(kind: &str) -> u64 {
        inode(&own_namespace(kind).unwrap())
    }

    #[test]
    fn namespaces_are_new_and_hold_what_was_set() {
        let plan = Plan {
            ipc: true,
            uts: true,
            network: Network::Existing(loopback().unwrap()),
            hostname: "a-pod".to_owned(),
            sysctls: vec![
                ("kernel/shm_rmid_forced".into(), "1".to_owned()),
                ("net/ipv4/ip_unprivileged_port_start".into(), "7".to_owned()),
            ],
        };
        let (namespaces, pause) = create(plan, &Ids::default(), false).unwrap();
        assert!(pause.is_none());
        for (kind, namespace) in
            [("ipc", &namespaces.ipc), ("uts", &namespaces.uts), ("net", &namespaces.network)]
        {
            assert_ne!(own_inode(kind), inode(namespace.as_ref().unwrap()), "{kind}");
        }
        let (ipc, uts, network) =
            (namespaces.ipc.as_ref(), namespaces.uts.as_ref(), namespaces.network.as_ref());
        let fds: Vec<OwnedFd> = [ipc, uts, network].map(|fd| fd.unwrap().try_clone().unwrap()).into();
        in_thread("look", move || {
            for fd in fds {
                nix::sched::setns(fd, CloneFlags::empty()).unwrap();
            }
            let read = |path| std::fs::read_to_string(path).unwrap().trim().to_owned();
            assert_eq!(read("/proc/sys/kernel/hostname"), "a-pod");
            assert_eq!(read("/proc/sys/kernel/shm_rmid_forced"), "1");
            assert_eq!(read("/proc/sys/net/ipv4/ip_unprivileged_port_start"), "7");
            std::net::TcpListener::bind("127.0.0.1:9").unwrap();
            Ok(())
        })
        .unwrap();
    }
}
