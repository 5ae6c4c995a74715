//! What the worker knows of rooms: a bounded cache in front of the store.
//!
//! Only the worker writes rooms, under the crypto lease, so the cache is never behind. Changes are collected
//! during a step and written in its transaction; after a failure the worker is dropped, cache and all.

mod speaker;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::{Value, value::RawValue};

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
    /// The owner and the accounts.
    pub our_users: Arc<BTreeSet<OwnedUserId>>,
    /// Names of networks by protocol id, before the built-in ones.
    pub networks: BTreeMap<String, String>,
    /// Whom to believe.
    pub trust: TrustSettings,
}

impl Policy {
    fn decide(&self, room_id: &RoomId, state: &RoomState) -> Relay {
        let relayed = match &self.relay {
            RelayPolicy::All => !state.is_space(),
            RelayPolicy::Bridged => state.bridge.is_some() && state.is_conversation(),
            RelayPolicy::Only(rooms) => rooms.iter().any(|room| room == room_id),
        };
        if relayed { Relay::Yes } else { Relay::No }
    }
}

/// A room in the cache.
#[derive(Clone, Debug)]
pub struct Room {
    /// Whether it is relayed.
    pub relay: Relay,
    /// Its state; empty unless it is relayed.
    pub state: RoomState,
    /// Data of its payloads, as its first bridge has it.
    pub context: RoomContext,
    /// The same, as each of its other bridges has it.
    further_contexts: Vec<RoomContext>,
    /// The sequence of its newest message.
    pub last_sequence: i64,
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
            let mut relay = row.relay;
            // The settings may name other bridges than before.
            if state.reconsider(&|claim| self.pins.standing(claim)) != Change::None {
                self.changed.insert(room_id.clone());
            }
            // The policy may have changed since: what was decided by the state is decided anew.
            if relay != Relay::Unknown && row.state.is_some() {
                relay = self.policy.decide(&room_id, &state);
            }
            if relay == Relay::Yes {
                self.pins.note(&room_id, &state, now);
            }
            let (context, further_contexts) = self.policy.contexts(&state, &self.pins);
            let last_sequence = row.last_sequence;
            self.known.insert(room_id, Room { relay, state, context, further_contexts, last_sequence });
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
        let context = RoomState::default().context(&self.policy.our_users, &self.policy.networks);
        let (state, further_contexts) = (RoomState::default(), Vec::new());
        let room = Room { relay: Relay::Unknown, state, context, further_contexts, last_sequence };
        self.known.insert(room_id.to_owned(), room);
        self.changed.insert(room_id.to_owned());
        true
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

    /// Takes in the whole state of a room, `None` when no account of ours may read it; answers whether the
    /// room is relayed. State of rooms that are not is not kept.
    pub fn settle(&mut self, room_id: &RoomId, state: Option<&[Value]>, now: Timestamp) -> Relay {
        let before = self.known.get(room_id);
        let last_sequence = before.map_or(0, |room| room.last_sequence);
        let base = before.map(|room| room.state.clone()).unwrap_or_default();
        let network = before.and_then(|room| room.context.network.clone());
        let was = state.is_some().then(|| base.clone());
        let (relay, state) = match state {
            Some(state) => {
                let state = base.rebuild_judged(state, &|claim| self.pins.standing(claim));
                (self.policy.decide(room_id, &state), state)
            }
            // Left again before it was read: what was relayed stays so, for what still waits for a key.
            None if base != RoomState::default() => {
                let mut state = base;
                state.members.retain(|user, _| !self.policy.our_users.contains(user));
                (Relay::Yes, state)
            }
            None => (Relay::No, RoomState::default()),
        };
        if let Some(sight) = was.filter(|_| relay == Relay::Yes).and_then(|was| sight(&was, network, &state))
        {
            self.sights.push((room_id.to_owned(), sight));
        }
        let state = if relay == Relay::Yes {
            self.pins.note(room_id, &state, now);
            state
        } else {
            // The only one that could be relayed for its bridge, were that believed.
            if self.policy.relay == RelayPolicy::Bridged {
                self.pins.report(room_id, &state, now);
            }
            RoomState::default()
        };
        let (context, further_contexts) = self.policy.contexts(&state, &self.pins);
        let room = Room { relay, state, context, further_contexts, last_sequence };
        self.known.insert(room_id.to_owned(), room);
        self.changed.insert(room_id.to_owned());
        self.renew_contexts();
        relay
    }

    /// Takes in one state event of a relayed room.
    pub fn apply(&mut self, room_id: &RoomId, event: &RawValue, now: Timestamp) -> Change {
        let Some(room) = self.known.get_mut(room_id).filter(|room| room.relay == Relay::Yes) else {
            return Change::None;
        };
        let event = json::read_object(event);
        // Who leaves is no longer among the members, so it is told apart before.
        let is_about_bot = event.get("type").is_some_and(|kind| kind == "m.room.tombstone")
            || bot_of(&room.state)
                .is_some_and(|(bot, _)| event.get("state_key").is_some_and(|key| key == bot.as_str()));
        let before = is_about_bot.then(|| (room.state.clone(), room.context.network.clone()));
        let change = room.state.apply_judged(&event, &|claim| self.pins.standing(claim));
        if let Some(sight) = before.and_then(|(before, network)| sight(&before, network, &room.state)) {
            self.sights.push((room_id.to_owned(), sight));
        }
        if change == Change::Bridge {
            self.pins.note(room_id, &room.state, now);
        }
        if change != Change::None {
            (room.context, room.further_contexts) = self.policy.contexts(&room.state, &self.pins);
            self.changed.insert(room_id.to_owned());
        }
        self.renew_contexts();
        change
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
                // A room that is suspended keeps what was known of it.
                Relay::Unknown => Some(&room.state).filter(|state| **state != RoomState::default()),
                Relay::No => None,
            };
            let state =
                state.map(serde_json::to_vec).transpose().map_err(|_| StoreError::Corrupt("rooms"))?;
            let row = RoomRow {
                relay: room.relay,
                network: room.context.network.clone(),
                bridge_bot: room.context.bridge_bot.clone(),
                state,
                last_sequence: room.last_sequence,
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
