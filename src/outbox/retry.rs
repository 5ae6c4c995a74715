//! When to try again.
//!
//! The delays grow from one second to a day. The first nine are short, because most outages are: a receiver
//! that restarts, a deployment, a network that flaps. From half an hour on they are those that Standard
//! Webhooks recommends, and the last one repeats for ever: nothing is given up.
//!
//! Each delay is stretched by up to a quarter at random, so that rooms that failed together do not come
//! back together. A `Retry-After` is never undercut, but counts for a day at most.

use std::time::Duration;

use rand::Rng;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use crate::clock::Timestamp;

const DAY: Duration = Duration::from_hours(24);

/// The delay after the first failed attempt, the second, and so on.
const SCHEDULE: [Duration; 16] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_mins(1),
    Duration::from_mins(2),
    Duration::from_mins(5),
    Duration::from_mins(10),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(5),
    Duration::from_hours(10),
    Duration::from_hours(14),
    Duration::from_hours(20),
    DAY,
];

/// How long to wait after `failures` failed attempts in a row, when the last one asked to wait for `asked`.
pub fn delay<R: Rng + ?Sized>(failures: u32, asked: Option<Duration>, rng: &mut R) -> Duration {
    let at = usize::try_from(failures.saturating_sub(1)).unwrap_or(usize::MAX);
    let scheduled = SCHEDULE.get(at).copied().unwrap_or(DAY);
    let base = scheduled.max(asked.unwrap_or_default().min(DAY));
    base.mul_f64(rng.random_range(1.0..1.25))
}

/// The wait that a `Retry-After` header asks for: seconds, or a date
/// ([RFC 9110](https://www.rfc-editor.org/rfc/rfc9110#field.retry-after)). `None` when it is neither.
#[must_use]
pub fn retry_after(header: &str, now: Timestamp) -> Option<Duration> {
    let header = header.trim();
    if let Ok(seconds) = header.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let date = OffsetDateTime::parse(header, &Rfc2822).ok()?;
    let at = Timestamp(date.unix_timestamp().saturating_mul(1000));
    Some(at.since(now))
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn bounds(failures: u32, asked: Option<Duration>) -> (Duration, Duration) {
        let mut rng = StdRng::seed_from_u64(7);
        let delays: Vec<_> = (0..500).map(|_| delay(failures, asked, &mut rng)).collect();
        (*delays.iter().min().unwrap(), *delays.iter().max().unwrap())
    }

    #[test]
    fn delays_follow_the_schedule_with_jitter_and_never_end() {
        for (failures, expected) in
            [(0, 1), (1, 1), (2, 2), (9, 600), (16, 86_400), (17, 86_400), (u32::MAX, 86_400)]
        {
            let (least, most) = bounds(failures, None);
            let expected = Duration::from_secs(expected);
            assert!(least >= expected && most < expected.mul_f64(1.25), "{failures}: {least:?} {most:?}");
            assert!(most > expected.mul_f64(1.2), "{failures}: {least:?} {most:?}");
        }
        assert!(SCHEDULE.is_sorted());
    }

    #[test]
    fn a_retry_after_is_never_undercut_and_bounded() {
        let (least, _) = bounds(1, Some(Duration::from_mins(2)));
        assert!(least >= Duration::from_mins(2));
        let (least, most) = bounds(8, Some(Duration::from_secs(1)));
        assert!(least >= Duration::from_mins(5) && most < Duration::from_mins(7));
        let (least, most) = bounds(1, Some(DAY * 300));
        assert!(least >= DAY && most < DAY.mul_f64(1.25));
    }

    #[test]
    fn a_retry_after_is_seconds_or_a_date() {
        let now = Timestamp(784_111_777_000);
        assert_eq!(retry_after("120", now), Some(Duration::from_mins(2)));
        assert_eq!(retry_after(" 0 ", now), Some(Duration::ZERO));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:50:37 GMT", now), Some(Duration::from_mins(1)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:40:37 GMT", now), Some(Duration::ZERO));
        for odd in ["", "soon", "-5", "1.5", "99999999999999999999"] {
            assert_eq!(retry_after(odd, now), None, "{odd}");
        }
    }
}
