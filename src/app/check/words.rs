//! What a webhook is told, in words.

use std::fmt::Display;

use crate::{
    config::Webhook,
    model::{Detail, Direction, Filter, Format, MessageType, Trust},
};

/// What a webhook's settings let through, and how it is told.
pub(super) fn receives(webhook: &Webhook) -> String {
    let mut text = filter(&webhook.filter);
    text.push_str(match webhook.detail {
        Detail::Full => "; with what was said",
        Detail::Metadata => "; without what was said",
    });
    if webhook.format == Format::CloudEvents {
        text.push_str(", as CloudEvents");
    }
    text
}

fn filter(filter: &Filter) -> String {
    let mut parts = Vec::new();
    let mut part = |begin: &str, values: Vec<String>| {
        if !values.is_empty() {
            parts.push(format!("{begin} {}", one_of(&values)));
        }
    };
    part("of the network", all(&filter.networks));
    part("in the room", all(&filter.rooms));
    part("from", all(&filter.senders));
    part("of the kind", filter.kinds.clone());
    part("told as", filter.types.iter().copied().map(MessageType::as_str).map(str::to_owned).collect());
    part("encrypted by a device that is", filter.trust.iter().copied().map(trust).collect());
    let direction = match filter.directions[..] {
        [Direction::In] => "incoming messages",
        [Direction::Out] => "outgoing messages",
        _ => "messages",
    };
    if filter.encrypted_only {
        parts.push("that were end-to-end encrypted".to_owned());
    }
    if parts.is_empty() && direction == "messages" {
        return "everything".to_owned();
    }
    let parts = parts.join(", ");
    format!("{direction} {parts}").trim_end().to_owned()
}

fn trust(trust: Option<Trust>) -> String {
    trust.map_or("none (not encrypted)", Trust::as_str).to_owned()
}

fn all<T: Display>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

/// `a`, `a or b`, `a, b or c`.
fn one_of(values: &[String]) -> String {
    match values {
        [] => String::new(),
        [one] => one.clone(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pattern;

    #[test]
    fn a_filter_is_put_into_words() {
        assert_eq!(filter(&Filter::default()), "everything");
        let narrow = Filter {
            networks: vec![Pattern::new("instagram"), Pattern::new("messenger")],
            senders: vec![Pattern::new("@instagram_*:example.org")],
            directions: vec![Direction::In],
            kinds: vec!["text".to_owned(), "image".to_owned(), "voice".to_owned()],
            types: vec![MessageType::MessageCreated],
            trust: vec![Some(Trust::Bridge), None],
            encrypted_only: true,
            ..Filter::default()
        };
        assert_eq!(
            filter(&narrow),
            "incoming messages of the network instagram or messenger, from @instagram_*:example.org, of the kind \
             text, image or voice, told as message.created, encrypted by a device that is bridge or none (not \
             encrypted), that were end-to-end encrypted"
        );
        let outgoing = Filter { directions: vec![Direction::Out], ..Filter::default() };
        assert_eq!(filter(&outgoing), "outgoing messages");
    }
}
