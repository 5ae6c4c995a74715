//! Events that were never pushed, found by comparing rooms' timelines with what is known.
//!
//! A homeserver keeps a transaction until it was taken, but not what waits for its turn behind it: Synapse
//! forgets that at a restart, for ever. And after a restart it does not retry what it kept until the next
//! event that interests an application service. So after every start and every outage, and now and then, the
//! timelines of an account's rooms are read from where the last comparison ended, and what is missing goes
//! through the inbox like a push.
//!
//! What is missing and how far the comparison came are stored in one transaction, so a process that dies
//! anywhere compares the same part again. An event that is pushed as well, before or after, counts once. A room that
//! lacks more than is held here is suspended alone and read on page by page.

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
    time::{sleep, timeout},
};

use super::{RoomsError, reading};
use crate::{
    clock::SharedClock,
    homeserver::{Direction, Homeserver, HomeserverError, Timeline},
    model::Account,
    store::{
        Lease, Store, accounts, inbox, leases,
        readings::{self, Cause, Reading},
        rooms,
    },
};

/// The most events, and bytes of them, that are held of one room that lacks some; one with more is read on page by page.
const MAX_EVENTS: usize = 500;
const MAX_BYTES: usize = 4 << 20;

/// The most bytes that are held of all rooms.
const MAX_BYTES_OF_ALL: usize = 16 << 20;

/// Events asked for at once.
const PAGE: usize = 100;

/// How long a push may still be on its way when nothing was wrong.
const PUSH_TIMEOUT: Duration = Duration::from_secs(1);

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

/// What a comparison follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// An outage, or a start: the news of changed state may be lost as well.
    Outage,
    /// An outage a moment ago, of which the homeserver may still make up for the last.
    SoonAfter,
    /// Nothing that is known.
    Routine,
}

impl Occasion {
    fn as_str(self) -> &'static str {
        if self == Self::Routine { "routine" } else { "outage" }
    }
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
pub(super) struct Head {
    pub(super) event_id: String,
    origin_server_ts: Value,
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
    /// Reads the head of an event that has an id.
    pub(super) fn of(event: &RawValue) -> Option<Self> {
        serde_json::from_str::<Self>(event.get()).ok().filter(|head| !head.event_id.is_empty())
    }

    /// Returns whether it may be a message: state is read again instead, and of what was taken back nothing is left.
    pub(super) fn may_be_message(&self) -> bool {
        self.state_key.is_none() && !self.event_id.is_empty() && self.unsigned.redacted_because.is_none()
    }

    /// Returns when it was sent, in milliseconds, as its sender says.
    pub(super) fn sent_at(&self) -> Option<i64> {
        self.origin_server_ts.as_i64()
    }

    fn is_member(&self, user_id: &UserId) -> bool {
        self.event_type == "m.room.member" && self.state_key.as_deref() == Some(user_id.as_str())
    }

    /// Returns whether a user came into the room by it.
    pub(super) fn is_join_of(&self, user_id: &UserId) -> bool {
        self.is_member(user_id)
            && self.content.membership == "join"
            && self.unsigned.prev_content.membership != "join"
    }
}

/// An event, its members as they came.
pub(super) type Event = BTreeMap<String, Box<RawValue>>;

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
    /// The bytes of the events.
    size: usize,
    /// Whether its state may have changed unheard.
    has_state: bool,
    /// The page on which the first missing event is.
    first_page: Option<String>,
    /// Whether it is to be read on from there, because more is missing than is held.
    is_large: bool,
}

impl Gap {
    fn new(room_id: OwnedRoomId) -> Self {
        let (events, first_page) = (Vec::new(), None);
        Self { room_id, events, missing: 0, size: 0, has_state: false, first_page, is_large: false }
    }
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

    /// Compares what happened in an account's rooms since the last comparison. After an outage the state of rooms is read
    /// again in which it may have changed.
    ///
    /// # Errors
    /// When the homeserver or the store fails; the next comparison begins where this one did.
    pub async fn look(&self, account: &Account, occasion: Occasion) -> Result<Found, RoomsError> {
        let thorough = occasion == Occasion::Outage;
        let Some(seen) = self.read(account, thorough).await? else { return Ok(Found::default()) };
        if seen.gaps.iter().all(|gap| gap.missing == 0) {
            return self.keep(account, &seen, occasion).await;
        }
        if occasion == Occasion::Routine {
            sleep(PUSH_TIMEOUT).await;
        }
        // What follows a missing event may come and be relayed after the homeserver answered and before this is
        // stored: then nobody could tell that it was overtaken. So it is read again while no room goes on.
        let _turn = self.turn.lock().await;
        let again = timeout(PATIENCE, self.read(account, thorough)).await;
        let seen = if let Ok(again) = again { again?.unwrap_or(seen) } else { seen };
        self.keep(account, &seen, occasion).await
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
        let (mut gaps, mut size) = (Vec::new(), 0);
        for room in timelines.rooms {
            if unrelayed.contains(room.room_id.as_str()) {
                continue;
            }
            let room_id = room.room_id.clone();
            let gap = match self.gap(account, room, &since, size).await {
                Err(RoomsError::Homeserver(HomeserverError::Status { status: 403 | 404, .. })) => {
                    tracing::info!(room.id = %room_id, account.user_id = %account.user_id,
                        "a room is not compared: the account is no longer in it");
                    continue;
                }
                gap => gap?,
            };
            size += gap.size;
            gaps.extend(Some(gap).filter(|gap| gap.missing > 0 || (thorough && gap.has_state)));
        }
        Ok(Some(Seen { next: Some(timelines.next_batch), gaps }))
    }

    /// Compares a room with what is known of it; `held` bytes are held of other rooms.
    async fn gap(
        &self,
        account: &Account,
        room: Timeline,
        since: &str,
        held: usize,
    ) -> Result<Gap, RoomsError> {
        let Timeline { room_id, events, is_limited } = room;
        let mut gap = Gap::new(room_id);
        if !is_limited {
            self.compare(account, &mut gap, events, since, held).await?;
            return Ok(gap);
        }
        // The newest events came already: the room was compared once they were met.
        let mut ahead: HashSet<String> =
            events.iter().filter_map(|event| Some(Head::of(event)?.event_id)).collect();
        let mut from = since.to_owned();
        while !gap.is_large {
            let (user_id, room_id) = (&account.user_id, &gap.room_id);
            let page = self.homeserver.messages(user_id, room_id, Direction::Forwards, Some(&from), PAGE);
            let page = page.await?;
            for event in &page.events {
                ahead.remove(&Head::of(event).unwrap_or_default().event_id);
            }
            self.compare(account, &mut gap, page.events, &from, held).await?;
            match page.end {
                Some(end) if !ahead.is_empty() => from = end,
                _ => break,
            }
        }
        Ok(gap)
    }

    /// Compares events of a room with what is known, the page at `place` after those before it.
    async fn compare(
        &self,
        account: &Account,
        gap: &mut Gap,
        events: Vec<Box<RawValue>>,
        place: &str,
        held: usize,
    ) -> Result<(), RoomsError> {
        let heads = events.into_iter().filter_map(|event| Some((Head::of(&event)?, event)));
        let mut events: Vec<(Head, Box<RawValue>)> = heads.collect();
        // What was said before the join is not pushed: it is read from the invite on.
        if let Some(join) = events.iter().rposition(|(head, _)| head.is_join_of(&account.user_id)) {
            events.drain(..=join);
            *gap = Gap::new(gap.room_id.clone());
        }
        gap.has_state |= events.iter().any(|(head, _)| head.state_key.is_some());
        events.retain(|(head, _)| head.may_be_message());
        let ids: Vec<&str> = events.iter().map(|(head, _)| &*head.event_id).collect();
        let unknown = readings::unknown(self.store.db(), &gap.room_id, &ids).await?;
        let is_missing = |head: &Head| unknown.contains(&head.event_id);
        let first = events.iter().position(|(head, _)| is_missing(head));
        if gap.first_page.is_none() {
            let Some(first) = first else { return Ok(()) };
            gap.first_page = Some(place.to_owned());
            events.drain(..first);
        }
        gap.missing += events.iter().filter(|(head, _)| is_missing(head)).count();
        gap.size += events.iter().map(|(_, event)| event.get().len()).sum::<usize>();
        let room_id = gap.room_id.clone();
        gap.events.extend(events.iter().filter_map(|(_, event)| with_room(event, &room_id)));
        let is_large = gap.events.len() > MAX_EVENTS || gap.size > MAX_BYTES;
        if is_large || held + gap.size > MAX_BYTES_OF_ALL {
            (gap.is_large, gap.has_state, gap.size) = (true, true, 0);
            gap.events.clear();
        }
        Ok(())
    }

    async fn keep(&self, account: &Account, seen: &Seen, occasion: Occasion) -> Result<Found, RoomsError> {
        let seal = self.store.seal()?;
        let ids: Vec<&RoomId> = seen.gaps.iter().map(|gap| &*gap.room_id).collect();
        let mut rows = Vec::new();
        for gap in &seen.gaps {
            for events in gap.events.chunks(MOST_IN_ROW).filter(|_| gap.missing > 0) {
                // Maps of raw values are always JSON.
                let body = serde_json::to_vec(&Body { events }).unwrap_or_default();
                rows.push((&gap.room_id, inbox::seal_body(seal, &body)?));
            }
        }
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        // What is being read is read on to here.
        let being_read = readings::extend(&mut tx, &ids).await?;
        let is_read = |gap: &&Gap| being_read.contains(gap.room_id.as_str());
        let missing: Vec<&Gap> = seen.gaps.iter().filter(|gap| gap.missing > 0 && !is_read(gap)).collect();
        for gap in missing.iter().filter(|gap| gap.is_large) {
            let place = gap.first_page.clone();
            let of_room = Reading::new(&gap.room_id, account.id, Cause::Gap, place);
            reading::begin(&mut tx, seal, &of_room, now).await?;
        }
        for (_, body) in rows.into_iter().filter(|(room_id, _)| !being_read.contains(room_id.as_str())) {
            inbox::accept_missed(&mut tx, body, now).await?;
        }
        let changed: Vec<&RoomId> =
            seen.gaps.iter().filter(|gap| gap.has_state).map(|gap| &*gap.room_id).collect();
        rooms::set_due(&mut tx, &changed, now).await?;
        accounts::set_events_token(&mut tx, account.id, seen.next.as_deref()).await?;
        tx.commit().await?;
        if !seen.gaps.is_empty() {
            self.news.notify_one();
        }
        for gap in &missing {
            report(gap, occasion);
        }
        Ok(Found { events: missing.iter().map(|gap| gap.missing).sum(), rooms: missing.len() })
    }
}

/// Counts and logs what a room lacked.
fn report(gap: &Gap, occasion: Occasion) {
    let (room_id, occasion) = (&gap.room_id, occasion.as_str());
    if gap.is_large {
        tracing::warn!(room.id = %room_id, occasion, at_least = gap.missing,
            "many events of a room were not pushed; it is suspended and read on from its timeline");
    } else {
        tracing::warn!(room.id = %room_id, occasion, events = gap.missing,
            "events of a room were not pushed; they are taken from its timeline");
        reading::count(occasion, u64::try_from(gap.missing).unwrap_or(0));
    }
}

/// An event as it would have been pushed: `/sync` leaves out the room, which goes without saying there.
pub(super) fn with_room(event: &RawValue, room_id: &RoomId) -> Option<Event> {
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
