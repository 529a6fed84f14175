//! Which kernel machines boot.

use std::cmp::Ordering;
use std::fs;
use std::io;
use std::path::Path;

use crate::KernelFiles;

/// The distribution's kernels, the newest first: the images in `boot` that have
/// a folder in `modules`, and those that lie in their folder of modules.
pub(super) fn installed(boot: &Path, modules: &Path) -> io::Result<Vec<KernelFiles>> {
    let mut found: Vec<(String, KernelFiles)> = Vec::new();
    for entry in entries(modules)? {
        let folder = entry?;
        let version = folder.file_name().to_string_lossy().into_owned();
        let image = [boot.join(format!("vmlinuz-{version}")), folder.path().join("vmlinuz")]
            .into_iter()
            .find(|image| image.is_file());
        if let Some(image) = image
            && folder.path().join("modules.dep").is_file()
        {
            found.push((version, KernelFiles { image, modules: folder.path() }));
        }
    }
    found.sort_by(|(one, _), (other, _)| compare(other, one));
    Ok(found.into_iter().map(|(_, kernel)| kernel).collect())
}

/// What is in a folder; nothing when it is not there.
fn entries(folder: &Path) -> io::Result<Box<dyn Iterator<Item = io::Result<fs::DirEntry>>>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(Box::new(entries)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Box::new(std::iter::empty())),
        Err(error) => Err(error),
    }
}

/// The order of versions: numbers by value, everything else by its letters.
fn compare(one: &str, other: &str) -> Ordering {
    parts(one).cmp(parts(other))
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Text(&'a str),
    Number(u64),
}

fn parts(version: &str) -> impl Iterator<Item = Part<'_>> {
    let kind = |byte: &u8| byte.is_ascii_digit();
    version.as_bytes().chunk_by(move |one, other| kind(one) == kind(other)).map(|bytes| {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        text.parse().map_or(Part::Text(text), Part::Number)
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn numbers_count_as_numbers() {
        let mut versions = ["6.1.0-9-amd64", "6.12.1-amd64", "6.1.0-10-amd64", "5.99.9-amd64"];
        versions.sort_by(|one, other| compare(one, other));
        assert_eq!(versions, ["5.99.9-amd64", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.12.1-amd64"]);
    }

    #[test]
    fn kernels_with_modules_are_found_newest_first() {
        let directory = tempfile::tempdir().unwrap();
        let (boot, modules) = (directory.path().join("boot"), directory.path().join("modules"));
        assert_eq!(installed(&boot, &modules).unwrap(), []);
        fs::create_dir(&boot).unwrap();
        for version in ["6.1.0-9", "6.1.0-10", "6.12.0"] {
            fs::create_dir_all(modules.join(version)).unwrap();
            fs::write(modules.join(version).join("modules.dep"), "").unwrap();
        }
        fs::write(boot.join("vmlinuz-6.1.0-9"), "").unwrap();
        fs::write(modules.join("6.1.0-10/vmlinuz"), "").unwrap();
        // Without modules it boots nothing.
        fs::write(boot.join("vmlinuz-7.0.0"), "").unwrap();
        let images: Vec<PathBuf> =
            installed(&boot, &modules).unwrap().into_iter().map(|kernel| kernel.image).collect();
        assert_eq!(images, [modules.join("6.1.0-10/vmlinuz"), boot.join("vmlinuz-6.1.0-9")]);
    }
}
