//! Whom the worker believes: the bridges of the settings and those that were pinned, and what follows.
//!
//! A bridge that is not in the settings is *pinned* when it is first believed: its bot, the ghosts that its
//! name tells, and the state key of its claim. A bot that claims another's state key, or that is another
//! bridge's ghost, is refused. All of it is loaded with the worker and held in memory, as only the worker
//! changes it; changes are written in the step's transaction.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value};

use super::{
    event::WireEvent,
    worker::{Worker, room_keys},
};
use crate::{
    clock::Timestamp,
    crypto::{
        Clear, SessionDevice,
        trust::{self, Bridges, Evidence},
    },
    messages::{
        self,
        room::{Bridge, RoomState, Standing},
    },
    model::{Action, Encryption, Pattern, Trust, TrustPolicy},
    store::{
        Db, StoreError,
        bridges::{self, BridgeChanges, BridgeConflict, BridgeDevice, BridgeKey, DeviceChange, PinnedBridge},
        pending,
    },
};

/// Bridges pinned at most; whoever may make rooms could make bots without end.
const MOST_PINNED: usize = 1_000;

/// State keys pinned at most.
const MOST_KEYS: usize = 10_000;

/// Devices remembered for one bot at most.
const MOST_DEVICES: usize = 100;

/// Conflicts reported at most.
const MOST_CONFLICTS: usize = 10_000;

/// What the settings say about trust.
#[derive(Clone, Debug, Default)]
pub struct TrustSettings {
    /// What is done for each trust.
    pub actions: TrustPolicy,
    /// The bridges of the settings.
    pub bridges: Vec<trust::Bridge>,
    /// The owner of the conversations.
    pub owner: Option<OwnedUserId>,
    /// Whether only the bridges of the settings are believed.
    pub only_configured: bool,
}

/// An event that may be relayed.
#[derive(Debug)]
pub struct Admitted {
    /// What the payload says of its encryption.
    pub encryption: Encryption,
    /// The bridge bot that encrypted it, and the device.
    pub bridge_device: Option<(OwnedUserId, SessionDevice)>,
}

/// An event that may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Whether it may look better once more devices are known.
    pub is_open: bool,
}

/// What is believed of bridges.
#[derive(Debug)]
pub struct Pins {
    actions: TrustPolicy,
    only_configured: bool,
    bridges: Bridges,
    /// Bots by the state keys that are theirs.
    keys: HashMap<String, OwnedUserId>,
    devices: HashMap<OwnedUserId, Vec<BridgeDevice>>,
    /// Conflicts that were reported.
    reported: HashSet<(OwnedRoomId, OwnedUserId)>,
    changes: BridgeChanges,
}

impl Pins {
    /// What is believed when nothing was seen so far.
    #[must_use]
    pub fn new(settings: &TrustSettings) -> Self {
        Self {
            actions: settings.actions,
            only_configured: settings.only_configured,
            bridges: Bridges::new(settings.bridges.clone(), settings.owner.clone()),
            keys: HashMap::new(),
            devices: HashMap::new(),
            reported: HashSet::new(),
            changes: BridgeChanges::default(),
        }
    }

    /// Adds what is stored.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn load(&mut self, db: &Db) -> Result<(), StoreError> {
        for pinned in bridges::pinned(db).await? {
            self.bridges.add(of_pinned(&pinned));
        }
        self.keys = bridges::keys(db).await?.into_iter().map(|key| (key.state_key, key.bot)).collect();
        for conflict in bridges::conflicts(db, i64::try_from(MOST_CONFLICTS).unwrap_or(i64::MAX)).await? {
            if let Ok(room_id) = conflict.room_id.try_into() {
                self.reported.insert((room_id, conflict.bot));
            }
        }
        for device in bridges::devices(db).await? {
            self.devices.entry(device.bot.clone()).or_default().push(device);
        }
        Ok(())
    }

    /// What is known of a bot that claims a room.
    #[must_use]
    pub fn standing(&self, claim: &Bridge) -> Standing {
        let known = self.bridges.find(&claim.bot);
        if known.is_some_and(|bridge| bridge.is_configured) {
            return Standing::Configured;
        }
        let is_full = known.is_none() && self.bridges.count() >= MOST_PINNED;
        if self.only_configured || is_full || self.bridges.of_ghost(&claim.bot).is_some() {
            return Standing::Refused;
        }
        match self.keys.get(&claim.state_key) {
            Some(bot) if *bot != claim.bot => Standing::Refused,
            _ => Standing::Open,
        }
    }

    /// Notes the bridge of a relayed room, and who claims it in vain: pins what is new, and reports.
    pub fn note(&mut self, room_id: &RoomId, state: &RoomState, now: Timestamp) {
        if let Some(bridge) = &state.bridge {
            self.pin(room_id, bridge, now);
        }
        self.report(room_id, state, now);
    }

    /// Reports who claims a room and is not believed, once.
    pub fn report(&mut self, room_id: &RoomId, state: &RoomState, now: Timestamp) {
        let Some(conflict) = &state.bridge_conflict else { return };
        let report = (room_id.to_owned(), conflict.bot.clone());
        if self.reported.contains(&report) || self.reported.len() >= MOST_CONFLICTS {
            return;
        }
        let believed = state.bridge.as_ref().map(|bridge| bridge.bot.clone());
        tracing::warn!(
            room.id = %room_id,
            claimed_by = %conflict.bot,
            believed = believed.as_ref().map(|bot| bot.as_str()),
            "a bot claims to be the bridge of a room and is not believed; if it is your bridge, name it under \
             `bridges` in the settings"
        );
        self.reported.insert(report);
        self.changes.conflicts.push(BridgeConflict {
            room_id: room_id.to_string(),
            bot: conflict.bot.clone(),
            believed,
            seen_at: now,
        });
    }

    fn pin(&mut self, room_id: &RoomId, bridge: &Bridge, now: Timestamp) {
        let Bridge { bot, state_key, protocol, .. } = bridge;
        let report = (room_id.to_owned(), bot.clone());
        if self.reported.remove(&report) {
            self.changes.settled.push((room_id.to_string(), bot.clone()));
        }
        if self.bridges.find(bot).is_none() {
            let pinned = PinnedBridge {
                bot: bot.clone(),
                ghosts: Pattern::ghosts_of(bot),
                protocol: protocol.clone(),
                room_id: room_id.to_string(),
                pinned_at: now,
            };
            if let Some(ghosts) = &pinned.ghosts {
                tracing::info!(%bot, %ghosts, room.id = %room_id, "a bridge is believed from now on");
            } else {
                tracing::warn!(
                    %bot,
                    room.id = %room_id,
                    "a bridge is believed from now on, but its name does not tell its ghosts, so what it says \
                     for them is held: name it under `bridges` in the settings"
                );
            }
            self.bridges.add(of_pinned(&pinned));
            self.changes.bridges.push(pinned);
        }
        // An empty key tells nothing, and a table cannot look up by everything that Matrix allows.
        let can_be_pinned = !state_key.is_empty() && state_key.len() <= 255 && !state_key.contains('\0');
        let is_full = self.keys.len() >= MOST_KEYS;
        if can_be_pinned && !is_full && !self.keys.contains_key(state_key) {
            self.keys.insert(state_key.clone(), bot.clone());
            let (state_key, bot, room_id) = (state_key.clone(), bot.clone(), room_id.to_string());
            self.changes.keys.push(BridgeKey { state_key, bot, room_id });
        }
    }

    /// Whether a user is a ghost of a known bridge, by its name.
    #[must_use]
    pub fn is_ghost(&self, user: &UserId) -> bool {
        self.bridges.of_ghost(user).is_some()
    }

    /// Whether a user is the bot of a known bridge.
    #[must_use]
    pub fn is_bot(&self, user: &UserId) -> bool {
        self.bridges.find(user).is_some()
    }

    /// Judges an event that was decrypted to `content`, in a room with that bridge bot.
    ///
    /// # Errors
    /// [`Held`] when it must not be relayed. `again` says that it was held before.
    pub fn admit(
        &self,
        event: &WireEvent,
        clear: &Clear,
        content: &Map<String, Value>,
        bridge_bot: Option<&UserId>,
        again: bool,
    ) -> Result<Admitted, Held> {
        let evidence = Evidence {
            sdk: clear.trust,
            session_owner: clear.session_owner.as_deref(),
            sender: &event.sender,
            bridge_bot,
            marked: messages::is_puppets(content),
        };
        let verdict = trust::judge(&evidence, &self.bridges);
        let action = self.actions.action(verdict.trust);
        if action == Action::Hold {
            if !again {
                log_held(event, &evidence, verdict.trust);
            }
            return Err(Held { is_open: verdict.is_open });
        }
        let speaker = match verdict.trust {
            Trust::Bridge => verdict.bridged_by.clone(),
            _ if clear.session_owner.as_deref() == bridge_bot => bridge_bot.map(UserId::to_owned),
            _ => None,
        };
        Ok(Admitted {
            bridge_device: speaker.zip(clear.device.clone()),
            encryption: Encryption {
                encrypted: true,
                algorithm: Some(clear.algorithm.to_owned()),
                session_id: event.session.as_ref().map(|place| place.key.session_id.clone()),
                trust: Some(verdict.trust),
                bridged_by: verdict.bridged_by,
                flagged: action == Action::Flag,
            },
        })
    }

    /// Notes with which device a bridge bot encrypted, and reports one that is new.
    pub fn observe(&mut self, bot: &UserId, device: &SessionDevice) {
        let known = self.devices.get(bot).map(Vec::as_slice).unwrap_or_default();
        let Some(change) = change(known, device) else { return };
        if known.len() >= MOST_DEVICES {
            return;
        }
        let (device_id, master_key) = (device.device_id.as_str(), device.master_key.as_deref());
        match change {
            DeviceChange::First | DeviceChange::Signed => {
                tracing::info!(%bot, device_id, master_key, "a bridge's device");
            }
            DeviceChange::NewDevice => {
                tracing::warn!(%bot, device_id, master_key, "a bridge encrypts with a new device; after a reset of the bridge that is \
                    as it should be");
            }
            DeviceChange::DeviceReplaced | DeviceChange::IdentityChanged => tracing::warn!(
                %bot,
                device_id,
                master_key,
                change = change.as_str(),
                "the identity of a bridge changed; unless the bridge was set up anew, somebody may speak in its name"
            ),
        }
        let device = BridgeDevice {
            bot: bot.to_owned(),
            device_id: device.device_id.clone(),
            identity_key: device.identity_key.clone(),
            master_key: device.master_key.clone(),
            change,
        };
        self.devices.entry(bot.to_owned()).or_default().push(device.clone());
        self.changes.devices.push(device);
    }

    /// What is to be written, once.
    #[must_use]
    pub fn take_changes(&mut self) -> BridgeChanges {
        std::mem::take(&mut self.changes)
    }
}

/// What is new about a device; `None` when it is known as it is.
fn change(known: &[BridgeDevice], device: &SessionDevice) -> Option<DeviceChange> {
    let SessionDevice { device_id, identity_key, master_key } = device;
    let is_known = |known: &&BridgeDevice| {
        known.device_id == *device_id
            && known.identity_key == *identity_key
            && (known.master_key == *master_key || master_key.is_none())
    };
    if known.iter().any(|device| is_known(&device)) {
        return None;
    }
    let masters: Vec<&str> = known.iter().filter_map(|known| known.master_key.as_deref()).collect();
    let masters_differ =
        master_key.as_deref().is_some_and(|key| !masters.is_empty() && !masters.contains(&key));
    Some(if known.is_empty() {
        DeviceChange::First
    } else if masters_differ {
        DeviceChange::IdentityChanged
    } else if known.iter().any(|known| known.device_id == *device_id && known.identity_key != *identity_key) {
        DeviceChange::DeviceReplaced
    } else if known.iter().any(|known| known.device_id == *device_id) {
        DeviceChange::Signed
    } else {
        DeviceChange::NewDevice
    })
}

fn of_pinned(pinned: &PinnedBridge) -> trust::Bridge {
    trust::Bridge {
        bot: pinned.bot.clone(),
        ghosts: pinned.ghosts.clone(),
        puppets: None,
        is_configured: false,
    }
}

fn log_held(event: &WireEvent, evidence: &Evidence<'_>, trust: Trust) {
    tracing::warn!(
        event.id = %event.event_id,
        room.id = %event.room_id,
        sender = %event.sender,
        encrypted_by = evidence.session_owner.map(UserId::as_str),
        bridge = evidence.bridge_bot.map(UserId::as_str),
        trust = trust.as_str(),
        "held: not who it says it is, as far as is known; a bridge that may speak for the sender is named under \
         `bridges` in the settings"
    );
}

impl Worker {
    /// Has what is held tried again in rooms that are to be judged anew.
    pub(super) async fn look_at_doubts(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let rooms = self.doubts.take_due(now);
        if !rooms.is_empty() {
            self.unreleased.extend(room_keys(pending::held_in(self.parts.store.db(), &rooms).await?));
        }
        Ok(())
    }
}

/// When to judge anew what is held in a room.
#[derive(Debug, Default)]
pub struct Doubts {
    rooms: HashMap<OwnedRoomId, Doubt>,
}

#[derive(Debug, Default)]
struct Doubt {
    due: Option<Timestamp>,
    tries: u32,
}

/// How often a room is judged anew because devices may have become known: within some 17 minutes.
const MOST_TRIES: u32 = 9;

/// How long after the first time.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

impl Doubts {
    /// Judges a room anew in the next step: its bridge has changed.
    pub fn at_once(&mut self, room_id: &RoomId, now: Timestamp) {
        self.rooms.insert(room_id.to_owned(), Doubt { due: Some(now), tries: 0 });
    }

    /// Judges a room anew in a while: an event was held for want of a device that may become known.
    pub fn soon(&mut self, room_id: &RoomId, now: Timestamp) {
        let doubt = self.rooms.entry(room_id.to_owned()).or_default();
        if doubt.due.is_none() && doubt.tries < MOST_TRIES {
            doubt.due = Some(now.plus(FIRST_PAUSE * 2_u32.pow(doubt.tries)));
            doubt.tries += 1;
        }
    }

    /// The rooms whose time has come.
    pub fn take_due(&mut self, now: Timestamp) -> Vec<OwnedRoomId> {
        // Without a time: judged in the last step, and no doubt was left.
        self.rooms.retain(|_, doubt| doubt.due.is_some());
        let mut due = Vec::new();
        for (room_id, doubt) in &mut self.rooms {
            if doubt.due.is_some_and(|at| at <= now) {
                doubt.due = None;
                due.push(room_id.clone());
            }
        }
        due
    }
}

#[cfg(test)]
mod tests;
