//! Just enough of ELF to tell whether a program needs an interpreter.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Why a file cannot be the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It needs nothing but a kernel.
    Static,
    /// It needs a dynamic linker, which is in no image and no machine.
    Dynamic,
    /// It is not an ELF program of this machine's byte order.
    NotElf,
}

/// Program header type of an interpreter's path (`PT_INTERP` of elf(5)).
const INTERPRETER: u32 = 3;

/// As much of a program as is looked at, in bytes.
const BEGINNING: u64 = 1 << 20;

/// Looks at a program. Blocks.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn look_at(path: &Path) -> io::Result<Verdict> {
    let mut beginning = Vec::new();
    File::open(path)?.take(BEGINNING).read_to_end(&mut beginning)?;
    Ok(verdict(&beginning))
}

/// Looks at a program's beginning: the header and the program headers.
fn verdict(program: &[u8]) -> Verdict {
    read(program).unwrap_or(Verdict::NotElf)
}

fn read(program: &[u8]) -> Option<Verdict> {
    // 64 bits, least significant byte first: all that kina runs on.
    if program.get(..6)? != [0x7f, b'E', b'L', b'F', 2, 1] {
        return None;
    }
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = program.get(at..at.checked_add(size)?)?;
        bytes.iter().rev().try_fold(0_usize, |value, byte| Some(value.checked_mul(256)? + usize::from(*byte)))
    };
    let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let kind = number(offset.checked_add(index * size)?, 4)?;
        if u32::try_from(kind).ok()? == INTERPRETER {
            return Some(Verdict::Dynamic);
        }
    }
    Some(Verdict::Static)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs() {
        let mut program = vec![0; 64 + 2 * 56];
        program[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        program[32] = 64;
        program[54] = 56;
        program[56] = 2;
        program[64] = 1;
        assert_eq!(verdict(&program), Verdict::Static);
        program[64 + 56] = 3;
        assert_eq!(verdict(&program), Verdict::Dynamic);
        program[32..40].fill(0xff);
        assert_eq!(verdict(&program), Verdict::NotElf);
        assert_eq!(verdict(b"#!/bin/sh"), Verdict::NotElf);
        assert_eq!(verdict(b""), Verdict::NotElf);
    }
}
