//! The figures, for people and for programs. Index 0 is kina, 1 containerd.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::calls::{CALLS, Timings};
use crate::memory::{Memory, Parts, Usage};

/// Everything that was measured.
pub(crate) struct Report {
    iterations: usize,
    /// What kina is compared with.
    other: String,
    /// How pods are connected.
    network: &'static str,
    /// Load averages before and after.
    pub(crate) load: [String; 2],
    /// One call at a time.
    pub(crate) sequential: [Timings; 2],
    /// Several lives at a time.
    pub(crate) parallel: Option<Parallel>,
    /// The daemons before they had a pod.
    pub(crate) empty: Option<[Usage; 2]>,
    pub(crate) memory: Option<[Memory; 2]>,
}

/// Lives at a time, and how many ended per second.
pub(crate) struct Parallel {
    pub(crate) width: usize,
    pub(crate) results: [(Timings, f64); 2],
}

/// The value below which `percent` of the sorted values are (nearest rank).
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).or(sorted.last()).copied().unwrap_or(f64::NAN)
}

/// A line of a table.
pub(crate) fn row(name: &str, cells: &[&str]) -> String {
    let cells = cells.iter().fold(String::new(), |text, cell| text + &format!(" {cell:>11}"));
    format!("{name:<28}{cells}").trim_end().to_owned()
}

impl Report {
    pub(crate) fn new(iterations: usize, other: String, connected: bool) -> Self {
        Self {
            iterations,
            other,
            network: if connected { "plugins bridge and host-local" } else { "host network" },
            load: Default::default(),
            sequential: Default::default(),
            parallel: None,
            empty: None,
            memory: None,
        }
    }

    /// Tables.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "kina beside {} with runc; {}, {} lives of a pod, turn about; ms\n\
             load average {} before, {} after\n\n",
            self.other, self.network, self.iterations, self.load[0], self.load[1]
        );
        table(&mut text, [&self.sequential[0], &self.sequential[1]]);
        if let Some(parallel) = &self.parallel {
            let [(kina, kina_rate), (other, other_rate)] = &parallel.results;
            let _ = writeln!(text, "\n{} at a time, one daemon after the other; ms", parallel.width);
            table(&mut text, [kina, other]);
            let _ = writeln!(
                text,
                "{}",
                row(
                    "lives per second",
                    &[
                        &format!("{kina_rate:.1}"),
                        "",
                        "",
                        &format!("{other_rate:.1}"),
                        "",
                        "",
                        &format!("{:.2}", kina_rate / other_rate),
                    ]
                )
            );
        }
        self.memory_text(&mut text);
        text
    }

    fn memory_text(&self, text: &mut String) {
        let Some([kina, other]) = &self.empty else { return };
        let _ = writeln!(text, "\nmemory; MiB\n{}", row("", &["kina", "containerd", "ratio"]));
        let mut line = |name: &str, kina: f64, other: f64| {
            let cells = [kina, other].map(|kib| format!("{:.2}", kib / 1024.0));
            let ratio = if other > 0.0 { format!("{:.2}", kina / other) } else { String::new() };
            let _ = writeln!(text, "{}", row(name, &[&cells[0], &cells[1], &ratio]));
        };
        line("daemon without pods, Rss", kina.rss as f64, other.rss as f64);
        line("daemon without pods, Pss", kina.pss as f64, other.pss as f64);
        let Some([kina, other]) = &self.memory else { return };
        let pods = kina.pods;
        line(&format!("daemon with {pods} pods, Rss"), kina.daemon[1].rss as f64, other.daemon[1].rss as f64);
        let kinds: [(&str, PartsOf); 2] =
            [("idle pod", |memory| &memory.bare), ("pod, 1 container", |memory| &memory.with_container)];
        for (kind, parts) in kinds {
            let each =
                |part: fn(&Parts) -> f64| [kina, other].map(|memory| part(parts(memory)) / pods as f64);
            let [a, b] = each(|parts| parts.daemon as f64);
            line(&format!("{kind}: daemon's growth"), a, b);
            let [a, b] = each(|parts| parts.helpers as f64);
            line(&format!("{kind}: guest, shim"), a, b);
            let [a, b] = each(|parts| parts.others as f64);
            line(&format!("{kind}: the rest"), a, b);
            line(&format!("{kind}: Pss in all"), parts(kina).per_pod(pods), parts(other).per_pod(pods));
        }
    }

    /// The same as one object.
    pub(crate) fn json(&self) -> Value {
        let names = ["kina", "containerd"];
        let both = |value: &dyn Fn(usize) -> Value| -> Value {
            names.iter().enumerate().map(|(index, name)| ((*name).to_owned(), value(index))).collect()
        };
        json!({
            "iterations": self.iterations,
            "compared_with": self.other,
            "network": self.network,
            "load_average": { "before": self.load[0], "after": self.load[1] },
            "sequential_ms": both(&|index| timings_json(&self.sequential[index])),
            "parallel": self.parallel.as_ref().map(|parallel| json!({
                "width": parallel.width,
                "ms": both(&|index| timings_json(&parallel.results[index].0)),
                "lives_per_second": both(&|index| json!(parallel.results[index].1)),
            })),
            "empty_daemon": self.empty.map(|empty| both(&|index| empty[index].json())),
            "memory": self.memory.as_ref().map(|memory| both(&|index| memory[index].json())),
        })
    }
}

/// One of a daemon's two measurements.
type PartsOf = fn(&Memory) -> &Parts;

/// The columns of a call's times.
const PERCENTILES: [(&str, usize); 3] = [("p50", 50), ("p90", 90), ("max", 100)];

fn table(text: &mut String, timings: [&Timings; 2]) {
    let head = ["kina p50", "p90", "max", "containerd", "p90", "max", "ratio p50"];
    let _ = writeln!(text, "{}", row("", &head));
    let columns = CALLS.iter().enumerate().map(|(call, name)| (*name, timings.map(|side| side.of(call))));
    for (name, sides) in columns.chain([("a life", timings.map(Timings::whole))]) {
        let mut cells: Vec<String> = Vec::new();
        for side in &sides {
            cells.extend(PERCENTILES.map(|(_, percent)| format!("{:.2}", percentile(side, percent))));
        }
        cells.push(format!("{:.2}", percentile(&sides[0], 50) / percentile(&sides[1], 50)));
        let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
        let _ = writeln!(text, "{}", row(name, &cells));
    }
}

fn timings_json(timings: &Timings) -> Value {
    let columns = CALLS.iter().enumerate().map(|(call, name)| (*name, timings.of(call)));
    columns
        .chain([("a life", timings.whole())])
        .map(|(name, times)| {
            let values: Value = PERCENTILES
                .iter()
                .map(|(column, percent)| ((*column).to_owned(), json!(percentile(&times, *percent))))
                .collect();
            (name.to_owned(), values)
        })
        .collect()
}
