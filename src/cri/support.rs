//! What kina does with each call of the CRI and each field of its requests. Tests
//! hold the tables against the protocol file, the conversions name every field,
//! and the documentation is made from it.

mod calls;
mod requests;

pub use calls::{Answer, Call, IMAGE, RUNTIME};
use requests::{REQUESTS, Rows};

/// What happens to a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It is kept and acted upon.
    Honoured,
    /// Any value but the default is refused; why. Holds for all below it.
    Refused(&'static str),
    /// It asks for nothing here; why. Holds for all below it.
    NotApplicable(&'static str),
    /// Honoured for a virtual machine; why it asks for nothing elsewhere.
    VmOnly(&'static str),
    /// Honoured on the node's own kernel; why it is refused for a virtual machine.
    SharedOnly(&'static str),
    /// Honoured; in a virtual machine with a limitation.
    Limited(&'static str),
    /// Honoured with a limitation, whatever the machine.
    Partly(&'static str),
}

use Support::{Honoured, Limited, NotApplicable, Partly, Refused, SharedOnly, VmOnly};

const NO_POD_PROCESS: &str = "a pod has no process of its own; containers carry their own value";
const SIZES_A_MACHINE: &str =
    "sizes a virtual machine; the kubelet itself limits the cgroup that it names as the pod's parent";
const SIZES_NOTHING: &str = "a virtual machine is sized by memory limit and CPU quota alone";
const OWN_NETWORK: &str = "refused where machines have a network of their own (macOS)";
const ALL_MAPPED: &str = "in a pod with a user namespace a mount of the node's without them is refused there";
const NO_DEVICES: &str = "devices of the node cannot be given to a virtual machine";
const OUTPUT_ONLY: &str = "runtimes report it, callers do not set it";

/// Fields of `RunPodSandboxRequest`, by path.
pub const RUN_POD_SANDBOX: &[(&str, Support)] = &[
    ("config.metadata.name", Honoured),
    ("config.metadata.uid", Honoured),
    ("config.metadata.namespace", Honoured),
    ("config.metadata.attempt", Honoured),
    ("config.hostname", Honoured),
    ("config.log_directory", Honoured),
    ("config.dns_config.servers", Honoured),
    ("config.dns_config.searches", Honoured),
    ("config.dns_config.options", Honoured),
    ("config.port_mappings.protocol", Honoured),
    ("config.port_mappings.container_port", Honoured),
    ("config.port_mappings.host_port", Honoured),
    ("config.port_mappings.host_ip", Honoured),
    ("config.labels", Honoured),
    ("config.annotations", Honoured),
    ("config.linux.cgroup_parent", Honoured),
    ("config.linux.security_context.namespace_options.network", Limited("mode NODE is refused there")),
    ("config.linux.security_context.namespace_options.pid", Limited("mode NODE is refused there")),
    ("config.linux.security_context.namespace_options.ipc", Limited("mode NODE is refused there")),
    ("config.linux.security_context.namespace_options.target_id", Refused("only a container has a target")),
    ("config.linux.security_context.namespace_options.userns_options", Limited(OWN_NETWORK)),
    ("config.linux.security_context.selinux_options.user", Honoured),
    ("config.linux.security_context.selinux_options.role", Honoured),
    ("config.linux.security_context.selinux_options.type", Honoured),
    ("config.linux.security_context.selinux_options.level", Honoured),
    ("config.linux.security_context.run_as_user", NotApplicable(NO_POD_PROCESS)),
    ("config.linux.security_context.run_as_group", NotApplicable(NO_POD_PROCESS)),
    ("config.linux.security_context.readonly_rootfs", NotApplicable(NO_POD_PROCESS)),
    ("config.linux.security_context.supplemental_groups", NotApplicable(NO_POD_PROCESS)),
    ("config.linux.security_context.supplemental_groups_policy", NotApplicable(NO_POD_PROCESS)),
    ("config.linux.security_context.privileged", Honoured),
    ("config.linux.security_context.seccomp", NotApplicable(NO_POD_PROCESS)),
    ("config.linux.security_context.apparmor", NotApplicable(NO_POD_PROCESS)),
    ("config.linux.security_context.seccomp_profile_path", NotApplicable(NO_POD_PROCESS)),
    ("config.linux.sysctls", Honoured),
    ("config.linux.overhead.cpu_period", VmOnly(SIZES_A_MACHINE)),
    ("config.linux.overhead.cpu_quota", VmOnly(SIZES_A_MACHINE)),
    ("config.linux.overhead.cpu_shares", NotApplicable(SIZES_NOTHING)),
    ("config.linux.overhead.memory_limit_in_bytes", VmOnly(SIZES_A_MACHINE)),
    ("config.linux.overhead.oom_score_adj", NotApplicable(SIZES_NOTHING)),
    ("config.linux.overhead.cpuset_cpus", NotApplicable(SIZES_NOTHING)),
    ("config.linux.overhead.cpuset_mems", NotApplicable(SIZES_NOTHING)),
    ("config.linux.overhead.hugepage_limits", NotApplicable(SIZES_NOTHING)),
    ("config.linux.overhead.unified", NotApplicable(SIZES_NOTHING)),
    ("config.linux.overhead.memory_swap_limit_in_bytes", NotApplicable(SIZES_NOTHING)),
    ("config.linux.resources.cpu_period", VmOnly(SIZES_A_MACHINE)),
    ("config.linux.resources.cpu_quota", VmOnly(SIZES_A_MACHINE)),
    ("config.linux.resources.cpu_shares", NotApplicable(SIZES_NOTHING)),
    ("config.linux.resources.memory_limit_in_bytes", VmOnly(SIZES_A_MACHINE)),
    ("config.linux.resources.oom_score_adj", NotApplicable(SIZES_NOTHING)),
    ("config.linux.resources.cpuset_cpus", NotApplicable(SIZES_NOTHING)),
    ("config.linux.resources.cpuset_mems", NotApplicable(SIZES_NOTHING)),
    ("config.linux.resources.hugepage_limits", NotApplicable(SIZES_NOTHING)),
    ("config.linux.resources.unified", NotApplicable(SIZES_NOTHING)),
    ("config.linux.resources.memory_swap_limit_in_bytes", NotApplicable(SIZES_NOTHING)),
    ("config.windows", Refused("Linux pods only")),
    ("runtime_handler", Honoured),
];

/// Fields of `CreateContainerRequest`, by path.
pub const CREATE_CONTAINER: &[(&str, Support)] = &[
    ("pod_sandbox_id", Honoured),
    ("config.metadata.name", Honoured),
    ("config.metadata.attempt", Honoured),
    ("config.image.image", Honoured),
    ("config.image.annotations", Honoured),
    ("config.image.user_specified_image", Honoured),
    ("config.image.runtime_handler", Honoured),
    ("config.image.image_ref", NotApplicable(OUTPUT_ONLY)),
    ("config.command", Honoured),
    ("config.args", Honoured),
    ("config.working_dir", Honoured),
    ("config.envs.key", Honoured),
    ("config.envs.value", Partly("bytes that are no UTF-8 are refused")),
    ("config.mounts.container_path", Honoured),
    (
        "config.mounts.host_path",
        Limited(
            "there: the kubelet's volumes of the pod, and what is below machine.share_roots; no sockets, \
             pipes and devices; an emptyDir is kept inside",
        ),
    ),
    ("config.mounts.readonly", Honoured),
    ("config.mounts.selinux_relabel", Honoured),
    ("config.mounts.propagation", Limited("BIDIRECTIONAL is refused there")),
    ("config.mounts.uidMappings", Limited(ALL_MAPPED)),
    ("config.mounts.gidMappings", Limited(ALL_MAPPED)),
    ("config.mounts.recursive_read_only", Honoured),
    ("config.mounts.image.image", Honoured),
    ("config.mounts.image.annotations", Honoured),
    ("config.mounts.image.user_specified_image", Honoured),
    ("config.mounts.image.runtime_handler", Honoured),
    ("config.mounts.image.image_ref", NotApplicable(OUTPUT_ONLY)),
    ("config.mounts.image_sub_path", Honoured),
    ("config.mounts.mount_options", Honoured),
    ("config.devices.container_path", SharedOnly(NO_DEVICES)),
    ("config.devices.host_path", SharedOnly(NO_DEVICES)),
    ("config.devices.permissions", SharedOnly(NO_DEVICES)),
    ("config.labels", Honoured),
    ("config.annotations", Honoured),
    ("config.log_path", Honoured),
    ("config.stdin", Honoured),
    ("config.stdin_once", Honoured),
    ("config.tty", Honoured),
    ("config.linux.resources.cpu_period", Honoured),
    ("config.linux.resources.cpu_quota", Honoured),
    ("config.linux.resources.cpu_shares", Honoured),
    ("config.linux.resources.memory_limit_in_bytes", Honoured),
    ("config.linux.resources.oom_score_adj", Honoured),
    ("config.linux.resources.cpuset_cpus", Honoured),
    ("config.linux.resources.cpuset_mems", Honoured),
    ("config.linux.resources.hugepage_limits.page_size", Honoured),
    ("config.linux.resources.hugepage_limits.limit", Honoured),
    ("config.linux.resources.unified", Honoured),
    ("config.linux.resources.memory_swap_limit_in_bytes", Honoured),
    ("config.linux.security_context.capabilities.add_capabilities", Honoured),
    ("config.linux.security_context.capabilities.drop_capabilities", Honoured),
    ("config.linux.security_context.capabilities.add_ambient_capabilities", Honoured),
    ("config.linux.security_context.privileged", Honoured),
    ("config.linux.security_context.namespace_options.network", Honoured),
    ("config.linux.security_context.namespace_options.pid", Honoured),
    ("config.linux.security_context.namespace_options.ipc", Honoured),
    ("config.linux.security_context.namespace_options.target_id", Honoured),
    ("config.linux.security_context.namespace_options.userns_options", Limited(OWN_NETWORK)),
    ("config.linux.security_context.selinux_options.user", Honoured),
    ("config.linux.security_context.selinux_options.role", Honoured),
    ("config.linux.security_context.selinux_options.type", Honoured),
    ("config.linux.security_context.selinux_options.level", Honoured),
    ("config.linux.security_context.run_as_user", Honoured),
    ("config.linux.security_context.run_as_group", Honoured),
    ("config.linux.security_context.run_as_username", Honoured),
    ("config.linux.security_context.readonly_rootfs", Honoured),
    ("config.linux.security_context.supplemental_groups", Honoured),
    ("config.linux.security_context.supplemental_groups_policy", Honoured),
    ("config.linux.security_context.no_new_privs", Honoured),
    ("config.linux.security_context.masked_paths", Honoured),
    ("config.linux.security_context.readonly_paths", Honoured),
    ("config.linux.security_context.seccomp.profile_type", Honoured),
    ("config.linux.security_context.seccomp.localhost_ref", Honoured),
    ("config.linux.security_context.apparmor.profile_type", Honoured),
    ("config.linux.security_context.apparmor.localhost_ref", Honoured),
    ("config.linux.security_context.apparmor_profile", Honoured),
    ("config.linux.security_context.seccomp_profile_path", Honoured),
    ("config.windows", Refused("Linux containers only")),
    (
        "config.CDI_devices.name",
        SharedOnly(
            "devices of the node cannot be given to a virtual machine; hooks and intelRdt in a specification are refused everywhere",
        ),
    ),
    ("config.stop_signal", Honoured),
    (
        "sandbox_config",
        NotApplicable("RunPodSandbox has fixed it already; a log directory that differs is refused"),
    ),
];

/// Fields of `ExecRequest`, by path.
pub const EXEC: &[(&str, Support)] = &[
    ("container_id", Honoured),
    ("cmd", Honoured),
    ("tty", Honoured),
    ("stdin", Honoured),
    ("stdout", Honoured),
    ("stderr", Honoured),
];

/// Fields of `AttachRequest`, by path.
pub const ATTACH: &[(&str, Support)] = &[
    ("container_id", Honoured),
    ("stdin", Honoured),
    ("tty", Honoured),
    ("stdout", Honoured),
    ("stderr", Honoured),
];

/// Fields of `PortForwardRequest`, by path.
pub const PORT_FORWARD: &[(&str, Support)] = &[("pod_sandbox_id", Honoured), ("port", Honoured)];

/// The requests of this file.
const OF_PODS: &[(&str, Rows)] = &[
    ("RunPodSandboxRequest", RUN_POD_SANDBOX),
    ("CreateContainerRequest", CREATE_CONTAINER),
    ("ExecRequest", EXEC),
    ("AttachRequest", ATTACH),
    ("PortForwardRequest", PORT_FORWARD),
];

/// All requests with what becomes of their fields.
fn tables() -> impl Iterator<Item = (&'static str, Rows)> {
    OF_PODS.iter().chain(REQUESTS).copied()
}

/// The table as documentation, `docs/cri-support.md`.
#[must_use]
pub fn markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (service, calls) in [("RuntimeService", RUNTIME), ("ImageService", IMAGE)] {
        text.push_str(&format!("\n## Calls of {service}\n\n| call | answered | |\n|---|---|---|\n"));
        for Call { name, answer } in calls {
            let (answered, note) = match answer {
                Answer::Full(note) => ("yes", note),
                Answer::Unimplemented(why) => ("`Unimplemented`", why),
            };
            text.push_str(&format!("| `{name}` | {answered} | {note} |\n"));
        }
    }
    for (request, table) in tables() {
        text.push_str(&format!("\n## {request}\n\n"));
        if table.is_empty() {
            text.push_str("It has no fields.\n");
            continue;
        }
        text.push_str("| field | `shared` | `vm` | |\n|---|---|---|---|\n");
        for (path, support) in table {
            const NOTHING: &str = "no meaning here";
            let (shared, vm, why) = match support {
                Honoured => ("honoured", "honoured", ""),
                Refused(why) => ("refused", "refused", *why),
                NotApplicable(why) => (NOTHING, NOTHING, *why),
                VmOnly(why) => (NOTHING, "honoured", *why),
                SharedOnly(why) => ("honoured", "refused", *why),
                Limited(why) => ("honoured", "partly", *why),
                Partly(why) => ("partly", "partly", *why),
            };
            text.push_str(&format!("| `{path}` | {shared} | {vm} | {why} |\n"));
        }
    }
    text
}

const INTRODUCTION: &str = "# Calls and fields of the CRI

What kina does with each call, and with each field of each request, by runtime
handler: on the node's own kernel (`shared`) and in a virtual machine (`vm`). *Honoured*: it is acted upon.
*Refused*: any value but the default is an error that names the field. *Partly*: the column beside it says
what is refused. *No meaning here*: it asks for nothing that kina could do or leave undone. A field with an
entry stands for all below it.

This page is made from `src/cri/support.rs`; a test holds that table against the interface, and this page
against the table.
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use protox::prost_reflect::prost_types::FileDescriptorProto;

    use super::*;

    /// Paths of all fields below a message that the table covers or should:
    /// those of messages only if they have no entry of their own.
    fn paths(
        messages: &Messages,
        message: &str,
        prefix: &str,
        table: &[(&str, Support)],
        found: &mut BTreeSet<String>,
    ) {
        for field in &messages.iter().find(|(name, _)| name == message).expect("message of the file").1 {
            let path = format!("{prefix}{}", field.name);
            let covered = table.iter().any(|(listed, _)| *listed == path);
            match &field.message {
                Some(inner) if !covered => paths(messages, inner, &format!("{path}."), table, found),
                _ => assert!(found.insert(path), "{} is there twice", field.name),
            }
        }
    }

    struct Field {
        name: String,
        /// The message that it holds; `None` for scalars and maps.
        message: Option<String>,
    }

    type Messages = Vec<(String, Vec<Field>)>;

    fn interface() -> FileDescriptorProto {
        let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/cri");
        let set = protox::compile([include.join("api.proto")], [&include]).unwrap();
        set.file.into_iter().find(|file| file.package() == "runtime.v1").unwrap()
    }

    fn messages() -> Messages {
        let file = interface();
        file.message_type
            .iter()
            .map(|message| {
                let fields = message.field.iter().map(|field| {
                    // A map is a repeated message that is nested in its own.
                    let inner = field.type_name().strip_prefix(".runtime.v1.");
                    let inner = inner.filter(|inner| !inner.contains('.'));
                    let is_message = inner
                        .filter(|inner| file.message_type.iter().any(|message| message.name() == *inner));
                    // Wrappers of numbers are numbers that can be absent.
                    let is_message = is_message.filter(|inner| *inner != "Int64Value");
                    Field { name: field.name().to_owned(), message: is_message.map(ToOwned::to_owned) }
                });
                (message.name().to_owned(), fields.collect())
            })
            .collect()
    }

    #[test]
    fn the_documentation_says_the_same() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cri-support.md");
        if std::env::var_os("KINA_UPDATE_DOCS").is_some() {
            std::fs::write(&path, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            page == markdown(),
            "docs/cri-support.md is out of date; run this test with KINA_UPDATE_DOCS=1"
        );
    }

    #[test]
    fn every_call_of_the_interface_is_listed() {
        let file = interface();
        let calls = |table: &[Call]| table.iter().map(|call| call.name.to_owned()).collect::<Vec<_>>();
        let mut requests = BTreeSet::new();
        for service in &file.service {
            let table = match service.name() {
                "RuntimeService" => RUNTIME,
                "ImageService" => IMAGE,
                other => panic!("{other} has no table"),
            };
            let found: Vec<String> = service.method.iter().map(|method| method.name().to_owned()).collect();
            assert_eq!(calls(table), found);
            requests.extend(
                service
                    .method
                    .iter()
                    .map(|method| method.input_type().strip_prefix(".runtime.v1.").unwrap().to_owned()),
            );
        }
        let listed: Vec<String> = tables().map(|(request, _)| request.to_owned()).collect();
        assert_eq!(listed.len(), requests.len(), "a request is listed twice, or not");
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), requests);
    }

    #[test]
    fn every_field_of_the_interface_is_listed() {
        let messages = messages();
        for (message, table) in tables() {
            let mut found = BTreeSet::new();
            paths(&messages, message, "", table, &mut found);
            let listed: BTreeSet<String> = table.iter().map(|(path, _)| (*path).to_owned()).collect();
            assert_eq!(listed.len(), table.len(), "{message}: a path is listed twice");
            let missing: Vec<_> = found.difference(&listed).collect();
            let stale: Vec<_> = listed.difference(&found).collect();
            assert!(
                missing.is_empty() && stale.is_empty(),
                "{message}: missing {missing:?}, stale {stale:?}"
            );
        }
    }

    #[test]
    fn the_walk_goes_deep() {
        let messages = messages();
        let mut found = BTreeSet::new();
        paths(&messages, "RunPodSandboxRequest", "", &[], &mut found);
        for path in ["config.linux.resources.hugepage_limits.page_size", "config.labels", "runtime_handler"] {
            assert!(found.contains(path), "{path} is not in {found:?}");
        }
    }

    #[test]
    fn a_whole_message_is_never_honoured_unseen() {
        let messages = messages();
        for (message, table) in tables() {
            let mut leaves = BTreeSet::new();
            paths(&messages, message, "", &[], &mut leaves);
            for (path, support) in table {
                assert!(*support != Honoured || leaves.contains(*path), "{path} has fields; list them");
            }
        }
    }
}
