//! Time, as an argument.
//!
//! Everything that depends on the time takes a [`Clock`], so that tests move it by hand. Only
//! [`SystemClock`] reads the machine's clock.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A point in time: milliseconds since the Unix epoch, as Matrix's `origin_server_ts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This time and `duration`; saturates.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This time less `duration`; saturates.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The time in seconds since 1970, as Prometheus has it.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "exact for some hundred thousand years")]
    pub fn unix_seconds(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// The last time that [`Self::rfc3339`] can write: the end of the year 9999.
    pub const LAST: Self = Self(253_402_300_799_999);

    /// The first time that [`Self::rfc3339`] can write: the beginning of the year 1.
    const FIRST: Self = Self(-62_135_596_800_000);

    /// The time as RFC 3339 with milliseconds, in UTC: `2026-11-22T04:28:00.123Z`. Years before 1 and after 9999 have no
    /// such form: the nearest time that has one is written.
    #[must_use]
    pub fn rfc3339(self) -> String {
        let this = self.clamp(Self::FIRST, Self::LAST);
        // Always three digits, which the format of the library's own would shorten, so that text sorts as time.
        OffsetDateTime::from_unix_timestamp(this.0.div_euclid(1000))
            .ok()
            .and_then(|time| time.format(&Rfc3339).ok())
            .and_then(|text| Some(format!("{}.{:03}Z", text.strip_suffix('Z')?, this.0.rem_euclid(1000))))
            .unwrap_or_else(|| "1970-01-01T00:00:00.000Z".to_owned())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

/// Where the time comes from.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The current time.
    fn now(&self) -> Timestamp;
}

/// A clock that can be handed around.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the system time")]
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::default().plus(elapsed)
    }
}

/// A clock that stands still until it is moved: for tests.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that shows `start`.
    #[must_use]
    pub fn at(start: Timestamp) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(start.0)))
    }

    /// Moves the clock forward.
    pub fn advance(&self, duration: Duration) {
        self.0.store(self.now().plus(duration).0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_written_as_rfc_3339() {
        assert_eq!(Timestamp(1_700_000_000_123).rfc3339(), "2023-11-14T22:13:20.123Z");
        assert_eq!(Timestamp(1_700_000_000_100).rfc3339(), "2023-11-14T22:13:20.100Z");
        assert_eq!(Timestamp(-1).rfc3339(), "1969-12-31T23:59:59.999Z");
        for (time, written) in
            [(Timestamp::LAST, "9999-12-31T23:59:59.999Z"), (Timestamp::FIRST, "0001-01-01T00:00:00.000Z")]
        {
            assert_eq!(time.rfc3339(), written);
            assert_eq!(Timestamp(time.0.saturating_add(time.0.signum())).rfc3339(), written);
            assert_eq!(Timestamp(i64::MAX * time.0.signum()).rfc3339(), written);
        }
    }

    #[test]
    fn time_arithmetic_saturates() {
        assert_eq!(Timestamp(i64::MAX).plus(Duration::from_secs(1)), Timestamp(i64::MAX));
        assert_eq!(Timestamp(5).since(Timestamp(9)), Duration::ZERO);
    }
}
