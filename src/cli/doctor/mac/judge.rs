//! What it means for kina. Pure: it looks at nothing.

use std::path::{Path, PathBuf};

use super::facts::{Container, Machine, Network, Service, Version};
use super::kernel::Config as KernelConfig;
use super::routes::{Route, overlap};
use crate::cli::doctor::judge::{Check, ok, problem, warning};
use crate::cli::text::bytes;
use crate::config::{Config, SOCKET_PATH_LIMIT};

/// The oldest `container` that kina's machines can be made with.
const OLDEST: Version = Version(0, 12, 0);

/// The first whose output and errors kina's were compared with, and which leaves
/// /proc uncovered when asked to.
const GOOD: Version = Version(1, 2, 1);

/// Where `container` is to be had.
const RELEASES: &str = "https://github.com/apple/container/releases";

pub(super) fn container(found: &Container) -> Check {
    const NAME: &str = "container";
    match found {
        Container::Missing => problem(
            NAME,
            "Apple's `container` is not on this Mac",
            format!("install it from {RELEASES}, then: container system start"),
        ),
        Container::NotThere(program) => problem(
            NAME,
            format!("there is no {}, which machine.apple.program names", program.display()),
            format!("set it to where `container` is, or to nothing; {RELEASES}"),
        ),
        Container::Elsewhere(program) => problem(
            NAME,
            format!("it is {}, where the daemon does not look for it", program.display()),
            "set machine.apple.program to that",
        ),
        Container::Strange(said) => {
            problem(NAME, format!("it tells no version: {said}"), format!("install it anew from {RELEASES}"))
        }
        Container::Found { version, .. } if *version < OLDEST => problem(
            NAME,
            format!("version {version}"),
            format!("{OLDEST} or later is needed, best {GOOD} or later: {RELEASES}"),
        ),
        Container::Found { version, service: Some(service), .. } if service != version => warning(
            NAME,
            format!("version {version}, and its service is still {service}"),
            "container system stop && container system start (this ends all its machines)",
        ),
        Container::Found { version, .. } if *version < GOOD => warning(
            NAME,
            format!("version {version}"),
            format!("kina is made for {GOOD} and later: {RELEASES}"),
        ),
        Container::Found { program, version, .. } => ok(NAME, format!("{version}, {}", program.display())),
    }
}

pub(super) fn service(found: &Service) -> Check {
    const NAME: &str = "container's service";
    match found {
        Service::Running { root } => ok(NAME, format!("runs; its data is in {}", root.display())),
        Service::Down(word) => problem(NAME, word.as_str(), "container system start"),
        Service::Unknown(reason) => problem(
            NAME,
            format!("cannot be told: {reason}"),
            "container system start; if it hangs: container system stop, then start it again",
        ),
    }
}

/// The kernel that machines boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// `container` has none yet.
    Missing(PathBuf),
    /// It is there and cannot be read.
    Unreadable(String),
    /// It is there.
    There {
        /// Its file, all links followed.
        path: PathBuf,
        /// What it was built with, if it carries that.
        config: Option<KernelConfig>,
    },
}

/// Without these no container has a root, or none is confined.
pub(super) const NEEDED: [&str; 10] = [
    "EROFS_FS",
    "OVERLAY_FS",
    "VIRTIO_FS",
    "EXT4_FS",
    "NAMESPACES",
    "PID_NS",
    "NET_NS",
    "CGROUPS",
    "MEMCG",
    "SECCOMP_FILTER",
];

/// Without these something that pods may ask for does not work.
pub(super) const WANTED: [&str; 5] = ["VXLAN", "VETH", "BRIDGE", "TUN", "USER_NS"];

/// One of these mounts layers.
pub(super) const LAYERS: [&str; 2] = ["BLK_DEV_LOOP", "EROFS_FS_BACKED_BY_FILE"];

/// Without these Cilium's agent does not start, or not with all that it is for.
pub(super) const CILIUM: [&str; 10] = [
    "BPF_SYSCALL",
    "BPF_JIT",
    "CGROUP_BPF",
    "NET_CLS_BPF",
    "NET_CLS_ACT",
    "NET_SCH_INGRESS",
    "DEBUG_INFO_BTF",
    "CRYPTO_USER_API_HASH",
    "VXLAN",
    "VETH",
];

/// What the file of Apple's recommended kernel is called. Of this one it is known
/// what it has, from the sources it is made of, should it not say so itself.
const RECOMMENDED: &str = "vmlinux-6.18.15";

/// How to get a kernel.
const SET_KERNEL: &str = "container system kernel set --recommended";

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn kernel(found: &Kernel) -> Check {
    const NAME: &str = "machines' kernel";
    let (path, config) = match found {
        Kernel::Missing(link) => return problem(NAME, format!("there is no {}", link.display()), SET_KERNEL),
        Kernel::Unreadable(error) => return problem(NAME, error.as_str(), SET_KERNEL),
        Kernel::There { path, config } => (path, config),
    };
    let name = file_name(path);
    let Some(config) = config else {
        return if name.starts_with(RECOMMENDED) {
            ok(NAME, format!("{name}: Apple's recommended one, which has EROFS, overlayfs and VXLAN"))
        } else {
            warning(
                NAME,
                format!("{name} does not carry its configuration: unknown what it has"),
                format!("a kernel with CONFIG_IKCONFIG tells; or: {SET_KERNEL}"),
            )
        };
    };
    let mut missing = config.lacks(&NEEDED).join(", ");
    if config.lacks(&LAYERS).len() == LAYERS.len() {
        missing = [missing.as_str(), &LAYERS.join(" or ")].join(", ").trim_start_matches(", ").to_owned();
    }
    let unwanted = config.lacks(&WANTED).join(", ");
    match (missing.is_empty(), unwanted.is_empty()) {
        (false, _) => problem(NAME, format!("{name} lacks {missing}"), SET_KERNEL),
        (true, false) => warning(
            NAME,
            format!("{name} lacks {unwanted}"),
            "pods that need these are refused; a kernel of your own: container system kernel set --binary FILE",
        ),
        (true, true) => ok(NAME, format!("{name} has EROFS, overlayfs, VXLAN and the rest")),
    }
}

/// A cluster whose node is a machine with Cilium needs more of its kernel. That is
/// no condition for pods.
pub(super) fn node_kernel(found: &Kernel) -> Check {
    const NAME: &str = "kernel for Cilium";
    const REMEDY: &str = "only a node with Cilium needs it: give that machine a kernel with these options";
    let Kernel::There { path, config } = found else {
        return warning(NAME, "there is no kernel to look at", SET_KERNEL);
    };
    let name = file_name(path);
    match config {
        Some(config) => match config.lacks(&CILIUM).join(", ") {
            missing if missing.is_empty() => ok(NAME, format!("{name} can run a node with Cilium")),
            missing => warning(NAME, format!("{name} lacks {missing}"), REMEDY),
        },
        None if name.starts_with(RECOMMENDED) => {
            warning(NAME, format!("{name} lacks BPF_JIT, DEBUG_INFO_BTF, NET_CLS_BPF and others"), REMEDY)
        }
        None => warning(NAME, format!("unknown: {name} does not carry its configuration"), REMEDY),
    }
}

fn named<'a>(networks: &'a [Network], name: &str) -> Option<&'a Network> {
    networks.iter().find(|network| network.name == name)
}

/// `name` is the network that machines are in.
pub(super) fn networks(found: &Result<Vec<Network>, String>, name: &str) -> Check {
    const NAME: &str = "container's network";
    let networks = match found {
        Ok(networks) => networks,
        Err(error) => {
            return problem(
                NAME,
                error.as_str(),
                "networks of machines need macOS 26; see `container network`",
            );
        }
    };
    match named(networks, name) {
        None => problem(
            NAME,
            format!("there is no network {name}"),
            "container network list shows them; set machine.apple.network to one",
        ),
        Some(Network { subnet: Some(subnet), .. }) => ok(NAME, format!("{name}, {subnet}")),
        Some(_) => warning(
            NAME,
            format!("{name} has no addresses yet"),
            "they come with the first machine; run this again after it",
        ),
    }
}

pub(super) fn routes(
    networks: &Result<Vec<Network>, String>,
    name: &str,
    routes: &Result<Vec<Route>, String>,
) -> Check {
    const NAME: &str = "routes";
    let routes = match routes {
        Ok(routes) => routes,
        Err(error) => return warning(NAME, format!("unknown: {error}"), "see `netstat -rn -f inet`"),
    };
    let subnet = networks.as_deref().ok().and_then(|all| named(all, name)?.subnet);
    let Some(subnet) = subnet else { return ok(NAME, "nothing to compare them with yet") };
    let found = overlap(subnet, routes);
    let said = |routes: &[Route]| {
        let all = routes.iter().map(|route| format!("{} on {}", route.to, route.interface));
        all.collect::<Vec<_>>().join(", ")
    };
    if !found.taken.is_empty() {
        return warning(
            NAME,
            format!("{} goes before the machines' {subnet}", said(&found.taken)),
            "leave that VPN or network, or give machines other addresses: container network delete, create \
             --subnet",
        );
    }
    if !found.covered.is_empty() {
        return ok(
            NAME,
            format!(
                "{} has the machines' {subnet} in it; theirs goes before it, unless the VPN forbids that",
                said(&found.covered)
            ),
        );
    }
    ok(NAME, format!("none in the way of {subnet}"))
}

/// So many machines more are room enough.
const SLOTS_LEFT: usize = 16;

/// `limit` is the most machines at a time: macOS' own, or less.
pub(super) fn slots(found: &Result<Vec<Machine>, String>, limit: u32) -> Check {
    const NAME: &str = "machines";
    let machines = match found {
        Ok(machines) => machines,
        Err(error) => return warning(NAME, format!("unknown: {error}"), "container list"),
    };
    let finding = format!("{} of {limit} run", machines.len());
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if machines.len().saturating_add(SLOTS_LEFT) > limit {
        return warning(NAME, finding, "stop some: every pod is one, and macOS runs no more");
    }
    ok(NAME, finding)
}

/// What macOS and its user need for themselves, in bytes.
const OWN_MEMORY: u64 = 4 << 30;

pub(super) fn memory(machines: &Result<Vec<Machine>, String>, total: Option<u64>, config: &Config) -> Check {
    const NAME: &str = "memory";
    let Some(total) = total else {
        return warning(NAME, "unknown", "see `sysctl hw.memsize`");
    };
    let used: u64 = machines.as_ref().map_or(0, |all| all.iter().map(|one| one.memory).sum());
    let pod = (config.machine.memory_mib.saturating_add(config.machine.kernel_mib)).saturating_mul(1 << 20);
    let left = total.saturating_sub(OWN_MEMORY).saturating_sub(used);
    let more = left.checked_div(pod).unwrap_or(0);
    let finding = format!(
        "{} in all, {} promised to machines: {more} more of {}",
        bytes(total),
        bytes(used),
        bytes(pod)
    );
    match more {
        0..=3 => warning(
            NAME,
            finding,
            "stop machines, or set limits: what one has had it does not give back before it ends",
        ),
        _ => ok(NAME, finding),
    }
}

/// What a machine's socket has beyond its directory: a pod's id.
const MACHINE_SOCKET: usize = "/0123456789abcdef0123456789abcdef.sock".len();

/// `image` is where the image of machines is, or should be.
pub(super) fn image((image, there): (PathBuf, bool)) -> Check {
    const NAME: &str = "machines' image";
    if there {
        return ok(NAME, image.display().to_string());
    }
    problem(
        NAME,
        format!("there is no {}", image.display()),
        "install kina anew, with all that is in its archive, or set machine.apple.image",
    )
}

pub(super) fn paths(config: &Config) -> Check {
    const NAME: &str = "paths";
    let sockets = config.machine_sockets();
    for (key, path) in
        [("root", &config.root), ("run", &config.run), ("machine.apple.socket_directory", &sockets)]
    {
        let text = path.display().to_string();
        if let Some(odd) = text.chars().find(|char| matches!(char, ':' | ',')) {
            return problem(
                NAME,
                format!("{key} {text} has {odd:?}, with which `container` ends a path"),
                format!("set `{key}` to another directory"),
            );
        }
    }
    let length = sockets.as_os_str().len() + MACHINE_SOCKET;
    if length > SOCKET_PATH_LIMIT {
        return problem(
            NAME,
            format!("sockets of machines in {} have {length} bytes", sockets.display()),
            format!(
                "set `run` or machine.apple.socket_directory to a directory with a shorter name: \
                 {SOCKET_PATH_LIMIT} bytes are possible"
            ),
        );
    }
    ok(NAME, format!("sockets of machines have {length} bytes, {SOCKET_PATH_LIMIT} are possible"))
}

/// macOS asks the user whether an agent of launchd may talk to the local network,
/// which the machines' is one of. It does not ask for what runs in a terminal, so
/// this cannot be tried from here.
pub(super) fn local_network(agent: bool) -> Check {
    const NAME: &str = "local network";
    if !agent {
        return ok(NAME, "no matter: kina is no service here, and from a terminal all is allowed");
    }
    ok(
        NAME,
        "if the service's log says \"No route to host\", allow kina in System Settings > Privacy & Security > \
         Local Network; macOS may ask again after an update",
    )
}
