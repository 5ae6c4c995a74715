//! Beliefs about bridges: those of the settings and those that were pinned, their state keys and logins.
//!
//! A bridge that is not in the settings is *pinned* when it is first believed: its bot, the ghosts that its
//! name tells, and the state key of its claim. A bot that claims another's state key, or that is another
//! bridge's ghost, is refused. What a flood of bots leaves no room for is believed in its own rooms all the same, and
//! merely not pinned. All of it is loaded with the worker and held in memory, as only the worker changes it; changes
//! are written in the step's transaction.

mod logins;

use std::collections::{BTreeSet, HashMap, HashSet};

use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId};

use crate::{
    clock::Timestamp,
    crypto::trust::{self, Bridges},
    messages::room::{Bridge, Claim, RoomState, Standing},
    model::{
        Pattern, TrustPolicy,
        naming::{self, Ghosts, Strength},
    },
    store::{
        Db, StoreError,
        bridges::{self, BridgeChanges, BridgeConflict, BridgeDevice, BridgeKey, PinnedBridge},
    },
};

/// Bridges pinned at most, beside those of our own server that bear the names of installed ones.
pub(super) const MAX_PINNED: usize = 1_000;

/// Bridges pinned of those that one user, or one other server, has made rooms for.
pub(super) const MAX_PINNED_PER_CREATOR: usize = 10;

/// State keys pinned at most: older bridges have one for each conversation.
const MAX_KEYS: usize = 20_000;

/// State keys pinned of one bot at most.
pub(super) const MAX_KEYS_PER_BOT: usize = 2_000;

/// Conflicts reported at most.
const MAX_CONFLICTS: usize = 10_000;

/// Settings about trust.
#[derive(Clone, Debug, Default)]
pub struct TrustSettings {
    /// Action for each trust.
    pub actions: TrustPolicy,
    /// The bridges of the settings.
    pub bridges: Vec<trust::Bridge>,
    /// The owner of the conversations.
    pub owner: Option<OwnedUserId>,
    /// Set when only the bridges of the settings are believed.
    pub only_configured: bool,
}

/// What is believed of bridges.
#[derive(Debug)]
pub struct Pins {
    pub(super) actions: TrustPolicy,
    only_configured: bool,
    owner: Option<OwnedUserId>,
    /// The server whose users we are.
    server_name: Option<OwnedServerName>,
    pub(super) bridges: Bridges,
    /// Bots by the state keys that are theirs.
    keys: HashMap<String, OwnedUserId>,
    /// Counts of pinned bridges by the one who has made their first rooms.
    creators: HashMap<String, usize>,
    /// The owner's logins by the bots of their bridges.
    logins: HashMap<OwnedUserId, BTreeSet<String>>,
    /// Logins that bots which are not believed so far have stated, with the rooms in which they did.
    stated_logins: HashMap<OwnedUserId, BTreeSet<(String, OwnedRoomId)>>,
    /// Bots of which a login was learned since this was last asked.
    news: BTreeSet<OwnedUserId>,
    /// Rooms whose state is to be read again, because a bot that was not believed there is now.
    unread: BTreeSet<OwnedRoomId>,
    pub(super) devices: HashMap<OwnedUserId, Vec<BridgeDevice>>,
    /// Conflicts that were reported.
    reported: HashSet<(OwnedRoomId, OwnedUserId)>,
    pub(super) changes: BridgeChanges,
    is_flood_told: bool,
}

impl Pins {
    /// What is believed when nothing was seen so far.
    #[must_use]
    pub fn new(settings: &TrustSettings) -> Self {
        Self {
            actions: settings.actions,
            only_configured: settings.only_configured,
            owner: settings.owner.clone(),
            server_name: settings.owner.as_ref().map(|owner| owner.server_name().to_owned()),
            bridges: Bridges::new(settings.bridges.clone(), settings.owner.clone()),
            keys: HashMap::new(),
            creators: HashMap::new(),
            logins: HashMap::new(),
            stated_logins: HashMap::new(),
            news: BTreeSet::new(),
            unread: BTreeSet::new(),
            devices: HashMap::new(),
            reported: HashSet::new(),
            changes: BridgeChanges::default(),
            is_flood_told: false,
        }
    }

    /// Sets one of our users, which tells the server whose users we are.
    #[must_use]
    pub fn of_user(mut self, user: Option<&OwnedUserId>) -> Self {
        self.server_name = user.map(|user| user.server_name().to_owned()).or(self.server_name);
        self
    }

    /// Adds what is stored.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn load(&mut self, db: &Db) -> Result<(), StoreError> {
        self.keys = bridges::keys(db).await?.into_iter().map(|key| (key.state_key, key.bot)).collect();
        for pinned in bridges::pinned(db).await? {
            let ghosts = self.ghosts_of(&pinned);
            if let Some(creator) = &pinned.creator {
                *self.creators.entry(creator.clone()).or_default() += 1;
            }
            self.bridges.add(trust::Bridge { ghosts, ..trust::Bridge::of_bot(&pinned.bot) });
        }
        for conflict in bridges::conflicts(db, i64::try_from(MAX_CONFLICTS).unwrap_or(i64::MAX)).await? {
            if let Ok(room_id) = conflict.room_id.try_into() {
                self.reported.insert((room_id, conflict.bot));
            }
        }
        for login in bridges::logins(db).await? {
            self.logins.entry(login.bot).or_default().insert(login.login);
        }
        for device in bridges::devices(db).await? {
            self.devices.entry(device.bot.clone()).or_default().push(device);
        }
        Ok(())
    }

    /// The ghosts of a pinned bridge, as this version reads its bot's name; what another version read is kept.
    fn ghosts_of(&self, pinned: &PinnedBridge) -> Vec<Ghosts> {
        let keys = self.keys.iter().filter(|(_, bot)| **bot == pinned.bot).map(|(key, _)| &**key);
        let mut ghosts = naming::ghosts_of(&pinned.bot, keys);
        let is_keyed = ghosts.iter().any(|ghosts| ghosts.strength == Strength::Keyed);
        if let Some(stored) = pinned.ghosts.clone().filter(|_| !is_keyed)
            && ghosts.iter().all(|ghosts| ghosts.pattern != stored)
        {
            ghosts.push(Ghosts { pattern: stored, strength: Strength::Guessed });
        }
        ghosts
    }

    /// What is known of a bot that claims a room.
    #[must_use]
    pub fn standing(&self, claim: &Claim<'_>) -> Standing {
        let Claim { bridge, is_bot_in_room } = claim;
        let known = self.bridges.find(&bridge.bot);
        let is_configured = known.is_some_and(|known| known.is_configured);
        if let Some(ghost) = &bridge.claimed_by {
            if !self.bridges.of_bot(&bridge.bot).has_ghost(ghost) {
                let could_be =
                    ghost.server_name() == bridge.bot.server_name() && naming::looks_like_ghost(ghost);
                return if could_be { Standing::Refused } else { Standing::Unrelated };
            }
            let is_named = *is_bot_in_room && naming::is_installed(&bridge.bot);
            if known.is_none() && !is_named {
                return Standing::Refused;
            }
        }
        if is_configured {
            return Standing::Configured;
        }
        let is_ghost =
            self.bridges.of_ghost(&bridge.bot).is_some_and(|(_, strength)| strength > Strength::Guessed);
        if self.only_configured || is_ghost || !self.may_have(&bridge.bot, &bridge.state_key) {
            return Standing::Refused;
        }
        if known.is_some() { Standing::Known } else { Standing::Open }
    }

    /// Returns whether a bot may have a state key: when no other bot has it, or when the bot is installed under such a
    /// key and whoever came first is not.
    fn may_have(&self, bot: &UserId, state_key: &str) -> bool {
        let holder = self.keys.get(state_key);
        holder.is_none_or(|holder| holder == bot) || naming::is_installed_as(bot, state_key)
    }

    /// Notes the bridges of a relayed room, and who claims it in vain: pins what is new, and reports.
    pub fn note(&mut self, room_id: &RoomId, state: &RoomState, now: Timestamp) {
        for bridge in state.bridges() {
            self.pin(room_id, bridge, state.creator.as_deref(), now);
            if self.is_owners(state)
                && let Some(login) = &bridge.receiver
                && (bridge.claimed_by.is_none() || self.is_configured(&bridge.bot))
            {
                self.learn(&bridge.bot, login, room_id);
            }
        }
        self.report(room_id, state, now);
    }

    /// Returns whether the owner is in a room; without an owner in the settings, every room counts.
    fn is_owners(&self, state: &RoomState) -> bool {
        self.owner.as_ref().is_none_or(|owner| state.members.contains_key(owner))
    }

    fn is_configured(&self, bot: &UserId) -> bool {
        self.bridges.find(bot).is_some_and(|bridge| bridge.is_configured)
    }

    /// Reports who claims a room and is not believed, once.
    pub fn report(&mut self, room_id: &RoomId, state: &RoomState, now: Timestamp) {
        let Some(conflict) = &state.bridge_conflict else { return };
        let report = (room_id.to_owned(), conflict.bot.clone());
        if self.reported.contains(&report) || self.reported.len() >= MAX_CONFLICTS {
            return;
        }
        let believed = state.bridge.as_ref().map(|bridge| bridge.bot.clone());
        let ghost = conflict.claim.as_ref().and_then(|claim| claim.claimed_by.as_deref());
        self.log_conflict(room_id, &conflict.bot, ghost, believed.as_deref());
        self.reported.insert(report);
        self.changes.conflicts.push(BridgeConflict {
            room_id: room_id.to_string(),
            bot: conflict.bot.clone(),
            believed,
            seen_at: now,
        });
    }

    fn log_conflict(
        &self,
        room_id: &RoomId,
        bot: &UserId,
        ghost: Option<&UserId>,
        believed: Option<&UserId>,
    ) {
        let bridge = self.bridges.of_bot(bot);
        let ghosts = match ghost {
            Some(ghost) if !bridge.has_ghost(ghost) => Some(naming::ghosts_like(ghost)),
            None if bridge.ghosts.is_empty() => Some(naming::unknown_ghosts(bot)),
            Some(_) | None => None,
        };
        let (line, believed) =
            (naming::settings_line(bot, ghosts.as_ref(), None), believed.map(UserId::as_str));
        match ghost {
            None => tracing::warn!(
                room.id = %room_id,
                claimed_by = %bot,
                believed,
                "a bot claims to be the bridge of a room and is not believed; if it is your bridge, name it in the \
                 settings: {line}"
            ),
            Some(ghost) => tracing::warn!(
                room.id = %room_id,
                claimed_by = %ghost,
                %bot,
                believed,
                "a user says that a room is a bridge's, whose ghost it may be, and is not believed; if it is your \
                 bridge, name it in the settings: {line}"
            ),
        }
    }

    /// Returns whether a bot's claim to a room was reported as not believed.
    #[must_use]
    pub fn is_reported(&self, room_id: &RoomId, bot: &UserId) -> bool {
        !self.reported.is_empty() && self.reported.contains(&(room_id.to_owned(), bot.to_owned()))
    }

    fn pin(&mut self, room_id: &RoomId, bridge: &Bridge, creator: Option<&UserId>, now: Timestamp) {
        let Bridge { bot, state_key, protocol, .. } = bridge;
        let report = (room_id.to_owned(), bot.clone());
        if self.reported.remove(&report) {
            self.changes.settled.push((room_id.to_string(), bot.clone()));
        }
        let is_pinned = bridge.claimed_by.is_none() && self.pin_key(room_id, bot, state_key);
        if self.bridges.find(bot).is_none() {
            let creator = self.creator(creator.unwrap_or(bot));
            let keys = is_pinned.then_some(&**state_key);
            let ghosts = naming::ghosts_of(bot, keys);
            let is_ours = self.server_name.as_ref().is_some_and(|ours| ours == bot.server_name());
            let is_full = self.bridges.pinned_count() >= MAX_PINNED
                || self.creators.get(&creator).is_some_and(|count| *count >= MAX_PINNED_PER_CREATOR);
            if is_full && !(is_ours && naming::is_installed(bot)) {
                return self.tell_of_flood(bot, room_id);
            }
            log_pin(bot, &ghosts, room_id);
            *self.creators.entry(creator.clone()).or_default() += 1;
            self.changes.bridges.push(PinnedBridge {
                bot: bot.clone(),
                ghosts: ghosts.first().map(|ghosts| ghosts.pattern.clone()),
                protocol: protocol.clone(),
                room_id: room_id.to_string(),
                creator: Some(creator),
                pinned_at: now,
            });
            self.bridges.add(trust::Bridge { ghosts, ..trust::Bridge::of_bot(bot) });
            // Its ghosts may have named it elsewhere, in vain so far.
            let elsewhere = self.reported.iter().filter(|(_, other)| other == bot);
            self.unread.extend(elsewhere.map(|(room_id, _)| room_id.clone()));
        }
        for (login, room_id) in self.stated_logins.remove(bot).unwrap_or_default() {
            self.learn(bot, &login, &room_id);
        }
    }

    /// Returns who is answerable for a bridge: the maker of its room, or the whole server for users of other servers,
    /// who can be made without end.
    fn creator(&self, creator: &UserId) -> String {
        match &self.server_name {
            Some(ours) if ours != creator.server_name() => creator.server_name().to_string(),
            _ => creator.to_string(),
        }
    }

    fn tell_of_flood(&mut self, bot: &UserId, room_id: &RoomId) {
        if !std::mem::replace(&mut self.is_flood_told, true) {
            tracing::warn!(
                %bot,
                room.id = %room_id,
                "so many bots call themselves bridges that further ones are believed in their own rooms only; name \
                 your bridges under `bridges` in the settings, and set trust.new_bridges to refuse"
            );
        }
    }

    /// Pins a state key and returns whether it is the bot's.
    fn pin_key(&mut self, room_id: &RoomId, bot: &OwnedUserId, state_key: &str) -> bool {
        // An empty key tells nothing, and a table cannot look up by everything that Matrix allows.
        let can_be_pinned = !state_key.is_empty() && state_key.len() <= 255 && !state_key.contains('\0');
        match self.keys.get(state_key) {
            Some(holder) if holder == bot => return true,
            // Two bots that are both installed under such a key: the first one keeps it.
            Some(holder) if naming::is_installed_as(holder, state_key) => return false,
            Some(_) => {}
            None => {
                let of_bot = || self.keys.values().filter(|of| *of == bot).count();
                if self.keys.len() >= MAX_KEYS || of_bot() >= MAX_KEYS_PER_BOT {
                    return false;
                }
            }
        }
        if !can_be_pinned {
            return false;
        }
        self.keys.insert(state_key.to_owned(), bot.clone());
        if let Some(known) = self.bridges.find_mut(bot).filter(|known| !known.is_configured) {
            let ghosts = naming::ghosts_of(bot, [state_key]);
            if ghosts.iter().any(|ghosts| ghosts.strength == Strength::Keyed) {
                known.ghosts = ghosts;
            }
        }
        let (state_key, bot, room_id) = (state_key.to_owned(), bot.clone(), room_id.to_string());
        self.changes.keys.push(BridgeKey { state_key, bot, room_id });
        true
    }

    /// Returns whether a user is a ghost, see [`Bridges::is_ghost`], in a room of this state.
    #[must_use]
    pub fn is_ghost(&self, user: &UserId, state: &RoomState) -> bool {
        self.bridges.is_ghost(user, &bots(state))
    }

    /// Returns whether a user is the bot of a known bridge.
    #[must_use]
    pub fn is_bot(&self, user: &UserId) -> bool {
        self.bridges.find(user).is_some()
    }

    /// Returns whether a user is the bot or, by more than a guess, a ghost of a known bridge.
    #[must_use]
    pub fn is_of_bridge(&self, user: &UserId) -> bool {
        self.is_bot(user) || self.bridges.is_ghost(user, &[])
    }

    /// Returns whether a bridge may speak for a user of a name that matches the pattern.
    #[must_use]
    pub fn may_speak_for(&self, bot: &UserId, users: &Pattern) -> bool {
        let example = UserId::parse(users.as_str().replace('*', "0"));
        example.is_ok_and(|example| self.bridges.may_speak(bot, &example, false))
    }

    /// The ghosts of a bridge, by its bot.
    #[must_use]
    pub fn ghosts(&self, bot: &UserId) -> Vec<Pattern> {
        let bridge = self.bridges.of_bot(bot);
        bridge.ghosts.iter().map(|ghosts| ghosts.pattern.clone()).collect()
    }

    /// Returns the place, among a room's bridges, of the bridge that a user belongs to: as its bot, as its ghost, or
    /// because it has encrypted the event (`bridged_by`). `None` for a user of no bridge.
    #[must_use]
    pub fn bridge_of(&self, state: &RoomState, user: &UserId, bridged_by: Option<&UserId>) -> Option<usize> {
        let place = |bot: &UserId| state.bridges().position(|bridge| bridge.bot == bot);
        if let Some(place) = bridged_by.and_then(place).or_else(|| place(user)) {
            return Some(place);
        }
        let claims = state
            .bridges()
            .enumerate()
            .filter_map(|(place, bridge)| Some((place, self.bridges.of_bot(&bridge.bot).claim_to(user)?)));
        let best = claims.reduce(|best, other| if other.1 > best.1 { other } else { best });
        best.map(|(place, _)| place)
    }

    /// What is to be written, once.
    #[must_use]
    pub fn take_changes(&mut self) -> BridgeChanges {
        std::mem::take(&mut self.changes)
    }

    /// Rooms whose state is to be read again, once.
    #[must_use]
    pub fn take_unread(&mut self) -> BTreeSet<OwnedRoomId> {
        std::mem::take(&mut self.unread)
    }
}

/// The bots of a room's bridges.
pub(super) fn bots(state: &RoomState) -> Vec<&UserId> {
    state.bots().collect()
}

fn log_pin(bot: &UserId, ghosts: &[Ghosts], room_id: &RoomId) {
    let Some(first) = ghosts.first() else {
        tracing::warn!(
            %bot,
            room.id = %room_id,
            "a bridge is believed from now on, but its name does not tell its ghosts, so what it says for them is held; \
             name them in the settings: {}",
            naming::settings_line(bot, Some(&naming::unknown_ghosts(bot)), None),
        );
        return;
    };
    let others: Vec<_> = ghosts.iter().skip(1).map(|ghosts| ghosts.pattern.as_str()).collect();
    tracing::info!(%bot, ghosts = %first.pattern, ?others, room.id = %room_id, "a bridge is believed from now on");
}

#[cfg(test)]
mod tests;
