//! The modules of a kernel, and which others each needs: `modules.dep`,
//! `modules.builtin`, `modules.softdep` and `modules.alias` as depmod writes
//! them.

use std::collections::{BTreeMap, BTreeSet};

/// The files' contents.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Files<'a> {
    pub(super) dependencies: &'a str,
    pub(super) builtin: &'a str,
    /// May be empty, as the next.
    pub(super) soft: &'a str,
    pub(super) aliases: &'a str,
}

/// What a kernel says of its modules.
#[derive(Debug, Default)]
pub(super) struct Dependencies {
    /// By name: its path, and the paths of those it needs.
    loadable: BTreeMap<String, Module>,
    builtin: BTreeSet<String>,
    /// By name: what is better loaded before, by names or aliases.
    soft: BTreeMap<String, Vec<String>>,
    /// Modules by other names, those with wildcards left out.
    aliases: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Module {
    path: String,
    /// The last of them is needed first.
    needs: Vec<String>,
}

/// Where a module is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// In the kernel itself.
    Builtin,
    /// In files, to be loaded in this order; the last is the one asked for.
    Files(Vec<String>),
    /// Nowhere.
    Unknown,
}

impl Dependencies {
    /// Reads the files. Lines that are none of theirs are left out.
    pub(super) fn parse(files: Files<'_>) -> Self {
        let loadable = files
            .dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                (name(path), Module { path: path.to_owned(), needs })
            })
            .collect();
        let soft = files.soft.lines().filter_map(soft_dependency).collect();
        let aliases = files.aliases.lines().filter_map(alias).collect();
        Self { loadable, builtin: files.builtin.lines().map(name).collect(), soft, aliases }
    }

    /// Finds a module by its name.
    pub(super) fn find(&self, wanted: &str) -> Lookup {
        let wanted = name(wanted);
        let Some(module) = self.loadable.get(&wanted) else {
            return if self.builtin.contains(&wanted) { Lookup::Builtin } else { Lookup::Unknown };
        };
        let mut files = Vec::new();
        for path in module.needs.iter().rev().chain([&module.path]) {
            for before in self.soft_dependencies(path) {
                files.extend(before.needs.iter().rev().cloned());
                files.push(before.path.clone());
            }
            files.push(path.clone());
        }
        let mut seen = BTreeSet::new();
        files.retain(|file| seen.insert(file.clone()));
        Lookup::Files(files)
    }

    /// What is better loaded before the module at `path`, as far as there is any.
    fn soft_dependencies(&self, path: &str) -> impl Iterator<Item = &Module> {
        self.soft.get(&name(path)).into_iter().flatten().filter_map(|wanted| {
            let wanted = name(wanted);
            self.loadable.get(&wanted).or_else(|| self.loadable.get(self.aliases.get(&wanted)?))
        })
    }
}

/// Reads `softdep NAME pre: NAME... post: NAME...`.
fn soft_dependency(line: &str) -> Option<(String, Vec<String>)> {
    let mut words = line.strip_prefix("softdep ")?.split_whitespace();
    let module = name(words.next()?);
    let before = words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| *word != "post:");
    Some((module, before.map(str::to_owned).collect()))
}

/// Reads `alias OTHER NAME`.
fn alias(line: &str) -> Option<(String, String)> {
    let (other, module) = line.strip_prefix("alias ")?.split_once(' ')?;
    (!other.contains(['*', '?', '['])).then(|| (name(other), name(module)))
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
kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko
kernel/lib/crc16.ko:
kernel/lib/libcrc32c.ko:
kernel/fs/erofs/erofs.ko: kernel/lib/libcrc32c.ko
kernel/crypto/crc32c_generic.ko:
";

    fn dependencies() -> Dependencies {
        Dependencies::parse(Files {
            dependencies: DEPENDENCIES,
            builtin: "kernel/drivers/net/virtio_net.ko\n",
            soft: "# Soft dependencies\nsoftdep libcrc32c pre: crc32c\nsoftdep ext4 pre: crc32c post: x\n\
                   softdep loop post: crc16\n",
            aliases: "alias crc32c crc32c_generic\nalias virtio:d00000001v* virtio_net\n",
        })
    }

    fn files(files: &[&str]) -> Lookup {
        Lookup::Files(files.iter().map(|file| (*file).to_owned()).collect())
    }

    #[test]
    fn what_is_needed_comes_first() {
        let expected = files(&[
            "kernel/fs/fuse/fuse.ko",
            "kernel/drivers/virtio/virtio_ring.ko",
            "kernel/drivers/virtio/virtio.ko",
            "kernel/fs/fuse/virtiofs.ko",
        ]);
        assert_eq!(dependencies().find("virtiofs"), expected);
    }

    #[test]
    fn what_is_better_loaded_before_is_where_there_is_some() {
        let generic = "kernel/crypto/crc32c_generic.ko";
        let found = dependencies().find("ext4");
        assert_eq!(found, files(&["kernel/lib/crc16.ko", generic, "kernel/fs/ext4/ext4.ko"]));
        let found = dependencies().find("erofs");
        assert_eq!(found, files(&[generic, "kernel/lib/libcrc32c.ko", "kernel/fs/erofs/erofs.ko"]));
        assert_eq!(dependencies().find("loop"), files(&["kernel/drivers/block/loop.ko"]));
    }

    #[test]
    fn names_are_names_however_they_are_written() {
        let dependencies = dependencies();
        assert!(matches!(dependencies.find("virtio_rng"), Lookup::Files(files) if files.len() == 2));
        assert_eq!(dependencies.find("virtio-net"), Lookup::Builtin);
        assert_eq!(dependencies.find("9p"), Lookup::Unknown);
    }
}
