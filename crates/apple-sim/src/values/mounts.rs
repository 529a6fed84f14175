//! `--tmpfs`, `--volume` and `--mount`.

use std::path::Path;

use super::{absolute, memory, swift_split};
use crate::error::Problem;
use crate::resources::{Filesystem, FilesystemKind};

/// A mount, or a volume that is yet to be found or made.
#[derive(Clone, Debug, PartialEq)]
pub enum Mounted {
    /// Known in full.
    Filesystem(Filesystem),
    /// A volume.
    Volume {
        /// Its name; none for one of this container alone.
        name: Option<String>,
        /// Where it goes.
        destination: String,
        /// Of the mount.
        options: Vec<String>,
    },
}

/// The pattern of names of volumes, as errors show it.
const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9_.-]*$";

/// Whether a volume may be called so.
#[must_use]
pub fn valid_volume_name(name: &str) -> bool {
    let ordinary = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
    name.len() <= 255
        && name.starts_with(|letter: char| letter.is_ascii_alphanumeric())
        && name.chars().all(ordinary)
}

fn invalid_name(name: &str) -> Problem {
    Problem::invalid(format!("invalid volume name '{name}': must match {NAME_PATTERN}"))
}

/// A value of `--tmpfs`.
///
/// # Errors
/// An empty path.
pub fn tmpfs(destination: &str) -> Result<Filesystem, Problem> {
    let filesystem = Filesystem {
        kind: FilesystemKind::Tmpfs {},
        source: "tmpfs".to_owned(),
        destination: destination.to_owned(),
        options: Vec::new(),
    };
    validate(&filesystem)?;
    Ok(filesystem)
}

/// A value of `--volume`.
///
/// # Errors
/// A form that is not understood, a path that does not exist.
pub fn volume(text: &str) -> Result<Mounted, Problem> {
    let parts = swift_split(text.trim_start_matches(':'), ':', usize::MAX);
    let words =
        |options: &str| swift_split(options, ',', usize::MAX).into_iter().map(str::to_owned).collect();
    let (source, destination, options) = match parts.as_slice() {
        [destination] => {
            let destination = (*destination).to_owned();
            return Ok(Mounted::Volume { name: None, destination, options: Vec::new() });
        }
        [source, destination] => (*source, *destination, Vec::new()),
        [source, destination, options] => (*source, *destination, words(options)),
        _ => return Err(Problem::invalid(format!("invalid volume format {text}"))),
    };
    if !source.contains('/') && source != "." && source != ".." {
        if !valid_volume_name(source) {
            return Err(invalid_name(source));
        }
        return Ok(Mounted::Volume {
            name: Some(source.to_owned()),
            destination: destination.to_owned(),
            options,
        });
    }
    let path = absolute(source);
    if !path.exists() {
        return Err(Problem::invalid(format!("path '{source}' does not exist")));
    }
    let filesystem = Filesystem {
        kind: FilesystemKind::Virtiofs {},
        source: path.to_string_lossy().into_owned(),
        destination: destination.to_owned(),
        options,
    };
    validate(&filesystem)?;
    Ok(Mounted::Filesystem(filesystem))
}

/// A value of `--mount`.
///
/// # Errors
/// A form that is not understood, a path that does not exist or is no directory.
pub fn mount(text: &str) -> Result<Mounted, Problem> {
    let parts = swift_split(text, ',', usize::MAX);
    if parts.is_empty() {
        return Err(Problem::invalid(format!("invalid mount format: {text}")));
    }
    let mut kind = "virtiofs".to_owned();
    let (mut source, mut destination) = (None, String::new());
    let mut options = Vec::new();
    let mut sized = Vec::new();
    for part in parts {
        let pieces = swift_split(part, '=', 2);
        let key = pieces.first().copied().unwrap_or_default();
        if matches!(key, "readonly" | "ro") {
            options.push("ro".to_owned());
            continue;
        }
        if !matches!(key, "type" | "size" | "mode" | "source" | "src" | "destination" | "dst" | "target") {
            return Err(Problem::invalid(format!("unknown directive {key} when parsing mount {text}")));
        }
        let [_, value] = pieces.as_slice() else {
            let message = format!("invalid directive format missing value {part} in {text}");
            return Err(Problem::invalid(message));
        };
        let value = (*value).to_owned();
        match key {
            "type" => kind = value,
            "size" | "mode" => sized.push((key, value)),
            "source" | "src" => source = Some(value),
            _ => destination = value,
        }
    }
    for (key, value) in sized {
        if kind != "tmpfs" {
            return Err(Problem::invalid(format!("unsupported option {key} for {kind} mount")));
        }
        let value = if key == "size" { memory::mebibytes(&value)?.to_string() } else { value };
        options.push(format!("{key}={value}"));
    }
    match kind.as_str() {
        "virtiofs" | "bind" => {
            let given = source.unwrap_or_default();
            let path = absolute(&given);
            if !path.exists() {
                return Err(Problem::invalid(format!("path '{given}' does not exist")));
            }
            if !path.is_dir() {
                return Err(Problem::invalid(format!("path '{given}' is not a directory")));
            }
            let source = path.to_string_lossy().into_owned();
            let filesystem = Filesystem { kind: FilesystemKind::Virtiofs {}, source, destination, options };
            validate(&filesystem)?;
            Ok(Mounted::Filesystem(filesystem))
        }
        "tmpfs" if source.is_some() => Err(Problem::invalid("cannot specify source for tmpfs mount")),
        "tmpfs" => {
            let filesystem =
                Filesystem { kind: FilesystemKind::Tmpfs {}, source: String::new(), destination, options };
            validate(&filesystem)?;
            Ok(Mounted::Filesystem(filesystem))
        }
        "volume" => match source {
            Some(name) if !valid_volume_name(&name) => Err(invalid_name(&name)),
            _ if destination.is_empty() => Err(Problem::invalid("volume destination cannot be empty")),
            name => Ok(Mounted::Volume { name, destination, options }),
        },
        other => Err(Problem::invalid(format!("unsupported mount type {other}"))),
    }
}

fn validate(filesystem: &Filesystem) -> Result<(), Problem> {
    if matches!(filesystem.kind, FilesystemKind::Virtiofs {}) {
        let source = &filesystem.source;
        if !source.starts_with('/') {
            return Err(Problem::invalid(format!("{source} is not an absolute path on the host")));
        }
        if !Path::new(source).exists() {
            return Err(Problem::invalid(format!("file path '{source}' does not exist")));
        }
    }
    if filesystem.destination.is_empty() {
        return Err(Problem::invalid("mount destination cannot be empty"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_paths_names_or_of_one_container() {
        let Ok(Mounted::Filesystem(shared)) = volume("/tmp:/in:ro,x") else {
            panic!("a path");
        };
        assert_eq!((shared.source.as_str(), shared.destination.as_str()), ("/tmp", "/in"));
        assert_eq!(shared.options, ["ro", "x"]);
        assert!(matches!(volume("name:/in"), Ok(Mounted::Volume { name: Some(_), .. })));
        assert!(matches!(volume("/in"), Ok(Mounted::Volume { name: None, .. })));
        for (text, expected) in [
            ("/nowhere/x:/in", "path '/nowhere/x' does not exist"),
            ("_:/in", "invalid volume name '_': must match ^[A-Za-z0-9][A-Za-z0-9_.-]*$"),
            ("a:b:c:d", "invalid volume format a:b:c:d"),
        ] {
            assert_eq!(volume(text).unwrap_err().message, expected);
        }
    }

    #[test]
    fn mounts_are_made_of_directives() {
        let Ok(Mounted::Filesystem(made)) = mount("type=tmpfs,dst=/t,size=2M,mode=700") else {
            panic!("a tmpfs");
        };
        assert_eq!(made.options, ["size=2097152", "mode=700"]);
        let Ok(Mounted::Filesystem(made)) = mount("src=/tmp,target=/t,readonly") else {
            panic!("a directory");
        };
        assert_eq!(made.options, ["ro"]);
        for (text, expected) in [
            ("source=/bin/sh,target=/t", "path '/bin/sh' is not a directory"),
            ("source,target=/t", "invalid directive format missing value source in source,target=/t"),
            ("what=1", "unknown directive what when parsing mount what=1"),
            ("type=tmpfs,src=/tmp,dst=/t", "cannot specify source for tmpfs mount"),
            ("src=/tmp,dst=/t,size=1m", "unsupported option size for virtiofs mount"),
            ("type=nfs,dst=/t", "unsupported mount type nfs"),
        ] {
            assert_eq!(mount(text).unwrap_err().message, expected);
        }
    }
}
