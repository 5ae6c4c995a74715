//! What the worker knows of rooms: a bounded cache in front of the store.
//!
//! Only the worker writes rooms, under the crypto lease, so the cache is never behind. Changes are collected
//! during a step and written in its transaction; after a failure the worker is dropped, cache and all.

mod settling;
mod speaker;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::{Value, value::RawValue};

pub use settling::Settled;

use super::{
    event::WireEvent,
    pins::{Pins, TrustSettings},
};
use crate::{
    clock::Timestamp,
    messages::room::{Change, Membership::Join, RoomState},
    model::{Relay, RelayPolicy, RoomContext, json},
    store::{
        Db, Seal, StoreError,
        rooms::{self, RoomRow},
    },
};

/// Rooms kept in memory between steps. A room is a few kilobytes, so this bounds the cache to some ten
/// megabytes.
const MOST_ROOMS: usize = 3_000;

/// Members whose devices are followed in one room at most: bridge rooms have a handful besides ghosts, and a
/// session's owner is learned with its key anyway.
const MOST_TRACKED: usize = 50;

/// What is fixed for all rooms.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Which rooms are relayed.
    pub relay: RelayPolicy,
    /// How long after the first reading a second one settles that a room is not relayed.
    pub settle_after: Duration,
    /// The owner and the accounts.
    pub our_users: Arc<BTreeSet<OwnedUserId>>,
    /// Names of networks by protocol id, before the built-in ones.
    pub networks: BTreeMap<String, String>,
    /// Whom to believe.
    pub trust: TrustSettings,
}

/// A room in the cache.
#[derive(Clone, Debug)]
pub struct Room {
    /// Whether it is relayed; unknown as well while it is held, see [`Self::unrelayed_since`].
    pub relay: Relay,
    /// Its state; empty unless it is relayed, or was until it was held.
    pub state: RoomState,
    /// Data of its payloads, as its first bridge has it.
    pub context: RoomContext,
    /// The same, as each of its other bridges has it.
    further_contexts: Vec<RoomContext>,
    /// The same, as the bridge has it that has let go of the room.
    former_context: Option<Box<RoomContext>>,
    /// The sequence of its newest message.
    pub last_sequence: i64,
    /// Since when it is not relayed for what its state says, as long as that is not settled: its room keys and events are
    /// kept meanwhile.
    pub unrelayed_since: Option<Timestamp>,
    /// The known bridge bot whose management room it is.
    pub managed_by: Option<OwnedUserId>,
    /// Set when it was made as a space.
    is_space: bool,
}

/// The rooms that the worker has met lately.
#[derive(Debug)]
pub struct Rooms {
    policy: Policy,
    /// What is believed of bridges.
    pub(super) pins: Pins,
    known: HashMap<OwnedRoomId, Room>,
    changed: HashSet<OwnedRoomId>,
    advanced: HashSet<OwnedRoomId>,
    /// Bridge bots that came or went.
    sights: Vec<(OwnedRoomId, Sight)>,
    /// Rooms whose state is to be read, because they are not relayed any more.
    unread: BTreeSet<OwnedRoomId>,
    /// Memberships that take back all that a member has said.
    takebacks: Vec<Takeback>,
}

/// A membership event that takes back all that a member has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Takeback {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The member.
    pub user_id: OwnedUserId,
    /// The event, as JSON.
    pub event: String,
}

/// Where a room's bridge bot was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// In the room.
    Here,
    /// No longer in it, as it was before.
    Left {
        /// The bot.
        bot: OwnedUserId,
        /// The network that it brought.
        network: Option<String>,
    },
    /// No longer in it, because another room replaces this one.
    Replaced,
}

/// The bridge bot of a room, the last one that was believed, and whether it has joined.
fn bot_of(state: &RoomState) -> Option<(&OwnedUserId, bool)> {
    let bot = state.bridge.as_ref().map(|bridge| &bridge.bot).or(state.pinned_bot.as_ref())?;
    Some((bot, state.members.get(bot).is_some_and(|member| member.membership == Join)))
}

/// What became of a room's bridge bot; of one that was never seen in the room, nothing.
fn sight(before: &RoomState, network: Option<String>, after: &RoomState) -> Option<Sight> {
    let (bot, is_in) = bot_of(after)?;
    match (bot_of(before), is_in) {
        (_, true) => Some(Sight::Here),
        _ if after.tombstoned => Some(Sight::Replaced),
        (Some((known, true)), false) if known == bot => Some(Sight::Left { bot: bot.clone(), network }),
        _ => None,
    }
}

/// The membership event of a member of whom all is taken back.
fn takeback(room_id: &RoomId, event: &Value) -> Option<Takeback> {
    let user_id = UserId::parse(event.get("state_key")?.as_str()?).ok()?;
    // Events of a `/state` name no room.
    let mut event = event.clone();
    event.as_object_mut()?.insert("room_id".to_owned(), room_id.as_str().into());
    Some(Takeback { room_id: room_id.to_owned(), user_id, event: event.to_string() })
}

impl Rooms {
    /// An empty cache.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let pins = Pins::new(&policy.trust).of_user(policy.our_users.first());
        Self {
            policy,
            pins,
            known: HashMap::new(),
            changed: HashSet::new(),
            advanced: HashSet::new(),
            sights: Vec::new(),
            unread: BTreeSet::new(),
            takebacks: Vec::new(),
        }
    }

    /// Loads what is stored of these rooms and not in the cache. Between steps the cache is emptied when it
    /// has grown too large; a step's own rooms always fit.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn load(
        &mut self,
        db: &Db,
        seal: &Seal,
        room_ids: HashSet<&RoomId>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if self.known.len() > MOST_ROOMS {
            self.known.clear();
        }
        let missing: Vec<&RoomId> = room_ids.into_iter().filter(|id| !self.known.contains_key(*id)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        for (room_id, row) in rooms::find_many(db, seal, &missing).await? {
            let mut state: RoomState = match &row.state {
                Some(state) => serde_json::from_slice(state).map_err(|_| StoreError::Corrupt("rooms"))?,
                None => RoomState::default(),
            };
            // Held: not relayed, without that being settled.
            let unrelayed_since = row.unrelayed_since.filter(|_| row.relay == Relay::No);
            let relay = if unrelayed_since.is_some() { Relay::Unknown } else { row.relay };
            // The settings may name other bridges than before.
            if state.reconsider(&|claim| self.pins.standing(claim)) != Change::None {
                self.changed.insert(room_id.clone());
            }
            if relay == Relay::Yes && state.redactors.is_none() {
                // An earlier version has read it.
                self.unread.insert(room_id.clone());
            }
            let (last_sequence, managed_by) = (row.last_sequence, row.managed_by);
            self.insert(&room_id, relay, state, last_sequence, unrelayed_since, managed_by);
            let Some(room) = self.known.get(&room_id).filter(|room| room.relay == Relay::Yes) else {
                continue;
            };
            // The policy may have changed since: what was decided by the state is decided anew.
            if self.policy.relays(&room_id, &room.state) {
                self.pins.note(&room_id, &room.state, now);
            } else {
                self.hold(&room_id, now);
            }
        }
        self.renew_contexts();
        Ok(())
    }

    /// A room, when it is known.
    #[must_use]
    pub fn get(&self, room_id: &RoomId) -> Option<&Room> {
        self.known.get(room_id)
    }

    /// Whether a room's messages are relayed.
    #[must_use]
    pub fn relay(&self, room_id: &RoomId) -> Relay {
        self.known.get(room_id).map_or(Relay::Unknown, |room| room.relay)
    }

    /// Notes a room of which nothing is known yet, or no more; answers whether that is news.
    pub fn forget(&mut self, room_id: &RoomId) -> bool {
        let last_sequence = match self.known.get(room_id) {
            Some(room) if room.relay == Relay::Unknown => return false,
            Some(room) => room.last_sequence,
            None => 0,
        };
        self.insert(room_id, Relay::Unknown, RoomState::default(), last_sequence, None, None);
        self.changed.insert(room_id.to_owned());
        true
    }

    /// Puts a room into the cache.
    fn insert(
        &mut self,
        room_id: &RoomId,
        relay: Relay,
        state: RoomState,
        last_sequence: i64,
        unrelayed_since: Option<Timestamp>,
        managed_by: Option<OwnedUserId>,
    ) {
        let contexts = self.policy.contexts(&state, &self.pins);
        let (context, further_contexts, former_context) = contexts;
        let is_space = state.is_space();
        let room = Room {
            relay,
            state,
            context,
            further_contexts,
            former_context,
            last_sequence,
            unrelayed_since,
            managed_by,
            is_space,
        };
        self.known.insert(room_id.to_owned(), room);
    }

    /// Waits for a relayed room's state to be read anew: an account came back, and did not see what changed
    /// meanwhile. What was known stays for [`Self::settle`] to build on.
    pub fn suspend(&mut self, room_id: &RoomId) {
        if let Some(room) = self.known.get_mut(room_id) {
            room.relay = Relay::Unknown;
            self.changed.insert(room_id.to_owned());
        }
    }

    /// Whether one of these users has joined a room, as far as its state tells.
    #[must_use]
    pub fn has_joined<'a>(&self, room_id: &RoomId, users: impl IntoIterator<Item = &'a UserId>) -> bool {
        let Some(room) = self.known.get(room_id) else { return false };
        let joined = |user| room.state.members.get(user).is_some_and(|member| member.membership == Join);
        users.into_iter().any(joined)
    }

    /// Whether a membership is older than the one that is known of the same member: it was pushed late, and the
    /// room's state, which was read meanwhile, has what followed it.
    #[must_use]
    pub fn is_outdated(&self, event: &WireEvent) -> bool {
        let member = event.state_key.as_deref().filter(|_| event.event_type == "m.room.member");
        let member = member.and_then(|user| <&UserId>::try_from(user).ok());
        let known = member.and_then(|user| self.known.get(&event.room_id)?.state.members.get(user));
        known.and_then(|known| known.since).is_some_and(|since| event.origin_server_ts.0 < since)
    }

    /// Takes in the whole state of a room, `None` when no account of ours may read it; returns what follows. State of
    /// rooms that are not relayed, and were not before, is not kept.
    pub fn settle(&mut self, room_id: &RoomId, state: Option<&[Value]>, now: Timestamp) -> Settled {
        let before = self.known.get(room_id);
        let last_sequence = before.map_or(0, |room| room.last_sequence);
        let since = before.and_then(|room| room.unrelayed_since);
        let base = before.map(|room| room.state.clone()).unwrap_or_default();
        let network = before.and_then(|room| room.context.network.clone());
        let was_known = base != RoomState::default();
        let was = state.is_some().then(|| base.clone());
        let (is_relayed, new) = match state {
            Some(state) => {
                let new = base.rebuild_judged(state, &|claim| self.pins.standing(claim));
                self.note_takebacks(room_id, state, &base, &new);
                (self.policy.relays(room_id, &new), new)
            }
            // Left again before it was read: what was relayed stays so, for what still waits for a key.
            None if was_known => {
                let mut state = base;
                state.members.retain(|user, _| !self.policy.our_users.contains(user));
                (self.policy.relays(room_id, &state), state)
            }
            None => (false, RoomState::default()),
        };
        if let Some(sight) =
            was.filter(|_| is_relayed || was_known).and_then(|was| sight(&was, network, &new))
        {
            self.sights.push((room_id.to_owned(), sight));
        }
        let settled = if is_relayed {
            self.pins.note(room_id, &new, now);
            self.insert(room_id, Relay::Yes, new, last_sequence, None, None);
            Settled::Relayed
        } else {
            // The only one that could be relayed for its bridge, were that believed.
            if self.policy.relay.is_by_bridge() {
                self.pins.report(room_id, &new, now);
            }
            // Of a room that nobody may read any more nobody knows who is in it.
            let unseen = RoomState::default();
            let seen = if state.is_some() { &new } else { &unseen };
            let (settled, since, managed_by) = self.outlook(room_id, seen, since, now);
            let is_space = new.is_space();
            let is_held = settled != Settled::Unrelayed;
            let kept = if is_held && was_known { new } else { RoomState::default() };
            let (relay, since) = if is_held { (Relay::Unknown, Some(since)) } else { (Relay::No, None) };
            self.insert(room_id, relay, kept, last_sequence, since, managed_by);
            if let Some(room) = self.known.get_mut(room_id) {
                room.is_space = is_space;
            }
            settled
        };
        self.changed.insert(room_id.to_owned());
        self.renew_contexts();
        settled
    }

    /// Takes in one state event of a room that is relayed, or was until it was held.
    pub fn apply(&mut self, room_id: &RoomId, event: &RawValue, now: Timestamp) -> Change {
        let is_followed = |room: &&mut Room| room.relay == Relay::Yes || room.was_relayed();
        let Some(room) = self.known.get_mut(room_id).filter(is_followed) else { return Change::None };
        let event = json::read_object(event);
        // Who leaves is no longer among the members, so it is told apart before.
        let is_about_bot = event.get("type").is_some_and(|kind| kind == "m.room.tombstone")
            || bot_of(&room.state)
                .is_some_and(|(bot, _)| event.get("state_key").is_some_and(|key| key == bot.as_str()));
        let before = is_about_bot.then(|| (room.state.clone(), room.context.network.clone()));
        let redacted_count = room.state.redacted_members.len();
        let change = room.state.apply_judged(&event, &|claim| self.pins.standing(claim));
        if room.state.redacted_members.len() != redacted_count {
            self.changed.insert(room_id.to_owned());
            let is_more = room.state.redacted_members.len() > redacted_count;
            self.takebacks.extend(takeback(room_id, &event).filter(|_| is_more));
        }
        if let Some(sight) = before.and_then(|(before, network)| sight(&before, network, &room.state)) {
            self.sights.push((room_id.to_owned(), sight));
        }
        if change == Change::Bridge {
            self.pins.note(room_id, &room.state, now);
        }
        if change != Change::None {
            (room.context, room.further_contexts, room.former_context) =
                self.policy.contexts(&room.state, &self.pins);
            self.changed.insert(room_id.to_owned());
            if room.relay == Relay::Yes && !self.policy.relays(room_id, &room.state) {
                self.hold(room_id, now);
            }
        }
        self.renew_contexts();
        change
    }

    /// Notes of whom all is taken back that was not before.
    fn note_takebacks(&mut self, room_id: &RoomId, state: &[Value], before: &RoomState, new: &RoomState) {
        for user in new.redacted_members.difference(&before.redacted_members) {
            let is_theirs = |event: &&Value| {
                event.get("type").is_some_and(|kind| kind == "m.room.member")
                    && event.get("state_key").is_some_and(|key| key == user.as_str())
            };
            self.takebacks.extend(state.iter().find(is_theirs).and_then(|event| takeback(room_id, event)));
        }
    }

    /// Memberships that take back all that a member has said, once.
    pub fn take_takebacks(&mut self) -> Vec<Takeback> {
        std::mem::take(&mut self.takebacks)
    }

    /// The bridge bots that were seen to come or go since this was last asked.
    pub fn take_sights(&mut self) -> Vec<(OwnedRoomId, Sight)> {
        std::mem::take(&mut self.sights)
    }

    /// The next sequence number of a room.
    pub fn next_sequence(&mut self, room_id: &RoomId) -> u64 {
        let Some(room) = self.known.get_mut(room_id) else { return 0 };
        room.last_sequence += 1;
        self.advanced.insert(room_id.to_owned());
        room.last_sequence.unsigned_abs()
    }

    /// The users of a room whose devices are worth following: the bridge bot, and members that are no bridge's
    /// ghosts, which have no devices.
    #[must_use]
    pub fn users_to_track(&self, room_id: &RoomId) -> Vec<OwnedUserId> {
        let Some(room) = self.known.get(room_id) else { return Vec::new() };
        let bots = room.state.bridges().map(|bridge| bridge.bot.clone());
        let members = room.state.members.keys().filter(|user| !self.pins.is_ghost(user, &room.state));
        let mut users: Vec<_> = bots.chain(members.take(MOST_TRACKED).cloned()).collect();
        users.sort();
        users.dedup();
        users
    }

    /// What this step changed, to be written: whole rooms, and sequences of the others.
    ///
    /// # Errors
    /// When a state cannot be serialised.
    pub fn take_changes(&mut self) -> Result<RoomChanges, StoreError> {
        let mut whole = Vec::new();
        for room_id in self.changed.drain() {
            self.advanced.remove(&room_id);
            let Some(room) = self.known.get(&room_id) else { continue };
            let state = match room.relay {
                Relay::Yes => Some(&room.state),
                // A room that is suspended or held keeps what was known of it.
                Relay::Unknown => Some(&room.state).filter(|state| **state != RoomState::default()),
                Relay::No => None,
            };
            let state =
                state.map(serde_json::to_vec).transpose().map_err(|_| StoreError::Corrupt("rooms"))?;
            let row = RoomRow {
                relay: if room.is_held() { Relay::No } else { room.relay },
                network: room.context.network.clone(),
                bridge_bot: room.context.bridge_bot.clone(),
                state,
                last_sequence: room.last_sequence,
                unrelayed_since: room.unrelayed_since.filter(|_| room.is_held()),
                managed_by: room.managed_by.clone(),
            };
            whole.push((room_id, row));
        }
        let known = &self.known;
        let sequences = self
            .advanced
            .drain()
            .filter_map(|room_id| {
                let last = known.get(&room_id)?.last_sequence;
                Some((room_id, last))
            })
            .collect();
        Ok(RoomChanges { whole, sequences })
    }
}

/// What a step changed about rooms.
#[derive(Debug, Default)]
pub struct RoomChanges {
    /// Rooms to be written whole.
    pub whole: Vec<(OwnedRoomId, RoomRow)>,
    /// Rooms of which only the newest sequence changed.
    pub sequences: Vec<(OwnedRoomId, i64)>,
}
