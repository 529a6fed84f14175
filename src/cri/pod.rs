//! Pod sandboxes as asked for.

use std::net::IpAddr;
use std::path::PathBuf;

use kina_model::{
    Dns, PidMode, Placement, PodMetadata, PodNamespaces, PodSpec, PortMapping, Resources, SelinuxOptions,
    SpecError,
};

use super::{check, resources, security, v1};
use crate::placement::PlacementRequest;

/// The longest host name that Linux takes, and the longest of its parts (RFC 1123,
/// which has no '_'; people use it all the same).
const HOSTNAME_BYTES: usize = 64;
const LABEL_BYTES: usize = 63;

/// Host name of a pod that is given none and whose own name is not one.
const HOSTNAME: &str = "pod";

/// The pod that a request asks for. `place` decides on its placement.
///
/// # Errors
/// The first field that makes no sense or cannot be had, or what `place` says.
pub fn pod_spec(
    request: v1::RunPodSandboxRequest,
    place: impl FnOnce(&PlacementRequest<'_>) -> Result<Placement, SpecError>,
) -> Result<PodSpec, SpecError> {
    let v1::RunPodSandboxRequest { config, runtime_handler: handler } = request;
    let v1::PodSandboxConfig {
        metadata,
        hostname,
        log_directory,
        dns_config,
        port_mappings,
        labels,
        annotations,
        linux,
        windows,
    } = check::required("config", config)?;
    if windows.is_some_and(|windows| windows != v1::WindowsPodSandboxConfig::default()) {
        return Err(SpecError::unsupported("config.windows", "kina runs Linux pods only"));
    }
    let v1::LinuxPodSandboxConfig { cgroup_parent, security_context, sysctls, overhead, resources } =
        linux.unwrap_or_default();

    let metadata = metadata_of(metadata)?;
    let (namespaces, privileged, selinux) = security_of(security_context.unwrap_or_default())?;
    for (name, value) in &sysctls {
        let field = format!("config.linux.sysctls[{name}]");
        security::sysctl(&field, name, namespaces)?;
        check::text(&field, value)?;
    }
    if !log_directory.is_empty() {
        check::absolute_path("config.log_directory", &log_directory)?;
    }
    let limits = |name: &str, limits: Option<v1::LinuxContainerResources>| -> Result<Option<Resources>, _> {
        limits.map(|limits| resources::resources(&format!("config.linux.{name}"), limits)).transpose()
    };
    // On the node's network there is nothing that they could limit.
    if !namespaces.host_network {
        crate::network::bandwidth(&annotations)?;
    }
    let overhead = limits("overhead", overhead)?;
    let resources = limits("resources", resources)?;
    let placement = place(&PlacementRequest {
        handler: &handler,
        host_network: namespaces.host_network,
        host_pid: namespaces.pid == PidMode::Node,
        host_ipc: namespaces.host_ipc,
        privileged,
    })?;
    Ok(PodSpec {
        hostname: hostname_of(hostname, &metadata, namespaces)?,
        metadata,
        log_directory: (!log_directory.is_empty()).then(|| PathBuf::from(log_directory)),
        dns: dns_config.map(dns_of).transpose()?.flatten(),
        port_mappings: port_mappings
            .into_iter()
            .enumerate()
            .map(|(index, mapping)| {
                port_mapping(&format!("config.port_mappings[{index}]"), mapping, namespaces)
            })
            .collect::<Result<_, _>>()?,
        labels,
        annotations,
        handler,
        placement,
        cgroup_parent: cgroup_parent_of(cgroup_parent)?,
        sysctls,
        namespaces,
        privileged,
        overhead,
        resources,
        selinux,
    })
}

fn metadata_of(metadata: Option<v1::PodSandboxMetadata>) -> Result<PodMetadata, SpecError> {
    let v1::PodSandboxMetadata { name, uid, namespace, attempt } =
        check::required("config.metadata", metadata)?;
    if name.is_empty() {
        return Err(SpecError::invalid("config.metadata.name", "is empty; a pod needs a name"));
    }
    for (part, value) in [("name", &name), ("uid", &uid), ("namespace", &namespace)] {
        check::text(&format!("config.metadata.{part}"), value)?;
    }
    Ok(PodMetadata { name, uid, namespace, attempt })
}

/// The pod has no process of its own, so most of this has nobody to hold for;
/// what makes no sense is refused all the same.
fn security_of(
    context: v1::LinuxSandboxSecurityContext,
) -> Result<(PodNamespaces, bool, Option<SelinuxOptions>), SpecError> {
    const FIELD: &str = "config.linux.security_context";
    #[allow(deprecated, reason = "every field has to be named")]
    let v1::LinuxSandboxSecurityContext {
        namespace_options,
        selinux_options,
        run_as_user,
        run_as_group,
        readonly_rootfs: _,
        supplemental_groups,
        supplemental_groups_policy,
        privileged,
        seccomp: _,
        apparmor: _,
        seccomp_profile_path: _,
    } = context;
    let selinux = security::selinux(&format!("{FIELD}.selinux_options"), selinux_options)?;
    security::user(FIELD, run_as_user, "", run_as_group)?;
    security::groups(FIELD, &supplemental_groups, supplemental_groups_policy)?;
    let namespaces = security::pod_namespaces(&format!("{FIELD}.namespace_options"), namespace_options)?;
    Ok((namespaces, privileged, selinux))
}

fn hostname_of(
    hostname: String,
    metadata: &PodMetadata,
    namespaces: PodNamespaces,
) -> Result<String, SpecError> {
    if hostname.is_empty() {
        // On the node's network the node's own name holds.
        return Ok(if namespaces.host_network {
            String::new()
        } else if is_hostname(&metadata.name) {
            metadata.name.clone()
        } else {
            HOSTNAME.to_owned()
        });
    }
    if !is_hostname(&hostname) {
        let reason = format!(
            "{hostname:?} is no host name (at most {HOSTNAME_BYTES} letters, digits, '-', '_' and '.', parts of at most {LABEL_BYTES})"
        );
        return Err(SpecError::invalid("config.hostname", reason));
    }
    Ok(hostname)
}

fn is_hostname(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_BYTES).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= HOSTNAME_BYTES && text.split('.').all(is_label)
}

/// `None` for a configuration that says nothing: the node's then holds.
fn dns_of(message: v1::DnsConfig) -> Result<Option<Dns>, SpecError> {
    let v1::DnsConfig { servers, searches, options } = message;
    for (index, server) in servers.iter().enumerate() {
        // A link-local address has its interface after it.
        let (address, zone) = server.split_once('%').unwrap_or((server, "zone"));
        let field = format!("config.dns_config.servers[{index}]");
        check::word(&field, zone)?;
        if address.parse::<IpAddr>().is_err() {
            return Err(SpecError::invalid(field, format!("{server:?} is no IP address")));
        }
    }
    for (name, words) in [("searches", &searches), ("options", &options)] {
        for (index, word) in words.iter().enumerate() {
            check::word(&format!("config.dns_config.{name}[{index}]"), word)?;
        }
    }
    let dns = Dns { servers, searches, options };
    Ok((dns != Dns::default()).then_some(dns))
}

fn port_mapping(
    field: &str,
    message: v1::PortMapping,
    namespaces: PodNamespaces,
) -> Result<PortMapping, SpecError> {
    let v1::PortMapping { protocol, container_port, host_port, host_ip } = message;
    let protocol = match check::known(&format!("{field}.protocol"), protocol)? {
        v1::Protocol::Tcp => "tcp",
        v1::Protocol::Udp => "udp",
        v1::Protocol::Sctp => "sctp",
    };
    let port = |name: &str, port: i32, least: u16| match u16::try_from(port) {
        Ok(port) if port >= least => Ok(port),
        _ => {
            let reason = format!("{port} is no port; from {least} to 65535 are");
            Err(SpecError::invalid(format!("{field}.{name}"), reason))
        }
    };
    let host_port = port("host_port", host_port, 0)?;
    // Where no port of the node is asked for, nothing is mapped.
    let container_port = port("container_port", container_port, u16::from(host_port != 0))?;
    if namespaces.host_network && host_port != 0 && host_port != container_port {
        let reason = "differs from container_port, but the pod is on the node's network; make them equal";
        return Err(SpecError::invalid(format!("{field}.host_port"), reason));
    }
    if !host_ip.is_empty() && host_ip.parse::<IpAddr>().is_err() {
        return Err(SpecError::invalid(format!("{field}.host_ip"), format!("{host_ip:?} is no IP address")));
    }
    Ok(PortMapping { protocol: protocol.to_owned(), container_port, host_port, host_ip })
}

/// A path of a control group; the bare name of a systemd slice, which a kubelet with
/// the cgroup driver `systemd` sends, is where systemd has that slice. Empty leaves the
/// choice to the configuration.
fn cgroup_parent_of(path: String) -> Result<String, SpecError> {
    const FIELD: &str = "config.linux.cgroup_parent";
    if path.is_empty() {
        return Ok(path);
    }
    if let Some(slice) = slice_path(&path) {
        return Ok(slice);
    }
    if !path.starts_with('/') {
        let reason = format!("{path:?} is neither an absolute path nor the name of a systemd slice");
        return Err(SpecError::invalid(FIELD, reason));
    }
    check::absolute_path(FIELD, &path)?;
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    Ok(format!("/{}", parts.join("/")))
}

/// Where a slice of that name is (systemd.slice(5)): `a-b.slice` is in `a.slice`.
fn slice_path(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".slice")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.\\".contains(&byte);
    if stem.split('-').any(str::is_empty) || !stem.bytes().all(plain) {
        return None;
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    Some(ends.map(|end| format!("/{}.slice", &stem[..end])).collect())
}
