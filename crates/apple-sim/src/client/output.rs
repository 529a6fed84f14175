//! What commands print (`OutputRendering.swift`).

use std::io::{self, Write};

use serde_json::Value;

use crate::arguments::Matches;
use crate::error::{Code, Problem};
use crate::{shape, swift_json};

/// Prints text as it is.
pub(super) fn print(text: &str) -> Result<(), Problem> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Prints a line, unless there is none.
pub(super) fn line(text: &str) -> Result<(), Problem> {
    if text.is_empty() { Ok(()) } else { print(&format!("{text}\n")) }
}

/// Prints a payload in the format that was asked for.
pub(super) fn render(
    matches: &Matches,
    payload: &Value,
    table: impl FnOnce() -> String,
) -> Result<(), Problem> {
    match matches.one("format").unwrap_or("table") {
        "json" => line(&swift_json::compact(payload)),
        "table" => line(&table()),
        other => Err(Problem::new(
            Code::Unsupported,
            format!("the simulator does not write {other}: use json or table"),
        )),
    }
}

/// A table, or with `--quiet` the names.
pub(super) fn listed(matches: &Matches, header: &[&str], rows: Vec<Vec<String>>) -> String {
    if matches.flag("quiet") {
        return rows.into_iter().filter_map(|row| row.into_iter().next()).collect::<Vec<_>>().join("\n");
    }
    let header = header.iter().map(|title| (*title).to_owned()).collect();
    shape::table(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}
