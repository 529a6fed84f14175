//! Mounts and devices.

use std::path::{Component, Path, PathBuf};

use kina_model::{Device, Digest, ImageVolume, Mount, MountSource, Propagation, SpecError, UserNamespace};

use super::image::image_name;
use super::{check, user_namespace, v1};

/// The mount at that field.
///
/// `recursive` says whether the pod's machine can make mounts read-only with
/// everything below them.
/// `user` is the user namespace of the pod.
pub(super) fn mount(
    field: &str,
    message: v1::Mount,
    recursive: bool,
    user: Option<UserNamespace>,
) -> Result<Mount, SpecError> {
    let v1::Mount {
        container_path,
        host_path,
        readonly,
        selinux_relabel: relabel,
        propagation,
        uid_mappings,
        gid_mappings,
        recursive_read_only,
        image,
        image_sub_path,
        mount_options,
    } = message;

    let mapped = user_namespace::mapped(field, &uid_mappings, &gid_mappings, user)?;
    container_place(&format!("{field}.container_path"), &container_path)?;
    let propagation = match check::known(&format!("{field}.propagation"), propagation)? {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    let source = match image.filter(|image| *image != v1::ImageSpec::default()) {
        Some(image) => {
            if !host_path.is_empty() {
                let reason = "is set beside image; a mount has one source";
                return Err(SpecError::invalid(format!("{field}.host_path"), reason));
            }
            if !readonly {
                let reason = "is false; an image is mounted read-only, which the caller must ask for";
                return Err(SpecError::invalid(format!("{field}.readonly"), reason));
            }
            if propagation != Propagation::Private {
                let reason = "nothing is mounted below an image; use PROPAGATION_PRIVATE";
                return Err(SpecError::invalid(format!("{field}.propagation"), reason));
            }
            MountSource::Image(self::image(field, image, image_sub_path)?)
        }
        None => {
            if !image_sub_path.is_empty() {
                let reason = "is set without image";
                return Err(SpecError::invalid(format!("{field}.image_sub_path"), reason));
            }
            check::absolute_path(&format!("{field}.host_path"), &host_path)?;
            MountSource::HostPath(PathBuf::from(host_path))
        }
    };
    if recursive_read_only {
        let field = format!("{field}.recursive_read_only");
        if !readonly {
            return Err(SpecError::invalid(field, "needs readonly as well"));
        }
        if propagation != Propagation::Private {
            return Err(SpecError::invalid(field, "needs propagation PROPAGATION_PRIVATE"));
        }
        if !recursive {
            let reason = "the kernel of this pod cannot do that (Linux 5.12 can); leave it out";
            return Err(SpecError::unsupported(field, reason));
        }
    }
    for (index, option) in mount_options.iter().enumerate() {
        if !Mount::OPTIONS.contains(&option.as_str()) {
            let reason = format!("{option:?} is none of {}", Mount::OPTIONS.join(", "));
            return Err(SpecError::unsupported(format!("{field}.mount_options[{index}]"), reason));
        }
    }
    Ok(Mount {
        container_path,
        source,
        readonly,
        recursive_read_only,
        mapped,
        propagation,
        relabel,
        options: mount_options,
    })
}

/// A place in a container below its root. `..` in it is resolved by its text, as runc does.
fn container_place(field: &str, path: &str) -> Result<(), SpecError> {
    check::text(field, path)?;
    if !path.starts_with('/') {
        return Err(SpecError::invalid(field, format!("{path:?} is not an absolute path")));
    }
    let mut depth = 0_usize;
    for part in Path::new(path).components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => depth = depth.saturating_sub(1),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if depth == 0 {
        let reason = "the root itself cannot be mounted over; choose a path below it";
        return Err(SpecError::invalid(field, reason));
    }
    Ok(())
}

/// The image of a mount at that field.
fn image(field: &str, mut image: v1::ImageSpec, sub_path: String) -> Result<ImageVolume, SpecError> {
    let annotations = std::mem::take(&mut image.annotations);
    let user_specified = std::mem::take(&mut image.user_specified_image);
    let requested = image_name(&format!("{field}.image"), image)?;
    check::path_inside(&format!("{field}.image_sub_path"), &sub_path)?;
    Ok(ImageVolume { requested, user_specified, annotations, sub_path })
}

/// The mounts as a container's status says them; `images` are those that are
/// mounted, in their order.
pub(super) fn messages(mounts: &[Mount], images: &[Digest]) -> Vec<v1::Mount> {
    let mut images = images.iter();
    let image_of = |mount: &Mount| mount.source.image().and_then(|_| images.next());
    let images: Vec<Option<&Digest>> = mounts.iter().map(image_of).collect();
    mounts.iter().zip(images).map(|(mount, image)| message(mount, image)).collect()
}

fn message(mount: &Mount, image_id: Option<&Digest>) -> v1::Mount {
    let (host_path, image, image_sub_path) = match &mount.source {
        MountSource::HostPath(path) => (path.to_string_lossy().into_owned(), None, String::new()),
        MountSource::Image(volume) => {
            let image = v1::ImageSpec {
                image: volume.requested.clone(),
                annotations: volume.annotations.clone(),
                user_specified_image: volume.user_specified.clone(),
                runtime_handler: String::new(),
                image_ref: image_id.map(ToString::to_string).unwrap_or_default(),
            };
            (String::new(), Some(image), volume.sub_path.clone())
        }
    };
    let propagation = match mount.propagation {
        Propagation::Private => v1::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    v1::Mount {
        container_path: mount.container_path.clone(),
        host_path,
        readonly: mount.readonly,
        selinux_relabel: mount.relabel,
        propagation: propagation.into(),
        uid_mappings: mount.mapped.iter().map(|user| user_namespace::mapping(user.uids)).collect(),
        gid_mappings: mount.mapped.iter().map(|user| user_namespace::mapping(user.gids)).collect(),
        recursive_read_only: mount.recursive_read_only,
        image,
        image_sub_path,
        mount_options: mount.options.clone(),
    }
}

/// The device at that field.
pub(super) fn device(field: &str, message: v1::Device) -> Result<Device, SpecError> {
    let v1::Device { container_path, host_path, permissions } = message;
    check::absolute_path(&format!("{field}.container_path"), &container_path)?;
    check::absolute_path(&format!("{field}.host_path"), &host_path)?;
    let repeats = |index: usize| permissions[..index].contains(&permissions[index..=index]);
    let known = permissions.bytes().all(|byte| matches!(byte, b'r' | b'w' | b'm'));
    if permissions.is_empty() || !known || (1..permissions.len()).any(repeats) {
        let reason = format!("{permissions:?} is not made of r, w and m, each at most once");
        return Err(SpecError::invalid(format!("{field}.permissions"), reason));
    }
    Ok(Device { container_path, host_path: PathBuf::from(host_path), permissions })
}

#[cfg(test)]
mod tests {
    use kina_model::IdRange;

    use super::*;

    fn plain() -> v1::Mount {
        v1::Mount { container_path: "/data".into(), host_path: "/var/data".into(), ..Default::default() }
    }

    #[test]
    fn mounts_are_kept_and_said_again() {
        let original = v1::Mount {
            readonly: true,
            recursive_read_only: true,
            selinux_relabel: true,
            mount_options: vec!["noexec".into()],
            ..plain()
        };
        assert_eq!(message(&mount("m", original.clone(), true, None).unwrap(), None), original);
        let range = IdRange { inside: 0, outside: 100_000, length: 65536 };
        let user = Some(UserNamespace { uids: range, gids: range });
        let mapping = vec![user_namespace::mapping(range)];
        let mapped = v1::Mount { uid_mappings: mapping.clone(), gid_mappings: mapping, ..plain() };
        let kept = mount("m", mapped.clone(), false, user).unwrap();
        assert_eq!(kept.mapped, user);
        assert_eq!(message(&kept, None), mapped);
        assert_eq!(mount("m", plain(), false, user).unwrap().mapped, None);
        let winding = v1::Mount { container_path: "/a/../etc/x".into(), ..plain() };
        assert_eq!(message(&mount("m", winding.clone(), false, None).unwrap(), None), winding);
        let shared = v1::Mount {
            propagation: v1::MountPropagation::PropagationBidirectional.into(),
            selinux_relabel: true,
            image: Some(v1::ImageSpec::default()),
            ..plain()
        };
        assert_eq!(mount("m", shared, false, None).unwrap().propagation, Propagation::Bidirectional);
    }

    #[test]
    fn mounts_that_cannot_be_had() {
        type Change = fn(&mut v1::Mount);
        let cases: [(&str, &str, Change); 12] = [
            ("m.container_path", "absolute", |m| m.container_path = "data".into()),
            ("m.container_path", "root itself", |m| m.container_path = "/a/../..".into()),
            ("m.container_path", "root itself", |m| m.container_path = "//".into()),
            ("m.host_path", "absolute", |m| m.host_path.clear()),
            ("m.propagation", "value 7", |m| m.propagation = 7),
            ("m.uidMappings", "hostUsers", |m| m.uid_mappings.push(v1::IdMapping::default())),
            ("m.gidMappings", "hostUsers", |m| m.gid_mappings.push(v1::IdMapping::default())),
            ("m.image_sub_path", "without image", |m| m.image_sub_path = "a".into()),
            ("m.recursive_read_only", "readonly", |m| m.recursive_read_only = true),
            ("m.recursive_read_only", "PROPAGATION_PRIVATE", |m| {
                m.recursive_read_only = true;
                m.readonly = true;
                m.propagation = 1;
            }),
            ("m.recursive_read_only", "5.12", |m| {
                m.recursive_read_only = true;
                m.readonly = true;
            }),
            ("m.mount_options[0]", "remount", |m| m.mount_options.push("remount".into())),
        ];
        for (field, reason, change) in cases {
            let mut message = plain();
            change(&mut message);
            let error = mount("m", message, false, None).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: ")) && error.contains(reason), "{error}");
        }
    }

    fn of_image() -> v1::Mount {
        let image = v1::ImageSpec {
            image: "example.org/files:1".into(),
            user_specified_image: "files:1".into(),
            annotations: [("a".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        };
        v1::Mount {
            container_path: "/files".into(),
            image: Some(image),
            image_sub_path: "data/v1".into(),
            readonly: true,
            ..Default::default()
        }
    }

    #[test]
    fn images_are_kept_and_said_again_with_their_id() {
        let id: Digest = format!("sha256:{}", "0a".repeat(32)).parse().unwrap();
        let mounts = [plain(), of_image(), plain()].map(|m| mount("m", m, true, None).unwrap());
        let mut expected = of_image();
        expected.image.as_mut().unwrap().image_ref = id.to_string();
        assert_eq!(messages(&mounts, &[id]), [plain(), expected, plain()]);
        let recursive = v1::Mount { recursive_read_only: true, ..of_image() };
        assert!(mount("m", recursive, true, None).is_ok());
    }

    #[test]
    fn images_that_cannot_be_mounted() {
        type Change = fn(&mut v1::Mount);
        let cases: [(&str, &str, Change); 6] = [
            ("m.host_path", "one source", |m| m.host_path = "/x".into()),
            ("m.readonly", "read-only", |m| m.readonly = false),
            ("m.propagation", "PROPAGATION_PRIVATE", |m| m.propagation = 1),
            ("m.image.image", "name an image", |m| m.image.as_mut().unwrap().image.clear()),
            ("m.image_sub_path", "relative", |m| m.image_sub_path = "/etc".into()),
            ("m.image_sub_path", "\"..\"", |m| m.image_sub_path = "a/../../etc".into()),
        ];
        for (field, reason, change) in cases {
            let mut message = of_image();
            change(&mut message);
            let error = mount("m", message, true, None).unwrap_err();
            assert!(matches!(error, SpecError::Invalid { .. }));
            let error = error.to_string();
            assert!(error.starts_with(&format!("{field}: ")) && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn devices() {
        let ask = |permissions: &str| {
            let message = v1::Device {
                container_path: "/dev/null2".into(),
                host_path: "/dev/null".into(),
                permissions: permissions.to_owned(),
            };
            device("d", message)
        };
        for good in ["r", "mrw", "rwm"] {
            assert_eq!(ask(good).unwrap().permissions, good);
        }
        for bad in ["", "rx", "rr", "rwmr", "é"] {
            assert!(ask(bad).unwrap_err().to_string().starts_with("d.permissions: "), "{bad}");
        }
        let relative =
            v1::Device { host_path: "dev".into(), container_path: "/d".into(), ..Default::default() };
        assert!(device("d", relative).unwrap_err().to_string().starts_with("d.host_path: "));
    }
}
