//! The bridge of a room: which one is believed
//! ([MSC2346](https://github.com/matrix-org/matrix-spec-proposals/pull/2346)).
//!
//! Whoever may send state may claim to be a bridge. A claim counts only when it was sent by the very bot that
//! it names; of several bots the first is kept, because what the room's messages are worth hangs on it, until
//! the settings name another one.

use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Change, RoomState, filled};

/// A bridge that is believed: its claim was sent by the bot that it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The bridge's bot, whose device encrypts for all ghosts.
    pub bot: OwnedUserId,
    /// `m.bridge`, or the older `uk.half-shot.bridge` when that is all there is.
    pub event_type: String,
    /// The state key of the claim.
    pub state_key: String,
    /// Who made the portal, as the bridge says.
    #[serde(default)]
    pub creator: Option<OwnedUserId>,
    /// The protocol's id, e.g. `instagramgo`; none when it is no word of printable ASCII.
    #[serde(default)]
    pub protocol: Option<String>,
    /// The protocol's name, e.g. `Instagram`.
    #[serde(default)]
    pub protocol_name: Option<String>,
    /// The conversation's id on the network.
    #[serde(default)]
    pub channel_id: Option<String>,
    /// The conversation's name on the network.
    #[serde(default)]
    pub channel_name: Option<String>,
    /// The conversation's picture, an `mxc://` address.
    #[serde(default)]
    pub channel_avatar: Option<String>,
    /// The login on the network that receives the conversation (`fi.mau.receiver`).
    #[serde(default)]
    pub receiver: Option<String>,
    /// `com.beeper.room_type`: `dm`, `group`, `space` …
    #[serde(default)]
    pub room_type: Option<String>,
}

/// A bridge bot that claims a room and is not believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeConflict {
    /// The bot that is not believed.
    pub bot: OwnedUserId,
    /// The state key of its claim.
    pub state_key: String,
    /// All of its claim, for the day on which it is believed.
    #[serde(default)]
    pub claim: Option<Box<Bridge>>,
}

/// What is known of a bot that claims a room, beyond the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is in the settings: it takes the place of a bot that is not.
    Configured,
    /// It is believed where no other bot was before.
    Open,
    /// It is not believed.
    Refused,
}

/// What the current state of a room shows of a claim that was believed and is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClaimFate {
    /// The bot itself has emptied it.
    Ended,
    /// Somebody else has written over it, or redacted it.
    Overwritten,
    /// There is no such state event.
    Absent,
}

/// Tells the [`Standing`] of a claim.
pub type Judge<'a> = &'a dyn Fn(&Bridge) -> Standing;

impl RoomState {
    pub(super) fn apply_bridge(
        &mut self,
        event_type: &str,
        state_key: &str,
        sender: Option<&str>,
        content: &Value,
        standing: Judge<'_>,
    ) -> Change {
        let Some(sender) = sender.and_then(|id| UserId::parse(id).ok()) else { return Change::None };
        let claim = Bridge::read(event_type, state_key, content);
        match (claim, &self.bridge) {
            (Some(claim), _) if claim.bot != sender => Change::None,
            (Some(claim), Some(known)) if claim.bot == known.bot => {
                // Bridges send both types with the same content; the newer type is the one that counts.
                let older = known.event_type == "m.bridge" && event_type != "m.bridge";
                if older || *known == claim || standing(&claim) == Standing::Refused {
                    return Change::None;
                }
                self.bridge = Some(claim);
                Change::Bridge
            }
            (Some(claim), _) if self.accepts(&claim, standing) => {
                self.believe(claim);
                Change::Bridge
            }
            (Some(claim), _) => self.refuse(claim),
            (None, Some(known)) => self.withdraw(event_type, state_key, &sender, known.bot == sender),
            (None, None) => self.withdraw(event_type, state_key, &sender, false),
        }
    }

    /// Whether a claim takes the room: nobody had it, or its bot is in the settings and the other's is not.
    fn accepts(&self, claim: &Bridge, standing: Judge<'_>) -> bool {
        match standing(claim) {
            Standing::Refused => false,
            Standing::Configured => {
                self.bridge.as_ref().is_none_or(|known| standing(known) != Standing::Configured)
            }
            Standing::Open => {
                self.bridge.is_none() && self.pinned_bot.as_ref().is_none_or(|bot| *bot == claim.bot)
            }
        }
    }

    fn believe(&mut self, claim: Bridge) {
        self.bridge_conflict.take_if(|conflict| conflict.bot == claim.bot);
        self.pinned_bot = Some(claim.bot.clone());
        self.bridge = Some(claim);
    }

    fn refuse(&mut self, claim: Bridge) -> Change {
        let same = |known: &BridgeConflict| known.bot == claim.bot && known.state_key == claim.state_key;
        let is_known = self.bridge_conflict.as_ref().is_some_and(same);
        self.bridge_conflict = Some(BridgeConflict {
            bot: claim.bot.clone(),
            state_key: claim.state_key.clone(),
            claim: Some(Box::new(claim)),
        });
        if is_known { Change::None } else { Change::Bridge }
    }

    /// Judges the claims anew, because the settings or what is known of the bots may have changed.
    pub fn reconsider(&mut self, standing: Judge<'_>) -> Change {
        let mut change = Change::None;
        if self.pinned_bot.is_none() {
            self.pinned_bot = self.bridge.as_ref().map(|bridge| bridge.bot.clone());
        }
        let mut refused = None;
        if self.bridge.as_ref().is_some_and(|known| standing(known) == Standing::Refused) {
            refused = self.bridge.take();
            change = Change::Bridge;
        }
        let claim = self.bridge_conflict.as_ref().and_then(|conflict| conflict.claim.as_deref());
        if let Some(claim) = claim.filter(|claim| self.accepts(claim, standing)).cloned() {
            refused = refused.or(self.bridge.take());
            self.believe(claim);
            change = Change::Bridge;
        }
        if let Some(refused) = refused {
            self.refuse(refused);
        }
        change
    }

    /// A bot empties its claim when it lets go of a room.
    fn withdraw(&mut self, event_type: &str, state_key: &str, sender: &UserId, believed: bool) -> Change {
        if believed {
            let same = |known: &Bridge| known.event_type == event_type && known.state_key == state_key;
            if self.bridge.as_ref().is_some_and(same) {
                self.bridge = None;
                return Change::Bridge;
            }
        } else if self.bridge_conflict.as_ref().is_some_and(|other| other.bot == sender) {
            self.bridge_conflict = None;
            return Change::Bridge;
        }
        Change::None
    }
}

impl Bridge {
    /// Returns what became of this claim, which `state` does not make any more.
    ///
    /// Whoever may send state can write over it, and whoever may redact can empty it; only its own bot ends it.
    pub(super) fn fate(&self, state: &[Value]) -> ClaimFate {
        let text = |event: &Value, key: &str| event.get(key).and_then(Value::as_str).map(str::to_owned);
        let is_of_claim = |event: &&Value| {
            let event_type = text(event, "type");
            matches!(event_type.as_deref(), Some("m.bridge" | "uk.half-shot.bridge"))
                && text(event, "state_key").as_deref() == Some(&*self.state_key)
        };
        let bot = Some(self.bot.as_str());
        let is_the_bots = |event: &Value| {
            let redacted_by = event.pointer("/unsigned/redacted_because/sender").and_then(Value::as_str);
            text(event, "sender").as_deref() == bot && (redacted_by.is_none() || redacted_by == bot)
        };
        let mut of_claim = state.iter().filter(is_of_claim).peekable();
        if of_claim.peek().is_none() {
            return ClaimFate::Absent;
        }
        if of_claim.any(is_the_bots) { ClaimFate::Ended } else { ClaimFate::Overwritten }
    }

    /// A claim; none when it names no bot.
    fn read(event_type: &str, state_key: &str, content: &Value) -> Option<Self> {
        let user = |key| {
            let id = content.get(key).and_then(Value::as_str).filter(|id| is_short(id))?;
            UserId::parse(id).ok()
        };
        let protocol = content.get("protocol").unwrap_or(&Value::Null);
        let channel = content.get("channel").unwrap_or(&Value::Null);
        Some(Self {
            bot: user("bridgebot")?,
            event_type: event_type.to_owned(),
            state_key: state_key.to_owned(),
            creator: user("creator"),
            protocol: filled(protocol, "id").filter(|id| is_word(id)),
            protocol_name: filled(protocol, "displayname"),
            channel_id: filled(channel, "id"),
            channel_name: filled(channel, "displayname"),
            channel_avatar: filled(channel, "avatar_url").filter(|url| url.starts_with("mxc://")),
            receiver: filled(channel, "fi.mau.receiver"),
            room_type: filled(content, "com.beeper.room_type.v2")
                .or_else(|| filled(content, "com.beeper.room_type")),
        })
    }
}

/// Whether a text may be a name that rooms and messages are looked up by: the database stores no NUL and
/// indexes nothing long.
fn is_short(text: &str) -> bool {
    text.len() <= 255 && !text.contains('\0')
}

/// Whether a protocol id can be a network's name, which stands in tables, paths and payloads.
fn is_word(id: &str) -> bool {
    id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_graphic())
}
