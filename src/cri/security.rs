//! Namespaces, users, capabilities and profiles.

use std::path::PathBuf;

use kina_model::{
    AppArmor, ContainerPid, PidMode, PodNamespaces, PodSpec, RunAs, Seccomp, Security, SelinuxOptions,
    SpecError,
};

use super::{check, user_namespace, v1};

/// The capabilities that Linux has (capabilities(7)), without `CAP_`.
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// What is before the name in a reference to a profile of the node.
const LOCALHOST: &str = "localhost/";

/// What the kernel of a pod can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// It can make mounts read-only with everything below them.
    pub recursive_read_only: bool,
}

/// A profile as a caller names one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Profile {
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// One of the node's, by path (seccomp) or name (AppArmor).
    Localhost(String),
}

/// The namespaces that a pod shares with the node.
pub(super) fn pod_namespaces(
    field: &str,
    options: Option<v1::NamespaceOption>,
) -> Result<PodNamespaces, SpecError> {
    let v1::NamespaceOption { network, pid, ipc, target_id, userns_options } = options.unwrap_or_default();
    let user = match userns_options {
        Some(options) => user_namespace::asked(&format!("{field}.userns_options"), options)?,
        None => None,
    };
    if !target_id.is_empty() {
        let reason = "only a container can share another container's processes";
        return Err(SpecError::invalid(format!("{field}.target_id"), reason));
    }
    let pid_field = format!("{field}.pid");
    let pid = match check::known(&pid_field, pid)? {
        v1::NamespaceMode::Pod => PidMode::Pod,
        v1::NamespaceMode::Container => PidMode::Container,
        v1::NamespaceMode::Node => PidMode::Node,
        v1::NamespaceMode::Target => {
            let reason = "TARGET is for containers; use POD, CONTAINER or NODE";
            return Err(SpecError::invalid(pid_field, reason));
        }
    };
    let namespaces = PodNamespaces {
        user,
        host_network: is_node(&format!("{field}.network"), network)?,
        host_ipc: is_node(&format!("{field}.ipc"), ipc)?,
        pid,
    };
    if user.is_some() {
        user_namespace::owns_all(field, namespaces)?;
    }
    Ok(namespaces)
}

/// Whether the mode of a network or IPC namespace is the node's.
fn is_node(field: &str, mode: i32) -> Result<bool, SpecError> {
    match check::known(field, mode)? {
        v1::NamespaceMode::Pod => Ok(false),
        v1::NamespaceMode::Node => Ok(true),
        v1::NamespaceMode::Container | v1::NamespaceMode::Target => {
            Err(SpecError::unsupported(field, "the containers of a pod share it; use POD or NODE"))
        }
    }
}

/// What a container's processes see, where that differs from its pod.
fn container_pid(
    field: &str,
    options: Option<v1::NamespaceOption>,
    pod: &PodSpec,
) -> Result<Option<ContainerPid>, SpecError> {
    let Some(v1::NamespaceOption { network, pid, ipc, target_id, userns_options }) = options else {
        return Ok(None);
    };
    if let Some(options) = userns_options {
        user_namespace::same(&format!("{field}.userns_options"), options, pod.namespaces.user)?;
    }
    for (name, mode, of_pod) in
        [("network", network, pod.namespaces.host_network), ("ipc", ipc, pod.namespaces.host_ipc)]
    {
        // POD is whatever the pod has.
        if is_node(&format!("{field}.{name}"), mode)? && !of_pod {
            let reason = "NODE, but the pod does not share it with the node; ask for that in RunPodSandbox";
            return Err(SpecError::invalid(format!("{field}.{name}"), reason));
        }
    }
    let pid_field = format!("{field}.pid");
    let mode = check::known(&pid_field, pid)?;
    if mode != v1::NamespaceMode::Target && !target_id.is_empty() {
        let reason = "is given, but pid is not TARGET";
        return Err(SpecError::invalid(format!("{field}.target_id"), reason));
    }
    match (mode, pod.namespaces.pid) {
        (v1::NamespaceMode::Pod, PidMode::Pod | PidMode::Node)
        | (v1::NamespaceMode::Container, PidMode::Container)
        | (v1::NamespaceMode::Node, PidMode::Node) => Ok(None),
        (v1::NamespaceMode::Container, PidMode::Pod | PidMode::Node) => {
            Ok(Some(ContainerPid::Mode(PidMode::Container)))
        }
        (v1::NamespaceMode::Pod, PidMode::Container) => Ok(Some(ContainerPid::Mode(PidMode::Pod))),
        (v1::NamespaceMode::Node, PidMode::Pod | PidMode::Container) => {
            let reason = "NODE, but the pod does not see the node's processes; ask for that in RunPodSandbox";
            Err(SpecError::invalid(pid_field, reason))
        }
        (v1::NamespaceMode::Target, _) if target_id.is_empty() => Err(SpecError::invalid(
            format!("{field}.target_id"),
            "is missing; pid TARGET needs a container's id",
        )),
        (v1::NamespaceMode::Target, _) => Ok(Some(ContainerPid::Target(target_id))),
    }
}

/// A label; whether the kernel has SELinux shows once the pod's guest is asked.
pub(super) fn selinux(
    field: &str,
    options: Option<v1::SeLinuxOption>,
) -> Result<Option<SelinuxOptions>, SpecError> {
    let Some(options) = options.filter(|options| *options != v1::SeLinuxOption::default()) else {
        return Ok(None);
    };
    let v1::SeLinuxOption { user, role, r#type: kind, level } = options;
    for (name, part, separators) in
        [("user", &user, ""), ("role", &role, ""), ("type", &kind, ""), ("level", &level, ":,")]
    {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if !part.bytes().all(|byte| fits(byte) || separators.as_bytes().contains(&byte)) {
            let reason = format!(
                "{part:?} is no part of an SELinux label such as {}",
                match name {
                    "level" => "s0:c1,c2",
                    _ => "container_t",
                }
            );
            return Err(SpecError::invalid(format!("{field}.{name}"), reason));
        }
    }
    Ok(Some(SelinuxOptions { user, role, kind, level }))
}

/// A user and a group; the group needs the user.
pub(super) fn user(
    field: &str,
    uid: Option<v1::Int64Value>,
    name: &str,
    gid: Option<v1::Int64Value>,
) -> Result<(Option<RunAs>, Option<u32>), SpecError> {
    let uid = uid.map(|uid| check::id(&format!("{field}.run_as_user"), uid.value)).transpose()?;
    let gid = gid.map(|gid| check::id(&format!("{field}.run_as_group"), gid.value)).transpose()?;
    let user = match (uid, name) {
        (None, "") => None,
        (Some(uid), "") => Some(RunAs::Uid(uid)),
        (None, name) => {
            let field = format!("{field}.run_as_username");
            check::word(&field, name)?;
            if name.contains(':') {
                return Err(SpecError::invalid(field, format!("{name:?} is no user name; use run_as_group")));
            }
            Some(RunAs::Name(name.to_owned()))
        }
        (Some(_), _) => {
            let reason = "run_as_user is given too; only one of them can be";
            return Err(SpecError::invalid(format!("{field}.run_as_username"), reason));
        }
    };
    if gid.is_some() && user.is_none() {
        let reason = "needs run_as_user or run_as_username as well";
        return Err(SpecError::invalid(format!("{field}.run_as_group"), reason));
    }
    Ok((user, gid))
}

/// Further groups, and whether they are all.
pub(super) fn groups(field: &str, groups: &[i64], policy: i32) -> Result<(Vec<u32>, bool), SpecError> {
    let groups = groups
        .iter()
        .enumerate()
        .map(|(index, group)| check::id(&format!("{field}.supplemental_groups[{index}]"), *group))
        .collect::<Result<_, _>>()?;
    let strict = match check::known(&format!("{field}.supplemental_groups_policy"), policy)? {
        v1::SupplementalGroupsPolicy::Merge => false,
        v1::SupplementalGroupsPolicy::Strict => true,
    };
    Ok((groups, strict))
}

/// Capabilities in the model's form: upper case, without `CAP_`.
fn capabilities(field: &str, names: &[String], all: bool) -> Result<Vec<String>, SpecError> {
    names
        .iter()
        .enumerate()
        .map(|(index, original)| {
            let upper = original.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if CAPABILITIES.binary_search(&name).is_ok() || (all && name == "ALL") {
                return Ok(name.to_owned());
            }
            let reason = format!("{original:?} is no capability of Linux; write NET_ADMIN or CAP_NET_ADMIN");
            Err(SpecError::invalid(format!("{field}[{index}]"), reason))
        })
        .collect()
}

/// A profile, from its own field or the deprecated one.
fn profile(
    field: &str,
    profile: Option<v1::SecurityProfile>,
    old_field: &str,
    old: &str,
) -> Result<Option<Profile>, SpecError> {
    if let Some(v1::SecurityProfile { profile_type, localhost_ref }) = profile {
        let kind = check::known(&format!("{field}.profile_type"), profile_type)?;
        let field = format!("{field}.localhost_ref");
        return match kind {
            v1::security_profile::ProfileType::Localhost => {
                let name = localhost_ref.strip_prefix(LOCALHOST).unwrap_or(&localhost_ref);
                if name.is_empty() {
                    return Err(SpecError::invalid(
                        field,
                        "is missing; Localhost needs a profile of the node",
                    ));
                }
                Ok(Some(Profile::Localhost(name.to_owned())))
            }
            _ if !localhost_ref.is_empty() => {
                Err(SpecError::invalid(field, "is given, but profile_type is not Localhost"))
            }
            v1::security_profile::ProfileType::RuntimeDefault => Ok(Some(Profile::RuntimeDefault)),
            v1::security_profile::ProfileType::Unconfined => Ok(Some(Profile::Unconfined)),
        };
    }
    match old {
        "" => Ok(None),
        "runtime/default" | "docker/default" => Ok(Some(Profile::RuntimeDefault)),
        "unconfined" => Ok(Some(Profile::Unconfined)),
        _ => match old.strip_prefix(LOCALHOST) {
            Some(name) if !name.is_empty() => Ok(Some(Profile::Localhost(name.to_owned()))),
            _ => {
                let reason =
                    format!("{old:?} is none of runtime/default, unconfined and localhost/<profile>");
                Err(SpecError::invalid(old_field, reason))
            }
        },
    }
}

#[allow(deprecated, reason = "older kubelets use the old field")]
fn seccomp_profile(
    field: &str,
    context: &v1::LinuxContainerSecurityContext,
) -> Result<Option<Profile>, SpecError> {
    profile(
        &format!("{field}.seccomp"),
        context.seccomp.clone(),
        &format!("{field}.seccomp_profile_path"),
        &context.seccomp_profile_path,
    )
}

/// The file on the node whose text [`security`] needs, if any.
///
/// # Errors
/// When the reference to it is no absolute path.
pub(super) fn seccomp_file(
    field: &str,
    context: &v1::LinuxContainerSecurityContext,
) -> Result<Option<PathBuf>, SpecError> {
    match seccomp_profile(field, context)? {
        // A privileged container has no filter, whatever is asked for.
        Some(Profile::Localhost(path)) if !context.privileged => {
            check::absolute_path(&format!("{field}.seccomp.localhost_ref"), &path)?;
            Ok(Some(PathBuf::from(path)))
        }
        Some(Profile::Localhost(_) | Profile::RuntimeDefault | Profile::Unconfined) | None => Ok(None),
    }
}

/// The system call filter, `text` being that of [`seccomp_file`].
fn seccomp(
    field: &str,
    context: &v1::LinuxContainerSecurityContext,
    text: Option<String>,
) -> Result<Seccomp, SpecError> {
    let asked = seccomp_profile(field, context)?;
    if context.privileged {
        return Ok(Seccomp::Unconfined);
    }
    match asked {
        // The CRI: no profile is none.
        None | Some(Profile::Unconfined) => Ok(Seccomp::Unconfined),
        Some(Profile::RuntimeDefault) => Ok(Seccomp::RuntimeDefault),
        Some(Profile::Localhost(path)) => {
            let field = format!("{field}.seccomp.localhost_ref");
            let text = text.ok_or_else(|| SpecError::invalid(&field, format!("{path} was not read")))?;
            match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text) {
                Ok(_) => Ok(Seccomp::Localhost(text)),
                Err(error) => {
                    Err(SpecError::invalid(field, format!("{path} is no profile in JSON: {error}")))
                }
            }
        }
    }
}

/// Whether the kernel has AppArmor shows once the pod's guest is asked.
#[allow(deprecated, reason = "older kubelets use the old field")]
fn apparmor(field: &str, context: &v1::LinuxContainerSecurityContext) -> Result<AppArmor, SpecError> {
    let old_field = format!("{field}.apparmor_profile");
    let field = format!("{field}.apparmor");
    match profile(&field, context.apparmor.clone(), &old_field, &context.apparmor_profile)? {
        None => Ok(AppArmor::Unset),
        Some(Profile::RuntimeDefault) => Ok(AppArmor::RuntimeDefault),
        Some(Profile::Unconfined) => Ok(AppArmor::Unconfined),
        Some(Profile::Localhost(name)) => {
            check::word(&format!("{field}.localhost_ref"), &name)?;
            Ok(AppArmor::Localhost(name))
        }
    }
}

/// The privileges of a container of that pod, at that field.
pub(super) fn security(
    field: &str,
    context: v1::LinuxContainerSecurityContext,
    pod: &PodSpec,
    seccomp_text: Option<String>,
) -> Result<Security, SpecError> {
    let seccomp = seccomp(field, &context, seccomp_text)?;
    let apparmor = apparmor(field, &context)?;
    #[allow(deprecated, reason = "they are read above; here every field has to be named")]
    let v1::LinuxContainerSecurityContext {
        capabilities: asked,
        privileged,
        namespace_options,
        selinux_options,
        run_as_user,
        run_as_group,
        run_as_username,
        readonly_rootfs,
        supplemental_groups,
        supplemental_groups_policy,
        no_new_privs,
        masked_paths,
        readonly_paths,
        seccomp: _,
        apparmor: _,
        apparmor_profile: _,
        seccomp_profile_path: _,
    } = context;

    if privileged && !pod.privileged {
        let reason = "the pod is not privileged; set privileged in RunPodSandbox as well";
        return Err(SpecError::invalid(format!("{field}.privileged"), reason));
    }
    let selinux = selinux(&format!("{field}.selinux_options"), selinux_options)?;
    let v1::Capability { add_capabilities, drop_capabilities, add_ambient_capabilities } =
        asked.unwrap_or_default();
    let named = |name: &str| format!("{field}.capabilities.{name}");
    let (user, group) = user(field, run_as_user, &run_as_username, run_as_group)?;
    let (supplemental_groups, strict_groups) =
        groups(field, &supplemental_groups, supplemental_groups_policy)?;
    for (name, paths) in [("masked_paths", &masked_paths), ("readonly_paths", &readonly_paths)] {
        for (index, path) in paths.iter().enumerate() {
            check::absolute_path(&format!("{field}.{name}[{index}]"), path)?;
        }
    }
    // The caller's lists are meant as they are; a privileged container has none.
    let paths = |paths| Some(if privileged { Vec::new() } else { paths });
    Ok(Security {
        privileged,
        add_capabilities: capabilities(&named("add_capabilities"), &add_capabilities, true)?,
        drop_capabilities: capabilities(&named("drop_capabilities"), &drop_capabilities, true)?,
        ambient_capabilities: capabilities(
            &named("add_ambient_capabilities"),
            &add_ambient_capabilities,
            false,
        )?,
        pid: container_pid(&format!("{field}.namespace_options"), namespace_options, pod)?,
        user,
        group,
        supplemental_groups,
        strict_groups,
        readonly_rootfs,
        no_new_privs,
        masked_paths: paths(masked_paths),
        readonly_paths: paths(readonly_paths),
        seccomp,
        apparmor,
        selinux,
    })
}

/// Whether a kernel parameter belongs to a namespace that the pod has to itself.
pub(super) fn sysctl(field: &str, name: &str, namespaces: PodNamespaces) -> Result<(), SpecError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/' | b'_' | b'-' | b':');
    if name.is_empty() || !name.bytes().all(plain) || name.split(['.', '/']).any(str::is_empty) {
        return Err(SpecError::invalid(field, "is no kernel parameter such as net.core.somaxconn"));
    }
    let dotted = name.replace('/', ".");
    let taken = |which: &str| {
        let reason =
            format!("belongs to the {which} namespace, which this pod shares with the node; leave it out");
        Err(SpecError::invalid(field, reason))
    };
    let of_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| dotted.starts_with(prefix));
    if dotted.starts_with("net.") {
        if namespaces.host_network { taken("network") } else { Ok(()) }
    } else if of_ipc || dotted == "kernel.sem" {
        if namespaces.host_ipc { taken("IPC") } else { Ok(()) }
    } else {
        let reason =
            "is not a parameter of a namespace (net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*)";
        Err(SpecError::invalid(field, reason))
    }
}

/// The modes as a pod's status says them.
pub(super) fn namespaces_message(namespaces: PodNamespaces) -> v1::NamespaceOption {
    let mode = |of_node| if of_node { v1::NamespaceMode::Node } else { v1::NamespaceMode::Pod };
    let pid = match namespaces.pid {
        PidMode::Pod => v1::NamespaceMode::Pod,
        PidMode::Container => v1::NamespaceMode::Container,
        PidMode::Node => v1::NamespaceMode::Node,
    };
    v1::NamespaceOption {
        network: mode(namespaces.host_network).into(),
        pid: pid.into(),
        ipc: mode(namespaces.host_ipc).into(),
        target_id: String::new(),
        userns_options: namespaces.user.map(user_namespace::message),
    }
}
