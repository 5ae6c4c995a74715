//! The homeserver: reached, known to us and knowing us, on time, and able to reach us.

use std::time::Duration;

use ruma::{OwnedUserId, TransactionId};

use super::{
    super::outage,
    Report, Scene,
    door::{Door, StandIn},
    said,
};
use crate::{
    clock::Timestamp,
    homeserver::{Greeting, HomeserverError},
    http::stand_in::Heard,
};

/// Clocks this far apart are told of; webhooks' receivers refuse what was signed five minutes ago or ahead.
const SKEW: Duration = Duration::from_secs(30);
const MOST_SKEW: Duration = Duration::from_mins(4);

/// How long a ping may take from the homeserver's answer to our hearing of it.
const ECHO: Duration = Duration::from_secs(2);

const URL: &str = "correct homeserver.url (COUCOU_HOMESERVER_URL): the address at which clients reach the homeserver, \
                   such as https://matrix.example.org";
const REGISTRATION: &str = "the homeserver's administrator must list coucou's registration file in \
                            app_service_config_files and restart the homeserver; both sides need the same file \
                            (appservice.registration, COUCOU_APPSERVICE_REGISTRATION)";
const NAMESPACE: &str = "make a registration whose namespaces.users has this user (`coucou registration`, with \
                         --owner for the owner), and give it to the homeserver's administrator";
const HS_TOKEN: &str = "hs_token must be the same in the registration that the homeserver reads and in coucou's \
                        (appservice.registration, or COUCOU_APPSERVICE_HS_TOKEN); restart the homeserver after a \
                        change of its file";

/// Looks at the homeserver; answers whether there is one that knows us, so that more can be asked of it.
pub(super) async fn look(scene: &mut Scene<'_>, report: &mut Report) -> bool {
    let url = &scene.config.homeserver.url;
    let asked_at = scene.clock.now();
    let greeting = match scene.homeserver.greet().await {
        Ok(greeting) => greeting,
        Err(error @ HomeserverError::Unreachable(_)) => {
            let remedy = format!("start the homeserver if it is down; else {URL}");
            report.fail("homeserver", format!("{url}: {}", said(&error)), remedy);
            return false;
        }
        Err(error) if error.is_transient() => {
            let remedy = "start the homeserver, or whatever stands before it";
            report.fail("homeserver", format!("{url}: {}", said(&error)), remedy);
            return false;
        }
        Err(error) => {
            report.fail("homeserver", format!("{url} is no Matrix homeserver: {}", said(&error)), URL);
            return false;
        }
    };
    let newest = greeting.versions.last().map_or("no version", String::as_str);
    let server = greeting.server.as_deref().unwrap_or("a homeserver");
    report.ok("homeserver", format!("{server} at {url} speaks Matrix up to {newest}"));
    clock(&greeting, asked_at, scene.clock.now(), report);
    match scene.homeserver.whoami().await {
        Ok(sender) => report.ok("as_token", format!("the homeserver knows coucou as {sender}")),
        Err(error) => {
            let unknown = error.errcode() == Some("M_UNKNOWN_TOKEN");
            let remedy = if unknown { REGISTRATION } else { "look into the homeserver's log" };
            report.fail("as_token", said(&error), remedy);
            return false;
        }
    }
    if scene.bot.is_none()
        && let Ok(sender) = scene.homeserver.whoami().await
    {
        scene.bot = scene.config.appservice.bot_user_id(Some(sender.server_name()));
    }
    let owner = scene.config.owner.as_ref().map(|owner| owner.user_id.clone());
    let mut acts = true;
    for (check, user_id) in [("bot", scene.bot.clone()), ("owner", owner)] {
        let Some(user_id) = user_id else { continue };
        acts &= user(scene, check, &user_id, report).await;
    }
    acts
}

/// How far the clocks are apart, as far as a date to the second tells.
fn clock(greeting: &Greeting, before: Timestamp, after: Timestamp, report: &mut Report) {
    let Some(there) = greeting.date else { return };
    // The date was read between the two, and it is cut to the second.
    let ahead = before.since(there.plus(Duration::from_secs(1)));
    let behind = there.since(after);
    let (skew, word) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    if skew < SKEW {
        report.ok("clock", "this machine's clock and the homeserver's agree");
        return;
    }
    let says = format!("this machine's clock is {} s {word} the homeserver's", skew.as_secs());
    let remedy = "set the clock that is wrong by NTP (on most systems `timedatectl set-ntp true`): receivers refuse \
                  webhooks whose signature is more than five minutes old or ahead";
    if skew < MOST_SKEW { report.warn("clock", says, remedy) } else { report.fail("clock", says, remedy) }
}

/// Whether we may act as a user.
async fn user(scene: &Scene<'_>, check: &'static str, user_id: &OwnedUserId, report: &mut Report) -> bool {
    match scene.homeserver.acts_as(user_id).await {
        Ok(()) => report.ok(check, format!("coucou may act as {user_id}")),
        Err(HomeserverError::Status { message, .. }) if message.contains("not registered") => {
            let remedy = if check == "bot" {
                "`coucou init` or `coucou serve` registers it"
            } else {
                "correct owner (COUCOU_OWNER): the whole id of a user who is there"
            };
            let says = format!("{user_id} is not registered on the homeserver yet");
            if check == "bot" {
                report.warn(check, says, remedy);
            } else {
                report.fail(check, says, remedy);
            }
            return false;
        }
        Err(error) => {
            let remedy = if error.is_transient() { "try again" } else { NAMESPACE };
            report.fail(check, format!("coucou may not act as {user_id}: {}", said(&error)), remedy);
            return false;
        }
    }
    true
}

/// Has the homeserver ping coucou, or us in its place; answers whether it can push to us, as far as that is known.
pub(super) async fn ping(scene: &Scene<'_>, door: &mut Door, report: &mut Report) -> bool {
    let Some(id) = &scene.config.appservice.id else {
        let says = "the registration's id is not known, so the homeserver cannot be asked for a ping";
        let remedy = "set appservice.id (COUCOU_APPSERVICE_ID), or give coucou the registration file";
        report.warn("ping", says, remedy);
        return true;
    };
    let pinged = ask_for_ping(scene, id).await;
    let heard = match door {
        Door::StandIn(stand_in) => {
            // Nothing to wait for when the ping failed: what was heard is there.
            listen(stand_in, if pinged.is_ok() { ECHO } else { Duration::from_millis(50) }).await
        }
        Door::Serves | Door::Closed => Some(Heard::Ping),
    };
    let Err(error) = pinged else {
        if heard == Some(Heard::Ping) {
            report.ok("ping", "the homeserver reaches coucou, with the right hs_token");
            return true;
        }
        if scene.is_led {
            report.ok("ping", "the homeserver reaches the coucou that runs elsewhere");
            return true;
        }
        let says =
            "the homeserver's ping was answered, but not here: something else is at the registration's url";
        let remedy = "run this check where that one runs, or correct url in the registration";
        report.warn("ping", says, remedy);
        return false;
    };
    let refused = matches!(&error, HomeserverError::Status { errcode, message, .. }
        if errcode == "M_BAD_STATUS" && ["401", "403"].iter().any(|status| message.contains(status)));
    if refused || heard == Some(Heard::WrongToken) {
        report.fail("ping", "the homeserver reaches coucou with another hs_token than coucou has", HS_TOKEN);
        return false;
    }
    let says = format!("the homeserver does not reach coucou: {}", said(&error));
    if matches!(error.errcode(), Some("M_UNRECOGNIZED" | "M_NOT_FOUND")) {
        report.warn("ping", says, outage::advice(&error));
        return true;
    }
    report.fail("ping", says, outage::advice(&error));
    false
}

/// Asks for a ping; once more when the homeserver had no connection, which a busy Synapse says now and then of one that
/// there is.
async fn ask_for_ping(scene: &Scene<'_>, id: &str) -> Result<(), HomeserverError> {
    let ask = async || scene.homeserver.ping(id, TransactionId::new().as_str()).await;
    match ask().await {
        Err(error) if error.errcode() == Some("M_CONNECTION_FAILED") => ask().await,
        pinged => pinged,
    }
}

/// Waits for the ping; answers it, or that somebody came with a wrong token.
async fn listen(stand_in: &mut StandIn, patience: Duration) -> Option<Heard> {
    let mut heard = None;
    loop {
        match stand_in.hear(patience).await {
            Some(Heard::Ping) => return Some(Heard::Ping),
            Some(Heard::WrongToken) => heard = Some(Heard::WrongToken),
            Some(Heard::Pushed { .. }) => {}
            None => return heard,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Status, *};

    #[test]
    fn clocks_are_compared_to_the_second() {
        let now = Timestamp(1_760_000_000_500);
        for (there, status, word) in [
            (now, Status::Ok, "agree"),
            (now.plus(Duration::from_secs(20)), Status::Ok, "agree"),
            (now.plus(Duration::from_mins(1)), Status::Warn, "60 s behind"),
            (now.minus(Duration::from_secs(61)), Status::Warn, "60 s ahead of"),
            (now.minus(Duration::from_hours(1)), Status::Fail, "ahead of"),
            (now.plus(Duration::from_hours(1)), Status::Fail, "3600 s behind"),
        ] {
            let mut report = Report::default();
            let greeting = Greeting { date: Some(there), ..Greeting::default() };
            clock(&greeting, now, now, &mut report);
            assert_eq!(report.worst(), status, "{there}");
            assert!(report.findings[0].says.contains(word), "{:?}", report.findings);
        }
    }
}
