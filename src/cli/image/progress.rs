//! How far a pull is, for people and for programs. Pure.

use serde_json::{Value, json};

use crate::admin::v1;
use crate::cli::text::{bytes, short};

/// Columns of a bar.
const BAR: u64 = 24;

/// Shows progress: on a terminal as bars that move, elsewhere as a line when a
/// layer begins and when it is here.
pub(super) struct Display {
    terminal: bool,
    /// Lines that stand on the terminal and are to be replaced.
    lines: usize,
    last: v1::Progress,
}

impl Display {
    pub(super) fn new(terminal: bool) -> Self {
        Self { terminal, lines: 0, last: v1::Progress::default() }
    }

    /// What to print for the next state.
    pub(super) fn update(&mut self, progress: &v1::Progress) -> String {
        if *progress == self.last {
            return String::new();
        }
        let text = if self.terminal { self.redraw(progress) } else { changes(&self.last, progress) };
        self.last = progress.clone();
        text
    }

    /// What to print when the image is here. The last state may have been
    /// skipped.
    pub(super) fn finish(&mut self) -> String {
        let mut done = self.last.clone();
        for layer in &mut done.layers {
            layer.set_state(v1::layer::State::Done);
            layer.fetched = layer.size;
        }
        self.update(&done)
    }

    fn redraw(&mut self, progress: &v1::Progress) -> String {
        let mut text = String::new();
        if self.lines > 0 {
            // To the first of them.
            text.push_str(&format!("\u{1b}[{}A", self.lines));
        }
        for layer in &progress.layers {
            // Erases to the end of the line what stood there before.
            text.push_str(&line(layer));
            text.push_str("\u{1b}[K\n");
        }
        self.lines = progress.layers.len();
        text
    }
}

/// A layer in at most 80 columns.
fn line(layer: &v1::Layer) -> String {
    let state = match layer.state() {
        v1::layer::State::Waiting => "waits",
        v1::layer::State::Fetching => "",
        v1::layer::State::Unpacking => "unpacks",
        v1::layer::State::Done => "here",
    };
    // A hostile registry may send more than it has announced.
    let filled = match layer.size {
        0 => BAR,
        size => u64::try_from(u128::from(layer.fetched.min(size)) * u128::from(BAR) / u128::from(size))
            .unwrap_or(BAR),
    };
    let bar: String = (0..BAR).map(|column| if column < filled { '=' } else { ' ' }).collect();
    let amount = format!("{} of {}", bytes(layer.fetched), bytes(layer.size));
    format!("{:12} [{bar}] {amount:>24} {state}", short(&layer.digest)).trim_end().to_owned()
}

/// Lines for what has changed.
fn changes(last: &v1::Progress, now: &v1::Progress) -> String {
    let mut text = String::new();
    for (index, layer) in now.layers.iter().enumerate() {
        let before = last.layers.get(index).map_or(v1::layer::State::Waiting, v1::Layer::state);
        let what = match (before, layer.state()) {
            (v1::layer::State::Waiting, v1::layer::State::Fetching) => "fetch",
            (v1::layer::State::Done, _) => continue,
            (_, v1::layer::State::Done) => "here ",
            _ => continue,
        };
        text.push_str(&format!("{what} {} {}\n", short(&layer.digest), bytes(layer.size)));
    }
    text
}

/// A layer for programs.
pub(super) fn layer_json(layer: &v1::Layer) -> Value {
    let state = match layer.state() {
        v1::layer::State::Waiting => "waiting",
        v1::layer::State::Fetching => "fetching",
        v1::layer::State::Unpacking => "unpacking",
        v1::layer::State::Done => "done",
    };
    json!({
        "digest": layer.digest,
        "size": layer.size,
        "fetched": layer.fetched,
        "transferred": layer.transferred,
        "resumed": layer.resumed,
        "state": state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::layer::State;

    fn layer(fetched: u64, state: State) -> v1::Layer {
        v1::Layer {
            digest: "sha256:0123456789abcdef".to_owned(),
            size: 48 << 20,
            fetched,
            state: state.into(),
            transferred: fetched,
            resumed: 0,
        }
    }

    #[test]
    fn a_line_fits_and_shows_the_share() {
        let half = line(&layer(24 << 20, State::Fetching));
        assert_eq!(half, "0123456789ab [============            ]     24.0 MiB of 48.0 MiB");
        let most = v1::Layer { size: u64::MAX, ..layer(u64::MAX, State::Waiting) };
        assert!(line(&most).len() <= 80, "{}", line(&most));
        assert!(line(&layer(1 << 60, State::Done)).contains("[========================]"));
        assert!(line(&v1::Layer { size: 0, ..layer(0, State::Done) }).ends_with("here"));
    }

    #[test]
    fn bars_replace_each_other() {
        let mut display = Display::new(true);
        let progress = v1::Progress { layers: vec![layer(0, State::Fetching), layer(0, State::Waiting)] };
        let first = display.update(&progress);
        assert!(!first.contains("\u{1b}[2A") && first.lines().count() == 2);
        assert_eq!(display.update(&progress), "");
        let last = display.finish();
        assert!(last.starts_with("\u{1b}[2A") && last.lines().all(|line| line.contains("here")), "{last}");
    }

    #[test]
    fn without_a_terminal_only_changes_are_told() {
        let mut display = Display::new(false);
        let mut told = String::new();
        for state in [layer(0, State::Waiting), layer(0, State::Fetching), layer(9, State::Fetching)] {
            told.push_str(&display.update(&v1::Progress { layers: vec![state] }));
        }
        told.push_str(&display.finish());
        told.push_str(&display.finish());
        assert_eq!(told, "fetch 0123456789ab 48.0 MiB\nhere  0123456789ab 48.0 MiB\n");
    }

    #[test]
    fn for_programs() {
        let layer = layer_json(&layer(7, State::Fetching));
        assert_eq!((layer["fetched"].as_u64(), layer["state"].as_str()), (Some(7), Some("fetching")));
    }
}
