use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not {rule}")]
pub struct ParseIdError {
    what: &'static str,
    text: String,
    rule: &'static str,
}

/// Number of hexadecimal characters of a pod's or container's id: 128 random
/// bits, short enough for socket paths and for machine names of 63 characters.
const ID_LEN: usize = 32;

const ID_RULE: &str = "32 lower-case hexadecimal characters";

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A fresh random id.
            #[must_use]
            pub fn random() -> Self {
                Self(hex::encode(rand::random::<[u8; ID_LEN / 2]>()))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::try_from(text.to_owned())
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                if text.len() == ID_LEN && is_lower_hex(&text) {
                    Ok(Self(text))
                } else {
                    Err(ParseIdError { what: $what, text, rule: ID_RULE })
                }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

id! {
    /// The id of a pod sandbox.
    PodId, "pod sandbox id"
}

id! {
    /// The id of a container.
    ContainerId, "container id"
}

/// A content digest, `sha256:` and 64 lower-case hexadecimal characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    const PREFIX: &str = "sha256:";

    /// The digest with its algorithm.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hexadecimal part.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0[Self::PREFIX.len()..]
    }

    /// The digest of a finished SHA-256.
    #[must_use]
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self(format!("{}{}", Self::PREFIX, hex::encode(hash)))
    }
}

impl FromStr for Digest {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.strip_prefix(Self::PREFIX) {
            Some(digits) if digits.len() == 64 && is_lower_hex(digits) => Ok(Self(text)),
            _ => Err(ParseIdError {
                what: "digest",
                text,
                rule: "sha256: and 64 lower-case hexadecimal characters",
            }),
        }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked() {
        let good = "0123456789abcdef0123456789abcdef";
        assert_eq!(good.parse::<PodId>().unwrap().as_str(), good);
        for bad in ["", "0123", "0123456789ABCDEF0123456789abcdef", "../../../etc/passwd/0123456789ab"] {
            let error = bad.parse::<ContainerId>().unwrap_err();
            assert!(error.to_string().contains("container id"), "{error}");
        }
        assert_ne!(PodId::random(), PodId::random());
    }

    #[test]
    fn digests_are_checked() {
        let digest = Digest::from_sha256([0xab; 32]);
        assert_eq!(digest.hex().len(), 64);
        assert_eq!(digest.as_str().parse::<Digest>().unwrap(), digest);
        assert!("sha512:00".parse::<Digest>().is_err());
        assert!(format!("sha256:{}", "A".repeat(64)).parse::<Digest>().is_err());
    }
}
