//! Devices by name: the Container Device Interface (CDI), version 1.0.
//!
//! Whoever brings a device to a node describes in a file what a container needs
//! to use it; containers ask for it by name, `vendor/class=name`. The files are
//! read anew for each container: there are few, and they change when drivers are
//! installed.

mod edits;
mod name;
mod spec;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kina_model::SpecError;
use kina_node::{Node, PathKind};

pub use edits::{DeviceKind, DeviceNode, Edits};
use name::DeviceName;
use spec::Spec;

use crate::error::chain;

/// The field that asks for devices.
const FIELD: &str = "config.CDI_devices";

/// The largest specification that is read, in bytes. Those of a node with
/// sixteen cards have about a tenth.
const FILE_LIMIT: usize = 1 << 20;

/// The most specifications in one directory.
const FILES_LIMIT: usize = 256;

/// A specification as found.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    spec: Spec,
}

/// What containers get that ask for these devices. Of a device in several
/// directories the one in the last of them counts. `as_they_are` has the
/// containers' nodes be those of the node.
///
/// # Errors
/// The first device that cannot be had, by name.
pub async fn edits(
    node: &dyn Node,
    directories: &[PathBuf],
    devices: &[String],
    as_they_are: bool,
) -> Result<Edits, SpecError> {
    let mut edits = Edits::default();
    if devices.is_empty() {
        return Ok(edits);
    }
    let names: Vec<DeviceName> = devices
        .iter()
        .enumerate()
        .map(|(index, text)| {
            DeviceName::parse(text).map_err(|reason| SpecError::invalid(field(index), reason))
        })
        .collect::<Result<_, _>>()?;
    let mut unread = Vec::new();
    let mut found = Vec::new();
    for directory in directories {
        found.push(read(node, directory, &mut unread).await);
    }
    let mut applied = BTreeSet::new();
    for (index, name) in names.iter().enumerate() {
        let refuse = |reason: String| SpecError::invalid(field(index), format!("{name}: {reason}"));
        let specified = find(&found, name).map_err(refuse)?;
        let Some((file, device)) = specified else {
            return Err(refuse(missing(directories, &unread)));
        };
        let own = &file.spec.container_edits;
        // What a file says for all its devices is done once.
        let common = applied.insert(&file.path).then_some(own);
        for part in common.into_iter().chain([&device.container_edits]) {
            let of_file = |reason: String| format!("{name}: {}: {reason}", file.path.display());
            let part =
                Edits::of(part).map_err(|reason| SpecError::unsupported(field(index), of_file(reason)))?;
            if as_they_are && let Some(described) = part.devices.iter().find(|device| device.is_described()) {
                let reason = format!(
                    "device node {}: major, minor, fileMode, uid and gid cannot be given in a pod with a user \
                     namespace, where the node's own device is bound; leave them out, or set hostUsers to true",
                    described.container_path.display()
                );
                return Err(SpecError::unsupported(field(index), of_file(reason)));
            }
            check(node, &part).await.map_err(|reason| SpecError::invalid(field(index), of_file(reason)))?;
            edits.add(part);
        }
    }
    Ok(edits)
}

/// Whether the node has what is to be taken from it.
async fn check(node: &dyn Node, edits: &Edits) -> Result<(), String> {
    let inspect = async |what: &str, path: &Path| {
        let facts = node.inspect_path(path).await;
        facts.map_err(|error| format!("{what} {}: {}", path.display(), chain(&error)))
    };
    for path in edits.mounts.iter().filter_map(|mount| mount.source.host_path()) {
        inspect("mount", path).await?;
    }
    for device in &edits.devices {
        let DeviceKind::OfNode { block } = device.kind else { continue };
        let path = device.host_path.as_path();
        let found = match inspect("device node", path).await?.kind {
            PathKind::BlockDevice => true,
            PathKind::CharacterDevice => false,
            PathKind::Directory | PathKind::File | PathKind::Socket | PathKind::Pipe => {
                return Err(format!("device node {}: is no device on the node", path.display()));
            }
        };
        if block.is_some_and(|block| block != found) {
            return Err(format!("device node {}: is of the other type on the node", path.display()));
        }
    }
    Ok(())
}

fn field(index: usize) -> String {
    format!("{FIELD}[{index}].name")
}

/// The specifications in a directory, in the order of their names. What cannot be
/// understood is named in `unread`: it may be another device's.
async fn read(node: &dyn Node, directory: &Path, unread: &mut Vec<String>) -> Vec<Found> {
    let mut complain = |path: &Path, reason: String| {
        tracing::warn!(path = %path.display(), reason, "a CDI specification cannot be understood");
        unread.push(format!("{}: {reason}", path.display()));
    };
    let mut names = match node.list_directory(directory).await {
        Ok(names) => names,
        Err(error) => {
            complain(directory, chain(&error));
            return Vec::new();
        }
    };
    names.retain(|name| name.ends_with(".json") || name.ends_with(".yaml"));
    names.sort();
    if names.len() > FILES_LIMIT {
        complain(directory, format!("has more than {FILES_LIMIT} files; the rest is not read"));
        names.truncate(FILES_LIMIT);
    }
    let mut found = Vec::new();
    for name in names {
        let path = directory.join(name);
        let spec = match node.read_file(&path, FILE_LIMIT).await {
            Ok(bytes) => Spec::parse(&bytes, path.extension().is_some_and(|kind| kind == "yaml")),
            Err(error) => Err(chain(&error)),
        };
        match spec {
            Ok(spec) => found.push(Found { path, spec }),
            Err(reason) => complain(&path, reason),
        }
    }
    found
}

/// The device of that name, with its file.
fn find<'a>(
    directories: &'a [Vec<Found>],
    name: &DeviceName,
) -> Result<Option<(&'a Found, &'a spec::Device)>, String> {
    for files in directories.iter().rev() {
        let mut all = files.iter().filter(|file| file.spec.kind == name.kind()).filter_map(|file| {
            let device = file.spec.devices.iter().find(|device| device.name == name.device())?;
            Some((file, device))
        });
        if let Some(first) = all.next() {
            return match all.next() {
                Some((second, _)) => Err(format!(
                    "both {} and {} specify it; one of them must go",
                    first.0.path.display(),
                    second.path.display()
                )),
                None => Ok(Some(first)),
            };
        }
    }
    Ok(None)
}

fn missing(directories: &[PathBuf], unread: &[String]) -> String {
    let places: Vec<String> = directories.iter().map(|directory| directory.display().to_string()).collect();
    let mut text = match places.as_slice() {
        [] => "no directory of CDI specifications is configured (cdi.directories)".to_owned(),
        _ => format!("no CDI specification in {} has it", places.join(" or ")),
    };
    if !unread.is_empty() {
        text.push_str(&format!("; not understood: {}", unread.join("; ")));
    }
    text
}

#[cfg(test)]
mod tests;
