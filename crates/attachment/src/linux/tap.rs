//! A tap device in the sandbox namespace, joined with the CNI interface frame by
//! frame. A virtual machine on the node holds the tap's other end and shows the
//! interface's own hardware address and IP addresses.
//!
//! The CNI interface keeps its addresses and routes: `CHECK` of the plugins looks
//! for them there. They do no harm, since the redirect takes every incoming frame
//! before the namespace's stack sees it, so nothing there can answer what the
//! machine answers too; and nothing runs in the namespace that would send. What the
//! kernel sends unasked (router solicitations, multicast reports) is stopped by
//! having no IPv6 on the tap and no IPv6 solicitations on the interface.
//!
//! The machine's root makes frames as it likes. Those that say they come from elsewhere
//! than the interface are dropped here (`own.rs`): most plugins that make bridges do
//! not look, and trust what comes out of the namespace.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rtnetlink::LinkUnspec;

use super::apply::raise;
use super::inspect;
use super::link::{Link, check_name};
use super::namespace::Namespace;
use super::netlink::Netlink;
use super::redirect;
use super::sink;
use crate::own::{self, Filter};
use crate::{Damage, Error, Interface};

/// How long one waits for a queue that is open.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// What a tap should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Its name in the sandbox namespace.
    pub name: String,
    /// The CNI interface that it is joined with.
    pub interface: String,
    /// Whether it can have several queues, one for each processor of the machine. Who
    /// opens it must ask for the same.
    pub multi_queue: bool,
    /// The user and group that may open it besides root.
    pub owner: Option<(u32, u32)>,
    /// Whether the machine may send what says it comes from others: frames with
    /// addresses that the CNI interface does not have. Without, they are dropped.
    pub forging: bool,
}

impl Tap {
    /// A tap for `interface`: `tap0`, one queue, root's, no forging.
    pub fn new(interface: &str) -> Self {
        Self {
            name: "tap0".to_owned(),
            interface: interface.to_owned(),
            multi_queue: false,
            owner: None,
            forging: false,
        }
    }
}

/// Makes what is missing of a tap and its joint with the CNI interface, and returns
/// the interface as the machine must show it. It persists until [`detach`] or until
/// the namespace goes. Again is free, and heals.
pub async fn attach(namespace: &Namespace, tap: &Tap) -> Result<Interface, Error> {
    check_name(&tap.name)?;
    let netlink = Netlink::open(namespace).await?;
    let interface = inspect::read(&netlink, &tap.interface).await?;
    let outer = netlink.present_link(&tap.interface).await?;
    match netlink.link(&tap.name).await? {
        Some(link) if link.is_tap() => {}
        Some(_) => {
            return Err(Error::Unfit {
                namespace: namespace.path().to_path_buf(),
                interface: tap.name.clone(),
                problem: "is in the way of the pod's tap: it is something else",
            });
        }
        None => {
            open_device(namespace, tap, true).await?;
        }
    }
    silence(namespace, &tap.interface, &tap.name).await?;
    let inner = netlink.present_link(&tap.name).await?;
    // First, so that nothing comes in unchecked.
    if tap.forging {
        sink::close(namespace, &tap.name).await?;
    } else {
        sink::open(namespace, &tap.name).await?;
    }
    complete(&netlink, &inner, interface.mtu).await?;
    redirect::join(&netlink, &outer, &inner, allowed(tap, &interface).as_deref()).await?;
    raise_if_down(&netlink, &outer).await?;
    Ok(interface)
}

/// What is wrong with a tap that was made earlier; nothing if it is intact.
pub async fn check(namespace: &Namespace, tap: &Tap) -> Result<Vec<Damage>, Error> {
    let netlink = Netlink::open(namespace).await?;
    let outer = netlink.present_link(&tap.interface).await?;
    let Some(inner) = netlink.link(&tap.name).await?.filter(Link::is_tap) else {
        return Ok(vec![Damage::Missing { device: tap.name.clone() }]);
    };
    let mut damage = check_devices(&outer, &inner);
    let interface = inspect::read(&netlink, &tap.interface).await?;
    damage.extend(redirect::check(&netlink, &outer, &inner, allowed(tap, &interface).as_deref()).await?);
    if !tap.forging && !sink::is_open(namespace, &tap.name).await? {
        damage.push(Damage::Unguarded);
    }
    Ok(damage)
}

/// What the machine may send; everything with `None`.
fn allowed(tap: &Tap, interface: &Interface) -> Option<Vec<Filter>> {
    (!tap.forging).then(|| own::filters(interface))
}

/// Removes the tap and gives the CNI interface back to the namespace. What is gone
/// already, the CNI interface included, is fine.
pub async fn detach(namespace: &Namespace, tap: &Tap) -> Result<(), Error> {
    let netlink = Netlink::open(namespace).await?;
    if let Some(outer) = netlink.link(&tap.interface).await? {
        redirect::part(&netlink, &outer).await?;
    }
    netlink.remove_link(&tap.name).await?;
    sink::close(namespace, &tap.name).await
}

/// Opens a queue of the tap: frames with a `virtio_net_hdr` before them. For a
/// machine monitor that is given its network card as a file descriptor. After
/// [`attach`]: a tap that is not there comes into being for as long as it is open, and
/// is joined with nothing.
///
/// A queue that is open already is waited for, two seconds: a process that any thread
/// starts at this moment has copies of all descriptors until it executes its program,
/// among them of one that is closed here, and so may have a call that was dropped.
pub async fn open_queue(namespace: &Namespace, tap: &Tap) -> Result<OwnedFd, Error> {
    let deadline = tokio::time::Instant::now() + BUSY_PATIENCE;
    loop {
        match open_device(namespace, tap, false).await {
            Err(Error::Kernel { source, .. })
                if source.number() == Some(libc::EBUSY) && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            opened => return opened,
        }
    }
}

async fn open_device(namespace: &Namespace, tap: &Tap, persist: bool) -> Result<OwnedFd, Error> {
    let wanted = tap.clone();
    let opened = namespace.run(move || device::open(&wanted, persist));
    opened.await?.map_err(|source| Error::Kernel {
        operation: "open tap",
        object: tap.name.clone(),
        namespace: namespace.path().to_path_buf(),
        source: source.into(),
    })
}

/// Keeps the sandbox namespace's own IPv6 from talking beside the machine's.
pub(super) async fn silence(namespace: &Namespace, outer: &str, inner: &str) -> Result<(), Error> {
    namespace.set(format!("ipv6/conf/{outer}/router_solicitations"), "0").await?;
    namespace.set(format!("ipv6/conf/{inner}/disable_ipv6"), "1").await
}

/// The MTU, so that no frame of the CNI interface is too long, and up.
pub(super) async fn complete(netlink: &Netlink, inner: &Link, mtu: u32) -> Result<(), Error> {
    if inner.mtu != mtu {
        let change = LinkUnspec::new_with_index(inner.index).mtu(mtu).build();
        netlink.set_link(change, "set the MTU of", &inner.name).await?;
    }
    raise_if_down(netlink, inner).await
}

pub(super) async fn raise_if_down(netlink: &Netlink, link: &Link) -> Result<(), Error> {
    if link.up { Ok(()) } else { raise(netlink, link.index, &link.name).await }
}

/// What the two ends of a joint must be like.
pub(super) fn check_devices(outer: &Link, inner: &Link) -> Vec<Damage> {
    let mut damage = Vec::new();
    for link in [outer, inner] {
        if !link.up {
            damage.push(Damage::Down { device: link.name.clone() });
        }
    }
    if inner.mtu != outer.mtu {
        damage.push(Damage::Changed { device: inner.name.clone(), what: "mtu" });
    }
    damage
}

/// The one place that talks to `/dev/net/tun`.
mod device {
    #![allow(unsafe_code, reason = "the ioctls of /dev/net/tun have no safe wrapper")]

    use super::{AsRawFd, File, OpenOptions, OwnedFd, Tap, io};

    pub(super) fn open(tap: &Tap, persist: bool) -> io::Result<OwnedFd> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if tap.multi_queue {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let flags = libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: an ifreq is plain data, for which all zeroes is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The name was checked to be short enough to leave a zero behind it.
        for (slot, byte) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(tap.name.bytes()) {
            *slot = libc::c_char::from_ne_bytes([byte]);
        }
        request.ifr_ifru.ifru_flags = flags;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        check(result)?;
        if let Some((user, group)) = tap.owner.filter(|_| persist) {
            set(&file, libc::TUNSETOWNER, user)?;
            set(&file, libc::TUNSETGROUP, group)?;
        }
        if persist {
            set(&file, libc::TUNSETPERSIST, 1)?;
        }
        Ok(file.into())
    }

    fn set(file: &File, request: libc::Ioctl, value: u32) -> io::Result<()> {
        // SAFETY: these three take a number, not a pointer.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), request, libc::c_ulong::from(value)) };
        check(result)
    }

    fn check(result: libc::c_int) -> io::Result<()> {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
