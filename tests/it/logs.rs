//! No line is lost or doubled, whatever happens to the daemon and the files.

use crate::harness::machine::{self, also_in_apple, also_in_vm};
use crate::harness::{Daemon, Options, output, script, wait_until};

/// Lines that are printed, and the pause after each in microseconds: an emulated
/// machine prints fewer.
fn amount() -> (usize, usize) {
    if machine::is_vm() { (600, 10_000) } else { (2000, 4000) }
}

/// On the node the guest writes the logs itself. A machine's are written by the daemon,
/// and caught up with by the next one.
#[tokio::test]
async fn kills_and_rotations() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let (number_of_lines, pause) = amount();
    let count = format!(
        "i=0; while [ $i -lt {number_of_lines} ]; do i=$((i+1)); echo line $i; usleep {pause}; done; echo end"
    );
    let counter = cri.run(&pod, script("counter", &count)).await;
    let log = daemon.place.logs("p").join("counter.log");
    let rotated = |number: u32| log.with_extension(format!("log.{number}"));
    let lines = |path: &std::path::Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
    for number in 1..=3 {
        wait_until("some lines", async || lines(&log) >= 40).await;
        daemon.kill9().await;
        if !machine::is_vm() {
            // The pod does not notice.
            let seen = lines(&log);
            wait_until("lines without a daemon", async || lines(&log) > seen + 20).await;
        }
        daemon.start_again(Options::default()).await;
        std::fs::rename(&log, rotated(number)).unwrap();
        // What is printed between the two goes to the renamed file.
        daemon.cri().reopen_log(&counter).await.unwrap();
        assert!(log.exists());
    }
    let cri = daemon.cri();
    let status = cri.wait_exit(&counter).await;
    assert_eq!(status.exit_code, 0);
    let mut text = String::new();
    for path in (1..=3).map(rotated).chain([log.clone()]) {
        let part = std::fs::read_to_string(&path).unwrap();
        println!("{}: {} lines", path.display(), part.lines().count());
        text.push_str(&output(&part));
    }
    let expected: Vec<String> =
        (1..=number_of_lines).map(|number| format!("line {number}")).chain(["end".to_owned()]).collect();
    let found: Vec<&str> = text.lines().collect();
    assert!(found == expected, "{} lines instead of {}", found.len(), expected.len());
    // Of a container that has ended there is nothing to reopen.
    cri.reopen_log(&counter).await.unwrap_err();
    daemon.leave_nothing().await;
}

also_in_vm! {
    kills_and_rotations,
}

also_in_apple! {
    kills_and_rotations,
}
