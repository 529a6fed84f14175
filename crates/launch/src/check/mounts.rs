//! The mounts of a container.

use std::ffi::OsStr;
use std::path::Path;

use kina_cgroup::Group;
use oci_spec::runtime::{LinuxIdMapping, Mount};

use super::clean;
use crate::error::Error;
use crate::mounts::options::{self, IdMapped};
use crate::order::{CgroupV1, MappedIds, MountKind, MountOrder};

/// What may be mounted over inside `/proc`: files that tell of the machine, which some replace.
const PROC_FILES: [&str; 9] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
];

/// The root filesystem, in sources of bind mounts that are relative to the bundle.
const OWN_ROOT: &str = "rootfs";

/// File systems that the kernel shares between all who mount them: their labels are its policy's.
const KERNELS_LABELS: [&str; 3] = ["proc", "sysfs", "mqueue"];

/// `label` is the SELinux label of what is mounted anew.
pub(super) fn mount_order(
    mount: &Mount,
    cgroup: Option<&Group>,
    bind_cgroup: bool,
    label: Option<&str>,
) -> Result<MountOrder, Error> {
    let given_target = mount.destination();
    // Relative destinations are from the root, as runc takes them.
    let target = clean(&Path::new("/").join(given_target))
        .filter(|target| target != Path::new("/"))
        .ok_or_else(|| {
            let reason = format!("{given_target:?} is the root itself");
            Error::refused("mounts.destination", &reason)
        })?;
    let words = mount.options().as_deref().unwrap_or_default();
    let parsed = options::parse(words.iter().map(String::as_str))?;
    let kind = mount.typ().as_deref().unwrap_or_default();
    let bind = parsed.bind || kind == "bind" || kind == "rbind";
    let below_proc = target.starts_with("/proc") && target != Path::new("/proc");
    if below_proc && !PROC_FILES.iter().any(|file| target == Path::new(file)) {
        let reason = format!("{target:?} is inside /proc");
        return Err(Error::refused("mounts.destination", &reason));
    }
    if target == Path::new("/proc") && kind != "proc" && !bind {
        return Err(Error::refused("mounts.destination", "/proc is for a proc file system"));
    }
    let source = mount.source().clone().unwrap_or_default();
    let mapped = mapped_ids(mount, parsed.id_mapped)?;
    if mapped.is_some() && !bind {
        return Err(Error::refused("mounts.uidMappings", "only a bind mount can be mapped"));
    }
    let mut data = parsed.data;
    let kind = if bind {
        if let Some((key, _)) = data.first() {
            let reason = format!("{key} does not apply to a bind mount");
            return Err(Error::refused("mounts.options", &reason));
        }
        if let Ok(own) = source.strip_prefix(OWN_ROOT) {
            if mapped.is_some() {
                return Err(Error::refused("mounts.uidMappings", "the root's own files are mapped already"));
            }
            MountKind::OfRoot(clean(&Path::new("/").join(own)).unwrap_or_default())
        } else if source.is_absolute() {
            MountKind::Bind { source, recursive: parsed.recursive || kind == "rbind", mapped }
        } else {
            return Err(Error::refused("mounts.source", &format!("{source:?} is not absolute")));
        }
    } else if kind == "cgroup" || kind == "cgroup2" {
        cgroup_kind(kind, cgroup, bind_cgroup)?
    } else if kind.is_empty() {
        return Err(Error::refused("mounts.type", "missing"));
    } else {
        let pseudo = ["tmpfs", "proc", "sysfs", "mqueue", "devpts", "bpf"].contains(&kind);
        let readonly = parsed.set & libc::MOUNT_ATTR_RDONLY != 0 && !pseudo;
        if kind == "devpts" {
            // Every devpts is an instance of its own since Linux 4.7.
            data.retain(|(key, _)| key != "newinstance");
        }
        if let Some(label) = label.filter(|_| !KERNELS_LABELS.contains(&kind)) {
            data.push(("context".to_owned(), Some(label.to_owned())));
        }
        let source = source.to_str().unwrap_or_default().to_owned();
        MountKind::New {
            file_system: kind.to_owned(),
            source: if source.is_empty() { kind.to_owned() } else { source },
            data,
            readonly,
        }
    };
    Ok(MountOrder {
        target,
        kind,
        set: parsed.set,
        clear: parsed.clear,
        set_recursive: parsed.set_recursive,
        propagation: parsed.propagation,
    })
}

/// The mappings of a mount. The specification leaves open what follows from mappings without one of
/// the words; here, as with runc, that the one mount is mapped.
fn mapped_ids(mount: &Mount, word: Option<IdMapped>) -> Result<Option<MappedIds>, Error> {
    let ranges = |list: &Option<Vec<LinuxIdMapping>>| -> Vec<(u32, u32, u32)> {
        list.iter().flatten().map(|map| (map.container_id(), map.host_id(), map.size())).collect()
    };
    let (uids, gids) = (ranges(mount.uid_mappings()), ranges(mount.gid_mappings()));
    match (uids.is_empty(), gids.is_empty(), word) {
        (true, true, None) => Ok(None),
        (true, true, Some(_)) => Err(Error::refused("mounts.options", "idmap needs mappings")),
        (true, false, _) => Err(Error::refused("mounts.uidMappings", "gidMappings are given, these not")),
        (false, true, _) => Err(Error::refused("mounts.gidMappings", "uidMappings are given, these not")),
        (false, false, word) => {
            Ok(Some(MappedIds { uids, gids, recursive: word == Some(IdMapped::Recursive) }))
        }
    }
}

fn cgroup_kind(file_system: &str, cgroup: Option<&Group>, bind_cgroup: bool) -> Result<MountKind, Error> {
    let Some(group) = cgroup else {
        return Err(Error::refused("mounts.type", "cgroup needs a control group"));
    };
    let hierarchy = group.hierarchy();
    let v1: Vec<CgroupV1> = hierarchy
        .v1_hierarchies()
        .map(|(controllers, root)| CgroupV1 {
            controllers: controllers.to_vec(),
            name: root.file_name().unwrap_or(OsStr::new("cgroup")).to_string_lossy().into_owned(),
            directory: root.join(group.path().trim_start_matches('/')),
        })
        .collect();
    if !v1.is_empty() && file_system == "cgroup" {
        return Ok(MountKind::CgroupV1(v1));
    }
    match group.unified_directory() {
        Some(directory) if bind_cgroup => Ok(MountKind::CgroupV2(directory)),
        _ => Ok(MountKind::New {
            file_system: "cgroup2".to_owned(),
            source: "cgroup".to_owned(),
            data: Vec::new(),
            readonly: false,
        }),
    }
}
