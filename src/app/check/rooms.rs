//! The rooms that coucou is in, and the messages that it could not decrypt.

use std::collections::BTreeMap;

use ruma::UserId;

use super::{Report, Scene, said};
use crate::{
    model::ledger::{Facts, Reason, next_step},
    store::stats,
};

/// Looks at the rooms of all accounts.
pub(super) async fn look(scene: &Scene<'_>, report: &mut Report) {
    let owner = scene.config.owner.as_ref().map(|owner| &owner.user_id);
    let mut rooms = 0;
    for user_id in scene.bot.iter().chain(owner) {
        match scene.homeserver.joined_rooms(user_id).await {
            Ok(joined) => rooms += joined.len(),
            Err(error) => {
                let says = format!("the rooms of {user_id} cannot be asked for: {}", said(&error));
                return report.fail("rooms", says, "look into the homeserver's log");
            }
        }
    }
    if rooms == 0 {
        let bot = scene.bot.as_ref().map_or("the bot".to_owned(), ToString::to_string);
        return match owner {
            Some(owner) => owner_is_nowhere(scene, report, owner, &bot).await,
            None => bot_is_nowhere(scene, report, &bot).await,
        };
    }
    let relayed = match &scene.store {
        Some(store) => stats::rooms(store.db()).await.ok(),
        None => None,
    };
    let Some(known) = relayed else { return report.ok("rooms", format!("{rooms} rooms are joined")) };
    let mut networks = BTreeMap::<String, u64>::new();
    for (relay, network, count) in known {
        if relay == "yes" {
            *networks.entry(network.unwrap_or_else(|| "no network".to_owned())).or_default() += count;
        }
    }
    if networks.is_empty() {
        let says = format!("{rooms} rooms are joined, and none is relayed");
        let remedy = "with rooms.relay: bridged (COUCOU_ROOMS_RELAY) only rooms count in which a bridge says that it \
                      is one; use all, or look at /api/v1/rooms";
        return report.warn("rooms", says, remedy);
    }
    let networks: Vec<_> =
        networks.into_iter().map(|(network, count)| format!("{count} of {network}")).collect();
    report.ok("rooms", format!("{rooms} rooms are joined; relayed are {}", networks.join(", ")));
}

/// Says what a bot without rooms lacks.
async fn bot_is_nowhere(scene: &Scene<'_>, report: &mut Report, bot: &str) {
    let invites = invites(scene, scene.bot.as_deref()).await;
    if invites > 0 {
        let says = format!("{bot} is in no room; {invites} invites wait");
        let remedy = "start `coucou serve`, which accepts them; rooms.invite_from (COUCOU_ROOMS_INVITE_FROM) says whose";
        return report.warn("rooms", says, remedy);
    }
    let says = format!("{bot} was not invited to any room: there is nothing to relay");
    let remedy = format!(
        "invite {bot} to the bridged rooms, or set owner (COUCOU_OWNER) to the user whose conversations are \
         bridged, with a registration made by `coucou registration --owner`"
    );
    report.warn("rooms", says, remedy);
}

/// Says what an owner without rooms lacks: of a bridge that is not known yet nothing is accepted.
async fn owner_is_nowhere(scene: &Scene<'_>, report: &mut Report, owner: &UserId, bot: &str) {
    let invites = invites(scene, Some(owner)).await;
    let says = match invites {
        0 => format!("neither {owner} nor {bot} is in any room: there is nothing to relay"),
        _ => format!("neither {owner} nor {bot} is in any room; {invites} invites of {owner} wait"),
    };
    let remedy = format!(
        "log in with the bridge as {owner}, and accept its first invite in a client, or list it under `bridges`: \
         further invites of a bridge that coucou knows are accepted by `coucou serve`"
    );
    report.warn("rooms", says, remedy);
}

/// How many invites of a user wait.
async fn invites(scene: &Scene<'_>, user_id: Option<&UserId>) -> usize {
    let Some(user_id) = user_id else { return 0 };
    scene.homeserver.pending_invites(user_id).await.map_or(0, |invites| invites.len())
}

/// Looks at what could not be decrypted lately.
pub(super) async fn look_at_messages(scene: &Scene<'_>, report: &mut Report) {
    let Some(store) = &scene.store else { return };
    let failures = match stats::failures(store.db(), scene.clock.now()).await {
        Ok(failures) => failures,
        Err(error) => return report.fail("messages", said(&error), "see the line about the store"),
    };
    let lately: Vec<_> = failures.into_iter().filter(|failure| failure.week > 0).collect();
    if lately.is_empty() {
        return report.ok("messages", "everything of the last seven days could be decrypted");
    }
    let known = stats::rooms(store.db()).await.unwrap_or_default();
    let is_bridged = known.iter().any(|(relay, network, _)| relay == "yes" && network.is_some());
    for failure in lately {
        let (reason, day, week) = (&failure.reason, failure.day, failure.week);
        let says = format!("{week} events of the last seven days, {day} of the last day, wait: {reason}");
        let facts = Facts { is_bridged, ..Facts::default() };
        let step = next_step(&Reason::parse(reason), &facts);
        report.warn("messages", says, format!("{step}; `coucou keys status` shows which"));
    }
}
