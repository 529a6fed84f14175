//! What macOS asks of a program before it runs it: that it is made for this processor, and
//! that its signature, which may be nobody's (`ad hoc`), fits what it signs. One that was
//! changed after it was signed is killed at once.
//!
//! The formats are those of `<mach-o/loader.h>` and `<kern/cs_blobs.h>`.

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};

/// The first eight bytes of a 64-bit Mach-O file for arm64.
const MACH_O_ARM64: [u8; 8] = [0xcf, 0xfa, 0xed, 0xfe, 0x0c, 0x00, 0x00, 0x01];
/// The length of the header before the load commands.
const HEADER: usize = 32;
/// `LC_CODE_SIGNATURE`.
const SIGNATURE_COMMAND: u32 = 0x1d;
/// `CSMAGIC_EMBEDDED_SIGNATURE` and `CSMAGIC_CODEDIRECTORY`.
const SIGNATURE: u32 = 0xfade_0cc0;
const DIRECTORY: u32 = 0xfade_0c02;
/// `CS_HASHTYPE_SHA256`, and the length of such a hash.
const SHA256: u8 = 2;
const HASH_LENGTH: u8 = 32;
const HASH: usize = HASH_LENGTH as usize;

/// Fails when macOS would not run a program.
pub(crate) fn check(program: &[u8]) -> Result<()> {
    ensure!(program.starts_with(&MACH_O_ARM64), "it is not a Mach-O file for arm64");
    let blob = signature(program)?.context("it has no signature, and macOS runs none without")?;
    check_pages(program, blob).context("macOS would kill it: its signature does not fit")
}

/// The bytes of the signature.
fn signature(program: &[u8]) -> Result<Option<&[u8]>> {
    let mut at = HEADER;
    for _ in 0..little(program, 16)? {
        let (command, length) = (little(program, at)?, size(little(program, at + 4)?)?);
        if command == SIGNATURE_COMMAND {
            let start = size(little(program, at + 8)?)?;
            return part(program, start, size(little(program, at + 12)?)?).map(Some);
        }
        ensure!(length > 0, "a load command has no length");
        at += length;
    }
    Ok(None)
}

/// Compares the hash of each page with the directory's.
fn check_pages(program: &[u8], blob: &[u8]) -> Result<()> {
    ensure!(big(blob, 0)? == SIGNATURE, "there is no signature where it should be");
    let mut directory = None;
    for index in 0..size(big(blob, 8)?)? {
        let start = size(big(blob, 16 + 8 * index)?)?;
        let found = part(blob, start, blob.len().saturating_sub(start))?;
        if big(found, 0)? == DIRECTORY {
            directory = Some(found);
            break;
        }
    }
    let directory = directory.context("there is no directory of code")?;
    let kind = part(directory, 36, 4)?;
    ensure!(kind[..2] == [HASH_LENGTH, SHA256], "its hashes are no SHA-256, but of kind {}", kind[1]);
    let (hashes, pages) = (size(big(directory, 16)?)?, size(big(directory, 28)?)?);
    let code = part(program, 0, size(big(directory, 32)?)?)?;
    let page = 1_usize.checked_shl(kind[3].into()).context("its pages are endless")?;
    ensure!(code.len().div_ceil(page) == pages, "{pages} pages are signed of {} bytes", code.len());
    for (number, content) in code.chunks(page).enumerate() {
        let hash = part(directory, hashes + number * HASH, HASH)?;
        ensure!(Sha256::digest(content).as_slice() == hash, "page {number} is another");
    }
    Ok(())
}

fn part(bytes: &[u8], start: usize, length: usize) -> Result<&[u8]> {
    let end = start.checked_add(length).context("it has parts beyond its end")?;
    bytes.get(start..end).context("it has parts beyond its end")
}

fn little(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(part(bytes, at, 4)?.try_into()?))
}

fn big(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_be_bytes(part(bytes, at, 4)?.try_into()?))
}

fn size(number: u32) -> Result<usize> {
    Ok(usize::try_from(number)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    /// A program of two pages and a bit, signed.
    fn signed() -> Vec<u8> {
        let (code, directory) = (2 * PAGE + 100, 44);
        let length = directory + 3 * HASH;
        let number = |number: usize| u32::try_from(number).unwrap();
        let mut program = MACH_O_ARM64.to_vec();
        program.resize(16, 0);
        program.extend(2_u32.to_le_bytes());
        program.resize(HEADER, 0);
        // Another command, then the signature's.
        let commands = [1, 8, SIGNATURE_COMMAND, 16, number(code), number(20 + length)];
        program.extend(commands.iter().flat_map(|word| word.to_le_bytes()));
        program.resize(code, b'x');
        let hashes: Vec<u8> = program.chunks(PAGE).flat_map(Sha256::digest).collect();
        let (signature, length) = ([SIGNATURE, number(20 + length), 1, 0, 20], number(length));
        let words = [DIRECTORY, length, 0x20400, 2, number(directory), 0, 0, 3, number(code)];
        program.extend(signature.iter().chain(&words).flat_map(|word| word.to_be_bytes()));
        program.extend([32, SHA256, 0, 12, 0, 0, 0, 0]);
        program.extend(hashes);
        program
    }

    #[test]
    fn a_signature_that_fits_is_seen_and_one_that_does_not() {
        let program = signed();
        check(&program).unwrap();
        let said = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut changed = signed();
            change(&mut changed);
            format!("{:#}", check(&changed).unwrap_err())
        };
        let error = said(&|program| program[PAGE + 5] = b'y');
        assert_eq!(error, "macOS would kill it: its signature does not fit: page 1 is another");
        let error = said(&|program| program[HEADER + 8] = 2);
        assert!(error.contains("no signature"), "{error}");
        let error = said(&|program| program[4] = 7);
        assert!(error.contains("not a Mach-O file for arm64"), "{error}");
        // Wherever it is cut off, an error says so and nothing panics.
        for length in 0..program.len() {
            assert!(check(&program[..length]).is_err(), "{length}");
        }
    }
}
