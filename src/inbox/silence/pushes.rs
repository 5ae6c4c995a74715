//! Whether the homeserver still pushes, as what comes in shows.

use std::time::Duration;

use crate::{
    clock::Timestamp,
    inbox::batch::{Arrival, Way},
};

/// What came by which way. Known for as long as a worker lives; the next one waits for evidence of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pushes {
    /// When the last transaction came.
    pushed_at: Option<Timestamp>,
    /// When something that a transaction should have brought first came by another way since then, and last.
    others: Option<(Timestamp, Timestamp)>,
}

impl Pushes {
    /// Begins with the last transaction that is known of.
    pub(super) fn since(pushed_at: Option<Timestamp>) -> Self {
        Self { pushed_at, others: None }
    }

    /// Takes in what came; it need not come in order.
    pub(super) fn note(&mut self, Arrival { way, at }: Arrival) {
        match way {
            Way::Push => {
                self.pushed_at = self.pushed_at.max(Some(at));
                self.others = self.others.filter(|(_, last)| *last > at).map(|(_, last)| (last, last));
            }
            Way::Other if self.pushed_at.is_none_or(|pushed_at| at > pushed_at) => {
                let (first, last) = self.others.unwrap_or((at, at));
                self.others = Some((first.min(at), last.max(at)));
            }
            Way::Other => {}
        }
    }

    /// When the last transaction came.
    pub(super) fn pushed_at(&self) -> Option<Timestamp> {
        self.pushed_at
    }

    /// Since when nothing is pushed, when other ways have brought something for so long.
    pub(super) fn stopped(&self, after: Duration) -> Option<Timestamp> {
        let (first, last) = self.others?;
        (last.since(first) >= after).then(|| self.pushed_at.unwrap_or(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_ways_count_since_the_last_push() {
        let after = Duration::from_millis(10);
        let mut pushes = Pushes::since(Some(Timestamp(5)));
        let mut note = |way, at| {
            pushes.note(Arrival { way, at: Timestamp(at) });
            pushes.stopped(after)
        };
        assert_eq!(note(Way::Other, 5), None, "as old as the push");
        assert_eq!(note(Way::Other, 20), None);
        assert_eq!(note(Way::Other, 29), None);
        assert_eq!(note(Way::Other, 30), Some(Timestamp(5)));
        // What was found in a timeline is worked through before a push that came earlier.
        assert_eq!(note(Way::Push, 25), None);
        assert_eq!(note(Way::Other, 40), Some(Timestamp(25)));
        assert_eq!(note(Way::Push, 41), None);
        assert_eq!(note(Way::Push, 7), None, "late");
        assert_eq!(note(Way::Other, 60), None);
        assert_eq!(Pushes::since(None).stopped(Duration::ZERO), None);
    }
}
