//! The store as its callers see it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use kina_store::{Batch, Error, MigrateError, Record, SCHEMA_VERSION, Store};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pod {
    name: String,
    restarts: u64,
}

impl Record for Pod {
    const TABLE: &'static str = "pod";
    const VERSION: u32 = 1;
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Image {
    size: u64,
}

impl Record for Image {
    const TABLE: &'static str = "image";
    const VERSION: u32 = 1;
}

/// [`Pod`] two versions later: `name` became `label`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct NewPod {
    label: String,
    restarts: u64,
}

impl Record for NewPod {
    const TABLE: &'static str = "pod";
    const VERSION: u32 = 3;

    fn migrate(from: u32, mut value: serde_json::Value) -> Result<serde_json::Value, MigrateError> {
        if from != 1 {
            return Err(MigrateError::Unsupported { from });
        }
        let fields = value.as_object_mut();
        let name = fields.and_then(|fields| fields.remove("name"));
        value["label"] = name.ok_or(MigrateError::Field { from, field: "name" })?;
        Ok(value)
    }
}

fn pod(name: &str) -> Pod {
    Pod { name: name.to_owned(), restarts: 0 }
}

struct Place {
    _directory: TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    Place { _directory: directory, path }
}

/// The messages of an error and all its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[tokio::test]
async fn records_survive_a_reopen() {
    let place = place();
    {
        let store = Store::open(&place.path).unwrap();
        let pods = store.table::<Pod>();
        assert_eq!(pods.get("a").unwrap(), None);
        assert_eq!(pods.list().unwrap(), []);
        pods.put("b", &pod("second")).await.unwrap();
        pods.put_many([("a", &pod("first")), ("c", &pod("third"))]).await.unwrap();
        pods.delete("b").await.unwrap();
        pods.delete("never there").await.unwrap();
        store.meta_put("boot-id", "1234").await.unwrap();
        assert_eq!(pods.get("a").unwrap(), Some(pod("first")));
    }
    let store = Store::open(&place.path).unwrap();
    let expected = [("a".to_owned(), pod("first")), ("c".to_owned(), pod("third"))];
    assert_eq!(store.table::<Pod>().list().unwrap(), expected);
    assert_eq!(store.table::<Image>().list().unwrap(), []);
    assert_eq!(store.meta_get("boot-id").unwrap().unwrap(), "1234");
    assert_eq!(store.meta_get("other").unwrap(), None);
}

#[test]
fn a_batch_is_all_or_nothing_over_tables() {
    let place = place();
    let store = Store::open(&place.path).unwrap();
    let (pods, images) = (store.table::<Pod>(), store.table::<Image>());
    let mut batch = Batch::new();
    batch.put("p", &pod("p")).unwrap();
    batch.put_new("i", &Image { size: 1 }).unwrap();
    store.commit_blocking(batch.clone()).unwrap();

    // The image is there now, so nothing of this is written.
    batch.put("q", &pod("q")).unwrap();
    match store.commit_blocking(batch) {
        Err(Error::Exists { table, key }) => assert_eq!((table, key.as_str()), ("image", "i")),
        other => panic!("{other:?}"),
    }
    assert_eq!(pods.get("q").unwrap(), None);

    // Within a batch, order counts.
    let mut batch = Batch::new();
    batch.delete::<Image>("i").put_new("i", &Image { size: 2 }).unwrap();
    store.commit_blocking(batch).unwrap();
    assert_eq!(images.get("i").unwrap(), Some(Image { size: 2 }));
    let mut batch = Batch::new();
    batch.put("j", &Image { size: 3 }).unwrap();
    batch.put_new("j", &Image { size: 4 }).unwrap();
    assert!(matches!(store.commit_blocking(batch), Err(Error::Exists { .. })));
    assert_eq!(images.get("j").unwrap(), None);
}

#[test]
fn keys_and_values_are_bounded() {
    let mut batch = Batch::new();
    for key in [String::new(), "k".repeat(kina_store::MAX_KEY + 1)] {
        assert!(matches!(
            batch.put(&key, &pod("p")),
            Err(Error::KeyLength { table: "pod", length }) if length == key.len()
        ));
    }
    assert!(matches!(
        batch.put("k", &pod(&"x".repeat(kina_store::MAX_VALUE))),
        Err(Error::ValueTooLong { .. })
    ));
    assert!(batch.is_empty());
}

#[tokio::test]
async fn older_records_are_migrated_and_newer_ones_refused() {
    let place = place();
    let store = Store::open(&place.path).unwrap();
    store.table::<Pod>().put("a", &pod("first")).await.unwrap();
    let migrated = NewPod { label: "first".to_owned(), restarts: 0 };
    let new_pods = store.table::<NewPod>();
    assert_eq!(new_pods.get("a").unwrap().unwrap(), migrated);
    new_pods.put("a", &migrated).await.unwrap();
    assert_eq!(new_pods.get("a").unwrap().unwrap(), migrated);

    let error = store.table::<Pod>().get("a").unwrap_err();
    assert!(matches!(
        &error,
        Error::NewerRecord { table: "pod", found: 3, supported: 1, key } if key == "a"
    ));
    assert!(error.to_string().contains("run the newer version again"));

    // One bad record does not hide the others.
    store.table::<Pod>().put("b", &pod("b")).await.unwrap();
    assert!(store.table::<Pod>().list().is_err());
    let each = store.table::<Pod>().list_each().unwrap();
    assert!(each[0].1.is_err());
    assert_eq!(each[1].1.as_ref().unwrap(), &pod("b"));
}

/// The same table as [`NewPod`], without a migration.
#[derive(Debug, Serialize, Deserialize)]
struct Stubborn {}

impl Record for Stubborn {
    const TABLE: &'static str = "pod";
    const VERSION: u32 = 2;
}

#[tokio::test]
async fn a_missing_migration_and_a_wrong_shape_are_named() {
    let place = place();
    let store = Store::open(&place.path).unwrap();
    store.table::<Pod>().put("a", &pod("a")).await.unwrap();
    let error = store.table::<Stubborn>().get("a").unwrap_err();
    assert_eq!(
        chain(&error),
        "migrate record \"a\" in table pod from version 1: no migration from version 1"
    );

    #[derive(Debug, Serialize, Deserialize)]
    struct Shape {
        missing: u32,
    }
    impl Record for Shape {
        const TABLE: &'static str = "pod";
        const VERSION: u32 = 1;
    }
    let error = store.table::<Shape>().get("a").unwrap_err();
    assert!(matches!(error, Error::Decode { .. }));
    assert!(chain(&error).contains("missing field `missing`"));
}

#[test]
fn a_second_open_is_refused_until_the_first_is_closed() {
    let place = place();
    let store = Store::open(&place.path).unwrap();
    let table = store.table::<Pod>();
    let error = Store::open(&place.path).unwrap_err();
    assert!(matches!(&error, Error::Locked { path } if *path == place.path));
    assert!(error.to_string().contains("in use by another process"));
    drop(store);
    // A table keeps the store open.
    assert!(matches!(Store::open(&place.path), Err(Error::Locked { .. })));
    drop(table);
    Store::open(&place.path).unwrap();
}

#[test]
fn a_newer_file_is_refused() {
    let place = place();
    drop(Store::open(&place.path).unwrap());
    {
        let database = redb::Database::open(&place.path).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction
            .open_table(redb::TableDefinition::<&str, u32>::new("schema"))
            .unwrap()
            .insert("version", SCHEMA_VERSION + 1)
            .unwrap();
        transaction.commit().unwrap();
    }
    let error = Store::open(&place.path).unwrap_err();
    let found = SCHEMA_VERSION + 1;
    assert!(matches!(&error, Error::NewerSchema { found: version, .. } if *version == found));
    let text = error.to_string();
    assert!(text.contains(&format!("schema version {found}")), "{text}");
    assert!(text.contains(&format!("up to {SCHEMA_VERSION}")), "{text}");
}

#[track_caller]
fn check_corrupt(path: &Path, what: &str) {
    let error = Store::open(path).expect_err(what);
    assert!(matches!(error, Error::Corrupt { .. }), "{what}: {error:?}");
    let advice = format!("mv {0} {0}.corrupt", path.display());
    assert!(error.to_string().contains(&advice), "{error}");
}

#[test]
fn damaged_files_are_refused_with_advice() {
    let place = place();
    fs::write(&place.path, b"this is no database\n".repeat(1000)).unwrap();
    check_corrupt(&place.path, "text");
    fs::write(&place.path, b"short").unwrap();
    check_corrupt(&place.path, "short");
    // The advice works.
    fs::rename(&place.path, place.path.with_extension("corrupt")).unwrap();
    let store = Store::open(&place.path).unwrap();
    for number in 0..200 {
        let mut batch = Batch::new();
        let record = pod(&"n".repeat(100));
        batch.put(&format!("{number:03}"), &record).unwrap();
        store.commit_blocking(batch).unwrap();
    }
    drop(store);
    let good = fs::read(&place.path).unwrap();

    fs::write(&place.path, &good[..good.len() / 3]).unwrap();
    check_corrupt(&place.path, "truncated");

    // A database, but not ours.
    fs::remove_file(&place.path).unwrap();
    drop(redb::Database::create(&place.path).unwrap());
    check_corrupt(&place.path, "foreign");

    // One damaged byte anywhere: refused, or in a page that holds nothing, but
    // never a wrong record.
    let mut refused = 0;
    for position in (64..good.len()).step_by(1531) {
        let mut bad = good.clone();
        bad[position] ^= 0x10;
        fs::write(&place.path, &bad).unwrap();
        match Store::open(&place.path) {
            Err(error) => {
                assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
                refused += 1;
            }
            Ok(store) => {
                let records = store.table::<Pod>().list().unwrap();
                assert_eq!(records.len(), 200, "at {position}");
                assert!(records.iter().all(|(_, record)| *record == pod(&"n".repeat(100))));
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn creation_that_was_killed_starts_anew() {
    let place = place();
    let new = place.path.with_extension("redb.new");
    fs::write(&new, b"half a database").unwrap();
    fs::write(&place.path, b"").unwrap();
    let store = Store::open(&place.path).unwrap();
    assert!(!new.exists());
    assert_eq!(store.table::<Pod>().list().unwrap(), []);
}
