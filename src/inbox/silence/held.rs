//! What a believed bridge says and coucou holds, because nothing tells for whom the bridge may speak.
//!
//! That is so when a bridge is installed with names of which its bot's name tells nothing, or speaks for real users
//! whom the settings do not name. There is one alarm for each bridge and kind of name, and it names the line of the
//! settings with which the bridge would be believed. It is over when the bridge may speak for them, and forgotten when
//! nothing of the kind is held any more.

use super::{AlarmReason, Changes, Outcome, Timestamp, Worker, bare};
use crate::{
    crypto::CryptoError,
    inbox::{event::WireEvent, verdict::ForUnknown},
    model::{Alarm, Pattern},
    store::pending,
};

/// Alarms of this kind at one time: a bridge chooses the names.
const MAX_ALARMS: usize = 50;

/// Senders of held events that are looked at.
const MAX_SENDERS: i64 = 1_000;

impl Worker {
    /// Notes that an event is held for want of a line in the settings.
    pub(in crate::inbox) fn note_unknown(
        &mut self,
        event: &WireEvent,
        unknown: Option<ForUnknown>,
        outcome: &mut Outcome,
    ) {
        let Some(unknown) = unknown.filter(|_| self.silence.settings.is_some()) else { return };
        let subject = Alarm::subject_of_held(&unknown.bot, &unknown.users);
        let is_known = self.silence.active(AlarmReason::MessagesHeld, &subject).is_some();
        if is_known || self.silence.active_keys(AlarmReason::MessagesHeld).len() >= MAX_ALARMS {
            return;
        }
        let now = self.parts.clock.now();
        let network = self.rooms.get(&event.room_id).and_then(|room| {
            let bridge = room.state.bridges().find(|bridge| bridge.bot == unknown.bot);
            self.rooms.context_of(&room.state, bridge).network
        });
        let alarm = Alarm {
            network,
            bot: Some(unknown.bot),
            ..bare(AlarmReason::MessagesHeld, &subject, event.received_at, now)
        };
        self.silence.begin(alarm, None, None, &mut outcome.silence);
    }

    /// Ends the alarms of which the reason is gone.
    pub(super) async fn look_for_held(
        &mut self,
        now: Timestamp,
        changes: &mut Changes,
    ) -> Result<(), CryptoError> {
        let keys = self.silence.active_keys(AlarmReason::MessagesHeld);
        if keys.is_empty() {
            return Ok(());
        }
        let senders = pending::held_senders(self.parts.store.db(), MAX_SENDERS).await?;
        for key in keys {
            let Some(alarm) = self.silence.alarms.get(&key) else { continue };
            let (Some(bot), Some(users)) = (&alarm.bot, alarm.held_users()) else { continue };
            if self.rooms.pins.may_speak_for(bot, &users) {
                self.silence.end(&key, now, None, None, changes);
            } else if !is_held(&users, &senders) {
                self.silence.drop_alarm(&key, now, changes);
            }
        }
        Ok(())
    }
}

fn is_held(users: &Pattern, senders: &[String]) -> bool {
    // So many are held that the one may be among the others.
    i64::try_from(senders.len()).is_ok_and(|count| count >= MAX_SENDERS)
        || senders.iter().any(|sender| users.matches(sender))
}
