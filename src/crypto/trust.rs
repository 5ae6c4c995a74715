//! Who a decrypted event really comes from.
//!
//! A bridge encrypts with its bot's device while the event's sender is a ghost, which the SDK calls a
//! mismatched sender. That is right for the bot of the room's own bridge, and a forgery for anybody else.

use ruma::{OwnedUserId, UserId};

use crate::model::Trust;

/// The verdict on an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is known about the device that encrypted it.
    pub trust: Trust,
    /// The bridge bot that encrypted for the sender.
    pub bridged_by: Option<OwnedUserId>,
}

impl Verdict {
    /// Whether the event may be relayed as its sender's.
    #[must_use]
    pub fn is_genuine(&self) -> bool {
        self.trust != Trust::MismatchedSender
    }
}

/// Judges an event by what the SDK says, by whose session it was encrypted in, and by the bridge bot that the
/// room believably names.
#[must_use]
pub fn judge(
    sdk: Trust,
    session_owner: Option<&UserId>,
    sender: &UserId,
    bridge_bot: Option<&UserId>,
) -> Verdict {
    let bridged_by = bridge_bot.filter(|bot| session_owner == Some(*bot) && sender != *bot);
    match bridged_by {
        Some(bot) => Verdict { trust: Trust::Bridge, bridged_by: Some(bot.to_owned()) },
        None => Verdict { trust: sdk, bridged_by: None },
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[test]
    fn only_the_rooms_own_bridge_may_speak_for_others() {
        let (bot, ghost, mallory) =
            (user_id!("@instagrambot:a.org"), user_id!("@instagram_1:a.org"), user_id!("@mallory:a.org"));
        let mismatched = Trust::MismatchedSender;
        let bridged = judge(mismatched, Some(bot), ghost, Some(bot));
        assert_eq!(bridged, Verdict { trust: Trust::Bridge, bridged_by: Some(bot.to_owned()) });
        assert!(bridged.is_genuine());
        for (owner, bridge_bot) in [(Some(mallory), Some(bot)), (Some(bot), None), (None, Some(bot))] {
            assert!(!judge(mismatched, owner, ghost, bridge_bot).is_genuine());
        }
        assert_eq!(judge(Trust::CrossSigned, Some(bot), bot, Some(bot)).trust, Trust::CrossSigned);
    }
}
