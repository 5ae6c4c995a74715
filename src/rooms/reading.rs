//! Reading rooms page by page: from where an account came in, or from where a comparison found too much missing.
//!
//! Every page goes through the inbox, in the transaction that keeps where the next one begins, so a process that dies
//! anywhere goes on where it was. Meanwhile the worker holds the room alone back: what is pushed of it waits behind what is
//! read. A reading ends with the event that was the newest when it began, because what comes later is pushed.

use std::error::Error;

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Errands, HISTORY_SINCE, RoomsError, missed};
use crate::{
    clock::Timestamp,
    homeserver::{Direction, HomeserverError, Page},
    metrics::metrics,
    model::{Account, AccountId},
    store::{
        Seal, StoreError, Tx, accounts, crypto, inbox, leases,
        readings::{self, Cause, Reading},
        rooms::DueRoom,
    },
};

/// The most events of a page.
const MAX_EVENTS: usize = 100;

/// How often a page that cannot be read, or that the homeserver fails over, is asked for before the room goes on without:
/// some minutes, or more than an hour. A homeserver that is away is waited for.
const MAX_MALFORMED: i64 = 8;
const MAX_FAILURES: i64 = 20;

/// Events of one room that are read back after a restore, about.
const MAX_HISTORY: usize = 5_000;

/// Where the reading of a room begins, as its state goes through the inbox with it.
#[derive(Debug, Serialize)]
pub(super) struct Begin {
    account_id: i64,
    from: Option<String>,
    join_id: Option<String>,
}

/// A part of a reading, as a transaction's body with a word about itself.
#[derive(Serialize)]
struct Body<'a> {
    events: &'a [missed::Event],
    reading: Part<'a>,
}

#[derive(Default, Serialize)]
struct Part<'a> {
    room_id: &'a str,
    begins: bool,
    before_join: bool,
    ends: bool,
}

/// Suspends a room that is to be read, before anything else of it is worked through.
///
/// # Errors
/// When the database fails.
pub(super) async fn begin(
    tx: &mut Tx,
    seal: &Seal,
    reading: &Reading,
    now: Timestamp,
) -> Result<(), StoreError> {
    let part = Part { room_id: reading.room_id.as_str(), begins: true, ..Part::default() };
    readings::put(tx, reading, now).await?;
    accept(tx, seal, &[], part, now).await
}

async fn accept(
    tx: &mut Tx,
    seal: &Seal,
    events: &[missed::Event],
    part: Part<'_>,
    now: Timestamp,
) -> Result<(), StoreError> {
    // Maps of raw values are always JSON.
    let body = serde_json::to_vec(&Body { events, reading: part }).unwrap_or_default();
    inbox::accept_missed(tx, inbox::seal_body(seal, &body)?, now).await
}

impl Errands {
    /// Returns where the reading of a room begins that accounts have joined since coucou has its devices there: right behind
    /// the first invite. No one shared a key with them before. `None` when there is nothing to read.
    pub(super) async fn beginning(
        &self,
        room: &DueRoom,
        state: &[Box<RawValue>],
    ) -> Result<Option<Begin>, RoomsError> {
        let mut first: Option<(i64, Begin)> = None;
        for account in self.accounts.iter().filter(|_| !room.is_relayed) {
            let found = match self.beginning_of(account, room, state).await {
                Err(RoomsError::Homeserver(error)) if !error.is_transient() => {
                    tracing::warn!(room.id = %room.room_id, account.user_id = %account.user_id,
                        error = &error as &dyn Error, "what was said before a join cannot be read");
                    None
                }
                found => found?,
            };
            first = match (first, found) {
                (Some(first), Some(found)) if first.0 <= found.0 => Some(first),
                (first, found) => found.or(first),
            };
        }
        Ok(first.map(|(_, begin)| begin))
    }

    /// Returns the same for one account, with when it came in.
    async fn beginning_of(
        &self,
        account: &Account,
        room: &DueRoom,
        state: &[Box<RawValue>],
    ) -> Result<Option<(i64, Begin)>, RoomsError> {
        let Some(entry) = self.homeserver.entry(&account.user_id, &room.room_id, state).await? else {
            return Ok(None);
        };
        let account_id = account.id.0;
        if Timestamp(entry.joined_at) >= accounts::created_at(self.store.db(), account.id).await? {
            let begin = Begin { account_id, from: entry.from, join_id: Some(entry.join_id) };
            return Ok(Some((entry.entered_at, begin)));
        }
        // A room that the account was in before its store was lost is read as far back as the restore asked for.
        let Some(since) = self.history_since().await? else { return Ok(None) };
        let from = self.homeserver.place_at(&account.user_id, &room.room_id, since, MAX_HISTORY).await?;
        tracing::info!(room.id = %room.room_id, "reading back what was said before the restore");
        Ok(Some((since, Begin { account_id, from, join_id: None })))
    }

    async fn history_since(&self) -> Result<Option<i64>, RoomsError> {
        let Some(bot) = self.bot() else { return Ok(None) };
        let scope = crypto::Scope::new(self.store.seal()?, bot.id);
        let since = crypto::values::find_custom(self.store.db(), &scope, HISTORY_SINCE).await?;
        Ok(since.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()))
    }

    /// Reads the next page of a room.
    pub(super) async fn read_on(&self, mut reading: Reading) -> Result<(), RoomsError> {
        if let Some(until) = self.quiet_until() {
            return self.put_off_page(&reading, until, reading.tries).await;
        }
        let of_account = |id: AccountId| self.accounts.iter().find(|account| account.id == id);
        let Some(account) = of_account(reading.account_id) else { return self.give_up(&reading).await };
        match self.ask_for_page(account, &mut reading).await {
            Ok(page) => self.take_page(account, reading, page).await,
            Err(RoomsError::Homeserver(error @ HomeserverError::Status { status: 429, .. })) => {
                let until = self.keep_quiet(&error, reading.tries);
                self.put_off_page(&reading, until, reading.tries).await
            }
            Err(RoomsError::Homeserver(error)) => {
                let gave_up = match error {
                    HomeserverError::Status { status: 400 | 403 | 404, .. } => true,
                    HomeserverError::Status { .. } => reading.tries >= MAX_FAILURES,
                    HomeserverError::Malformed(_) => reading.tries >= MAX_MALFORMED,
                    _ => false,
                };
                tracing::warn!(room.id = %reading.room_id, error = &error as &dyn Error, gave_up,
                    "could not read a page of a room");
                if gave_up {
                    return self.give_up(&reading).await;
                }
                self.put_off_page(&reading, self.next_try(reading.tries), reading.tries + 1).await
            }
            Err(error) => Err(error),
        }
    }

    async fn ask_for_page(&self, account: &Account, reading: &mut Reading) -> Result<Page, RoomsError> {
        let (user_id, room_id) = (&account.user_id, &reading.room_id);
        if reading.until_id.is_none() {
            let until = self.homeserver.newest_event(user_id, room_id).await?.unwrap_or_default();
            let mut tx = self.store.begin().await?;
            leases::check(&mut tx, &self.lease).await?;
            readings::set_until(&mut tx, room_id, &until).await?;
            tx.commit().await?;
            reading.until_id = Some(until);
        }
        // An answer may be too large.
        let limit = (MAX_EVENTS >> reading.tries.clamp(0, 6)).max(1);
        let from = reading.from_token.as_deref();
        Ok(self.homeserver.messages(user_id, room_id, Direction::Forwards, from, limit).await?)
    }

    /// Hands a page to the inbox, and keeps where the next one begins.
    async fn take_page(&self, account: &Account, mut reading: Reading, page: Page) -> Result<(), RoomsError> {
        let room_id = reading.room_id.clone();
        let heads: Vec<_> =
            page.events.into_iter().filter_map(|event| Some((missed::Head::of(&event)?, event))).collect();
        let is = |head: &missed::Head, id: &Option<String>| id.as_deref() == Some(head.event_id.as_str());
        let ends = page.end.is_none() || heads.iter().any(|(head, _)| is(head, &reading.until_id));
        // Of a join that is not on the page, all of it was said before.
        let join = heads.iter().position(|(head, _)| is(head, &reading.join_id));
        let before_join = if reading.join_id.is_some() { join.unwrap_or(heads.len()) } else { 0 };
        let may_be_messages = || heads.iter().filter(|(head, _)| head.may_be_message());
        let ids: Vec<&str> = may_be_messages().map(|(head, _)| &*head.event_id).collect();
        let unknown = readings::unknown(self.store.db(), &room_id, &ids).await?;
        reading.read_count += i64::try_from(ids.len()).unwrap_or(0);
        reading.missing_count += i64::try_from(unknown.len()).unwrap_or(0);
        reading.from_token = page.end.clone().or(reading.from_token);
        if join.is_some() {
            reading.join_id = None;
        }
        let part = |from: usize, to: usize| -> Vec<missed::Event> {
            let part = heads[from..to].iter().filter(|(head, _)| head.may_be_message());
            part.filter_map(|(_, event)| missed::with_room(event, &room_id)).collect()
        };
        let (earlier, later) = (part(0, before_join), part(before_join, heads.len()));
        let (seal, now) = (self.store.seal()?, self.clock.now());
        let of_room = Part { room_id: room_id.as_str(), ..Part::default() };
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        if !earlier.is_empty() {
            let part = Part { before_join: true, ..of_room };
            accept(&mut tx, seal, &earlier, part, now).await?;
        }
        readings::advance(&mut tx, &reading, now).await?;
        if ends && !readings::finish(&mut tx, &room_id, reading.until_id.as_deref()).await? {
            // A comparison wants more to be read meanwhile: the page is asked for again.
            return Ok(());
        }
        accept(&mut tx, seal, &later, Part { ends, room_id: room_id.as_str(), ..Part::default() }, now)
            .await?;
        tx.commit().await?;
        self.inbox.notify_one();
        if ends {
            report(account, &reading);
        }
        Ok(())
    }

    /// Lets a room go on of which nothing more can be read.
    async fn give_up(&self, reading: &Reading) -> Result<(), RoomsError> {
        tracing::error!(room.id = %reading.room_id, cause = reading.cause.as_str(), read = reading.read_count,
            "a room cannot be read on; what was not pushed of it is not relayed (`coucou check --rooms --mend` tries again)");
        let (seal, now) = (self.store.seal()?, self.clock.now());
        let part = Part { room_id: reading.room_id.as_str(), ends: true, ..Part::default() };
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        let is_over = readings::finish(&mut tx, &reading.room_id, reading.until_id.as_deref()).await?;
        if is_over {
            accept(&mut tx, seal, &[], part, now).await?;
        }
        tx.commit().await?;
        self.inbox.notify_one();
        Ok(())
    }

    async fn put_off_page(&self, reading: &Reading, next: Timestamp, tries: i64) -> Result<(), RoomsError> {
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        readings::postpone(&mut tx, &reading.room_id, next, tries).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Counts and logs what a reading came to.
fn report(account: &Account, reading: &Reading) {
    let (room_id, user_id) = (&reading.room_id, &account.user_id);
    let (events, missing) = (reading.read_count, reading.missing_count);
    if reading.cause == Cause::Join {
        tracing::info!(room.id = %room_id, account.user_id = %user_id, events, missing, "read a room that was joined");
    } else if missing > 0 {
        tracing::warn!(room.id = %room_id, account.user_id = %user_id, events, missing,
            "events of a room were not pushed; they were read from its timeline");
    } else {
        tracing::info!(room.id = %room_id, account.user_id = %user_id, events, "read a room; nothing is missing");
    }
    count(reading.cause.as_str(), u64::try_from(missing).unwrap_or(0));
}

/// Counts what a comparison of one room found missing.
pub(super) fn count(found: &str, missing: u64) {
    if missing > 0 {
        metrics().reconciled_rooms.inc(&[found]);
        metrics().reconciled_events.add(&[found], missing);
    }
}
