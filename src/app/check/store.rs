//! The store: reached, prepared, unlocked, and who works on it.

use super::{Report, Scene, said};
use crate::store::{Location, Looked, Store, StoreError, accounts, inbox, stats};

/// How long what came in may wait before that is worth a word.
const WAITED: std::time::Duration = std::time::Duration::from_mins(2);

/// Looks at the store, and keeps it in the scene when it can be read.
pub(super) async fn look(scene: &mut Scene<'_>, report: &mut Report) {
    let settings = &scene.config.store;
    if let Location::Sqlite { path } = &settings.location
        && !path.exists()
    {
        let says = format!("{}: the file is not there yet", settings.chosen_because);
        report.warn("store", says, "`coucou init` or `coucou serve` makes it");
        return;
    }
    if let Some(fallback) = settings.fallback.as_ref().filter(|fallback| fallback.file.exists()) {
        let says =
            format!("{} is there: coucou runs on it, or it waits to be merged", fallback.file.display());
        let remedy =
            "start coucou while PostgreSQL can be reached, with the store.pickle_key of then: it merges it";
        report.warn("fallback", says, remedy);
    }
    let opened = Store::open(&settings.location, settings.pickle_key.clone());
    let looked = match &opened {
        Ok(store) => store.look().await,
        Err(_) => Err(StoreError::BadUrl),
    };
    let (Ok(store), looked) = (opened, looked) else { return bad(scene, &StoreError::BadUrl, report) };
    match looked {
        Ok(Looked::Ready) => {
            if let Err(error) = read(scene, &store, report).await {
                bad(scene, &error, report);
            }
            scene.store = Some(store);
            return;
        }
        Ok(Looked::Empty) => {
            let says = format!("{}: it is empty", settings.chosen_because);
            report.warn("store", says, "`coucou init` or `coucou serve` sets it up");
        }
        Ok(Looked::Behind(missing)) => {
            let says = format!("{}: the schema lacks {}", settings.chosen_because, missing.join(", "));
            report.warn("store", says, "`coucou migrate` or the next start of `coucou serve` applies that");
        }
        Err(error) => bad(scene, &error, report),
    }
    store.close().await;
}

fn bad(scene: &Scene<'_>, error: &StoreError, report: &mut Report) {
    let chosen = &scene.config.store.chosen_because;
    let remedy = match error {
        StoreError::WrongPickleKey => {
            "set store.pickle_key (COUCOU_STORE_PICKLE_KEY) to the key that the store was made with; when that is \
             lost, `coucou restore` brings the bot back into an empty store"
        }
        StoreError::Encryption(..) => {
            "correct that part of store.url (COUCOU_STORE_URL), or have the server's certificate renewed"
        }
        StoreError::Unavailable(_) => {
            "start the database, or correct store.url (COUCOU_STORE_URL); coucou takes nothing meanwhile, and goes \
             on by itself when the database is back"
        }
        _ => "correct store.url (COUCOU_STORE_URL), or bring the database back from a backup",
    };
    report.fail("store", format!("{chosen}: {}", said(error)), remedy);
}

/// Reports how many of the pool's connections the server gives.
fn connections(given: Option<u32>, pool_size: u32, report: &mut Report) {
    let Some(given) = given else { return };
    let says = format!("the database gives {given} connections of the {pool_size} of store.pool_size");
    if given >= pool_size {
        report.ok("connections", says);
    } else {
        let remedy = "lower store.pool_size (COUCOU_STORE_POOL_SIZE), or raise the limit of the role, the database or \
                      the server; coucou works with fewer meanwhile, down to two";
        report.warn("connections", says, remedy);
    }
}

async fn read(scene: &mut Scene<'_>, store: &Store, report: &mut Report) -> Result<(), StoreError> {
    let db = store.db();
    let now = scene.clock.now();
    scene.accounts = accounts::all(db).await?;
    let keys = stats::keys(db).await?;
    let chosen = &scene.config.store.chosen_because;
    let says =
        format!("{chosen}: up to date, unlocked, {} room keys of {} rooms", keys.count, keys.room_count);
    report.ok("store", says);
    if let Location::Postgres { pool_size, .. } = scene.config.store.location {
        connections(db.given_connections(pool_size).await?, pool_size, report);
    }
    let holder = stats::holder(db).await?;
    scene.is_led = holder.as_ref().is_some_and(|holder| holder.until >= now);
    match holder {
        Some(holder) if scene.is_led => {
            report.ok("lease", format!("process {} works the crypto", holder.holder));
        }
        _ => report.warn("lease", "no process works the crypto", "start `coucou serve`"),
    }
    let depth = inbox::depth(db).await?;
    let waited = depth.oldest_at.map(|at| now.since(at)).unwrap_or_default();
    let says = format!("{} rows wait, the oldest for {} s", depth.count, waited.as_secs());
    if waited < WAITED {
        report.ok("inbox", says);
    } else if scene.is_led {
        report.fail("inbox", says, "look into the log of `coucou serve` for what stops it");
    } else {
        report.warn("inbox", says, "start `coucou serve`: it works them through");
    }
    Ok(())
}
