//! Bridges' bots that come to rooms and leave them.
//!
//! A bot that leaves a room ends the bridging of the room, unless the room was replaced (`m.room.tombstone`): then
//! bridges leave it for its successor, and nothing is wrong.

use std::collections::HashSet;

use ruma::{OwnedRoomId, RoomId};

use super::{Changes, bare};
use crate::{
    clock::Timestamp,
    crypto::CryptoError,
    inbox::{commit::Outcome, rooms::Sight, worker::Worker},
    model::{Alarm, AlarmReason},
};

impl Worker {
    /// Looks which bridge bots the step saw come and go.
    pub(in crate::inbox) fn note_bots(&mut self, outcome: &mut Outcome) {
        let seen = self.rooms.take_sights();
        if self.silence.settings.is_none() {
            return;
        }
        let now = self.parts.clock.now();
        for (room_id, sight) in seen {
            let key = (AlarmReason::BotLeft, room_id.to_string());
            let name = self.rooms.get(&room_id).and_then(|room| room.context.name.clone());
            match sight {
                Sight::Here | Sight::Replaced => {
                    self.silence.end(&key, now, name, None, &mut outcome.silence);
                }
                Sight::Left { .. } if self.silence.active(key.0, &key.1).is_some() => {}
                Sight::Left { bot, network } if self.is_read(&room_id) => {
                    let alarm = Alarm {
                        network,
                        room_id: Some(room_id),
                        bot: Some(bot),
                        ..bare(key.0, &key.1, now, now)
                    };
                    self.silence.begin(alarm, name, None, &mut outcome.silence);
                }
                Sight::Left { .. } => {}
            }
        }
    }

    /// Ends alarms about rooms that were replaced, which an earlier version began.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn end_alarms_of_replaced_rooms(
        &mut self,
        now: Timestamp,
        changes: &mut Changes,
    ) -> Result<(), CryptoError> {
        let keys = self.silence.active_keys(AlarmReason::BotLeft);
        let rooms = keys.into_iter().filter_map(|key| Some((OwnedRoomId::try_from(&*key.1).ok()?, key)));
        let rooms: Vec<_> = rooms.collect();
        let ids: HashSet<&RoomId> = rooms.iter().map(|(room_id, _)| &**room_id).collect();
        let store = self.parts.store.clone();
        self.rooms.load(store.db(), store.seal()?, ids, now).await?;
        for (room_id, key) in rooms {
            let Some(room) = self.rooms.get(&room_id).filter(|room| room.state.tombstoned) else { continue };
            let name = room.context.name.clone();
            self.silence.end(&key, now, name, None, changes);
        }
        Ok(())
    }

    /// Whether one of our accounts is in a room.
    fn is_read(&self, room_id: &RoomId) -> bool {
        let users = self.decrypter.engines().iter().map(|engine| &*engine.account().user_id);
        self.rooms.has_joined(room_id, users)
    }

    /// A room is read no more: nobody sees whether its bot comes back.
    pub(in crate::inbox) fn stop_watching(&mut self, room_id: &RoomId, outcome: &mut Outcome) {
        let key = (AlarmReason::BotLeft, room_id.to_string());
        self.silence.drop_alarm(&key, self.parts.clock.now(), &mut outcome.silence);
    }
}
