//! What is usual for a network, and whether it has been quiet for longer: a pure rule.
//!
//! Quiet is measured in **expected hours**: an hour without a message counts as the share of past weeks in which that
//! same hour of the week had one. So an hour in which something always comes counts whole, a night or a weekend in which
//! nothing ever comes counts nothing, and of a network with one conversation a day each hour counts little. An hour
//! during which coucou was not there to hear counts nothing, neither now nor in what is usual.
//!
//! A network is silent when it has been quiet for as many expected hours as the settings say (`silence.after`), and
//! for twice as long as its second longest quiet time of the weeks before: the longest may have been an outage, which
//! must not hide the next one. The weeks are those before the last message, so that a silence does not become usual
//! while it lasts.

use std::{collections::BTreeSet, time::Duration};

use crate::clock::Timestamp;

/// Hours of a week.
const WEEK: i64 = 7 * 24;

/// How many weeks tell what is usual.
const WEEKS: i64 = 8;

/// How long a network must be known before anything is said of it: each hour of the week was seen twice.
const KNOWN_FOR: i64 = 2 * WEEK;

/// In how many hours something must have come: of less, nothing is usual.
const FEWEST: usize = 12;

/// How much longer than usual is worth telling. With these numbers a network that is quiet on days of its own choosing
/// is taken for silent some three times a year, one with steady traffic, however little, hardly ever.
const MARGIN: f64 = 2.0;

/// How long hours are kept, in hours: [`WEEKS`] before the last message, and as long again for networks that speak
/// rarely. Silence that would have to last longer to be noticed is not.
pub(super) const KEPT: i64 = 2 * WEEKS * WEEK;

/// The hour of a time, in hours since 1970.
pub(super) fn hour_of(at: Timestamp) -> i64 {
    at.0.div_euclid(3_600_000)
}

/// When something of a network came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    hours: BTreeSet<i64>,
    last_at: Timestamp,
}

/// How a network is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Quiet {
    /// Too little is known of it.
    Learning,
    /// It has been quiet for so many expected hours.
    Known {
        /// Expected hours since the last message.
        expected: f64,
        /// Those from which on it is silent.
        limit: f64,
    },
}

impl Quiet {
    /// Whether it has been quiet for longer than usual.
    pub(super) fn is_silent(self) -> bool {
        matches!(self, Self::Known { expected, limit } if expected >= limit)
    }
}

impl Traffic {
    /// Takes in an hour, and when something last came in it.
    pub(super) fn heard(&mut self, hour: i64, last_at: Timestamp) {
        self.hours.insert(hour);
        self.last_at = self.last_at.max(last_at);
    }

    /// When something last came.
    pub(super) fn last_at(&self) -> Timestamp {
        self.last_at
    }

    /// Forgets hours before one.
    pub(super) fn forget(&mut self, before: i64) {
        self.hours = self.hours.split_off(&before);
    }

    /// How it is now. `watched`: the hours during which coucou was there to hear.
    pub(super) fn quiet(&self, watched: &BTreeSet<i64>, now: Timestamp, after: Duration) -> Quiet {
        let last = hour_of(self.last_at);
        let earliest = last - WEEKS * WEEK + 1;
        let Some(first) = self.hours.range(earliest..=last).next().copied() else { return Quiet::Learning };
        let known_for = last - self.hours.first().copied().unwrap_or(first);
        if known_for < KNOWN_FOR || self.hours.range(first..=last).count() < FEWEST {
            return Quiet::Learning;
        }
        let week = Week::of(&self.hours, watched, first, last);
        let usual = week.usual_quiet(&self.hours, watched, first, last);
        let limit = (after.as_secs_f64() / 3600.0).max(MARGIN * usual);
        let current = hour_of(now);
        let mut expected = 0.0;
        if current > last {
            let passed = f64::from(i32::try_from(now.0.rem_euclid(3_600_000)).unwrap_or(0)) / 3_600_000.0;
            let whole: f64 = watched.range(last + 1..current).map(|hour| week.share(*hour)).sum();
            expected = whole + week.share(current) * passed;
        }
        Quiet::Known { expected, limit }
    }
}

/// How likely something comes, by hour of the week.
struct Week(Vec<f64>);

impl Week {
    fn of(heard: &BTreeSet<i64>, watched: &BTreeSet<i64>, first: i64, last: i64) -> Self {
        let slots = usize::try_from(WEEK).unwrap_or_default();
        let mut counts = vec![(0_u8, 0_u8); slots];
        for hour in first..=last {
            let is_heard = heard.contains(&hour);
            if let Some((seen, with)) = counts.get_mut(slot(hour))
                && (is_heard || watched.contains(&hour))
            {
                *seen += 1;
                *with += u8::from(is_heard);
            }
        }
        // What was seen once tells nothing.
        let share = |(seen, with): (u8, u8)| if seen < 2 { 0.0 } else { f64::from(with) / f64::from(seen) };
        Self(counts.into_iter().map(share).collect())
    }

    fn share(&self, hour: i64) -> f64 {
        self.0.get(slot(hour)).copied().unwrap_or(0.0)
    }

    /// The second longest quiet time between two hours in which something came, in expected hours.
    fn usual_quiet(&self, heard: &BTreeSet<i64>, watched: &BTreeSet<i64>, first: i64, last: i64) -> f64 {
        let (mut longest, mut second, mut quiet) = (0.0_f64, 0.0_f64, 0.0_f64);
        for hour in first..=last {
            if heard.contains(&hour) {
                second = second.max(quiet.min(longest));
                longest = longest.max(quiet);
                quiet = 0.0;
            } else if watched.contains(&hour) {
                quiet += self.share(hour);
            }
        }
        second
    }
}

fn slot(hour: i64) -> usize {
    usize::try_from(hour.rem_euclid(WEEK)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
