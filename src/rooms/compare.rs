//! Comparing a room with what is known of it, on demand.

use std::time::Duration;

use ruma::{OwnedRoomId, RoomId};
use tokio::time::sleep;

use super::{RoomsError, missed::Head, reading};
use crate::{
    clock::Timestamp,
    homeserver::{Direction, Homeserver},
    model::Account,
    store::{
        Store, accounts, messages,
        readings::{self, Cause, Reading},
    },
};

/// How far a room is looked back at: what is no message is remembered for a little longer.
const MAX_AGE: Duration = Duration::from_hours(7 * 24);

/// The most events of a room that are looked at.
const MAX_EVENTS: usize = 2_000;

/// Events asked for at once.
const PAGE: usize = 100;

/// How long a push may still be on its way.
const PUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// The outcome of comparing a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The events that were looked at.
    pub events: usize,
    /// Those of which nothing is known, the oldest first.
    pub missing: Vec<String>,
}

/// Compares a room's timeline with what is known of it, back to when coucou began to relay it, to the account's join, or a
/// week. It changes nothing.
///
/// # Errors
/// When the homeserver or the store fails.
pub async fn compare(
    store: &Store,
    homeserver: &Homeserver,
    account: &Account,
    room_id: &RoomId,
    now: Timestamp,
) -> Result<Compared, RoomsError> {
    let begun = messages::first_at(store.db(), room_id).await?.unwrap_or_default();
    let since = begun.max(now.minus(MAX_AGE)).max(accounts::created_at(store.db(), account.id).await?);
    let (mut looked_at, mut unknown, mut from) = (0, Vec::new(), None);
    loop {
        let page =
            homeserver.messages(&account.user_id, room_id, Direction::Backwards, from.as_deref(), PAGE);
        let page = page.await?;
        let heads: Vec<Head> = page.events.iter().filter_map(|event| Head::of(event)).collect();
        let is_older = |head: &Head| {
            head.is_join_of(&account.user_id) || head.sent_at().is_some_and(|sent_at| sent_at < since.0)
        };
        let end = heads.iter().position(is_older);
        let compared = heads[..end.unwrap_or(heads.len())].iter().filter(|head| head.may_be_message());
        let ids: Vec<&str> = compared.map(|head| &*head.event_id).collect();
        let found = readings::unknown(store.db(), room_id, &ids).await?;
        looked_at += ids.len();
        unknown.extend(ids.into_iter().filter(|id| found.contains(*id)).map(str::to_owned));
        from = page.end.filter(|_| end.is_none() && looked_at < MAX_EVENTS);
        if from.is_none() {
            break;
        }
    }
    unknown.reverse();
    if !unknown.is_empty() {
        sleep(PUSH_TIMEOUT).await;
        let ids: Vec<&str> = unknown.iter().map(String::as_str).collect();
        let still = readings::unknown(store.db(), room_id, &ids).await?;
        unknown.retain(|id| still.contains(id));
    }
    Ok(Compared { room_id: room_id.to_owned(), events: looked_at, missing: unknown })
}

/// Has a room read on from its oldest missing event, by whoever works the crypto; returns whether it can be.
///
/// # Errors
/// When the homeserver or the store fails.
pub async fn mend(
    store: &Store,
    homeserver: &Homeserver,
    account: &Account,
    compared: &Compared,
    now: Timestamp,
) -> Result<bool, RoomsError> {
    let (user_id, room_id) = (&account.user_id, &compared.room_id);
    let Some(oldest) = compared.missing.first() else { return Ok(false) };
    let Some(place) = homeserver.place_before(user_id, room_id, oldest).await? else { return Ok(false) };
    let reading = Reading::new(room_id, account.id, Cause::Check, Some(place));
    let mut tx = store.begin().await?;
    reading::begin(&mut tx, store.seal()?, &reading, now).await?;
    tx.commit().await?;
    Ok(true)
}
