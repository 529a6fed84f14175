//! One 512-byte tar header: v7, ustar, star or old GNU.

use crate::error::{Error, Place};

pub(crate) const BLOCK: usize = 512;

/// Where the checksum field stands.
const CHECKSUM: std::ops::Range<usize> = 148..156;

pub(crate) struct Header<'a> {
    block: &'a [u8; BLOCK],
    offset: u64,
}

/// A numeric field: where it is, and its name for errors.
#[derive(Clone, Copy)]
pub(crate) struct Field(usize, usize, &'static str);

impl Field {
    pub(crate) const MODE: Self = Self(100, 8, "mode");
    pub(crate) const UID: Self = Self(108, 8, "uid");
    pub(crate) const GID: Self = Self(116, 8, "gid");
    pub(crate) const SIZE: Self = Self(124, 12, "size");
    pub(crate) const MTIME: Self = Self(136, 12, "mtime");
    pub(crate) const MAJOR: Self = Self(329, 8, "device major");
    pub(crate) const MINOR: Self = Self(337, 8, "device minor");
    pub(crate) const REAL_SIZE: Self = Self(483, 12, "real size");

    /// Field `index` of the sparse map that starts at `base`.
    pub(crate) fn sparse(base: usize, index: usize) -> Self {
        Self(base + 12 * index, 12, "sparse map")
    }
}

impl<'a> Header<'a> {
    /// Checks the checksum, which old tars computed over signed bytes.
    pub(crate) fn parse(block: &'a [u8; BLOCK], offset: u64) -> Result<Self, Error> {
        let stored = number(&block[CHECKSUM]).ok_or(Error::BadNumber {
            offset,
            place: Place::Start,
            field: "checksum",
        })?;
        let mut unsigned = 0_i64;
        let mut signed = 0_i64;
        for (index, &byte) in block.iter().enumerate() {
            let byte = if CHECKSUM.contains(&index) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored != unsigned && stored != signed {
            return Err(Error::BadChecksum { offset, place: Place::Start });
        }
        Ok(Self { block, offset })
    }

    /// A block that continues a header and has no checksum of its own.
    pub(crate) fn unchecked(block: &'a [u8; BLOCK], offset: u64) -> Self {
        Self { block, offset }
    }

    pub(crate) fn kind(&self) -> u8 {
        self.block[156]
    }

    /// The name, with the prefix that ustar and star keep apart.
    pub(crate) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let is_ustar = &self.block[257..263] == b"ustar\0";
        let prefix_end = if &self.block[508..] == b"tar\0" { 476 } else { 500 };
        let prefix = if is_ustar { text(&self.block[345..prefix_end]) } else { &[] };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(crate) fn link(&self) -> &[u8] {
        text(&self.block[157..257])
    }

    /// A field's value, which base-256 can make negative.
    pub(crate) fn signed(&self, field: Field) -> Result<i64, Error> {
        number(&self.block[field.0..field.0 + field.1]).ok_or_else(|| self.bad(field))
    }

    pub(crate) fn unsigned(&self, field: Field) -> Result<u64, Error> {
        u64::try_from(self.signed(field)?).map_err(|_| self.bad(field))
    }

    pub(crate) fn short(&self, field: Field) -> Result<u32, Error> {
        u32::try_from(self.signed(field)?).map_err(|_| self.bad(field))
    }

    pub(crate) fn byte(&self, at: usize) -> u8 {
        self.block[at]
    }

    fn bad(&self, field: Field) -> Error {
        Error::BadNumber { offset: self.offset, place: Place::Start, field: field.2 }
    }
}

/// Bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or(&[])
}

/// Octal with blanks around it, or base-256 when the first byte's top bit is set.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Two's complement over the whole field, less the marker bit.
        let start = i128::from(first & 0x3f) - i128::from(first & 0x40);
        let mut value = start;
        for &byte in rest {
            value = value.checked_mul(256)?.checked_add(i128::from(byte))?;
        }
        return i64::try_from(value).ok();
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let from = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let digits = &field[from..];
    let to = digits.iter().position(is_blank).unwrap_or(digits.len());
    digits[..to].iter().try_fold(0_i64, |value, &byte| {
        let digit = matches!(byte, b'0'..=b'7').then(|| i64::from(byte - b'0'))?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let cases: &[(&[u8], Option<i64>)] = &[
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"0000648\0", None),
            (b"-1\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (field, expected) in cases {
            assert_eq!(number(field), *expected, "{field:?}");
        }
    }

    #[test]
    fn a_signed_checksum_is_accepted_and_a_wrong_one_is_not() {
        let mut block = [0_u8; BLOCK];
        block[0] = 0xe9;
        let unsigned = 0xe9 + 8 * 32;
        let mut check = |sum: i32| {
            block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            Header::parse(&block, 512).map(|_| ())
        };
        check(unsigned).unwrap();
        check(unsigned - 256).unwrap();
        assert!(matches!(check(unsigned + 1), Err(Error::BadChecksum { offset: 512, .. })));
    }
}
