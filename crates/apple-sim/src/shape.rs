//! How what there is looks in the output of each release.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::images::Variant;
use crate::resources::{Date, ImageDescription, Network, Snapshot, Volume};
use crate::settings::Release;
use crate::swift_json;

/// The name of the server's program.
const SERVER: &str = "container-apiserver";

/// Seconds between 1970 and 2001, from when Foundation counts.
const REFERENCE: Date = 978_307_200.0;

/// Fields that are dates.
const DATES: [&str; 3] = ["creationDate", "startedDate", "createdAt"];

fn value<T: Serialize>(of: &T) -> Value {
    // Types of our own with names for keys: nothing can go wrong.
    serde_json::to_value(of).unwrap_or(Value::Null)
}

/// A date in a release.
#[must_use]
pub fn date(date: Date, release: Release) -> Value {
    if release < Release::V1_0_0 { json!(date - REFERENCE) } else { json!(iso8601(date)) }
}

/// `YYYY-MM-DDThh:mm:ssZ`: fractions are cut off.
#[must_use]
pub fn iso8601(date: Date) -> String {
    let seconds = date.floor() as i64;
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 1 March of year 0, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) =
        if month < 10 { (era * 400 + year, month + 3) } else { (era * 400 + year + 1, month - 9) };
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Writes dates as the release does. Only numbers are dates: a label may be called so too.
fn dated(mut content: Value, release: Release) -> Value {
    match &mut content {
        Value::Object(fields) => {
            for (key, field) in fields.iter_mut() {
                *field = match field.as_f64() {
                    Some(number) if DATES.contains(&key.as_str()) => date(number, release),
                    Some(_) | None => dated(field.take(), release),
                };
            }
        }
        Value::Array(items) => {
            for item in items.iter_mut() {
                *item = dated(item.take(), release);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    content
}

fn remove(content: &mut Value, path: &[&str], keys: &[&str]) {
    let inner = path.iter().try_fold(content, |inner, key| inner.get_mut(*key));
    if let Some(Value::Object(fields)) = inner {
        for key in keys {
            fields.remove(*key);
        }
    }
}

/// A container: `ManagedContainer`, before 1.0 `PrintableContainer`.
#[must_use]
pub fn container(snapshot: &Snapshot, release: Release) -> Value {
    let mut configuration = value(&snapshot.configuration);
    let mut networks = value(&snapshot.networks);
    if release < Release::V1_0_0 {
        remove(&mut configuration, &[], &["creationDate", "shmSize", "stopSignal"]);
        remove(&mut configuration, &["resources"], &["cpuOverhead"]);
        for socket in configuration["publishedSockets"].as_array_mut().into_iter().flatten() {
            for key in ["containerPath", "hostPath"] {
                socket[key] = json!(format!("file://{}", socket[key].as_str().unwrap_or_default()));
            }
        }
    }
    if release < Release::V1_2_0 {
        remove(&mut configuration, &[], &["maskedPaths", "readonlyPaths"]);
    }
    if release < Release::V1_1_0 {
        for network in networks.as_array_mut().into_iter().flatten() {
            remove(network, &[], &["variant"]);
        }
    }
    let started = snapshot.started_date;
    let mut made = if release < Release::V1_0_0 {
        json!({ "status": snapshot.status.word(), "configuration": configuration, "networks": networks })
    } else {
        json!({
            "id": snapshot.configuration.id,
            "configuration": configuration,
            "status": { "state": snapshot.status.word(), "networks": networks },
        })
    };
    if let Some(started) = started {
        let place = if release < Release::V1_0_0 { &mut made } else { &mut made["status"] };
        place["startedDate"] = json!(started);
    }
    dated(made, release)
}

/// A network: `NetworkResource`, before 1.0 `PrintableNetwork`.
#[must_use]
pub fn network(network: &Network, release: Release) -> Value {
    let mut configuration = value(&network.configuration);
    if release >= Release::V1_0_0 {
        let made = json!({ "id": network.id, "configuration": configuration, "status": network.status });
        return dated(made, release);
    }
    remove(&mut configuration, &[], &["name", "plugin", "options"]);
    configuration["id"] = json!(network.id);
    let mut plugin = json!({ "plugin": network.configuration.plugin });
    if let Some(variant) = network.configuration.options.get("variant") {
        plugin["variant"] = json!(variant);
    }
    configuration["pluginInfo"] = plugin;
    let made =
        json!({ "id": network.id, "state": "running", "config": configuration, "status": network.status });
    dated(made, release)
}

/// An image in a list: `ImageResource`, before 1.0 `PrintableImage`.
#[must_use]
pub fn listed_image(image: &ImageDescription, variants: &[Variant], release: Release) -> Value {
    if release >= Release::V1_0_0 {
        return resource(image, variants);
    }
    let size = variants.first().map_or(0, |variant| variant.size);
    json!({ "reference": image.reference, "fullSize": byte_count(size), "descriptor": image.descriptor })
}

/// An image in full: `ImageResource`, before 1.0 `ImageDetail`.
#[must_use]
pub fn image(image: &ImageDescription, variants: &[Variant], release: Release) -> Value {
    if release >= Release::V1_0_0 {
        return resource(image, variants);
    }
    let variants: Vec<Value> = variants
        .iter()
        .map(|variant| {
            json!({ "platform": variant.platform, "size": variant.size, "config": config(&variant.config) })
        })
        .collect();
    json!({ "name": image.reference, "index": image.descriptor, "variants": variants })
}

fn resource(image: &ImageDescription, variants: &[Variant]) -> Value {
    // The earliest of its parts, or the beginning of time.
    let created = variants
        .iter()
        .filter_map(|variant| variant.config.get("created")?.as_str())
        .filter(|date| date.len() >= 20)
        .min()
        .map_or_else(|| iso8601(0.0), |date| format!("{}Z", &date[..19]));
    let variants: Vec<Value> = variants
        .iter()
        .map(|variant| {
            json!({
                "platform": variant.platform,
                "digest": variant.digest,
                "size": variant.size,
                "config": config(&variant.config),
            })
        })
        .collect();
    let digest = &image.descriptor.digest;
    json!({
        "id": digest.split_once(':').map_or(digest.as_str(), |(_, hex)| hex),
        "configuration": {
            "creationDate": created,
            "name": image.reference,
            "descriptor": image.descriptor,
        },
        "variants": variants,
    })
}

/// An image's configuration with the fields that `ContainerizationOCI.Image` knows.
fn config(config: &Value) -> Value {
    const KNOWN: [&str; 9] = [
        "created",
        "author",
        "architecture",
        "os",
        "os.version",
        "os.features",
        "variant",
        "config",
        "rootfs",
    ];
    const KNOWN_OF_PROCESS: [&str; 7] =
        ["User", "Env", "Entrypoint", "Cmd", "WorkingDir", "Labels", "StopSignal"];
    let keep = |from: &Value, known: &[&str]| {
        let fields = from.as_object().into_iter().flatten();
        let kept = fields.filter(|(key, field)| known.contains(&key.as_str()) && !field.is_null());
        Value::Object(kept.map(|(key, field)| (key.clone(), field.clone())).collect::<Map<_, _>>())
    };
    let mut kept = keep(config, &KNOWN);
    if let Some(process) = kept.get("config") {
        kept["config"] = keep(process, &KNOWN_OF_PROCESS);
    }
    if let Some(history) = config.get("history") {
        kept["history"] = history.clone();
    }
    kept
}

/// A volume: `VolumeResource`, before 1.0 `Volume`.
#[must_use]
pub fn volume(volume: &Volume, release: Release) -> Value {
    let mut configuration = value(volume);
    let made = if release >= Release::V1_0_0 {
        json!({ "id": volume.name, "configuration": configuration })
    } else {
        remove(&mut configuration, &[], &["creationDate"]);
        configuration["createdAt"] = json!(volume.creation_date);
        configuration
    };
    dated(made, release)
}

/// What `inspect` prints.
#[must_use]
pub fn inspected(payload: &Value, release: Release) -> String {
    if release < Release::V1_0_0 { swift_json::compact(payload) } else { swift_json::pretty(payload) }
}

/// The commit that the simulator says it was built from.
pub const COMMIT: &str = "0000000000000000000000000000000000000000";

/// The whole line that programs tell their version with (`ReleaseVersion.singleLine`).
#[must_use]
pub fn version_line(program: &str, release: Release) -> String {
    format!("{program} version {release} (build: release, commit: {COMMIT})")
}

/// The services while they run: `PrintableStatus`.
#[must_use]
pub fn status(app_root: &str, install_root: &str, log_root: Option<&str>, release: Release) -> Value {
    let mut made = json!({
        "status": "running", "appRoot": app_root, "installRoot": install_root,
        "apiServerVersion": version_line(SERVER, release), "apiServerCommit": COMMIT,
        "apiServerBuild": "release", "apiServerAppName": SERVER,
    });
    if let Some(log_root) = log_root {
        made["logRoot"] = json!(log_root);
    }
    made
}

/// The services while they do not.
#[must_use]
pub fn no_status(word: &str) -> Value {
    json!({
        "status": word, "appRoot": "", "installRoot": "", "apiServerVersion": "",
        "apiServerCommit": "", "apiServerBuild": "", "apiServerAppName": "",
    })
}

/// The versions of the command and, if it is there, of the server: `VersionInfo`.
#[must_use]
pub fn versions(server: bool, release: Release) -> Value {
    let entry = |name: &str, version: String| json!({ "appName": name, "version": version, "buildType": "release", "commit": COMMIT });
    let mut versions = vec![entry("container", release.to_string())];
    if server {
        versions.push(entry(SERVER, version_line(SERVER, release)));
    }
    Value::Array(versions)
}

/// `ByteCountFormatter`: decimal, three digits.
#[must_use]
pub fn byte_count(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["KB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return if bytes == 0 { "Zero KB".to_owned() } else { format!("{bytes} bytes") };
    }
    let mut amount = bytes as f64;
    let mut unit = "";
    for next in UNITS {
        if amount < 999.5 && !unit.is_empty() {
            break;
        }
        amount /= 1000.0;
        unit = next;
    }
    match unit {
        "KB" => format!("{amount:.0} {unit}"),
        "MB" => format!("{amount:.1} {unit}"),
        _ => format!("{amount:.2} {unit}"),
    }
}

/// Lines of columns (`TableOutput.swift`).
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max())
        .map(Option::unwrap_or_default)
        .collect();
    let lines = rows.iter().map(|row| {
        let last = row.len().saturating_sub(1);
        row.iter()
            .enumerate()
            .map(|(column, cell)| {
                if column == last {
                    cell.clone()
                } else {
                    format!("{cell:width$}", width = widths[column] + 2)
                }
            })
            .collect::<String>()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_calendar_dates() {
        for (seconds, expected) in [
            (0.0, "1970-01-01T00:00:00Z"),
            (951_782_400.9, "2000-02-29T00:00:00Z"),
            (1_786_150_801.5, "2026-08-08T01:00:01Z"),
            (4_107_542_399.0, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(iso8601(seconds), expected);
        }
        assert_eq!(date(REFERENCE + 0.5, Release::V0_12_3), json!(0.5));
    }

    #[test]
    fn tables_have_columns() {
        let rows = [vec!["ID".to_owned(), "B".to_owned()], vec!["long".to_owned(), "x".to_owned()]];
        assert_eq!(table(&rows), "ID    B\nlong  x");
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(byte_count(0), "Zero KB");
        assert_eq!(byte_count(999), "999 bytes");
        assert_eq!(byte_count(3_600_000), "3.6 MB");
        assert_eq!(byte_count(12_000), "12 KB");
    }
}
