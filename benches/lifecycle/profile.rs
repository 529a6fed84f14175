//! Where kina's time goes: its log tells what each effect took, and whatever
//! is written between two calls belongs to the first.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::calls::{self, CALLS, Timings};
use crate::daemons::Daemon;
use crate::place::Place;
use crate::report::{percentile, row};

/// What the daemon has to log for this.
pub(crate) const LOG_LEVEL: &str = "warn,kina::failpoint=debug";

/// Runs lives of a pod and prints what each call's time consists of.
pub(crate) async fn run(kina: &Daemon, place: &Place, iterations: usize) -> Result<()> {
    let path = place.log("kina");
    let mut log = BufReader::new(File::open(&path).with_context(|| format!("open {}", path.display()))?);
    let mut timings = Timings::default();
    // By call and effect: milliseconds of every life.
    let mut effects: BTreeMap<(usize, String), Vec<f64>> = BTreeMap::new();
    // What happens once is not counted.
    calls::life(kina, "warm-up").await?;
    read(&mut log)?;
    for number in 0..iterations {
        let name = format!("profile-{number}");
        let life = calls::life_watched(kina, &name, |call| {
            let mut sums: BTreeMap<String, f64> = BTreeMap::new();
            for (effect, milliseconds) in read(&mut log)? {
                *sums.entry(effect).or_default() += milliseconds;
            }
            for (effect, milliseconds) in sums {
                effects.entry((call, effect)).or_default().push(milliseconds);
            }
            Ok(())
        });
        timings.add(life.await?);
    }
    println!("kina alone, {iterations} lives of a pod; ms. An effect's share is of its call's p50.");
    println!("{}", row("", &["p50", "p90", "share"]));
    for (call, name) in CALLS.iter().enumerate() {
        let whole = timings.of(call);
        let middle = percentile(&whole, 50);
        println!("{}", row(name, &[&number(middle), &number(percentile(&whole, 90)), ""]));
        let mut rest = middle;
        for ((_, effect), times) in effects.iter_mut().filter(|((of, _), _)| *of == call) {
            times.sort_by(f64::total_cmp);
            // Once in every life, or it is an accident of that call.
            let often = times.len() * 2 >= iterations;
            let middle_effect = if often { percentile(times, 50) } else { 0.0 };
            rest -= middle_effect;
            println!(
                "{}",
                row(
                    &format!("    {effect}{}", if often { "" } else { " (seldom)" }),
                    &[
                        &number(middle_effect),
                        &number(percentile(times, 90)),
                        &format!("{:.0} %", middle_effect / middle * 100.0),
                    ],
                )
            );
        }
        println!("{}", row("    all else", &[&number(rest), "", &format!("{:.0} %", rest / middle * 100.0)]));
    }
    let whole = timings.whole();
    println!("{}", row("a life", &[&number(percentile(&whole, 50)), &number(percentile(&whole, 90)), ""]));
    Ok(())
}

fn number(milliseconds: f64) -> String {
    format!("{milliseconds:.2}")
}

/// The effects that were logged since the last time, with their milliseconds.
fn read(log: &mut BufReader<File>) -> Result<Vec<(String, f64)>> {
    let mut found = Vec::new();
    let mut line = String::new();
    while log.read_line(&mut line).context("read kina's log")? > 0 {
        if let Ok(Value::Object(event)) = serde_json::from_str(&line)
            && let Some(effect) = event.get("effect").and_then(Value::as_str)
            && let Some(micros) = event.get("micros").and_then(Value::as_f64)
        {
            found.push((effect.to_owned(), micros / 1000.0));
        }
        line.clear();
    }
    Ok(found)
}
