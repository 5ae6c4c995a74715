//! The rows of one step, read: what is for which machine, which events there are, which rooms' states.

use std::collections::HashSet;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::{
    envelope::Envelope,
    event::{Place, WireEvent, clear_type},
};
use crate::{
    clock::Timestamp,
    crypto::Changes,
    model::{Account, AccountId},
    store::inbox::{InboxId, InboxRow, Source},
};

/// The state of a room as one of the accounts read it. Its JSON is what the inbox keeps.
#[derive(Debug, Serialize, Deserialize)]
pub struct RoomSnapshot {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Its state events; `None` when no account may read them.
    pub state: Option<Vec<Value>>,
    /// Where the room is to be read from, when an account has joined it.
    #[serde(default)]
    pub reading: Option<Begin>,
    /// When it was read.
    #[serde(skip)]
    pub received_at: Timestamp,
}

/// The place from which a room is to be read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Begin {
    /// The account that reads.
    pub account_id: i64,
    /// The place; `None` is the room's beginning.
    pub from: Option<String>,
    /// The account's join, when it is to be met.
    pub join_id: Option<String>,
}

/// The word that a part of a reading has about itself, beside its events.
#[derive(Clone, Debug, Deserialize)]
pub struct Part {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Whether the room is suspended from now on.
    #[serde(default)]
    pub begins: bool,
    /// Whether the events were sent before the account had joined.
    #[serde(default)]
    pub before_join: bool,
    /// Whether all is read.
    #[serde(default)]
    pub ends: bool,
}

/// Whose messages the batch may hold.
#[derive(Debug)]
pub struct Readers<'a> {
    /// The accounts in use.
    pub accounts: Vec<&'a Account>,
}

/// The rows of one step, read.
#[derive(Debug, Default)]
pub struct Batch {
    /// The rows, to be marked as worked through.
    pub ids: Vec<InboxId>,
    /// Rows that do not open.
    pub set_aside: Vec<InboxId>,
    /// The parts of transactions and pages.
    envelopes: Vec<(Option<AccountId>, Envelope)>,
    /// Room events in order, each once.
    pub events: Vec<WireEvent>,
    /// Those of them that come from a room's timeline.
    missed: HashSet<OwnedEventId>,
    /// Parts of rooms that are being read, in order.
    pub parts: Vec<Part>,
    /// States of rooms.
    pub snapshots: Vec<RoomSnapshot>,
    /// What `coucou check` sent to our own device: its nonce, and the way by which it came.
    pub probes: Vec<(String, &'static str)>,
    /// When something came, and by which way.
    pub arrivals: Vec<Arrival>,
}

/// By which way something came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The homeserver pushed it.
    Push,
    /// By the key lane or from a room's timeline, though it is of what homeservers push.
    Other,
}

/// That something came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// How.
    pub way: Way,
    /// When.
    pub at: Timestamp,
}

/// The type of the to-device message by which `coucou check` finds out by which ways keys come.
pub const PROBE: &str = "org.coucou.check";

/// The most characters of a probe's nonce.
const NONCE_LENGTH: usize = 64;

/// A probe, which only our own user can have sent.
#[derive(Deserialize)]
struct Probe {
    #[serde(rename = "type")]
    event_type: String,
    sender: String,
    content: ProbeContent,
}

#[derive(Deserialize)]
struct ProbeContent {
    nonce: String,
}

/// Where a pushed to-device message goes
/// ([MSC4203](https://github.com/matrix-org/matrix-spec-proposals/pull/4203)).
#[derive(Deserialize)]
struct Address {
    to_user_id: Option<String>,
    to_device_id: Option<String>,
}

impl Batch {
    /// Reads rows. What cannot be read is logged and left out: it would be no better the next time.
    #[must_use]
    pub fn read(rows: Vec<InboxRow>, readers: &Readers<'_>) -> Self {
        let mut batch = Self::default();
        let mut seen = HashSet::new();
        for row in rows {
            let Some(body) = row.body else {
                tracing::error!(
                    inbox.id = row.inbox_id.0,
                    "a row of the inbox does not open and is set aside"
                );
                batch.set_aside.push(row.inbox_id);
                continue;
            };
            batch.ids.push(row.inbox_id);
            match row.source {
                Source::Push => {
                    batch.arrivals.push(Arrival { way: Way::Push, at: row.received_at });
                    batch.read_push(&body, row.received_at, readers, &mut seen);
                }
                Source::Missed => {
                    let before = batch.events.len();
                    batch.read_push(&body, row.received_at, readers, &mut seen);
                    if let Some(part) = part_of(&body) {
                        batch.take_part(part, before, row.received_at);
                        continue;
                    }
                    batch.missed.extend(batch.events[before..].iter().map(|event| event.event_id.clone()));
                    if batch.events.len() > before {
                        batch.arrivals.push(Arrival { way: Way::Other, at: row.received_at });
                    }
                }
                Source::Lane(account_id) => {
                    let account = readers.accounts.iter().find(|account| account.id == account_id);
                    // A lane of an account that is no longer used has nobody to read it.
                    let Some(account) = account else { continue };
                    match Envelope::parse_lane(&body, account) {
                        Ok(envelope) => {
                            batch.note_probes(&envelope, "lane", readers);
                            // Key counts and device lists change in any night.
                            let is_key = |message: &RawValue| {
                                clear_type(message).is_some_and(|event_type| event_type == "m.room.encrypted")
                            };
                            if envelope.to_device.iter().any(|message| is_key(message)) {
                                batch.arrivals.push(Arrival { way: Way::Other, at: row.received_at });
                            }
                            batch.envelopes.push((Some(account_id), envelope));
                        }
                        Err(error) => tracing::error!(inbox.id = row.inbox_id.0, %error, "unreadable row"),
                    }
                }
                Source::State => {
                    if let Ok(snapshot) = serde_json::from_slice(&body) {
                        batch.snapshots.push(RoomSnapshot { received_at: row.received_at, ..snapshot });
                    } else {
                        tracing::error!(inbox.id = row.inbox_id.0, "unreadable room state");
                    }
                }
            }
        }
        batch
    }

    /// Marks the events from `first` on as a part of a reading.
    fn take_part(&mut self, part: Part, first: usize, received_at: Timestamp) {
        for event in self.events.iter_mut().skip(first) {
            (event.place, event.before_join) = (Place::Reading, part.before_join);
        }
        if part.begins {
            self.arrivals.push(Arrival { way: Way::Other, at: received_at });
        }
        self.parts.push(part);
    }

    fn read_push(
        &mut self,
        body: &[u8],
        received_at: Timestamp,
        readers: &Readers<'_>,
        seen: &mut HashSet<OwnedEventId>,
    ) {
        let mut envelope = match Envelope::parse(body) {
            Ok(envelope) => envelope,
            Err(error) => {
                tracing::error!(%error, "unreadable transaction");
                return;
            }
        };
        if envelope.skipped_count > 0 {
            tracing::warn!(skipped = envelope.skipped_count, "a transaction has malformed members");
        }
        for raw in std::mem::take(&mut envelope.events) {
            match WireEvent::parse(raw, received_at) {
                Ok(event) if seen.insert(event.event_id.clone()) => self.events.push(event),
                Ok(_) => {}
                Err(why) => tracing::warn!(why, "skipped what is not a room event"),
            }
        }
        // Key counts come with to-device messages when the homeserver tells them at all.
        let way = if envelope.one_time_key_counts.is_empty() { "push_without_counts" } else { "push" };
        self.note_probes(&envelope, way, readers);
        self.envelopes.push((None, envelope));
    }

    fn note_probes(&mut self, envelope: &Envelope, way: &'static str, readers: &Readers<'_>) {
        let nonces = envelope.to_device.iter().filter_map(|message| probe_nonce(message));
        let ours = nonces.filter(|(sender, _)| readers.accounts.iter().any(|of| of.user_id == *sender));
        self.probes.extend(ours.map(|(_, nonce)| (nonce, way)));
    }

    /// Events of timelines, in order.
    #[must_use = "it only looks"]
    pub fn missed(&self) -> impl DoubleEndedIterator<Item = &WireEvent> {
        self.events.iter().filter(|event| self.missed.contains(&event.event_id))
    }

    /// Returns events of timelines that others, which followed them, have overtaken: those are relayed already, or
    /// before them in their room's queue. Of what is read on only what is relayed is ahead, as the queue waits for it.
    pub fn overtaken(
        &self,
        is_relayed: impl Fn(&WireEvent) -> bool,
        is_queued: impl Fn(&WireEvent) -> bool,
    ) -> HashSet<OwnedEventId> {
        let mut gone_ahead = HashSet::new();
        let mut overtaken = HashSet::new();
        let of_timelines = |event: &&WireEvent| event.is_read() || self.missed.contains(&event.event_id);
        for event in self.events.iter().filter(of_timelines).rev() {
            if is_relayed(event) || (!event.is_read() && is_queued(event)) {
                gone_ahead.insert(&event.room_id);
            } else if gone_ahead.contains(&event.room_id) {
                overtaken.insert(event.event_id.clone());
            }
        }
        overtaken
    }

    /// The rooms that are spoken of.
    pub fn rooms(&self) -> impl Iterator<Item = &RoomId> {
        let snapshots = self.snapshots.iter().map(|snapshot| &*snapshot.room_id);
        let parts = self.parts.iter().map(|part| &*part.room_id);
        self.events.iter().map(|event| &*event.room_id).chain(snapshots).chain(parts)
    }

    /// What is for one account's machine, all rows together: the newest counts, all messages in order.
    #[must_use]
    pub fn changes(&self, account: &Account) -> Changes {
        let mut changes = Changes::default();
        for (lane, envelope) in &self.envelopes {
            match lane {
                Some(id) if *id != account.id => continue,
                Some(_) => changes.to_device.extend(envelope.to_device.iter().cloned()),
                None => {
                    let ours = envelope.to_device.iter().filter(|message| is_for(message, account));
                    changes.to_device.extend(ours.cloned());
                }
            }
            changes.changed.extend(envelope.device_lists_changed.iter().cloned());
            let (user_id, device_id) = (&account.user_id, &account.device_id);
            if let Some(counts) = envelope.one_time_key_counts.get(user_id).and_then(|of| of.get(device_id)) {
                changes.one_time_key_counts.clone_from(counts);
            }
            let fallback = envelope.unused_fallback_key_types.get(user_id).and_then(|of| of.get(device_id));
            if let Some(fallback) = fallback {
                changes.unused_fallback_keys = Some(fallback.clone());
            }
        }
        let mut seen = HashSet::<OwnedUserId>::new();
        changes.changed.retain(|user| seen.insert(user.clone()));
        changes
    }
}

/// Returns what a row of a timeline says about itself as a part of a reading.
fn part_of(body: &[u8]) -> Option<Part> {
    #[derive(Deserialize)]
    struct Body {
        reading: Option<Part>,
    }
    serde_json::from_slice::<Body>(body).ok()?.reading
}

/// The sender and the nonce of a probe; `None` for any other message.
#[must_use]
pub fn probe_nonce(message: &RawValue) -> Option<(String, String)> {
    // Nearly all messages are others.
    if !message.get().contains(PROBE) {
        return None;
    }
    let probe: Probe = serde_json::from_str(message.get()).ok()?;
    let nonce = probe.content.nonce;
    let is_fine = nonce.len() <= NONCE_LENGTH && nonce.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (probe.event_type == PROBE && is_fine).then_some((probe.sender, nonce))
}

fn is_for(message: &RawValue, account: &Account) -> bool {
    serde_json::from_str::<Address>(message.get()).is_ok_and(|address| {
        address.to_user_id.as_deref() == Some(account.user_id.as_str())
            && address.to_device_id.as_deref() == Some(account.device_id.as_str())
    })
}
