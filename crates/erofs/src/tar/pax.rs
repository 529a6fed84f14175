//! PAX extended headers: `LENGTH KEY=VALUE\n` records.

use std::collections::BTreeMap;

use crate::error::{Error, Place};
use crate::tar::entry::Timestamp;

const XATTR: &[u8] = b"SCHILY.xattr.";
/// libarchive's (bsdtar's) form: the name percent-encoded, the value in base64. It usually
/// writes both.
const LIBARCHIVE_XATTR: &[u8] = b"LIBARCHIVE.xattr.";
/// The largest value that Linux lets an extended attribute have.
const MAX_XATTR_VALUE: usize = 65536;

/// What extension headers say about the entry behind them.
#[derive(Default)]
pub(crate) struct Extensions {
    /// GNU long name: outranks everything, as in Go's reader (and so in containerd).
    pub(crate) long_name: Option<Vec<u8>>,
    pub(crate) long_link: Option<Vec<u8>>,
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<Timestamp>,
    /// By name.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Those in libarchive's form; the others win.
    libarchive_xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) sparse: PaxSparse,
}

/// The `GNU.sparse.*` keys.
#[derive(Default)]
pub(crate) struct PaxSparse {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// `GNU.sparse.realsize` (1.0) or `GNU.sparse.size` (0.x).
    pub(crate) real_size: Option<u64>,
    /// Offset and length in turn, from `GNU.sparse.map` or the repeated 0.0 keys.
    pub(crate) map: Vec<u64>,
}

impl Extensions {
    /// Adds the records of one `x` header; later records win.
    pub(crate) fn add_pax(&mut self, mut records: &[u8], offset: u64) -> Result<(), Error> {
        let bad = |problem| Error::BadExtension { offset, place: Place::Start, problem };
        while !records.is_empty() {
            let space = records
                .iter()
                .take(20)
                .position(|&byte| byte == b' ')
                .ok_or(bad("a record has no length"))?;
            let length = decimal(&records[..space]).ok_or(bad("a record's length is no number"))?;
            let length = usize::try_from(length).ok().filter(|&length| length <= records.len());
            let length = length.ok_or(bad("a record is longer than the header"))?;
            let record = records
                .get(space + 1..length)
                .and_then(|record| record.strip_suffix(b"\n"))
                .ok_or(bad("a record does not end with a newline"))?;
            let equals =
                record.iter().position(|&byte| byte == b'=').ok_or(bad("a record has no equals sign"))?;
            self.set(&record[..equals], &record[equals + 1..], offset)?;
            records = &records[length..];
        }
        Ok(())
    }

    /// One record. An empty value takes back what an earlier header said.
    fn set(&mut self, key: &[u8], value: &[u8], offset: u64) -> Result<(), Error> {
        let bad = |field| Error::BadNumber { offset, place: Place::Start, field };
        match key {
            b"path" => self.path = some_text(value, offset)?,
            b"linkpath" => self.link = some_text(value, offset)?,
            b"size" => self.size = optional(value, decimal).ok_or(bad("size"))?,
            b"uid" => self.uid = optional(value, id).ok_or(bad("uid"))?,
            b"gid" => self.gid = optional(value, id).ok_or(bad("gid"))?,
            b"mtime" => self.mtime = optional(value, timestamp).ok_or(bad("mtime"))?,
            b"GNU.sparse.major" => {
                self.sparse.major = optional(value, decimal).ok_or(bad("GNU.sparse.major"))?;
            }
            b"GNU.sparse.minor" => {
                self.sparse.minor = optional(value, decimal).ok_or(bad("GNU.sparse.minor"))?;
            }
            b"GNU.sparse.name" => self.sparse.name = some_text(value, offset)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = optional(value, decimal).ok_or(bad("GNU.sparse.size"))?;
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let is_offset = key == b"GNU.sparse.offset";
                if self.sparse.map.len().is_multiple_of(2) != is_offset {
                    return Err(bad("GNU.sparse.offset"));
                }
                let number = decimal(value).ok_or(bad("GNU.sparse.offset"))?;
                self.sparse.map.push(number);
            }
            b"GNU.sparse.map" => {
                let numbers = value.split(|&byte| byte == b',').map(decimal);
                self.sparse.map = numbers.collect::<Option<_>>().ok_or(bad("GNU.sparse.map"))?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    check_xattr(name, value, offset)?;
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                } else if let Some(name) = key.strip_prefix(LIBARCHIVE_XATTR) {
                    let bad = |problem| Error::BadExtension { offset, place: Place::Start, problem };
                    let value = base64(value).ok_or(bad("an extended attribute is not base64"))?;
                    let name = percent_decoded(name).unwrap_or_default();
                    check_xattr(&name, &value, offset)?;
                    self.libarchive_xattrs.insert(name, value);
                }
            }
        }
        Ok(())
    }

    /// All attributes, by name.
    pub(crate) fn take_xattrs(&mut self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut all = std::mem::take(&mut self.libarchive_xattrs);
        all.append(&mut self.xattrs);
        all
    }
}

fn check_xattr(name: &[u8], value: &[u8], offset: u64) -> Result<(), Error> {
    let bad = |problem| Error::BadExtension { offset, place: Place::Start, problem };
    if name.is_empty() || name.len() > 255 || name.contains(&0) {
        return Err(bad("it names an impossible extended attribute"));
    }
    if value.len() > MAX_XATTR_VALUE {
        return Err(bad("an extended attribute is larger than 64 KiB"));
    }
    Ok(())
}

/// The standard alphabet; padding may be there or not.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    let text = &text[..text.len() - padding];
    if padding > 2 || text.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let mut bits = 0_u32;
    let mut count = 0;
    for &byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Some(bytes)
}

fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, more)) = rest.split_first() {
        if byte == b'%' {
            let (digits, after) = more.split_at_checked(2)?;
            decoded.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            decoded.push(byte);
            rest = more;
        }
    }
    Some(decoded)
}

fn some_text(value: &[u8], offset: u64) -> Result<Option<Vec<u8>>, Error> {
    if value.contains(&0) {
        return Err(Error::BadExtension {
            offset,
            place: Place::Start,
            problem: "a path has a NUL byte in it",
        });
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

/// `None`: malformed; `Some(None)`: empty.
#[expect(clippy::option_option, reason = "malformed and absent differ")]
fn optional<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() {
        return Some(None);
    }
    parse(value).map(Some)
}

/// Decimal digits and nothing else, at most `i64::MAX`.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    i64::try_from(value).is_ok().then_some(value)
}

fn id(text: &[u8]) -> Option<u32> {
    u32::try_from(decimal(text)?).ok()
}

/// `[-]SECONDS[.FRACTION]`, cut to nanoseconds towards the past.
fn timestamp(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = text.iter().position(|&byte| byte == b'.');
    let (whole, fraction) = match point {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let mut digits = [b'0'; 9];
    let kept = fraction.len().min(9);
    digits[..kept].copy_from_slice(&fraction[..kept]);
    let mut nanoseconds = u32::try_from(decimal(&digits)?).ok()?;
    if !negative {
        return Some(Timestamp { seconds, nanoseconds });
    }
    if fraction[kept..].iter().any(|&digit| digit != b'0') {
        nanoseconds += 1;
    }
    let borrow = i64::from(nanoseconds > 0);
    Some(Timestamp {
        seconds: -seconds - borrow,
        nanoseconds: if borrow == 0 { 0 } else { 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(records: &[u8]) -> Result<Extensions, Error> {
        let mut extensions = Extensions::default();
        extensions.add_pax(records, 0)?;
        Ok(extensions)
    }

    #[test]
    fn records_are_read_and_the_last_wins() {
        let extensions = add(b"9 path=a\n9 path=b\n13 uid=70000\n11 foo=a=b\n").unwrap();
        assert_eq!(extensions.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(extensions.uid, Some(70000));
        let extensions = add(b"9 path=a\n8 path=\n").unwrap();
        assert_eq!(extensions.path, None);
    }

    #[test]
    fn xattr_values_may_hold_anything() {
        let extensions = add(b"27 SCHILY.xattr.user.a=\n\0=\n").unwrap();
        assert_eq!(extensions.xattrs[&b"user.a"[..]], b"\n\0=");
    }

    #[test]
    fn libarchives_form_is_read_and_yields_to_the_common_one() {
        let mut extensions = add(b"35 LIBARCHIVE.xattr.user.a%25=dgE=\n30 LIBARCHIVE.xattr.user.b=dw\n\
              25 SCHILY.xattr.user.b=x\n32 LIBARCHIVE.xattr.user.c=AAEC\n");
        let xattrs = extensions.as_mut().unwrap().take_xattrs();
        assert_eq!(xattrs[&b"user.a%"[..]], b"v\x01");
        assert_eq!(xattrs[&b"user.b"[..]], b"x");
        assert_eq!(xattrs[&b"user.c"[..]], b"\0\x01\x02");
    }

    #[test]
    fn bad_records_are_refused() {
        for records in [
            &b"path=a\n"[..],
            b"99 path=a\n",
            b"9 path=ab\n",
            b"7 patha\n",
            b"0 \n",
            b"3 \n",
            b"-9 path=a\n",
            b"11 path=\0a\n",
            b"11 size=-1\n",
            b"9 uid=-1\n",
            b"18 uid=4294967296\n",
            b"11 mtime=.\n",
            b"13 mtime=1.x\n",
            b"25 GNU.sparse.numbytes=1\n",
            b"21 GNU.sparse.map=1,\n",
            b"18 SCHILY.xattr.=\n",
        ] {
            assert!(add(records).is_err(), "{}", records.escape_ascii());
        }
    }

    #[test]
    fn timestamps() {
        let cases: &[(&str, Option<(i64, u32)>)] = &[
            ("0", Some((0, 0))),
            ("1700000000.123456789", Some((1_700_000_000, 123_456_789))),
            ("1.5", Some((1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("1.0000000009", Some((1, 0))),
            ("-1", Some((-1, 0))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.0000000001", Some((-1, 999_999_999))),
            ("", None),
            (".5", None),
            ("1e3", None),
            ("99999999999999999999", None),
        ];
        for (text, expected) in cases {
            let parsed = timestamp(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds));
            assert_eq!(parsed, *expected, "{text}");
        }
    }
}
