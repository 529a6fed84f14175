//! User namespaces of pods, and mounts that are mapped by them.

use kina_model::{IdRange, PidMode, PodNamespaces, SpecError, UserNamespace};

use super::{check, v1};

/// The user namespace that a pod asks for.
pub(super) fn asked(field: &str, options: v1::UserNamespace) -> Result<Option<UserNamespace>, SpecError> {
    let v1::UserNamespace { mode, uids, gids } = options;
    match check::known(&format!("{field}.mode"), mode)? {
        v1::NamespaceMode::Node if uids.is_empty() && gids.is_empty() => Ok(None),
        v1::NamespaceMode::Node => {
            Err(SpecError::invalid(field, "mode NODE has no user namespace, so no uids and gids"))
        }
        v1::NamespaceMode::Pod => Ok(Some(UserNamespace {
            uids: range(&format!("{field}.uids"), &uids)?,
            gids: range(&format!("{field}.gids"), &gids)?,
        })),
        mode @ (v1::NamespaceMode::Container | v1::NamespaceMode::Target) => {
            let reason = format!(
                "is {}; the containers of a pod share a user namespace, so it is POD or NODE",
                mode.as_str_name()
            );
            Err(SpecError::invalid(format!("{field}.mode"), reason))
        }
    }
}

/// The one range of a mapping.
fn range(field: &str, mappings: &[v1::IdMapping]) -> Result<IdRange, SpecError> {
    let [v1::IdMapping { host_id, container_id, length }] = *mappings else {
        let reason = format!("has {} mappings; exactly one is needed", mappings.len());
        return Err(SpecError::invalid(field, reason));
    };
    if container_id != 0 {
        let reason = format!("is {container_id}; id 0, the pod's root, must be mapped, so it is 0");
        return Err(SpecError::invalid(format!("{field}[0].container_id"), reason));
    }
    if length == 0 {
        return Err(SpecError::invalid(format!("{field}[0].length"), "is 0; map one id at least"));
    }
    // The last id, all ones, is no id to the kernel.
    if host_id.checked_add(length).is_none() {
        let reason = format!("{length} ids from host_id {host_id} on end above {}", u32::MAX - 1);
        return Err(SpecError::invalid(format!("{field}[0].length"), reason));
    }
    Ok(IdRange { inside: container_id, outside: host_id, length })
}

/// Refuses namespaces of the node in a pod with a user namespace.
pub(super) fn owns_all(field: &str, namespaces: PodNamespaces) -> Result<(), SpecError> {
    let of_node = [
        ("network", namespaces.host_network),
        ("pid", namespaces.pid == PidMode::Node),
        ("ipc", namespaces.host_ipc),
    ];
    match of_node.into_iter().find(|(_, of_node)| *of_node) {
        Some((name, _)) => {
            let reason = "NODE, but the pod has a user namespace, which the node's does not belong to; \
                          leave userns_options out (hostUsers: true) or use POD";
            Err(SpecError::invalid(format!("{field}.{name}"), reason))
        }
        None => Ok(()),
    }
}

/// Refuses a container that asks for another user namespace than its pod has.
pub(super) fn same(
    field: &str,
    options: v1::UserNamespace,
    pod: Option<UserNamespace>,
) -> Result<(), SpecError> {
    if asked(field, options)? == pod {
        return Ok(());
    }
    let reason = match pod {
        Some(_) => "differs from the pod's; give what RunPodSandbox was given",
        None => "the pod has no user namespace; ask for one in RunPodSandbox",
    };
    Err(SpecError::invalid(field, reason))
}

/// The user namespace by which a mount is mapped, if it is: that of its pod.
pub(super) fn mapped(
    field: &str,
    uids: &[v1::IdMapping],
    gids: &[v1::IdMapping],
    pod: Option<UserNamespace>,
) -> Result<Option<UserNamespace>, SpecError> {
    if uids.is_empty() && gids.is_empty() {
        return Ok(None);
    }
    let Some(pod) = pod else {
        let field = format!("{field}.{}", if uids.is_empty() { "gidMappings" } else { "uidMappings" });
        let reason = "the pod has no user namespace; ask for one in RunPodSandbox (hostUsers: false)";
        return Err(SpecError::invalid(field, reason));
    };
    for (name, given, of_pod) in [("uidMappings", uids, pod.uids), ("gidMappings", gids, pod.gids)] {
        if given != [mapping(of_pod)] {
            let reason = "differs from the pod's; give what userns_options in RunPodSandbox has";
            return Err(SpecError::invalid(format!("{field}.{name}"), reason));
        }
    }
    Ok(Some(pod))
}

/// A range as the interface says it.
pub(super) fn mapping(range: IdRange) -> v1::IdMapping {
    let IdRange { inside, outside, length } = range;
    v1::IdMapping { host_id: outside, container_id: inside, length }
}

/// A user namespace as the interface says it.
pub(super) fn message(user: UserNamespace) -> v1::UserNamespace {
    v1::UserNamespace {
        mode: v1::NamespaceMode::Pod.into(),
        uids: vec![mapping(user.uids)],
        gids: vec![mapping(user.gids)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(host_id: u32, container_id: u32, length: u32) -> v1::IdMapping {
        v1::IdMapping { host_id, container_id, length }
    }

    fn pod(uids: Vec<v1::IdMapping>, gids: Vec<v1::IdMapping>) -> v1::UserNamespace {
        v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids, gids }
    }

    #[test]
    fn one_mapping_of_users_and_one_of_groups() {
        let good = pod(vec![ids(100_000, 0, 65536)], vec![ids(u32::MAX - 7, 0, 7)]);
        let user = asked("u", good.clone()).unwrap().unwrap();
        assert_eq!(user.uids, IdRange { inside: 0, outside: 100_000, length: 65536 });
        assert_eq!(message(user), good);
        let node = v1::UserNamespace { mode: v1::NamespaceMode::Node.into(), ..Default::default() };
        assert_eq!(asked("u", node).unwrap(), None);
        let one = vec![ids(1, 0, 1)];
        for (bad, start, part) in [
            (pod(vec![], one.clone()), "u.uids: ", "0 mappings"),
            (pod(one.clone(), vec![]), "u.gids: ", "0 mappings"),
            (pod(vec![ids(1, 0, 1); 2], one.clone()), "u.uids: ", "2 mappings"),
            (pod(vec![ids(1, 1, 1)], one.clone()), "u.uids[0].container_id: ", "root"),
            (pod(one.clone(), vec![ids(1, 0, 0)]), "u.gids[0].length: ", "is 0"),
            (pod(vec![ids(u32::MAX - 7, 0, 8)], one.clone()), "u.uids[0].length: ", "4294967294"),
            (v1::UserNamespace { mode: 1, ..Default::default() }, "u.mode: ", "CONTAINER"),
            (v1::UserNamespace { mode: 3, ..Default::default() }, "u.mode: ", "TARGET"),
            (v1::UserNamespace { mode: 9, ..Default::default() }, "u.mode: ", "9"),
            (v1::UserNamespace { mode: 2, uids: one.clone(), ..Default::default() }, "u: ", "NODE"),
        ] {
            let error = asked("u", bad).unwrap_err().to_string();
            assert!(error.starts_with(start) && error.contains(part), "{error}");
        }
    }

    #[test]
    fn containers_and_mounts_have_the_pods() {
        let given = pod(vec![ids(100_000, 0, 65536)], vec![ids(200_000, 0, 65536)]);
        let user = asked("u", given.clone()).unwrap();
        same("c", given.clone(), user).unwrap();
        let swapped = pod(given.gids.clone(), given.uids.clone());
        let node = v1::UserNamespace { mode: v1::NamespaceMode::Node.into(), ..Default::default() };
        for (bad, of_pod) in [(swapped.clone(), user), (node.clone(), user), (given.clone(), None)] {
            assert!(matches!(same("c", bad, of_pod), Err(SpecError::Invalid { field, .. }) if field == "c"));
        }
        same("c", node, None).unwrap();

        assert_eq!(mapped("m", &given.uids, &given.gids, user).unwrap(), user);
        assert_eq!(mapped("m", &[], &[], user).unwrap(), None);
        for (uids, gids, of_pod, field) in [
            (&given.uids[..], &[][..], user, "m.gidMappings: "),
            (&[], &given.gids, user, "m.uidMappings: "),
            (&swapped.uids, &given.gids, user, "m.uidMappings: "),
            (&given.uids, &given.gids, None, "m.uidMappings: the pod has no"),
            (&[], &given.gids, None, "m.gidMappings: the pod has no"),
        ] {
            let error = mapped("m", uids, gids, of_pod).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
