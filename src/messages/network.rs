//! Networks, and people on them: what the bridges' protocol ids and the ghosts' user ids mean.

use std::collections::BTreeMap;

use ruma::UserId;

use crate::model::RoomContext;

/// The network of a bridge whose `m.bridge` names the protocol `id`; `overrides` wins over what is built in.
///
/// The mautrix bridges write `instagramgo` and `facebookgo` (Facebook and Messenger), older ones `instagram`
/// and `facebook`, or `meta` for either, where `hints` (the protocol's display name, the bot's localpart) may
/// tell which. Any other id is its own name.
#[must_use]
pub fn name(id: &str, hints: &[&str], overrides: &BTreeMap<String, String>) -> String {
    if let Some(name) = overrides.get(id) {
        return name.clone();
    }
    match id {
        "instagramgo" | "instagram" => "instagram".to_owned(),
        "facebookgo" | "facebook" => "messenger".to_owned(),
        "meta" => meta(hints).to_owned(),
        other => other.to_owned(),
    }
}

fn meta(hints: &[&str]) -> &'static str {
    hints
        .iter()
        .find_map(|hint| {
            let hint = hint.to_lowercase();
            if hint.contains("instagram") {
                Some("instagram")
            } else if hint.contains("facebook") || hint.contains("messenger") {
                Some("messenger")
            } else {
                None
            }
        })
        .unwrap_or("meta")
}

/// The id on the network of the person for whom `user` stands: `1784…` of `@instagram_1784…:example.org`.
///
/// None unless the room has a believable bridge and `user` looks like one of its ghosts: on the bot's server,
/// neither the bot nor one of us, and either among the ghosts that are known, or with a localpart of a word and an
/// underscore before the id. The word is the bot's own (`instagram` of `@instagrambot`), the network's or the protocol's; any other word only before digits,
/// so that `@jane_doe` is not taken for somebody called `doe`.
#[must_use]
pub fn network_id<'a>(room: &RoomContext, user: &'a UserId) -> Option<&'a str> {
    let bot = room.bridge_bot.as_ref()?;
    if bot == user || bot.server_name() != user.server_name() || room.our_users.contains(user) {
        return None;
    }
    let by_pattern = room.ghosts.iter().find_map(|ghosts| ghosts.capture(user.as_str()));
    if let Some(id) = by_pattern.filter(|id| !id.is_empty()) {
        return Some(id);
    }
    let words = [bot.localpart().strip_suffix("bot"), room.network.as_deref(), room.protocol.as_deref()];
    let localpart = user.localpart();
    let by_word =
        words.into_iter().flatten().map(|word| word.trim_end_matches(['_', '-'])).find_map(|word| {
            if word.is_empty() { None } else { localpart.strip_prefix(word)?.strip_prefix('_') }
        });
    let by_digits = || {
        let (_, id) = localpart.split_once('_')?;
        id.bytes().all(|byte| byte.is_ascii_digit()).then_some(id)
    };
    by_word.or_else(by_digits).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use ruma::{owned_user_id, user_id};

    use super::*;
    use crate::model::Pattern;

    #[test]
    fn protocol_ids_become_networks() {
        let overrides = BTreeMap::from([("slackgo".to_owned(), "slack".to_owned())]);
        let network = |id, hints: &[&str]| name(id, hints, &overrides);
        assert_eq!(network("instagramgo", &[]), "instagram");
        assert_eq!(network("instagram", &[]), "instagram");
        assert_eq!(network("facebookgo", &[]), "messenger");
        assert_eq!(network("facebook", &[]), "messenger");
        assert_eq!(network("slackgo", &[]), "slack");
        assert_eq!(network("telegram", &[]), "telegram");
        assert_eq!(network("meta", &["Instagram", "metabot"]), "instagram");
        assert_eq!(network("meta", &["Meta", "messengerbot"]), "messenger");
        assert_eq!(network("meta", &["metabot"]), "meta");
    }

    #[test]
    fn an_override_wins_over_a_known_protocol() {
        let overrides = BTreeMap::from([("facebookgo".to_owned(), "facebook".to_owned())]);
        assert_eq!(name("facebookgo", &[], &overrides), "facebook");
    }

    #[test]
    fn a_ghost_has_the_id_of_the_person_it_stands_for() {
        let room = RoomContext {
            network: Some("instagram".to_owned()),
            protocol: Some("instagramgo".to_owned()),
            bridge_bot: Some(owned_user_id!("@instagrambot:localhost")),
            our_users: Arc::new(BTreeSet::from([owned_user_id!("@instagram_1:localhost")])),
            ..RoomContext::default()
        };
        let id = |user| network_id(&room, user);
        assert_eq!(id(user_id!("@instagram_17840:localhost")), Some("17840"));
        assert_eq!(id(user_id!("@instagram_x_y:localhost")), Some("x_y"));
        assert_eq!(id(user_id!("@meta_17840:localhost")), Some("17840"));
        assert_eq!(id(user_id!("@jane_doe:localhost")), None);
        assert_eq!(id(user_id!("@instagram_:localhost")), None);
        assert_eq!(id(user_id!("@instagram:localhost")), None);
        assert_eq!(id(user_id!("@instagrambot:localhost")), None);
        assert_eq!(id(user_id!("@instagram_17840:elsewhere")), None);
        assert_eq!(id(user_id!("@instagram_1:localhost")), None, "one of us");
        let named = RoomContext {
            ghosts: vec![Pattern::new("@ig-*:localhost"), Pattern::new("@facebook_*:localhost")],
            ..room.clone()
        };
        let id = |user| network_id(&named, user);
        assert_eq!(id(user_id!("@ig-alice:localhost")), Some("alice"), "as the settings say");
        assert_eq!(id(user_id!("@facebook_alice:localhost")), Some("alice"));
        assert_eq!(id(user_id!("@instagram_17840:localhost")), Some("17840"));
        assert_eq!(id(user_id!("@ig-:localhost")), None);
        let plain = RoomContext { bridge_bot: None, ..room.clone() };
        assert_eq!(network_id(&plain, user_id!("@instagram_17840:localhost")), None);
    }
}
