//! Extended attributes in the form that EROFS stores behind an inode.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// `struct erofs_xattr_ibody_header`: name filter, shared count, reserved.
const HEADER_BYTES: usize = 12;
/// What `i_xattr_icount` (16 bits, units of 4 bytes, the header counted as one) can say.
const MAX_BODY_BYTES: usize = HEADER_BYTES + 4 * (u16::MAX as usize - 1);

/// The name prefixes of the EROFS on-disk format. The ACL names have no rest.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Every distinct set of attributes, once: layers often carry the same label on all files.
#[derive(Default)]
pub(crate) struct XattrTable {
    sets: Vec<Rc<[u8]>>,
    known: HashMap<Rc<[u8]>, u32>,
}

/// Which set of the table an inode has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct XattrSet(u32);

impl XattrTable {
    /// Adds a set in its stored form; says how many bytes it newly takes.
    pub(crate) fn intern(&mut self, body: Vec<u8>) -> (XattrSet, usize) {
        if body.is_empty() {
            return (XattrSet(0), 0);
        }
        if let Some(&known) = self.known.get(body.as_slice()) {
            return (XattrSet(known), 0);
        }
        let bytes = body.len();
        let body: Rc<[u8]> = body.into();
        self.sets.push(Rc::clone(&body));
        // Zero is the empty set; entries are limited far below 2^32.
        let set = u32::try_from(self.sets.len()).unwrap_or(u32::MAX);
        self.known.insert(body, set);
        (XattrSet(set), bytes)
    }

    /// The stored form of a set; empty for no attributes.
    pub(crate) fn body(&self, set: XattrSet) -> &[u8] {
        (set.0 as usize).checked_sub(1).and_then(|index| self.sets.get(index)).map_or(&[], |body| body)
    }
}

/// The stored form of some attributes, and how many of them it cannot hold.
pub(crate) struct Encoded {
    /// Empty when no attribute is left.
    pub(crate) body: Vec<u8>,
    /// Names that EROFS cannot express, or that are overlayfs' own.
    pub(crate) skipped: u64,
    /// The attributes are more than one inode can have.
    pub(crate) too_large: bool,
}

/// Encodes the attributes of one entry, sorted by name.
pub(crate) fn encode(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Encoded {
    let mut encoded = Encoded { body: Vec::new(), skipped: 0, too_large: false };
    for (name, value) in xattrs {
        if is_overlay(name) {
            encoded.skipped += 1;
            continue;
        }
        let Some((index, rest)) = split(name) else {
            encoded.skipped += 1;
            continue;
        };
        let (Ok(name_len), Ok(value_size)) = (u8::try_from(rest.len()), u16::try_from(value.len())) else {
            encoded.too_large = true;
            continue;
        };
        push(&mut encoded.body, index, name_len, rest, value_size, value);
    }
    encoded.too_large |= encoded.body.len() > MAX_BODY_BYTES - 32;
    encoded
}

/// Adds `trusted.overlay.opaque=y` to a stored set. Room for it is kept by [`encode`].
pub(crate) fn with_opaque(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    push(&mut body, 4, 14, b"overlay.opaque", 1, b"y");
    body
}

/// `i_xattr_icount` of a stored set.
pub(crate) fn icount(body: &[u8]) -> u16 {
    if body.is_empty() {
        return 0;
    }
    u16::try_from(1 + (body.len() - HEADER_BYTES) / 4).unwrap_or(u16::MAX)
}

fn push(body: &mut Vec<u8>, index: u8, name_len: u8, name: &[u8], value_size: u16, value: &[u8]) {
    if body.is_empty() {
        body.resize(HEADER_BYTES, 0);
    }
    body.push(name_len);
    body.push(index);
    body.extend_from_slice(&value_size.to_le_bytes());
    body.extend_from_slice(name);
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn is_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        let is_acl = matches!(index, 2 | 3);
        (rest.is_empty() == is_acl).then_some((*index, rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &[u8]) -> Encoded {
        encode(&BTreeMap::from([(name.as_bytes().to_vec(), value.to_vec())]))
    }

    #[test]
    fn names_are_split_by_prefix() {
        assert_eq!(split(b"user.a"), Some((1, &b"a"[..])));
        assert_eq!(split(b"security.capability"), Some((6, &b"capability"[..])));
        assert_eq!(split(b"system.posix_acl_access"), Some((2, &b""[..])));
        assert_eq!(split(b"system.posix_acl_accessory"), None);
        assert_eq!(split(b"user."), None);
        assert_eq!(split(b"btrfs.compression"), None);
    }

    #[test]
    fn a_set_is_padded_and_counted_in_words() {
        let encoded = one("user.ab", b"xyz");
        assert_eq!(encoded.body.len(), 12 + 4 + 8);
        assert_eq!(&encoded.body[12..], b"\x02\x01\x03\0abxyz\0\0\0");
        assert_eq!(icount(&encoded.body), 4);
        assert_eq!(icount(&[]), 0);
    }

    #[test]
    fn names_that_cannot_be_stored_are_skipped() {
        for name in ["trusted.overlay.redirect", "user.overlay.opaque", "nfs4.acl"] {
            let encoded = one(name, b"v");
            assert_eq!((encoded.body.len(), encoded.skipped), (0, 1), "{name}");
        }
    }

    #[test]
    fn oversized_attributes_are_reported() {
        assert!(one("user.a", &vec![0; 65536]).too_large);
        assert!(!one("user.a", &vec![0; 65535]).too_large);
        assert!(one(&format!("user.{}", "n".repeat(256)), b"").too_large);
    }

    #[test]
    fn equal_sets_are_kept_once() {
        let mut table = XattrTable::default();
        let (first, cost) = table.intern(one("user.a", b"1").body);
        assert_eq!(cost, 20);
        assert_eq!(table.intern(one("user.a", b"1").body), (first, 0));
        assert_ne!(table.intern(one("user.a", b"2").body).0, first);
        assert_eq!(table.body(XattrSet::default()), b"");
        assert_eq!(table.intern(Vec::new()), (XattrSet::default(), 0));
    }
}
