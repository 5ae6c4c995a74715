//! Whether a webhook as a whole takes anything: the circuit breaker.
//!
//! While nothing succeeds, one room is tried now and then, whatever its own schedule says, so that the end of
//! an outage shows within a minute. Once several rooms have failed in a row, or the receiver asked for less, that
//! is the only thing that is tried: the others wait. The first success lets everything go again, and says
//! whether the rooms that have waited meanwhile are to be released from their schedules.
//!
//! It lives in memory, each dispatcher's own. A dispatcher that starts, or has seen no success for a while, looks
//! into the store whether rooms are failing ([`Breaker::suspect`]), so an outage outlasts no restart unseen.

use std::{collections::BTreeSet, time::Duration};

use crate::clock::Timestamp;

/// So many rooms must have failed since the last success for the others to wait: fewer may be rooms with a message
/// that the receiver cannot bear.
const ROOMS: usize = 5;

/// The pauses between probes.
const PROBES: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_mins(1),
];

/// A webhook that succeeded so recently is not suspected.
const FRESH: Duration = Duration::from_mins(1);

/// The longest that a `Retry-After` holds a whole webhook.
const LONGEST_HOLD: Duration = Duration::from_hours(1);

/// What may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Nothing.
    Nothing,
    /// One delivery of any room.
    Probe,
    /// What is due.
    Due,
    /// What is due, or else one delivery of any room.
    DueOrProbe,
}

/// A failed attempt, as far as it tells of the webhook.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed<'a> {
    pub(super) room_id: &'a str,
    /// The receiver asks for less, not for this room to be left alone (429, 502 and 504).
    pub(super) slows_all: bool,
    /// How long it asked to wait.
    pub(super) asked: Option<Duration>,
}

/// The state of one webhook.
#[derive(Debug)]
pub(super) struct Breaker {
    /// Failures that last less than this leave rooms to their schedules.
    patience: Duration,
    /// Since when nothing has succeeded; the epoch when that is not known.
    failing_since: Option<Timestamp>,
    failed_rooms: BTreeSet<String>,
    throttled: bool,
    probes: usize,
    next_probe: Timestamp,
    hold_until: Timestamp,
    last_success: Option<Timestamp>,
}

impl Breaker {
    /// One that lets everything go; `patience` is the first wait of the webhook's schedule.
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            patience: patience.min(Duration::from_secs(5)),
            failing_since: None,
            failed_rooms: BTreeSet::new(),
            throttled: false,
            probes: 0,
            next_probe: Timestamp::default(),
            hold_until: Timestamp::default(),
            last_success: None,
        }
    }

    fn is_open(&self) -> bool {
        self.throttled || self.failed_rooms.len() >= ROOMS
    }

    /// What may be sent now; `busy`: an attempt is under way.
    pub(super) fn admits(&self, now: Timestamp, busy: bool) -> Admission {
        if now < self.hold_until {
            return Admission::Nothing;
        }
        if self.failing_since.is_none() {
            return Admission::Due;
        }
        match (self.is_open(), now >= self.next_probe && !busy) {
            (true, true) => Admission::Probe,
            (true, false) => Admission::Nothing,
            (false, true) => Admission::DueOrProbe,
            (false, false) => Admission::Due,
        }
    }

    /// When more may be sent than now, if that is known.
    pub(super) fn next(&self, now: Timestamp) -> Option<Timestamp> {
        if now < self.hold_until {
            return Some(self.hold_until);
        }
        (self.failing_since.is_some() && now < self.next_probe).then_some(self.next_probe)
    }

    /// A probe is made, or there was nothing to make it with.
    pub(super) fn probed(&mut self, now: Timestamp) {
        self.probes = (self.probes + 1).min(PROBES.len() - 1);
        self.next_probe = now.plus(PROBES.get(self.probes).copied().unwrap_or_default());
    }

    /// Something was taken. Answers whether rooms that have failed are to be tried again now.
    pub(super) fn success(&mut self, now: Timestamp) -> bool {
        let release = self.failing_since.is_some_and(|since| now.since(since) >= self.patience);
        *self = Self { last_success: Some(now), ..Self::new(self.patience) };
        release
    }

    /// Something failed. Answers whether the other rooms wait from now on.
    pub(super) fn failure(&mut self, failed: Failed<'_>, now: Timestamp) -> bool {
        let was_open = self.is_open();
        if self.failing_since.is_none() {
            self.failing_since = Some(now);
            self.next_probe = now.plus(PROBES.first().copied().unwrap_or_default());
        }
        if self.failed_rooms.len() < ROOMS {
            self.failed_rooms.insert(failed.room_id.to_owned());
        }
        if failed.slows_all {
            self.throttled = true;
            let asked = failed.asked.unwrap_or_default().min(LONGEST_HOLD);
            self.hold_until = self.hold_until.max(now.plus(asked)).max(self.next_probe);
        }
        self.is_open() && !was_open
    }

    /// Whether it is worth a look into the store.
    pub(super) fn is_unsure(&self, now: Timestamp) -> bool {
        self.failing_since.is_none() && self.last_success.is_none_or(|at| now.since(at) >= FRESH)
    }

    /// Rooms are failing, as the store knows, and nobody here knows since when.
    pub(super) fn suspect(&mut self, now: Timestamp) {
        self.failing_since = Some(Timestamp::default());
        self.next_probe = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::START;

    fn at(seconds: u64) -> Timestamp {
        START.plus(Duration::from_secs(seconds))
    }

    fn breaker() -> Breaker {
        Breaker::new(Duration::from_secs(5))
    }

    fn fail(breaker: &mut Breaker, room_id: &str, now: Timestamp) -> bool {
        breaker.failure(Failed { room_id, slows_all: false, asked: None }, now)
    }

    #[test]
    fn one_room_that_fails_holds_nobody_up() {
        let mut breaker = breaker();
        for second in 0..100 {
            assert!(!fail(&mut breaker, "!poison", at(second * 2)));
            assert_eq!(breaker.admits(at(second * 2), false), Admission::Due);
            assert!(!breaker.success(at(second * 2 + 1)), "nor is it released whenever another succeeds");
        }
    }

    #[test]
    fn when_everything_fails_one_room_is_tried_until_the_first_success() {
        let mut breaker = breaker();
        let opened: Vec<bool> = (0..64).map(|room| fail(&mut breaker, &format!("!{room}"), at(0))).collect();
        assert_eq!(opened.iter().filter(|opened| **opened).count(), 1, "told once");
        let mut tried = Vec::new();
        for second in 0..300 {
            match breaker.admits(at(second), false) {
                Admission::Nothing => assert!(breaker.next(at(second)).unwrap() > at(second)),
                Admission::Probe => {
                    assert_eq!(breaker.admits(at(second), true), Admission::Nothing, "one at a time");
                    tried.push(second);
                    breaker.probed(at(second));
                    fail(&mut breaker, "!1", at(second));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(tried, [1, 3, 8, 18, 48, 108, 168, 228, 288]);
        assert!(breaker.success(at(300)));
        assert_eq!(breaker.admits(at(300), true), Admission::Due);
        assert!(!breaker.success(at(301)));
    }

    #[test]
    fn a_receiver_that_asks_for_less_gets_nothing_until_then() {
        let mut breaker = breaker();
        let asked = Some(Duration::from_secs(20));
        assert!(breaker.failure(Failed { room_id: "!a", slows_all: true, asked }, at(0)));
        assert_eq!(breaker.admits(at(19), false), Admission::Nothing);
        assert_eq!(breaker.admits(at(20), false), Admission::Probe);
        breaker.probed(at(20));
        breaker.failure(Failed { room_id: "!a", slows_all: true, asked: None }, at(20));
        assert_eq!(
            breaker.admits(at(21), false),
            Admission::Nothing,
            "also when it does not say for how long"
        );
        assert_eq!(breaker.admits(at(22), false), Admission::Probe);
        let asked = Some(Duration::from_hours(1000));
        breaker.failure(Failed { room_id: "!a", slows_all: true, asked }, at(22));
        assert_eq!(breaker.admits(at(22 + 3600), false), Admission::Probe, "an hour at most");
    }

    #[test]
    fn a_start_looks_whether_rooms_are_failing() {
        let mut breaker = breaker();
        assert!(breaker.is_unsure(at(0)));
        breaker.suspect(at(0));
        assert!(!breaker.is_unsure(at(0)));
        assert_eq!(breaker.admits(at(0), false), Admission::DueOrProbe);
        assert!(breaker.success(at(0)), "how long they have been failing is not known");
        assert!(!breaker.is_unsure(at(59)));
        assert!(breaker.is_unsure(at(60)));
    }
}
