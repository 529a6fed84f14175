//! Many pods of one image.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use futures::StreamExt as _;

use crate::harness::{Cri, Daemon, descriptors, memory_kib, script, shell, wait_until};

const PODS: usize = 100;
const AT_ONCE: usize = 8;

/// Mounted layers of a daemon.
fn layers(daemon: &Daemon) -> usize {
    let directory = daemon.place.config().run.join("layers");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    points.filter(|point| point.parent() == Some(&directory)).count()
}

/// Bytes of files below a directory that are in the page cache.
fn cached(directory: &Path) -> u64 {
    let mut files = BTreeMap::new();
    collect(directory, &mut files);
    // fincore(1) maps each file and asks mincore(2).
    let mut command = Command::new("fincore");
    command.args(["--bytes", "--noheadings", "--output", "RES"]).args(files.values());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().parse::<u64>().unwrap()).sum()
}

/// Files by what they are: a file with many names has its pages once.
fn collect(directory: &Path, found: &mut BTreeMap<(u64, u64), PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            collect(&entry.path(), found);
        } else if metadata.len() > 0 {
            found.insert((metadata.dev(), metadata.ino()), entry.path());
        }
    }
}

async fn make(cri: &Cri, number: usize) -> (String, String) {
    let pod = cri.make_pod(&format!("p{number}")).await;
    // Reads all of the image.
    let container = cri.run(&pod, script("one", "cat /bin/* > /dev/null; echo up; exec sleep 1000")).await;
    cri.wait_output(&container, "up").await;
    (pod, container)
}

#[tokio::test]
async fn a_hundred_pods_of_one_image() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    // The first makes what is made once: threads, buffers, the layer's mount.
    let (pod, _) = make(&cri, PODS).await;
    let layer = cached(&daemon.place.config().run.join("layers"));
    let images_before = cached(&daemon.place.config().root.join("images"));
    assert!(layer > 1 << 20, "{layer}");
    cri.stop_pod(&pod).await.unwrap();
    cri.remove_pod(&pod).await.unwrap();
    let pid = daemon.pid();
    let (idle_memory, idle_descriptors) = (memory_kib(pid, "VmRSS"), descriptors(pid));

    let begin = std::time::Instant::now();
    let pods: Vec<(String, String)> =
        futures::stream::iter(0..PODS).map(|number| make(&cri, number)).buffered(AT_ONCE).collect().await;
    let made = begin.elapsed();
    assert_eq!(cri.pods(None).await.len(), PODS);
    assert_eq!(layers(&daemon), 1);
    let shared = cached(&daemon.place.config().run.join("layers"));
    assert!(shared <= layer + (64 << 10), "{layer} bytes for one pod, {shared} for {PODS}");
    // The image's file is not read through the page cache as well.
    let images = cached(&daemon.place.config().root.join("images"));
    assert!(images <= images_before, "{images_before} {images}");
    let (full_memory, full_descriptors) = (memory_kib(pid, "VmRSS"), descriptors(pid));
    // All of them work.
    for (_, container) in pods.iter().step_by(10) {
        assert_eq!(cri.exec(container, shell("exit 4"), 60).await.unwrap().exit_code, 4);
    }

    let begin = std::time::Instant::now();
    futures::stream::iter(&pods)
        .for_each_concurrent(AT_ONCE, async |(pod, _)| {
            cri.stop_pod(pod).await.unwrap();
            cri.remove_pod(pod).await.unwrap();
        })
        .await;
    let removed = begin.elapsed();
    wait_until("the descriptors of the pods to be closed", async || descriptors(pid) <= idle_descriptors)
        .await;
    wait_until("the layer to be unmounted", async || layers(&daemon) == 0).await;
    println!(
        "{PODS} pods made in {made:.1?}, removed in {removed:.1?}\n\
         resident KiB: {idle_memory} idle, {full_memory} with all, {} after\n\
         descriptors: {idle_descriptors} idle, {full_descriptors} with all, {} after\n\
         page cache bytes: layer {shared}, image files {images}",
        memory_kib(pid, "VmRSS"),
        descriptors(pid),
    );
    daemon.leave_nothing().await;
}
