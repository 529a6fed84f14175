//! The mounts of a container.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use kina_guest_api::v1;
use kina_guest_api::v1::MountPropagation;
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount, MountBuilder};

use super::built;
use crate::error::Error;
use crate::ids::Ids;
use crate::image_volume::ImageVolume;
use crate::pod::{POD_FILES, Pod};
use crate::selinux::{self, Labels};
use crate::unattached::descriptor_path;

/// Images have a few.
const VOLUMES_LIMIT: usize = 256;

/// The mounts of a container, in order.
pub(super) struct Mounts {
    pub(super) mounts: Vec<Mount>,
    /// What the root needs for them.
    pub(super) propagation: Option<&'static str>,
    /// What sources go by; to be held until they are mounted.
    pub(super) held: Vec<OwnedFd>,
}

/// What a container gets, and what is asked for it. `images` are opened for the mounts that ask for
/// one, in their order. `devices` are nodes that are bound: where they are and where they shall be.
pub(super) fn build(
    request: &v1::CreateContainerRequest,
    pod: &Pod,
    images: &[ImageVolume],
    readonly_root: bool,
    devices: &[(PathBuf, PathBuf)],
    labels: &Labels,
) -> Result<Mounts, Error> {
    let mut mounts = volumes(request)?;
    mounts.extend(system(request.privileged));
    for (source, destination) in devices {
        mounts.push(bind(source, destination, &["bind", "rprivate"])?);
    }
    let mut images = images.iter();
    let mut places: Vec<(PathBuf, Place<'_>)> = Vec::with_capacity(request.mounts.len() + LASTING);
    for mount in &request.mounts {
        let image = mount.image.as_ref().and_then(|_| images.next());
        places.push((destination(&mount.destination)?, Place::Asked(mount, image)));
    }
    for own in lasting(pod, readonly_root)? {
        // The caller's mount stands in for ours.
        if places.iter().all(|(destination, _)| destination != own.destination()) {
            places.push((own.destination().clone(), Place::Own(own)));
        }
    }
    // What lies deeper is mounted later; of equals the order stays.
    places.sort_by_key(|(destination, _)| destination.components().count());
    let mut propagation = None;
    let mut held = Vec::new();
    let mut over = Vec::with_capacity(places.len());
    for (destination, place) in places {
        let (mount, image) = match place {
            Place::Asked(mount, image) => (mount, image),
            Place::Own(own) => {
                if fits(&own, &over) {
                    over.push(own);
                }
                continue;
            }
        };
        // It hides what else of ours is below it.
        mounts.retain(|own| !own.destination().starts_with(&destination));
        over.push(match (&mount.volume, image, mount.tmpfs) {
            (_, Some(image), _) => self::image(mount, image, &destination)?,
            (Some(asked), None, _) => {
                let volume = volume(mount, asked, pod)?;
                let source = descriptor_path(&volume);
                held.push(volume);
                bind_as_asked(mount, &source, &destination)?
            }
            (None, None, true) => tmpfs(mount, &destination)?,
            (None, None, false) => bound(mount, &destination)?,
        });
        if let (true, Some(label), Some(made)) = (mount.relabel, &labels.files, over.last())
            // What is made for the container has the label already.
            && image.is_none()
            && !mount.tmpfs
            && let Some(source) = made.source()
        {
            selinux::relabel(source, label)?;
        }
        propagation = match (mount.propagation(), propagation) {
            (MountPropagation::Bidirectional, _) => Some("rshared"),
            (MountPropagation::HostToContainer, None) => Some("rslave"),
            (MountPropagation::HostToContainer | MountPropagation::Private, known) => known,
        };
    }
    mounts.extend(over);
    Ok(Mounts { mounts, propagation, held })
}

/// What is mounted at a place.
enum Place<'a> {
    /// What the caller asks for, with the image if it is one.
    Asked(&'a v1::Mount, Option<&'a ImageVolume>),
    /// What every container has, see [`lasting`].
    Own(Mount),
}

/// How many [`lasting`] are.
const LASTING: usize = 1 + POD_FILES.len();

/// What the pod shares with every container, also with one that has a mount of its own above: the
/// pod's memory and its files.
fn lasting(pod: &Pod, readonly_root: bool) -> Result<Vec<Mount>, Error> {
    let shared_memory = match &pod.shared_memory {
        Some(memory) => memory.source(),
        None => PathBuf::from("/dev/shm"),
    };
    let mut mounts = vec![bind(&shared_memory, Path::new("/dev/shm"), &["rbind", "rprivate"])?];
    let access = if readonly_root { "ro" } else { "rw" };
    for (file, destination) in POD_FILES {
        let source = pod.state_directory.join(file);
        mounts.push(bind(&source, Path::new(destination), &["rbind", "rprivate", access])?);
    }
    Ok(mounts)
}

/// Whether a mount of ours can be made where the caller has mounted above it: not if it would be
/// seen on the machine as well, nor where it has no place and none can be made.
fn fits(own: &Mount, asked: &[Mount]) -> bool {
    let above = asked
        .iter()
        .filter(|mount| own.destination().starts_with(mount.destination()))
        .max_by_key(|mount| mount.destination().components().count());
    let Some(above) = above else {
        return true;
    };
    let has = |option: &str| above.options().iter().flatten().any(|one| one == option);
    if above.typ().as_deref() == Some("tmpfs") {
        return true;
    }
    let (Some(source), Ok(rest)) = (above.source(), own.destination().strip_prefix(above.destination()))
    else {
        return false;
    };
    if has("rshared") {
        return false;
    }
    let place = source.join(rest);
    fs::symlink_metadata(&place).is_ok()
        || (!has("ro") && !has("rro") && place.parent().is_some_and(can_be_written))
}

/// Not so for a directory on a file system or mount that is read-only.
fn can_be_written(directory: &Path) -> bool {
    rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).is_ok()
}

/// An absolute path, `.` and `..` resolved by its text as within a root.
fn destination(text: &str) -> Result<PathBuf, Error> {
    let path = Path::new(text);
    let refuse = || Error::invalid("mounts.destination", format!("{text:?}"));
    if !path.is_absolute() {
        return Err(refuse());
    }
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if clean == Path::new("/") { Err(refuse()) } else { Ok(clean) }
}

fn mount(kind: &str, source: &Path, destination: &Path, options: &[&str]) -> Result<Mount, Error> {
    built(
        MountBuilder::default()
            .typ(kind)
            .source(source)
            .destination(destination)
            .options(options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
            .build(),
    )
}

fn bind(source: &Path, destination: &Path, options: &[&str]) -> Result<Mount, Error> {
    mount("bind", source, destination, options)
}

/// What every container has: the kernel's file systems, writable for a privileged one.
fn system(privileged: bool) -> Vec<Mount> {
    let mut mounts = kina_launch::defaults::mounts();
    mounts.retain(|mount| mount.destination() != Path::new("/dev/shm"));
    for mount in mounts.iter_mut().filter(|_| privileged) {
        for option in mount.options_mut().iter_mut().flatten() {
            if option == "ro" {
                "rw".clone_into(option);
            }
        }
    }
    mounts
}

/// The volumes of the image that the caller mounts nothing on: places of the container's own
/// root, which end with it.
fn volumes(request: &v1::CreateContainerRequest) -> Result<Vec<Mount>, Error> {
    const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];
    let asked = request.rootfs.as_ref().map(|rootfs| rootfs.volumes.as_slice()).unwrap_or_default();
    if asked.len() > VOLUMES_LIMIT {
        return Err(Error::TooMany { what: "volumes of the image", limit: VOLUMES_LIMIT });
    }
    // Docker reads a relative one from the root, which is no volume itself.
    let mut places: Vec<PathBuf> =
        asked.iter().filter_map(|text| destination(&format!("/{text}")).ok()).collect();
    places.retain(|place| !KERNEL.iter().any(|kernel| place.starts_with(kernel)));
    places.sort_by_key(|place| place.components().count());
    places
        .iter()
        .map(|place| {
            let own = Path::new("rootfs").join(place.strip_prefix("/").unwrap_or(place));
            bind(&own, place, &["bind", "rprivate"])
        })
        .collect()
}

fn tmpfs(asked: &v1::Mount, destination: &Path) -> Result<Mount, Error> {
    if !asked.source.is_empty() {
        return Err(Error::invalid("mounts.source", "a tmpfs has none"));
    }
    if asked.mapped.is_some() {
        return Err(Error::invalid("mounts.mapped", "a tmpfs has its container's ids"));
    }
    let mut options: Vec<&str> = asked.options.iter().map(String::as_str).collect();
    let size = format!("size={}", asked.tmpfs_bytes);
    if asked.tmpfs_bytes > 0 {
        options.push(&size);
    }
    if asked.readonly {
        options.push("ro");
    }
    mount("tmpfs", Path::new("tmpfs"), destination, &options)
}

fn bound(asked: &v1::Mount, destination: &Path) -> Result<Mount, Error> {
    let source = Path::new(&asked.source);
    if !source.is_absolute() {
        return Err(Error::invalid("mounts.source", format!("{:?}", asked.source)));
    }
    match fs::metadata(source) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NoMountSource { path: source.to_owned() });
        }
        Err(error) => return Err(Error::file("inspect mount source", source, error)),
    }
    let mut mount = bind_as_asked(asked, source, destination)?;
    if let Some(mapped) = &asked.mapped {
        mount.set_uid_mappings(Some(id_mappings(&mapped.uids)?));
        mount.set_gid_mappings(Some(id_mappings(&mapped.gids)?));
    }
    Ok(mount)
}

fn id_mappings(ranges: &[v1::IdRange]) -> Result<Vec<LinuxIdMapping>, Error> {
    let mapping = |range: &v1::IdRange| {
        built(
            LinuxIdMappingBuilder::default()
                .container_id(range.inside)
                .host_id(range.outside)
                .size(range.length)
                .build(),
        )
    };
    if ranges.is_empty() {
        return Err(Error::invalid("mounts.mapped", "maps no users or no groups"));
    }
    ranges.iter().map(mapping).collect()
}

fn image(asked: &v1::Mount, image: &ImageVolume, destination: &Path) -> Result<Mount, Error> {
    if asked.tmpfs || asked.volume.is_some() || !asked.source.is_empty() {
        return Err(Error::invalid("mounts.image", "excludes a source, a volume and a tmpfs"));
    }
    if !asked.readonly {
        return Err(Error::invalid("mounts.readonly", "an image cannot be written"));
    }
    if asked.propagation() != MountPropagation::Private {
        // Nothing is mounted below it that could propagate.
        return Err(Error::invalid("mounts.propagation", "an image is private"));
    }
    bind_as_asked(asked, &image.source(), destination)
}

/// Opens a volume of the pod's own.
fn volume(asked: &v1::Mount, volume: &v1::PodVolume, pod: &Pod) -> Result<OwnedFd, Error> {
    if asked.tmpfs || !asked.source.is_empty() {
        return Err(Error::invalid("mounts.volume", "excludes a source and a tmpfs"));
    }
    if asked.propagation() != MountPropagation::Private {
        // Nothing is mounted below it that could propagate.
        return Err(Error::invalid("mounts.propagation", "a volume of the pod's own is private"));
    }
    let Some(mapped) = &asked.mapped else {
        return pod.volumes.open(volume);
    };
    let (uid, gid) = Ids::of(mapped).outside("mounts.volume", volume.uid, volume.gid)?;
    pod.volumes.open(&v1::PodVolume { uid, gid, ..volume.clone() })
}

fn bind_as_asked(asked: &v1::Mount, source: &Path, destination: &Path) -> Result<Mount, Error> {
    let mut options = vec!["rbind"];
    options.push(match asked.propagation() {
        MountPropagation::Private => "rprivate",
        MountPropagation::HostToContainer => {
            require_propagation(source, &["shared:", "master:"])?;
            "rslave"
        }
        MountPropagation::Bidirectional => {
            require_propagation(source, &["shared:"])?;
            "rshared"
        }
    });
    match (asked.readonly, asked.recursive_read_only) {
        (true, true) if asked.propagation() != MountPropagation::Private => {
            return Err(Error::invalid("mounts.recursive_read_only", "needs private propagation"));
        }
        (true, true) => options.push("rro"),
        (true, false) => options.push("ro"),
        (false, true) => {
            return Err(Error::invalid("mounts.recursive_read_only", "needs readonly"));
        }
        (false, false) => options.push("rw"),
    }
    options.extend(asked.options.iter().map(String::as_str));
    bind(source, destination, &options)
}

/// Refuses a mount whose source lies on a mount that does not propagate so.
fn require_propagation(source: &Path, any_of: &[&str]) -> Result<(), Error> {
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Error::file("read", "/proc/self/mountinfo", error))?;
    let real = fs::canonicalize(source).map_err(|error| Error::file("resolve", source, error))?;
    if propagates(&table, &real, any_of) {
        return Ok(());
    }
    let reason = format!(
        "{} is on a mount that is not {}",
        source.display(),
        match any_of {
            [_] => "shared",
            _ => "shared or a slave",
        }
    );
    Err(Error::invalid("mounts.propagation", reason))
}

fn propagates(mountinfo: &str, path: &Path, any_of: &[&str]) -> bool {
    // The last of the longest: a later mount covers an earlier one.
    let of = mountinfo
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(4);
            let at = fields.next()?.replace("\\040", " ");
            let optional: Vec<&str> = fields.skip(1).take_while(|field| *field != "-").collect();
            path.starts_with(&at).then(|| (Path::new(&at).components().count(), optional))
        })
        .max_by_key(|(length, _)| *length);
    of.is_some_and(|(_, optional)| {
        optional.iter().any(|field| any_of.iter().any(|kind| field.starts_with(kind)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_absolute_and_made_plain() {
        for (text, plain) in [("/a//b/", "/a/b"), ("/a/../b", "/b"), ("/../a/./b", "/a/b")] {
            assert_eq!(destination(text).unwrap(), Path::new(plain));
        }
        for bad in ["", "a", "/", "/a/.."] {
            assert!(destination(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volumes_are_places_of_the_root() {
        let words = ["/var/lib/data", "data", "/", "/proc/x", "/a/../b"].map(str::to_owned);
        let rootfs = v1::Rootfs { volumes: words.to_vec(), ..v1::Rootfs::default() };
        let request = v1::CreateContainerRequest { rootfs: Some(rootfs), ..Default::default() };
        let found = volumes(&request).unwrap();
        let pairs: Vec<_> = found
            .iter()
            .map(|mount| (mount.source().clone().unwrap(), mount.destination().clone()))
            .collect();
        let pair = |place: &str| (PathBuf::from(format!("rootfs{place}")), PathBuf::from(place));
        assert_eq!(pairs, [pair("/data"), pair("/b"), pair("/var/lib/data")]);
        let many = v1::Rootfs { volumes: vec!["/a".to_owned(); VOLUMES_LIMIT + 1], ..Default::default() };
        assert!(volumes(&v1::CreateContainerRequest { rootfs: Some(many), ..Default::default() }).is_err());
    }

    #[test]
    fn propagation_is_that_of_the_mount() {
        let table = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
                     2 1 8:2 / /data rw,noatime shared:7 - ext4 /dev/b rw\n\
                     3 2 8:3 / /data/slave rw master:7 - ext4 /dev/c rw\n\
                     4 2 8:3 / /data/with\\040space rw shared:8 - ext4 /dev/c rw\n";
        let check = |path: &str, kinds: &[&str]| propagates(table, Path::new(path), kinds);
        assert!(!check("/etc", &["shared:"]));
        assert!(check("/data/x", &["shared:"]));
        assert!(!check("/database", &["shared:"]));
        assert!(!check("/data/slave/x", &["shared:"]));
        assert!(check("/data/slave/x", &["shared:", "master:"]));
        assert!(check("/data/with space/x", &["shared:"]));
    }

    #[test]
    fn a_bind_says_how() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        let asked = v1::Mount {
            source: source.display().to_string(),
            destination: "/data".to_owned(),
            readonly: true,
            recursive_read_only: true,
            options: vec!["noexec".to_owned()],
            ..v1::Mount::default()
        };
        let missing = bound(&asked, Path::new("/data")).unwrap_err();
        assert!(matches!(&missing, Error::NoMountSource { path } if *path == source), "{missing}");
        fs::create_dir(&source).unwrap();
        let mount = bound(&asked, Path::new("/data")).unwrap();
        let options = mount.options().as_deref().unwrap();
        assert_eq!(options, ["rbind", "rprivate", "rro", "noexec"]);
        let writable = v1::Mount { readonly: false, ..asked.clone() };
        assert!(bound(&writable, Path::new("/data")).is_err());
        let relative = v1::Mount { source: "x".to_owned(), ..asked };
        assert!(bound(&relative, Path::new("/data")).is_err());
    }
}
