//! No line is lost or doubled, whatever happens to the daemon and the files.

use crate::harness::{Daemon, Options, output, script, wait_until};

/// About two hundred lines a second.
const COUNT: &str = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; usleep 4000; done; echo end";

#[tokio::test]
async fn kills_and_rotations() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let counter = cri.run(&pod, script("counter", COUNT)).await;
    let log = daemon.place.logs("p").join("counter.log");
    let rotated = |number: u32| log.with_extension(format!("log.{number}"));
    let lines = |path: &std::path::Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
    for number in 1..=3 {
        wait_until("some lines", async || lines(&log) >= 100).await;
        daemon.kill9().await;
        // The pod does not notice.
        let seen = lines(&log);
        wait_until("lines without a daemon", async || lines(&log) > seen + 20).await;
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
        (1..=2000).map(|number| format!("line {number}")).chain(["end".to_owned()]).collect();
    let found: Vec<&str> = text.lines().collect();
    assert!(found == expected, "{} lines instead of {}", found.len(), expected.len());
    // Of a container that has ended there is nothing to reopen.
    cri.reopen_log(&counter).await.unwrap_err();
    daemon.leave_nothing().await;
}
