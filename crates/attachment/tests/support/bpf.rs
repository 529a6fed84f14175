//! A program on a network device that counts what passes and drops when told to: the
//! stand-in for the CNI plugin's policy. Assembled by hand, since this needs a dozen
//! instructions and no compiler.

#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::Net;

/// Slots of the map.
const FROM_POD: i32 = 0;
const TO_POD: i32 = 1;
const DROP: i32 = 2;

/// The program on a device, both ways. Goes with this.
pub struct Gate {
    map: OwnedFd,
    _links: Vec<OwnedFd>,
}

impl Gate {
    /// Puts the program on the node's end of a pod's interface.
    pub fn on(net: &Net, device: &str) -> Self {
        let device = device.to_owned();
        net.run(move || {
            let index = device_index(&device);
            let map = create_map().unwrap();
            // BPF_TCX_INGRESS and BPF_TCX_EGRESS: from the pod and to it.
            let links = [(46, FROM_POD), (47, TO_POD)]
                .map(|(hook, slot)| attach(&load(&map, slot).unwrap(), index, hook).unwrap());
            Self { map, _links: links.into() }
        })
    }

    /// Packets from the pod and to the pod so far.
    pub fn counts(&self) -> (u64, u64) {
        (read(&self.map, FROM_POD), read(&self.map, TO_POD))
    }

    /// Shuts or opens the gate.
    pub fn shut(&self, shut: bool) {
        write(&self.map, DROP, u64::from(shut));
    }
}

fn device_index(device: &str) -> u32 {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    rustix::net::netdevice::name_to_index(&socket, device).unwrap()
}

/// One instruction: code, destination, source, offset, constant.
fn instruction(code: u8, destination: u8, source: u8, offset: i16, constant: i32) -> u64 {
    u64::from(code)
        | u64::from(source << 4 | destination) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(constant.cast_unsigned()) << 32
}

fn program(map: i32, slot: i32) -> Vec<u64> {
    let look_up = |slot| {
        [
            instruction(0x62, 10, 0, -4, slot), // *(u32 *)(r10 - 4) = slot
            instruction(0xbf, 2, 10, 0, 0),     // r2 = r10
            instruction(0x07, 2, 0, 0, -4),     // r2 += -4
            instruction(0x18, 1, 1, 0, map),    // r1 = the map
            instruction(0x00, 0, 0, 0, 0),
            instruction(0x85, 0, 0, 0, 1), // r0 = its slot
        ]
    };
    let mut code = Vec::new();
    code.extend(look_up(slot));
    code.extend([
        instruction(0x15, 0, 0, 2, 0), // none: skip
        instruction(0xb7, 1, 0, 0, 1), // r1 = 1
        instruction(0xdb, 0, 1, 0, 0), // atomically *(u64 *)r0 += r1
    ]);
    code.extend(look_up(DROP));
    code.extend([
        instruction(0x15, 0, 0, 4, 0),  // none: pass
        instruction(0x79, 1, 0, 0, 0),  // r1 = *(u64 *)r0
        instruction(0x15, 1, 0, 2, 0),  // zero: pass
        instruction(0xb7, 0, 0, 0, 2),  // r0 = TCX_DROP
        instruction(0x95, 0, 0, 0, 0),  // return
        instruction(0xb7, 0, 0, 0, -1), // r0 = TCX_NEXT
        instruction(0x95, 0, 0, 0, 0),
    ]);
    code
}

/// `union bpf_attr`, as far as used here.
#[repr(C, align(8))]
struct Attributes([u32; 32]);

impl Attributes {
    fn new(words: &[(usize, u32)]) -> Self {
        let mut all = [0; 32];
        for (place, word) in words {
            all[*place] = *word;
        }
        Self(all)
    }

    /// Puts a pointer at a place counted in words.
    fn pointer<T>(mut self, place: usize, value: *const T) -> Self {
        let address = value as u64;
        self.0[place] = address as u32;
        self.0[place + 1] = (address >> 32) as u32;
        self
    }
}

fn bpf(command: i64, attributes: &Attributes) -> io::Result<i64> {
    // SAFETY: bpf(2) reads attributes of the given size; pointers in them are to values
    // that the callers keep alive over the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.0.as_ptr(), size_of_val(&attributes.0)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(descriptor: i64) -> OwnedFd {
    // SAFETY: bpf(2) has just returned this file descriptor, which nobody else has.
    unsafe { OwnedFd::from_raw_fd(descriptor as i32) }
}

fn create_map() -> io::Result<OwnedFd> {
    const ARRAY: u32 = 2;
    bpf(0, &Attributes::new(&[(0, ARRAY), (1, 4), (2, 8), (3, 3)])).map(owned)
}

fn load(map: &OwnedFd, slot: i32) -> io::Result<OwnedFd> {
    const CLASSIFIER: u32 = 3;
    let code = program(map.as_raw_fd(), slot);
    let mut log = vec![0_u8; 65_536];
    let attributes =
        Attributes::new(&[(0, CLASSIFIER), (1, code.len() as u32), (6, 1), (7, log.len() as u32)])
            .pointer(2, code.as_ptr())
            .pointer(4, c"Apache".as_ptr())
            .pointer(8, log.as_mut_ptr());
    bpf(5, &attributes)
        .map(owned)
        .inspect_err(|_| println!("{}", String::from_utf8_lossy(&log).trim_end_matches('\0')))
}

fn attach(program: &OwnedFd, device: u32, hook: u32) -> io::Result<OwnedFd> {
    bpf(28, &Attributes::new(&[(0, program.as_raw_fd() as u32), (1, device), (2, hook)])).map(owned)
}

fn read(map: &OwnedFd, slot: i32) -> u64 {
    let mut value = 0_u64;
    let attributes = Attributes::new(&[(0, map.as_raw_fd() as u32)])
        .pointer(2, &raw const slot)
        .pointer(4, &raw mut value);
    bpf(1, &attributes).unwrap();
    value
}

fn write(map: &OwnedFd, slot: i32, value: u64) {
    let attributes = Attributes::new(&[(0, map.as_raw_fd() as u32)])
        .pointer(2, &raw const slot)
        .pointer(4, &raw const value);
    bpf(2, &attributes).unwrap();
}
