//! A kernel's image: which version it is, and the kernel proper within.
//!
//! A `bzImage` unpacks itself when it starts, which takes an emulated processor
//! a third of a second, in every machine. QEMU starts the kernel proper as well
//! (an ELF file with a PVH entry), so it is unpacked here, once.

use super::decompress::Compression;

/// A kernel proper is larger than this on no distribution.
const KERNEL_LIMIT: usize = 512 << 20;
/// The note that names the entry: `XEN_ELFNOTE_PHYS32_ENTRY` of
/// include/xen/interface/elfnote.h.
const PVH_ENTRY: u32 = 18;
const PVH_OWNER: &[u8] = b"Xen\0";
/// `PT_NOTE` and the sizes of ELF's headers (64 bit).
const NOTES: u32 = 4;
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

/// The version in a `bzImage`: what `uname -r` says.
pub(super) fn version(image: &[u8]) -> Option<String> {
    // Documentation/arch/x86/boot.rst: `kernel_version`, relative to 0x200.
    header(image)?;
    let at = 0x200 + usize::from(u16_at(image, 0x20e)?);
    let text = image.get(at..at + 256).or_else(|| image.get(at..))?;
    let text = text.split(|byte| *byte == 0).next()?;
    let version = std::str::from_utf8(text).ok()?.split_whitespace().next()?;
    Some(version.to_owned())
}

/// The kernel proper in a `bzImage`, if there is one that QEMU can start.
pub(super) fn kernel_proper(image: &[u8]) -> Option<Vec<u8>> {
    header(image)?;
    let setup_sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let begin = (setup_sectors + 1) * 512 + u32_at(image, 0x248)? as usize;
    let length = u32_at(image, 0x24c)? as usize;
    let payload = image.get(begin..begin.checked_add(length)?)?;
    let mut kernel = Compression::of_payload(payload)?.unpack(payload, KERNEL_LIMIT).ok()?;
    let segments = Segments::read(&kernel)?;
    if !segments.pvh {
        return None;
    }
    // Relocations follow: for kernels that move themselves.
    kernel.truncate(segments.end);
    Some(kernel)
}

/// That there is a boot header that tells of the payload: protocol 2.08.
fn header(image: &[u8]) -> Option<()> {
    let has = image.get(0x202..0x206)? == b"HdrS" && u16_at(image, 0x206)? >= 0x208;
    has.then_some(())
}

/// What an ELF file's program headers say.
struct Segments {
    /// Where the last of the file's used parts ends.
    end: usize,
    pvh: bool,
}

impl Segments {
    fn read(elf: &[u8]) -> Option<Self> {
        // 64 bit, little endian.
        if !elf.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let headers = usize::try_from(u64_at(elf, 32)?).ok()?;
        let count = usize::from(u16_at(elf, 56)?);
        if usize::from(u16_at(elf, 54)?) != PROGRAM_HEADER {
            return None;
        }
        let sections = usize::try_from(u64_at(elf, 40)?).ok()?;
        let sections_length = usize::from(u16_at(elf, 58)?) * usize::from(u16_at(elf, 60)?);
        let mut segments = Self { end: ELF_HEADER.max(sections.checked_add(sections_length)?), pvh: false };
        for index in 0..count {
            let at = headers.checked_add(index * PROGRAM_HEADER)?;
            let offset = usize::try_from(u64_at(elf, at.checked_add(8)?)?).ok()?;
            let length = usize::try_from(u64_at(elf, at.checked_add(32)?)?).ok()?;
            let end = offset.checked_add(length)?;
            let content = elf.get(offset..end)?;
            segments.end = segments.end.max(end);
            segments.pvh |= u32_at(elf, at)? == NOTES && names_pvh_entry(content);
        }
        (segments.end <= elf.len()).then_some(segments)
    }
}

/// Whether one of the notes is the entry's.
fn names_pvh_entry(mut notes: &[u8]) -> bool {
    let mut next = || {
        let name_length = u32_at(notes, 0)? as usize;
        let length = u32_at(notes, 4)? as usize;
        let kind = u32_at(notes, 8)?;
        let name = notes.get(12..12usize.checked_add(name_length)?)?;
        let end = (12 + name_length.next_multiple_of(4)).checked_add(length.checked_next_multiple_of(4)?)?;
        notes = notes.get(end..)?;
        Some(kind == PVH_ENTRY && name == PVH_OWNER)
    };
    std::iter::from_fn(&mut next).any(|is| is)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// An ELF file with one segment of notes, of which the second is of `kind`.
    fn elf(kind: u32) -> Vec<u8> {
        let mut notes = Vec::new();
        for (name, kind, content) in [(&b"Linux\0"[..], 1, &b"12345"[..]), (PVH_OWNER, kind, b"entry")] {
            for number in [u32::try_from(name.len()).unwrap(), 5, kind] {
                notes.extend(number.to_le_bytes());
            }
            for part in [name, content] {
                notes.extend(part);
                notes.resize(notes.len().next_multiple_of(4), 0);
            }
        }
        let mut elf = vec![0; ELF_HEADER + PROGRAM_HEADER];
        put(&mut elf, 0, b"\x7fELF\x02\x01");
        put(&mut elf, 32, &(ELF_HEADER as u64).to_le_bytes());
        put(&mut elf, 54, &56_u16.to_le_bytes());
        put(&mut elf, 56, &1_u16.to_le_bytes());
        let at = ELF_HEADER;
        put(&mut elf, at, &NOTES.to_le_bytes());
        put(&mut elf, at + 8, &((ELF_HEADER + PROGRAM_HEADER) as u64).to_le_bytes());
        put(&mut elf, at + 32, &(notes.len() as u64).to_le_bytes());
        elf.extend(notes);
        elf
    }

    /// A `bzImage` with that payload.
    pub(in crate::boot) fn bzimage(payload: &[u8], version: &str) -> Vec<u8> {
        let mut image = vec![0; 1024];
        put(&mut image, 0x1f1, &[1]);
        put(&mut image, 0x202, b"HdrS");
        put(&mut image, 0x206, &0x20f_u16.to_le_bytes());
        put(&mut image, 0x20e, &0x100_u16.to_le_bytes());
        put(&mut image, 0x300, format!("{version} (somebody) #1 SMP\0").as_bytes());
        put(&mut image, 0x248, &8_u32.to_le_bytes());
        put(&mut image, 0x24c, &u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend([0; 8]);
        image.extend(payload);
        image
    }

    #[test]
    fn the_version_is_that_of_uname() {
        assert_eq!(version(&bzimage(b"", "6.1.0-56-cloud-amd64")).as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(version(b"no kernel"), None);
    }

    #[test]
    fn the_kernel_within_is_found_and_cut() {
        let elf = elf(PVH_ENTRY);
        let with_relocations = [elf.as_slice(), b"relocations"].concat();
        let payload = zstd::encode_all(with_relocations.as_slice(), 1).unwrap();
        assert_eq!(kernel_proper(&bzimage(&payload, "6")), Some(elf));
    }

    #[test]
    fn a_kernel_that_qemu_cannot_start_is_left_as_it_is() {
        let other_note = zstd::encode_all(elf(PVH_ENTRY + 1).as_slice(), 1).unwrap();
        let no_elf = zstd::encode_all(&b"content"[..], 1).unwrap();
        for payload in [other_note.as_slice(), no_elf.as_slice(), b"unknown form", &other_note[..20]] {
            assert_eq!(kernel_proper(&bzimage(payload, "6")), None);
        }
        assert_eq!(kernel_proper(b"no kernel"), None);
    }

    #[test]
    fn cut_files_are_no_panic() {
        let elf = elf(PVH_ENTRY);
        for length in 0..elf.len() {
            assert!(Segments::read(&elf[..length]).is_none());
        }
        let image = bzimage(&elf, "6");
        for length in 0..image.len() {
            assert_eq!(kernel_proper(&image[..length]), None);
        }
    }
}
