//! A guest without a machine: memory in a file, two rings in it, and a driver that
//! can be told to do what no driver does.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const CID: u64 = 3;

pub(crate) const REQUEST: u16 = 1;
pub(crate) const RESPONSE: u16 = 2;
pub(crate) const RESET: u16 = 3;
pub(crate) const SHUTDOWN: u16 = 4;
pub(crate) const DATA: u16 = 5;
pub(crate) const CREDIT_UPDATE: u16 = 6;
pub(crate) const CREDIT_REQUEST: u16 = 7;

const HEADER: usize = 44;
const RING_SIZE: u16 = 128;
const MEMORY: usize = 32 << 20;
/// The rings, one behind the other: descriptors, available and used ones.
const RING_SPACE: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
/// The buffers, one for each descriptor.
const ROOM: u64 = 0x10_0000;
const ROOM_LENGTH: u32 = 4096;
const SENT: u64 = 0x40_0000;
const SENT_LENGTH: u64 = 0x2_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Address, length, flags, next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

/// A packet; what is not said is as in most packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source_cid: u64,
    pub(crate) destination_cid: u64,
    pub(crate) source_port: u32,
    pub(crate) destination_port: u32,
    /// What the header says; usually the payload's length.
    pub(crate) length: u32,
    pub(crate) kind: u16,
    pub(crate) operation: u16,
    pub(crate) flags: u32,
    pub(crate) buffer: u32,
    pub(crate) forwarded: u32,
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source_cid.to_le_bytes());
        bytes.extend(self.destination_cid.to_le_bytes());
        bytes.extend(self.source_port.to_le_bytes());
        bytes.extend(self.destination_port.to_le_bytes());
        bytes.extend(self.length.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.operation.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buffer.to_le_bytes());
        bytes.extend(self.forwarded.to_le_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let four = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let two = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let eight = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Self {
            source_cid: eight(0),
            destination_cid: eight(8),
            source_port: four(16),
            destination_port: four(20),
            length: four(24),
            kind: two(28),
            operation: two(30),
            flags: four(32),
            buffer: four(36),
            forwarded: four(40),
            payload: bytes[HEADER..].to_vec(),
        }
    }
}

/// A stream as the guest knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub(crate) host_port: u32,
    pub(crate) guest_port: u32,
    /// The guest's whole buffer, and what has left it.
    pub(crate) buffer: u32,
    pub(crate) forwarded: u32,
}

impl Stream {
    pub(crate) fn packet(&self, operation: u16) -> Packet {
        Packet {
            source_cid: CID,
            destination_cid: 2,
            source_port: self.guest_port,
            destination_port: self.host_port,
            length: 0,
            kind: 1,
            operation,
            flags: 0,
            buffer: self.buffer,
            forwarded: self.forwarded,
            payload: Vec::new(),
        }
    }

    pub(crate) fn data(&self, payload: &[u8]) -> Packet {
        let length = u32::try_from(payload.len()).unwrap();
        Packet { length, payload: payload.to_vec(), ..self.packet(DATA) }
    }

    pub(crate) fn shutdown(&self, flags: u32) -> Packet {
        Packet { flags, ..self.packet(SHUTDOWN) }
    }
}

struct Ring {
    index: usize,
    available: u16,
    used: u16,
    kick: EventFd,
    call: EventFd,
}

impl Ring {
    fn at(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.index as u64 * RING_SPACE + offset)
    }
}

/// A guest, the emulator's side of its device, and the device.
pub(crate) struct Guest {
    device: Child,
    memory: GuestMemoryMmap,
    to_guest: Ring,
    from_guest: Ring,
    frontend: Option<Frontend>,
    directory: tempfile::TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.device.kill());
        drop(self.device.wait());
    }
}

impl Guest {
    /// With a device for so many streams.
    pub(crate) fn boot(streams: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vhost");
        let device = Command::new(env!("CARGO_BIN_EXE_kina-vsock"))
            .arg("--vhost")
            .arg(&socket)
            .arg("--host")
            .arg(directory.path().join("host"))
            .args(["--streams", &streams.to_string()])
            .spawn()
            .unwrap();
        let end = Instant::now() + PATIENCE;
        while !socket.exists() {
            assert!(Instant::now() < end, "the device does not listen");
            std::thread::yield_now();
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(MEMORY as u64).unwrap();
        let ranges = [(GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)))];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        let ring = |index| Ring {
            index,
            available: 0,
            used: 0,
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(libc_nonblock()).unwrap(),
        };
        let mut guest = Self {
            device,
            memory,
            to_guest: ring(TO_GUEST),
            from_guest: ring(FROM_GUEST),
            frontend: Some(Frontend::connect(&socket, 3).unwrap()),
            directory,
        };
        guest.set_up();
        guest
    }

    fn set_up(&mut self) {
        let frontend = self.frontend.as_mut().unwrap();
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        assert_ne!(offered & protocol, 0);
        frontend.set_features(1 << 32 | protocol).unwrap();
        frontend.get_protocol_features().unwrap();
        frontend
            .set_protocol_features(VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG)
            .unwrap();
        let config = frontend.get_config(0, 8, VhostUserConfigFlags::WRITABLE, &[0; 8]).unwrap();
        assert_eq!(config.1, CID.to_le_bytes());
        let region = self.memory.iter().next().unwrap();
        let address = region.get_host_address(vm_memory::MemoryRegionAddress(0)).unwrap() as u64;
        let info = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: address,
            mmap_offset: 0,
            mmap_handle: region.file_offset().unwrap().file().as_raw_fd(),
        };
        frontend.set_mem_table(&[info]).unwrap();
        for ring in [&self.to_guest, &self.from_guest] {
            frontend.set_vring_num(ring.index, RING_SIZE).unwrap();
            frontend.set_vring_base(ring.index, 0).unwrap();
            let addresses = VringConfigData {
                queue_max_size: RING_SIZE,
                queue_size: RING_SIZE,
                flags: 0,
                desc_table_addr: address + ring.at(0).0,
                used_ring_addr: address + ring.at(USED).0,
                avail_ring_addr: address + ring.at(AVAILABLE).0,
                log_addr: None,
            };
            frontend.set_vring_addr(ring.index, &addresses).unwrap();
            frontend.set_vring_call(ring.index, &ring.call).unwrap();
            frontend.set_vring_kick(ring.index, &ring.kick).unwrap();
            frontend.set_vring_enable(ring.index, true).unwrap();
        }
        for descriptor in 0..RING_SIZE {
            self.offer(descriptor);
        }
        self.to_guest.kick.write(1).unwrap();
    }

    fn describe(&self, ring: &Ring, index: u16, descriptor: Descriptor) {
        let (address, length, flags, next) = descriptor;
        let at = u64::from(index) * 16;
        self.memory.write_obj(address, ring.at(at)).unwrap();
        self.memory.write_obj(length, ring.at(at + 8)).unwrap();
        self.memory.write_obj(flags, ring.at(at + 12)).unwrap();
        self.memory.write_obj(next, ring.at(at + 14)).unwrap();
    }

    fn make_available(memory: &GuestMemoryMmap, ring: &mut Ring, head: u16) {
        let slot = u64::from(ring.available % RING_SIZE);
        memory.write_obj(head, ring.at(AVAILABLE + 4 + 2 * slot)).unwrap();
        ring.available = ring.available.wrapping_add(1);
        memory.store(ring.available, ring.at(AVAILABLE + 2), std::sync::atomic::Ordering::SeqCst).unwrap();
    }

    fn offer(&mut self, index: u16) {
        let address = ROOM + u64::from(index) * u64::from(ROOM_LENGTH);
        self.describe(&self.to_guest, index, (address, ROOM_LENGTH, WRITE, 0));
        Self::make_available(&self.memory, &mut self.to_guest, index);
    }

    /// The next descriptor that was used and how much of it, waited for until `end`.
    fn used(memory: &GuestMemoryMmap, ring: &mut Ring, end: Instant) -> Option<(u16, usize)> {
        loop {
            let used: u16 = memory.load(ring.at(USED + 2), std::sync::atomic::Ordering::SeqCst).unwrap();
            if used != ring.used {
                let slot = u64::from(ring.used % RING_SIZE);
                let head: u32 = memory.read_obj(ring.at(USED + 4 + 8 * slot)).unwrap();
                let length: u32 = memory.read_obj(ring.at(USED + 8 + 8 * slot)).unwrap();
                ring.used = ring.used.wrapping_add(1);
                return Some((u16::try_from(head).unwrap(), length as usize));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let left = Timespec::try_from(left).unwrap();
            poll(&mut [PollFd::from_borrowed_fd(borrow(&ring.call), PollFlags::IN)], Some(&left)).unwrap();
            let _ = ring.call.read();
        }
    }

    /// The next packet for the guest, if one comes before `end`.
    pub(crate) fn next_until(&mut self, end: Instant) -> Option<Packet> {
        let (head, length) = Self::used(&self.memory, &mut self.to_guest, end)?;
        let mut bytes = vec![0; length];
        let address = ROOM + u64::from(head) * u64::from(ROOM_LENGTH);
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        self.offer(head);
        self.to_guest.kick.write(1).unwrap();
        let packet = Packet::from_bytes(&bytes);
        assert_eq!((packet.source_cid, packet.destination_cid, packet.kind), (2, CID, 1));
        assert_eq!(packet.length as usize, packet.payload.len());
        Some(packet)
    }

    /// The next packet for the guest.
    pub(crate) fn next(&mut self) -> Packet {
        self.next_until(Instant::now() + PATIENCE).expect("a packet comes")
    }

    /// The next packet that is not about credit.
    pub(crate) fn next_event(&mut self) -> Packet {
        loop {
            let packet = self.next();
            if packet.operation != CREDIT_UPDATE {
                return packet;
            }
        }
    }

    /// Sends a packet and waits until the device has taken it.
    pub(crate) fn send(&mut self, packet: &Packet) {
        self.send_bytes(&packet.to_bytes());
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        let slot = self.from_guest.available % (RING_SIZE / 2);
        let address = SENT + u64::from(slot) * SENT_LENGTH;
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
        // In two buffers, as real drivers do now and then, and not where the header ends.
        let first = bytes.len().min(17);
        let rest = u32::try_from(bytes.len() - first).unwrap();
        let second = slot + RING_SIZE / 2;
        self.send_chain(&[
            (slot, (address, u32::try_from(first).unwrap(), NEXT, second)),
            (second, (address + first as u64, rest, 0, 0)),
        ]);
    }

    /// Makes a chain of these descriptors available and waits for its use.
    pub(crate) fn send_chain(&mut self, descriptors: &[(u16, Descriptor)]) {
        for (index, descriptor) in descriptors {
            self.describe(&self.from_guest, *index, *descriptor);
        }
        Self::make_available(&self.memory, &mut self.from_guest, descriptors[0].0);
        self.from_guest.kick.write(1).unwrap();
        let end = Instant::now() + PATIENCE;
        let used = Self::used(&self.memory, &mut self.from_guest, end).expect("the packet is taken");
        assert_eq!(used, (descriptors[0].0, 0));
    }

    /// Says that far more packets are there than the ring has places.
    pub(crate) fn break_ring(&mut self) {
        let nonsense = self.from_guest.available.wrapping_add(RING_SIZE * 3);
        self.memory
            .store(nonsense, self.from_guest.at(AVAILABLE + 2), std::sync::atomic::Ordering::SeqCst)
            .unwrap();
        self.from_guest.kick.write(1).unwrap();
    }

    /// Starts the driver anew, as a guest does that was reset.
    pub(crate) fn restart(&mut self) {
        let frontend = self.frontend.as_mut().unwrap();
        for ring in [&mut self.to_guest, &mut self.from_guest] {
            frontend.get_vring_base(ring.index).unwrap();
            self.memory.write_slice(&[0; RING_SPACE as usize], ring.at(0)).unwrap();
            (ring.available, ring.used) = (0, 0);
        }
        let region = self.memory.iter().next().unwrap();
        let address = region.get_host_address(vm_memory::MemoryRegionAddress(0)).unwrap() as u64;
        for ring in [&self.to_guest, &self.from_guest] {
            let addresses = VringConfigData {
                queue_max_size: RING_SIZE,
                queue_size: RING_SIZE,
                flags: 0,
                desc_table_addr: address + ring.at(0).0,
                used_ring_addr: address + ring.at(USED).0,
                avail_ring_addr: address + ring.at(AVAILABLE).0,
                log_addr: None,
            };
            frontend.set_vring_base(ring.index, 0).unwrap();
            frontend.set_vring_addr(ring.index, &addresses).unwrap();
            frontend.set_vring_call(ring.index, &ring.call).unwrap();
            frontend.set_vring_kick(ring.index, &ring.kick).unwrap();
            frontend.set_vring_enable(ring.index, true).unwrap();
        }
        for descriptor in 0..RING_SIZE {
            self.offer(descriptor);
        }
        self.to_guest.kick.write(1).unwrap();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("host")
    }

    /// A client that has said nothing yet.
    pub(crate) fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.socket()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// A client that has asked for a port, and the stream that the guest is asked for.
    pub(crate) fn ask(&mut self, port: u32) -> (UnixStream, Stream) {
        let mut client = self.client();
        client.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        let request = self.next_event();
        assert_eq!((request.operation, request.destination_port), (REQUEST, port));
        let stream =
            Stream { host_port: request.source_port, guest_port: port, buffer: 256 << 10, forwarded: 0 };
        (client, stream)
    }

    /// A stream that is open on both sides.
    pub(crate) fn open(&mut self, port: u32) -> (UnixStream, Stream) {
        let (mut client, stream) = self.ask(port);
        self.send(&stream.packet(RESPONSE));
        assert_eq!(line(&mut client), format!("OK {}", stream.host_port));
        (client, stream)
    }

    /// Asserts that the channel works: a new stream carries bytes both ways.
    pub(crate) fn check(&mut self) {
        let (mut client, stream) = self.open(1024);
        client.write_all(b"ping").unwrap();
        let packet = self.next_event();
        assert_eq!((packet.operation, packet.payload.as_slice()), (DATA, b"ping".as_slice()));
        self.send(&stream.data(b"pong"));
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"pong");
        self.send(&stream.packet(RESET));
        assert_eq!(client.read(&mut answer).unwrap(), 0);
    }

    /// The device's resident memory in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.device.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// The emulator goes; the device must end well.
    pub(crate) fn off(mut self) {
        drop(self.frontend.take());
        let status = self.device.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

/// One line of a device's.
pub(crate) fn line(client: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while client.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn libc_nonblock() -> i32 {
    i32::try_from(rustix::event::EventfdFlags::NONBLOCK.bits()).unwrap()
}

#[allow(unsafe_code, reason = "the library's descriptor knows no safe way to be lent")]
fn borrow(event: &EventFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event`, which is borrowed as long.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
