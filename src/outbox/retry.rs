//! When to try again: what a webhook's schedule says, and what the receiver asks for.
//!
//! Each wait is stretched by up to a quarter at random, so that rooms that failed together do not come back
//! together. A `Retry-After` is never undercut, but counts for a day at most.

use std::time::Duration;

use rand::Rng;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use crate::{clock::Timestamp, model::Schedule, store::outbox::MAX_HOLD};

/// A wait is stretched by up to this factor.
const MAX_STRETCH: f64 = 1.25;

/// The longest wait after each number of failed attempts, and `least` where that is longer.
pub fn max_delays(schedule: &Schedule, least: Duration) -> impl Iterator<Item = (u32, Duration)> {
    (0_u32..).map_while(move |failures| {
        let wait = if failures == 0 { Duration::ZERO } else { schedule.wait(failures)? };
        Some((failures, wait.mul_f64(MAX_STRETCH).max(least)))
    })
}

/// How long to wait after `failures` failed attempts in a row; `None` when that was the last one.
pub fn delay<R: Rng + ?Sized>(schedule: &Schedule, failures: u32, rng: &mut R) -> Option<Duration> {
    schedule.wait(failures).map(|wait| wait.mul_f64(rng.random_range(1.0..MAX_STRETCH)))
}

/// The wait that a `Retry-After` header asks for: seconds, or a date
/// ([RFC 9110](https://www.rfc-editor.org/rfc/rfc9110#field.retry-after)); [`MAX_HOLD`] at most. `None` when it is
/// neither.
#[must_use]
pub fn retry_after(header: &str, now: Timestamp) -> Option<Duration> {
    let header = header.trim();
    if !header.is_empty() && header.bytes().all(|byte| byte.is_ascii_digit()) {
        // So many seconds that they are no number are too many, too.
        let seconds = header.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(MAX_HOLD));
    }
    let date = OffsetDateTime::parse(header, &Rfc2822).ok()?;
    let at = Timestamp(date.unix_timestamp().saturating_mul(1000));
    Some(at.since(now).min(MAX_HOLD))
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn delays_follow_the_schedule_with_jitter_and_end() {
        let schedule = Schedule::new(vec![Duration::from_secs(4), Duration::from_mins(2)]);
        let mut rng = StdRng::seed_from_u64(7);
        for (failures, expected) in [(1, 4), (2, 120)] {
            let delays: Vec<_> = (0..500).map(|_| delay(&schedule, failures, &mut rng).unwrap()).collect();
            let (least, most) = (delays.iter().min().unwrap(), delays.iter().max().unwrap());
            let expected = Duration::from_secs(expected);
            assert!(*least >= expected && *most < expected.mul_f64(1.25), "{failures}: {least:?} {most:?}");
            assert!(*most > expected.mul_f64(1.2), "{failures}: {least:?} {most:?}");
        }
        assert_eq!(delay(&schedule, 3, &mut rng), None);
        assert_eq!(delay(&Schedule::new(vec![]), 1, &mut rng), None);
    }

    #[test]
    fn no_delay_is_longer_than_its_bound() {
        let schedule = Schedule::new(vec![Duration::from_secs(4), Duration::from_mins(20)]);
        let least = Duration::from_mins(1);
        let bounds: Vec<_> = max_delays(&schedule, least).collect();
        assert_eq!(bounds, [(0, least), (1, least), (2, Duration::from_mins(25))]);
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..500 {
            assert!(delay(&schedule, 2, &mut rng).unwrap() < bounds[2].1);
        }
    }

    #[test]
    fn a_retry_after_is_seconds_or_a_date_and_bounded() {
        let now = Timestamp(784_111_777_000);
        assert_eq!(retry_after("120", now), Some(Duration::from_mins(2)));
        assert_eq!(retry_after(" 0 ", now), Some(Duration::ZERO));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:50:37 GMT", now), Some(Duration::from_mins(1)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:40:37 GMT", now), Some(Duration::ZERO));
        for long in ["86401", "99999999999999999999", "Sun, 06 Nov 2994 08:49:37 GMT"] {
            assert_eq!(retry_after(long, now), Some(MAX_HOLD), "{long}");
        }
        for odd in ["", "soon", "-5", "1.5"] {
            assert_eq!(retry_after(odd, now), None, "{odd}");
        }
    }
}
