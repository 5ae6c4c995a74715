//! What a step knows of the events that it works on.

use std::collections::{HashMap, HashSet};

use ruma::{EventId, OwnedEventId};

use super::{event::WireEvent, redact::Reactions};
use crate::{
    crypto::Decrypted,
    messages::{self, PayloadClass},
    store::{messages::MegolmIndex, redacted::Target},
};

/// What a step works on besides the batch.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) decrypted: HashMap<OwnedEventId, Decrypted>,
    /// Messages that are stored already.
    pub(super) messages: HashSet<String>,
    /// Which event used which place of a Megolm session.
    pub(super) indexes: HashMap<MegolmIndex, String>,
    /// In whose names places were used, and by which event, where that was noted.
    pub(super) index_claims: HashMap<MegolmIndex, Vec<(String, String)>>,
    /// Events of the batch that later ones have overtaken.
    pub(super) overtaken: HashSet<OwnedEventId>,
    pub(super) reactions: Reactions,
    /// Events of the batch that are on the ledger already.
    pub(super) on_ledger: HashSet<String>,
    /// Events that were taken back before they came.
    pub(super) redacted: HashSet<Target>,
    /// Events of timelines that were passed over before.
    pub(super) dismissed: HashSet<String>,
    /// Events that are taken back by this step's redactions.
    pub(super) redacting: HashSet<Target>,
}

impl Known {
    /// Whether an event is a message already: it came before, by whichever way.
    pub(super) fn has(&self, event: &WireEvent) -> bool {
        self.messages.contains(messages::message_id(PayloadClass::Event, &event.event_id).as_str())
    }

    /// Whether an event that waited was taken back meanwhile.
    pub(super) fn is_taken_back(&self, event: &WireEvent) -> bool {
        let target = (event.room_id.to_string(), event.event_id.to_string());
        event.redacted || self.redacted.contains(&target) || self.redacting.contains(&target)
    }

    /// Whether an event of the batch needs no looking at: it came before, or was taken back before it came.
    /// One that is taken back later in the batch is relayed, if it can be at once, and then its redaction.
    pub(super) fn is_settled(&self, event: &WireEvent) -> bool {
        let target = || (event.room_id.to_string(), event.event_id.to_string());
        self.has(event)
            || event.redacted
            || self.on_ledger.contains(event.event_id.as_str())
            || self.dismissed.contains(event.event_id.as_str())
            || self.redacted.contains(&target())
    }

    /// Whether the target of a redaction is a message, so that it was not taken back before it was relayed.
    pub(super) fn has_target(&self, (_, event_id): &Target) -> bool {
        EventId::parse(event_id)
            .is_ok_and(|id| self.messages.contains(messages::message_id(PayloadClass::Event, &id).as_str()))
    }
}
