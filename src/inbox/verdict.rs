//! Whom the worker believes: what follows for each event from what is known of bridges.

use std::{collections::HashMap, time::Duration};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value};

use super::{
    claims::Claimant,
    event::WireEvent,
    pins::Pins,
    worker::{Worker, room_keys},
};
use crate::{
    clock::Timestamp,
    crypto::{
        Clear, SessionDevice,
        trust::{self, Evidence},
    },
    messages,
    model::{Action, Encryption, Pattern, Trust, naming},
    store::{
        StoreError,
        bridges::{BridgeDevice, DeviceChange},
        pending,
    },
};

/// Devices remembered for one bot at most.
const MOST_DEVICES: usize = 100;

/// An event that may be relayed.
#[derive(Debug)]
pub struct Admitted {
    /// What the payload says of its encryption.
    pub encryption: Encryption,
    /// The bridge bot that encrypted it, and the device.
    pub bridge_device: Option<(OwnedUserId, SessionDevice)>,
    /// In whose name it uses its place of the session.
    pub claimant: Claimant,
}

/// An event that may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Whether it may look better once more devices are known.
    pub is_open: bool,
    /// The believed bridge that encrypted it, for users of whom nothing says that it may.
    pub for_unknown: Option<ForUnknown>,
}

/// Users for whom a believed bridge spoke, though nothing says that it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForUnknown {
    /// The bridge's bot.
    pub bot: OwnedUserId,
    /// Its ghosts, or the users among whom its puppet is.
    pub users: Pattern,
    /// Set when the bridge marks the sender as a real user.
    pub is_puppet: bool,
}

impl ForUnknown {
    /// Returns the line of the settings with which the bridge would be believed.
    #[must_use]
    pub fn settings_line(&self) -> String {
        let Self { bot, users, is_puppet } = self;
        let (ghosts, puppets) = if *is_puppet { (None, Some(users)) } else { (Some(users), None) };
        naming::settings_line(bot, ghosts, puppets)
    }
}

impl Pins {
    /// Judges an event that was decrypted to `content`, in a room with the bridges of these `bots`.
    ///
    /// # Errors
    /// [`Held`] when it must not be relayed. `again` says that it was held before.
    pub fn admit(
        &self,
        event: &WireEvent,
        clear: &Clear,
        content: &Map<String, Value>,
        bots: &[&UserId],
        again: bool,
    ) -> Result<Admitted, Held> {
        let evidence = Evidence {
            sdk: clear.trust,
            session_owner: clear.session_owner.as_deref(),
            sender: &event.sender,
            bots,
            marked: messages::is_puppets(content),
            claims: &clear.claims,
        };
        let verdict = trust::judge(&evidence, &self.bridges);
        let action = self.actions.action(verdict.trust);
        if action == Action::Hold {
            let for_unknown = self.for_unknown(&evidence);
            if !again {
                log_held(event, &evidence, verdict.trust, for_unknown.as_ref());
            }
            return Err(Held { is_open: verdict.is_open, for_unknown });
        }
        let speaker = verdict.claimant.clone().or_else(|| clear.session_owner.clone());
        let speaker = speaker.filter(|speaker| bots.contains(&&**speaker));
        let device = verdict.device.or_else(|| clear.device.clone());
        let claimant = match (verdict.claimant, &verdict.bridged_by) {
            (_, Some(bot)) => Claimant::Bridge(bot.clone()),
            (Some(sender), None) => Claimant::Sender(sender),
            (None, None) => Claimant::Unknown,
        };
        Ok(Admitted {
            bridge_device: speaker.zip(device),
            claimant,
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

    /// Returns for whom a believed bridge has encrypted, when the sender may be its ghost or puppet but is not known to
    /// be, and is not known to be another bridge's.
    fn for_unknown(&self, evidence: &Evidence<'_>) -> Option<ForUnknown> {
        let Evidence { session_owner, sender, bots, marked, .. } = *evidence;
        let bot = session_owner.filter(|owner| bots.contains(owner) && *owner != sender)?;
        let is_anothers = self.is_bot(sender) || self.bridges.is_ghost(sender, bots);
        let is_somebody = marked || naming::looks_like_ghost(sender);
        if is_anothers || !is_somebody || bot.server_name() != sender.server_name() {
            return None;
        }
        if self.bridges.may_speak(bot, sender, marked) {
            return None;
        }
        let users = if marked {
            Pattern::new(&format!("@*:{}", sender.server_name()))
        } else {
            naming::ghosts_like(sender)
        };
        Some(ForUnknown { bot: bot.to_owned(), users, is_puppet: marked })
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

fn log_held(event: &WireEvent, evidence: &Evidence<'_>, trust: Trust, unknown: Option<&ForUnknown>) {
    if let Some(unknown) = unknown {
        tracing::warn!(
            event.id = %event.event_id,
            room.id = %event.room_id,
            sender = %event.sender,
            bot = %unknown.bot,
            "held: a bridge says it for a user for whom nothing says that it may; if it may, name them in the \
             settings: {}",
            unknown.settings_line(),
        );
        return;
    }
    tracing::warn!(
        event.id = %event.event_id,
        room.id = %event.room_id,
        sender = %event.sender,
        encrypted_by = evidence.session_owner.map(UserId::as_str),
        bridges = ?evidence.bots,
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
