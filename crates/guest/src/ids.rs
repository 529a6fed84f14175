//! What users and groups of a pod are in its machine.

use kina_guest_api::v1;
use kina_userns::{Mapping, Range};

use crate::error::Error;

/// A user and a group of the machine.
pub(crate) type Owner = (u32, u32);

/// The ids of a pod: as in its machine, or mapped by its user namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ids(Option<Mapping>);

impl Ids {
    /// Those of a pod that asks for `asked`.
    pub(crate) fn new(asked: Option<&v1::IdMappings>) -> Result<Self, Error> {
        let Some(asked) = asked else {
            return Ok(Self(None));
        };
        let ids = Self::of(asked);
        ids.root()?;
        Ok(ids)
    }

    /// Those of a mapping, which need not have a root.
    pub(crate) fn of(asked: &v1::IdMappings) -> Self {
        Self(Some(mapping(asked)))
    }

    /// The mapping, if there is one.
    pub(crate) fn mapping(&self) -> Option<&Mapping> {
        self.0.as_ref()
    }

    /// The root of the pod.
    pub(crate) fn root(&self) -> Result<Owner, Error> {
        self.outside("user", 0, 0)
    }

    /// What a user and a group of the pod are in the machine. `field` is what names them.
    pub(crate) fn outside(&self, field: &'static str, uid: u32, gid: u32) -> Result<Owner, Error> {
        let Some(mapping) = &self.0 else {
            return Ok((uid, gid));
        };
        Ok((find(field, "user", &mapping.uids, uid)?, find(field, "group", &mapping.gids, gid)?))
    }
}

fn mapping(asked: &v1::IdMappings) -> Mapping {
    let ranges = |ranges: &[v1::IdRange]| {
        let range = |range: &v1::IdRange| Range {
            inside: range.inside,
            outside: range.outside,
            length: range.length,
        };
        ranges.iter().map(range).collect()
    };
    Mapping { uids: ranges(&asked.uids), gids: ranges(&asked.gids) }
}

fn find(field: &'static str, what: &str, ranges: &[Range], id: u32) -> Result<u32, Error> {
    let within = |range: &Range| {
        let offset = id.checked_sub(range.inside).filter(|offset| *offset < range.length)?;
        range.outside.checked_add(offset)
    };
    ranges
        .iter()
        .find_map(within)
        .ok_or_else(|| Error::invalid(field, format!("{what} {id} is not mapped into the user namespace")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_their_ranges() {
        let range = |inside, outside, length| v1::IdRange { inside, outside, length };
        let asked = v1::IdMappings {
            uids: vec![range(0, 100_000, 1000), range(5000, 7, 1)],
            gids: vec![range(0, 300_000, 65536)],
        };
        let ids = Ids::new(Some(&asked)).unwrap();
        assert_eq!(ids.root().unwrap(), (100_000, 300_000));
        assert_eq!(ids.outside("process.user", 999, 65535).unwrap(), (100_999, 365_535));
        assert_eq!(ids.outside("process.user", 5000, 1).unwrap(), (7, 300_001));
        let refused = ids.outside("process.user", 1000, 0).unwrap_err().to_string();
        assert_eq!(refused, "process.user: user 1000 is not mapped into the user namespace");
        assert!(ids.outside("x", 0, 65536).unwrap_err().to_string().contains("group 65536"));
        assert_eq!(Ids::default().outside("x", 70_000, 1).unwrap(), (70_000, 1));
    }

    #[test]
    fn a_pod_needs_a_root() {
        let range = v1::IdRange { inside: 1, outside: 1000, length: 10 };
        let asked = v1::IdMappings { uids: vec![range], gids: vec![range] };
        assert!(Ids::new(Some(&asked)).unwrap_err().to_string().starts_with("user: user 0"));
    }
}
