//! Which of an index's images runs here.

use std::fmt;

use crate::error::clipped;

/// An operating system and a processor, in the names of the Go language that
/// image indexes use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// For example `linux`.
    pub os: String,
    /// For example `amd64` or `arm64`.
    pub architecture: String,
    /// For example `v8`; `None` is the architecture's baseline.
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on this machine's processor: what a pod's machine runs.
    #[must_use]
    pub fn host() -> Self {
        Self::linux(std::env::consts::ARCH)
    }

    /// Linux on an architecture, in the kernel's or in Go's name for it.
    #[must_use]
    pub fn linux(architecture: &str) -> Self {
        let (architecture, variant) = normalise(architecture, None);
        Self { os: "linux".to_owned(), architecture, variant }
    }

    /// How well an offer fits: `None` not at all, otherwise the less the
    /// better. An older variant of the same architecture runs too.
    pub(crate) fn rank(&self, os: &str, architecture: &str, variant: Option<&str>) -> Option<u32> {
        if !os.eq_ignore_ascii_case(&self.os) {
            return None;
        }
        let (wanted_architecture, wanted) = normalise(&self.architecture, self.variant.as_deref());
        let (architecture, offered) = normalise(architecture, variant);
        if architecture != wanted_architecture {
            return None;
        }
        let (wanted, offered) = (level(wanted.as_deref())?, level(offered.as_deref())?);
        wanted.checked_sub(offered)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&text(&self.os, &self.architecture, self.variant.as_deref()))
    }
}

/// For messages: the parts can be an image's, so what is not printable is escaped.
pub(crate) fn text(os: &str, architecture: &str, variant: Option<&str>) -> String {
    let text = match variant {
        Some(variant) if !variant.is_empty() => format!("{os}/{architecture}/{variant}"),
        _ => format!("{os}/{architecture}"),
    };
    clipped(&text).escape_debug().to_string()
}

/// Common aliases to Go's names; a baseline variant is left out.
fn normalise(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let lower = architecture.to_ascii_lowercase();
    let variant = variant.map(str::to_ascii_lowercase).filter(|variant| !variant.is_empty());
    let (architecture, variant) = match lower.as_str() {
        "x86_64" | "x86-64" => ("amd64", variant),
        "aarch64" => ("arm64", variant),
        "i386" | "i486" | "i586" | "i686" | "x86" => ("386", None),
        "armhf" => ("arm", Some("v7".to_owned())),
        "armel" => ("arm", Some("v6".to_owned())),
        "powerpc64le" => ("ppc64le", variant),
        other => (other, variant),
    };
    let baseline = match architecture {
        "amd64" => Some("v1"),
        "arm64" => Some("v8"),
        _ => None,
    };
    let variant = match (architecture, variant) {
        // Docker means v7 where a 32-bit ARM image says nothing.
        ("arm", None) => Some("v7".to_owned()),
        (_, Some(variant)) if Some(variant.as_str()) == baseline || variant == "8" => None,
        (_, variant) => variant,
    };
    (architecture.to_owned(), variant)
}

/// `v7` is 7, `v9.2` 902, none 0; `None` for a variant without a number.
fn level(variant: Option<&str>) -> Option<u32> {
    let Some(variant) = variant else { return Some(0) };
    let (major, minor) = match variant.trim_start_matches('v').split_once('.') {
        Some((major, minor)) => (major, minor),
        None => (variant.trim_start_matches('v'), "0"),
    };
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    major.checked_mul(100)?.checked_add(minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_variant_wins() {
        let rank = |wanted: (&str, Option<&str>), offered: (&str, Option<&str>)| {
            let platform = Platform {
                os: "linux".into(),
                architecture: wanted.0.into(),
                variant: wanted.1.map(Into::into),
            };
            platform.rank("linux", offered.0, offered.1)
        };
        assert_eq!(rank(("amd64", None), ("amd64", None)), Some(0));
        assert_eq!(rank(("amd64", None), ("amd64", Some("v1"))), Some(0));
        assert_eq!(rank(("amd64", None), ("amd64", Some("v3"))), None);
        assert!(
            rank(("amd64", Some("v3")), ("amd64", Some("v2"))) < rank(("amd64", Some("v3")), ("amd64", None))
        );
        assert_eq!(rank(("arm64", None), ("arm64", Some("v8"))), Some(0));
        assert_eq!(rank(("x86_64", None), ("amd64", None)), Some(0));
        assert_eq!(rank(("arm64", None), ("arm", Some("v7"))), None);
        assert!(rank(("arm", Some("v7")), ("arm", Some("v6"))).is_some());
        assert_eq!(rank(("arm", Some("v6")), ("arm", None)), None);
        assert_eq!(Platform::linux("amd64").rank("windows", "amd64", None), None);
        assert_eq!(Platform::linux("amd64").rank("linux", "amd64", Some("strange")), None);
    }
}
