//! What programs print, in all shapes, and what it means; and all of it together
//! with a stand-in for a Mac's programs.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use super::facts::{Container, Machine, Network, Service, Version};
use super::judge::{CILIUM, Kernel, LAYERS, NEEDED, WANTED};
use super::routes::{Route, overlap};
use super::*;
use crate::cli::doctor::judge::Grade;
use crate::cli::program::search_path;

fn route(to: &str, interface: &str) -> Route {
    Route { to: to.parse().unwrap(), interface: interface.to_owned() }
}

#[test]
fn versions_of_command_and_service() {
    for (json, expected) in [
        (r#"[{"version":"1.2.2"}]"#, Some((Version(1, 2, 2), None))),
        (
            r#"[{"version":"1.2.2"},{"version":"container-apiserver version 1.2.1 (build: release)"}]"#,
            Some((Version(1, 2, 2), Some(Version(1, 2, 1)))),
        ),
        (r#"[{"version":"1.3.0-4-gabc"}]"#, Some((Version(1, 3, 0), None))),
        (r#"[{"version":"unspecified"}]"#, None),
        ("[]", None),
        ("Error: Unexpected argument 'version'", None),
    ] {
        assert_eq!(facts::versions(json), expected, "{json}");
    }
    assert_eq!(Version::find("container CLI version 0.9.0 (build: release)"), Some(Version(0, 9, 0)));
    assert_eq!(Version::find("1.2 1.2.3.4"), None);
}

#[test]
fn a_service_that_runs_and_one_that_does_not() {
    let running = Service::Running { root: "/Users/a/Library/Application Support/x/".into() };
    for (json, expected) in [
        (r#"{"appRoot":"\/Users\/a\/Library\/Application Support\/x\/","status":"running"}"#, Some(running)),
        (r#"{"appRoot":"","status":"unregistered"}"#, Some(Service::Down("unregistered".to_owned()))),
        (r#"{"appRoot":"","status":"not running"}"#, Some(Service::Down("not running".to_owned()))),
        (r#"{"status":"running"}"#, None),
        ("apiserver is running", None),
    ] {
        assert_eq!(facts::service(json), expected, "{json}");
    }
}

#[test]
fn networks_of_all_versions() {
    let expected = Network { name: "default".to_owned(), subnet: Some("192.168.64.0/24".parse().unwrap()) };
    for json in [
        r#"[{"id":"default","configuration":{"name":"default"},"status":{"ipv4Subnet":"192.168.64.0/24"}}]"#,
        r#"[{"id":"default","state":"running","config":{},"status":{"address":"192.168.64.1/24"}}]"#,
    ] {
        assert_eq!(facts::networks(json), Some(vec![expected.clone()]), "{json}");
    }
    let json = r#"[{"id":"default","state":"created","config":{}}]"#;
    assert_eq!(facts::networks(json).unwrap()[0].subnet, None);
    assert_eq!(facts::networks("{}"), None);
}

#[test]
fn machines_of_all_versions() {
    let one = |status: &str| {
        format!(r#"{{"configuration":{{"id":"a","resources":{{"memoryInBytes":5}}}},"status":{status}}}"#)
    };
    let all = [one(r#""running""#), one(r#"{"state":"running"}"#), one(r#"{"state":"stopped"}"#)];
    let json = format!("[{}]", all.join(","));
    assert_eq!(facts::machines(&json), Some(vec![Machine { memory: 5 }, Machine { memory: 5 }]));
}

#[test]
fn routes_as_macos_prints_them() {
    let text = "Destination Gateway Flags Netif Expire\ndefault 192.168.1.1 UGScg en0\n10/8 utun4 USc utun4\n\
                172.16.5/24 10.0.0.1 UGSc utun4\n192.168.64 link#20 UC bridge100 !\n\
                169.254 link#11 UCS en0 !\n192.168.64.7 10.0.0.1 UGHS utun4\n0/1 10.8.0.1 UGSc utun3\n";
    assert_eq!(
        routes::routes(text),
        [
            route("10.0.0.0/8", "utun4"),
            route("172.16.5.0/24", "utun4"),
            route("192.168.64.0/24", "bridge100"),
            route("169.254.0.0/16", "en0"),
            route("192.168.64.7/32", "utun4"),
            route("0.0.0.0/1", "utun3"),
        ]
    );
    assert!(routes::routes("1.2.3.4.5 a b c\n1/99 a b c\n1.2.3 a\n").is_empty());
}

#[test]
fn routes_in_the_way() {
    let subnet = "192.168.64.0/24".parse().unwrap();
    let all = [
        route("192.168.64.0/24", "bridge100"),
        route("192.168.0.0/16", "utun4"),
        route("192.168.0.0/16", "en0"),
        route("192.168.64.0/25", "utun4"),
        route("10.0.0.0/8", "utun4"),
    ];
    let found = overlap(subnet, &all);
    assert_eq!((found.taken, found.covered), (vec![all[3].clone()], vec![all[1].clone()]));

    let networks = Ok(vec![Network { name: "default".to_owned(), subnet: Some(subnet) }]);
    let judged = |routes: &[Route]| judge::routes(&networks, "default", &Ok(routes.to_vec()));
    assert_eq!(judged(&all).grade, Grade::Warning);
    assert!(judged(&all).finding.contains("192.168.64.0/25 on utun4"));
    assert_eq!(judged(&all[..3]).grade, Grade::Ok);
    assert!(judged(&all[..3]).finding.contains("unless the VPN forbids"));
    assert_eq!(judge::routes(&networks, "default", &Err("no netstat".to_owned())).grade, Grade::Warning);
}

fn packed(text: &str) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(text.as_bytes()).unwrap();
    packer.finish().unwrap()
}

/// A kernel's image that carries its configuration.
fn image(config: &str) -> Vec<u8> {
    let parts: [&[u8]; 6] = [
        b"MZ\0\0",
        b"IKCFG_ST, says the code",
        b"\x1f\x8b junk",
        b"IKCFG_ST",
        &packed(config),
        b"IKCFG_ED\0",
    ];
    parts.concat()
}

/// Configurations by what they have.
fn built_with(options: &[&str]) -> String {
    let lines = options.iter().map(|option| format!("CONFIG_{option}=y\n"));
    lines.chain(["# CONFIG_BPF_JIT is not set\nCONFIG_HZ=100\nCONFIG_XFS_FS=m\n".to_owned()]).collect()
}

/// What a kernel has that is good for pods, by the lists that are judged by.
fn for_pods() -> Vec<&'static str> {
    [&NEEDED[..], &LAYERS[..1], &WANTED[..]].concat()
}

#[test]
fn a_kernel_tells_what_it_was_built_with() {
    let text = built_with(&for_pods());
    let config = kernel::embedded(&image(&text)).unwrap();
    assert_eq!(config, kernel::Config::parse(&text));
    assert_eq!(kernel::embedded(&packed("no kernel")), None);
    assert_eq!(kernel::embedded(b"IKCFG_ST"), None);
    let compressed = {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(&image(&text)).unwrap();
        packer.finish().unwrap()
    };
    assert_eq!(kernel::embedded(&compressed), Some(config.clone()));
    assert!(config.has("VXLAN") && !config.has("XFS_FS") && !config.has("BPF_JIT"));
}

#[test]
fn what_a_kernel_can() {
    let there = |path: &str, config: Option<&[&str]>| Kernel::There {
        path: path.into(),
        config: config.map(|options| kernel::Config::parse(&built_with(options))),
    };
    let for_pods = for_pods();
    let without = |option: &str| for_pods.iter().copied().filter(|one| *one != option).collect::<Vec<_>>();
    for (kernel, grade, finding) in [
        (there("/k", Some(&for_pods)), Grade::Ok, "has EROFS"),
        (there("/k", Some(&without("EROFS_FS"))), Grade::Problem, "lacks EROFS_FS"),
        (there("/k", Some(&without("BLK_DEV_LOOP"))), Grade::Problem, "BLK_DEV_LOOP or EROFS_FS_BACKED"),
        (there("/k", Some(&without("VXLAN"))), Grade::Warning, "lacks VXLAN"),
        (there("/k", None), Grade::Warning, "unknown what it has"),
        (there("/vmlinux-6.18.15-186", None), Grade::Ok, "recommended"),
        (Kernel::Missing("/a/k".into()), Grade::Problem, "there is no /a/k"),
        (Kernel::Unreadable("denied".to_owned()), Grade::Problem, "denied"),
    ] {
        let check = judge::kernel(&kernel);
        assert_eq!(check.grade, grade, "{check:?}");
        assert!(check.finding.contains(finding), "{check:?}");
        // A node with Cilium needs more, and is no condition for pods.
        assert_eq!(judge::node_kernel(&kernel).grade, Grade::Warning);
    }
    assert!(judge::node_kernel(&there("/k", Some(&for_pods))).finding.contains("BPF_JIT"));
    let all = [&for_pods[..], &CILIUM[..]].concat();
    let text: String = all.iter().map(|option| format!("CONFIG_{option}=y\n")).collect();
    let config = Some(kernel::Config::parse(&text));
    assert_eq!(judge::node_kernel(&Kernel::There { path: "/k".into(), config }).grade, Grade::Ok);
}

#[test]
fn what_versions_of_container_will_do() {
    let found = |version, service| Container::Found { program: "/c".into(), version, service };
    for (container, grade) in [
        (Container::Missing, Grade::Problem),
        (Container::NotThere("/c".into()), Grade::Problem),
        (Container::Strange("gibberish".to_owned()), Grade::Problem),
        (found(Version(0, 9, 0), None), Grade::Problem),
        (found(Version(0, 12, 3), None), Grade::Warning),
        (found(Version(1, 2, 2), None), Grade::Ok),
        (found(Version(1, 2, 2), Some(Version(1, 2, 2))), Grade::Ok),
        (found(Version(1, 2, 2), Some(Version(1, 2, 1))), Grade::Warning),
        (found(Version(1, 10, 0), None), Grade::Ok),
    ] {
        let check = judge::container(&container);
        assert_eq!(check.grade, grade, "{check:?}");
        assert_eq!(check.remedy.is_empty(), grade == Grade::Ok, "{check:?}");
    }
    let down = judge::service(&Service::Down("not running".to_owned()));
    assert_eq!((down.grade, down.remedy.as_str()), (Grade::Problem, "container system start"));
    assert_eq!(judge::service(&Service::Unknown("hung".to_owned())).grade, Grade::Problem);
}

#[test]
fn room_for_machines() {
    let run = |count: usize, memory: u64| Ok(vec![Machine { memory }; count]);
    assert_eq!(judge::slots(&run(3, 1), 128).grade, Grade::Ok);
    assert_eq!(judge::slots(&run(120, 1), 128).grade, Grade::Warning);
    assert_eq!(judge::slots(&Err("no".to_owned()), 128).grade, Grade::Warning);
    let config = Config::default();
    assert_eq!(judge::memory(&run(3, 1 << 30), Some(16 << 30), &config).grade, Grade::Ok);
    assert_eq!(judge::memory(&run(12, 1 << 30), Some(16 << 30), &config).grade, Grade::Warning);
    assert_eq!(judge::memory(&run(0, 0), None, &config).grade, Grade::Warning);
    assert_eq!(judge::memory(&run(9, u64::MAX / 16), Some(1), &config).grade, Grade::Warning);
}

#[test]
fn directories_that_machines_cannot_use() {
    let of = |run: &str| judge::paths(&Config { run: run.into(), ..Config::default() });
    assert_eq!(of("/Users/you/.kina/run").grade, Grade::Ok);
    let long = of(&format!("/Users/{}/.kina/run", "n".repeat(60)));
    assert_eq!(long.grade, Grade::Problem);
    assert!(long.remedy.contains("`run`"), "{long:?}");
    assert!(of("/Users/a:b/run").finding.contains("':'"));
}

/// A Mac whose programs are stand-ins.
struct Mac(TempDir);

impl Mac {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-ins/mac");
        for name in ["container", "netstat", "sysctl", "uname", "sw_vers", "kina", "crictl", "launchctl"] {
            std::os::unix::fs::symlink(&script, directory.path().join(name)).unwrap();
        }
        let mac = Self(directory);
        fs::write(mac.path("kina-pod.tar"), "").unwrap();
        fs::create_dir_all(mac.path("root/kernels")).unwrap();
        fs::write(mac.path("root/kernels/vmlinux-of-mine"), image(&built_with(&for_pods()))).unwrap();
        std::os::unix::fs::symlink("vmlinux-of-mine", mac.path("root/kernels/default.kernel-arm64")).unwrap();
        mac
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn search(&self) -> Vec<PathBuf> {
        std::iter::once(self.0.path().to_owned()).chain(search_path()).collect()
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        config.machine.apple.image = self.path("kina-pod.tar");
        config.machine.apple.program = self.path("container");
        config
    }

    async fn examine(&self) -> Vec<Check> {
        examine(&self.config(), &self.search(), Path::new("/Users/you")).await
    }
}

fn grade(checks: &[Check], name: &str) -> Grade {
    checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("{name}: {checks:?}")).grade
}

#[tokio::test]
async fn a_mac_as_it_should_be() {
    let checks = Mac::new().examine().await;
    assert_eq!(checks.len(), 11, "{checks:?}");
    for check in &checks {
        let expected = if check.name == "kernel for Cilium" { Grade::Warning } else { Grade::Ok };
        assert_eq!(check.grade, expected, "{check:?}");
    }
    let machines = checks.iter().find(|check| check.name == "machines").unwrap();
    assert_eq!(machines.finding, "1 of 128 run");
}

#[tokio::test]
async fn a_mac_with_other_things_configured() {
    let mac = Mac::new();
    let mut config = mac.config();
    config.machine.apple.network = "pods".to_owned();
    config.machine.apple.kernel = mac.path("another");
    config.machine.apple.image = mac.path("nowhere.tar");
    config.machine.apple.limit = 8;
    config.machine.apple.socket_directory = mac.path(&"long".repeat(20));
    let checks = examine(&config, &mac.search(), Path::new("/Users/you")).await;
    for name in ["container's network", "machines' kernel", "machines' image", "paths"] {
        assert_eq!(grade(&checks, name), Grade::Problem, "{checks:?}");
    }
    assert_eq!(grade(&checks, "machines"), Grade::Warning);
    config.machine.apple.program = mac.path("nothing");
    let checks = examine(&config, &mac.search(), Path::new("/Users/you")).await;
    assert!(checks[0].finding.contains("nothing, which machine.apple.program names"), "{checks:?}");
}

/// The daemon looks in two places, whatever a shell's search path is.
#[tokio::test]
async fn a_mac_where_only_the_shell_finds_container() {
    let mac = Mac::new();
    let usual = mac.path("nowhere/container");
    let found = look::container(&usual, false, &mac.search()).await;
    assert_eq!(found, Container::Elsewhere(mac.path("container")));
    let check = judge::container(&found);
    assert!(check.grade == Grade::Problem && check.remedy.contains("machine.apple.program"), "{check:?}");
    assert_eq!(look::container(&usual, true, &mac.search()).await, Container::NotThere(usual.clone()));
    assert_eq!(look::container(&usual, false, &[]).await, Container::Missing);
}

#[tokio::test]
async fn a_mac_whose_service_is_down() {
    let mac = Mac::new();
    fs::write(mac.path("container.system.status.fails"), r#"{"appRoot":"","status":"not running"}"#).unwrap();
    let checks = mac.examine().await;
    assert_eq!(grade(&checks, "container's service"), Grade::Problem);
    assert!(checks.iter().all(|check| check.name != "machines"), "{checks:?}");
}

#[tokio::test]
async fn a_mac_with_an_old_container() {
    let mac = Mac::new();
    fs::write(mac.path("container.system.version.fails"), "Error: Unexpected argument").unwrap();
    fs::write(mac.path("container.system.status.fails"), "Error: Unknown option '--format'").unwrap();
    fs::write(mac.path("container.--version"), "container CLI version 0.9.0 (build: release)").unwrap();
    let checks = mac.examine().await;
    assert_eq!(grade(&checks, "container"), Grade::Problem);
    assert_eq!(grade(&checks, "container's service"), Grade::Problem);
}

#[tokio::test]
async fn a_mac_before_26() {
    let mac = Mac::new();
    fs::write(mac.path("container.network.list.fails"), "Error: Unexpected argument 'network'").unwrap();
    fs::remove_file(mac.path("root/kernels/default.kernel-arm64")).unwrap();
    let checks = mac.examine().await;
    assert_eq!(grade(&checks, "container's network"), Grade::Problem);
    assert_eq!(grade(&checks, "routes"), Grade::Ok);
    assert_eq!(grade(&checks, "machines' kernel"), Grade::Problem);
}

#[tokio::test]
async fn a_first_run_goes_through_or_says_where_it_stopped() {
    let mac = Mac::new();
    let socket = mac.path("kina.sock");
    let first = [mac.0.path().to_owned()];
    first_run::run(&first, &search_path(), &socket).await.unwrap();
    let calls = fs::read_to_string(mac.path("calls")).unwrap();
    let step =
        |about: &str| 1 + first_run::STEPS.iter().position(|step| step.about.starts_with(about)).unwrap();
    for call in ["container run --rm", "crictl rmp -f 0123456789abcdef", "kina service uninstall"] {
        assert!(calls.contains(call), "{call}: {calls}");
    }

    // What stays of a pod is seen, whatever else the output ends with.
    let left = "0123456789abcdef0123456789abcdef";
    fs::write(mac.path("container.list.--all"), format!("{left}\n")).unwrap();
    fs::write(mac.path("crictl.rmp.-f"), "Removed sandbox 10\n").unwrap();
    let error = first_run::run(&first, &search_path(), &socket).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("step {} ", step("the pod's end"))), "{error}");
    // The shell of whoever reads it knows no socket.
    assert!(error.contains(&format!("`crictl -r unix://{} rmp -f POD`", socket.display())), "{error}");

    for pods in ["0123  1 second ago  Ready  second", "0123  1 second ago  NotReady  first"] {
        fs::write(mac.path("crictl.pods"), pods).unwrap();
        let error = first_run::run(&first, &search_path(), &socket).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("step {} ", step("a pod:"))), "{error}");
        assert!(error.contains("kina machine ls") && error.contains("what the steps before made"), "{error}");
    }
}

#[test]
fn every_step_of_a_first_run_says_what_it_prints() {
    let list = first_run::list(Path::new("/Users/you/.kina/run/kina.sock"));
    // A shell that has read its head can do all of them.
    for line in [
        "export WORK=$(mktemp -d)",
        "export CONTAINER_RUNTIME_ENDPOINT='unix:///Users/you/.kina/run/kina.sock'",
    ] {
        assert!(list.lines().any(|found| found.trim_start() == format!("$ {line}")), "{list}");
    }
    for step in first_run::STEPS {
        assert!(list.contains(step.about) && list.contains(step.command), "{}", step.about);
        assert!(!step.expected.is_empty() && !step.otherwise.is_empty());
        assert!(!first_run::is_expected(step, ""), "{}: nothing at all is as expected", step.about);
    }
}
