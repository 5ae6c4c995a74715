//! A trial: a message to one webhook that tells nothing, sent as any other.

use rand::Rng;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};

use crate::{
    clock::Timestamp,
    messages::render_test,
    model::{Direction, Flow, Message, MessageId, MessageType, WebhookId},
    store::{
        Store, StoreError, messages,
        outbox::{self, Queued},
        webhooks,
    },
};

/// Queues a `webhook.test` for a webhook and answers its id. Trials have a queue of their own, behind no room.
///
/// # Errors
/// When the store fails.
pub async fn send(store: &Store, webhook_id: WebhookId, now: Timestamp) -> Result<MessageId, StoreError> {
    const CORRUPT: StoreError = StoreError::Corrupt("messages");
    let random: [u8; 20] = rand::rng().random();
    let id = random.iter().fold("msg_".to_owned(), |id, byte| format!("{id}{byte:02x}"));
    let room_id = OwnedRoomId::try_from(format!("!webhook-test-{}", webhook_id.0)).map_err(|_| CORRUPT)?;
    let event_id = OwnedEventId::try_from(format!("${id}")).map_err(|_| CORRUPT)?;
    let sender = OwnedUserId::try_from("@coucou:localhost").map_err(|_| CORRUPT)?;
    let message_id = MessageId(id);
    let payload = render_test(&message_id, now).map_err(|_| CORRUPT)?;
    let mut tx = store.begin().await?;
    // Of two trials at once the second waits for the first, and gets the number after it.
    webhooks::lock(&mut tx, webhook_id).await?;
    let sequence = messages::next_sequence(&mut tx, &room_id).await?;
    let message = Message {
        message_id: message_id.clone(),
        event_id,
        room_id,
        sequence: u64::try_from(sequence).map_err(|_| CORRUPT)?,
        message_type: MessageType::WebhookTest,
        network: None,
        direction: Direction::Out,
        sender,
        origin_server_ts: now,
        replaces: None,
        kind: None,
        encrypted: false,
        trust: None,
        payload,
    };
    messages::insert(&mut tx, store.seal()?, std::slice::from_ref(&message), now).await?;
    // Not its webhook's way with other messages: nobody waits for others here.
    let webhooks = vec![(webhook_id, Flow::default())];
    let queued = Queued { webhooks, message_id: message_id.as_str(), room_id: &message.room_id, sequence };
    outbox::enqueue(&mut tx, &[queued], now).await?;
    tx.commit().await?;
    Ok(message_id)
}
