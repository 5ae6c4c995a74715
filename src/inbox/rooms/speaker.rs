//! Who says something in a room, and for whom: by the bridge to which the speaker belongs.
//!
//! A room may have several bridges, and each has its own network, conversation and logins. What payloads say of the
//! room is kept for each of them, and renewed when a login becomes known.

use ruma::{RoomId, UserId};
use serde_json::{Map, Value};

use super::{Policy, Room, Rooms};
use crate::{
    clock::Timestamp,
    inbox::{event::WireEvent, pins::Pins},
    messages::{
        is_puppets,
        room::{Bridge, RoomState},
    },
    model::{Encryption, RoomContext, Trust},
    store::{Db, Seal, StoreError, rooms},
};

/// Rooms looked at for logins at a first start; as many as the cache keeps.
const MAX_ROOMS_FOR_LOGINS: i64 = 2_000;

/// The sender of an event, as the room's bridges have it.
#[derive(Clone, Copy, Debug)]
pub struct Speaker<'a> {
    /// Data of the payload about the room, as the bridge of the speaker has it.
    pub context: &'a RoomContext,
    /// That bridge; the room's first one for a speaker of none.
    pub bridge: Option<&'a Bridge>,
    /// Set when the bridge says it for the owner.
    pub is_owners: bool,
}

impl Policy {
    /// Returns the data of payloads about a room: as its first bridge has it, and as the others have it.
    pub(super) fn contexts(&self, state: &RoomState, pins: &Pins) -> (RoomContext, Vec<RoomContext>) {
        let further = state.further_bridges.iter().map(|bridge| self.context_of(state, Some(bridge), pins));
        (self.context_of(state, state.bridge.as_ref(), pins), further.collect())
    }

    fn context_of(&self, state: &RoomState, bridge: Option<&Bridge>, pins: &Pins) -> RoomContext {
        let mut context = state.context_of(bridge, &self.our_users, &self.networks);
        if let Some(bridge) = bridge {
            context.ghosts = pins.ghosts(&bridge.bot);
            context.login = context.login.or_else(|| pins.only_login(&bridge.bot).map(str::to_owned));
        }
        context
    }
}

/// Returns whether a bridge says with its bot what its user has said: Google Voice has no ghost for that.
fn says_as_bot(bridge: &Bridge, sender: &UserId, content: &Map<String, Value>) -> bool {
    let is_notice = content.get("msgtype").is_some_and(|msgtype| msgtype == "m.notice");
    bridge.protocol.as_deref() == Some("gvoice") && bridge.bot == sender && !is_notice
}

impl Rooms {
    /// Takes in the bridges that state events of a batch name in rooms of the owner's, whatever is known of the rooms: a
    /// login counts for all that comes with it.
    pub fn foresee(&mut self, events: &[WireEvent]) {
        let is_claim =
            |event: &&WireEvent| matches!(event.event_type.as_str(), "m.bridge" | "uk.half-shot.bridge");
        for event in events.iter().filter(is_claim) {
            let Ok(claim) = serde_json::from_str::<Value>(event.raw.get()) else { continue };
            let Some(bridge) = Bridge::of_event(&claim).filter(|_| self.is_owners(&event.room_id, events))
            else {
                continue;
            };
            self.pins.foresee(&bridge, &event.room_id);
        }
        self.renew_contexts();
    }

    /// Looks for logins in the rooms that were last made, when none was ever noted: an earlier version has read the
    /// states that name them.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn look_for_logins(&mut self, db: &Db, seal: &Seal, now: Timestamp) -> Result<(), StoreError> {
        if self.pins.has_logins() {
            return Ok(());
        }
        let rooms = rooms::latest_bridged(db, MAX_ROOMS_FOR_LOGINS).await?;
        self.load(db, seal, rooms.iter().map(|room_id| &**room_id).collect(), now).await
    }

    /// Returns whether the owner is in a room, by its known state or by these events; without an owner, always.
    fn is_owners(&self, room_id: &RoomId, events: &[WireEvent]) -> bool {
        let Some(owner) = self.pins.owner() else { return true };
        let is_member = |room: &Room| room.state.members.contains_key(owner);
        let comes = |event: &WireEvent| {
            event.event_type == "m.room.member"
                && event.room_id == room_id
                && event.state_key.as_deref() == Some(owner.as_str())
                && event.content().get("membership").is_some_and(|it| it == "join" || it == "invite")
        };
        self.known.get(room_id).is_some_and(is_member) || events.iter().any(comes)
    }

    /// Returns the data of payloads about a room, as one of its bridges has it.
    #[must_use]
    pub fn context_of(&self, state: &RoomState, bridge: Option<&Bridge>) -> RoomContext {
        self.policy.context_of(state, bridge, &self.pins)
    }

    /// Renews the data of payloads about rooms of bridges whose login has become known.
    pub(super) fn renew_contexts(&mut self) {
        let bots = self.pins.take_news();
        if bots.is_empty() {
            return;
        }
        for room in self.known.values_mut() {
            if room.state.bridges().any(|bridge| bots.contains(&bridge.bot)) {
                (room.context, room.further_contexts) = self.policy.contexts(&room.state, &self.pins);
            }
        }
    }

    /// Returns the speaker of an event with that content and encryption; `None` in a room that is not known.
    #[must_use]
    pub fn speaker(
        &self,
        event: &WireEvent,
        content: &Map<String, Value>,
        by: &Encryption,
    ) -> Option<Speaker<'_>> {
        let room = self.known.get(&event.room_id)?;
        let bridged_by = by.bridged_by.as_deref();
        let is_only = room.state.further_bridges.is_empty();
        let place = if is_only { None } else { self.pins.bridge_of(&room.state, &event.sender, bridged_by) };
        let place = place.unwrap_or_default();
        let bridge = room.state.bridges().nth(place);
        let context = match place {
            0 => &room.context,
            further => room.further_contexts.get(further - 1).unwrap_or(&room.context),
        };
        let is_puppet = !by.encrypted
            && is_puppets(content)
            && self.pins.is_puppet_in_clear(&room.state, &event.sender, &self.policy.our_users);
        // What somebody else has encrypted under a ghost's name is not the owner's.
        let is_believed = !matches!(by.trust, Some(Trust::MismatchedSender | Trust::UnknownDevice));
        let is_login = is_believed
            && bridge.is_some_and(|bridge| {
                self.pins.is_login(bridge, &room.state, &event.sender)
                    || says_as_bot(bridge, &event.sender, content)
            });
        Some(Speaker { context, bridge, is_owners: is_puppet || is_login })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bot_speaks_for_its_user_in_google_voice_alone_and_not_in_notices() {
        let bridge = |protocol: &str| {
            let bot = "@gvoicebot:example.org";
            let claim = json!({"type": "m.bridge", "state_key": "example.org/gvoice", "sender": bot,
                "content": {"bridgebot": bot, "protocol": {"id": protocol}, "channel": {"id": "1"}}});
            Bridge::of_event(&claim).unwrap()
        };
        let says = |bridge: &Bridge, sender: &str, msgtype: &str| {
            let content = json!({"msgtype": msgtype, "body": "hello"});
            says_as_bot(bridge, <&UserId>::try_from(sender).unwrap(), content.as_object().unwrap())
        };
        let voice = bridge("gvoice");
        assert!(says(&voice, "@gvoicebot:example.org", "m.text"));
        assert!(!says(&voice, "@gvoicebot:example.org", "m.notice"), "a notice is the bridge's own");
        assert!(!says(&voice, "@gvoice_1:example.org", "m.text"));
        assert!(!says(&bridge("gmessages"), "@gvoicebot:example.org", "m.text"));
    }
}
