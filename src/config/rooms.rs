//! `rooms`: which rooms are relayed, when that is settled, and whose invites are accepted.

use std::time::Duration;

use ruma::RoomId;

use super::{
    ConfigError, Inviter, Relay, Rooms, duration, settings,
    source::{Given, Reader},
};
use crate::model::Pattern;

/// The policy of a list of `bridged` or `all`, room ids, and room ids with a minus before them.
fn relay(entries: &[Given], with_owner: bool) -> Result<Relay, ConfigError> {
    let (mut base, mut with, mut without) = (None, Vec::new(), Vec::new());
    for given in entries {
        let invalid = || {
            let must =
                "must be bridged, all, or room ids, or a list of these, in which -!room leaves a room out";
            given.invalid(&settings::ROOMS_RELAY, must)
        };
        let named = match given.text.as_str() {
            "bridged" => Some(Relay::Bridged),
            "all" => Some(Relay::All),
            _ => None,
        };
        if let Some(named) = named {
            if base.replace(named).is_some() {
                return Err(invalid());
            }
            continue;
        }
        let (rooms, text) = match given.text.strip_prefix('-') {
            Some(text) => (&mut without, text),
            None => (&mut with, given.text.as_str()),
        };
        rooms.push(RoomId::parse(text).map_err(|_| invalid())?);
    }
    if base.is_none() && without.is_empty() {
        return Ok(Relay::Only(with));
    }
    // Rooms that are left out alone are left out of what is relayed by default.
    let base = match base {
        Some(base) => base,
        None if with.is_empty() => default_relay(with_owner),
        None => Relay::Only(Vec::new()),
    };
    if with.is_empty() && without.is_empty() {
        return Ok(base);
    }
    Ok(Relay::Adjusted { base: Box::new(base), with, without })
}

fn default_relay(with_owner: bool) -> Relay {
    if with_owner { Relay::Bridged } else { Relay::All }
}

/// How long a room is looked at before what came of it is deleted.
const SETTLE_AFTER: Duration = Duration::from_hours(1);

/// Which rooms coucou reads.
pub(super) fn rooms(reader: &Reader<'_>, with_owner: bool) -> Result<Rooms, ConfigError> {
    let given_relay = match reader.list(&settings::ROOMS_RELAY, Some(','))? {
        None => None,
        Some(given) => match given.as_slice() {
            [] => None,
            given => Some(relay(given, with_owner)?),
        },
    };
    let must = format!("{}; from 1s to 7d", duration::MUST);
    let settle_after = reader.parsed(&settings::ROOMS_SETTLE_AFTER, &must, |text| {
        let range = Duration::from_secs(1)..=Duration::from_hours(7 * 24);
        duration::parse(text).filter(|length| range.contains(length))
    })?;
    let invite_from = reader.list(&settings::ROOMS_INVITE_FROM, Some(','))?;
    let inviter = |given: Given| {
        let pattern = Pattern::new(&given.text);
        let user = given.text.starts_with('@');
        // A user pattern without a server would match users of any.
        let valid = if user { given.text.contains(':') } else { !given.text.contains([' ', '/', '@']) };
        if !valid {
            let must = "must be server names and user ids, in which * stands for anything";
            return Err(given.invalid(&settings::ROOMS_INVITE_FROM, must));
        }
        Ok(if user { Inviter::User(pattern) } else { Inviter::Server(pattern) })
    };
    Ok(Rooms {
        relay: given_relay.unwrap_or_else(|| default_relay(with_owner)),
        settle_after: settle_after.unwrap_or(SETTLE_AFTER),
        invite_from: invite_from
            .map(|given| given.into_iter().map(inviter).collect::<Result<_, _>>())
            .transpose()?,
    })
}
