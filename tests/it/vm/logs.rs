//! The daemon writes a machine's logs: nothing is lost or doubled when it dies.

use crate::harness::{Daemon, Options, machine, output, script, wait_until};

const LINES: usize = 600;

#[tokio::test]
async fn kills_and_rotations() {
    machine::use_vm();
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let count =
        format!("i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; usleep 10000; done; echo end");
    let counter = cri.run(&pod, script("counter", &count)).await;
    let log = daemon.place.logs("p").join("counter.log");
    let rotated = |number: u32| log.with_extension(format!("log.{number}"));
    let lines = |path: &std::path::Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
    for number in 1..=2 {
        wait_until("some lines", async || lines(&log) >= 40).await;
        daemon.kill9().await;
        daemon.start_again(Options::default()).await;
        std::fs::rename(&log, rotated(number)).unwrap();
        daemon.cri().reopen_log(&counter).await.unwrap();
        assert!(log.exists());
    }
    let status = daemon.cri().wait_exit(&counter).await;
    assert_eq!(status.exit_code, 0);
    let parts: Vec<String> = (1..=2)
        .map(rotated)
        .chain([log.clone()])
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let text: String = parts.iter().map(|part| output(part)).collect();
    let expected: Vec<String> =
        (1..=LINES).map(|number| format!("line {number}")).chain(["end".to_owned()]).collect();
    let found: Vec<&str> = text.lines().collect();
    assert!(found == expected, "{} lines instead of {}", found.len(), expected.len());
    daemon.leave_nothing().await;
}
