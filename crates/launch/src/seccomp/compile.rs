//! From a profile to BPF instructions.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};

use super::table::TABLE;
use crate::error::Error;

/// A compiled filter and the flags to load it with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) code: Vec<Instruction>,
    pub(crate) flags: u64,
}

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) k: u32,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
/// A jump to the end of the rule that is being built; patched when the rule is complete.
const FAIL: u8 = 255;

/// The longest filter that the kernel takes.
const LENGTH_LIMIT: usize = 4096;
/// The mark of x32 system calls.
const X32: u32 = 0x4000_0000;
/// Numbers that arm keeps for its private system calls begin here.
const ARM_PRIVATE: u32 = 0x000f_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = ERRNO | 38;

const fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, k }
}

const fn branch(code: u16, k: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, k }
}

/// A column of the table of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machine {
    X86_64 = 0,
    X32 = 1,
    X86 = 2,
    Aarch64 = 3,
    Arm = 4,
}

impl Machine {
    const NATIVE: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// The kernel's name of the architecture (`AUDIT_ARCH_*`).
    fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    fn number(self, name: &str) -> Option<u32> {
        let index = TABLE.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
        u32::try_from(TABLE[index].1[self as usize]).ok()
    }
}

/// What to do about one system call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    Return(u32),
    Rules(Vec<Rule>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    conditions: Vec<LinuxSeccompArg>,
    result: u32,
}

/// Compiles a profile.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Filter, Error> {
    if profile.listener_path().is_some() || profile.listener_metadata().is_some() {
        return Err(Error::refused("linux.seccomp.listenerPath", "not supported"));
    }
    let default = result(profile.default_action(), profile.default_errno_ret())?;
    let machines = machines(profile)?;
    let mut code = vec![op(LOAD, 4)];
    for audit in [0xc000_003e_u32, 0x4000_0003, 0xc000_00b7, 0x4000_0028] {
        let of_audit: Vec<Machine> =
            machines.iter().copied().filter(|machine| machine.audit() == audit).collect();
        if of_audit.is_empty() {
            continue;
        }
        let ranges = ranges(profile, &of_audit, default)?;
        let mut section = vec![op(LOAD, 0)];
        section.append(&mut search(&ranges, default));
        let length = u32::try_from(section.len()).unwrap_or(u32::MAX);
        code.push(branch(JUMP_EQUAL, audit, 1, 0));
        code.push(op(JUMP, length));
        code.append(&mut section);
    }
    code.push(op(RETURN, KILL_PROCESS));
    if code.len() > LENGTH_LIMIT {
        return Err(Error::refused("linux.seccomp.syscalls", "the filter is too long"));
    }
    Ok(Filter { code, flags: flags(profile)? })
}

fn flags(profile: &LinuxSeccomp) -> Result<u64, Error> {
    let Some(flags) = profile.flags() else {
        // Mitigations against speculation for every filtered process would cost far more than
        // they give: the default of runc since 1.1.
        return Ok(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW);
    };
    let mut bits = 0;
    for flag in flags {
        bits |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            // The process has one thread when the filter is loaded.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(Error::refused("linux.seccomp.flags", "no listener is supported"));
            }
        };
    }
    Ok(bits)
}

fn machines(profile: &LinuxSeccomp) -> Result<Vec<Machine>, Error> {
    let mut machines = vec![Machine::NATIVE];
    for arch in profile.architectures().iter().flatten() {
        let machine = match arch {
            Arch::ScmpArchNative => Machine::NATIVE,
            Arch::ScmpArchX86 => Machine::X86,
            Arch::ScmpArchX86_64 => Machine::X86_64,
            Arch::ScmpArchX32 => Machine::X32,
            Arch::ScmpArchArm => Machine::Arm,
            Arch::ScmpArchAarch64 => Machine::Aarch64,
            other => {
                return Err(Error::refused(
                    "linux.seccomp.architectures",
                    &format!("{other} is not an architecture that kina runs on"),
                ));
            }
        };
        if !machines.contains(&machine) {
            machines.push(machine);
        }
    }
    Ok(machines)
}

/// The value that a filter returns for an action.
fn result(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, Error> {
    let data = |default: u32| match errno {
        None => Ok(default),
        Some(errno) if errno <= 0xfff => Ok(errno),
        Some(errno) => {
            Err(Error::refused("linux.seccomp.errnoRet", &format!("{errno} is not an error number")))
        }
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActErrno => ERRNO | data(1)?,
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | data(1)?,
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => 0x7fff_0000,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(Error::refused("linux.seccomp.action", "SCMP_ACT_NOTIFY is not supported"));
        }
    })
}

/// The decisions of one machine by number.
fn decisions(
    profile: &LinuxSeccomp,
    machine: Machine,
    default: u32,
) -> Result<BTreeMap<u32, Decision>, Error> {
    let mut found: BTreeMap<u32, Decision> = BTreeMap::new();
    for call in profile.syscalls().iter().flatten() {
        let value = result(call.action(), call.errno_ret())?;
        for name in call.names() {
            let Some(number) = machine.number(name) else {
                continue;
            };
            let conditions = call.args().as_deref().unwrap_or_default();
            if let Some(bad) = conditions.iter().find(|condition| condition.index() > 5) {
                return Err(Error::refused(
                    "linux.seccomp.syscalls.args.index",
                    &format!("{} is not the index of an argument", bad.index()),
                ));
            }
            if value == default {
                // Says nothing new, but the name counts as known.
                found.entry(number).or_insert(Decision::Rules(Vec::new()));
                continue;
            }
            let mut rules = Vec::new();
            let repeated = conditions.iter().enumerate().any(|(at, condition)| {
                conditions[..at].iter().any(|other| other.index() == condition.index())
            });
            if repeated {
                rules.extend(
                    conditions.iter().map(|condition| Rule { conditions: vec![*condition], result: value }),
                );
            } else if !conditions.is_empty() {
                rules.push(Rule { conditions: conditions.to_vec(), result: value });
            }
            match (found.entry(number).or_insert(Decision::Rules(Vec::new())), rules.is_empty()) {
                (entry @ Decision::Rules(_), true) => *entry = Decision::Return(value),
                (Decision::Rules(known), false) => known.append(&mut rules),
                // The first unconditional rule stands.
                (Decision::Return(_), _) => {}
            }
        }
    }
    for decision in found.values_mut() {
        if matches!(decision, Decision::Rules(rules) if rules.is_empty()) {
            *decision = Decision::Return(default);
        }
    }
    Ok(found)
}

/// What happens from each number on, until the next entry; the first is 0.
fn ranges(profile: &LinuxSeccomp, machines: &[Machine], default: u32) -> Result<Vec<(u32, Decision)>, Error> {
    let refuses = !matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    );
    let mut ranges: Vec<(u32, Decision)> = Vec::new();
    let mut push = |from: u32, decision: Decision| match ranges.last_mut() {
        Some((_, last)) if *last == decision => {}
        Some((start, last)) if *start == from => *last = decision,
        _ => ranges.push((from, decision)),
    };
    let x86_64 = machines.contains(&Machine::X86_64);
    for machine in machines {
        let base = if *machine == Machine::X32 { X32 } else { 0 };
        let decided = decisions(profile, *machine, default)?;
        let newest = decided.keys().copied().filter(|number| *number < ARM_PRIVATE).max();
        push(base, Decision::Return(default));
        let mut next = 0;
        let unknown =
            if refuses && newest.is_some() { Decision::Return(ENOSYS) } else { Decision::Return(default) };
        for (number, decision) in decided {
            if number > next {
                let private = number >= ARM_PRIVATE && newest.is_some_and(|newest| next == newest + 1);
                let gap = if private { unknown.clone() } else { Decision::Return(default) };
                push(base + next, gap);
            }
            push(base + number, decision);
            next = number + 1;
        }
        push(base + next, unknown);
    }
    if x86_64 && !machines.contains(&Machine::X32) {
        push(X32, Decision::Return(KILL_PROCESS));
    }
    if x86_64 {
        // A tracer skips a call by setting its number to -1: not an x32 call.
        push(u32::MAX, Decision::Return(default));
    }
    Ok(ranges)
}

/// A binary search over ranges. Every path ends in a return.
fn search(ranges: &[(u32, Decision)], default: u32) -> Vec<Instruction> {
    match ranges {
        [] => vec![op(RETURN, default)],
        [(_, decision)] => leaf(decision, default),
        _ => {
            let middle = ranges.len() / 2;
            let mut low = search(&ranges[..middle], default);
            let mut high = search(&ranges[middle..], default);
            let start = ranges[middle].0;
            let mut code = Vec::with_capacity(low.len() + high.len() + 2);
            match u8::try_from(low.len()) {
                Ok(length) => code.push(branch(JUMP_GREATER_EQUAL, start, length, 0)),
                Err(_) => {
                    code.push(branch(JUMP_GREATER_EQUAL, start, 0, 1));
                    code.push(op(JUMP, u32::try_from(low.len()).unwrap_or(u32::MAX)));
                }
            }
            code.append(&mut low);
            code.append(&mut high);
            code
        }
    }
}

fn leaf(decision: &Decision, default: u32) -> Vec<Instruction> {
    match decision {
        Decision::Return(value) => vec![op(RETURN, *value)],
        Decision::Rules(rules) => {
            let mut code = Vec::new();
            for rule in rules {
                let mut block = Vec::new();
                for condition in &rule.conditions {
                    compare(*condition, &mut block);
                }
                block.push(op(RETURN, rule.result));
                let length = block.len();
                for (at, item) in block.iter_mut().enumerate() {
                    // Six conditions of at most six instructions: well below the mark.
                    let left = u8::try_from(length - at - 1).unwrap_or(FAIL);
                    if item.jump_true == FAIL {
                        item.jump_true = left;
                    }
                    if item.jump_false == FAIL {
                        item.jump_false = left;
                    }
                }
                code.append(&mut block);
            }
            code.push(op(RETURN, default));
            code
        }
    }
}

/// Compares one 64-bit argument; falls through if the condition holds, else jumps to `FAIL`.
fn compare(condition: LinuxSeccompArg, code: &mut Vec<Instruction>) {
    // `struct seccomp_data` on a little-endian machine: low word first.
    let low_word = 16 + 8 * u32::try_from(condition.index()).unwrap_or(0);
    let halves = |value: u64| {
        let low = u32::try_from(value & 0xffff_ffff).unwrap_or(u32::MAX);
        (u32::try_from(value >> 32).unwrap_or(u32::MAX), low)
    };
    let (high, low) = halves(condition.value());
    let (load_high, load_low) = (op(LOAD, low_word + 4), op(LOAD, low_word));
    code.push(load_high);
    match condition.op() {
        LinuxSeccompOperator::ScmpCmpEq => {
            code.push(branch(JUMP_EQUAL, high, 0, FAIL));
            code.push(load_low);
            code.push(branch(JUMP_EQUAL, low, 0, FAIL));
        }
        LinuxSeccompOperator::ScmpCmpNe => {
            code.push(branch(JUMP_EQUAL, high, 0, 2));
            code.push(load_low);
            code.push(branch(JUMP_EQUAL, low, FAIL, 0));
        }
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let (want_high, want_low) = halves(condition.value_two().unwrap_or(0));
            code.push(op(AND, high));
            code.push(branch(JUMP_EQUAL, want_high, 0, FAIL));
            code.push(load_low);
            code.push(op(AND, low));
            code.push(branch(JUMP_EQUAL, want_low, 0, FAIL));
        }
        LinuxSeccompOperator::ScmpCmpGt | LinuxSeccompOperator::ScmpCmpGe => {
            let last = if condition.op() == LinuxSeccompOperator::ScmpCmpGt {
                JUMP_GREATER
            } else {
                JUMP_GREATER_EQUAL
            };
            code.push(branch(JUMP_GREATER, high, 3, 0));
            code.push(branch(JUMP_EQUAL, high, 0, FAIL));
            code.push(load_low);
            code.push(branch(last, low, 0, FAIL));
        }
        LinuxSeccompOperator::ScmpCmpLt | LinuxSeccompOperator::ScmpCmpLe => {
            let last = if condition.op() == LinuxSeccompOperator::ScmpCmpLt {
                JUMP_GREATER_EQUAL
            } else {
                JUMP_GREATER
            };
            code.push(branch(JUMP_GREATER, high, FAIL, 0));
            code.push(branch(JUMP_EQUAL, high, 0, 2));
            code.push(load_low);
            code.push(branch(last, low, FAIL, 0));
        }
    }
}
