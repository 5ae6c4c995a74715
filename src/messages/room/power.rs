//! Who may take back what others have said in a room.
//!
//! That is asked when somebody is banned or removed so that all they have said is taken back
//! ([MSC4293](https://github.com/matrix-org/matrix-spec-proposals/pull/4293)): homeservers send no redactions then, and
//! check nothing that they tell of, so whoever reads such an event checks the power of its sender. As for redactions
//! ([spec](https://spec.matrix.org/latest/client-server-api/#mroompower_levels)) it must reach `redact`, 50 where the room
//! says nothing, and the level of `m.room.redaction` among `events`, where the room has one.

use std::collections::BTreeSet;

use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Users kept of one room at most: few have more power than others.
const MAX_USERS: usize = 500;

/// The level of `redact` in a room that does not say it.
const DEFAULT_REDACT_LEVEL: i64 = 50;

/// Who may take back what others have said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Redactors {
    /// Users whose level differs from what is so for everybody: with it when others are without, and the other way round.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    users: BTreeSet<OwnedUserId>,
    /// Set when users who are not listed have the level.
    everybody: bool,
    /// Set when the room has `m.room.power_levels`.
    has_levels: bool,
    /// Who made the room, and whom they made equal.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    creators: BTreeSet<OwnedUserId>,
    /// Set when creators are above all levels: since room version 12
    /// ([MSC4289](https://github.com/matrix-org/matrix-spec-proposals/pull/4289)).
    are_creators_above: bool,
}

impl Redactors {
    /// Takes in `m.room.create`.
    pub(super) fn create(&mut self, sender: Option<&UserId>, content: &Value) {
        let version = content.get("room_version").and_then(Value::as_str).unwrap_or("1");
        self.are_creators_above = match version.parse::<u32>() {
            Ok(number) => number >= 12,
            Err(_) => version.starts_with("org.matrix.hydra"),
        };
        let further = content.get("additional_creators").and_then(Value::as_array);
        let further = further.into_iter().flatten().filter_map(|user| UserId::parse(user.as_str()?).ok());
        let creator = sender.map(UserId::to_owned).into_iter();
        self.creators = creator.chain(further.filter(|_| self.are_creators_above)).take(MAX_USERS).collect();
    }

    /// Takes in `m.room.power_levels`.
    pub(super) fn levels(&mut self, content: &Value) {
        let needed = content.get("redact").and_then(level).unwrap_or(DEFAULT_REDACT_LEVEL);
        let events = content.get("events").and_then(|events| events.get("m.room.redaction")).and_then(level);
        let needed = needed.max(events.unwrap_or(i64::MIN));
        self.has_levels = true;
        self.everybody = content.get("users_default").and_then(level).unwrap_or(0) >= needed;
        let users = content.get("users").and_then(Value::as_object).into_iter().flatten();
        let differing = users.filter(|(_, of)| level(of).is_some_and(|of| (of >= needed) != self.everybody));
        let differing = differing.filter_map(|(user, _)| UserId::parse(user).ok());
        self.users = differing.take(MAX_USERS).collect();
    }

    /// Returns whether a user may take back what others have said.
    #[must_use]
    pub fn may(&self, user: &UserId) -> bool {
        if self.creators.contains(user) && (self.are_creators_above || !self.has_levels) {
            return true;
        }
        self.has_levels && self.users.contains(user) != self.everybody
    }
}

/// A level: a whole number, which old rooms also have as a text.
fn level(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use ruma::user_id;
    use serde_json::json;

    use super::*;

    fn redactors(version: &str, levels: Option<&Value>) -> Redactors {
        let mut redactors = Redactors::default();
        let content = json!({"room_version": version, "additional_creators": ["@second:a.org"]});
        redactors.create(Some(user_id!("@maker:a.org")), &content);
        if let Some(levels) = levels {
            redactors.levels(levels);
        }
        redactors
    }

    fn may(redactors: &Redactors) -> Vec<&'static str> {
        let users = ["@maker:a.org", "@second:a.org", "@mod:a.org", "@jane:a.org"];
        users.into_iter().filter(|user| redactors.may(&UserId::parse(*user).unwrap())).collect()
    }

    #[test]
    fn who_reaches_the_level_of_redactions_may_take_back() {
        let users = json!({"@maker:a.org": 100, "@mod:a.org": 50});
        for (levels, expected) in [
            (json!({"users": users}), vec!["@maker:a.org", "@mod:a.org"]),
            (json!({"users": users, "redact": 51}), vec!["@maker:a.org"]),
            (json!({"users": users, "redact": "51"}), vec!["@maker:a.org"]),
            (json!({"users": users, "events": {"m.room.redaction": 60}}), vec!["@maker:a.org"]),
            // The other's level counts as well where this one is lower.
            (json!({"users": users, "events": {"m.room.redaction": 0}}), vec!["@maker:a.org", "@mod:a.org"]),
            (
                json!({"users": {"@jane:a.org": -1}, "users_default": 50}),
                vec!["@maker:a.org", "@second:a.org", "@mod:a.org"],
            ),
            (json!({"users": {"@mod:a.org": {}}}), vec![]),
        ] {
            assert_eq!(may(&redactors("11", Some(&levels))), expected, "{levels}");
        }
    }

    #[test]
    fn who_made_the_room_is_above_all_levels_or_has_them_as_long_as_there_are_none() {
        let levels = json!({"users": {"@mod:a.org": 50}});
        assert_eq!(may(&redactors("12", Some(&levels))), ["@maker:a.org", "@second:a.org", "@mod:a.org"]);
        assert_eq!(may(&redactors("11", Some(&levels))), ["@mod:a.org"]);
        assert_eq!(may(&redactors("11", None)), ["@maker:a.org"]);
        assert_eq!(may(&redactors("12", None)), ["@maker:a.org", "@second:a.org"]);
        assert_eq!(may(&Redactors::default()), [""; 0]);
    }
}
