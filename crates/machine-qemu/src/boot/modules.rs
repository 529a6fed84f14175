//! The modules of a kernel, and which others each needs: `modules.dep` and
//! `modules.builtin` as depmod writes them.

use std::collections::{BTreeMap, BTreeSet};

/// What a kernel says of its modules.
#[derive(Debug, Default)]
pub struct Dependencies {
    /// By name: its path, and the paths of those it needs.
    loadable: BTreeMap<String, Module>,
    builtin: BTreeSet<String>,
}

#[derive(Debug)]
struct Module {
    path: String,
    /// The last of them is needed first.
    needs: Vec<String>,
}

/// Where a module is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// In the kernel itself.
    Builtin,
    /// In files, to be loaded in this order; the last is the one asked for.
    Files(Vec<String>),
    /// Nowhere.
    Unknown,
}

impl Dependencies {
    /// Reads the two files' contents. Lines that are none of theirs are left out.
    pub fn parse(dependencies: &str, builtin: &str) -> Self {
        let loadable = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                (name(path), Module { path: path.to_owned(), needs })
            })
            .collect();
        Self { loadable, builtin: builtin.lines().map(name).collect() }
    }

    /// Finds a module by its name.
    pub fn find(&self, wanted: &str) -> Lookup {
        let wanted = name(wanted);
        if let Some(module) = self.loadable.get(&wanted) {
            let mut files: Vec<String> = module.needs.iter().rev().cloned().collect();
            files.push(module.path.clone());
            return Lookup::Files(files);
        }
        if self.builtin.contains(&wanted) { Lookup::Builtin } else { Lookup::Unknown }
    }
}

/// A module's name: its file's, up to the ending; `-` and `_` are the same.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "\
kernel/fs/fuse/virtiofs.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko kernel/fs/fuse/fuse.ko
kernel/drivers/char/hw_random/virtio-rng.ko.xz: kernel/drivers/virtio/virtio.ko
kernel/drivers/block/loop.ko:
";

    #[test]
    fn what_is_needed_comes_first() {
        let found = Dependencies::parse(DEPENDENCIES, "").find("virtiofs");
        let expected = [
            "kernel/fs/fuse/fuse.ko",
            "kernel/drivers/virtio/virtio_ring.ko",
            "kernel/drivers/virtio/virtio.ko",
            "kernel/fs/fuse/virtiofs.ko",
        ];
        assert_eq!(found, Lookup::Files(expected.map(str::to_owned).to_vec()));
    }

    #[test]
    fn names_are_names_however_they_are_written() {
        let dependencies = Dependencies::parse(DEPENDENCIES, "kernel/crypto/crc32c_generic.ko\n");
        assert!(matches!(dependencies.find("virtio_rng"), Lookup::Files(files) if files.len() == 2));
        assert_eq!(dependencies.find("loop"), Lookup::Files(vec!["kernel/drivers/block/loop.ko".to_owned()]));
        assert_eq!(dependencies.find("crc32c-generic"), Lookup::Builtin);
        assert_eq!(dependencies.find("9p"), Lookup::Unknown);
    }
}
