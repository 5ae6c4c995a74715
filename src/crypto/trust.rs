//! Who a decrypted event really comes from: the rules, without any I/O.
//!
//! A bridge encrypts with its bot's device while the event's sender is a ghost, which the SDK calls a
//! mismatched sender. That is right for the bot of the room's own bridge, speaking for its own ghosts and
//! for whom it may puppet; it is a forgery for anybody else.

use std::borrow::Cow;

use ruma::{OwnedUserId, UserId};

use super::{claims::Claim, engine::SessionDevice};
use crate::model::{
    Pattern, Trust,
    naming::{self, Ghosts, Strength},
};

/// A bridge that is known, by the settings or because it was believed when first seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its bot, whose device encrypts.
    pub bot: OwnedUserId,
    /// The ghosts for which it speaks.
    pub ghosts: Vec<Ghosts>,
    /// The real users for whom it speaks as well; `None` for the default, see [`Bridges::may_speak`].
    pub puppets: Option<Pattern>,
    /// Whether it is in the settings.
    pub is_configured: bool,
}

impl Bridge {
    /// Returns a bridge of which only the bot's name is known.
    #[must_use]
    pub fn of_bot(bot: &UserId) -> Self {
        Self { bot: bot.to_owned(), ghosts: naming::ghosts_of(bot, []), puppets: None, is_configured: false }
    }

    /// Returns whether a user is one of its ghosts, by the name.
    #[must_use]
    pub fn has_ghost(&self, user: &UserId) -> bool {
        self.bot != user && self.claim_to(user).is_some()
    }

    /// Returns how surely a user is one of its ghosts; `None` when it is none.
    #[must_use]
    pub fn claim_to(&self, user: &UserId) -> Option<Strength> {
        let ghosts = self.ghosts.iter().filter(|ghosts| ghosts.pattern.matches(user.as_str()));
        ghosts.map(|ghosts| ghosts.strength).max()
    }
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

    /// The bridge of that bot, to be changed.
    pub fn find_mut(&mut self, bot: &UserId) -> Option<&mut Bridge> {
        self.known.iter_mut().find(|bridge| bridge.bot == bot)
    }

    /// Returns the bridge of a bot that a room believes: the known one, or what its name tells.
    #[must_use]
    pub fn of_bot(&self, bot: &UserId) -> Cow<'_, Bridge> {
        self.find(bot).map_or_else(|| Cow::Owned(Bridge::of_bot(bot)), Cow::Borrowed)
    }

    /// Returns the number of bridges that are not in the settings.
    #[must_use]
    pub fn pinned_count(&self) -> usize {
        self.known.iter().filter(|bridge| !bridge.is_configured).count()
    }

    /// The bridge whose ghost a user is, by its name, and how surely. A name that several bridges claim belongs to the
    /// surest, or else to the one that came first; a bridge's own bot is nobody's ghost.
    #[must_use]
    pub fn of_ghost(&self, user: &UserId) -> Option<(&Bridge, Strength)> {
        if self.find(user).is_some() {
            return None;
        }
        let claims = self.known.iter().filter_map(|bridge| Some((bridge, bridge.claim_to(user)?)));
        claims.reduce(|best, other| if other.1 > best.1 { other } else { best })
    }

    /// Returns whether a user is a bridge's ghost by more than the name of a bot that anybody may have: by the settings,
    /// by the names of installed bridges, or as a ghost of one of these `bots`, which a room believes.
    #[must_use]
    pub fn is_ghost(&self, user: &UserId, bots: &[&UserId]) -> bool {
        if self.of_ghost(user).is_some_and(|(_, strength)| strength > Strength::Guessed) {
            return true;
        }
        bots.iter().all(|bot| *bot != user)
            && bots.iter().any(|bot| self.of_bot(bot).claim_to(user).is_some())
    }

    /// Whether the bot of a bridge may speak for a user.
    ///
    /// For its ghosts, unless another bridge has a better claim to the name. For the real users that are configured as
    /// its puppets; by default that is the owner. Where no owner is configured, coucou cannot know whose conversations
    /// the bridge brings: then it is whoever of the bridge's own server the bridge has `marked` as a puppet inside the
    /// encryption, where nobody else can. A real user is not kept from that by a bot whose name merely suggests that
    /// the user is its ghost.
    #[must_use]
    pub fn may_speak(&self, bot: &UserId, user: &UserId, marked: bool) -> bool {
        let bridge = self.of_bot(bot);
        if bridge.puppets.is_none() && self.owner.as_deref() == Some(user) {
            return true;
        }
        if self.find(user).is_some() {
            return false;
        }
        let rivals = || self.known.iter().take_while(|other| other.bot != bot);
        let is_first = |mine| rivals().all(|other| other.claim_to(user) < Some(mine));
        let others = self.known.iter().filter(|other| other.bot != bot);
        let rival = others.filter_map(|other| other.claim_to(user)).max();
        if let Some(mine) = bridge.claim_to(user) {
            return rival.is_none_or(|rival| rival < mine) || (rival == Some(mine) && is_first(mine));
        }
        let is_puppet = match &bridge.puppets {
            Some(puppets) => puppets.matches(user.as_str()),
            None => self.owner.is_none() && marked && user.server_name() == bot.server_name(),
        };
        let is_named = bridge.puppets.as_ref().is_some_and(Pattern::is_exact);
        let strongest = if is_named { Strength::Installed } else { Strength::Guessed };
        is_puppet && rival.is_none_or(|rival| rival <= strongest)
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
    /// Whose session it is, by the claim that explains the sender.
    pub claimant: Option<OwnedUserId>,
    /// The device of that claim, where another than the session's owner made it.
    pub device: Option<SessionDevice>,
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
    /// The bots of the room's bridges.
    pub bots: &'a [&'a UserId],
    /// Whether it is marked as a puppet's, inside the encryption.
    pub marked: bool,
    /// All claims to the session, where the owner alone does not explain the sender.
    pub claims: &'a [Claim],
}

/// Judges an event by what the SDK says, by whose session it was encrypted in, and by the bridge bots that the
/// room believably names.
///
/// A session may be claimed by several, as whoever has its key can say that it is theirs. The event is judged by the claim
/// that explains its sender best, so that a claim that came later, or is worth less, takes nothing away: the bridge's for
/// whom it may speak, then the sender's own.
#[must_use]
pub fn judge(evidence: &Evidence<'_>, bridges: &Bridges) -> Verdict {
    let Evidence { sdk, session_owner, sender, bots, marked, claims } = *evidence;
    let plain = |trust| Verdict { trust, bridged_by: None, is_open: false, claimant: None, device: None };
    let of = |claimant: &UserId, verdict: Verdict| Verdict { claimant: Some(claimant.to_owned()), ..verdict };
    let bridged =
        |bot: &UserId| of(bot, Verdict { bridged_by: Some(bot.to_owned()), ..plain(Trust::Bridge) });
    let speaks =
        |bot: &UserId| bot != sender && bots.contains(&bot) && bridges.may_speak(bot, sender, marked);
    if let Some(owner) = session_owner {
        if owner == sender {
            return of(owner, plain(sdk));
        }
        if speaks(owner) {
            return bridged(owner);
        }
    }
    let mut by_bridge = claims.iter().filter(|claim| speaks(&claim.user_id)).peekable();
    let is_a_bridges = by_bridge.peek().is_some();
    if let Some((claim, device)) = by_bridge.find_map(|claim| Some((claim, claim.device.as_ref()?))) {
        return Verdict { device: Some(device.clone()), ..bridged(&claim.user_id) };
    }
    let own = claims.iter().filter(|claim| claim.user_id == sender);
    if let Some(claim) = own.max_by_key(|claim| strength(claim.trust)) {
        return of(sender, Verdict { device: claim.device.clone(), ..plain(claim.trust) });
    }
    // A ghost has no device of its own: this is one of the bridge's that is not known yet, or a forger's.
    let is_open = is_a_bridges || (session_owner.is_none() && bridges.is_ghost(sender, bots));
    let is_somebody_elses = session_owner.is_some() || !claims.is_empty();
    match sdk {
        // Nothing is known of who made an imported key: that others claim it proves nothing against the sender.
        Trust::Imported if session_owner.is_none() => plain(sdk),
        Trust::UnknownDevice if is_open || is_somebody_elses => {
            Verdict { is_open, ..plain(Trust::MismatchedSender) }
        }
        _ if session_owner.is_some() => Verdict { is_open, ..plain(Trust::MismatchedSender) },
        _ => plain(sdk),
    }
}

/// Returns how much the device of a sender's own claim is worth.
fn strength(trust: Trust) -> u8 {
    match trust {
        Trust::Verified => 3,
        Trust::CrossSigned => 2,
        Trust::Unverified => 1,
        _ => 0,
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
        Bridge::of_bot(bot)
    }

    fn configured_ghosts(pattern: &str) -> Ghosts {
        Ghosts { pattern: Pattern::new(pattern), strength: Strength::Configured }
    }

    fn bridges() -> Bridges {
        let mut bridges = Bridges::new(vec![], Some(the_owner().to_owned()));
        bridges.add(pinned(instagrambot()));
        bridges.add(pinned(user_id!("@facebookbot:a.org")));
        bridges
    }

    fn judged(sdk: Trust, owner: Option<&UserId>, sender: &UserId, bot: Option<&UserId>) -> Trust {
        let bots: Vec<_> = bot.into_iter().collect();
        let evidence = Evidence { sdk, session_owner: owner, sender, bots: &bots, marked: true, claims: &[] };
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
            bots: &[instagrambot()],
            marked: false,
            claims: &[],
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
        let judged = |bots: &[&UserId]| {
            let (sdk, sender) = (Trust::MismatchedSender, the_owner());
            let evidence =
                Evidence { sdk, session_owner: Some(mallory()), sender, bots, marked: true, claims: &[] };
            judge(&evidence, &bridges).trust
        };
        assert_eq!(judged(&[instagrambot()]), Trust::MismatchedSender, "no bridge of the room's");
    }

    #[test]
    fn the_settings_say_who_is_a_puppet() {
        let configured = Bridge {
            puppets: Some(Pattern::new("@*:a.org")),
            ghosts: vec![configured_ghosts("@ig-*:a.org")],
            is_configured: true,
            ..pinned(instagrambot())
        };
        let mut bridges = Bridges::new(vec![configured], Some(owned_user_id!("@owner:b.org")));
        bridges.add(pinned(instagrambot()));
        assert_eq!(bridges.pinned_count(), 0);
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
        assert_eq!(bridges.of_ghost(ghost()).unwrap().0.bot, instagrambot());
        assert!(bridges.of_ghost(instagrambot()).is_none());
        assert!(!bridges.may_speak(user_id!("@instagram_bot:a.org"), ghost(), true));
    }

    #[test]
    fn a_room_may_have_two_bridges_and_each_speaks_for_its_own() {
        let facebookbot = user_id!("@facebookbot:a.org");
        let bots = [instagrambot(), facebookbot];
        let judged = |owner, sender| {
            let sdk = Trust::MismatchedSender;
            let evidence =
                Evidence { sdk, session_owner: Some(owner), sender, bots: &bots, marked: false, claims: &[] };
            judge(&evidence, &bridges()).bridged_by
        };
        assert_eq!(judged(instagrambot(), ghost()).as_deref(), Some(instagrambot()));
        assert_eq!(judged(facebookbot, user_id!("@facebook_1:a.org")).as_deref(), Some(facebookbot));
        assert_eq!(judged(facebookbot, the_owner()).as_deref(), Some(facebookbot));
        assert_eq!(judged(facebookbot, ghost()), None);
        assert_eq!(judged(mallory(), ghost()), None);
    }

    #[test]
    fn a_local_users_bot_takes_nobodys_name() {
        let (janebot, jane) = (user_id!("@janebot:a.org"), user_id!("@jane_doe:a.org"));
        let puppets = |pattern| Some(Pattern::new(pattern));
        let configured = Bridge {
            puppets: puppets("@*:a.org"),
            ghosts: vec![configured_ghosts("@instagram_*:a.org")],
            is_configured: true,
            ..pinned(instagrambot())
        };
        let mut by_settings = Bridges::new(vec![configured], Some(the_owner().to_owned()));
        let mut by_mark = Bridges::new(vec![], None);
        by_mark.add(pinned(instagrambot()));
        for bridges in [&mut by_settings, &mut by_mark] {
            bridges.add(pinned(janebot));
            assert!(bridges.may_speak(instagrambot(), jane, true));
            assert!(!bridges.is_ghost(jane, &[instagrambot()]), "she has devices of her own");
            assert!(bridges.is_ghost(jane, &[janebot]), "where it is believed, its names count");
        }
        // A bridge of the settings, and one that is installed under that name, keep their ghosts.
        by_settings.add(pinned(user_id!("@facebookbot:a.org")));
        assert!(!by_settings.may_speak(instagrambot(), user_id!("@facebook_1:a.org"), true));
        let named = Bridge { puppets: puppets("@facebook_fan:a.org"), ..by_settings.known[0].clone() };
        let mut bridges = Bridges::new(vec![named], None);
        bridges.add(pinned(user_id!("@facebookbot:a.org")));
        assert!(bridges.may_speak(instagrambot(), user_id!("@facebook_fan:a.org"), false), "named as such");
    }

    #[test]
    fn the_surest_claim_to_a_name_counts() {
        let (messenger, facebook) = (user_id!("@messengerbot:a.org"), user_id!("@facebookbot:a.org"));
        let ghost = user_id!("@facebook_1:a.org");
        let mut bridges = Bridges::new(vec![], None);
        bridges.add(pinned(messenger));
        assert!(bridges.may_speak(messenger, ghost, false), "nobody else claims it");
        bridges.add(pinned(facebook));
        assert!(!bridges.may_speak(messenger, ghost, false) && bridges.may_speak(facebook, ghost, false));
        let keyed = naming::ghosts_of(messenger, ["a.org/facebook"]);
        bridges.find_mut(messenger).unwrap().ghosts = keyed;
        assert!(bridges.may_speak(messenger, ghost, false) && !bridges.may_speak(facebook, ghost, false));
        assert!(!bridges.may_speak(messenger, user_id!("@messenger_1:a.org"), false), "it has another mode");
    }

    #[test]
    fn a_bridge_that_is_not_pinned_speaks_for_what_its_name_tells() {
        let bridges = Bridges::new(vec![], Some(the_owner().to_owned()));
        assert!(bridges.may_speak(instagrambot(), ghost(), false));
        assert!(bridges.may_speak(instagrambot(), the_owner(), false));
        assert!(!bridges.may_speak(instagrambot(), user_id!("@facebook_1:a.org"), false));
        assert!(bridges.is_ghost(ghost(), &[instagrambot()]) && !bridges.is_ghost(ghost(), &[]));
    }

    /// A claim of a user's, by a device that is known or not.
    fn claim(user_id: &UserId, trust: Trust) -> Claim {
        let is_known = trust != Trust::UnknownDevice;
        let device = is_known.then(|| SessionDevice {
            device_id: format!("of {user_id}"),
            identity_key: "key".to_owned(),
            master_key: None,
        });
        Claim { user_id: user_id.to_owned(), device, trust }
    }

    fn judged_by(
        (sdk, session_owner): (Trust, Option<&UserId>),
        sender: &UserId,
        claims: &[Claim],
    ) -> (Trust, bool, Option<OwnedUserId>) {
        let bots = &[instagrambot()];
        let evidence = Evidence { sdk, session_owner, sender, bots, marked: true, claims };
        let verdict = judge(&evidence, &bridges());
        (verdict.trust, verdict.is_open, verdict.claimant)
    }

    #[test]
    fn a_session_that_a_member_takes_over_is_still_the_bridges() {
        let taken = (Trust::MismatchedSender, Some(mallory()));
        let unknown = (Trust::UnknownDevice, None);
        let (by_bridge, by_mallory) =
            (claim(instagrambot(), Trust::Unverified), claim(mallory(), Trust::CrossSigned));
        let not_yet = claim(instagrambot(), Trust::UnknownDevice);
        let bot = Some(instagrambot().to_owned());
        let mismatched = |is_open| (Trust::MismatchedSender, is_open, None);
        for session in [taken, unknown] {
            let both = [by_mallory.clone(), by_bridge.clone()];
            for sender in [ghost(), the_owner()] {
                assert_eq!(judged_by(session, sender, &both), (Trust::Bridge, false, bot.clone()));
                assert_eq!(
                    judged_by(session, sender, &both[..1]),
                    mismatched(session == unknown && sender == ghost())
                );
                let open = [by_mallory.clone(), not_yet.clone()];
                assert_eq!(
                    judged_by(session, sender, &open),
                    mismatched(true),
                    "the bridge's device is not known yet"
                );
            }
            // What the taker says in its own name is its own, and another's is not.
            let stranger = user_id!("@stranger:a.org");
            assert_eq!(judged_by(session, stranger, &both), mismatched(false));
        }
        let own = judged_by((Trust::CrossSigned, Some(mallory())), mallory(), &[]);
        assert_eq!(own, (Trust::CrossSigned, false, Some(mallory().to_owned())));
        let own =
            judged_by((Trust::MismatchedSender, Some(instagrambot())), mallory(), &[by_mallory, by_bridge]);
        assert_eq!(own, (Trust::CrossSigned, false, Some(mallory().to_owned())));
    }

    #[test]
    fn a_copy_of_a_session_that_the_sender_has_not_claimed_is_not_the_senders() {
        let claims = [claim(instagrambot(), Trust::UnknownDevice)];
        let judged = |sdk, sender| judged_by((sdk, None), sender, &claims);
        assert_eq!(judged(Trust::UnknownDevice, mallory()).0, Trust::MismatchedSender);
        assert_eq!(judged(Trust::UnknownDevice, ghost()), (Trust::MismatchedSender, true, None));
        assert_eq!(
            judged(Trust::Imported, mallory()).0,
            Trust::Imported,
            "nothing is proven of an imported key"
        );
        let own = [claims[0].clone(), claim(mallory(), Trust::UnknownDevice)];
        let own = judged_by((Trust::UnknownDevice, None), mallory(), &own);
        assert_eq!(own, (Trust::UnknownDevice, false, Some(mallory().to_owned())));
        // Another account was given the key by its maker.
        let proven = [claim(instagrambot(), Trust::Unverified)];
        assert_eq!(judged_by((Trust::Imported, None), ghost(), &proven).0, Trust::Bridge);
    }
}
