//! The OCI runtime specification of a container, from what the daemon asks.

mod devices;
mod mounts;
mod seccomp;

use std::collections::HashSet;
use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use kina_cgroup::{Hierarchy, Layout, Resources};
use kina_guest_api::v1;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, Linux, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxCpuBuilder,
    LinuxDevice, LinuxHugepageLimitBuilder, LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
    UserBuilder,
};

use crate::error::Error;
use crate::image_volume::ImageVolume;
use crate::pod::Pod;
use crate::selinux::Labels;
use crate::unattached::descriptor_path;
use crate::user::Identity;

use devices::Node;
use mounts::Mounts;

/// Which PID namespace a container gets.
#[derive(Debug)]
pub(crate) enum PidNamespace {
    Own,
    Host,
    Shared(PathBuf),
}

/// Builds the specification. What it refers to by descriptor is returned with it, to be held
/// until the container is created. `images` are opened for the mounts that ask for one, in their
/// order.
pub(crate) fn build(
    request: &v1::CreateContainerRequest,
    pod: &Pod,
    identity: &Identity,
    pid: &PidNamespace,
    hierarchy: &Hierarchy,
    images: &[ImageVolume],
    labels: &Labels,
) -> Result<(Spec, Vec<OwnedFd>), Error> {
    let readonly = request.rootfs.as_ref().is_some_and(|rootfs| rootfs.readonly);
    let root = RootBuilder::default().path("rootfs").readonly(readonly).build();
    let (nodes, rules) = devices::build(request, identity)?;
    // Device nodes cannot be made in a user namespace: those of the machine are bound.
    let (made, bound) = if pod.namespaces.user.is_some() {
        devices::require_as_they_are(request)?;
        (Vec::new(), nodes.into_iter().filter(|node| !is_own(&node.device)).collect())
    } else {
        (nodes, Vec::new())
    };
    let bound: Vec<_> =
        bound.into_iter().map(|node: Node| (node.source, node.device.path().clone())).collect();
    let Mounts { mounts, propagation, held } = mounts::build(request, pod, images, readonly, &bound, labels)?;
    let mut linux = linux(request, pod, pid, hierarchy)?;
    linux.set_devices(Some(made.into_iter().map(|node| node.device).collect()));
    if let Some(resources) = linux.resources_mut() {
        resources.set_devices(Some(rules));
    }
    linux.set_rootfs_propagation(propagation.map(str::to_owned)).set_mount_label(labels.files.clone());
    let spec = SpecBuilder::default()
        .version("1.2.0")
        .root(built(root)?)
        .mounts(mounts)
        .process(process(request, pod, identity, labels)?)
        .linux(linux)
        .build();
    // The builder's defaults are an example container's.
    let mut spec = built(spec)?;
    spec.set_hostname(None).set_annotations(None);
    Ok((spec, held))
}

/// Whether a device is each container's own, or one that the launcher sees to.
fn is_own(device: &LinuxDevice) -> bool {
    const OWN: [&str; 7] = ["ptmx", "null", "zero", "full", "random", "urandom", "tty"];
    OWN.iter().any(|name| device.path() == &Path::new("/dev").join(name))
}

/// What an exec needs of a container's specification: the rest is given back.
pub(crate) fn for_exec(mut spec: Spec) -> Spec {
    spec.set_mounts(None);
    if let Some(linux) = spec.linux_mut() {
        linux.set_devices(None).set_resources(None).set_masked_paths(None).set_readonly_paths(None);
    }
    spec
}

/// The process of an exec: the container's own with other arguments.
pub(crate) fn exec_process(
    container: &Spec,
    args: Vec<String>,
    terminal: bool,
    size: Option<v1::WindowSize>,
) -> Result<Process, Error> {
    if args.is_empty() {
        return Err(Error::invalid("args", "there are none"));
    }
    let mut process = container.process().clone().unwrap_or_default();
    process.set_args(Some(args)).set_terminal(Some(terminal)).set_console_size(None);
    if let Some(size) = size.filter(|_| terminal) {
        let console = oci_spec::runtime::BoxBuilder::default()
            .height(u64::from(size.rows))
            .width(u64::from(size.columns))
            .build();
        process.set_console_size(Some(built(console)?));
    }
    let has_term = process.env().iter().flatten().any(|variable| variable.starts_with("TERM="));
    if terminal && !has_term {
        process.env_mut().get_or_insert_default().push("TERM=xterm".to_owned());
    }
    Ok(process)
}

/// The builders' errors say which field is missing; none is.
fn built<T>(result: Result<T, OciSpecError>) -> Result<T, Error> {
    result.map_err(|error| Error::invalid("spec", error.to_string()))
}

fn parsed<T: FromStr>(field: &'static str, text: &str) -> Result<T, Error>
where
    T::Err: Display,
{
    text.parse().map_err(|error: T::Err| Error::invalid(field, format!("{text:?}: {error}")))
}

fn process(
    request: &v1::CreateContainerRequest,
    pod: &Pod,
    identity: &Identity,
    labels: &Labels,
) -> Result<Process, Error> {
    let default = v1::Process::default();
    let asked = request.process.as_ref().unwrap_or(&default);
    if asked.args.is_empty() {
        return Err(Error::invalid("process.args", "there are none"));
    }
    let user = UserBuilder::default()
        .uid(identity.uid)
        .gid(identity.gid)
        .additional_gids(identity.groups.clone())
        .build();
    let cwd = if asked.cwd.is_empty() { "/" } else { &asked.cwd };
    if !cwd.starts_with('/') {
        return Err(Error::invalid("process.cwd", format!("{cwd:?} is not absolute")));
    }
    let mut process = built(
        ProcessBuilder::default()
            .terminal(asked.terminal)
            .user(built(user)?)
            .args(asked.args.clone())
            .env(environment(asked, &pod.hostname, &identity.home)?)
            .cwd(cwd)
            .no_new_privileges(asked.no_new_privileges)
            // A guest on the node may be protected; its containers are not.
            .oom_score_adj(asked.oom_score_adj.unwrap_or(0))
            .capabilities(capabilities(asked, request.privileged)?)
            .build(),
    )?;
    process.set_rlimits(Some(rlimits(&asked.rlimits)?));
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    process.set_apparmor_profile(text(&asked.apparmor_profile));
    process.set_selinux_label(labels.process.clone());
    Ok(process)
}

/// The caller's variables (a later one wins) and those that every process has.
fn environment(asked: &v1::Process, hostname: &str, home: &str) -> Result<Vec<String>, Error> {
    let mut variables: Vec<String> = Vec::with_capacity(asked.env.len() + 4);
    let mut places = std::collections::HashMap::new();
    for variable in &asked.env {
        let Some((name, _)) = variable.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(Error::invalid("process.env", "one is no NAME=value"));
        };
        match places.get(name) {
            Some(place) => variables[*place] = variable.clone(),
            None => {
                places.insert(name, variables.len());
                variables.push(variable.clone());
            }
        }
    }
    let mut default = |name: &str, value: String| {
        if !places.contains_key(name) {
            variables.push(value);
        }
    };
    default("PATH", kina_launch::defaults::PATH.to_owned());
    default("HOSTNAME", format!("HOSTNAME={hostname}"));
    default("HOME", format!("HOME={home}"));
    if asked.terminal {
        default("TERM", "TERM=xterm".to_owned());
    }
    Ok(variables)
}

fn capabilities(asked: &v1::Process, privileged: bool) -> Result<LinuxCapabilities, Error> {
    let set = capability_set;
    let builder = LinuxCapabilitiesBuilder::default();
    if privileged {
        let all = all_capabilities()?;
        // None inheritable: a program of another user does not get them by being executed.
        return built(
            builder
                .bounding(all.clone())
                .effective(all.clone())
                .permitted(all)
                .inheritable(HashSet::new())
                .ambient(set(&asked.ambient)?)
                .build(),
        );
    }
    built(
        builder
            .bounding(set(&asked.bounding)?)
            .effective(set(&asked.effective)?)
            .inheritable(set(&asked.inheritable)?)
            .permitted(set(&asked.permitted)?)
            .ambient(set(&asked.ambient)?)
            .build(),
    )
}

fn capability_set(names: &[String]) -> Result<HashSet<Capability>, Error> {
    names
        .iter()
        .map(|name| parsed("process.capabilities", name.strip_prefix("CAP_").unwrap_or(name)))
        .collect()
}

/// Every capability that the guest itself may pass on.
fn all_capabilities() -> Result<HashSet<Capability>, Error> {
    let mut all = HashSet::new();
    for (name, set) in rustix::thread::CapabilitySet::all().iter_names() {
        // One that this kernel does not know is an error to it.
        if rustix::thread::capability_is_in_bounding_set(set) == Ok(true) {
            all.insert(parsed("process.capabilities", name)?);
        }
    }
    Ok(all)
}

fn rlimits(asked: &[v1::Rlimit]) -> Result<Vec<PosixRlimit>, Error> {
    asked
        .iter()
        .map(|limit| {
            let kind: PosixRlimitType = parsed("process.rlimits", &limit.kind)?;
            built(PosixRlimitBuilder::default().typ(kind).soft(limit.soft).hard(limit.hard).build())
        })
        .collect()
}

fn linux(
    request: &v1::CreateContainerRequest,
    pod: &Pod,
    pid: &PidNamespace,
    hierarchy: &Hierarchy,
) -> Result<Linux, Error> {
    let cgroup_namespace = hierarchy.layout() == Layout::V2 && !request.privileged;
    let resources = resources(request.resources.as_ref(), hierarchy)?;
    let mut linux = built(
        LinuxBuilder::default()
            .namespaces(namespaces(pod, pid, cgroup_namespace)?)
            .resources(resources)
            .masked_paths(paths(request, &request.masked_paths))
            .readonly_paths(paths(request, &request.readonly_paths))
            .build(),
    )?;
    linux.set_seccomp(seccomp::build(request)?);
    linux.set_mount_label(None).set_sysctl(None).set_rootfs_propagation(None);
    Ok(linux)
}

/// A privileged container sees everything.
fn paths(request: &v1::CreateContainerRequest, paths: &[String]) -> Vec<String> {
    if request.privileged { Vec::new() } else { paths.to_vec() }
}

fn namespaces(pod: &Pod, pid: &PidNamespace, cgroup: bool) -> Result<Vec<LinuxNamespace>, Error> {
    let new = |kind| built(LinuxNamespaceBuilder::default().typ(kind).build());
    let join = |kind, path: PathBuf| built(LinuxNamespaceBuilder::default().typ(kind).path(path).build());
    let mut namespaces = vec![new(LinuxNamespaceType::Mount)?];
    if cgroup {
        namespaces.push(new(LinuxNamespaceType::Cgroup)?);
    }
    match pid {
        PidNamespace::Own => namespaces.push(new(LinuxNamespaceType::Pid)?),
        PidNamespace::Shared(path) => {
            namespaces.push(join(LinuxNamespaceType::Pid, path.clone())?);
        }
        PidNamespace::Host => {}
    }
    for (kind, namespace) in [
        (LinuxNamespaceType::User, &pod.namespaces.user),
        (LinuxNamespaceType::Ipc, &pod.namespaces.ipc),
        (LinuxNamespaceType::Uts, &pod.namespaces.uts),
        (LinuxNamespaceType::Network, &pod.namespaces.network),
    ] {
        if let Some(namespace) = namespace {
            namespaces.push(join(kind, descriptor_path(namespace))?);
        }
    }
    Ok(namespaces)
}

/// The limits that are set, for a container that exists.
pub(crate) fn limits(asked: &v1::Resources, hierarchy: &Hierarchy) -> Result<Resources, Error> {
    kina_launch::resources(&resources(Some(asked), hierarchy)?)
        .map_err(|source| Error::invalid("resources", source.to_string()))
}

/// How much memory and swap a container may have together. One whose memory is limited and
/// that asks for no swap gets none, as containerd and CRI-O have it.
fn memory_and_swap(asked: &v1::Resources, limits_swap: bool, has_swap: impl FnOnce() -> bool) -> Option<i64> {
    match asked.memory_swap_limit_bytes {
        None => asked.memory_limit_bytes.filter(|_| limits_swap),
        // Where there is no swap, every limit of it is kept.
        Some(limit) => Some(limit).filter(|_| limits_swap || has_swap()),
    }
}

/// Whether this machine has swap now: a list of it with more than its heading.
fn has_swap() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|list| list.lines().count() > 1)
}

fn resources(asked: Option<&v1::Resources>, hierarchy: &Hierarchy) -> Result<LinuxResources, Error> {
    let default = v1::Resources::default();
    let asked = asked.unwrap_or(&default);
    let mut memory = built(LinuxMemoryBuilder::default().build())?;
    let swap = memory_and_swap(asked, hierarchy.limits_swap(), has_swap);
    memory.set_limit(asked.memory_limit_bytes).set_swap(swap);
    let mut cpu = built(LinuxCpuBuilder::default().build())?;
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    cpu.set_shares(asked.cpu_shares)
        .set_quota(asked.cpu_quota_micros)
        .set_period(asked.cpu_period_micros)
        .set_cpus(text(&asked.cpuset_cpus))
        .set_mems(text(&asked.cpuset_mems));
    let hugepages = asked
        .hugepage_limits
        .iter()
        .map(|limit| {
            let bytes = i64::try_from(limit.limit_bytes).unwrap_or(i64::MAX);
            built(
                LinuxHugepageLimitBuilder::default().page_size(limit.page_size.clone()).limit(bytes).build(),
            )
        })
        .collect::<Result<Vec<_>, _>>()?;
    let pids =
        asked.pids_limit.map(|limit| built(LinuxPidsBuilder::default().limit(limit).build())).transpose()?;
    let mut resources = built(LinuxResourcesBuilder::default().build())?;
    resources
        .set_memory(Some(memory))
        .set_cpu(Some(cpu))
        .set_pids(pids)
        .set_hugepage_limits(Some(hugepages).filter(|limits| !limits.is_empty()))
        .set_unified(Some(asked.unified.clone()).filter(|unified| !unified.is_empty()));
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_environment_is_completed() {
        let process =
            |env: &[&str], terminal| v1::Process { env: words(env), terminal, ..v1::Process::default() };
        let environment =
            |env: &[&str], terminal| environment(&process(env, terminal), "pod", "/root").unwrap();
        assert_eq!(environment(&[], false), [kina_launch::defaults::PATH, "HOSTNAME=pod", "HOME=/root"]);
        assert_eq!(
            environment(&["PATH=/a", "X=1", "HOME=", "X=2", "HOSTNAME=h", "TERM=t"], true),
            ["PATH=/a", "X=2", "HOME=", "HOSTNAME=h", "TERM=t"]
        );
        assert!(environment(&[], true).contains(&"TERM=xterm".to_owned()));
        for bad in ["X", "=x", ""] {
            assert!(super::environment(&process(&[bad], false), "pod", "/").is_err());
        }
    }

    #[test]
    fn capabilities_are_as_asked_or_all() {
        let asked = v1::Process {
            bounding: words(&["CAP_CHOWN", "CAP_NET_RAW"]),
            effective: words(&["CAP_CHOWN"]),
            ..v1::Process::default()
        };
        let set = capabilities(&asked, false).unwrap();
        assert_eq!(set.bounding().as_ref().unwrap().len(), 2);
        assert_eq!(set.effective().as_ref().unwrap().len(), 1);
        assert!(set.permitted().as_ref().unwrap().is_empty());
        let all = capabilities(&asked, true).unwrap();
        assert!(all.effective().as_ref().unwrap().contains(&Capability::SysAdmin));
        let unknown = v1::Process { bounding: words(&["CAP_FLY"]), ..asked };
        assert!(capabilities(&unknown, false).unwrap_err().to_string().contains("FLY"));
    }

    #[test]
    fn swap_is_asked_for() {
        let asked = |memory, swap| v1::Resources {
            memory_limit_bytes: memory,
            memory_swap_limit_bytes: swap,
            ..v1::Resources::default()
        };
        for (memory, swap, limits_swap, has_swap, expected) in [
            (None, None, true, true, None),
            (Some(7), None, true, true, Some(7)),
            (Some(-1), None, true, true, Some(-1)),
            (Some(7), None, false, true, None),
            (Some(7), Some(9), true, true, Some(9)),
            (None, Some(9), true, false, Some(9)),
            (Some(7), Some(9), false, false, None),
            // An error that says so is better than no limit.
            (Some(7), Some(9), false, true, Some(9)),
        ] {
            let found = memory_and_swap(&asked(memory, swap), limits_swap, || has_swap);
            assert_eq!(found, expected, "{memory:?} {swap:?} {limits_swap} {has_swap}");
        }
    }

    #[test]
    fn limits_are_named() {
        let limit = |kind: &str| v1::Rlimit { kind: kind.to_owned(), soft: 1, hard: 2 };
        let parsed = rlimits(&[limit("RLIMIT_NOFILE")]).unwrap();
        assert_eq!(parsed[0].typ(), PosixRlimitType::RlimitNofile);
        assert!(rlimits(&[limit("RLIMIT_LUCK")]).unwrap_err().to_string().contains("LUCK"));
    }
}
