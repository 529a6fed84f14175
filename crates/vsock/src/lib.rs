//! The channel between a daemon and the guest in its virtual machine: byte streams
//! over vsock, a fresh one for each connect, none of which can hold up another.
//!
//! ```text
//! connect ─┬─ Address::Unix ──▶ host socket ─▶ kina-vsock ─▶ QEMU's vhost-user-vsock ─▶ guest
//!          └─ Address::Kernel ─▶ AF_VSOCK ────▶ /dev/vhost-vsock ──────────────────────▶ guest
//! ```
//!
//! **Dialling.** [`connect`] takes an [`Address`]. Which kind a machine has is
//! decided when it is made ([`available`]) and recorded with it. The kernel's device
//! needs a CID that no other machine of the host has; ours needs two sockets.
//!
//! **The device.** The program `kina-vsock` (or `Device` in this process) serves one
//! machine. It needs no privilege, and nothing of the daemon that started it:
//!
//! ```text
//! kina-vsock --vhost DIR/vsock --host DIR/guest [--cid 3] [--streams 1024] [--user UID]
//! qemu ... -object memory-backend-memfd,id=memory,size=512M,share=on
//!          -chardev socket,id=vsock,path=DIR/vsock -device vhost-user-vsock-pci,chardev=vsock
//! ```
//!
//! A path appears when its socket accepts connections, so whoever started the
//! program waits for `DIR/vsock` before it starts QEMU. Both sockets belong to the
//! user alone that started it. Then it becomes the user that it is told, if it is, and
//! gives up what it does not need (`kina-confine`). It ends with status 0 when QEMU has gone, and with a
//! message and status 1 when QEMU does not come within a minute. It does not take a
//! second QEMU. When it is killed its clients see the end of their streams, but QEMU
//! goes on without a word and the guest's streams fall silent: watch the process.
//!
//! **The host's protocol** is that of other emulators' vsock sockets: the client
//! writes `CONNECT <port>\n`; the answer is `OK <number>\n`, after which the stream is
//! the guest's, or `ERROR <words>\n` and the end. Streams can be half-closed from
//! either side. A client may vanish at any moment. A client that waits while the
//! guest boots is answered when the guest's kernel is up. The guest cannot open
//! streams to the host.

mod dial;
mod error;

#[cfg(target_os = "linux")]
mod device;
#[cfg(target_os = "linux")]
mod packet;

pub use dial::{Address, Stream, Transport, available, connect};
pub use error::Error;

#[cfg(target_os = "linux")]
pub use device::{Config, Device};

/// What a device says before the number of a stream.
const GREETING: &str = "OK ";
/// What a device says before the reason why there is none.
const REFUSAL: &str = "ERROR ";

/// Lets clients and a guest do what `steps` say, as `device::trial` reads them.
/// Panics when something does not hold that must.
#[cfg(all(target_os = "linux", feature = "fuzzing"))]
pub fn fuzz(steps: &[u8]) {
    device::trial::run(steps);
}

/// Fills the memory of a guest's rings as `rounds` say, as `device::ring_trial` reads
/// them. Panics when something does not hold that must.
#[cfg(all(target_os = "linux", feature = "fuzzing"))]
pub fn fuzz_rings(rounds: &[u8]) {
    device::ring_trial::run(rounds);
}
