//! Machines that come and go.

use std::collections::BTreeMap;

use crate::harness::{Cri, Daemon, descriptors, machine, memory_kib, script};

/// How many there are at a time.
const AT_ONCE: usize = 2;

/// A pod's whole life.
async fn one(cri: &Cri, number: usize) {
    let pod = cri.make_pod(&format!("p{number}")).await;
    let container = cri.run(&pod, script("one", "echo up; sleep 1000")).await;
    cri.wait_output(&container, "up").await;
    assert_eq!(cri.sh(&container, "echo here").await, "here\n");
    cri.stop_pod(&pod).await.unwrap();
    cri.remove_pod(&pod).await.unwrap();
}

/// The medians of what each step took, as the daemon's log has them.
fn steps(log: &str) -> String {
    let mut steps: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for line in log.lines() {
        let found = line.split_once("effect=\"").and_then(|(_, rest)| rest.split_once("\" micros="));
        let Some((step, micros)) = found else { continue };
        if let Some(micros) = micros.split_whitespace().next().and_then(|micros| micros.parse().ok()) {
            steps.entry(step).or_default().push(micros);
        }
    }
    let mut medians: Vec<(u64, String)> = Vec::new();
    for (step, mut micros) in steps {
        micros.sort_unstable();
        let median = micros[micros.len() / 2];
        medians.push((median, format!("| {step} | {}.{} |", median / 1000, median / 100 % 10)));
    }
    medians.sort_by(|one, other| other.cmp(one));
    let rows: Vec<String> = medians.into_iter().map(|(_, row)| row).collect();
    format!("| step | median, ms |\n|---|---|\n{}", rows.join("\n"))
}

/// After each pair nothing is left of it on the node, and at the end the daemon is as it
/// was. `KINA_IT_MACHINES` says how many machines; few without, since each boots.
#[tokio::test]
async fn machines_come_and_go_and_leave_nothing() {
    machine::use_vm();
    let machines: usize = std::env::var("KINA_IT_MACHINES").map_or(4, |text| text.parse().unwrap());
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let state = |pid| (descriptors(pid), memory_kib(pid, "VmRSS"));
    let mut first = None;
    for number in (0..machines).step_by(AT_ONCE) {
        tokio::join!(one(&cri, number), one(&cri, number + 1));
        daemon.place.wait_clean(Some(daemon.pid())).await;
        let (open, memory) = state(daemon.pid());
        println!("after {} machines: {open} descriptors, {memory} KiB", number + AT_ONCE);
        let (open_first, memory_first) = *first.get_or_insert((open, memory));
        assert!(open <= open_first + 4, "{open} descriptors, {open_first} at first");
        assert!(memory <= memory_first + (16 << 10), "{memory} KiB, {memory_first} at first");
    }
    daemon.leave_nothing().await;
    println!("{}", steps(&std::fs::read_to_string(daemon.place.path("daemon.log")).unwrap()));
}
