//! `coucou check --rooms`: what rooms' timelines have, and coucou does not.

use std::collections::BTreeMap;

use super::{Report, Scene, said};
use crate::{
    rooms::{
        RoomsError,
        compare::{self, Compared},
    },
    store::rooms,
};

/// The most rooms that are named one by one.
const MAX_NAMED: usize = 20;

/// Compares all relayed rooms, and has what is missing read when it is to be mended.
pub(super) async fn compare(
    scene: &Scene<'_>,
    mend: bool,
    mut progress: impl FnMut(usize, usize),
    report: &mut Report,
) {
    let Some(store) = &scene.store else { return };
    let relayed = match rooms::relayed(store.db()).await {
        Ok(relayed) => relayed,
        Err(error) => return report.fail("timelines", said(&error), "see the line about the store"),
    };
    let accounts: BTreeMap<_, _> = scene.accounts.iter().map(|account| (account.id, account)).collect();
    let (count, mut events, mut lacking) = (relayed.len(), 0, 0);
    for (done, (room_id, account_id)) in relayed.into_iter().enumerate() {
        progress(done, count);
        let Some(account) = accounts.get(&account_id) else { continue };
        let compared = compare::compare(store, &scene.homeserver, account, &room_id, scene.clock.now()).await;
        let compared = match compared {
            Ok(compared) => compared,
            Err(error) => {
                let remedy = "try again; if it goes on, look into the homeserver's log";
                report.warn("timelines", format!("{room_id} cannot be compared: {}", said(&error)), remedy);
                continue;
            }
        };
        events += compared.events;
        if compared.missing.is_empty() {
            continue;
        }
        lacking += 1;
        let mended = if mend {
            compare::mend(store, &scene.homeserver, account, &compared, scene.clock.now()).await.map(Some)
        } else {
            Ok(None)
        };
        if lacking <= MAX_NAMED {
            name(&compared, mended, report);
        }
    }
    progress(count, count);
    if lacking > MAX_NAMED {
        let says = format!("{} further rooms lack events", lacking - MAX_NAMED);
        report.warn("timelines", says, "as above");
    }
    if lacking == 0 {
        report.ok(
            "timelines",
            format!("{count} rooms with {events} events of the last week: nothing is missing"),
        );
    }
}

/// Tells what a room lacks.
fn name(compared: &Compared, mended: Result<Option<bool>, RoomsError>, report: &mut Report) {
    let Compared { room_id, events, missing } = compared;
    let says = format!("{} of {events} events of {room_id} are missing", missing.len());
    match mended {
        Ok(None) => report.warn("timelines", says, "`coucou check --rooms --mend` has them read and relayed"),
        Ok(Some(true)) => {
            let remedy = "nothing: the coucou that works the crypto reads them now, or when it is started";
            report.warn("timelines", format!("{says}; they are read"), remedy);
        }
        Ok(Some(false)) => {
            report.warn("timelines", says, "they cannot be read: the homeserver does not say where they are");
        }
        Err(error) => {
            let says = format!("{says}, and cannot be read: {}", said(&error));
            report.warn("timelines", says, "try again; if it goes on, look into the homeserver's log");
        }
    }
}
