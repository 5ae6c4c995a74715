//! The owner's logins, as believed bridges state them, and what is said through their ghosts.
//!
//! A bridge that does not speak through the owner's account says with the ghost of the login what the owner has written
//! in the network's own app. The login is named in conversations of two (`fi.mau.receiver`) and not in groups, so it is
//! remembered for all rooms of the bridge.

use std::collections::BTreeSet;

use ruma::{OwnedUserId, RoomId, UserId};

use super::{Pins, bots};
use crate::{
    messages::room::{Bridge, Claim, RoomState, Standing},
    model::naming,
    store::bridges::BridgeLogin,
};

/// Logins remembered of one bot at most.
const MAX_LOGINS_PER_BOT: usize = 100;

/// Bots of which logins are remembered at most.
const MAX_BOTS_WITH_LOGINS: usize = 1_000;

impl Pins {
    /// Notes that a believed bridge has stated a login.
    pub(super) fn learn(&mut self, bot: &UserId, login: &str, room_id: &RoomId) {
        if self.logins.len() >= MAX_BOTS_WITH_LOGINS && !self.logins.contains_key(bot) {
            return;
        }
        let logins = self.logins.entry(bot.to_owned()).or_default();
        if login.len() > 255 || logins.len() >= MAX_LOGINS_PER_BOT || !logins.insert(login.to_owned()) {
            return;
        }
        tracing::info!(%bot, login, room.id = %room_id, "a login of the owner's");
        self.news.insert(bot.to_owned());
        self.changes.logins.push(BridgeLogin {
            bot: bot.to_owned(),
            login: login.to_owned(),
            room_id: room_id.to_string(),
        });
    }

    /// Takes in that a bot has stated a login in a room of the owner's whose state was not read yet, so that what comes
    /// in the same transaction is told rightly. It counts once the bot is believed.
    pub fn foresee(&mut self, bridge: &Bridge, room_id: &RoomId) {
        let Some(login) = &bridge.receiver else { return };
        let claim = Claim { bridge, is_bot_in_room: true };
        match self.standing(&claim) {
            Standing::Configured => self.learn(&bridge.bot, login, room_id),
            Standing::Known if bridge.claimed_by.is_none() => self.learn(&bridge.bot, login, room_id),
            Standing::Open if bridge.claimed_by.is_none() => {
                let is_full = self.stated_logins.len() >= MAX_BOTS_WITH_LOGINS;
                if is_full && !self.stated_logins.contains_key(&bridge.bot) {
                    return;
                }
                let stated = self.stated_logins.entry(bridge.bot.clone()).or_default();
                if stated.len() < MAX_LOGINS_PER_BOT {
                    stated.insert((login.clone(), room_id.to_owned()));
                }
            }
            Standing::Known | Standing::Open | Standing::Refused | Standing::Unrelated => {}
        }
    }

    /// Returns whether any login is known.
    #[must_use]
    pub fn has_logins(&self) -> bool {
        !self.logins.is_empty()
    }

    /// The owner whose rooms count.
    #[must_use]
    pub fn owner(&self) -> Option<&UserId> {
        self.owner.as_deref()
    }

    /// Returns whether the mark of a puppet counts on an unencrypted event of that user.
    ///
    /// Every member can write the mark. It counts for a user whom the settings name as a puppet, and for the only real
    /// user in the room.
    #[must_use]
    pub fn is_puppet_in_clear(
        &self,
        state: &RoomState,
        user: &UserId,
        our_users: &BTreeSet<OwnedUserId>,
    ) -> bool {
        let bots = bots(state);
        let is_somebody = |other: &&OwnedUserId| {
            !our_users.contains(*other) && !bots.contains(&&***other) && !self.bridges.is_ghost(other, &bots)
        };
        let is_alone = || state.members.keys().filter(is_somebody).all(|other| other == user);
        state.bridges().any(|bridge| match &self.bridges.of_bot(&bridge.bot).puppets {
            Some(puppets) if !puppets.matches(user.as_str()) => false,
            Some(puppets) => puppets.is_exact() || is_alone(),
            None => self.owner.is_none() && user.server_name() == bridge.bot.server_name() && is_alone(),
        })
    }

    /// The only login of a bridge's that is known.
    #[must_use]
    pub fn only_login(&self, bot: &UserId) -> Option<&str> {
        let logins = self.logins.get(bot).filter(|logins| logins.len() == 1)?;
        logins.first().map(String::as_str)
    }

    /// Returns whether a user is the ghost of the owner's login in a room of that bridge: of the login that receives the
    /// room, or of any known login where the bridge names none.
    #[must_use]
    pub fn is_login(&self, bridge: &Bridge, state: &RoomState, user: &UserId) -> bool {
        let known = self.bridges.of_bot(&bridge.bot);
        let id = known.ghosts.iter().find_map(|ghosts| ghosts.pattern.capture(user.as_str()));
        let Some(id) = id.filter(|_| bridge.bot != user) else { return false };
        let protocol = bridge.protocol.as_deref();
        let is_of = |login: &String| naming::is_of_login(protocol, id, login);
        match &bridge.receiver {
            // WhatsApp has a second id for everybody, which no login is called by.
            Some(login) => {
                is_of(login)
                    || (protocol == Some("whatsapp")
                        && id.starts_with("lid-")
                        && state.service_members.contains(user))
            }
            // Older bridges name no login. In a conversation of two the other person's ghost makes the room, and says so;
            // whoever else they speak through is the login's.
            None if bridge.claimed_by.is_some() && bridge.claimed_by == bridge.creator => {
                bridge.claimed_by.as_deref() != Some(user)
            }
            None => self.logins.get(&bridge.bot).is_some_and(|logins| logins.iter().any(is_of)),
        }
    }

    /// The bots of which a login was learned since this was last asked.
    #[must_use]
    pub fn take_news(&mut self) -> BTreeSet<OwnedUserId> {
        std::mem::take(&mut self.news)
    }
}
