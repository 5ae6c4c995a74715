use std::time::Duration;

use super::{Direction, MessageType, Pattern, Trust, WebhookId};

/// Which messages a webhook is told of. A part that is empty lets everything pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Networks.
    pub networks: Vec<Pattern>,
    /// Room ids.
    pub rooms: Vec<Pattern>,
    /// User ids of senders.
    pub senders: Vec<Pattern>,
    /// In or out.
    pub directions: Vec<Direction>,
    /// Kinds of content, of [`Filter::KINDS`].
    pub kinds: Vec<String>,
    /// Types of events.
    pub types: Vec<MessageType>,
    /// What is known of the encrypting device; `None` is a message of which nothing is.
    pub trust: Vec<Option<Trust>>,
    /// Only what was end-to-end encrypted.
    pub encrypted_only: bool,
}

impl Filter {
    /// The kinds of content there are.
    pub const KINDS: [&str; 19] = [
        "text",
        "notice",
        "emote",
        "image",
        "video",
        "audio",
        "voice",
        "file",
        "gallery",
        "sticker",
        "location",
        "poll",
        "poll_response",
        "poll_end",
        "call",
        "reaction",
        "redaction",
        "redacted",
        "unknown",
    ];
}

/// A webhook, as far as it matters when a message is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The webhook.
    pub webhook_id: WebhookId,
    /// What it is told of.
    pub filter: Filter,
    /// In which order, and how many at once.
    pub flow: Flow,
}

/// In which order deliveries are made, and how many at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Which deliveries wait for which.
    pub ordering: Ordering,
    /// Whether several messages go in one request.
    pub batch: Option<Batch>,
}

impl Flow {
    /// The most messages that go in one request.
    #[must_use]
    pub fn most(&self) -> usize {
        self.batch.map_or(1, |batch| usize::from(batch.most).max(1))
    }

    /// How long a message may wait for others to go along with.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.batch.map_or(Duration::ZERO, |batch| batch.wait)
    }
}

/// Which deliveries of a webhook wait for which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ordering {
    /// A room's next delivery is made when the one before it was taken or given up.
    #[default]
    Strict,
    /// None waits for another.
    None,
}

/// Messages that go in one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// So many at most.
    pub most: u16,
    /// How long a message may wait for others.
    pub wait: Duration,
}

/// How much of a message a webhook is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// All.
    #[default]
    Full,
    /// Who wrote what kind of thing where and when, but not what.
    Metadata,
}

/// What the body of a delivery looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `type`, `timestamp`, `version` and `data`.
    #[default]
    Standard,
    /// A [CloudEvents 1.0](https://cloudevents.io) event in structured JSON.
    CloudEvents,
}

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
