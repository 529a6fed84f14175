//! The store is killed at every step by which it changes its files, and at
//! random moments besides: at least [`KILLS`] times for each operation. Whatever
//! is left then opens, is whole, lists the images from before or from after, and
//! the operation succeeds when it is repeated.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kina_image::{Images, Reference};
use tempfile::TempDir;

use crate::fixtures::{
    Packing, TestImage, TestLayer, blobs_in, copy_tree, layers_in, no_temporary_files, small_image,
};
use crate::registry::{Registry, config};

/// How often each operation is killed at least.
const KILLS: u32 = 50;
/// How many of those at random moments at least.
const RANDOM_KILLS: u32 = 10;

/// What is killed, as an environment variable of the child.
const TASK: &str = "KINA_TEST_KILL_TASK";
const ROOT: &str = "KINA_TEST_KILL_ROOT";
const REGISTRY: &str = "KINA_TEST_KILL_REGISTRY";
/// At which failpoint it dies, counted from one; 0 is never.
const AT: &str = "KINA_TEST_KILL_AT";

static KILL_AT: AtomicU32 = AtomicU32::new(0);
static PASSED: AtomicU32 = AtomicU32::new(0);

fn failpoint(_when: &'static str, step: &'static str) {
    assert!(kina_image::STEPS.contains(&step), "{step}");
    if PASSED.fetch_add(1, Ordering::SeqCst) + 1 == KILL_AT.load(Ordering::SeqCst) {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
    }
}

/// Not a test but the process that is killed; without its variables it is nothing.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let variable = |name: &str| std::env::var(name).unwrap();
    let root = std::path::PathBuf::from(variable(ROOT));
    KILL_AT.store(variable(AT).parse().unwrap(), Ordering::SeqCst);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let task = Task { text: task, registry: variable(REGISTRY) };
        let mut config = config(&root);
        config.plain_http = vec![task.registry.clone()];
        config.failpoint = Some(failpoint);
        task.run(&Images::open(config).await.unwrap()).await;
    });
    std::fs::write(root.with_extension("passed"), PASSED.load(Ordering::SeqCst).to_string()).unwrap();
}

/// An operation on a store.
#[derive(Clone)]
struct Task {
    /// `pull NAME`, `remove NAME`, `import FILE` or `gc`.
    text: String,
    registry: String,
}

impl Task {
    async fn run(&self, store: &Images) {
        let (what, name) = self.text.split_once(' ').unwrap_or((&self.text, ""));
        let name = name.replace("REGISTRY", &self.registry);
        match what {
            "pull" => drop(store.pull(&name.parse::<Reference>().unwrap(), None, None).await.unwrap()),
            "remove" => drop(store.remove(&name).await.unwrap()),
            "import" => {
                drop(store.import(tokio::fs::File::open(&name).await.unwrap(), None).await.unwrap());
            }
            "gc" => drop(store.gc().await.unwrap()),
            other => panic!("no task {other}"),
        }
    }
}

/// Where stores are killed: a `kill -9` does not need a disk, only a file system.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let builder = || tempfile::Builder::new().prefix("kina-kill-").to_owned();
    if memory.is_dir() { builder().tempdir_in(memory) } else { builder().tempdir() }.unwrap()
}

/// What a store lists and has.
type State = (Vec<(String, Vec<String>, Vec<String>)>, Vec<String>, Vec<String>);

fn listed(store: &Images) -> Vec<(String, Vec<String>, Vec<String>)> {
    let images = store.list().into_iter();
    images.map(|image| (image.id.to_string(), image.repo_tags, image.repo_digests)).collect()
}

fn state(store: &Images, root: &Path) -> State {
    (listed(store), blobs_in(root), layers_in(root))
}

struct Killing {
    registry: Registry,
    task: Task,
    directory: TempDir,
    old: Vec<(String, Vec<String>, Vec<String>)>,
    new: OnceLock<State>,
}

impl Killing {
    /// `prepare` makes the store as it is before.
    async fn new(task: &str, registry: Registry, prepare: impl AsyncFnOnce(&Images, &Path, &Path)) -> Self {
        let directory = directory();
        let (work, before) = (directory.path().join("prepared"), directory.path().join("before"));
        std::fs::create_dir(&before).unwrap();
        let store = registry.store(&work).await;
        prepare(&store, &work, &before).await;
        // What is prepared may have copied the store itself, at a moment of its own.
        if std::fs::read_dir(&before).unwrap().next().is_none() {
            copy_tree(&work, &before);
        }
        drop(store);
        let task = Task { text: task.to_owned(), registry: registry.address.clone() };
        let old = {
            let root = directory.path().join("old");
            std::fs::create_dir(&root).unwrap();
            copy_tree(&before, &root);
            listed(&registry.store(&root).await)
        };
        Self { registry, task, directory, old, new: OnceLock::new() }
    }

    fn fresh(&self) -> std::path::PathBuf {
        let root = self.directory.path().join("store");
        drop(std::fs::remove_dir_all(&root));
        std::fs::create_dir(&root).unwrap();
        copy_tree(&self.directory.path().join("before"), &root);
        root
    }

    fn start(&self, root: &Path, at: u32) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["kill::child", "--exact", "--nocapture", "--test-threads=1"])
            .env(TASK, &self.task.text)
            .env(ROOT, root)
            .env(REGISTRY, &self.registry.address)
            .env(AT, at.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    async fn ended(&self, mut child: Child) -> ExitStatus {
        tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap()
    }

    /// What must hold of a store whose process has ended somehow.
    async fn check(&self, root: &Path, when: &str) {
        let store = self.registry.store(root).await;
        assert!(no_temporary_files(root), "{when}");
        let report = store.verify(&[], false, None).await.unwrap();
        assert!(report.findings.is_empty(), "{when}: {report:?}");
        let found = listed(&store);
        let new = self.new.get();
        assert!(found == self.old || new.is_none_or(|new| found == new.0), "{when}: {found:?}");
        assert!(store.list().iter().all(|image| image.complete), "{when}");
        self.task.run(&store).await;
        store.gc().await.unwrap();
        let after = state(&store, root);
        assert_eq!(after, *self.new.get_or_init(|| after.clone()), "{when}");
        let report = store.verify(&[], false, None).await.unwrap();
        assert!(report.findings.is_empty() && report.unreferenced.is_empty(), "{when}: {report:?}");
        assert!(no_temporary_files(root), "{when}");
    }

    async fn run(self) {
        // Once without being killed: how many failpoints there are, and how long it takes.
        let root = self.fresh();
        let begun = Instant::now();
        let status = self.ended(self.start(&root, 0)).await;
        let whole = begun.elapsed();
        assert!(status.success(), "{status}");
        let passed: u32 = std::fs::read_to_string(root.with_extension("passed")).unwrap().parse().unwrap();
        self.check(&root, "not killed").await;
        for at in 1..=passed {
            let root = self.fresh();
            let status = self.ended(self.start(&root, at)).await;
            assert_eq!(status.signal(), Some(9), "at {at} of {passed}: {status}");
            self.check(&root, &format!("at {at} of {passed}")).await;
        }
        let (mut random, mut kills) = (0, passed);
        let mut seed = 0x2545_f491_u64;
        while random < RANDOM_KILLS || kills < KILLS {
            let root = self.fresh();
            let mut child = self.start(&root, 0);
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            tokio::time::sleep(whole.mul_f64((seed >> 40) as f64 / f64::from(1 << 24))).await;
            child.kill().unwrap();
            let status = self.ended(child).await;
            self.check(&root, &format!("random kill {random}")).await;
            // One that came too late is none.
            kills += u32::from(status.signal() == Some(9));
            random += 1;
            assert!(random < 10 * KILLS, "most kills come too late");
        }
        assert!(kills >= KILLS && whole < Duration::from_secs(30), "{kills} kills");
    }
}

/// Two images that share a layer; one of their layers takes several writes.
fn images() -> (TestImage, TestImage) {
    let shared = TestLayer::noise("shared", 150_000);
    let one = TestImage::new(vec![shared.clone(), TestLayer::new("one", b"1", Packing::Zstd)]);
    let two = TestImage::new(vec![shared, TestLayer::new("two", b"2", Packing::Gzip)]);
    (one, two)
}

async fn registry() -> Registry {
    let registry = Registry::start().await;
    let (one, two) = images();
    registry.serve_image("one", "v1", &one);
    registry.serve_image("two", "v1", &two);
    registry
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls() {
    let registry = registry().await;
    let other = registry.reference("one:v1");
    let prepare = async |store: &Images, _: &Path, _: &Path| {
        store.pull(&other, None, None).await.unwrap();
    };
    Killing::new("pull REGISTRY/two:v1", registry, prepare).await.run().await;
}

/// The layers' blobs are here, their images are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unpacking() {
    let registry = registry().await;
    let name = registry.reference("two:v1");
    let prepare = async |store: &Images, work: &Path, before: &Path| {
        store.pull(&name, None, None).await.unwrap();
        // As a pull leaves it that is killed after its transfers.
        copy_tree(work, before);
        std::fs::remove_file(before.join("oci/index.json")).unwrap();
        std::fs::remove_dir_all(before.join("layers")).unwrap();
    };
    Killing::new("pull REGISTRY/two:v1", registry, prepare).await.run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removals() {
    let registry = registry().await;
    let names = [registry.reference("one:v1"), registry.reference("two:v1")];
    let prepare = async |store: &Images, _: &Path, _: &Path| {
        for name in &names {
            store.pull(name, None, None).await.unwrap();
        }
    };
    Killing::new("remove REGISTRY/two:v1", registry, prepare).await.run().await;
}

/// Collected are an image that was removed while it was in use, files of pulls
/// that failed, and temporary files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collections() {
    let registry = registry().await;
    let names = [registry.reference("one:v1"), registry.reference("two:v1")];
    let prepare = async |store: &Images, work: &Path, before: &Path| {
        for name in &names {
            store.pull(name, None, None).await.unwrap();
        }
        let lease = store.lease(&images().1.id()).unwrap();
        store.remove(lease.image().id.as_str()).await.unwrap();
        copy_tree(work, before);
        for number in 0..3 {
            let digit = number.to_string();
            std::fs::write(before.join(format!("layers/{}.erofs", digit.repeat(64))), "orphan").unwrap();
            std::fs::write(before.join(format!("oci/blobs/sha256/{}", digit.repeat(64))), "orphan").unwrap();
            for directory in ["oci", "oci/blobs/sha256", "layers"] {
                std::fs::write(before.join(directory).join(format!(".incoming-1-{number}")), "half").unwrap();
            }
        }
    };
    Killing::new("gc", registry, prepare).await.run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imports() {
    let registry = registry().await;
    let archives = directory();
    let archive = archives.path().join("two.tar");
    let (name, other) = (registry.reference("two:v1"), small_image("other"));
    registry.serve_image("other", "v1", &other);
    let other = registry.reference("other:v1");
    {
        let root = archives.path().join("store");
        let store = registry.store(&root).await;
        store.pull(&name, None, None).await.unwrap();
        let out = tokio::fs::File::create(&archive).await.unwrap();
        store.export(&name.to_string(), out).await.unwrap();
    }
    let prepare = async |store: &Images, _: &Path, _: &Path| {
        store.pull(&other, None, None).await.unwrap();
    };
    Killing::new(&format!("import {}", archive.display()), registry, prepare).await.run().await;
}
