//! The values of options (`Sources/Services/ContainerAPIService/Client/Parser.swift`). They are
//! checked after the image was fetched, and in the order of `Utility.swift`.

mod memory;
mod mounts;
mod network;
mod paths;
mod process;
mod publish;

pub use memory::{bytes, mebibytes};
pub use mounts::{Mounted, mount, tmpfs, valid_volume_name, volume};
pub use network::{ParsedNetwork, network, valid_mac};
pub use paths::{MASKED, READONLY, capabilities, capability, masked, readonly};
pub use process::{environment, process, resources, user};
pub use publish::{overlap, port, socket};

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use crate::error::Problem;

/// The labels of a container. A value loses `=` at its beginning and one at its end, and must not
/// have others; so does Apple's.
///
/// # Errors
/// An empty label, or one of three parts.
pub fn labels(given: &[String]) -> Result<BTreeMap<String, String>, Problem> {
    let mut labels = BTreeMap::new();
    for label in given {
        if label.is_empty() {
            return Err(Problem::invalid("label cannot be an empty string"));
        }
        match swift_split(label, '=', 2).as_slice() {
            [key] => labels.insert((*key).to_owned(), String::new()),
            [key, value] => labels.insert((*key).to_owned(), (*value).to_owned()),
            _ => return Err(Problem::invalid(format!("invalid label format {label}"))),
        };
    }
    Ok(labels)
}

/// The labels of networks and volumes, which keep inner `=`.
#[must_use]
pub fn pairs(given: &[String]) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    for pair in given {
        match swift_split(pair, '=', 1).as_slice() {
            [key, value] => pairs.insert((*key).to_owned(), (*value).to_owned()),
            _ => pairs.insert(pair.clone(), String::new()),
        };
    }
    pairs
}

/// Swift's `split(separator:maxSplits:)`: empty parts are left out and not counted.
fn swift_split(text: &str, separator: char, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        if parts.len() == most {
            if !rest.is_empty() {
                parts.push(rest);
            }
            return parts;
        }
        match rest.split_once(separator) {
            Some(("", after)) => rest = after,
            Some((part, after)) => {
                parts.push(part);
                rest = after;
            }
            None => {
                if !rest.is_empty() {
                    parts.push(rest);
                }
                return parts;
            }
        }
    }
}

/// An absolute path without `.` and `..`, by its words alone.
#[must_use]
pub fn absolute(path: &str) -> PathBuf {
    let base = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let mut clean = PathBuf::from("/");
    for component in base.join(Path::new(path)).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_lose_what_apples_lose() {
        let labels = |text: &str| labels(&[text.to_owned()]).map(|labels| labels.into_iter().next().unwrap());
        let pair = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(labels("k=v"), pair("k", "v"));
        assert_eq!(labels("k"), pair("k", ""));
        assert_eq!(labels("k="), pair("k", ""));
        assert_eq!(labels("k=Zm8="), pair("k", "Zm8"));
        assert_eq!(labels("k==v"), pair("k", "v"));
        assert_eq!(labels("k=a=b").unwrap_err().message, "invalid label format k=a=b");
        assert_eq!(labels("k=a==").unwrap_err().message, "invalid label format k=a==");
        assert!(labels("").is_err());
    }

    #[test]
    fn pairs_keep_inner_signs() {
        let pairs = pairs(&["a=b=c".to_owned(), "d".to_owned()]);
        assert_eq!(pairs["a"], "b=c");
        assert_eq!(pairs["d"], "");
    }

    #[test]
    fn paths_are_cleaned_by_their_words() {
        assert_eq!(absolute("/a/./b/../c"), Path::new("/a/c"));
        assert_eq!(absolute("/../x"), Path::new("/x"));
        assert!(absolute("x").is_absolute());
    }
}
