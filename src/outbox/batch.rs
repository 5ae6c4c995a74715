//! Messages that go together in one request: which they are, and what becomes of them.
//!
//! A batch is taken or refused as a whole. Its id is made of its messages' ids, so that the same id always means the
//! same messages; and its messages are settled before it is first sent, so that it is the same at every attempt.

use sha2::{Digest, Sha256};

use super::Dispatcher;
use crate::{
    clock::Timestamp,
    model::WebhookId,
    store::{
        StoreError, Tx,
        outbox::{self, Claimed, Loaded, SHARED},
    },
};

/// The most bytes of payloads in one batch; a single message may be larger.
const MOST_BYTES: usize = 1 << 20;

impl Dispatcher {
    /// Claimed queues as they are to be sent: what waits without an order is shared out, to `most` queues at most and
    /// to as many as there are free slots.
    pub(super) async fn shared_out(
        &self,
        tx: &mut Tx,
        claimed: Vec<Claimed>,
        now: Timestamp,
        most: usize,
    ) -> Result<Vec<Claimed>, StoreError> {
        let mut queues = Vec::with_capacity(claimed.len());
        for (at, one) in claimed.iter().enumerate() {
            let Some(served) = self.destinations.get(&one.webhook_id).filter(|_| one.room_id == SHARED)
            else {
                queues.push(one.clone());
                continue;
            };
            let of_it = |queue: &&Claimed| queue.webhook_id == one.webhook_id && queue.room_id != SHARED;
            let others = queues.iter().filter(of_it).count() + claimed.iter().skip(at).filter(of_it).count();
            let free = served.slots.available_permits().saturating_sub(others).min(most);
            let size = served.settings.flow.most();
            queues.extend(outbox::share_out(tx, one, now, self.config.lease, (size, free)).await?);
        }
        Ok(queues)
    }

    /// The first deliveries of each of these queues of one webhook; of one with batches, the next batch of each.
    pub(super) async fn load(
        &self,
        queues: &[Claimed],
        most: usize,
    ) -> Result<Option<Vec<Vec<Loaded>>>, StoreError> {
        let batch = |id: &WebhookId| self.destinations.get(id)?.settings.flow.batch;
        let batch = queues.first().and_then(|queue| batch(&queue.webhook_id));
        let most = batch.map_or(most, |batch| usize::from(batch.most));
        let mut loaded = outbox::load(self.store.db(), self.store.seal()?, queues, most).await?;
        if batch.is_none() {
            return Ok(Some(loaded));
        }
        let mut begun = Vec::new();
        for (queue, deliveries) in queues.iter().zip(&mut loaded) {
            cut(queue, deliveries);
            begun.extend(ends_at(queue, deliveries).map(|until| (queue, until)));
        }
        if !begun.is_empty() {
            let mut tx = self.store.begin().await?;
            outbox::begin_batches(&mut tx, &begun).await?;
            tx.commit().await?;
        }
        Ok(Some(loaded))
    }
}

/// Keeps of what was loaded from a queue the messages of its next batch.
pub(super) fn cut(claimed: &Claimed, deliveries: &mut Vec<Loaded>) {
    if let Some(until) = claimed.batch_until {
        // Unless all of it is gone, given up or taken back: then another one begins.
        let begun = deliveries.iter().take_while(|one| one.sequence <= until).count();
        if begun > 0 {
            deliveries.truncate(begun);
            return;
        }
    }
    let (mut bytes, mut count) = (0_usize, 0);
    for one in deliveries.iter() {
        bytes = bytes.saturating_add(one.payload.as_ref().map_or(0, Vec::len));
        if count > 0 && bytes > MOST_BYTES {
            break;
        }
        count += 1;
    }
    deliveries.truncate(count);
}

/// Where a batch that is about to be sent for the first time ends; `None` when that is known, or need not be: a
/// queue that is no room's gets nothing more.
pub(super) fn ends_at(claimed: &Claimed, deliveries: &[Loaded]) -> Option<i64> {
    let last = deliveries.last()?.sequence;
    (claimed.room_id.starts_with('!') && claimed.batch_until != Some(last)).then_some(last)
}

/// The id of a batch of these messages.
pub(super) fn id<'a>(message_ids: impl Iterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for id in message_ids {
        hash.update(id);
        hash.update([0]);
    }
    hash.finalize().iter().take(20).fold("bat_".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_that_of_its_messages_in_their_order() {
        let one = id(["msg_1", "msg_2"].into_iter());
        assert_eq!(one, id(["msg_1", "msg_2"].into_iter()));
        assert_eq!((one.len(), one.contains('.')), (44, false));
        for other in [["msg_2", "msg_1"], ["msg_1m", "sg_2"], ["msg_1", "msg_3"]] {
            assert_ne!(one, id(other.into_iter()), "{other:?}");
        }
    }
}
