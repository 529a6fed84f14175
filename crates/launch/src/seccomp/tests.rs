//! Filters are run here on an interpreter of their few instructions, and compared with a plain
//! reading of the profile.

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompOperator,
    LinuxSyscall,
};
use proptest::prelude::*;

use super::compile::{Instruction, compile};
use crate::defaults;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;

const fn errno(number: u32) -> u32 {
    0x0005_0000 | number
}

/// What the filter returns for a call.
fn decide(code: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = vec![number, arch, 0, 0];
    for arg in args {
        data.push(u32::try_from(arg & 0xffff_ffff).unwrap());
        data.push(u32::try_from(arg >> 32).unwrap());
    }
    let (mut at, mut accumulator) = (0_usize, 0_u32);
    loop {
        let Instruction { code, jump_true, jump_false, k } = code[at];
        let condition = match code {
            0x20 => {
                accumulator = data[usize::try_from(k / 4).unwrap()];
                at += 1;
                continue;
            }
            0x54 => {
                accumulator &= k;
                at += 1;
                continue;
            }
            0x05 => {
                at += 1 + usize::try_from(k).unwrap();
                continue;
            }
            0x06 => return k,
            0x15 => accumulator == k,
            0x25 => accumulator > k,
            0x35 => accumulator >= k,
            other => panic!("unknown instruction {other:#x}"),
        };
        at += 1 + usize::from(if condition { jump_true } else { jump_false });
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_default_profile_decides_as_containerds() {
    let code = compile(&defaults::seccomp(&defaults::CAPABILITIES)).unwrap().code;
    let call = |number: u32, first: u64| decide(&code, X86_64, number, [first, 0, 0, 0, 0, 0]);
    assert_eq!(call(0, 0), ALLOW, "read");
    assert_eq!(call(165, 0), errno(1), "mount");
    assert_eq!(call(161, 0), ALLOW, "chroot comes with CAP_SYS_CHROOT");
    assert_eq!(call(56, 0x11), ALLOW, "clone without namespaces");
    assert_eq!(call(56, 0x1000_0000), errno(1), "clone with CLONE_NEWUSER");
    assert_eq!(call(435, 0), errno(38), "clone3");
    assert_eq!(call(41, 1), ALLOW, "socket AF_UNIX");
    assert_eq!(call(41, 38), errno(1), "socket AF_ALG");
    assert_eq!(call(41, 40), errno(1), "socket AF_VSOCK");
    assert_eq!(call(135, 8), ALLOW, "personality");
    assert_eq!(call(135, 9), errno(1), "personality");
    assert_eq!(call(135, 0x1_0000_0008), errno(1), "the high word counts");
    assert_eq!(call(425, 0), errno(1), "io_uring_setup");
    assert_eq!(call(480, 0), errno(38), "newer than the profile");
    assert_eq!(call(0x4000_0000 | 520, 0), ALLOW, "execve of x32");
    assert_eq!(call(0x4000_0000 | 1000, 0), errno(38), "newer than the profile, x32");
    assert_eq!(call(u32::MAX, 0), errno(1), "skipped by a tracer");
    assert_eq!(decide(&code, I386, 3, [0; 6]), ALLOW, "read of i386");
    assert_eq!(decide(&code, I386, 21, [0; 6]), errno(1), "mount of i386");
    assert_eq!(decide(&code, I386, 480, [0; 6]), errno(38), "newer, i386");
    assert_eq!(decide(&code, AARCH64, 63, [0; 6]), KILL, "another architecture");
}

#[test]
fn arm_keeps_its_private_calls() {
    let mut profile = defaults::seccomp(&[]);
    profile.set_architectures(Some(vec![Arch::ScmpArchArm, Arch::ScmpArchAarch64]));
    let mut private = LinuxSyscall::default();
    private.set_names(vec!["cacheflush".to_owned(), "set_tls".to_owned()]);
    let mut calls = profile.syscalls().clone().unwrap();
    calls.push(private);
    profile.set_syscalls(Some(calls));
    let code = compile(&profile).unwrap().code;
    assert_eq!(decide(&code, 0x4000_0028, 0xf0002, [0; 6]), ALLOW);
    assert_eq!(decide(&code, 0x4000_0028, 0xf0003, [0; 6]), errno(1));
    assert_eq!(decide(&code, 0x4000_0028, 480, [0; 6]), errno(38));
    assert_eq!(decide(&code, AARCH64, 63, [0; 6]), ALLOW, "read");
    assert_eq!(decide(&code, AARCH64, 480, [0; 6]), errno(38));
}

#[test]
fn a_permissive_default_answers_for_new_calls_too() {
    let mut profile = defaults::seccomp(&[Capability::SysAdmin]);
    profile.set_default_action(LinuxSeccompAction::ScmpActAllow);
    profile.set_architectures(None);
    let code = compile(&profile).unwrap().code;
    let native = if cfg!(target_arch = "aarch64") { AARCH64 } else { X86_64 };
    assert_eq!(decide(&code, native, 9999, [0; 6]), ALLOW);
}

const OPERATORS: [LinuxSeccompOperator; 7] = [
    LinuxSeccompOperator::ScmpCmpNe,
    LinuxSeccompOperator::ScmpCmpLt,
    LinuxSeccompOperator::ScmpCmpLe,
    LinuxSeccompOperator::ScmpCmpEq,
    LinuxSeccompOperator::ScmpCmpGe,
    LinuxSeccompOperator::ScmpCmpGt,
    LinuxSeccompOperator::ScmpCmpMaskedEq,
];

fn holds(op: LinuxSeccompOperator, argument: u64, value: u64, second: u64) -> bool {
    match op {
        LinuxSeccompOperator::ScmpCmpNe => argument != value,
        LinuxSeccompOperator::ScmpCmpLt => argument < value,
        LinuxSeccompOperator::ScmpCmpLe => argument <= value,
        LinuxSeccompOperator::ScmpCmpEq => argument == value,
        LinuxSeccompOperator::ScmpCmpGe => argument >= value,
        LinuxSeccompOperator::ScmpCmpGt => argument > value,
        LinuxSeccompOperator::ScmpCmpMaskedEq => argument & value == second,
    }
}

/// Numbers that agree in one word or the other, where comparisons go wrong.
fn word() -> impl Strategy<Value = u64> {
    let half = prop_oneof![Just(0_u64), Just(1), Just(2), Just(0xffff_ffff)];
    (half.clone(), half).prop_map(|(high, low)| high << 32 | low)
}

proptest! {
    #[test]
    fn conditions_compare_64_bits(
        rules in proptest::collection::vec(
            proptest::collection::vec((0..6_usize, 0..7_usize, word(), word()), 1..4),
            1..4,
        ),
        args in proptest::array::uniform6(word()),
    ) {
        let mut profile: LinuxSeccomp = defaults::seccomp(&[]);
        profile.set_architectures(None);
        let calls = rules.iter().map(|conditions| {
            let mut call = LinuxSyscall::default();
            call.set_names(vec!["read".to_owned()]);
            call.set_args(Some(conditions.iter().map(|(index, op, value, second)| {
                LinuxSeccompArgBuilder::default()
                    .index(*index)
                    .op(OPERATORS[*op])
                    .value(*value)
                    .value_two(*second)
                    .build()
                    .unwrap()
            }).collect()));
            call
        });
        profile.set_syscalls(Some(calls.collect()));
        let code = compile(&profile).unwrap().code;
        let allowed = rules.iter().any(|conditions| {
            let mut results = conditions.iter().map(|(index, op, value, second)| {
                holds(OPERATORS[*op], args[*index], *value, *second)
            });
            let repeated = conditions.iter().enumerate().any(|(at, condition)| {
                conditions[..at].iter().any(|other| other.0 == condition.0)
            });
            if repeated { results.any(|held| held) } else { results.all(|held| held) }
        });
        let (native, read) = if cfg!(target_arch = "aarch64") { (AARCH64, 63) } else { (X86_64, 0) };
        let expected = if allowed { ALLOW } else { errno(1) };
        prop_assert_eq!(decide(&code, native, read, args), expected);
    }
}
