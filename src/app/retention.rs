//! What is kept and for how long: now and then everything that has been kept long enough is deleted.
//!
//! | what | how long |
//! |---|---|
//! | content of messages | `messages.retention`, and until it is delivered; with 0 until it is delivered |
//! | encrypted events whose key is missing, and what could not be read | `messages.retention`; with 0 [`UNREAD`] |
//! | what is pending for a webhook that is in the settings no more | `messages.retention`, [`ABANDONED`] at least |
//! | ids of messages, deliveries and of what was taken back unread, places in Megolm sessions | `messages.retention`, [`IDS`] at least |
//! | hashes of Olm messages | [`HASHES`] |
//! | hashes of transactions | [`TRANSACTIONS`] |
//! | ids of events that are no messages | [`DISMISSED`] |
//! | probes of `coucou check` | [`PROBES`] |
//!
//! One process at a time does it, under a lease of its own; a process that dies leaves the rest to the next
//! round, whoever makes it. Batches are small and there is a pause after each, so that whoever relays messages
//! meanwhile notices nothing.

use std::{error::Error, time::Duration};

use rand::Rng;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::{
    clock::{Clock, Timestamp},
    model::WebhookId,
    store::{
        Lease, Store, StoreError, Tx, dismissed, inbox, leases, messages, probes, redacted,
        retention::{self, Place},
    },
};

/// Encrypted events whose key is missing, when nothing is to be kept: as long as bridges use a key, so that
/// one which comes late still finds its messages.
const UNREAD: Duration = Duration::from_hours(7 * 24);

/// What is pending for a webhook that is gone: long enough to notice that it was taken out by mistake.
const ABANDONED: Duration = Duration::from_hours(7 * 24);

/// Ids, by which a repeat is known, of a message or of a ciphertext. Homeservers repeat what they are not sure
/// of within days; a year leaves room for whatever is restored from a backup. A ciphertext that is replayed
/// later still is refused by what remains: one number for each Megolm session.
const IDS: Duration = Duration::from_hours(365 * 24);

/// Hashes of Olm messages. The ratchet itself refuses a repeat, they only tell it from a broken session; and
/// the homeserver repeats to-device messages until they are acknowledged, which coucou does at once.
const HASHES: Duration = Duration::from_hours(90 * 24);

/// Hashes of transactions, by which a repeat is known before it is looked into.
const TRANSACTIONS: Duration = Duration::from_hours(24);

/// Events that are no messages: longer than `coucou check --rooms` looks back.
const DISMISSED: Duration = Duration::from_hours(8 * 24);

/// What `coucou check` sent to our own device.
const PROBES: Duration = Duration::from_hours(1);

/// The name of the lease, and how long it lasts without renewal.
const LEASE: &str = "retention";
const LASTS: Duration = Duration::from_mins(1);

/// The time between two rounds; less when content is kept for less.
const PAUSE: Duration = Duration::from_mins(10);
const SHORTEST_PAUSE: Duration = Duration::from_mins(1);

/// The time between two batches.
const BREATH: Duration = Duration::from_millis(10);

/// After so many batches a round tells how far it is.
const TELL_EVERY: u32 = 100;

/// How long what is kept, by [`Round::run`]'s steps.
#[derive(Clone, Copy, Debug)]
struct Periods {
    content: Duration,
    unread: Duration,
    abandoned: Duration,
    ids: Duration,
}

impl Periods {
    fn of(retention: Duration) -> Self {
        Self {
            content: retention,
            unread: if retention.is_zero() { UNREAD } else { retention },
            abandoned: retention.max(ABANDONED),
            ids: retention.max(IDS),
        }
    }
}

/// Makes rounds until told to stop.
pub(super) async fn run(shared: Shared, webhooks: Vec<WebhookId>, stop: CancellationToken) {
    let retention = shared.config.messages.retention;
    let pause = PAUSE.min(retention / 10).max(SHORTEST_PAUSE);
    let holder = format!("{:08x}", rand::rng().random::<u32>());
    while !stop.is_cancelled() {
        let round = Round {
            store: &shared.store,
            clock: &*shared.clock,
            periods: Periods::of(retention),
            webhooks: &webhooks,
            holder: &holder,
            stop: &stop,
        };
        if let Err(error) = round.run().await {
            tracing::debug!(error = &error as &dyn Error, "could not delete what has expired");
        }
        let wait = pause.mul_f64(rand::rng().random_range(0.8..1.2));
        tokio::select! { () = stop.cancelled() => {}, () = sleep(wait) => {} }
    }
}

/// How much a round has deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Swept {
    contents: u64,
    /// Of these the content stays, because it is still to be delivered.
    undelivered: u64,
    unread: u64,
    set_aside: u64,
    abandoned: u64,
    ids: u64,
    indexes: u64,
    hashes: u64,
    transactions: u64,
}

impl Swept {
    /// Whether there is anything that somebody may want to know.
    fn is_worth_telling(&self) -> bool {
        let Self { contents, unread, set_aside, abandoned, ids, indexes, hashes, .. } = self;
        contents + unread + set_aside + abandoned + ids + indexes + hashes > 0
    }

    fn tell(&self, what: &'static str) {
        let Self { contents, undelivered, unread, set_aside, abandoned, ids, indexes, hashes, .. } = self;
        tracing::info!(contents, undelivered, unread, set_aside, abandoned, ids, indexes, hashes, what);
    }
}

/// One round.
struct Round<'a> {
    store: &'a Store,
    clock: &'a dyn Clock,
    periods: Periods,
    /// The webhooks of the settings.
    webhooks: &'a [WebhookId],
    holder: &'a str,
    stop: &'a CancellationToken,
}

/// The things that expire, in the order of a round: what is given up is no longer to be delivered, and only
/// what has no content is deleted whole.
#[derive(Clone, Copy, Debug)]
enum Step {
    Transactions,
    SetAside,
    Unread,
    Held,
    Abandoned(WebhookId),
    Contents,
    Ids,
    Redacted,
    Dismissed,
    Indexes,
    Hashes,
}

impl Round<'_> {
    /// Deletes all that has expired, unless another process is at it. Stops half-way when told to.
    async fn run(&self) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let mut tx = self.store.begin().await?;
        let lease = leases::claim(&mut tx, LEASE, self.holder, self.clock.now(), LASTS).await?;
        tx.commit().await?;
        let Some(lease) = lease else { return Ok(swept) };
        let mut steps = vec![Step::Transactions, Step::SetAside, Step::Unread, Step::Held];
        let gone = retention::abandoned(self.store.db(), self.webhooks).await?;
        steps.extend(gone.into_iter().map(Step::Abandoned));
        steps.extend([
            Step::Contents,
            Step::Ids,
            Step::Redacted,
            Step::Dismissed,
            Step::Indexes,
            Step::Hashes,
        ]);
        let mut batches = 0;
        for step in steps {
            let mut place = Some(Place::default());
            while let Some(from) = place.take().filter(|_| !self.stop.is_cancelled()) {
                place = self.batch(&lease, step, from, &mut swept).await?;
                batches += 1;
                if batches % TELL_EVERY == 0 {
                    swept.tell("deleting what has expired");
                }
                if place.is_some() {
                    sleep(BREATH).await;
                }
            }
        }
        let mut tx = self.store.begin().await?;
        leases::release(&mut tx, &lease).await?;
        tx.commit().await?;
        if swept.is_worth_telling() {
            swept.tell("deleted what had expired");
        }
        if swept.abandoned > 0 {
            tracing::warn!(
                deliveries = swept.abandoned,
                "gave up deliveries for webhooks that are in the settings no more"
            );
        }
        Ok(swept)
    }

    /// One batch, in a transaction of its own; answers where to go on, if there is more.
    async fn batch(
        &self,
        lease: &Lease,
        step: Step,
        from: Place,
        swept: &mut Swept,
    ) -> Result<Option<Place>, StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        leases::renew(&mut tx, lease, now, LASTS).await?;
        if let Step::Contents = step {
            let before = before(now, self.periods.content);
            let purged = retention::purge_content(&mut tx, before, &from, now).await?;
            tx.commit().await?;
            swept.contents += purged.count;
            swept.undelivered += purged.undelivered;
            return Ok(purged.next);
        }
        let (count, most, total) = self.delete(&mut tx, step, now, swept).await?;
        tx.commit().await?;
        *total += count;
        Ok((count >= most).then_some(from))
    }

    /// Deletes a batch of what has no content; answers how many rows that was, how many it could have been,
    /// and where to count them.
    async fn delete<'s>(
        &self,
        tx: &mut Tx,
        step: Step,
        now: Timestamp,
        swept: &'s mut Swept,
    ) -> Result<(u64, u64, &'s mut u64), StoreError> {
        let Periods { unread, abandoned, ids, .. } = self.periods;
        let most = retention::BATCH.unsigned_abs();
        Ok(match step {
            Step::Transactions => {
                let count = inbox::prune(tx, now.minus(TRANSACTIONS)).await?;
                messages::counts::prune(tx, now).await?;
                probes::prune(tx, now.minus(PROBES)).await?;
                (count, inbox::PRUNE_BATCH, &mut swept.transactions)
            }
            Step::SetAside => {
                let before = now.minus(unread);
                (retention::delete_set_aside(tx, before).await?, most, &mut swept.set_aside)
            }
            Step::Unread => (retention::delete_ledger(tx, now.minus(unread)).await?, most, &mut swept.unread),
            Step::Held => (retention::delete_held(tx, now.minus(unread)).await?, most, &mut swept.unread),
            Step::Abandoned(webhook) => {
                let before = now.minus(abandoned);
                (retention::give_up(tx, webhook, before).await?, most, &mut swept.abandoned)
            }
            Step::Contents => (0, most, &mut swept.contents),
            Step::Ids => (retention::delete_messages(tx, now.minus(ids)).await?, most, &mut swept.ids),
            Step::Redacted => {
                (redacted::prune(tx, now.minus(ids)).await?, redacted::PRUNE_BATCH, &mut swept.ids)
            }
            Step::Dismissed => {
                let count = dismissed::prune(tx, now.minus(DISMISSED)).await?;
                (count, dismissed::PRUNE_BATCH, &mut swept.transactions)
            }
            Step::Indexes => (retention::forget_indexes(tx, now.minus(ids)).await?, most, &mut swept.indexes),
            Step::Hashes => (retention::delete_hashes(tx, now.minus(HASHES)).await?, most, &mut swept.hashes),
        })
    }
}

/// The time before which content expires: with 0 all that is there, this millisecond's too.
fn before(now: Timestamp, period: Duration) -> Timestamp {
    if period.is_zero() { now.plus(Duration::from_millis(1)) } else { now.minus(period) }
}

#[cfg(test)]
mod tests;
