//! What is known about a room, from its state events: name, encryption, bridge, members.
//!
//! Plain data that its owner stores; [`RoomState::apply`] takes one state event after the other, each at the
//! cost of a map insert, so rooms with thousands of members cost no more than small ones. State comes from the
//! homeserver as others wrote it: a part of the wrong shape is as if it were not there.

mod bridge;
mod power;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use bridge::{Bridge, BridgeConflict, Claim, Judge, Standing};
pub use power::Redactors;

use crate::{
    messages::network,
    model::{RoomContext, RoomKind, SenderProfile, naming, text::is_id},
};

/// Members of a room that count as service members at most.
const MAX_SERVICE_MEMBERS: usize = 50;

/// Members of a room at most of whom all is taken back.
const MAX_REDACTED_MEMBERS: usize = 1_000;

/// The mark of a ban, or a removal, that takes back all that the member has said
/// ([MSC4293](https://github.com/matrix-org/matrix-spec-proposals/pull/4293)).
const REDACT_EVENTS: [&str; 2] = ["redact_events", "org.matrix.msc4293.redact_events"];

/// What a state event changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that is kept here.
    None,
    /// Something about the room itself: name, encryption, tombstone, creator.
    Room,
    /// The bridge: it came, changed or went, or another one claims the room ([`RoomState::bridge_conflict`]).
    Bridge,
    /// This member: joined, was invited, left, or has another name. [`RoomState::members`] has it while joined
    /// or invited.
    Member(OwnedUserId),
}

/// A room, from its state events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoomState {
    /// `m.room.name`, unless empty.
    pub name: Option<String>,
    /// The algorithm of `m.room.encryption`. Once there it stays, whatever later events say: a room never
    /// stops being encrypted.
    pub encryption: Option<String>,
    /// Who made the room: the sender of `m.room.create`.
    pub creator: Option<OwnedUserId>,
    /// The `type` of `m.room.create`, e.g. `m.space`.
    pub room_type: Option<String>,
    /// Whether the room was replaced (`m.room.tombstone`).
    pub tombstoned: bool,
    /// The room that replaced it, where the tombstone names one.
    pub replacement: Option<String>,
    /// The room that this one replaced (`predecessor` of `m.room.create`).
    pub predecessor: Option<String>,
    /// The bridge that is believed; of several the first.
    pub bridge: Option<Bridge>,
    /// The other bridges that are believed, each with a state key of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub further_bridges: Vec<Bridge>,
    /// The bridge that has let go of the room last: what it said before may get its key later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub former_bridge: Option<Box<Bridge>>,
    /// The bot of the bridge that was believed last, which keeps the room from others when it lets go.
    pub pinned_bot: Option<OwnedUserId>,
    /// The latest other bridge bot that claims the room; the believed one stays.
    pub bridge_conflict: Option<BridgeConflict>,
    /// Whether somebody was invited to it as to a direct chat.
    pub direct: bool,
    /// Users that are in the room for technical reasons, as bridges say (`io.element.functional_members`): the bot, and the
    /// ghosts of logins whose users are in the room themselves.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub service_members: BTreeSet<OwnedUserId>,
    /// Who may take back what others have said; none until the room's state was read by a version that looks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redactors: Option<Redactors>,
    /// Former members of whom all is taken back, until they are members again or no longer banned.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub redacted_members: BTreeSet<OwnedUserId>,
    /// Who is joined or invited. Kept apart by whoever stores large rooms row by row: see [`Change::Member`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<OwnedUserId, Member>,
}

/// Somebody in a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Joined or invited.
    pub membership: Membership,
    /// The display name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The avatar, an `mxc://` address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avatar: Option<String>,
    /// The `origin_server_ts` of the event that says so, in milliseconds, when it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<i64>,
}

/// How somebody is in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Membership {
    /// In it.
    Join,
    /// Asked in. Bridges share room keys with invited users too.
    Invite,
}

impl RoomState {
    /// Takes in one state event, full or stripped, when nothing is known of bridge bots beyond this room.
    pub fn apply(&mut self, event: &Value) -> Change {
        self.apply_judged(event, &bridge::by_sender)
    }

    /// Takes in one state event, full or stripped. Anything else changes nothing.
    pub fn apply_judged(&mut self, event: &Value, standing: Judge<'_>) -> Change {
        let text = |key| event.get(key).and_then(Value::as_str);
        let (Some(event_type), Some(state_key)) = (text("type"), text("state_key")) else {
            return Change::None;
        };
        let content = event.get("content").unwrap_or(&Value::Null);
        match (event_type, state_key) {
            ("m.room.member", user) => {
                let since = event.get("origin_server_ts").and_then(Value::as_i64);
                self.take_back_of(user, text("sender"), content);
                match self.apply_member(user, content, since) {
                    Change::Member(user) => any(self.reconsider_for(&user, standing), Change::Member(user)),
                    change => change,
                }
            }
            ("io.element.functional_members", "") => {
                let members = content.get("service_members").and_then(Value::as_array).into_iter().flatten();
                let users = members.filter_map(|user| UserId::parse(user.as_str()?).ok());
                replace(&mut self.service_members, users.take(MAX_SERVICE_MEMBERS).collect())
            }
            ("m.bridge" | "uk.half-shot.bridge", key) => {
                self.apply_bridge(event_type, key, text("sender"), content, standing)
            }
            ("m.room.name", "") => replace(&mut self.name, filled(content, "name")),
            ("m.room.encryption", "") => match filled(content, "algorithm") {
                None => Change::None,
                algorithm => replace(&mut self.encryption, algorithm),
            },
            ("m.room.create", "") => {
                let creator = text("sender").or_else(|| content.get("creator").and_then(Value::as_str));
                let creator = creator.and_then(|id| UserId::parse(id).ok());
                self.redactors.get_or_insert_default().create(creator.as_deref(), content);
                let room_type = replace(&mut self.room_type, filled(content, "type"));
                let predecessor = content.get("predecessor").and_then(|room| filled(room, "room_id"));
                let predecessor = predecessor.filter(|id| RoomId::parse(id).is_ok());
                let predecessor = replace(&mut self.predecessor, predecessor);
                any(any(replace(&mut self.creator, creator), room_type), predecessor)
            }
            ("m.room.power_levels", "") => {
                let mut redactors = self.redactors.clone().unwrap_or_default();
                redactors.levels(content);
                replace(&mut self.redactors, Some(redactors))
            }
            ("m.room.tombstone", "") => {
                let replacement =
                    filled(content, "replacement_room").filter(|id| is_id(id) && RoomId::parse(id).is_ok());
                let replacement = replace(&mut self.replacement, replacement);
                any(replace(&mut self.tombstoned, true), replacement)
            }
            _ => Change::None,
        }
    }

    /// [`RoomState::rebuild_judged`], when nothing is known of bridge bots beyond this room.
    #[must_use]
    pub fn rebuild(&self, state: &[Value]) -> Self {
        self.rebuild_judged(state, &bridge::by_sender)
    }

    /// Takes in the whole current state of a room, as `/state` lists it, in place of what was known. A bridge
    /// that was believed stays the one that is, if it still claims the room, and keeps it from others if it
    /// does not; encryption stays on.
    #[must_use]
    pub fn rebuild_judged(&self, state: &[Value], standing: Judge<'_>) -> Self {
        // What a later state no longer shows: that it was encrypted, and that an invite was to a direct chat,
        // which the join replaces.
        let mut fresh = Self {
            encryption: self.encryption.clone(),
            direct: self.direct,
            redacted_members: self.redacted_members.clone(),
            redactors: Some(Redactors::default()),
            ..Self::default()
        };
        let known = self.bridge.as_ref().map(|bridge| bridge.bot.clone());
        fresh.pinned_bot = self.pinned_bot.clone().or(known);
        let kind = |event: &&Value| event.get("type").and_then(Value::as_str).map(str::to_owned);
        let is_bridge =
            |event: &&Value| matches!(kind(event).as_deref(), Some("m.bridge" | "uk.half-shot.bridge"));
        // What members have done is judged by their power.
        let is_power =
            |event: &&Value| matches!(kind(event).as_deref(), Some("m.room.create" | "m.room.power_levels"));
        for event in state.iter().filter(is_power) {
            fresh.apply(event);
        }
        for event in state.iter().filter(|event| !is_bridge(event) && !is_power(event)) {
            fresh.apply(event);
        }
        let mut claims = state.iter().filter(is_bridge).collect::<Vec<_>>();
        fresh.rebuild_bridges(self, state, &mut claims, standing);
        fresh
    }

    /// Returns whether people talk in the room: a space holds other rooms, and nobody talks there.
    ///
    /// Bridges make spaces of their own, one for each login (`personal_filtering_spaces`), and say of them in
    /// `m.bridge` what they are.
    #[must_use]
    pub fn is_conversation(&self) -> bool {
        const SPACES: [&str; 2] = ["space", "personal_filtering_space"];
        let said = self.bridge.as_ref().and_then(|bridge| bridge.room_type.as_deref());
        !self.is_space() && said.is_none_or(|room_type| !SPACES.contains(&room_type))
    }

    /// Returns whether the room was made as a space. That never changes.
    #[must_use]
    pub fn is_space(&self) -> bool {
        self.room_type.as_deref() == Some("m.space")
    }

    /// Returns the data of payloads about the room, as its first bridge has it. `our_users`: owner and accounts; `networks`: names for protocol ids, before the built-in ones.
    #[must_use]
    pub fn context(
        &self,
        our_users: &Arc<BTreeSet<OwnedUserId>>,
        networks: &BTreeMap<String, String>,
    ) -> RoomContext {
        self.context_of(self.bridge.as_ref(), our_users, networks)
    }

    /// As [`RoomState::context`], for what is said by the people of one of the room's bridges.
    #[must_use]
    pub fn context_of(
        &self,
        bridge: Option<&Bridge>,
        our_users: &Arc<BTreeSet<OwnedUserId>>,
        networks: &BTreeMap<String, String>,
    ) -> RoomContext {
        let kind = self.kind(our_users);
        let channel_name = bridge.and_then(|bridge| bridge.channel_name.clone());
        let other = || self.other(our_users).and_then(|member| member.name.clone());
        RoomContext {
            name: self
                .name
                .clone()
                .or_else(|| channel_name.clone())
                .or_else(|| if kind == RoomKind::Dm { other() } else { None }),
            kind,
            network: bridge.and_then(|bridge| {
                let hints = [bridge.protocol_name.as_deref().unwrap_or_default(), bridge.bot.localpart()];
                Some(network::name(bridge.protocol.as_deref()?, &hints, networks))
            }),
            protocol: bridge.and_then(|bridge| bridge.protocol.clone()),
            channel_id: bridge.and_then(|bridge| bridge.channel_id.clone()),
            channel_name,
            bridge_bot: bridge.map(|bridge| bridge.bot.clone()),
            login: bridge.and_then(|bridge| bridge.receiver.clone()),
            ghosts: Vec::new(),
            our_users: Arc::clone(our_users),
        }
    }

    /// How `user` presents itself; empty when it is not in the room.
    #[must_use]
    pub fn profile(&self, user: &UserId) -> SenderProfile {
        self.members.get(user).map_or_else(SenderProfile::default, |member| SenderProfile {
            name: member.name.clone(),
            avatar: member.avatar.clone(),
        })
    }

    /// A DM when the bridge says so; without its word, when there is exactly one other person, and either a
    /// bridge or somebody invited to a direct chat.
    fn kind(&self, our_users: &BTreeSet<OwnedUserId>) -> RoomKind {
        let said = self.bridge.as_ref().and_then(|bridge| bridge.room_type.as_deref());
        let dm = match said {
            Some(room_type) => room_type == "dm",
            None => (self.bridge.is_some() || self.direct) && self.other(our_users).is_some(),
        };
        if dm { RoomKind::Dm } else { RoomKind::Group }
    }

    /// The one member that is neither us, nor a bridge bot, nor the ghost of a login; none when there are several.
    /// In a chat with oneself that ghost is the one. Looks at few members however many there are.
    fn other(&self, our_users: &BTreeSet<OwnedUserId>) -> Option<&Member> {
        let is_bot = |user: &OwnedUserId| self.bridges().any(|bridge| bridge.bot == *user);
        let others = || self.members.iter().filter(|(user, _)| !is_bot(user) && !our_users.contains(*user));
        let is_other = |user: &OwnedUserId| !self.service_members.contains(user) && !self.is_login(user);
        let mut people = others().filter(|(user, _)| is_other(user)).map(|(_, member)| member);
        if let Some(first) = people.next() {
            return people.next().is_none().then_some(first);
        }
        let mut others = others().map(|(_, member)| member);
        let first = others.next()?;
        others.next().is_none().then_some(first)
    }

    /// Returns whether a user is, by its name, the ghost of the login that receives the room.
    fn is_login(&self, user: &UserId) -> bool {
        self.bridges().any(|bridge| {
            let protocol = bridge.protocol.as_deref();
            let localpart = user.localpart();
            let mut ids = localpart.match_indices(['_', '-']).filter_map(|(at, _)| localpart.get(at + 1..));
            bridge.bot.server_name() == user.server_name()
                && bridge
                    .receiver
                    .as_ref()
                    .is_some_and(|login| ids.any(|id| naming::is_of_login(protocol, id, login)))
        })
    }

    /// Notes that all that a member has said is taken back, or is so no longer.
    fn take_back_of(&mut self, user: &str, sender: Option<&str>, content: &Value) {
        let parse = |id: &str| UserId::parse(id).ok();
        let (Some(user), Some(sender)) = (parse(user), sender.and_then(parse)) else { return };
        let is_marked = || REDACT_EVENTS.iter().any(|mark| content.get(mark) == Some(&Value::Bool(true)));
        match content.get("membership").and_then(Value::as_str) {
            Some("join") => {
                self.redacted_members.remove(&user);
            }
            Some("ban" | "leave") if user != sender => {
                let may = || self.redactors.as_ref().is_some_and(|redactors| redactors.may(&sender));
                if is_marked() && may() {
                    if self.redacted_members.len() < MAX_REDACTED_MEMBERS {
                        self.redacted_members.insert(user);
                    }
                } else if content.get("membership").is_some_and(|membership| membership == "leave") {
                    self.redacted_members.remove(&user);
                }
            }
            _ => {}
        }
    }

    fn apply_member(&mut self, user: &str, content: &Value, since: Option<i64>) -> Change {
        let Ok(user) = UserId::parse(user) else { return Change::None };
        let membership = match content.get("membership").and_then(Value::as_str) {
            Some("join") => Some(Membership::Join),
            Some("invite") => Some(Membership::Invite),
            _ => None,
        };
        self.direct |= content.get("is_direct") == Some(&Value::Bool(true));
        let Some(membership) = membership else {
            return if self.members.remove(&user).is_some() { Change::Member(user) } else { Change::None };
        };
        let avatar = filled(content, "avatar_url").filter(|url| url.starts_with("mxc://"));
        let member = Member { membership, name: filled(content, "displayname"), avatar, since };
        if self.members.get(&user) == Some(&member) {
            return Change::None;
        }
        self.members.insert(user.clone(), member);
        Change::Member(user)
    }
}

/// A text that is there and not blank. Without NULs, which PostgreSQL's `TEXT` refuses: a room's name must not
/// be able to stop the room.
fn filled(content: &Value, key: &str) -> Option<String> {
    let text = content.get(key)?.as_str()?.replace('\0', "");
    (!text.trim().is_empty()).then_some(text)
}

fn replace<T: PartialEq>(place: &mut T, value: T) -> Change {
    if *place == value {
        return Change::None;
    }
    *place = value;
    Change::Room
}

fn any(one: Change, other: Change) -> Change {
    if one == Change::None { other } else { one }
}

#[cfg(test)]
mod tests;
