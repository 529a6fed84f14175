//! Steps that are all run, whatever becomes of the others, and reported at the end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How a step that did not fail ended.
pub(crate) enum Outcome {
    /// It did what it says.
    Done,
    /// It could not be done here, for this reason; that does not fail the run.
    Skipped(String),
}

enum Ending {
    Done,
    Skipped(String),
    Failed(String),
}

/// The steps run so far.
#[derive(Default)]
pub(crate) struct Steps {
    finished: Vec<(String, Duration, Ending)>,
}

impl Steps {
    /// Runs one step and keeps its outcome. Says whether it ended well.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<Outcome>) -> bool {
        eprintln!("\n== {name}");
        let started = Instant::now();
        let ending = match work() {
            Ok(Outcome::Done) => Ending::Done,
            Ok(Outcome::Skipped(reason)) => {
                eprintln!("!! {name} skipped: {reason}");
                Ending::Skipped(reason)
            }
            Err(error) => {
                eprintln!("!! {name} failed: {error:#}");
                Ending::Failed(format!("{error:#}"))
            }
        };
        let well = !matches!(ending, Ending::Failed(_));
        self.finished.push((name.to_owned(), started.elapsed(), ending));
        well
    }

    /// One line for each step.
    pub(crate) fn report(&self) -> String {
        let mut text = String::new();
        for (name, time, ending) in &self.finished {
            let (word, reason) = match ending {
                Ending::Done => ("ok", ""),
                Ending::Skipped(reason) => ("skipped", reason.as_str()),
                Ending::Failed(reason) => ("FAILED", reason.as_str()),
            };
            let line = format!("{word:8} {name:8} {:7.1} s  {reason}", time.as_secs_f64());
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Fails when any step failed, naming those that did.
    pub(crate) fn result(&self) -> Result<()> {
        let failed: Vec<&str> = self
            .finished
            .iter()
            .filter(|(_, _, ending)| matches!(ending, Ending::Failed(_)))
            .map(|(name, _, _)| name.as_str())
            .collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_step_neither_stops_nor_hides_the_others() {
        let mut steps = Steps::default();
        assert!(!steps.step("first", || bail!("broken")));
        assert!(steps.step("second", || Ok(Outcome::Done)));
        assert!(steps.step("third", || Ok(Outcome::Skipped("no network".into()))));
        let report = steps.report();
        let words: Vec<&str> = report.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
        assert_eq!(words, ["FAILED", "ok", "skipped"]);
        assert!(report.contains("broken") && report.contains("no network"));
        assert_eq!(steps.result().unwrap_err().to_string(), "failed: first");
    }

    #[test]
    fn skipped_steps_do_not_fail_the_run() {
        let mut steps = Steps::default();
        steps.step("only", || Ok(Outcome::Skipped("not here".into())));
        assert!(steps.result().is_ok());
    }
}
