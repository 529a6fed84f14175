//! Logs in the CRI's format.

use crate::harness::machine::{also_in_apple, also_in_vm};
use crate::harness::{Daemon, output, script};

/// Bytes of a line after which it is divided.
const PIECE: usize = 16 << 10;

#[tokio::test]
async fn lines_streams_and_pieces() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let print =
        "echo out; echo err >&2; echo; head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'no newline'";
    let (status, _) = cri.run_to_end(&pod, script("one", print)).await;
    assert_eq!(status.log_path, daemon.place.logs("p").join("one.log").to_str().unwrap());
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    let mut last = String::new();
    let mut printed = Vec::new();
    for line in log.split_terminator('\n') {
        let (time, rest) = line.split_once(' ').unwrap();
        // RFC 3339 with nanoseconds: fixed width, so that texts sort as times do.
        assert!(time.len() >= 30 && time.as_bytes()[10] == b'T' && time.as_bytes()[19] == b'.', "{time}");
        let (stream, rest) = rest.split_once(' ').unwrap();
        let (tag, content) = rest.split_once(' ').unwrap();
        if stream == "stdout" {
            assert!(last.as_str() <= time, "{last} {time}");
            last = time.to_owned();
        }
        assert!(content.len() <= PIECE, "{}", content.len());
        printed.push((stream, tag, content));
    }
    let of = |stream: &str| -> Vec<(&str, &str)> {
        let lines = printed.iter().filter(|line| line.0 == stream);
        lines.map(|(_, tag, content)| (*tag, *content)).collect()
    };
    assert_eq!(of("stderr"), [("F", "err")]);
    let out = of("stdout");
    assert_eq!(out[..2], [("F", "out"), ("F", "")]);
    let long: Vec<&(&str, &str)> = out[2..].iter().filter(|(_, content)| content.starts_with('x')).collect();
    assert!(long.len() >= 3 && long[..long.len() - 1].iter().all(|(tag, _)| *tag == "P"), "{}", long.len());
    assert_eq!(long.iter().map(|(_, content)| content.len()).sum::<usize>(), 40_000);
    assert_eq!(long.last().unwrap().0, "F");
    assert_eq!(out.last().unwrap().1, "no newline");
    let text = output(
        &log.lines()
            .filter(|line| line.contains(" stdout "))
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
    );
    assert!(text.starts_with("out\n\nxxx") && text.trim_end_matches('\n').ends_with("\nno newline"));
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn a_container_without_a_log() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let mut config = cri.pod("p");
    config.log_directory = String::new();
    let pod = cri.run_pod(&config).await.unwrap();
    let id = cri.run(&pod, script("one", "head -c 1000000 /dev/zero; exit 3")).await;
    let status = cri.wait_exit(&id).await;
    assert_eq!((status.exit_code, status.log_path.as_str()), (3, ""));
    daemon.leave_nothing().await;
}

also_in_vm! {
    lines_streams_and_pieces,
}

also_in_apple! {
    lines_streams_and_pieces,
}
