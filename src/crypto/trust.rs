//! Who a decrypted event really comes from: the rules, without any I/O.
//!
//! A bridge encrypts with its bot's device while the event's sender is a ghost, which the SDK calls a
//! mismatched sender. That is right for the bot of the room's own bridge, speaking for its own ghosts and
//! for whom it may puppet; it is a forgery for anybody else.

use ruma::{OwnedUserId, UserId};

use crate::model::{Pattern, Trust};

/// A bridge that is known, by the settings or because it was believed when first seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its bot, whose device encrypts.
    pub bot: OwnedUserId,
    /// The ghosts for which it speaks; `None` for nobody.
    pub ghosts: Option<Pattern>,
    /// The real users for whom it speaks as well; `None` for the default, see [`Bridges::may_speak`].
    pub puppets: Option<Pattern>,
    /// Whether it is in the settings.
    pub is_configured: bool,
}

/// All bridges that are known: those of the settings, then the others in the order in which they came.
#[derive(Clone, Debug, Default)]
pub struct Bridges {
    known: Vec<Bridge>,
    owner: Option<OwnedUserId>,
}

impl Bridges {
    /// The bridges of the settings, and the owner of the conversations, if there is one.
    #[must_use]
    pub fn new(configured: Vec<Bridge>, owner: Option<OwnedUserId>) -> Self {
        Self { known: configured, owner }
    }

    /// Adds a bridge behind those that are known; one of the same bot stays as it is.
    pub fn add(&mut self, bridge: Bridge) {
        if self.find(&bridge.bot).is_none() {
            self.known.push(bridge);
        }
    }

    /// The bridge of that bot.
    #[must_use]
    pub fn find(&self, bot: &UserId) -> Option<&Bridge> {
        self.known.iter().find(|bridge| bridge.bot == bot)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.known.len()
    }

    /// The bridge whose ghost a user is, by its name. A name that several bridges claim belongs to the one
    /// that is configured, or else to the one that came first; a bridge's own bot is nobody's ghost.
    #[must_use]
    pub fn of_ghost(&self, user: &UserId) -> Option<&Bridge> {
        if self.find(user).is_some() {
            return None;
        }
        let is_ghost =
            |bridge: &&Bridge| bridge.ghosts.as_ref().is_some_and(|ghosts| ghosts.matches(user.as_str()));
        self.known.iter().find(is_ghost)
    }

    /// Whether the bot of a bridge may speak for a user.
    ///
    /// For its ghosts, and never for another bridge's. For the real users that are configured as its puppets;
    /// by default that is the owner. Where no owner is configured, coucou cannot know whose conversations the
    /// bridge brings: then it is whoever of the bridge's own server the bridge has `marked` as a puppet inside
    /// the encryption, where nobody else can.
    #[must_use]
    pub fn may_speak(&self, bot: &UserId, user: &UserId, marked: bool) -> bool {
        let Some(bridge) = self.find(bot) else { return false };
        if bridge.puppets.is_none() && self.owner.as_deref() == Some(user) {
            return true;
        }
        if let Some(owner) = self.of_ghost(user) {
            return owner.bot == bot;
        }
        if self.find(user).is_some() {
            return false;
        }
        match &bridge.puppets {
            Some(puppets) => puppets.matches(user.as_str()),
            None => self.owner.is_none() && marked && user.server_name() == bot.server_name(),
        }
    }
}

/// The verdict on an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is known about the device that encrypted it.
    pub trust: Trust,
    /// The bridge bot that encrypted for the sender.
    pub bridged_by: Option<OwnedUserId>,
    /// Whether it may look better once more devices are known.
    pub is_open: bool,
}

/// What is known of an event that was decrypted.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What the SDK says.
    pub sdk: Trust,
    /// Whose device made the session, where that is proven.
    pub session_owner: Option<&'a UserId>,
    /// Who sent the event, as the homeserver says.
    pub sender: &'a UserId,
    /// The bot of the room's bridge.
    pub bridge_bot: Option<&'a UserId>,
    /// Whether it is marked as a puppet's, inside the encryption.
    pub marked: bool,
}

/// Judges an event by what the SDK says, by whose session it was encrypted in, and by the bridge bot that the
/// room believably names.
#[must_use]
pub fn judge(evidence: &Evidence<'_>, bridges: &Bridges) -> Verdict {
    let Evidence { sdk, session_owner, sender, bridge_bot, marked } = *evidence;
    let plain = |trust| Verdict { trust, bridged_by: None, is_open: false };
    match session_owner {
        Some(owner) if owner == sender => plain(sdk),
        Some(owner) => match bridge_bot.filter(|bot| *bot == owner) {
            Some(bot) if bridges.may_speak(bot, sender, marked) => {
                Verdict { trust: Trust::Bridge, bridged_by: Some(bot.to_owned()), is_open: false }
            }
            _ => plain(Trust::MismatchedSender),
        },
        // A ghost has no device of its own: this is one of the bridge's that is not known yet, or a forger's.
        None if sdk == Trust::UnknownDevice && bridges.of_ghost(sender).is_some() => {
            Verdict { is_open: true, ..plain(Trust::MismatchedSender) }
        }
        None => plain(sdk),
    }
}

#[cfg(test)]
mod tests {
    use ruma::{owned_user_id, user_id};

    use super::*;

    fn instagrambot() -> &'static UserId {
        user_id!("@instagrambot:a.org")
    }

    fn ghost() -> &'static UserId {
        user_id!("@instagram_1:a.org")
    }

    fn the_owner() -> &'static UserId {
        user_id!("@owner:a.org")
    }

    fn mallory() -> &'static UserId {
        user_id!("@mallory:a.org")
    }

    fn pinned(bot: &UserId) -> Bridge {
        Bridge { bot: bot.to_owned(), ghosts: Pattern::ghosts_of(bot), puppets: None, is_configured: false }
    }

    fn bridges() -> Bridges {
        let mut bridges = Bridges::new(vec![], Some(the_owner().to_owned()));
        bridges.add(pinned(instagrambot()));
        bridges.add(pinned(user_id!("@facebookbot:a.org")));
        bridges
    }

    fn judged(sdk: Trust, owner: Option<&UserId>, sender: &UserId, bot: Option<&UserId>) -> Trust {
        let evidence = Evidence { sdk, session_owner: owner, sender, bridge_bot: bot, marked: true };
        judge(&evidence, &bridges()).trust
    }

    #[test]
    fn only_the_rooms_own_bridge_may_speak_for_others() {
        let mismatched = Trust::MismatchedSender;
        assert_eq!(judged(mismatched, Some(instagrambot()), ghost(), Some(instagrambot())), Trust::Bridge);
        assert_eq!(
            judged(mismatched, Some(instagrambot()), the_owner(), Some(instagrambot())),
            Trust::Bridge
        );
        for (owner, sender, bot) in [
            // Somebody else's session under a ghost's name; in a room that has no bridge; of nobody known.
            (Some(mallory()), ghost(), Some(instagrambot())),
            (Some(instagrambot()), ghost(), None),
            (None, ghost(), Some(instagrambot())),
            // The bridge's session under other names: a stranger's, another bridge's ghost, another bot.
            (Some(instagrambot()), mallory(), Some(instagrambot())),
            (Some(instagrambot()), user_id!("@facebook_1:a.org"), Some(instagrambot())),
            (Some(instagrambot()), user_id!("@facebookbot:a.org"), Some(instagrambot())),
            (Some(instagrambot()), user_id!("@instagram_1:b.org"), Some(instagrambot())),
            // A bot that is not known at all.
            (Some(mallory()), ghost(), Some(mallory())),
        ] {
            assert_eq!(judged(mismatched, owner, sender, bot), mismatched, "{owner:?} as {sender}");
        }
        let evidence = Evidence {
            sdk: mismatched,
            session_owner: Some(instagrambot()),
            sender: ghost(),
            bridge_bot: Some(instagrambot()),
            marked: false,
        };
        assert_eq!(judge(&evidence, &bridges()).bridged_by.as_deref(), Some(instagrambot()));
    }

    #[test]
    fn people_with_devices_of_their_own_are_judged_by_the_sdk() {
        for trust in [Trust::Verified, Trust::CrossSigned, Trust::Unverified] {
            assert_eq!(judged(trust, Some(mallory()), mallory(), Some(instagrambot())), trust);
            assert_eq!(judged(trust, Some(instagrambot()), instagrambot(), Some(instagrambot())), trust);
        }
        assert_eq!(judged(Trust::UnknownDevice, None, mallory(), Some(instagrambot())), Trust::UnknownDevice);
        // Whoever gave the key, somebody else made the session.
        assert_eq!(judged(Trust::Imported, Some(mallory()), the_owner(), None), Trust::MismatchedSender);
    }

    #[test]
    fn a_key_without_a_proven_owner_is_no_ghosts() {
        assert_eq!(
            judged(Trust::UnknownDevice, None, ghost(), Some(instagrambot())),
            Trust::MismatchedSender
        );
        assert_eq!(judged(Trust::UnknownDevice, None, ghost(), None), Trust::MismatchedSender);
        assert_eq!(judged(Trust::Imported, None, ghost(), Some(instagrambot())), Trust::Imported);
        assert_eq!(
            judged(Trust::Imported, Some(instagrambot()), ghost(), Some(instagrambot())),
            Trust::Bridge
        );
    }

    #[test]
    fn without_an_owner_the_bridges_mark_tells_whom_it_speaks_for() {
        let mut bridges = Bridges::new(vec![], None);
        bridges.add(pinned(instagrambot()));
        assert!(bridges.may_speak(instagrambot(), the_owner(), true));
        assert!(!bridges.may_speak(instagrambot(), the_owner(), false));
        assert!(!bridges.may_speak(instagrambot(), user_id!("@owner:b.org"), true));
        assert!(!bridges.may_speak(mallory(), the_owner(), true));
    }

    #[test]
    fn the_settings_say_who_is_a_puppet() {
        let configured = Bridge {
            puppets: Some(Pattern::new("@*:a.org")),
            ghosts: Some(Pattern::new("@ig-*:a.org")),
            is_configured: true,
            ..pinned(instagrambot())
        };
        let mut bridges = Bridges::new(vec![configured], Some(owned_user_id!("@owner:b.org")));
        bridges.add(pinned(instagrambot()));
        assert_eq!(bridges.count(), 1);
        assert!(bridges.may_speak(instagrambot(), mallory(), false));
        assert!(bridges.may_speak(instagrambot(), user_id!("@ig-1:a.org"), false));
        bridges.add(pinned(user_id!("@facebookbot:a.org")));
        for other in [user_id!("@facebook_1:a.org"), user_id!("@facebookbot:a.org")] {
            assert!(
                !bridges.may_speak(instagrambot(), other, true),
                "whatever is configured, {other} is another bridge's"
            );
        }
        assert!(!bridges.may_speak(instagrambot(), user_id!("@owner:b.org"), true), "not among the puppets");
    }

    #[test]
    fn a_name_belongs_to_the_bridge_that_came_first() {
        let mut bridges = Bridges::new(vec![], None);
        bridges.add(pinned(instagrambot()));
        bridges.add(pinned(user_id!("@instagram_bot:a.org")));
        assert_eq!(bridges.of_ghost(ghost()).unwrap().bot, instagrambot());
        assert!(bridges.of_ghost(instagrambot()).is_none());
        assert!(!bridges.may_speak(user_id!("@instagram_bot:a.org"), ghost(), true));
    }
}
