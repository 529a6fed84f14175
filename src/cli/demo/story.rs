//! How the demo tells what it does.

use std::io::Write as _;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli::text::{WIDTH, clip, paragraph};

/// Columns before what belongs to a step.
const INDENT: usize = 4;

/// What the demo tells, as text for people or as lines of JSON.
pub(super) struct Story {
    json: bool,
    number: usize,
    begun: Instant,
}

/// What a step found.
#[derive(Debug, Default)]
pub(super) struct Facts(Vec<Fact>);

#[derive(Debug)]
enum Fact {
    /// Filled up to the width.
    Text(String),
    /// As it is, cut off at the width.
    Line(String),
}

impl Facts {
    /// A sentence.
    pub(super) fn text(mut self, text: impl Into<String>) -> Self {
        self.0.push(Fact::Text(text.into()));
        self
    }

    /// Something quoted.
    pub(super) fn line(mut self, line: impl Into<String>) -> Self {
        self.0.push(Fact::Line(line.into()));
        self
    }
}

impl Story {
    pub(super) fn new(json: bool) -> Self {
        Self { json, number: 0, begun: Instant::now() }
    }

    /// A paragraph between the steps; not for programs.
    pub(super) fn say(&self, text: &str) -> std::io::Result<()> {
        if self.json { Ok(()) } else { print(&format!("{}\n", paragraph(text, 0))) }
    }

    /// Does a step and tells how long it took, and what it found or why it failed.
    pub(super) async fn step(
        &mut self,
        title: &str,
        why: &str,
        work: impl Future<Output = anyhow::Result<Facts>>,
    ) -> anyhow::Result<()> {
        self.number += 1;
        let number = self.number;
        if !self.json {
            print(&heading(number, title))?;
        }
        let begun = Instant::now();
        let result = work.await;
        let took = begun.elapsed();
        if self.json {
            let (facts, error) = match &result {
                Ok(facts) => (facts.0.iter().map(Fact::as_str).collect(), None),
                Err(error) => (Vec::new(), Some(crate::cli::describe(error))),
            };
            let seconds = (took.as_secs_f64() * 1e4).round() / 1e4;
            let step = json!({
                "step": number, "title": title, "ok": error.is_none(), "seconds": seconds,
                "facts": facts, "error": error,
            });
            print(&format!("{step}\n"))?;
        } else {
            let end = if result.is_ok() { seconds(took) } else { "failed".to_owned() };
            print(&format!("{}\n", right(&heading(number, title), &end)))?;
            print(&format!("{}\n", paragraph(why, INDENT)))?;
            if let Ok(facts) = &result {
                for fact in &facts.0 {
                    print(&format!("{}\n", fact.show()))?;
                }
            }
            print("\n")?;
        }
        result.map(|_| ())
    }

    /// The last words.
    pub(super) fn end(&self, ok: bool, text: &str) -> std::io::Result<()> {
        let took = self.begun.elapsed();
        if self.json {
            return print(&format!(
                "{}\n",
                json!({ "ok": ok, "seconds": took.as_secs_f64(), "steps": self.number })
            ));
        }
        print(&format!("{}\n{}", text_right(text, &seconds(took)), "\n"))
    }
}

impl Fact {
    fn as_str(&self) -> &str {
        match self {
            Self::Text(text) | Self::Line(text) => text,
        }
    }

    fn show(&self) -> String {
        match self {
            Self::Text(text) => paragraph(text, INDENT),
            Self::Line(line) => format!("{}| {}", " ".repeat(INDENT), clip(line, WIDTH - INDENT - 2)),
        }
    }
}

fn heading(number: usize, title: &str) -> String {
    format!("{number:2}  {title}")
}

/// What is still to be printed of a line that begins with `left`, so that
/// `end` stands at its right.
fn right(left: &str, end: &str) -> String {
    let blank = WIDTH.saturating_sub(left.chars().count() + end.chars().count()).max(1);
    format!("{}{end}", " ".repeat(blank))
}

fn text_right(left: &str, end: &str) -> String {
    format!("{left}{}", right(left, end))
}

fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

/// A reader that has gone ends the demo, which cleans up.
fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stand_at_the_right() {
        let line = text_right(&heading(3, "Run a pod"), &seconds(Duration::from_millis(1234)));
        assert_eq!(line.len(), WIDTH);
        assert!(line.starts_with(" 3  Run a pod ") && line.ends_with(" 1.234 s"), "{line}");
        let long = heading(3, &"x".repeat(100));
        assert!(text_right(&long, "1 s").ends_with("x 1 s"));
    }

    #[test]
    fn quoted_lines_fit() {
        let facts = Facts::default().text("word ".repeat(40)).line("y".repeat(200));
        for fact in &facts.0 {
            assert!(fact.show().lines().all(|line| line.chars().count() <= WIDTH), "{}", fact.show());
        }
    }

    #[tokio::test]
    async fn a_failed_step_fails() {
        let mut story = Story::new(true);
        story.step("one", "", async { Ok(Facts::default()) }).await.unwrap();
        assert!(story.step("two", "", async { anyhow::bail!("no") }).await.is_err());
        assert_eq!(story.number, 2);
    }
}
