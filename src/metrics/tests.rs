//! The metrics' names, and that docs/metrics.md tells them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::SystemTime;

use super::*;

/// Everything that there can be, each once.
fn everything() -> String {
    let metrics = Metrics::default();
    metrics.called("runtime.v1.RuntimeService", "Status", "OK", Instant::now());
    metrics.boot("qemu").ready();
    drop(metrics.pull(watch::channel(Progress::default()).1));
    metrics.plugin("bridge", "ADD", "done", Instant::now());
    metrics.session("exec").ended(true);
    metrics.log_written(1);
    drop(metrics.log_wait());
    metrics.events_lost();
    let mut text = String::new();
    metrics.write(&mut text).unwrap();
    for registry in
        [present::of_pods(&[], &["vm"]), present::of_process(), present::of_start(SystemTime::now())]
    {
        encode(&mut text, &registry).unwrap();
    }
    text
}

/// The page's table, from what is exposed: name, type, labels, meaning.
fn table(exposition: &str) -> String {
    let mut helps = BTreeMap::new();
    let mut kinds = Vec::new();
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in exposition.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            assert!(helps.insert(name, help.trim_end_matches('.')).is_none(), "{name} is there twice");
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            kinds.push((name, kind));
        } else {
            let (name, _) = kinds.last().expect("a sample after its type");
            let inside = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}'));
            let names = inside.into_iter().flat_map(|(inside, _)| inside.split("\",")).filter_map(|pair| {
                let (name, _) = pair.split_once('=')?;
                (name != "le").then_some(name)
            });
            labels.entry(name).or_default().extend(names);
        }
    }
    let mut text = "| metric | type | labels | |\n|---|---|---|---|\n".to_owned();
    for (name, kind) in kinds {
        let labels: Vec<String> =
            labels[name].iter().filter(|label| !label.is_empty()).map(|label| format!("`{label}`")).collect();
        text.push_str(&format!("| `{name}` | {kind} | {} | {} |\n", labels.join(", "), helps[name]));
    }
    text
}

#[test]
fn the_documentation_has_every_metric() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (start, end) = ("<!-- made by a test -->\n", "<!-- end -->");
    let (before, rest) = page.split_once(start).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let wanted = format!("{before}{start}{}{end}{after}", table(&everything()));
    if std::env::var_os("KINA_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap();
    assert!(page == wanted, "docs/metrics.md is out of date; run this test with KINA_UPDATE_DOCS=1");
}

#[test]
fn names_are_as_prometheus_wants_them() {
    let text = everything();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    for (name, kind) in types {
        assert!(name.starts_with("kina_") || name.starts_with("process_"), "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        assert_eq!(name.ends_with("_duration_seconds"), kind == "histogram", "{name} is a {kind}");
    }
}

fn value(metrics: &Metrics, sample: &str) -> f64 {
    let mut text = String::new();
    metrics.write(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{sample} is not in\n{text}")).parse().unwrap()
}

#[test]
fn what_is_given_up_is_counted() {
    let metrics = Metrics::default();
    let (one, two, three) = (metrics.session("exec"), metrics.session("exec"), metrics.session("exec"));
    assert_eq!(value(&metrics, "kina_streaming_sessions{kind=\"exec\"}"), 3.0);
    one.ended(true);
    two.ended(false);
    drop(three);
    assert_eq!(value(&metrics, "kina_streaming_sessions{kind=\"exec\"}"), 0.0);
    for result in ["done", "failed", "cut"] {
        let sample = format!("kina_streaming_sessions_ended_total{{kind=\"exec\",result=\"{result}\"}}");
        assert_eq!(value(&metrics, &sample), 1.0);
    }
    drop(metrics.boot("qemu"));
    metrics.boot("qemu").ready();
    for result in ["failed", "ready"] {
        let sample =
            format!("kina_machine_boot_duration_seconds_count{{driver=\"qemu\",result=\"{result}\"}}");
        assert_eq!(value(&metrics, &sample), 1.0);
    }
    let (wait, other) = (metrics.log_wait(), metrics.log_wait());
    drop(wait);
    assert_eq!((value(&metrics, "kina_logs_waiting"), value(&metrics, "kina_log_waits_total")), (1.0, 2.0));
    drop(other);
    assert_eq!(value(&metrics, "kina_logs_waiting"), 0.0);
}

#[test]
fn the_process_is_there() {
    let mut text = String::new();
    encode(&mut text, &present::of_process()).unwrap();
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().unwrap()
    };
    assert!(value("process_cpu_seconds_total") > 0.0);
    assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") <= value("process_max_fds"));
}
