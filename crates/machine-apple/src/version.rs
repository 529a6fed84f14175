use std::fmt;

/// A version of Apple's `container`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
    /// The third.
    pub patch: u32,
}

impl Version {
    /// The oldest that machines can be made with: the first with `--cap-add`.
    pub const OLDEST: Self = Self::new(0, 12, 0);

    /// The first that can leave /proc uncovered (`--masked-path`,
    /// `--read-only-path`). The guest uncovers it itself in older ones.
    pub(crate) const UNCOVERED: Self = Self::new(1, 2, 1);

    /// A version by its numbers.
    #[must_use]
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// The first version in a text, such as
    /// `container CLI version 1.2.2 (build: release, commit: abc)`.
    #[must_use]
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(Self::parse)
    }

    fn parse(word: &str) -> Option<Self> {
        // A build between releases says what it comes before or after.
        let numbers = word.split(['-', '+']).next()?;
        let mut parts = numbers.split('.').map(|part| part.parse().ok());
        let version = Self { major: parts.next()??, minor: parts.next()??, patch: parts.next()?? };
        parts.next().is_none().then_some(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, patch } = self;
        write!(formatter, "{major}.{minor}.{patch}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found() {
        for (text, expected) in [
            ("1.2.2", Some(Version::new(1, 2, 2))),
            ("container CLI version 0.12.3 (build: release, commit: 1a2b)", Some(Version::new(0, 12, 3))),
            ("container-apiserver version 1.2.2 (build: release, commit: x)", Some(Version::new(1, 2, 2))),
            ("1.3.0-4-gabcdef", Some(Version::new(1, 3, 0))),
            ("container 1.2", None),
            ("1.2.3.4", None),
            ("", None),
        ] {
            assert_eq!(Version::find(text), expected, "{text}");
        }
    }

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(Version::new(0, 9, 0) < Version::OLDEST);
        assert!(Version::new(0, 12, 3) < Version::new(1, 0, 0));
        assert!(Version::new(1, 2, 0) < Version::UNCOVERED);
        assert!(Version::new(1, 10, 0) > Version::UNCOVERED);
    }
}
