//! Where what a container mounts comes from, for pods whose machine has a
//! kernel of its own: kept in the machine, shared with it, or refused.
//!
//! A machine sees nothing of the node but what its pod may have: the pod's own
//! directory of the kubelet, and what lies below the configured roots. The path
//! that is shared is the one that was looked at, without symbolic links.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kina_guest_api::v1;
use kina_model::{ContainerSpec, PodSpec, Propagation, SpecError};
use kina_node::{Node, PathFacts, PathKind};

use crate::error::{Error, chain};

/// Of which directories of the node pods in machines of their own may see
/// something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeRoots {
    /// The kubelet's directory.
    pub kubelet: PathBuf,
    /// Below them lies what pods may mount by a path of the node.
    pub shared: Vec<PathBuf>,
}

impl VolumeRoots {
    /// The directories of which a pod may see something: its own part of the
    /// kubelet's, and the configured ones.
    pub(super) fn of_pod(&self, pod_uid: &str) -> Vec<PathBuf> {
        let own = is_name(pod_uid).then(|| pod_directory(self, pod_uid));
        own.into_iter().chain(self.shared.iter().cloned()).collect()
    }
}

/// Where a mount comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// From the node, by this path.
    Shared(PathBuf),
    /// From the node, by this path, where nothing can be written but to what is
    /// mounted below it.
    SharedTopReadonly(PathBuf),
    /// The guest keeps it for the pod.
    Kept(v1::PodVolume),
    /// An image, from its layers.
    Image,
}

/// What a mount is.
#[derive(Debug, PartialEq, Eq)]
enum Found<'a> {
    /// Something of the node, by this path.
    OfNode(&'a Path),
    /// A part of the pod's emptyDir of that name; the whole if it is empty.
    EmptyDir { name: &'a str, part: &'a str },
}

/// Where the mounts of a container come from, in order.
///
/// # Errors
/// The first that cannot be had, and any device of the node.
pub(super) async fn sources(
    node: &Arc<dyn Node>,
    roots: &VolumeRoots,
    pod: &PodSpec,
    container: &ContainerSpec,
) -> Result<Vec<Source>, Error> {
    for (field, asked) in [
        ("config.devices[0]", !container.devices.is_empty()),
        ("config.CDI_devices[0]", !container.cdi_devices.is_empty()),
    ] {
        if asked {
            let reason = "devices of the node cannot be given to a virtual machine; \
                 use runtime handler \"shared\" for this pod";
            return Err(SpecError::unsupported(field, reason).into());
        }
    }
    let kubelet = real(node, &roots.kubelet).await;
    let mut shared = Vec::with_capacity(roots.shared.len());
    for root in &roots.shared {
        shared.push(real(node, root).await);
    }
    let roots = VolumeRoots { kubelet, shared };
    let mut sources = Vec::with_capacity(container.mounts.len());
    for (index, mount) in container.mounts.iter().enumerate() {
        let Some(host_path) = mount.source.host_path() else {
            sources.push(Source::Image);
            continue;
        };
        let field = format!("config.mounts[{index}]");
        let inspect = async |path: &Path| {
            node.inspect_path(path).await.map_err(|error| {
                let reason = if error.is_not_found() {
                    format!("{} is not there", path.display())
                } else {
                    chain(&error)
                };
                SpecError::invalid(format!("{field}.host_path"), reason)
            })
        };
        let facts = inspect(host_path).await?;
        let found = find(&field, host_path, mount.propagation, &pod.metadata.uid, &facts, &roots)?;
        sources.push(match found {
            Found::OfNode(_) if pod.namespaces.user.is_some() && mount.mapped.is_none() => {
                let reason = "what a virtual machine whose pod has a user namespace sees of the node is \
                     mapped as a whole; give this mount the pod's uidMappings and gidMappings";
                return Err(SpecError::unsupported(format!("{field}.uidMappings"), reason).into());
            }
            Found::OfNode(path) if mount.readonly && !mount.recursive_read_only && facts.has_mounts_below => {
                Source::SharedTopReadonly(path.to_owned())
            }
            Found::OfNode(path) => Source::Shared(path.to_owned()),
            Found::EmptyDir { name, part } => {
                let directory = pod_directory(&roots, &pod.metadata.uid).join(VOLUMES).join(EMPTY_DIR);
                let volume = inspect(&directory.join(name)).await?;
                Source::Kept(empty_dir(&field, name, part, &volume)?)
            }
        });
    }
    Ok(sources)
}

/// A root without symbolic links; as it is where it does not exist.
async fn real(node: &Arc<dyn Node>, root: &Path) -> PathBuf {
    node.inspect_path(root).await.map_or_else(|_| root.to_owned(), |facts| facts.real)
}

/// What the kubelet keeps of a pod.
fn pod_directory(roots: &VolumeRoots, pod_uid: &str) -> PathBuf {
    roots.kubelet.join("pods").join(pod_uid)
}

/// Whether a uid is one component of a path.
fn is_name(pod_uid: &str) -> bool {
    !matches!(pod_uid, "" | "." | "..") && !pod_uid.contains('/')
}

/// The directory of a pod's volumes in it.
const VOLUMES: &str = "volumes";

/// The directory of its emptyDir volumes among them.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// What one mount is. `roots` are without symbolic links.
fn find<'a>(
    field: &str,
    host_path: &Path,
    propagation: Propagation,
    pod_uid: &str,
    facts: &'a PathFacts,
    roots: &VolumeRoots,
) -> Result<Found<'a>, SpecError> {
    let refuse = |part: &str, reason: String| Err(SpecError::unsupported(format!("{field}.{part}"), reason));
    let path = host_path.display();
    let what = match facts.kind {
        PathKind::Directory | PathKind::File => None,
        PathKind::Socket => Some("is a socket, through which a virtual machine reaches nobody on the node"),
        PathKind::Pipe => Some("is a pipe, which does not lead out of a virtual machine"),
        PathKind::BlockDevice | PathKind::CharacterDevice => {
            Some("is a device of the node, which cannot be given to a virtual machine")
        }
    };
    if let Some(what) = what {
        return refuse("host_path", format!("{path} {what}; use runtime handler \"shared\" for this pod"));
    }
    if propagation == Propagation::Bidirectional {
        let reason = "mounts made in a virtual machine do not reach the node; \
             use HostToContainer, or runtime handler \"shared\" for this pod";
        return refuse("propagation", reason.to_owned());
    }
    let pod = pod_directory(roots, pod_uid);
    if is_name(pod_uid)
        && let Ok(below) = facts.real.strip_prefix(&pod)
    {
        return match of_kubelet(below, facts, &pod, roots) {
            Some(found) => Ok(found),
            None => refuse(
                "host_path",
                format!(
                    "{path} is nothing of the kubelet's that a virtual machine may see; if it is a subPath \
                     of a hostPath volume, add that volume's directory to machine.share_roots in kina's \
                     configuration"
                ),
            ),
        };
    }
    if below_any(&facts.real, &roots.shared) {
        return Ok(Found::OfNode(&facts.real));
    }
    let real = match facts.real == host_path {
        true => String::new(),
        false => format!(" (it is {})", facts.real.display()),
    };
    refuse(
        "host_path",
        format!(
            "{path}{real} is below no directory that virtual machines may see; add one to \
             machine.share_roots in kina's configuration, or use runtime handler \"shared\" for this pod"
        ),
    )
}

/// Something in a pod's own directory, by its path below that.
fn of_kubelet<'a>(
    below: &'a Path,
    facts: &'a PathFacts,
    pod: &Path,
    roots: &VolumeRoots,
) -> Option<Found<'a>> {
    let mut parts = below.iter().map(|part| part.to_str().unwrap_or_default());
    match (parts.next()?, parts.next(), parts.next()) {
        (VOLUMES, Some(EMPTY_DIR), Some(name)) => {
            let part = below.strip_prefix(Path::new(VOLUMES).join(EMPTY_DIR).join(name)).ok()?;
            Some(Found::EmptyDir { name, part: part.to_str()? })
        }
        (VOLUMES, Some(_), Some(_)) | ("etc-hosts", None, None) | ("containers", Some(_), Some(_)) => {
            Some(Found::OfNode(&facts.real))
        }
        // The kubelet binds what a subPath names to a path of its own here.
        ("volume-subpaths", Some(name), Some(_)) => {
            let volumes = pod.join(VOLUMES);
            let whole = volumes.join(EMPTY_DIR).join(name);
            let part = facts.aliases.iter().find_map(|alias| alias.strip_prefix(&whole).ok()?.to_str());
            if let Some(part) = part {
                return Some(Found::EmptyDir { name, part });
            }
            let visible = |alias: &PathBuf| alias.starts_with(&volumes) || below_any(alias, &roots.shared);
            facts.aliases.iter().any(visible).then_some(Found::OfNode(&facts.real))
        }
        _ => None,
    }
}

/// A part of an emptyDir whose own directory on the node is like that.
fn empty_dir(field: &str, name: &str, part: &str, facts: &PathFacts) -> Result<v1::PodVolume, SpecError> {
    // Each medium but the disk has a file system of the volume's own.
    let medium = (facts.mount.mountpoint == facts.real).then_some(facts.mount.filesystem.as_str());
    if medium == Some("hugetlbfs") {
        let reason = "an emptyDir of medium HugePages cannot be had in a virtual machine; \
             use runtime handler \"shared\" for this pod";
        return Err(SpecError::unsupported(format!("{field}.host_path"), reason));
    }
    let memory = medium == Some("tmpfs");
    Ok(v1::PodVolume {
        name: name.to_owned(),
        mode: facts.mode,
        uid: facts.uid,
        gid: facts.gid,
        memory,
        memory_bytes: if memory { facts.mount.size_bytes } else { 0 },
        sub_path: part.to_owned(),
    })
}

fn below_any(path: &Path, roots: &[PathBuf]) -> bool {
    roots.iter().any(|root| path.starts_with(root))
}

#[cfg(test)]
mod tests {
    use kina_node::MountFacts;

    use super::*;

    const POD: &str = "/var/lib/kubelet/pods/u-1";

    fn roots() -> VolumeRoots {
        VolumeRoots { kubelet: "/var/lib/kubelet".into(), shared: vec!["/srv/data".into()] }
    }

    fn facts(real: &str) -> PathFacts {
        PathFacts {
            real: real.into(),
            kind: PathKind::Directory,
            mode: 0o2777,
            uid: 0,
            gid: 2000,
            mount: MountFacts { mountpoint: "/".into(), filesystem: "ext4".into(), size_bytes: 1 << 40 },
            has_mounts_below: false,
            aliases: Vec::new(),
        }
    }

    fn found<'a>(path: &str, facts: &'a PathFacts) -> Result<Found<'a>, SpecError> {
        find("m", Path::new(path), Propagation::Private, "u-1", facts, &roots())
    }

    #[test]
    fn what_mounts_are() {
        let shared = "shared";
        for (path, aliases, expected) in [
            ("POD/volumes/kubernetes.io~configmap/cm", &[][..], Some(shared)),
            ("POD/volumes/kubernetes.io~projected/token", &[], Some(shared)),
            ("POD/volumes/kubernetes.io~csi/pv/mount", &[], Some(shared)),
            ("POD/etc-hosts", &[], Some(shared)),
            ("POD/containers/c/0a1b", &[], Some(shared)),
            ("POD/volumes/kubernetes.io~empty-dir/tmp", &[], Some("tmp:")),
            ("POD/volumes/kubernetes.io~empty-dir/tmp/a/b", &[], Some("tmp:a/b")),
            ("POD/volume-subpaths/tmp/c/0", &["POD/volumes/kubernetes.io~empty-dir/tmp/a"], Some("tmp:a")),
            // On a file system that is mounted elsewhere, too.
            (
                "POD/volume-subpaths/tmp/c/0",
                &["/disk/tmp/a", "POD/volumes/kubernetes.io~empty-dir/tmp"],
                Some("tmp:"),
            ),
            ("POD/volume-subpaths/cm/c/1", &["POD/volumes/kubernetes.io~configmap/cm/..1/k"], Some(shared)),
            ("POD/volume-subpaths/host/c/2", &["/srv/data/x"], Some(shared)),
            ("POD/volume-subpaths/host/c/2", &["/etc"], None),
            ("POD/volume-subpaths/host/c/2", &[], None),
            ("POD/volumes", &[], None),
            ("POD", &[], None),
            ("/var/lib/kubelet/pods/u-10/volumes/kubernetes.io~secret/s", &[], None),
            ("/var/lib/kubelet", &[], None),
            ("/srv/data", &[], Some(shared)),
            ("/srv/data/x", &[], Some(shared)),
            ("/srv/data2", &[], None),
            ("/", &[], None),
        ] {
            let path = path.replace("POD", POD);
            let mut facts = facts(&path);
            facts.aliases = aliases.iter().map(|alias| alias.replace("POD", POD).into()).collect();
            let found = found(&path, &facts);
            let text = found.as_ref().ok().map(|found| match found {
                Found::OfNode(shared) => {
                    assert_eq!(*shared, Path::new(&path));
                    "shared".to_owned()
                }
                Found::EmptyDir { name, part } => format!("{name}:{part}"),
            });
            assert_eq!(text.as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_pod_without_a_uid_has_no_directory_of_the_kubelets() {
        for uid in ["", ".", "..", "u-1/../u-2"] {
            let path = format!("{POD}/etc-hosts");
            let found =
                |uid| find("m", Path::new(&path), Propagation::Private, uid, &facts(&path), &roots()).is_ok();
            assert!(!found(uid), "{uid:?}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_name() {
        let inside = "/srv/data/x";
        for (kind, word) in [
            (PathKind::Socket, "socket"),
            (PathKind::Pipe, "pipe"),
            (PathKind::BlockDevice, "device"),
            (PathKind::CharacterDevice, "device"),
        ] {
            let facts = PathFacts { kind, ..facts(inside) };
            let error = found(inside, &facts).unwrap_err().to_string();
            assert!(error.starts_with("m.host_path: /srv/data/x is a ") && error.contains(word), "{error}");
        }
        for (propagation, taken) in
            [(Propagation::HostToContainer, true), (Propagation::Bidirectional, false)]
        {
            let facts = facts(inside);
            let found = find("m", Path::new(inside), propagation, "u-1", &facts, &roots());
            assert_eq!(found.is_ok(), taken);
        }
        // A link is judged by where it leads.
        let error = found("/srv/data/link", &facts("/etc")).unwrap_err().to_string();
        for part in ["m.host_path: ", "/srv/data/link (it is /etc)", "machine.share_roots"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn empty_dirs_are_as_on_the_node() {
        let path = format!("{POD}/volumes/kubernetes.io~empty-dir/tmp");
        let on = |mountpoint: &str, filesystem: &str| PathFacts {
            mount: MountFacts {
                mountpoint: mountpoint.into(),
                filesystem: filesystem.into(),
                size_bytes: 1 << 20,
            },
            ..facts(&path)
        };
        for (facts, memory) in
            [(on("/", "ext4"), None), (on("/var/lib", "tmpfs"), None), (on(&path, "tmpfs"), Some(1 << 20))]
        {
            let volume = empty_dir("m", "tmp", "a", &facts).unwrap();
            let expected = v1::PodVolume {
                name: "tmp".into(),
                mode: 0o2777,
                uid: 0,
                gid: 2000,
                memory: memory.is_some(),
                memory_bytes: memory.unwrap_or(0),
                sub_path: "a".into(),
            };
            assert_eq!(volume, expected);
        }
        let error = empty_dir("m", "tmp", "", &on(&path, "hugetlbfs")).unwrap_err().to_string();
        assert!(error.starts_with("m.host_path: ") && error.contains("HugePages"), "{error}");
    }
}
