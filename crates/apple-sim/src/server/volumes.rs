//! Named volumes: directories, where Apple's are ext4 images.

use std::fs;
use std::io;

use crate::error::Problem;
use crate::place::Place;
use crate::resources::{FilesystemKind, Snapshot, Volume};

/// All of them.
pub(super) fn list(place: &Place) -> Result<Vec<Volume>, Problem> {
    let mut volumes = Vec::new();
    for entry in fs::read_dir(place.volumes())? {
        match fs::read(entry?.path().join("entity.json")) {
            Ok(bytes) => volumes.push(serde_json::from_slice::<Volume>(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    volumes.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(volumes)
}

/// Makes one.
pub(super) fn create(place: &Place, mut volume: Volume) -> Result<Volume, Problem> {
    let directory = place.volumes().join(&volume.name);
    let data = directory.join("data");
    match fs::create_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Problem::invalid(format!("volume '{}' already exists", volume.name)));
        }
        done => done?,
    }
    fs::create_dir(&data)?;
    volume.source = data.to_string_lossy().into_owned();
    fs::write(directory.join("entity.json"), serde_json::to_vec(&volume)?)?;
    Ok(volume)
}

/// Deletes one that nothing uses.
pub(super) fn delete(place: &Place, name: &str, containers: &[Snapshot]) -> Result<(), Problem> {
    let directory = place.volumes().join(name);
    if !directory.exists() {
        return Err(Problem::invalid(format!("volume '{name}' not found")));
    }
    let used = containers
        .iter()
        .flat_map(|container| &container.configuration.mounts)
        .any(|mount| matches!(&mount.kind, FilesystemKind::Volume { name: used, .. } if used == name));
    if used {
        return Err(Problem::invalid(format!(
            "volume '{name}' is currently in use and cannot be accessed by another container, or deleted"
        )));
    }
    Ok(fs::remove_dir_all(directory)?)
}
