//! What is wrong with bridges, as the running coucou noticed.

use std::collections::BTreeMap;

use ruma::UserId;

use super::{Report, Scene, said};
use crate::{
    model::{Alarm, AlarmReason, naming},
    store::{Db, bridges, silence},
};

/// How many findings of one kind are worth a line each.
const MOST: i64 = 20;

/// Looks at the alarms that are not over.
pub(super) async fn look(scene: &Scene<'_>, report: &mut Report) {
    let Some(store) = &scene.store else { return };
    if scene.config.silence.is_none() {
        let remedy = "set silence.enabled (COUCOU_SILENCE_ENABLED) to true, or watch the bridges otherwise";
        return report.warn("bridges", "nobody looks whether bridges are silent or disconnected", remedy);
    }
    let alarms = match silence::active(store.db(), MOST).await {
        Ok(alarms) => alarms,
        Err(error) => return report.fail("bridges", said(&error), "see the line about the store"),
    };
    let is_told = look_at_claims(store.db(), scene, report).await;
    if alarms.is_empty() && !is_told {
        return report.ok("bridges", "none is known to be silent or disconnected");
    }
    for alarm in &alarms {
        let (says, remedy) = words(alarm);
        match alarm.reason {
            AlarmReason::NoMessages => report.warn("bridges", says, remedy),
            _ => report.fail("bridges", says, remedy),
        }
    }
}

/// Reports the bots that claim rooms and are not believed, and returns whether there are any.
async fn look_at_claims(db: &Db, scene: &Scene<'_>, report: &mut Report) -> bool {
    let conflicts = match bridges::conflicts(db, MOST * MOST).await {
        Ok(conflicts) => conflicts,
        Err(error) => {
            report.fail("bridges", said(&error), "see the line about the store");
            return true;
        }
    };
    let mut rooms = BTreeMap::<&UserId, usize>::new();
    for conflict in &conflicts {
        let is_configured = scene.config.bridges.iter().any(|bridge| bridge.bot == conflict.bot);
        // Of a room that has its bridge another one's claim takes nothing.
        if conflict.believed.is_none() && !is_configured {
            *rooms.entry(&conflict.bot).or_default() += 1;
        }
    }
    for (bot, count) in rooms.iter().take(usize::try_from(MOST).unwrap_or(usize::MAX)) {
        let ghosts = naming::ghosts_of(bot, []).is_empty().then(|| naming::unknown_ghosts(bot));
        let says =
            format!("{count} rooms are said to be {bot}'s, which is not believed, so they are no bridge's");
        let line = naming::settings_line(bot, ghosts.as_ref(), None);
        report.warn("bridges", says, format!("if it is a bridge of yours, add to the settings: {line}"));
    }
    !rooms.is_empty()
}

fn words(alarm: &Alarm) -> (String, String) {
    let Alarm { reason, network, bot, room_id, login, status, since, .. } = alarm;
    let network = network.as_deref().unwrap_or("its network");
    let bot = bot.as_ref().map_or("the bridge's bot", |bot| bot.as_str());
    match reason {
        AlarmReason::NoMessages => (
            format!("nothing of {network} has come since {since}, which is longer than usual"),
            "look whether its bridge runs and is logged in; docs/bridges.md tells how silence is measured"
                .to_owned(),
        ),
        AlarmReason::NoTransactions => (
            format!(
                "the homeserver has pushed nothing since {since}, while keys or messages come by other ways"
            ),
            "see the line about the ping: the homeserver does not reach coucou, or has another registration"
                .to_owned(),
        ),
        AlarmReason::BotLeft => {
            let room = room_id.as_ref().map_or("a room", |room_id| room_id.as_str());
            let says =
                format!("{bot} is no longer in {room} since {since}, so nothing of {network} comes in it");
            (
                says,
                format!("invite {bot} back, have the bridge make the conversation anew, or leave the room"),
            )
        }
        AlarmReason::LoginLost => {
            let (login, status) = (login.as_deref().unwrap_or(""), status.as_deref().unwrap_or("no state"));
            (
                format!(
                    "{bot} says that its login {login} to {network} does not work since {since}: {status}"
                ),
                format!("log in again with {bot}; coucou notices by itself that it works"),
            )
        }
        AlarmReason::MessagesHeld => {
            let users = alarm.held_users().map_or("somebody".to_owned(), |users| users.to_string());
            let line = alarm.settings_line().unwrap_or_default();
            (
                format!(
                    "messages of {network} are held since {since}: {bot} says them for {users}, and nothing tells that \
                     it may"
                ),
                format!("if it may, add to the settings: {line}"),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn every_alarm_says_what_it_is_about_and_what_to_do() {
        for reason in AlarmReason::ALL {
            let alarm = Alarm {
                reason,
                subject: "@instagrambot:localhost @ig_*:localhost".to_owned(),
                network: Some("instagram".to_owned()),
                room_id: Some(ruma::owned_room_id!("!portal")),
                bot: Some(ruma::owned_user_id!("@instagrambot:localhost")),
                login: Some("1784".to_owned()),
                status: Some("BAD_CREDENTIALS".to_owned()),
                error: None,
                since: Timestamp(1_795_300_000_000),
                told_at: Timestamp(1_795_300_000_000),
                message_id: String::new(),
                ended_at: None,
            };
            let (says, remedy) = words(&alarm);
            assert!(says.contains("2026-11-21T") && !remedy.is_empty(), "{says}");
            let named = match reason {
                AlarmReason::NoMessages => "instagram",
                AlarmReason::NoTransactions => "pushed nothing",
                AlarmReason::BotLeft => "!portal",
                AlarmReason::LoginLost => "1784 to instagram does not work",
                AlarmReason::MessagesHeld => "for @ig_*:localhost",
            };
            assert!(says.contains(named), "{says}");
        }
    }
}
