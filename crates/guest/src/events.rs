//! The guest's news: numbered, bounded, readable by any number of readers.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use kina_guest_api::v1;
use tokio::sync::watch;

/// Events that are kept for readers that come later.
const CAPACITY: usize = 256;

/// The last events.
#[derive(Debug)]
pub(crate) struct Events {
    kept: Mutex<VecDeque<v1::Event>>,
    newest: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self { kept: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl Events {
    /// Adds an event under the next number; the oldest goes when there are too many.
    pub(crate) fn emit(&self, what: v1::event::What) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = *self.newest.borrow() + 1;
        if kept.len() == CAPACITY {
            kept.pop_front();
        }
        kept.push_back(v1::Event { sequence, what: Some(what) });
        // Inside the lock: the numbers that readers see only grow.
        self.newest.send_replace(sequence);
    }

    /// The number of the newest event; 0 before the first.
    pub(crate) fn newest(&self) -> u64 {
        *self.newest.borrow()
    }

    /// Wakes whenever there is a newer event.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Events with a higher number than `after`. If some of them are gone, or
    /// `after` is a number of another guest's, a `lost` comes first, whose
    /// number is that of the event before the next one.
    pub(crate) fn after(&self, after: u64) -> Vec<v1::Event> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = *self.newest.borrow();
        let oldest = kept.front().map_or(newest + 1, |event| event.sequence);
        let foreign = after > newest;
        let from = if foreign { 0 } else { after };
        let gone = (foreign || from + 1 < oldest)
            .then(|| v1::Event { sequence: oldest - 1, what: Some(v1::event::What::Lost(v1::Empty {})) });
        let rest = kept.iter().filter(|event| event.sequence > from).cloned();
        gone.into_iter().chain(rest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oom(id: &str) -> v1::event::What {
        v1::event::What::Oom(v1::ContainerOom { id: id.to_owned() })
    }

    fn numbers(events: &[v1::Event]) -> Vec<u64> {
        events.iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn readers_see_what_they_have_not_seen() {
        let events = Events::default();
        assert!(events.after(0).is_empty());
        for id in ["a", "b", "c"] {
            events.emit(oom(id));
        }
        assert_eq!(numbers(&events.after(0)), [1, 2, 3]);
        assert_eq!(numbers(&events.after(2)), [3]);
        assert!(events.after(3).is_empty());
    }

    #[test]
    fn a_reader_too_far_behind_is_told() {
        let events = Events::default();
        for _ in 0..CAPACITY + 3 {
            events.emit(oom("a"));
        }
        let seen = events.after(1);
        assert_eq!(seen[0].what, Some(v1::event::What::Lost(v1::Empty {})));
        assert_eq!(seen[0].sequence, 3);
        assert_eq!(seen[1].sequence, 4);
        assert_eq!(seen.len(), CAPACITY + 1);
        assert_eq!(numbers(&events.after(3)).first(), Some(&4));
    }

    #[test]
    fn a_number_of_another_guest_is_not_believed() {
        let events = Events::default();
        events.emit(oom("a"));
        let seen = events.after(900);
        assert_eq!(seen[0].what, Some(v1::event::What::Lost(v1::Empty {})));
        assert_eq!(seen[1].sequence, 1);
    }
}
