//! What a pod's containers share.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kina_cgroup::{Group, Hierarchy};
use kina_guest_api::v1::NamespaceMode;
use kina_guest_api::v1::pod_network::Kind;
use kina_guest_api::{MACHINE_STATE_DIRECTORY, v1};

use crate::error::Error;
use crate::ids::{Ids, Owner};
use crate::memory;
use crate::namespaces::{Plan, PodNamespaces};
use crate::network;
use crate::pause::Pause;
use crate::selinux::Labels;
use crate::unattached::{Unattached, descriptor_path};
use crate::volumes::Volumes;

/// The kernel's bound (HOST_NAME_MAX).
const HOSTNAME_LIMIT: usize = 64;
/// What containerd and Docker give a pod.
const DEFAULT_SHM_BYTES: u64 = 64 << 20;
/// The machine's files that are copied may be that long, in bytes.
const COPIED_FILE_LIMIT: u64 = 1 << 20;

/// A pod that is set up.
#[derive(Debug)]
pub(crate) struct Pod {
    request: v1::SetupPodRequest,
    pub(crate) state_directory: PathBuf,
    pub(crate) namespaces: PodNamespaces,
    /// `None`: the machine's own.
    pub(crate) shared_memory: Option<Unattached>,
    pub(crate) group: Group,
    pub(crate) hostname: String,
    pub(crate) ids: Ids,
    /// The pod's root, as the machine numbers it.
    pub(crate) root: Owner,
    pub(crate) pid: PidMode,
    pub(crate) volumes: Volumes,
}

/// Which PID namespace containers get unless they say otherwise.
#[derive(Debug)]
pub(crate) enum PidMode {
    /// Each its own. Those that ask for a common one all the same have this, from the first of
    /// them on.
    Container(Mutex<Option<CommonPid>>),
    Host,
    Pod(CommonPid),
}

/// A PID namespace of the pod's.
#[derive(Debug)]
pub(crate) struct CommonPid {
    /// Held: the namespace ends with its first process.
    _pause: Pause,
    namespace: OwnedFd,
}

impl CommonPid {
    fn new(pause: Pause) -> Result<Self, Error> {
        let namespace = pause.namespace()?;
        Ok(Self { _pause: pause, namespace })
    }

    /// To be joined, for as long as the pod is there.
    pub(crate) fn path(&self) -> PathBuf {
        descriptor_path(&self.namespace)
    }
}

/// The files that every container sees, by the guest's path.
pub(crate) const POD_FILES: [(&str, &str); 3] =
    [("resolv.conf", "/etc/resolv.conf"), ("hosts", "/etc/hosts"), ("hostname", "/etc/hostname")];

impl Pod {
    /// Sets a pod up. Must run on the guest's main thread (see [`Pause`]).
    pub(crate) async fn create(request: v1::SetupPodRequest, hierarchy: &Hierarchy) -> Result<Self, Error> {
        let state_directory = PathBuf::from(&request.state_directory);
        if request.state_directory == MACHINE_STATE_DIRECTORY {
            // A machine without a disk keeps it in its memory; nobody else makes it then.
            fs::create_dir_all(&state_directory)
                .map_err(|source| Error::file("create", &state_directory, source))?;
        }
        if !state_directory.is_absolute() || !state_directory.is_dir() {
            let reason = format!("{} is no directory", state_directory.display());
            return Err(Error::invalid("state_directory", reason));
        }
        let ids = Ids::new(request.user.as_ref())?;
        let root = ids.root()?;
        let labels = Labels::of(request.selinux.as_ref())?;
        let host_ipc = request.ipc() == NamespaceMode::Host;
        let host_uts = request.uts() == NamespaceMode::Host;
        let host_network = matches!(request.network, Some(v1::PodNetwork { kind: Some(Kind::Host(_)) }));
        let machine_network =
            matches!(request.network, Some(v1::PodNetwork { kind: Some(Kind::Host(_) | Kind::Machine(_)) }));
        let host_pid = request.pid() == NamespaceMode::Host;
        if ids.mapping().is_some() && (host_ipc || host_uts || machine_network || host_pid) {
            let reason = "the pod has namespaces of the machine, which its own does not own";
            return Err(Error::invalid("user", reason));
        }
        if request.pid() == NamespaceMode::Target {
            return Err(Error::invalid("pid", "a pod has no target"));
        }
        let hostname = if host_uts {
            rustix::system::uname().nodename().to_string_lossy().into_owned()
        } else {
            check_hostname(&request.hostname)?;
            request.hostname.clone()
        };
        let sysctls = request
            .sysctls
            .iter()
            .map(|(name, value)| sysctl_file(name, host_network, host_ipc).map(|file| (file, value.clone())))
            .collect::<Result<Vec<_>, _>>()?;
        let cgroup_error = |source| Error::Cgroup { path: request.cgroup_path.clone(), source };
        let group = hierarchy.group(&request.cgroup_path).map_err(cgroup_error)?;
        let network = network::prepare(request.network.as_ref(), &ids).await?;
        group.create().map_err(cgroup_error)?;
        let bytes = if request.shm_bytes == 0 { DEFAULT_SHM_BYTES } else { request.shm_bytes };
        let plan = Plan { ipc: !host_ipc, uts: !host_uts, network, hostname: hostname.clone(), sysctls };
        let shared_pid = request.pid() == NamespaceMode::Pod;
        let (namespaces, pause) = crate::namespaces::create(plan, &ids, shared_pid)?;
        let hosts =
            if host_network { copied("/etc/hosts")? } else { hosts(&namespaces.addresses, &hostname) };
        write_files(&state_directory, &request, hosts, &hostname, root)?;
        let shared_memory = if host_ipc {
            None
        } else {
            let shape = memory::shared(bytes, root, labels.files);
            Some(memory::create(&shape, &state_directory.join("shm"))?)
        };
        let pid = match pause {
            Some(pause) => PidMode::Pod(CommonPid::new(pause)?),
            None if host_pid => PidMode::Host,
            None => PidMode::Container(Mutex::default()),
        };
        let volumes = Volumes::new(state_directory.join("volumes"));
        Ok(Self {
            state_directory,
            namespaces,
            shared_memory,
            group,
            hostname,
            ids,
            root,
            pid,
            volumes,
            request,
        })
    }

    /// The PID namespace of the containers that ask for the pod's in a pod where each has its own:
    /// the one in `made`, or a new one. Must run on the guest's main thread (see [`Pause`]).
    pub(crate) fn common_pid(&self, made: &Mutex<Option<CommonPid>>) -> Result<PathBuf, Error> {
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(common) = &*made {
            return Ok(common.path());
        }
        let pause = self.namespaces.first_process(&self.ids, &self.hostname)?;
        Ok(made.insert(CommonPid::new(pause)?).path())
    }

    /// Whether a repeated request asks for what is there.
    pub(crate) fn is(&self, request: &v1::SetupPodRequest) -> bool {
        self.request == *request
    }

    /// Removes the pod's files.
    pub(crate) fn remove_files(&self) -> Result<(), Error> {
        for (file, _) in POD_FILES {
            drop(fs::remove_file(self.state_directory.join(file)));
        }
        // Whatever is still being removed of containers goes with it.
        drop(fs::remove_dir_all(self.state_directory.join("containers")));
        drop(fs::remove_dir(self.state_directory.join("layers")));
        self.volumes.remove()
    }
}

fn check_hostname(hostname: &str) -> Result<(), Error> {
    let fine = (1..=HOSTNAME_LIMIT).contains(&hostname.len())
        && hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if fine { Ok(()) } else { Err(Error::invalid("hostname", format!("{hostname:?}"))) }
}

/// The file of a sysctl below /proc/sys. Only those of the pod's own namespaces
/// may be set: others would change the machine.
fn sysctl_file(name: &str, host_network: bool, host_ipc: bool) -> Result<PathBuf, Error> {
    let refuse = |reason: &str| Err(Error::invalid("sysctls", format!("{name:?} {reason}")));
    // sysctl(8)'s rule: the separator that comes first is the separator.
    let slashes = name.find(['.', '/']).is_some_and(|at| name[at..].starts_with('/'));
    let path: String = if slashes {
        name.to_owned()
    } else {
        name.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect()
    };
    let plain = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if !plain {
        return refuse("is no sysctl");
    }
    let of_ipc = path.starts_with("kernel/shm")
        || path.starts_with("kernel/msg")
        || path == "kernel/sem"
        || path.starts_with("fs/mqueue/");
    if path.starts_with("net/") {
        if host_network {
            return refuse("belongs to the machine's network namespace");
        }
    } else if of_ipc {
        if host_ipc {
            return refuse("belongs to the machine's IPC namespace");
        }
    } else {
        return refuse("belongs to no namespace of the pod");
    }
    Ok(path.into())
}

fn write_files(
    directory: &Path,
    request: &v1::SetupPodRequest,
    hosts: String,
    hostname: &str,
    owner: Owner,
) -> Result<(), Error> {
    let resolv = match &request.dns {
        Some(dns) if *dns != v1::Dns::default() => resolv_conf(dns)?,
        Some(_) | None => copied("/etc/resolv.conf")?,
    };
    let contents = [resolv, hosts, format!("{hostname}\n")];
    for ((file, _), content) in POD_FILES.into_iter().zip(contents) {
        let path = directory.join(file);
        fs::write(&path, content).map_err(|source| Error::file("write", &path, source))?;
        std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1))
            .map_err(|source| Error::file("give away", &path, source))?;
        // Readable in the container whatever the umask was.
        let mode = rustix::fs::Mode::from_raw_mode(0o644);
        rustix::fs::chmod(&path, mode).map_err(|errno| Error::file("write", &path, errno))?;
    }
    Ok(())
}

/// The pod's own names, as the kubelet writes them.
fn hosts(addresses: &[IpAddr], hostname: &str) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for address in addresses {
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    text
}

fn copied(path: &str) -> Result<String, Error> {
    match fs::File::open(path) {
        Ok(file) => {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut std::io::Read::take(file, COPIED_FILE_LIMIT), &mut text)
                .map_err(|source| Error::file("read", path, source))?;
            Ok(text)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(Error::file("open", path, source)),
    }
}

fn resolv_conf(dns: &v1::Dns) -> Result<String, Error> {
    let all = dns.searches.iter().chain(&dns.servers).chain(&dns.options);
    for word in all {
        if word.is_empty() || word.contains(char::is_whitespace) {
            return Err(Error::invalid("dns", format!("{word:?}")));
        }
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_stay_in_the_pods_namespaces() {
        let file = |name| sysctl_file(name, false, false).map(|path| path.display().to_string());
        for (name, expected) in [
            ("net.core.somaxconn", "net/core/somaxconn"),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
            ("kernel.sem", "kernel/sem"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ] {
            assert_eq!(file(name).unwrap(), expected);
        }
        for name in ["kernel.panic", "vm.swappiness", "net/../kernel/panic", "net..x", "", "kernel.semx"] {
            assert!(file(name).unwrap_err().to_string().contains(name), "{name}");
        }
        assert!(sysctl_file("net.core.somaxconn", true, false).is_err());
        assert!(sysctl_file("kernel.sem", false, true).is_err());
    }

    #[test]
    fn resolv_conf_is_written() {
        let dns = v1::Dns {
            servers: vec!["10.0.0.1".into(), "fd00::1".into()],
            searches: vec!["a.example".into(), "example".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns).unwrap(),
            "search a.example example\nnameserver 10.0.0.1\nnameserver fd00::1\noptions ndots:5\n"
        );
        let hostile = v1::Dns { servers: vec!["1.1.1.1\nnameserver 6.6.6.6".into()], ..dns };
        assert!(resolv_conf(&hostile).is_err());
    }

    #[test]
    fn host_names_are_checked() {
        assert!(check_hostname("web-0.example").is_ok());
        for bad in ["", "a b", "a/b", &"x".repeat(65)] {
            assert!(check_hostname(bad).is_err(), "{bad}");
        }
    }
}
