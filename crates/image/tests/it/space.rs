//! File systems that are full, or that cannot be written to.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};

use kina_image::{Error, Images};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::fixtures::{TestImage, TestLayer, no_temporary_files, small_image};
use crate::registry::{Registry, Reply};

/// A file system of its own in memory, for as long as this lives.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    fn new(options: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        mount("kina-test", directory.path(), "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn root(&self) -> PathBuf {
        self.path().join("images")
    }

    fn readonly(&self, readonly: bool) {
        let flags = if readonly { MountFlags::RDONLY } else { MountFlags::empty() };
        mount_remount(self.path(), flags, "").unwrap();
    }

    /// Leaves this many bytes free.
    fn fill(&self, left: u64) {
        let found = rustix::fs::statvfs(self.path()).unwrap();
        let free = found.f_bavail * found.f_frsize;
        fs::write(self.path().join("ballast"), vec![1; (free - left) as usize]).unwrap();
    }

    fn make_room(&self) {
        fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

fn text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// What is here is whole, and nothing else is.
async fn is_good(store: &Images, root: &Path, images: usize) {
    assert!(no_temporary_files(root));
    let report = store.verify(&[], false, None).await.unwrap();
    assert_eq!(
        (report.images, report.findings.len(), report.unreferenced.len()),
        (images, 0, 0),
        "{report:?}"
    );
}

/// The disk fills while blobs, layer images and records are written: at every
/// amount of room from none to enough.
#[tokio::test]
async fn a_full_disk_fails_a_pull_and_nothing_else() {
    const STEP: u64 = 16 << 10;
    let registry = Registry::start().await;
    let layers = vec![TestLayer::noise("a", 60_000), TestLayer::noise("b", 40_000)];
    registry.serve_image("app", "v1", &TestImage::new(layers));
    registry.serve_image("here", "v1", &small_image("here"));
    let disk = SmallDisk::new("size=4m");
    let mut config = registry.config(&disk.root());
    // One after the other: a layer that is written when another one fails is
    // given up at its next write, which would have to be waited for.
    config.max_concurrent_layers = 1;
    let store = Images::open(config).await.unwrap();
    let here = store.pull(&registry.reference("here:v1"), None, None).await.unwrap();
    let wanted = registry.reference("app:v1");
    let mut operations = std::collections::BTreeSet::new();
    let mut left = 0;
    loop {
        disk.fill(left);
        let result = store.pull(&wanted, None, None).await;
        let Err(error) = result else { break };
        let said = text(&error);
        let Error::NoSpace { operation, path, .. } = &error else { panic!("{said}") };
        assert!(path.starts_with(disk.root()), "{said}");
        assert!(said.contains("no space left to") && said.contains("bytes and"), "{said}");
        operations.insert((*operation, path.parent().unwrap().file_name().unwrap().to_owned()));
        is_good(&store, &disk.root(), 1).await;
        assert_eq!(store.list(), std::slice::from_ref(&here));
        // What is here is of use: it can be leased and removed names can be read.
        assert!(store.lease(&here.id).is_some());
        disk.make_room();
        left += STEP;
        assert!(left < 4 << 20, "it never fits");
    }
    disk.make_room();
    // It failed before the transfer, in blobs, in layer images and at the records.
    assert!(operations.len() >= 3, "{operations:?}");
    assert!(operations.iter().any(|(operation, _)| *operation == "fetch layers into"), "{operations:?}");
    assert!(operations.iter().any(|(_, directory)| directory == "layers"), "{operations:?}");
    assert_eq!(store.list().len(), 2);
    // A removal works on a full disk, or fails and can be repeated.
    disk.fill(0);
    if store.remove(&wanted.to_string()).await.is_err() {
        is_good(&store, &disk.root(), 2).await;
    }
    disk.make_room();
    store.remove(&wanted.to_string()).await.unwrap();
    store.pull(&wanted, None, None).await.unwrap();
    is_good(&store, &disk.root(), 2).await;
}

#[tokio::test]
async fn no_more_files() {
    let registry = Registry::start().await;
    registry.serve_image("app", "v1", &small_image("x"));
    let disk = SmallDisk::new("size=4m,nr_inodes=24");
    let store = registry.store(&disk.root()).await;
    let wanted = registry.reference("app:v1");
    let mut ballast = Vec::new();
    while let Ok(path) = {
        let path = disk.path().join(ballast.len().to_string());
        fs::write(&path, "").map(|()| path)
    } {
        ballast.push(path);
    }
    // Room for no file, for one, and so on.
    loop {
        match store.pull(&wanted, None, None).await {
            Ok(_) => break,
            Err(error) => {
                assert!(matches!(error, Error::NoSpace { free_bytes: 1.., .. }), "{}", text(&error));
                is_good(&store, &disk.root(), 0).await;
            }
        }
        fs::remove_file(ballast.pop().unwrap()).unwrap();
    }
    is_good(&store, &disk.root(), 1).await;
}

#[tokio::test]
async fn a_readonly_file_system() {
    let registry = Registry::start().await;
    registry.serve_image("app", "v1", &small_image("x"));
    registry.serve_image("here", "v1", &small_image("here"));
    let disk = SmallDisk::new("size=4m");
    let store = registry.store(&disk.root()).await;
    let image = store.pull(&registry.reference("here:v1"), None, None).await.unwrap();
    drop(store);
    disk.readonly(true);
    let error = Images::open(registry.config(&disk.root())).await.err().unwrap();
    assert!(text(&error).contains("Read-only file system"), "{}", text(&error));
    assert!(text(&error).contains(&*disk.root().to_string_lossy()), "{}", text(&error));
    disk.readonly(false);
    let store = registry.store(&disk.root()).await;
    assert_eq!(store.list(), [image]);
    store.pull(&registry.reference("app:v1"), None, None).await.unwrap();
    is_good(&store, &disk.root(), 2).await;
}

/// A pull that fails for another reason than the disk keeps the layers it has.
#[tokio::test]
async fn other_failures_keep_what_came() {
    let registry = Registry::start().await;
    let test = TestImage::new(vec![TestLayer::noise("a", 9_000), TestLayer::noise("b", 8_000)]);
    registry.serve_image("app", "v1", &test);
    registry.route(&crate::registry::blob_path("app", &test.blobs[2]), Reply::status(404));
    let root = tempfile::tempdir().unwrap();
    let mut config = registry.config(root.path());
    config.max_concurrent_layers = 1;
    let store = Images::open(config).await.unwrap();
    store.pull(&registry.reference("app:v1"), None, None).await.unwrap_err();
    let report = store.verify(&[], false, None).await.unwrap();
    assert_eq!(report.unreferenced.len(), 2);
    // They stay for an hour, if that is asked for.
    let hour = std::time::Duration::from_secs(3600);
    assert_eq!(store.gc_older(hour).await.unwrap().inodes, 0);
    let freed = store.gc().await.unwrap();
    assert_eq!(freed.inodes, 2);
    assert!(freed.bytes >= 9_000, "{freed:?}");
}
