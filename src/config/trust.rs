//! `bridges` and `trust`: whom to believe.

use super::{
    Bridge, ConfigError, NewBridges, Trust,
    file::Node,
    load::{missing, user_id},
    settings::{self, Setting},
    source::Reader,
};
use crate::model::{Action, Pattern, TrustPolicy, naming};

/// The bridges of the file.
pub(super) fn bridges(reader: &Reader<'_>) -> Result<Vec<Bridge>, ConfigError> {
    let mut bridges: Vec<Bridge> = Vec::new();
    for entry in reader.entries("bridges") {
        let place = format!(" in {}", reader.origin(entry.line));
        let given = match entry.get("bot") {
            Some(node) => reader.text(node, &settings::BRIDGE_BOT)?,
            None => None,
        };
        let given = given.ok_or_else(|| missing(&settings::BRIDGE_BOT, &place))?;
        let must = "must be a whole user id";
        let bot = user_id(&given.text).ok_or_else(|| given.invalid(&settings::BRIDGE_BOT, must))?;
        if bridges.iter().any(|bridge| bridge.bot == bot) {
            return Err(given.invalid(&settings::BRIDGE_BOT, "must be unique"));
        }
        let ghosts = match pattern(reader, entry, "ghosts", &settings::BRIDGE_GHOSTS)? {
            Some(ghosts) => vec![ghosts],
            None => naming::ghosts_of(&bot, []).into_iter().map(|ghosts| ghosts.pattern).collect(),
        };
        if ghosts.is_empty() {
            let because = format!("{place}, and the name of {bot} does not tell them");
            return Err(missing(&settings::BRIDGE_GHOSTS, &because));
        }
        let puppets = pattern(reader, entry, "puppets", &settings::BRIDGE_PUPPETS)?;
        bridges.push(Bridge { bot, ghosts, puppets });
    }
    Ok(bridges)
}

fn pattern(
    reader: &Reader<'_>,
    entry: &Node,
    key: &str,
    setting: &'static Setting,
) -> Result<Option<Pattern>, ConfigError> {
    let Some(node) = entry.get(key) else { return Ok(None) };
    let Some(given) = reader.text(node, setting)? else { return Ok(None) };
    // A pattern without a server would match users of any.
    if given.text.starts_with('@') && given.text.contains(':') && !given.text.contains(' ') {
        return Ok(Some(Pattern::new(&given.text)));
    }
    Err(given.invalid(setting, "must be a user id, in which * stands for anything"))
}

/// What is done for each trust, and with bridges that are not listed.
pub(super) fn trust(reader: &Reader<'_>) -> Result<Trust, ConfigError> {
    let action = |setting: &'static Setting, default: Action| {
        let action = reader.parsed(setting, "must be deliver, flag or hold", Action::parse)?;
        Ok(action.unwrap_or(default))
    };
    let default = TrustPolicy::default();
    let new_bridges =
        reader.parsed(&settings::TRUST_NEW_BRIDGES, "must be pin or refuse", |text| match text {
            "pin" => Some(NewBridges::Pin),
            "refuse" => Some(NewBridges::Refuse),
            _ => None,
        })?;
    Ok(Trust {
        actions: TrustPolicy {
            bridge: action(&settings::TRUST_BRIDGE, default.bridge)?,
            verified: action(&settings::TRUST_VERIFIED, default.verified)?,
            cross_signed: action(&settings::TRUST_CROSS_SIGNED, default.cross_signed)?,
            unverified: action(&settings::TRUST_UNVERIFIED, default.unverified)?,
            mismatched_sender: action(&settings::TRUST_MISMATCHED_SENDER, default.mismatched_sender)?,
            unknown_device: action(&settings::TRUST_UNKNOWN_DEVICE, default.unknown_device)?,
            imported: action(&settings::TRUST_IMPORTED, default.imported)?,
        },
        new_bridges: new_bridges.unwrap_or_default(),
    })
}
