//! Which messages a webhook is told of: decided once, when a message is stored, from what is known of it.
//!
//! A message that a webhook's filter leaves out has no delivery for it, now or later: changing the filter changes
//! what comes afterwards.

use crate::model::{Filter, Message, Pattern};

/// Whether a message passes. Every part of the filter that is set must match; of the values of a part, one must.
#[must_use]
pub fn admits(filter: &Filter, message: &Message) -> bool {
    let any = |patterns: &[Pattern], text: &str| {
        patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(text))
    };
    any(&filter.rooms, message.room_id.as_str())
        && any(&filter.senders, message.sender.as_str())
        && (filter.networks.is_empty()
            || message.network.as_deref().is_some_and(|network| any(&filter.networks, network)))
        && (filter.directions.is_empty() || filter.directions.contains(&message.direction))
        && (filter.types.is_empty() || filter.types.contains(&message.message_type))
        && (filter.kinds.is_empty()
            || message.kind.is_some_and(|kind| filter.kinds.iter().any(|wanted| wanted == kind)))
        && (filter.trust.is_empty() || filter.trust.contains(&message.trust))
        && (!filter.encrypted_only || message.encrypted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Timestamp,
        messages::kinds::Kind,
        model::{Direction, MessageId, MessageType, Trust},
    };

    fn message() -> Message {
        Message {
            message_id: MessageId("msg_1".to_owned()),
            event_id: "$one".try_into().unwrap(),
            room_id: "!room:example.org".try_into().unwrap(),
            sequence: 1,
            message_type: MessageType::MessageCreated,
            network: Some("instagram".to_owned()),
            direction: Direction::In,
            sender: "@instagram_1:example.org".try_into().unwrap(),
            origin_server_ts: Timestamp(0),
            kind: Some("text"),
            encrypted: true,
            trust: Some(Trust::Bridge),
            replaces: None,
            payload: Vec::new(),
        }
    }

    #[test]
    fn every_part_that_is_set_must_match() {
        let patterns = |texts: &[&str]| texts.iter().map(|text| Pattern::new(text)).collect::<Vec<_>>();
        let one = |change: &dyn Fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            admits(&filter, &message())
        };
        assert!(one(&|_| {}), "without a filter all pass");
        assert!(one(&|filter| filter.networks = patterns(&["messenger", "insta*"])));
        assert!(!one(&|filter| filter.networks = patterns(&["messenger"])));
        assert!(one(&|filter| filter.rooms = patterns(&["!room:example.org"])));
        assert!(!one(&|filter| filter.rooms = patterns(&["!other:*"])));
        assert!(one(&|filter| filter.senders = patterns(&["@instagram_*:example.org"])));
        assert!(!one(&|filter| filter.senders = patterns(&["@messenger_*:example.org"])));
        assert!(one(&|filter| filter.directions = vec![Direction::In]));
        assert!(!one(&|filter| filter.directions = vec![Direction::Out]));
        assert!(one(&|filter| filter.types = vec![MessageType::MessageEdited, MessageType::MessageCreated]));
        assert!(!one(&|filter| filter.types = vec![MessageType::MessageEdited]));
        assert!(one(&|filter| filter.kinds = vec!["image".to_owned(), "text".to_owned()]));
        assert!(!one(&|filter| filter.kinds = vec!["image".to_owned()]));
        assert!(one(&|filter| filter.trust = vec![Some(Trust::Bridge)]));
        assert!(!one(&|filter| filter.trust = vec![Some(Trust::Verified), None]));
        assert!(one(&|filter| filter.encrypted_only = true));
        let filter = Filter {
            networks: patterns(&["instagram"]),
            directions: vec![Direction::Out],
            ..Filter::default()
        };
        assert!(!admits(&filter, &message()), "one part that does not match is enough");
    }

    #[test]
    fn what_is_not_known_matches_only_where_nothing_is_asked() {
        let bare = Message { network: None, kind: None, encrypted: false, trust: None, ..message() };
        assert!(admits(&Filter::default(), &bare));
        assert!(!admits(&Filter { networks: vec![Pattern::new("*")], ..Filter::default() }, &bare));
        assert!(!admits(&Filter { kinds: vec!["text".to_owned()], ..Filter::default() }, &bare));
        assert!(!admits(&Filter { encrypted_only: true, ..Filter::default() }, &bare));
        assert!(admits(&Filter { trust: vec![None], ..Filter::default() }, &bare), "trust none");
    }

    #[test]
    fn the_settings_know_every_kind() {
        let kinds = Kind::ALL.map(Kind::as_str);
        assert_eq!(Filter::KINDS, kinds);
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
