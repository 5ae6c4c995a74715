//! The bridges of a room: which ones are believed
//! ([MSC2346](https://github.com/matrix-org/matrix-spec-proposals/pull/2346)).
//!
//! Whoever may send state may claim to be a bridge. A claim counts only when it was sent by the very bot that
//! it names, or by one of that bot's ghosts, as older bridges do in rooms that a ghost has made. A state key belongs to
//! the first bot that was believed under it, because what the room's messages are worth hangs on it, until the settings
//! name another one. A room may have several bridges, each with a state key of its own.

use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Change, Membership, RoomState, filled};

/// Bridges of one room at most.
const MAX_BRIDGES: usize = 8;

/// A bridge that is believed: its claim was sent by the bot that it names, or by a ghost of that bot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The bridge's bot, whose device encrypts for all ghosts.
    pub bot: OwnedUserId,
    /// `m.bridge`, or the older `uk.half-shot.bridge` when that is all there is.
    pub event_type: String,
    /// The state key of the claim.
    pub state_key: String,
    /// The ghost that sent the claim; none when the bot did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<OwnedUserId>,
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

/// A claim that is to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The claim's content.
    pub bridge: &'a Bridge,
    /// Set when the bot that it names has joined the room.
    pub is_bot_in_room: bool,
}

/// What is known of a bot that claims a room, beyond the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is in the settings: it takes the place of a bot that is not.
    Configured,
    /// It is believed elsewhere: it may join another bridge in a room, but take no place.
    Known,
    /// It is believed where no other bot was before.
    Open,
    /// It is not believed.
    Refused,
    /// The sender has nothing to do with the bot that the claim names: the claim is ignored.
    Unrelated,
}

/// What the current state of a room shows of a claim that was believed and is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClaimFate {
    /// The bot itself has emptied it.
    Ended,
    /// Somebody else has written over it, or redacted it.
    Overwritten,
    /// There is no such state event.
    Absent,
}

/// Tells the [`Standing`] of a claim.
pub type Judge<'a> = &'a dyn Fn(&Claim<'_>) -> Standing;

/// Judges a claim when nothing is known of bridge bots beyond its room.
pub(super) fn by_sender(claim: &Claim<'_>) -> Standing {
    if claim.bridge.claimed_by.is_none() { Standing::Open } else { Standing::Unrelated }
}

/// The place of a claim among a room's bridges.
enum Place {
    /// It becomes the room's first bridge, and this one ends.
    First(Option<Box<Bridge>>),
    /// It joins the room's other bridges.
    Further,
    /// It is not believed.
    Nowhere,
}

impl RoomState {
    /// The bridges that are believed, the first one first.
    pub fn bridges(&self) -> impl Iterator<Item = &Bridge> {
        self.bridge.iter().chain(&self.further_bridges)
    }

    /// The bots of the bridges that are believed, and of the one that has let go of the room last.
    pub fn bots(&self) -> impl Iterator<Item = &UserId> {
        self.bridges().chain(self.former_bridge.as_deref()).map(|bridge| &*bridge.bot)
    }

    fn bridges_mut(&mut self) -> impl Iterator<Item = &mut Bridge> {
        self.bridge.iter_mut().chain(&mut self.further_bridges)
    }

    pub(super) fn apply_bridge(
        &mut self,
        event_type: &str,
        state_key: &str,
        sender: Option<&str>,
        content: &Value,
        standing: Judge<'_>,
    ) -> Change {
        let Some(sender) = sender.and_then(|id| UserId::parse(id).ok()) else { return Change::None };
        let Some(claim) = Bridge::read(event_type, state_key, &sender, content) else {
            return self.withdraw(event_type, state_key, &sender);
        };
        let standing_of_it = self.judge(&claim, standing);
        if standing_of_it == Standing::Unrelated {
            return Change::None;
        }
        let is_taken = self.bridges().any(|it| it.bot != claim.bot && it.state_key == claim.state_key);
        if let Some(known) = self.bridges_mut().find(|known| known.bot == claim.bot) {
            // Bridges send both types with the same content; the newer type is the one that counts. What a bot says
            // itself is no ghost's to change.
            let older = known.event_type == "m.bridge" && event_type != "m.bridge";
            let by_less = known.claimed_by.is_none() && claim.claimed_by.is_some();
            if older || by_less || is_taken || *known == claim || standing_of_it == Standing::Refused {
                return Change::None;
            }
            *known = claim;
            return Change::Bridge;
        }
        match self.place(&claim, standing) {
            Place::Nowhere => self.refuse(claim),
            place => {
                self.believe(claim, place);
                Change::Bridge
            }
        }
    }

    fn judge(&self, claim: &Bridge, standing: Judge<'_>) -> Standing {
        let bot = self.members.get(&claim.bot);
        let is_bot_in_room = bot.is_some_and(|bot| bot.membership == Membership::Join);
        standing(&Claim { bridge: claim, is_bot_in_room })
    }

    /// Returns the place of a claim whose bot has none in the room yet.
    fn place(&self, claim: &Bridge, standing: Judge<'_>) -> Place {
        let is_configured = |bridge: &Bridge| self.judge(bridge, standing) == Standing::Configured;
        let holder = self.bridges().find(|bridge| bridge.state_key == claim.state_key);
        let has_room = self.bridges().count() < MAX_BRIDGES;
        match self.judge(claim, standing) {
            Standing::Refused | Standing::Unrelated => Place::Nowhere,
            Standing::Configured => match holder {
                Some(holder) if is_configured(holder) => Place::Nowhere,
                Some(holder) => Place::First(Some(Box::new(holder.clone()))),
                None if !has_room => Place::Nowhere,
                None if self.bridge.as_ref().is_some_and(is_configured) => Place::Further,
                None => Place::First(None),
            },
            Standing::Known if self.bridge.is_some() => {
                if holder.is_none() && has_room {
                    Place::Further
                } else {
                    Place::Nowhere
                }
            }
            Standing::Known | Standing::Open => {
                let is_free =
                    self.bridge.is_none() && self.pinned_bot.as_ref().is_none_or(|bot| *bot == claim.bot);
                if is_free { Place::First(None) } else { Place::Nowhere }
            }
        }
    }

    fn believe(&mut self, claim: Bridge, place: Place) {
        self.bridge_conflict.take_if(|conflict| conflict.bot == claim.bot);
        self.former_bridge.take_if(|former| former.bot == claim.bot);
        match place {
            Place::First(ended) => {
                let before = self.bridge.take();
                if let Some(ended) = ended {
                    self.further_bridges.retain(|bridge| bridge.bot != ended.bot);
                    let others = before.filter(|bridge| bridge.bot != ended.bot);
                    self.further_bridges.splice(0..0, others);
                    self.refuse(*ended);
                } else {
                    self.further_bridges.splice(0..0, before);
                }
                self.pinned_bot = Some(claim.bot.clone());
                self.bridge = Some(claim);
            }
            Place::Further => self.further_bridges.push(claim),
            Place::Nowhere => {}
        }
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
        let is_refused = |bridge: &Bridge, state: &Self| {
            matches!(state.judge(bridge, standing), Standing::Refused | Standing::Unrelated)
        };
        let bots: Vec<_> = self.bridges().filter(|bridge| is_refused(bridge, self)).cloned().collect();
        let mut refused = None;
        let is_former_refused = self.former_bridge.as_ref().is_some_and(|former| is_refused(former, self));
        self.former_bridge.take_if(|_| is_former_refused);
        for bridge in bots {
            self.remove(&bridge.bot);
            refused = Some(bridge);
            change = Change::Bridge;
        }
        if let Some(claim) = self.bridge_conflict.as_ref().and_then(|conflict| conflict.claim.clone()) {
            match self.place(&claim, standing) {
                Place::Nowhere => {}
                place => {
                    self.believe(*claim, place);
                    change = Change::Bridge;
                }
            }
        }
        if let Some(refused) = refused {
            self.refuse(refused);
        }
        change
    }

    /// Judges again a claim that waits for the bot that has just come.
    pub(super) fn reconsider_for(&mut self, user: &UserId, standing: Judge<'_>) -> Change {
        let waits = self.bridge_conflict.as_ref().is_some_and(|conflict| conflict.bot == user);
        if waits { self.reconsider(standing) } else { Change::None }
    }

    /// Takes a bridge out; the next one becomes the first.
    fn remove(&mut self, bot: &UserId) {
        self.further_bridges.retain(|bridge| bridge.bot != bot);
        if self.bridge.take_if(|bridge| bridge.bot == bot).is_some() && !self.further_bridges.is_empty() {
            self.bridge = Some(self.further_bridges.remove(0));
        }
    }

    /// A bot empties its claim when it lets go of a room; so does the ghost that made it.
    fn withdraw(&mut self, event_type: &str, state_key: &str, sender: &UserId) -> Change {
        let is_by = |claim: &Bridge| claim.bot == sender || claim.claimed_by.as_deref() == Some(sender);
        let known = self.bridges().find(|known| is_by(known));
        if let Some(known) = known {
            if known.event_type == event_type && known.state_key == state_key {
                let known = known.clone();
                self.remove(&known.bot);
                self.former_bridge = Some(Box::new(known));
                return Change::Bridge;
            }
            return Change::None;
        }
        let is_conflicts = |other: &BridgeConflict| {
            other.bot == sender || other.claim.as_ref().is_some_and(|claim| is_by(claim))
        };
        if self.bridge_conflict.take_if(|other| is_conflicts(other)).is_some() {
            Change::Bridge
        } else {
            Change::None
        }
    }

    /// Takes in all claims of a room's current state, in place of what was known; `before` is how it was.
    ///
    /// Whoever writes over the claim of a bot, and is not believed, does not end it.
    pub(super) fn rebuild_bridges(
        &mut self,
        before: &Self,
        state: &[Value],
        claims: &mut [&Value],
        standing: Judge<'_>,
    ) {
        // The list has no order of its own: the bots believed before come first, then the room's maker, then
        // whoever spoke first.
        let first = self.pinned_bot.as_ref().map(|bot| bot.as_str().to_owned());
        let known: Vec<_> = before.bridges().map(|bridge| bridge.bot.as_str().to_owned()).collect();
        let creator = self.creator.as_ref().map(|creator| creator.as_str().to_owned());
        let text = |event: &Value, key| event.get(key).and_then(Value::as_str).map(str::to_owned);
        claims.sort_by_key(|event| {
            let sender = text(event, "sender");
            let sent_at = event.get("origin_server_ts").and_then(Value::as_i64).unwrap_or(i64::MAX);
            let is = |user: &Option<String>| user.is_some() && *user == sender;
            let is_known = sender.as_ref().is_some_and(|sender| known.contains(sender));
            (!is(&first), !is_known, !is(&creator), sent_at)
        });
        self.former_bridge.clone_from(&before.former_bridge);
        for event in &*claims {
            self.apply_judged(event, standing);
        }
        for bridge in before.bridges() {
            let is_ended = match bridge.fate(state) {
                ClaimFate::Ended => true,
                ClaimFate::Overwritten => false,
                ClaimFate::Absent => self.bridge_conflict.is_none(),
            };
            let is_free =
                self.bridges().all(|other| other.bot != bridge.bot && other.state_key != bridge.state_key);
            let is_believed =
                !matches!(self.judge(bridge, standing), Standing::Refused | Standing::Unrelated);
            if is_ended && is_believed && self.bridges().all(|other| other.bot != bridge.bot) {
                self.former_bridge = Some(Box::new(bridge.clone()));
            }
            if !is_ended && is_free && is_believed {
                match self.bridge {
                    None => self.bridge = Some(bridge.clone()),
                    Some(_) => self.further_bridges.push(bridge.clone()),
                }
            }
        }
    }
}

impl Bridge {
    /// Returns what became of this claim, which `state` does not make any more.
    ///
    /// Whoever may send state can write over it, and whoever may redact can empty it; only its own bot ends it, or the
    /// ghost that made it.
    fn fate(&self, state: &[Value]) -> ClaimFate {
        let text = |event: &Value, key: &str| event.get(key).and_then(Value::as_str).map(str::to_owned);
        let is_of_claim = |event: &&Value| {
            let event_type = text(event, "type");
            matches!(event_type.as_deref(), Some("m.bridge" | "uk.half-shot.bridge"))
                && text(event, "state_key").as_deref() == Some(&*self.state_key)
        };
        let bot = Some(self.bot.as_str());
        let ghost = self.claimed_by.as_ref().map(|ghost| ghost.as_str());
        let is_the_bots = |event: &Value| {
            let redacted_by = event.pointer("/unsigned/redacted_because/sender").and_then(Value::as_str);
            let is = |user: Option<&str>| user.is_some() && (user == bot || user == ghost);
            is(text(event, "sender").as_deref()) && (redacted_by.is_none() || is(redacted_by))
        };
        let mut of_claim = state.iter().filter(is_of_claim).peekable();
        if of_claim.peek().is_none() {
            return ClaimFate::Absent;
        }
        if of_claim.any(is_the_bots) { ClaimFate::Ended } else { ClaimFate::Overwritten }
    }

    /// The claim of a state event; none when it makes none.
    #[must_use]
    pub fn of_event(event: &Value) -> Option<Self> {
        let text = |key| event.get(key).and_then(Value::as_str);
        let sender = UserId::parse(text("sender")?).ok()?;
        Self::read(text("type")?, text("state_key")?, &sender, event.get("content")?)
    }

    /// A claim; none when it names no bot.
    fn read(event_type: &str, state_key: &str, sender: &UserId, content: &Value) -> Option<Self> {
        let user = |key| {
            let id = content.get(key).and_then(Value::as_str).filter(|id| is_short(id))?;
            UserId::parse(id).ok()
        };
        let protocol = content.get("protocol").unwrap_or(&Value::Null);
        let channel = content.get("channel").unwrap_or(&Value::Null);
        let bot = user("bridgebot")?;
        Some(Self {
            claimed_by: (bot != sender).then(|| sender.to_owned()),
            bot,
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
