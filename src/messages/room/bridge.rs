//! The bridge of a room: which one is believed
//! ([MSC2346](https://github.com/matrix-org/matrix-spec-proposals/pull/2346)).
//!
//! Whoever may send state may claim to be a bridge. A claim counts only when it was sent by the very bot that
//! it names; of several bots the first is kept, because what the room's messages are worth hangs on it.

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

/// A bridge bot that claims a room which is another one's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeConflict {
    /// The bot that is not believed.
    pub bot: OwnedUserId,
    /// The state key of its claim.
    pub state_key: String,
}

impl RoomState {
    pub(super) fn apply_bridge(
        &mut self,
        event_type: &str,
        state_key: &str,
        sender: Option<&str>,
        content: &Value,
    ) -> Change {
        let Some(sender) = sender.and_then(|id| UserId::parse(id).ok()) else { return Change::None };
        let claim = Bridge::read(event_type, state_key, content);
        match (claim, &self.bridge) {
            (Some(claim), _) if claim.bot != sender => Change::None,
            (Some(claim), None) => {
                self.bridge = Some(claim);
                Change::Bridge
            }
            (Some(claim), Some(known)) if claim.bot != known.bot => {
                let conflict = BridgeConflict { bot: claim.bot, state_key: state_key.to_owned() };
                if self.bridge_conflict.as_ref() == Some(&conflict) {
                    return Change::None;
                }
                self.bridge_conflict = Some(conflict);
                Change::Bridge
            }
            (Some(claim), Some(known)) => {
                // Bridges send both types with the same content; the newer type is the one that counts.
                let older = known.event_type == "m.bridge" && event_type != "m.bridge";
                if older || *known == claim {
                    return Change::None;
                }
                self.bridge = Some(claim);
                Change::Bridge
            }
            (None, Some(known)) => self.withdraw(event_type, state_key, &sender, known.bot == sender),
            (None, None) => Change::None,
        }
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
