//! Events that were never pushed, found by comparing rooms' timelines with what is known.
//!
//! A homeserver keeps a transaction until it was taken, but not what waits for its turn behind it: Synapse
//! forgets that at a restart, for ever. And after a restart it does not retry what it kept until the next
//! event that interests an application service. So after every start and every outage, and now and then, the
//! timelines of an account's rooms are read from where the last comparison ended, and what is missing goes
//! through the inbox like a push.
//!
//! What is missing and how far the comparison came are stored in one transaction, so a process that dies
//! anywhere compares the same part again. An event that is pushed as well, before or after, counts once.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use ruma::{OwnedRoomId, RoomId, UserId};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use tokio::{
    sync::{Mutex, Notify},
    time::timeout,
};

use super::RoomsError;
use crate::{
    clock::SharedClock,
    homeserver::{Homeserver, HomeserverError, Timeline},
    model::Account,
    store::{Lease, Store, accounts, inbox, leases, messages, rooms},
};

/// Events of one room that are looked at; of more, the homeserver's own retries bring what is missing.
const MOST_IN_ROOM: usize = 2_000;

/// Events in one row of the inbox, as in one transaction of Synapse.
const MOST_IN_ROW: usize = 100;

/// How long the inbox's worker is held up at most while rooms are read.
const PATIENCE: Duration = Duration::from_secs(3);

/// Compares timelines, for whoever holds the crypto lease.
#[derive(Debug)]
pub struct Missed {
    store: Store,
    homeserver: Homeserver,
    lease: Lease,
    clock: SharedClock,
    /// Wakes the inbox worker.
    news: Arc<Notify>,
    /// Held by the worker during a step.
    turn: Arc<Mutex<()>>,
}

/// What a comparison saw.
struct Seen {
    /// From where the next goes on; `None` when it begins anew.
    next: Option<String>,
    gaps: Vec<Gap>,
}

/// What a comparison came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Events that are neither messages nor wait to become one. Some may be on their way.
    pub events: usize,
    /// Rooms that they are in.
    pub rooms: usize,
}

/// What is needed of an event here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    event_id: String,
    #[serde(rename = "type")]
    event_type: String,
    state_key: Option<String>,
    content: Membership,
    unsigned: Unsigned,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Unsigned {
    prev_content: Membership,
    redacted_because: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Membership {
    membership: Value,
}

impl Head {
    /// Whether it may be a message: state is read anew instead, and of what was taken back nothing is left.
    fn may_be_message(&self) -> bool {
        self.state_key.is_none() && !self.event_id.is_empty() && self.unsigned.redacted_because.is_none()
    }

    fn is_join_of(&self, user_id: &UserId) -> bool {
        self.event_type == "m.room.member"
            && self.state_key.as_deref() == Some(user_id.as_str())
            && self.content.membership == "join"
            && self.unsigned.prev_content.membership != "join"
    }
}

/// An event, its members as they came.
type Event = BTreeMap<String, Box<RawValue>>;

/// What a row of the inbox says: a transaction's body.
#[derive(Serialize)]
struct Body<'a> {
    events: &'a [Event],
}

/// What one room is missing.
struct Gap {
    room_id: OwnedRoomId,
    /// From the first missing event on, oldest first.
    events: Vec<Event>,
    missing: usize,
    /// Whether its state may have changed unheard.
    has_state: bool,
}

impl Missed {
    /// A comparison that wakes `news` when it finds something, and stops who works in `turn` while it does.
    #[must_use]
    pub fn new(
        store: Store,
        homeserver: Homeserver,
        lease: Lease,
        clock: SharedClock,
        news: Arc<Notify>,
        turn: Arc<Mutex<()>>,
    ) -> Self {
        Self { store, homeserver, lease, clock, news, turn }
    }

    /// Compares what happened in an account's rooms since the last comparison. `thorough` reads the state of
    /// rooms anew in which it may have changed: after an outage, when the news of it may be lost.
    ///
    /// # Errors
    /// When the homeserver or the store fails; the next comparison begins where this one did.
    pub async fn look(&self, account: &Account, thorough: bool) -> Result<Found, RoomsError> {
        let Some(seen) = self.read(account, thorough).await? else { return Ok(Found::default()) };
        if seen.gaps.iter().all(|gap| gap.missing == 0) {
            return self.keep(account, &seen).await;
        }
        // What follows a missing event may come and be relayed after the homeserver answered and before this is
        // stored: then nobody could tell that it was overtaken. So it is read again while no room goes on.
        let _turn = self.turn.lock().await;
        let again = timeout(PATIENCE, self.read(account, thorough)).await;
        let seen = if let Ok(again) = again { again?.unwrap_or(seen) } else { seen };
        self.keep(account, &seen).await
    }

    /// Reads the timelines; `None` when none was compared yet.
    async fn read(&self, account: &Account, thorough: bool) -> Result<Option<Seen>, RoomsError> {
        let Some(since) = accounts::events_token(self.store.db(), account.id).await? else {
            return Ok(None);
        };
        let timelines = match self.homeserver.timelines(&account.user_id, &since).await {
            Err(HomeserverError::Status { status: 400, errcode, .. }) => {
                tracing::warn!(account.user_id = %account.user_id, errcode,
                    "the homeserver does not know how far timelines were compared; beginning anew");
                return Ok(Some(Seen { next: None, gaps: Vec::new() }));
            }
            answered => answered?,
        };
        let room_ids: Vec<&RoomId> = timelines.rooms.iter().map(|room| &*room.room_id).collect();
        let unrelayed = rooms::unrelayed(self.store.db(), &room_ids).await?;
        let mut gaps = Vec::new();
        for room in timelines.rooms {
            if unrelayed.contains(room.room_id.as_str()) {
                continue;
            }
            let gap = self.gap(account, room, &since).await?;
            gaps.extend(gap.filter(|gap| gap.missing > 0 || (thorough && gap.has_state)));
        }
        Ok(Some(Seen { next: Some(timelines.next_batch), gaps }))
    }

    /// What is missing of a room; `None` when it cannot be told.
    async fn gap(&self, account: &Account, room: Timeline, since: &str) -> Result<Option<Gap>, RoomsError> {
        let room_id = room.room_id.clone();
        let Some(events) = self.whole(account, room, since).await? else { return Ok(None) };
        let mut events: Vec<(Head, Box<RawValue>)> = events
            .into_iter()
            .filter_map(|event| Some((serde_json::from_str::<Head>(event.get()).ok()?, event)))
            .collect();
        // What was said before the join is not pushed; the room's first reading decides what of it is relayed.
        if let Some(join) = events.iter().rposition(|(head, _)| head.is_join_of(&account.user_id)) {
            events.drain(..=join);
        }
        let has_state = events.iter().any(|(head, _)| head.state_key.is_some());
        events.retain(|(head, _)| head.may_be_message());
        let ids: Vec<&str> = events.iter().map(|(head, _)| &*head.event_id).collect();
        let known = messages::known_events(self.store.db(), &ids).await?;
        let is_missing = |head: &Head| !known.contains(&head.event_id);
        let first = events.iter().position(|(head, _)| is_missing(head)).unwrap_or(events.len());
        let events = events.split_off(first);
        let missing = events.iter().filter(|(head, _)| is_missing(head)).count();
        let events = events.iter().filter_map(|(_, event)| with_room(event, &room_id)).collect();
        Ok(Some(Gap { room_id, events, missing, has_state }))
    }

    /// A room's events since `since`, oldest first; `None` when they are too many, because a part of them
    /// would come out of order.
    async fn whole(
        &self,
        account: &Account,
        room: Timeline,
        since: &str,
    ) -> Result<Option<Vec<Box<RawValue>>>, RoomsError> {
        let Timeline { room_id, mut events, mut earlier } = room;
        events.reverse();
        while let Some(from) = earlier {
            if events.len() > MOST_IN_ROOM {
                tracing::warn!(room.id = %room_id, most = MOST_IN_ROOM,
                    "too much happened in a room to compare it; the homeserver's retries bring what is missing");
                return Ok(None);
            }
            let page = self.homeserver.messages_between(&account.user_id, &room_id, &from, since).await?;
            earlier = page.earlier.filter(|next| !page.events.is_empty() && *next != from);
            events.extend(page.events);
        }
        events.reverse();
        // The pages of a room that goes on meanwhile may overlap.
        let mut seen = HashSet::new();
        events.retain(|event| {
            let head: Head = serde_json::from_str(event.get()).unwrap_or_default();
            seen.insert(head.event_id)
        });
        Ok(Some(events))
    }

    async fn keep(&self, account: &Account, seen: &Seen) -> Result<Found, RoomsError> {
        let seal = self.store.seal()?;
        let missing: Vec<&Gap> = seen.gaps.iter().filter(|gap| gap.missing > 0).collect();
        let mut bodies = Vec::new();
        for events in missing.iter().flat_map(|gap| gap.events.chunks(MOST_IN_ROW)) {
            // Maps of raw values are always JSON.
            let body = serde_json::to_vec(&Body { events }).unwrap_or_default();
            bodies.push(inbox::seal_body(seal, &body)?);
        }
        let changed: Vec<&RoomId> =
            seen.gaps.iter().filter(|gap| gap.has_state).map(|gap| &*gap.room_id).collect();
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        for body in bodies {
            inbox::accept_missed(&mut tx, body, now).await?;
        }
        rooms::set_due(&mut tx, &changed, now).await?;
        accounts::set_events_token(&mut tx, account.id, seen.next.as_deref()).await?;
        tx.commit().await?;
        if !seen.gaps.is_empty() {
            self.news.notify_one();
        }
        Ok(Found { events: missing.iter().map(|gap| gap.missing).sum(), rooms: missing.len() })
    }
}

/// An event as it would have been pushed: `/sync` leaves out the room, which goes without saying there.
fn with_room(event: &RawValue, room_id: &RoomId) -> Option<Event> {
    let mut event: Event = serde_json::from_str(event.get()).ok()?;
    event.insert("room_id".to_owned(), to_raw_value(room_id).ok()?);
    Some(event)
}

#[cfg(test)]
mod tests {
    use ruma::user_id;
    use serde_json::json;

    use super::*;

    fn head(event: Value) -> Head {
        serde_json::from_value(event).unwrap()
    }

    #[test]
    fn what_was_taken_back_is_not_missed() {
        assert!(head(json!({"event_id": "$1", "type": "m.room.message"})).may_be_message());
        let redacted = json!({"event_id": "$1", "type": "m.room.encrypted", "content": {},
            "unsigned": {"redacted_because": {"type": "m.room.redaction"}}});
        assert!(!head(redacted).may_be_message());
        assert!(!head(json!({"event_id": "$1", "type": "m.room.name", "state_key": ""})).may_be_message());
    }

    #[test]
    fn a_join_is_no_mere_change_of_a_name() {
        let user = user_id!("@coucou:example.org");
        let member = |state_key: &str, before: Value| {
            head(json!({"event_id": "$1", "type": "m.room.member", "state_key": state_key,
                "content": {"membership": "join"}, "unsigned": {"prev_content": before}}))
        };
        assert!(member(user.as_str(), json!({"membership": "invite"})).is_join_of(user));
        assert!(member(user.as_str(), json!({})).is_join_of(user));
        assert!(!member(user.as_str(), json!({"membership": "join"})).is_join_of(user));
        assert!(!member("@other:example.org", json!({"membership": "invite"})).is_join_of(user));
    }

    #[test]
    fn an_event_of_a_timeline_gets_its_room_and_stays_as_it_was() {
        let event = RawValue::from_string(r#"{"type":"t","content":{"b":1.0,"a":1e3}}"#.to_owned()).unwrap();
        let event = with_room(&event, ruma::room_id!("!r:a.b")).unwrap();
        let body = serde_json::to_string(&Body { events: &[event] }).unwrap();
        assert_eq!(body, r#"{"events":[{"content":{"b":1.0,"a":1e3},"room_id":"!r:a.b","type":"t"}]}"#);
    }
}
