//! User namespaces: made with their mappings, found by what they own, applied to mounts.
//!
//! A user namespace lives as long as something refers to it: a descriptor, a process, a mount that
//! is mapped by it, or another namespace that it owns. So the one of a pod needs no name of its
//! own where the pod's network namespace has one: [`owner`] finds it.
//!
//! Everything here blocks, and needs the rights of root.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "a forked child, an ioctl and mount_setattr")]

mod create;
mod error;
mod map;
mod probe;

use std::os::fd::OwnedFd;

pub use create::create;
pub use error::Error;
pub use map::{map_mount, owner};
pub use probe::probe;

/// A range of ids inside of a user namespace and what they are outside of it, in the namespace of
/// whoever makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// The first id inside.
    pub inside: u32,
    /// The first id outside.
    pub outside: u32,
    /// How many ids.
    pub length: u32,
}

/// The users and groups of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// User ids.
    pub uids: Vec<Range>,
    /// Group ids.
    pub gids: Vec<Range>,
}

/// Which namespaces [`create`](fn@create) makes besides the user namespace, to be owned by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    /// None.
    Nothing,
    /// A network namespace, whose loopback is down.
    Network,
}

/// Namespaces that were made together.
#[derive(Debug)]
pub struct Created {
    /// The user namespace.
    pub user: OwnedFd,
    /// The network namespace, where one was asked for.
    pub network: Option<OwnedFd>,
}

/// The lines of `/proc/<pid>/uid_map` or `gid_map`.
fn lines(ranges: &[Range]) -> String {
    let line = |range: &Range| format!("{} {} {}\n", range.inside, range.outside, range.length);
    ranges.iter().map(line).collect()
}

/// The ranges of a `uid_map` or `gid_map`; `None` for what is none.
#[must_use]
pub fn parse(text: &str) -> Option<Vec<Range>> {
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        let range = Range { inside: next()?, outside: next()?, length: next()? };
        next().is_none().then_some(range)
    };
    text.lines().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_what_was_written() {
        let ranges = [
            Range { inside: 0, outside: 100_000, length: 65536 },
            Range { inside: 65536, outside: 5, length: 1 },
        ];
        assert_eq!(parse(&lines(&ranges)).unwrap(), ranges);
        let all = [Range { inside: 0, outside: 0, length: u32::MAX }];
        assert_eq!(parse("         0          0 4294967295\n").unwrap(), all);
        assert_eq!(parse(""), Some(Vec::new()));
        for bad in ["0 0", "0 0 x", "0 0 1 2", "-1 0 1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
