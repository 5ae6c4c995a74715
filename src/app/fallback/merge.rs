//! What the fallback took goes into PostgreSQL.
//!
//! First what came in is worked through where it is, since only the fallback's devices can read what was encrypted for
//! them. Then room keys, messages with their deliveries, events that wait and transactions that nobody read are written
//! into PostgreSQL, page by page, under the crypto lease and before the term's own work begins. Each page can be written
//! again without a change, so a process that dies amid it begins anew at the next start. At the end the devices are
//! removed from the homeserver and the file gets another name.
//!
//! A file that cannot be read holds nobody up: it stays, and is tried again at the next term.

use std::{collections::BTreeSet, error::Error, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{Lock, put_aside};
use crate::{
    app::{Shared, fallback::StandIn, keys::CRYPTO, term::Term},
    config::Fallback,
    crypto::{
        CryptoError,
        merge::{self, MergeError, Merged},
        store::AccountStore,
    },
    inbox::worker::Wakes,
    messages,
    model::{Account, Flow, Role, Route},
    store::{
        Lease, Location, Store, StoreError, Tx, accounts,
        fallback::{self as carry, Carried, Webhooks},
        leases, messages as stored, redacted, redactions, webhooks,
    },
};

/// Rows carried over at once.
const PAGE: i64 = 100;

/// Transactions carried over at once, of up to 32 MiB each.
const BODIES: i64 = 2;

/// How long a lease of the file lasts. Nobody renews or claims it: the lock keeps others away.
const LASTS: Duration = Duration::from_secs(10);

/// How long the homeserver may take to remove a device.
const PATIENCE: Duration = Duration::from_secs(10);

/// What there was to merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::app) enum Merge {
    /// Nothing, or it is done, or it cannot be done.
    Done,
    /// A file that a process still writes to.
    InUse,
}

/// What was carried over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) keys: Merged,
    pub(super) messages: usize,
    pub(super) to_deliver: usize,
    pub(super) waiting: usize,
    pub(super) transactions: usize,
}

fn from(error: impl Into<CryptoError>) -> MergeError {
    MergeError::From(error.into())
}

fn into(error: impl Into<CryptoError>) -> MergeError {
    MergeError::Into(error.into())
}

/// Merges the fallback's file, if there is one. Before the engines are loaded and the worker begins.
///
/// # Errors
/// When PostgreSQL fails or the lease is lost.
pub(in crate::app) async fn merge(
    shared: &Shared,
    lease: &Lease,
    routes: &[Route],
    accounts: &[Account],
) -> Result<Merge, CryptoError> {
    let Some(Fallback { file, .. }) = &shared.config.store.fallback else { return Ok(Merge::Done) };
    if shared.stand_in.is_some() || !file.exists() {
        return Ok(Merge::Done);
    }
    let lock = match Lock::take(file) {
        Ok(Some(lock)) => lock,
        Ok(None) => {
            tracing::warn!(file = %file.display(), "another process still uses the fallback: it is merged later");
            return Ok(Merge::InUse);
        }
        Err(error) => {
            tracing::error!(
                error = &error as &dyn Error,
                file = %file.display(),
                "the fallback cannot be merged, as its file cannot be locked: make its folder writable"
            );
            return Ok(Merge::Done);
        }
    };
    if !file.exists() {
        return Ok(Merge::Done);
    }
    tracing::info!(file = %file.display(), "PostgreSQL is back: merging the fallback into it");
    let there =
        Store::open(&Location::Sqlite { path: file.clone() }, shared.config.store.pickle_key.clone())?;
    let merging = Merging { shared, lease, routes, accounts, there: there.clone() };
    let stand_in = StandIn { reason: String::new(), file: file.clone(), _lock: lock };
    let merged = Box::pin(merging.run(Arc::new(stand_in))).await;
    there.close().await;
    match merged {
        Ok(counts) => {
            let aside = put_aside(file, shared.clock.now());
            let to = aside.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
            let Counts { keys, messages, to_deliver, waiting, transactions } = counts;
            tracing::info!(
                keys.new,
                keys.better,
                messages,
                to_deliver,
                waiting,
                transactions,
                aside = to,
                "the fallback is merged"
            );
            if let Err(error) = aside {
                tracing::error!(
                    error = &error as &dyn Error,
                    "the merged fallback cannot be renamed: move it away, or it is merged again, which is harmless"
                );
            }
            shared.wakes.outbox.notify_one();
            Ok(Merge::Done)
        }
        Err(MergeError::Into(error)) => Err(error),
        Err(MergeError::From(error)) => {
            tracing::error!(
                error = &error as &dyn Error,
                file = %file.display(),
                "the fallback cannot be merged: correct that (it is sealed with the store.pickle_key of then) and \
                 restart, or move the file away"
            );
            Ok(Merge::Done)
        }
    }
}

/// One merge.
pub(super) struct Merging<'a> {
    pub(super) shared: &'a Shared,
    pub(super) lease: &'a Lease,
    pub(super) routes: &'a [Route],
    pub(super) accounts: &'a [Account],
    /// The fallback's store.
    pub(super) there: Store,
}

impl Merging<'_> {
    async fn run(&self, stand_in: Arc<StandIn>) -> Result<Counts, MergeError> {
        self.there.prepare(self.shared.clock.now()).await.map_err(from)?;
        let lease = self.claim_there().await.map_err(from)?;
        let routes = self.routes_there().await.map_err(from)?;
        let shared = Shared {
            store: self.there.clone(),
            wakes: Wakes::default(),
            signers: Arc::default(),
            stand_in: Some(stand_in),
            ..self.shared.clone()
        };
        if let Err(error) = Term::new(shared, routes, lease, false).work_through().await {
            // What nobody reads here is read by PostgreSQL's devices, as far as they can.
            tracing::warn!(error = &error as &dyn Error, "not all that the fallback took is worked through");
        }
        let counts = self.carry().await?;
        self.remove_devices().await.map_err(from)?;
        Ok(counts)
    }

    async fn claim_there(&self) -> Result<Lease, StoreError> {
        let mut tx = self.there.begin().await?;
        // Its last holder is gone, whatever it claimed: this process has the lock.
        let then = self.shared.clock.now().plus(Duration::from_mins(1));
        let lease = leases::claim(&mut tx, CRYPTO, "merge", then, LASTS).await?;
        tx.commit().await?;
        lease.ok_or(StoreError::LeaseLost)
    }

    /// The webhooks of the settings with their numbers in the fallback.
    async fn routes_there(&self) -> Result<Vec<Route>, StoreError> {
        let mut tx = self.there.begin().await?;
        let mut routes = Vec::new();
        for (webhook, route) in self.shared.config.webhooks.iter().zip(self.routes) {
            let webhook_id = webhooks::ensure(&mut tx, &webhook.name, self.shared.clock.now()).await?;
            routes.push(Route { webhook_id, ..route.clone() });
        }
        tx.commit().await?;
        Ok(routes)
    }

    /// Carries everything over. Doing it again changes nothing.
    pub(super) async fn carry(&self) -> Result<Counts, MergeError> {
        let keys = self.carry_keys().await?;
        self.carry_indexes().await?;
        let (messages, to_deliver) = self.carry_messages().await?;
        let waiting = self.carry_waiting().await?;
        self.carry_redacted().await?;
        let transactions = self.carry_transactions().await?;
        Ok(Counts { keys, messages, to_deliver, waiting, transactions })
    }

    /// A transaction of PostgreSQL, which fails unless the lease is still held.
    async fn begin(&self) -> Result<Tx, MergeError> {
        let mut tx = self.shared.store.begin().await.map_err(into)?;
        leases::check(&mut tx, self.lease).await.map_err(into)?;
        Ok(tx)
    }

    async fn carry_keys(&self) -> Result<Merged, MergeError> {
        let mut merged = Merged::default();
        for account in accounts::all(self.there.db()).await.map_err(from)? {
            let same = self.accounts.iter().find(|known| known.user_id == account.user_id);
            let bot = || self.accounts.iter().find(|known| known.role == Role::Bot);
            // Any account's key will do.
            let Some(known) = same.or_else(bot) else { continue };
            let clock = || Arc::clone(&self.shared.clock);
            let there = AccountStore::new(self.there.clone(), account.id, None, clock());
            let here =
                AccountStore::new(self.shared.store.clone(), known.id, Some(self.lease.clone()), clock());
            merged += merge::room_keys(&there, &here).await?;
        }
        Ok(merged)
    }

    async fn carry_indexes(&self) -> Result<(), MergeError> {
        let mut after = (String::new(), String::new(), -1);
        loop {
            let used = carry::used_indexes(self.there.db(), &after, PAGE).await.map_err(from)?;
            let Some((last, _)) = used.last() else { return Ok(()) };
            after = last.clone();
            let mut tx = self.begin().await?;
            stored::use_indexes(&mut tx, &used, self.shared.clock.now()).await.map_err(into)?;
            tx.commit().await.map_err(into)?;
        }
    }

    /// Answers how many messages there were, and how many deliveries of them are still to be made.
    async fn carry_messages(&self) -> Result<(usize, usize), MergeError> {
        let (mut count, mut to_deliver) = (0, 0);
        let (mut after, store) = (0, &self.shared.store);
        loop {
            let seal = self.there.seal().map_err(from)?;
            let mut page = carry::messages(self.there.db(), seal, after, PAGE).await.map_err(from)?;
            let Some(last) = page.last() else { return Ok((count, to_deliver)) };
            after = last.position;
            let ids: Vec<_> = page.iter().map(|carried| carried.message.message_id.as_str()).collect();
            let known = stored::known(store.db(), &ids).await.map_err(into)?;
            page.retain(|carried| !known.contains(carried.message.message_id.as_str()));
            self.put_messages(&mut page).await?;
            count += page.len();
            let deliveries = page.iter().flat_map(|carried| &carried.deliveries);
            to_deliver += deliveries.filter(|delivery| delivery.state == "pending").count();
        }
    }

    async fn put_messages(&self, page: &mut [Carried]) -> Result<(), MergeError> {
        let now = self.shared.clock.now();
        let mut tx = self.begin().await?;
        carry::number(&mut tx, page, now).await.map_err(into)?;
        for carried in page.iter_mut().filter(|carried| !carried.was_sent()) {
            // What a webhook may have seen stays as it is: a repeat has the same body.
            let message = &mut carried.message;
            if let Some(payload) = messages::renumbered(&message.payload, message.sequence) {
                message.payload = payload;
            }
        }
        let webhooks = self.webhooks(&mut tx, page).await.map_err(into)?;
        let seal = self.shared.store.seal().map_err(into)?;
        carry::put_messages(&mut tx, seal, page, &webhooks, now).await.map_err(into)?;
        let edits = page.iter().filter(|carried| carried.message.replaces.is_some());
        let edits: Vec<_> = edits.map(|carried| carried.message.message_id.as_str()).collect();
        redactions::apply_to_edits(&mut tx, seal, &edits, messages::redacted, now).await.map_err(into)?;
        let targets = page.iter().filter_map(|carried| messages::target(&carried.message.payload));
        let targets: Vec<redactions::Target> = targets.collect();
        redactions::apply(&mut tx, seal, &targets, messages::redacted, now).await.map_err(into)?;
        tx.commit().await.map_err(into)
    }

    /// The webhooks of these messages' deliveries, by name; one that is in the settings no more waits as it did.
    async fn webhooks(&self, tx: &mut Tx, page: &[Carried]) -> Result<Webhooks, StoreError> {
        let configured = self.shared.config.webhooks.iter().zip(self.routes);
        let mut found: Webhooks = configured
            .map(|(webhook, route)| (webhook.name.clone(), (route.webhook_id, route.flow)))
            .collect();
        let named = page.iter().flat_map(|carried| &carried.deliveries).map(|delivery| &*delivery.webhook);
        let other: BTreeSet<&str> = named.filter(|name| !found.contains_key(*name)).collect();
        for name in other {
            let id = webhooks::ensure(tx, name, self.shared.clock.now()).await?;
            found.insert(name.to_owned(), (id, Flow::default()));
        }
        Ok(found)
    }

    async fn carry_waiting(&self) -> Result<usize, MergeError> {
        let (mut after, mut count, store) = (0, 0, &self.shared.store);
        loop {
            let seal = self.there.seal().map_err(from)?;
            let mut page = carry::waiting(self.there.db(), seal, after, PAGE).await.map_err(from)?;
            let Some(last) = page.last() else { return Ok(count) };
            after = last.position;
            let ids: Vec<_> = page.iter().map(|event| event.event_id.as_str()).collect();
            let known = stored::known_events(store.db(), &ids).await.map_err(into)?;
            page.retain(|event| !known.contains(&event.event_id));
            count += page.len();
            let mut tx = self.begin().await?;
            carry::put_waiting(&mut tx, store.seal().map_err(into)?, &page).await.map_err(into)?;
            tx.commit().await.map_err(into)?;
        }
    }

    async fn carry_redacted(&self) -> Result<(), MergeError> {
        let mut after = (String::new(), String::new());
        loop {
            let page = carry::taken_back(self.there.db(), &after, PAGE).await.map_err(from)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.clone();
            let mut tx = self.begin().await?;
            redacted::put(&mut tx, &page, self.shared.clock.now()).await.map_err(into)?;
            tx.commit().await.map_err(into)?;
        }
    }

    async fn carry_transactions(&self) -> Result<usize, MergeError> {
        let (mut after, mut count) = (0, 0);
        loop {
            let seal = self.there.seal().map_err(from)?;
            let page = carry::transactions(self.there.db(), seal, after, BODIES).await.map_err(from)?;
            let Some(last) = page.last() else { return Ok(count) };
            after = last.inbox_id;
            count += page.len();
            let mut tx = self.begin().await?;
            let seal = self.shared.store.seal().map_err(into)?;
            carry::put_transactions(&mut tx, seal, &page).await.map_err(into)?;
            tx.commit().await.map_err(into)?;
        }
    }

    /// Removes the fallback's devices from the homeserver, so that nobody encrypts for them any more.
    async fn remove_devices(&self) -> Result<(), StoreError> {
        for account in accounts::all(self.there.db()).await? {
            let Account { user_id, device_id, .. } = &account;
            if self.accounts.iter().any(|known| known.device_id == *device_id) {
                continue;
            }
            match timeout(PATIENCE, self.shared.homeserver.delete_device(user_id, device_id)).await {
                Ok(Ok(())) => {
                    tracing::info!(account.user_id = %user_id, account.device_id = %device_id,
                        "removed the fallback's device");
                }
                refused => {
                    let reason = refused.map_or_else(
                        |_| "no answer in time".to_owned(),
                        |refused| refused.err().map(|error| error.to_string()).unwrap_or_default(),
                    );
                    tracing::warn!(reason, account.user_id = %user_id, account.device_id = %device_id,
                        "the fallback's device stays on the homeserver: log it out there");
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
