//! On which machine a test's pods run.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use kina::config::{Apple, DriverChoice, Machine, Qemu};
use kina_testkit::vm::Prerequisites;
use rustix::process::Signal;

use super::Place;

thread_local! {
    /// The handler of the test on this thread; a test's tasks all run on one.
    static HANDLER: Cell<Option<&'static str>> = const { Cell::new(None) };
    /// Whether its machines are Apple's, simulated.
    static APPLE: Cell<bool> = const { Cell::new(false) };
    /// Whether those have kernels of their own.
    static KERNELS: Cell<bool> = const { Cell::new(false) };
}

/// How long a boot of Apple's takes, unless a test says otherwise.
const BOOT_TIME: Duration = Duration::from_millis(50);

/// What tests run on that say nothing else: a handler, or `apple`.
const HANDLER_VARIABLE: &str = "KINA_IT_HANDLER";

/// The runtime handler that the test asks for: that of its machine, else
/// `KINA_IT_HANDLER` (`apple` is `vm` with Apple's machines), else `shared`.
pub(crate) fn handler() -> String {
    match HANDLER.get() {
        Some(handler) => handler.to_owned(),
        None if is_apple() => "vm".to_owned(),
        None => std::env::var(HANDLER_VARIABLE).unwrap_or_else(|_| "shared".to_owned()),
    }
}

/// Whether the test's pods run in virtual machines.
pub(crate) fn is_vm() -> bool {
    handler() == "vm"
}

/// Runs a test with its pods in virtual machines.
pub(crate) fn run_in_vm(test: fn()) {
    HANDLER.set(Some("vm"));
    test();
    HANDLER.set(None);
}

/// Declares tests of this module a second time, with their pods in virtual
/// machines: `vm::NAME` beside `NAME`.
macro_rules! also_in_vm {
    ($($test:ident),+ $(,)?) => {
        mod vm {
            $(
                #[test]
                fn $test() {
                    crate::harness::machine::run_in_vm(super::$test);
                }
            )+
        }
    };
}

pub(crate) use also_in_vm;

/// Runs a test with its pods in machines of Apple's, which are simulated.
pub(crate) fn run_in_apple(test: fn()) {
    APPLE.set(true);
    run_in_vm(test);
    APPLE.set(false);
}

/// Declares tests of this module once more, with their pods in machines of Apple's:
/// `apple::NAME` beside `NAME`.
macro_rules! also_in_apple {
    ($($test:ident),+ $(,)?) => {
        mod apple {
            $(
                #[test]
                fn $test() {
                    crate::harness::machine::run_in_apple(super::$test);
                }
            )+
        }
    };
}

pub(crate) use also_in_apple;

/// Whether the test's machines are Apple's.
pub(crate) fn is_apple() -> bool {
    APPLE.get() || std::env::var(HANDLER_VARIABLE).is_ok_and(|handler| handler == "apple")
}

/// Has this test's pods run in machines of Apple's.
pub(crate) fn use_apple() {
    APPLE.set(true);
}

/// Has this test's pods run in machines of Apple's with kernels of their own.
pub(crate) fn use_apple_with_kernels() {
    APPLE.set(true);
    KERNELS.set(true);
}

/// Has this test's pods run in virtual machines.
pub(crate) fn use_vm() {
    HANDLER.set(Some("vm"));
}

/// The `[machine]` of a daemon in that directory. Machines are emulated: that
/// works everywhere.
pub(super) fn configuration(directory: &Path) -> Machine {
    let qemu = if is_apple() {
        Qemu { enabled: false, ..Qemu::default() }
    } else if is_vm() {
        let found = Prerequisites::find().unwrap();
        Qemu {
            accelerator: kina_machine_qemu::Choice::Tcg,
            kernel: found.kernel,
            kernel_modules: found.modules,
            virtiofsd: found.virtiofsd,
            vsock: found.vsock_device,
            ..Qemu::default()
        }
    } else {
        Qemu { enabled: false, ..Qemu::default() }
    };
    Machine {
        kubelet_root: directory.join("kubelet"),
        share_roots: vec![directory.join("data"), directory.join("shared")],
        memory_mib: 256,
        driver: if is_apple() { DriverChoice::Apple } else { DriverChoice::Qemu },
        qemu,
        apple: simulated(directory),
        ..Machine::default()
    }
}

/// The simulator of Apple's `container`, as cargo builds it beside `kina`.
pub(crate) fn simulator() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_kina")).with_file_name("container");
    assert!(program.is_file(), "no {}; `cargo build -p kina-apple-sim` builds it", program.display());
    program
}

/// Where the simulator of a daemon in that directory keeps everything.
fn simulator_root(directory: &Path) -> PathBuf {
    directory.join("apple")
}

fn simulated(directory: &Path) -> Apple {
    if !is_apple() {
        return Apple::default();
    }
    let root = simulator_root(directory).display().to_string();
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest/kina-pod.tar");
    assert!(image.is_file(), "no {}; `cargo xtask pod-image` makes it", image.display());
    Apple {
        program: simulator(),
        environment: [("CONTAINER_APP_ROOT".to_owned(), root)].into(),
        image,
        ..Apple::default()
    }
}

fn simulate(directory: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(simulator());
    command.args(words).env("CONTAINER_APP_ROOT", simulator_root(directory)).stdin(Stdio::null());
    command.output().unwrap()
}

/// Starts Apple's service for a daemon in that directory.
pub(super) fn start_simulator(directory: &Path) {
    set_simulator(directory, BOOT_TIME, &[]);
    start_service_in(directory);
}

fn start_service_in(directory: &Path) {
    let output = simulate(directory, &["system", "start", "--enable-kernel-install"]);
    assert!(output.status.success(), "{output:?}");
}

/// Ends it, with all machines, if there is one.
pub(super) fn end_simulator(directory: &Path) {
    if simulator_root(directory).exists() {
        let output = simulate(directory, &["simulator", "sweep"]);
        if !output.status.success() {
            eprintln!("the simulator does not end: {output:?}");
        }
    }
}

/// The names of the containers that there are.
pub(crate) fn simulated_containers(place: &Place) -> Vec<String> {
    let output = simulate(&place.path(""), &["list", "--all", "--quiet"]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The process of Apple's service.
pub(crate) fn service(place: &Place) -> u32 {
    let pid = std::fs::read_to_string(simulator_root(&place.path("")).join("apiserver/pid")).unwrap();
    pid.split_whitespace().next().unwrap().parse().unwrap()
}

/// Starts Apple's service again.
pub(crate) fn start_service(place: &Place) {
    start_service_in(&place.path(""));
}

/// What goes wrong with Apple's `container` from now on.
pub(crate) fn set_traps(place: &Place, traps: &[&str]) {
    set_simulator(&place.path(""), BOOT_TIME, traps);
}

/// How long a boot takes from now on.
pub(crate) fn set_boot_time(place: &Place, time: Duration) {
    set_simulator(&place.path(""), time, &[]);
}

/// Settings of the simulator, beside the tests' own.
pub(crate) fn set(place: &Place, mut settings: serde_json::Value) {
    settings["boot-ms"] = u64::try_from(BOOT_TIME.as_millis()).unwrap().into();
    write_settings(&place.path(""), settings);
}

fn set_simulator(directory: &Path, boot: Duration, traps: &[&str]) {
    write_settings(directory, serde_json::json!({ "boot-ms": boot.as_millis(), "traps": traps }));
}

fn write_settings(directory: &Path, mut settings: serde_json::Value) {
    if KERNELS.get() {
        settings["kind"] = "microvm".into();
        settings["programs"] = Prerequisites::find().unwrap().simulator_programs();
    }
    let root = simulator_root(directory);
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("new"), settings.to_string()).unwrap();
    std::fs::rename(root.join("new"), root.join("simulator.json")).unwrap();
}

/// Has this computer crash, as far as Apple's machines go: all of them, and the service.
pub(crate) fn crash(place: &Place) {
    for container in simulated_containers(place) {
        simulator_does(place, &["crash", "helper", &container]);
    }
    simulator_does(place, &["crash", "server"]);
}

fn simulator_does(place: &Place, words: &[&str]) {
    let output = simulate(&place.path(""), &[&["simulator"], words].concat());
    assert!(output.status.success(), "{words:?}: {output:?}");
}

/// A part of the name of the control group that a pod's processes are in: of the machine's,
/// if that is simulated, else of what the pod has on the node.
pub(super) fn group(cgroup_parent: &str, pod: &str) -> String {
    if is_apple() { format!("-kina-{pod}") } else { format!("{cgroup_parent}/kina-{pod}") }
}

/// Whether a process on the node is the guest of a simulated machine.
pub(super) fn is_simulated_guest(pid: u32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).any(|word| word == b"--own-kernel")
}

/// How a process on the node is numbered in the machine that it is in, if that is simulated.
pub(super) fn number_inside(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().nth(1)?.parse().ok()
}

/// Kills the process that is a pod's machine with a kernel of its own.
pub(crate) fn kill_emulator(place: &Place, pod: &str) {
    let output = simulate(&place.path(""), &["simulator", "pid", &format!("kina-{pod}")]);
    assert!(output.status.success(), "{output:?}");
    super::kill(String::from_utf8(output.stdout).unwrap().trim().parse().unwrap(), Signal::KILL);
}

/// Ends a pod's machine behind the daemon's back.
pub(crate) fn stop_machine(place: &Place, pod: &str) {
    let output = simulate(&place.path(""), &["kill", &format!("kina-{pod}")]);
    assert!(output.status.success(), "{output:?}");
}
