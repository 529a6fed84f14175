//! Mount options, from the words of the spec.

use crate::error::Error;

/// What an id mapping of a mount holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdMapped {
    /// For the mount alone.
    One,
    /// For all mounts below it, too.
    Recursive,
}

/// What the words of one mount say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) bind: bool,
    pub(crate) recursive: bool,
    /// How the mount's ids are mapped, if it says so.
    pub(crate) id_mapped: Option<IdMapped>,
    /// `MOUNT_ATTR_*` for the mount.
    pub(crate) set: u64,
    pub(crate) clear: u64,
    /// `MOUNT_ATTR_*` for the mount and all below it.
    pub(crate) set_recursive: u64,
    /// `MS_*` propagation changes.
    pub(crate) propagation: Vec<u64>,
    /// What the file system is told.
    pub(crate) data: Vec<(String, Option<String>)>,
}

const NOT_SUPPORTED: [&str; 3] = ["remount", "tmpcopyup", "move"];

/// Understands the words as mount(8) and the OCI runtime specification define them. Attributes of
/// a bound mount are only ever added to those that its source has: a container is not given a
/// writable view of a read-only mount because somebody wrote `rw`.
pub(crate) fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Options, Error> {
    let mut options = Options::default();
    for word in words {
        if NOT_SUPPORTED.contains(&word) {
            return Err(Error::refused("mounts.options", &format!("{word} is not supported")));
        }
        match word {
            "" | "defaults" => {}
            "bind" => options.bind = true,
            "idmap" => options.id_mapped = Some(IdMapped::One),
            "ridmap" => options.id_mapped = Some(IdMapped::Recursive),
            "rbind" => (options.bind, options.recursive) = (true, true),
            _ => {
                if let Some(flags) = propagation(word) {
                    options.propagation.push(flags);
                } else if let Some((set, clear)) = attribute(word) {
                    options.set = options.set & !clear | set;
                    options.clear |= clear & libc::MOUNT_ATTR__ATIME;
                } else if let Some((set, _)) = word.strip_prefix('r').and_then(attribute) {
                    // `rsuid` and the like would only take away what the source has.
                    options.set_recursive |= set;
                } else {
                    let (key, value) = match word.split_once('=') {
                        Some((key, value)) => (key, Some(value.to_owned())),
                        None => (word, None),
                    };
                    options.data.push((key.to_owned(), value));
                }
            }
        }
    }
    Ok(options)
}

/// `MS_*` of a propagation word.
pub(crate) fn propagation(word: &str) -> Option<u64> {
    let (kind, recursive) = match word.strip_prefix('r') {
        Some(kind) => (kind, libc::MS_REC),
        None => (word, 0),
    };
    let flag = match kind {
        "private" => libc::MS_PRIVATE,
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some(flag | recursive)
}

/// `MOUNT_ATTR_*` to set and to clear for a word about one mount.
fn attribute(word: &str) -> Option<(u64, u64)> {
    const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
    Some(match word {
        "ro" => (libc::MOUNT_ATTR_RDONLY, 0),
        "rw" => (0, libc::MOUNT_ATTR_RDONLY),
        "nosuid" => (libc::MOUNT_ATTR_NOSUID, 0),
        "suid" => (0, libc::MOUNT_ATTR_NOSUID),
        "nodev" => (libc::MOUNT_ATTR_NODEV, 0),
        "dev" => (0, libc::MOUNT_ATTR_NODEV),
        "noexec" => (libc::MOUNT_ATTR_NOEXEC, 0),
        "exec" => (0, libc::MOUNT_ATTR_NOEXEC),
        "nosymfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, libc::MOUNT_ATTR_NOSYMFOLLOW),
        "nodiratime" => (libc::MOUNT_ATTR_NODIRATIME, 0),
        "diratime" => (0, libc::MOUNT_ATTR_NODIRATIME),
        "noatime" => (libc::MOUNT_ATTR_NOATIME, ATIME),
        "strictatime" => (libc::MOUNT_ATTR_STRICTATIME, ATIME),
        // The kernel's default.
        "relatime" | "atime" => (0, ATIME),
        "norelatime" | "nostrictatime" => (0, 0),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_attributes_propagation_and_data() {
        let options = parse(["rbind", "rw", "nosuid", "rro", "rslave", "size=1k", "foo"]).unwrap();
        assert!(options.bind && options.recursive);
        assert_eq!(options.set, libc::MOUNT_ATTR_NOSUID);
        assert_eq!(options.set_recursive, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.propagation, [libc::MS_SLAVE | libc::MS_REC]);
        let expected = [("size".to_owned(), Some("1k".to_owned())), ("foo".to_owned(), None)];
        assert_eq!(options.data, expected);
    }

    #[test]
    fn ids_are_mapped_for_one_mount_or_all() {
        assert_eq!(parse(["rbind"]).unwrap().id_mapped, None);
        assert_eq!(parse(["rbind", "idmap"]).unwrap().id_mapped, Some(IdMapped::One));
        assert_eq!(parse(["ridmap", "rbind"]).unwrap().id_mapped, Some(IdMapped::Recursive));
    }

    #[test]
    fn the_last_word_counts() {
        assert_eq!(parse(["ro", "rw"]).unwrap().set, 0);
        assert_eq!(parse(["rw", "ro"]).unwrap().set, libc::MOUNT_ATTR_RDONLY);
        let options = parse(["noatime", "strictatime"]).unwrap();
        assert_eq!(options.set, libc::MOUNT_ATTR_STRICTATIME);
        assert_eq!(options.clear, libc::MOUNT_ATTR__ATIME);
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        for word in NOT_SUPPORTED {
            assert!(parse([word]).is_err());
        }
    }
}
