//! Which devices a group may use: v1 rule files, or a program in the kernel for v2.
#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use crate::resources::put_at;
use crate::{Error, Group};

/// What kind of device a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Every device; numbers are then not looked at.
    All,
    /// Character devices.
    Character,
    /// Block devices.
    Block,
}

/// One rule: allow or deny some access to some devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// Kind of device.
    pub kind: DeviceKind,
    /// Major number; `None` for any.
    pub major: Option<u32>,
    /// Minor number; `None` for any.
    pub minor: Option<u32>,
    /// The rule is about reading.
    pub read: bool,
    /// The rule is about writing.
    pub write: bool,
    /// The rule is about making device nodes.
    pub mknod: bool,
}

impl DeviceRule {
    /// Denies everything: the usual first rule.
    pub const DENY_ALL: Self = Self {
        allow: false,
        kind: DeviceKind::All,
        major: None,
        minor: None,
        read: true,
        write: true,
        mknod: true,
    };

    /// The rule as v1's `devices.allow` and `devices.deny` want it.
    fn line(&self) -> String {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
        let kind = match self.kind {
            DeviceKind::All => "a",
            DeviceKind::Character => "c",
            DeviceKind::Block => "b",
        };
        let access = [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')];
        let access: String = access.iter().filter_map(|(on, letter)| on.then_some(*letter)).collect();
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }

    /// The access bits of `struct bpf_cgroup_dev_ctx`.
    fn access(&self) -> i32 {
        i32::from(self.mknod) | i32::from(self.read) << 1 | i32::from(self.write) << 2
    }
}

impl Group {
    /// Sets the device rules: later ones outrank earlier ones. On v1 they change the rules that
    /// the group has, so begin with [`DeviceRule::DENY_ALL`]; on v2 they replace them, and what no
    /// rule speaks of is denied.
    ///
    /// # Errors
    /// [`Error::Set`] or [`Error::DeviceProgram`] if the kernel refuses,
    /// [`Error::Unsupported`] if it has no way to restrict devices.
    pub fn set_devices(&self, rules: &[DeviceRule]) -> Result<(), Error> {
        if let Some(directory) = self.v1_directory("devices") {
            for rule in rules.iter().filter(|rule| rule.access() != 0) {
                let file = if rule.allow { "devices.allow" } else { "devices.deny" };
                put_at("devices", directory.join(file), &rule.line())?;
            }
            return Ok(());
        }
        let Some(directory) = self.unified_directory() else {
            return Err(Error::Unsupported { field: "devices", file: "devices.deny".to_owned() });
        };
        self.install(&directory, rules)
    }

    /// Installs rules as a device program on the cgroup2 directory. Split off so that hybrid
    /// machines can test it.
    fn install(&self, directory: &Path, rules: &[DeviceRule]) -> Result<(), Error> {
        replace_program(directory, &program(rules))
            .map_err(|source| Error::DeviceProgram { path: directory.to_owned(), source })
    }
}

/// One instruction of the eBPF machine, as `struct bpf_insn` of `linux/bpf.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `code`, destination, source, jump offset, immediate.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate }
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const JUMP_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;

/// Compiles rules: the last that matches decides, so they are tried from the last to the first.
/// An allow rule matches if it covers all of the access wanted, a deny rule if it covers any.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    // r2 kind, r3 access, r4 major, r5 minor, r1 scratch.
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 3, 1, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut block = Vec::new();
        // Jumps that leave the block are given their offset when its length is known.
        let kind = match rule.kind {
            DeviceKind::All => None,
            DeviceKind::Block => Some(1),
            DeviceKind::Character => Some(2),
        };
        if let Some(kind) = kind {
            block.push(instruction(JUMP_NOT_EQUAL, 2, 0, 0, kind));
        }
        let access = rule.access();
        if access == 0 {
            continue;
        }
        if access != 7 {
            block.push(instruction(MOVE_REGISTER, 1, 3, 0, 0));
            block.push(instruction(AND, 1, 0, 0, access));
            block.push(if rule.allow {
                instruction(JUMP_NOT_EQUAL_REGISTER, 1, 3, 0, 0)
            } else {
                instruction(JUMP_EQUAL, 1, 0, 0, 0)
            });
        }
        if kind.is_some() {
            for (register, number) in [(4, rule.major), (5, rule.minor)] {
                if let Some(number) = number {
                    let number = i32::from_ne_bytes(number.to_ne_bytes());
                    block.push(instruction(JUMP_NOT_EQUAL, register, 0, 0, number));
                }
            }
        }
        block.push(instruction(MOVE, 0, 0, 0, i32::from(rule.allow)));
        block.push(instruction(EXIT, 0, 0, 0, 0));
        let length = block.len();
        for (index, item) in block.iter_mut().enumerate() {
            if matches!(item.code, JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER | JUMP_EQUAL) {
                // At most nine instructions.
                item.offset = i16::try_from(length - index - 1).unwrap_or(i16::MAX);
            }
        }
        let unconditional = length == 2;
        code.append(&mut block);
        if unconditional {
            // The verifier refuses code that nothing reaches.
            return code;
        }
    }
    code.push(instruction(MOVE, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
/// How many programs of one group are looked at.
const PROGRAM_LIMIT: usize = 64;

/// The head of `union bpf_attr` for loading.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for attaching and detaching.
#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for queries.
#[repr(C)]
#[derive(Default)]
struct QueryAttributes {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// The head of `union bpf_attr` for opening a program.
#[repr(C)]
#[derive(Default)]
struct IdAttributes {
    id: u32,
    next: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: bpf(2) reads and writes at most the size that is passed, which is that of a
    // `repr(C)` struct of integers; the pointers inside point to slices that the callers keep.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn descriptor(raw: RawFd) -> u32 {
    u32::try_from(raw).unwrap_or(u32::MAX)
}

/// Loads and attaches a program, then detaches the ones that were there: at no time is the group
/// without one.
fn replace_program(directory: &Path, code: &[Instruction]) -> io::Result<()> {
    let group = File::open(directory)?;
    let target = descriptor(group.as_raw_fd());
    let license = c"Apache-2.0";
    let mut load = LoadAttributes {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(code.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    let raw = bpf(BPF_PROG_LOAD, &mut load)?;
    // SAFETY: the kernel just returned this descriptor; nothing else owns it.
    let program = unsafe { OwnedFd::from_raw_fd(raw) };

    let mut ids = [0_u32; PROGRAM_LIMIT];
    let mut query = QueryAttributes {
        target,
        kind: BPF_CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(PROGRAM_LIMIT).unwrap_or(u32::MAX),
        ..QueryAttributes::default()
    };
    bpf(BPF_PROG_QUERY, &mut query)?;
    let before = usize::try_from(query.count).unwrap_or(0).min(PROGRAM_LIMIT);

    bpf(
        BPF_PROG_ATTACH,
        &mut AttachAttributes {
            target,
            program: descriptor(program.as_raw_fd()),
            kind: BPF_CGROUP_DEVICE,
            flags: BPF_F_ALLOW_MULTI,
        },
    )?;
    for id in &ids[..before] {
        let mut by_id = IdAttributes { id: *id, ..IdAttributes::default() };
        let raw = bpf(BPF_PROG_GET_FD_BY_ID, &mut by_id)?;
        // SAFETY: the kernel just returned this descriptor; nothing else owns it.
        let old = unsafe { OwnedFd::from_raw_fd(raw) };
        bpf(
            BPF_PROG_DETACH,
            &mut AttachAttributes {
                target,
                program: descriptor(old.as_raw_fd()),
                kind: BPF_CGROUP_DEVICE,
                flags: 0,
            },
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_the_v1_files_want_them() {
        assert_eq!(DeviceRule::DENY_ALL.line(), "a *:* rwm");
        let rule = DeviceRule {
            allow: true,
            kind: DeviceKind::Character,
            major: Some(136),
            write: false,
            ..DeviceRule::DENY_ALL
        };
        assert_eq!(rule.line(), "c 136:* rm");
    }

    #[test]
    fn nothing_follows_an_unconditional_rule() {
        let code = program(&[DeviceRule::DENY_ALL, DeviceRule::DENY_ALL]);
        assert_eq!(code.len(), 8);
        assert_eq!(code[7].code, EXIT);
    }

    /// The device program is a v2 thing, but a cgroup2 mount without controllers takes it too.
    #[test]
    fn a_device_program_decides_and_is_replaced() {
        let hierarchy = crate::Hierarchy::detect().unwrap();
        let Some(root) = hierarchy.unified_root() else {
            panic!("this test needs a cgroup2 mount");
        };
        let directory = root.join(format!("kina-device-test-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        struct Remove<'a>(&'a Path);
        impl Drop for Remove<'_> {
            fn drop(&mut self) {
                std::fs::remove_dir(self.0).unwrap();
            }
        }
        let _remove = Remove(&directory);
        let group = hierarchy.group("/unused").unwrap();
        let zero = DeviceRule {
            allow: true,
            kind: DeviceKind::Character,
            major: Some(1),
            minor: Some(5),
            read: true,
            write: false,
            mknod: false,
        };
        let reads = |path: &str| {
            let script = format!(
                "echo $$ > {}/cgroup.procs; head -c1 {path} > /dev/full 2>&1; head -c1 {path} | wc -c",
                directory.display()
            );
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim() == "1"
        };
        group.install(&directory, &[DeviceRule::DENY_ALL, zero]).unwrap();
        assert!(reads("/dev/zero"));
        assert!(!reads("/dev/urandom"));
        let urandom = DeviceRule { minor: Some(9), ..zero };
        group.install(&directory, &[DeviceRule::DENY_ALL, urandom]).unwrap();
        assert!(!reads("/dev/zero"));
        assert!(reads("/dev/urandom"));
    }
}
