//! Where the time of a boot goes: `cargo bench -p kina-machine-qemu --bench boot
//! [-- kvm] [RUNS]`, after `cargo xtask setup test` and `cargo xtask guest`.
//!
//! Each row is what passed since the row before: on the clock, and of the
//! processor's time that QEMU took, which other work on the host lengthens less.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kina_machine_qemu::Accelerator;
use kina_machine_qemu::boot::CommandLine;
use kina_testkit::vm::Prerequisites;

/// What the console shows when a stage begins.
const STAGES: &[(&str, &str)] = &[
    ("Linux version", "QEMU, firmware, the kernel's way to its first line"),
    ("Run /init", "kernel"),
    ("NET: Registered PF_VSOCK", "init: file systems, devices' modules"),
    ("loop: module loaded", "init: channel, share, disk, network"),
    ("listens on", "init: layers, new root; the guest comes up"),
];
const END: &str = "kina-guest: probe: ";

/// Time on the clock and of the processor.
#[derive(Clone, Copy, Default)]
struct Spent {
    clock: Duration,
    processor: Duration,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let kvm = arguments.iter().any(|argument| argument == "kvm");
    let accelerator = if kvm { Accelerator::Kvm } else { Accelerator::Tcg };
    let runs = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(5);
    let prerequisites = Prerequisites::find().unwrap();
    let begin = Instant::now();
    let files = prerequisites.boot_files().unwrap();
    println!("boot files there after {:.3} s", begin.elapsed().as_secs_f64());

    let mut boots: Vec<Vec<Spent>> = Vec::new();
    for _ in 0..runs {
        let line = CommandLine::new(accelerator).verbose().pod("bench").probe().build().unwrap();
        let begin = Instant::now();
        let mut qemu = Command::new(&prerequisites.qemu)
            .args(["-machine", &accelerator.machine(), "-cpu", accelerator.cpu(), "-smp", "1", "-m", "256M"])
            .args(["-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(&files.kernel)
            .arg("-initrd")
            .arg(&files.initramfs)
            .args(["-append", &line])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut passed = vec![Spent::default(); STAGES.len()];
        for line in BufReader::new(qemu.stdout.take().unwrap()).split(b'\n') {
            let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
            let spent = Spent { clock: begin.elapsed(), processor: processor_time(qemu.id()) };
            if let Some(index) = STAGES.iter().position(|(words, _)| line.contains(words)) {
                passed[index] = spent;
            }
            if let Some((_, report)) = line.split_once(END) {
                println!("{report}");
            }
        }
        assert!(qemu.wait().unwrap().success());
        boots.push(passed);
    }

    println!("\n| stage | clock, ms | processor, ms |\n|---|---|---|");
    let median = |of: &dyn Fn(&Vec<Spent>) -> Duration| {
        let mut all: Vec<Duration> = boots.iter().map(of).collect();
        all.sort();
        all[all.len() / 2].as_millis()
    };
    for (index, (_, what)) in STAGES.iter().enumerate() {
        let before = |boot: &Vec<Spent>| index.checked_sub(1).map_or(Spent::default(), |index| boot[index]);
        let clock = median(&|boot| boot[index].clock.saturating_sub(before(boot).clock));
        let processor = median(&|boot| boot[index].processor.saturating_sub(before(boot).processor));
        println!("| {what} | {clock} | {processor} |");
    }
    let last = STAGES.len() - 1;
    let clock = median(&|boot| boot[last].clock - boot[1].clock);
    let processor = median(&|boot| boot[last].processor - boot[1].processor);
    println!("| `Run /init` to the guest | {clock} | {processor} |");
    println!("| all | {} | {} |", median(&|boot| boot[last].clock), median(&|boot| boot[last].processor));
}

/// What all threads of a process have run: the first field of `schedstat`.
fn processor_time(pid: u32) -> Duration {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Duration::ZERO;
    };
    let nanoseconds = threads.filter_map(Result::ok).filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}
