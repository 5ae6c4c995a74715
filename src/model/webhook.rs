use std::time::Duration;

/// The waits after failed attempts: the first after the first failure, and so on. There is one attempt more than
/// there are waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Vec<Duration>);

impl Schedule {
    /// The most waits that a schedule may have.
    pub const MOST: usize = 100;

    /// A schedule of these waits; none means a single attempt.
    #[must_use]
    pub fn new(waits: Vec<Duration>) -> Self {
        Self(waits)
    }

    /// How long to wait after `failures` failed attempts; `None` when there is no further one.
    #[must_use]
    pub fn wait(&self, failures: u32) -> Option<Duration> {
        let at = usize::try_from(failures.saturating_sub(1)).unwrap_or(usize::MAX);
        self.0.get(at).copied()
    }

    /// The waits.
    #[must_use]
    pub fn waits(&self) -> &[Duration] {
        &self.0
    }
}

impl Default for Schedule {
    /// What [Standard Webhooks](https://www.standardwebhooks.com) recommends: ten attempts in about three days.
    fn default() -> Self {
        let hours = [2, 5, 10, 14, 20, 24].into_iter().map(Duration::from_hours);
        let first = [Duration::from_secs(5), Duration::from_mins(5), Duration::from_mins(30)];
        Self(first.into_iter().chain(hours).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_schedule_has_ten_attempts_in_about_three_days() {
        let schedule = Schedule::default();
        assert_eq!(schedule.waits().len(), 9);
        let total: Duration = schedule.waits().iter().sum();
        assert!(total > Duration::from_hours(74) && total < Duration::from_hours(76), "{total:?}");
        assert_eq!(schedule.wait(1), Some(Duration::from_secs(5)));
        assert_eq!(schedule.wait(9), Some(Duration::from_hours(24)));
        assert_eq!((schedule.wait(10), schedule.wait(u32::MAX)), (None, None));
    }
}
