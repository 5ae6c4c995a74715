//! Events whose session is claimed by several: all the claims are looked at, and a place of the session is used once in
//! each name.
//!
//! Of nearly all events the session's maker is the sender or the room's bridge, and nothing more is asked for. Of the
//! others the claims are loaded, for all together. A copy of a ciphertext that a claimant sends as its own takes the
//! place from nobody who has a claim of its own, whichever comes first.

use std::collections::{BTreeSet, HashMap};

use ruma::{OwnedEventId, OwnedUserId};

use super::{commit::Outcome, event::WireEvent, known::Known, pins, worker::Worker};
use crate::{
    crypto::{CryptoError, Decrypted, claims},
    store::{Db, StoreError, messages, messages::MegolmIndex},
};

/// In whose name an event uses a place of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimant {
    /// The bridge of the room, by its bot.
    Bridge(OwnedUserId),
    /// The sender, who has claimed the session.
    Sender(OwnedUserId),
    /// Nobody whose claim is known.
    Unknown,
}

impl Claimant {
    fn user_id(&self) -> Option<&str> {
        match self {
            Self::Bridge(user_id) | Self::Sender(user_id) => Some(user_id.as_str()),
            Self::Unknown => None,
        }
    }
}

impl Outcome {
    /// Uses a place of a session for an event, if it may; returns whether it may.
    pub(super) fn use_index(
        &mut self,
        index: MegolmIndex,
        event: &WireEvent,
        by: &Claimant,
        known: &mut Known,
    ) -> bool {
        let user = event.event_id.to_string();
        let how = known.use_index(&index, &user, by);
        if how == Use::Refused {
            return false;
        }
        if how == Use::Shared || !matches!(by, Claimant::Bridge(_)) {
            self.index_claims.push((
                index.clone(),
                by.user_id().unwrap_or_default().to_owned(),
                user.clone(),
            ));
        }
        if how == Use::Taken {
            self.used.push((index, user));
        }
        true
    }
}

/// How an event may use a place of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Another has used it, and there is nothing to be said for this one: it is a replay.
    Refused,
    /// It is free, or this event's already.
    Taken,
    /// Another has used it who has no better claim.
    Shared,
}

impl Known {
    /// Uses a place of a session for an event, and notes in whose name; the bridge's name need not be noted unless
    /// another used the place before.
    pub(super) fn use_index(&mut self, index: &MegolmIndex, event_id: &str, by: &Claimant) -> Use {
        let first = self.indexes.entry(index.clone()).or_insert_with(|| event_id.to_owned());
        let claims = self.index_claims.entry(index.clone()).or_default();
        let is_first = first == event_id;
        if !is_first {
            // What was used in no name was the bridge's, or an earlier version's of coucou, which noted none.
            let first_by = claims.iter().find(|(_, event)| event == first).map(|(by, _)| &**by);
            let (Some(first_by), Some(user_id)) = (first_by, by.user_id()) else { return Use::Refused };
            let is_used = claims.iter().any(|(by, event)| by == user_id && event != event_id);
            if first_by == user_id || is_used {
                return Use::Refused;
            }
        }
        if !is_first || !matches!(by, Claimant::Bridge(_)) {
            claims.push((by.user_id().unwrap_or_default().to_owned(), event_id.to_owned()));
        }
        if is_first { Use::Taken } else { Use::Shared }
    }

    /// Loads in whose names those places were used that are not free for these events.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn load_index_claims(
        &mut self,
        db: &Db,
        places: impl Iterator<Item = (MegolmIndex, &str)>,
    ) -> Result<(), StoreError> {
        let is_anothers = |(index, event_id): &(MegolmIndex, &str)| {
            self.indexes.get(index).is_some_and(|first| !first.is_empty() && first != event_id)
        };
        let wanted: BTreeSet<_> = places.filter(is_anothers).map(|(index, _)| index).collect();
        let wanted: Vec<_> = wanted.into_iter().collect();
        for (index, claimant, event_id) in messages::index_claims(db, &wanted).await? {
            self.index_claims.entry(index).or_default().push((claimant, event_id));
        }
        Ok(())
    }
}

impl Worker {
    /// Adds to decrypted events the claims to their sessions, where the maker that the SDK knows of does not fit.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn add_claims(
        &self,
        events: &[&WireEvent],
        decrypted: &mut HashMap<OwnedEventId, Decrypted>,
    ) -> Result<(), CryptoError> {
        let mut wanted = BTreeSet::new();
        for event in events {
            let (Some(place), Some(Decrypted::Clear(clear))) =
                (&event.session, decrypted.get(&event.event_id))
            else {
                continue;
            };
            let Some(room) = self.rooms.get(&event.room_id) else { continue };
            let bots = pins::bots(&room.state);
            let fits = clear.session_owner.as_deref().is_some_and(|owner| {
                owner == event.sender
                    || (bots.contains(&owner)
                        && self.rooms.pins.bridges.may_speak(owner, &event.sender, true))
            });
            if !fits {
                wanted.insert(place.key.clone());
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let found = claims::find(&self.parts.store, self.decrypter.engines(), &wanted).await?;
        for event in events {
            let Some(claims) = event.session.as_ref().and_then(|place| found.get(&place.key)) else {
                continue;
            };
            if let Some(Decrypted::Clear(clear)) = decrypted.get_mut(&event.event_id) {
                clear.claims.clone_from(claims);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::{
        Use::{Refused, Shared, Taken},
        *,
    };

    fn index() -> MegolmIndex {
        ("!room".to_owned(), "session".to_owned(), 3)
    }

    fn bridge() -> Claimant {
        Claimant::Bridge(user_id!("@bot:a.org").to_owned())
    }

    fn member(name: &str) -> Claimant {
        Claimant::Sender(ruma::UserId::parse(format!("@{name}:a.org")).unwrap())
    }

    /// Uses one place for these events, one after the other.
    fn used(events: &[(&str, Claimant)]) -> Vec<Use> {
        let mut known = Known::default();
        events.iter().map(|(event_id, by)| known.use_index(&index(), event_id, by)).collect()
    }

    #[test]
    fn a_copy_takes_the_place_from_nobody_who_has_a_claim() {
        let (copy, original) = (("$copy", member("mallory")), ("$original", bridge()));
        assert_eq!(used(&[copy.clone(), original.clone()]), [Use::Taken, Use::Shared]);
        assert_eq!(used(&[original.clone(), copy.clone()]), [Use::Taken, Use::Refused]);
        assert_eq!(used(&[copy.clone(), ("$original", member("alice"))]), [Use::Taken, Use::Shared]);
        assert_eq!(used(&[("$copy", Claimant::Unknown), original.clone()]), [Use::Taken, Use::Shared]);
    }

    #[test]
    fn a_place_is_used_once_in_each_name() {
        for by in [bridge(), member("alice"), Claimant::Unknown] {
            assert_eq!(used(&[("$1", by.clone()), ("$2", by)]), [Use::Taken, Use::Refused]);
        }
        let events = [
            ("$copy", member("mallory")),
            ("$original", bridge()),
            ("$original", bridge()),
            ("$again", bridge()),
            ("$another", member("mallory")),
            ("$unknown", Claimant::Unknown),
        ];
        assert_eq!(used(&events), [Taken, Shared, Shared, Refused, Refused, Refused]);
    }

    #[test]
    fn what_is_forgotten_or_was_noted_in_no_name_is_nobodys_any_more() {
        for first in ["", "$of an earlier version"] {
            let mut known = Known::default();
            known.indexes.insert(index(), first.to_owned());
            assert_eq!(known.use_index(&index(), "$original", &bridge()), Use::Refused);
        }
    }
}
