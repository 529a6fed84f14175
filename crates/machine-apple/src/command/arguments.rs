//! The command line of a boot.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use kina_machine::{PortProtocol, PublishedPort};
use kina_model::PodId;

use crate::Version;

/// Where the guest listens. In the container's root: Apple's init connects to it
/// from another mount namespace. It takes 107 bytes for its own directory, the
/// container's name and this.
pub(crate) const SOCKET_IN_GUEST: &str = "/kina.sock";

/// Where the guest sees layers, and what may be shared with it.
pub(crate) const LAYERS_IN_GUEST: &str = "/share/layers";
const SHAREABLE_IN_GUEST: &str = "/share/volumes";

/// Says whose machine a container is. Values are hexadecimal: of others Apple's
/// parser loses some equals signs and takes offence at the rest.
pub(crate) const POD_LABEL: &str = "kina.pod";
pub(crate) const HOME_LABEL: &str = "kina.home";

/// The least memory that Apple boots a machine with, in MiB.
const LEAST_MEMORY_MIB: u64 = 200;

const MIB: u64 = 1 << 20;

/// A machine's container. At most 63 characters are possible.
pub(crate) fn container_name(pod: &PodId) -> String {
    format!("kina-{pod}")
}

/// Where the guest sees the directory of that number.
pub(crate) fn shareable_in_guest(number: usize) -> PathBuf {
    Path::new(SHAREABLE_IN_GUEST).join(number.to_string())
}

/// What is booted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Boot<'a> {
    pub(crate) version: Version,
    pub(crate) pod: &'a PodId,
    /// The daemon that it belongs to.
    pub(crate) home: &'a str,
    pub(crate) image: &'a str,
    pub(crate) kernel: Option<&'a Path>,
    pub(crate) network: &'a str,
    pub(crate) mtu: u16,
    pub(crate) memory_bytes: u64,
    pub(crate) cpus: u32,
    pub(crate) layers: &'a Path,
    pub(crate) shareable: &'a [PathBuf],
    pub(crate) ports: &'a [PublishedPort],
    pub(crate) socket: &'a Path,
}

/// The arguments of `container run`.
pub(crate) fn run(boot: &Boot<'_>) -> Vec<OsString> {
    let mut words = Words::default();
    words.add(["run", "--detach", "--progress", "none"]);
    words.add(["--name", &container_name(boot.pod)]);
    words.add(["--label", &format!("{POD_LABEL}={}", boot.pod)]);
    words.add(["--label", &format!("{HOME_LABEL}={}", boot.home)]);
    let memory = boot.memory_bytes.div_ceil(MIB).max(LEAST_MEMORY_MIB);
    words.add(["--memory", &format!("{memory}M"), "--cpus", &boot.cpus.max(1).to_string()]);
    words.add(["--cap-add", "ALL"]);
    if boot.version >= Version::UNCOVERED {
        words.add(["--masked-path", "NONE", "--read-only-path", "NONE"]);
    }
    words.add(["--network", &format!("{},mtu={}", boot.network, boot.mtu)]);
    for port in boot.ports {
        words.add(["--publish", &published(port)]);
    }
    if let Some(kernel) = boot.kernel {
        words.pair("--kernel", kernel);
    }
    words.pair("--volume", joined(boot.layers, format!(":{LAYERS_IN_GUEST}:ro")));
    for (number, directory) in boot.shareable.iter().enumerate() {
        let place = shareable_in_guest(number);
        words.pair("--volume", joined(directory, format!(":{}", place.display())));
    }
    words.pair("--publish-socket", joined(boot.socket, format!(":{SOCKET_IN_GUEST}")));
    words.add([boot.image, "entry", "--pod", boot.pod.as_str()]);
    words.add(["--listen", &format!("unix:{SOCKET_IN_GUEST}")]);
    words.0
}

fn published(port: &PublishedPort) -> String {
    let address = match port.address {
        None => String::new(),
        Some(IpAddr::V4(address)) => format!("{address}:"),
        Some(IpAddr::V6(address)) => format!("[{address}]:"),
    };
    let protocol = match port.protocol {
        PortProtocol::Tcp => "tcp",
        PortProtocol::Udp => "udp",
    };
    format!("{address}{}:{}/{protocol}", port.node, port.machine)
}

fn joined(path: &Path, rest: String) -> OsString {
    let mut word = path.as_os_str().to_owned();
    word.push(rest);
    word
}

#[derive(Default)]
struct Words(Vec<OsString>);

impl Words {
    fn add<'a>(&mut self, words: impl IntoIterator<Item = &'a str>) {
        self.0.extend(words.into_iter().map(OsString::from));
    }

    fn pair(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(boot: &Boot<'_>) -> String {
        let words: Vec<String> = run(boot).into_iter().map(|word| word.into_string().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn the_command_line_of_a_boot() {
        let pod: PodId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let ports = [
            PublishedPort { address: None, node: 8080, machine: 80, protocol: PortProtocol::Tcp },
            PublishedPort {
                address: Some([127, 0, 0, 1].into()),
                node: 53,
                machine: 5353,
                protocol: PortProtocol::Udp,
            },
            PublishedPort {
                address: Some("::1".parse().unwrap()),
                node: 81,
                machine: 81,
                protocol: PortProtocol::Tcp,
            },
        ];
        let shareable = ["/Users/a/data".into(), "/Users/a/more".into()];
        let boot = Boot {
            version: Version::new(1, 2, 2),
            pod: &pod,
            home: "aabb",
            image: "localhost/kina-pod:1",
            kernel: Some(Path::new("/k/vmlinux")),
            network: "default",
            mtu: 1500,
            memory_bytes: (512 << 20) + 1,
            cpus: 2,
            layers: Path::new("/var/lib/kina/l"),
            shareable: &shareable,
            ports: &ports,
            socket: Path::new("/run/kina/s/p.sock"),
        };
        assert_eq!(
            line(&boot),
            "run --detach --progress none --name kina-0123456789abcdef0123456789abcdef \
             --label kina.pod=0123456789abcdef0123456789abcdef --label kina.home=aabb --memory 513M --cpus 2 \
             --cap-add ALL --masked-path NONE --read-only-path NONE --network default,mtu=1500 \
             --publish 8080:80/tcp --publish 127.0.0.1:53:5353/udp --publish [::1]:81:81/tcp --kernel /k/vmlinux \
             --volume /var/lib/kina/l:/share/layers:ro --volume /Users/a/data:/share/volumes/0 \
             --volume /Users/a/more:/share/volumes/1 --publish-socket /run/kina/s/p.sock:/kina.sock \
             localhost/kina-pod:1 entry --pod 0123456789abcdef0123456789abcdef --listen unix:/kina.sock"
        );
        // A container that removes itself would be reaped when the service starts anew.
        assert!(!line(&boot).contains("--rm"));
        let old = Boot {
            version: Version::new(1, 2, 0),
            kernel: None,
            shareable: &[],
            ports: &[],
            memory_bytes: 1,
            cpus: 0,
            ..boot
        };
        let line = line(&old);
        for absent in ["masked", "read-only", "kernel", "publish ", "volumes"] {
            assert!(!line.contains(absent), "{absent}: {line}");
        }
        assert!(line.contains("--memory 200M --cpus 1 "), "{line}");
    }

    #[test]
    fn names_and_paths_fit() {
        let name = container_name(&PodId::random());
        assert!(name.len() <= 63);
        // As Apple counts it: its own directory's part, the name, the path.
        assert!(22 + name.len() + SOCKET_IN_GUEST.len() < 108);
    }
}
