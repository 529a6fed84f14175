//! What a guest costs. Figures, not bounds: run by hand, with the program that is shipped in
//! KINA_GUEST_PROGRAM, as `cargo test -p kina-guest --test measure -- --ignored --nocapture`.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use support::{Guest, PATIENCE};

const ROUNDS: usize = 20;

fn pss_kib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

#[tokio::test]
#[ignore = "prints figures"]
async fn cost() {
    let program = std::env::var_os("KINA_GUEST_PROGRAM")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_kina-guest")), PathBuf::from);
    let mut guests = Vec::new();
    let mut times: [Vec<Duration>; 5] = Default::default();
    for _ in 0..ROUNDS {
        let guest = Guest::start_program(&program).await;
        times[0].push(guest.hello_after);
        let mut timed = async |which: usize, begin: Instant| times[which].push(begin.elapsed());
        let begin = Instant::now();
        guest.client.setup_pod(guest.pod()).await.unwrap();
        timed(1, begin).await;
        let request = guest.container("c", "sleep 1000");
        let begin = Instant::now();
        guest.create(request).await;
        timed(2, begin).await;
        let begin = Instant::now();
        guest.start_container("c").await;
        timed(3, begin).await;
        let begin = Instant::now();
        let args = vec!["/bin/true".to_owned()];
        guest.client.exec_sync("c", args, Some(PATIENCE), 1).await.unwrap();
        timed(4, begin).await;
        guests.push(guest);
    }
    // Idle: the blocking threads have ended.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let pss: Vec<u64> = guests.iter().map(|guest| pss_kib(guest.process.id())).collect();
    println!("bytes of the program: {}", std::fs::metadata(&program).unwrap().len());
    println!("Pss of an idle guest of {ROUNDS}, KiB: {pss:?}");
    let names = ["start to Hello", "SetupPod", "CreateContainer", "StartContainer", "Exec to its end"];
    for (name, times) in names.into_iter().zip(times) {
        println!("{name}: median {:.2} ms", median(times));
    }
}
