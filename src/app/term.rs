//! One term under the crypto lease: engines, worker, key lanes, errands.
//!
//! The engines are loaded from the store, so what waits in the inbox is worked through even while the
//! homeserver is away; only the very first start needs it. What wants the homeserver (devices, keys, rooms
//! joined meanwhile, the key lane's backlog) is tried once before the worker starts, and again until it
//! succeeds.

use std::{collections::BTreeSet, error::Error, sync::Arc, time::Duration};

use ruma::{OwnedServerName, OwnedUserId};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Shared, fallback, outage::Outages, recovery};
use crate::{
    clock::Timestamp,
    config::{OwnerMode, Relay},
    crypto::{Asker, CryptoError, Engine, KeyBundles, KeyLane, RecoveryError, keylane::backoff, setup},
    inbox::{Worker, WorkerParts, worker::Progress},
    model::{Account, Role, Route},
    rooms::{Errands, InvitePolicy, RoomsError, missed::Missed},
    store::{Lease, accounts, deadlines, leases, rooms},
};

/// How long the worker's start waits for the homeserver.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long it waits for the comparison of timelines.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// How often outgoing requests are looked for when nobody announces them.
const IDLE: Duration = Duration::from_secs(30);

/// How often all followed devices are asked for anew: homeservers lose news of device lists.
const REFRESH: Duration = Duration::from_hours(6);

/// A term of office.
pub(super) struct Term {
    shared: Shared,
    webhooks: Vec<Route>,
    lease: Lease,
    /// The last term failed in a way that may come from a row of the inbox.
    cautious: bool,
    /// Whose turn it is: the worker's, or that of who compares timelines with what the worker did.
    turn: Arc<Mutex<()>>,
}

/// What a term works with.
struct Office {
    engines: Vec<Engine>,
    lanes: Vec<KeyLane>,
}

impl From<RoomsError> for CryptoError {
    fn from(error: RoomsError) -> Self {
        match error {
            RoomsError::Store(error) => Self::Database(error),
            RoomsError::Homeserver(error) => Self::Homeserver(error),
        }
    }
}

impl Term {
    pub(super) fn new(shared: Shared, webhooks: Vec<Route>, lease: Lease, cautious: bool) -> Self {
        Self { shared, webhooks, lease, cautious, turn: Arc::default() }
    }

    /// Does what comes before the work, and fails where [`Term::run`] would wait: accounts, devices, keys, identities,
    /// and the bot's key backup.
    pub(super) async fn establish(&self) -> Result<Vec<Engine>, RecoveryError> {
        let accounts = match self.stored_accounts().await? {
            Some(accounts) => accounts,
            None => self.make_accounts().await?,
        };
        let engines = self.open(&accounts).await?.engines;
        recovery::bring_back(&self.shared, &engines).await?;
        self.publish(&engines).await?;
        let (shared, lease) = (self.shared.clone(), self.lease.clone());
        recovery::Recovery::new(shared, lease, engines.clone()).ensure().await?;
        Ok(engines)
    }

    /// Works until told to stop, or until something fails that ends the term.
    pub(super) async fn run(self, stop: CancellationToken) -> Result<(), CryptoError> {
        let Some(accounts) = self.accounts(&stop).await? else { return Ok(()) };
        let merged = fallback::merge(&self.shared, &self.lease, &self.webhooks, &accounts).await?;
        self.tidy_up().await?;
        let mut office = self.open(&accounts).await?;
        if !self.stands_in() {
            recovery::bring_back(&self.shared, &office.engines).await?;
        }
        let online = match timeout(PATIENCE, self.go_online(&mut office, &accounts)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) if error.ends_the_term() => return Err(error),
            Ok(Err(error)) if is_unknown_token(&error) => false,
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn Error,
                    "the homeserver is away; what is here is worked through meanwhile"
                );
                false
            }
            Err(_) => false,
        };
        if online {
            self.look_first(&accounts).await?;
        }
        let worker = Worker::load(self.worker_parts(&office.engines)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(worker.run(stop.clone()));
        for lane in office.lanes {
            tasks.spawn(lane.run(stop.clone()));
        }
        tasks.spawn(self.asker(&office.engines).run(stop.clone()));
        tasks.spawn(self.key_bundles(&office.engines).run(stop.clone()));
        let term = Arc::new(self);
        tasks.spawn(term.outages(&accounts).run(stop.clone()));
        let errands = term.errands(accounts);
        tasks.spawn(run_errands(errands, online, stop.clone()));
        if !term.stands_in() {
            let (shared, lease) = (term.shared.clone(), term.lease.clone());
            tasks.spawn(recovery::Recovery::new(shared, lease, office.engines.clone()).run(stop.clone()));
        }
        if merged == fallback::Merge::InUse {
            tasks.spawn(fallback::end_when_free(term.shared.clone(), stop.clone()));
        }
        tasks.spawn(Arc::clone(&term).keep_in_touch(office.engines, online, stop.clone()));
        while let Some(ended) = tasks.join_next().await {
            // Dropping the set ends the others wherever they are: every step can run twice.
            ended??;
        }
        Ok(())
    }

    /// Whether the store stands in for PostgreSQL: then the device stays unsigned, and nothing is backed up.
    fn stands_in(&self) -> bool {
        self.shared.stand_in.is_some()
    }

    /// Works through what has come in, the devices' key lanes included, and leaves what must wait: for a store that is
    /// given up.
    pub(super) async fn work_through(&self) -> Result<(), CryptoError> {
        let accounts = accounts::all(self.shared.store.db()).await?;
        if accounts.is_empty() {
            return Ok(());
        }
        let mut office = self.open(&accounts).await?;
        let drained = timeout(FIRST_LOOK, async {
            for lane in &mut office.lanes {
                lane.drain().await?;
            }
            Ok::<_, CryptoError>(())
        });
        match drained.await {
            Ok(Err(error)) if error.ends_the_term() => return Err(error),
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn Error,
                    "the key lane of a given-up device is not emptied"
                );
            }
            Ok(Ok(())) => {}
            Err(_) => tracing::warn!("the key lane of a given-up device is not emptied in time"),
        }
        let mut worker = Worker::load(self.worker_parts(&office.engines)).await?;
        while Box::pin(worker.step()).await? == Progress::Worked {}
        Ok(())
    }

    /// The accounts: from the store, or made now, which the homeserver must help with; `None` when told to
    /// stop first.
    async fn accounts(&self, stop: &CancellationToken) -> Result<Option<Vec<Account>>, CryptoError> {
        if let Some(accounts) = self.stored_accounts().await? {
            return Ok(Some(accounts));
        }
        let mut failures = 0;
        while !stop.is_cancelled() {
            match self.make_accounts().await {
                Ok(accounts) => return Ok(Some(accounts)),
                Err(CryptoError::Homeserver(error)) => {
                    failures += 1;
                    // Of a token that it does not know it is told elsewhere, once.
                    if !error.is_unknown_token() {
                        tracing::warn!(
                            error = &error as &dyn Error,
                            failures,
                            "could not set up the accounts on the homeserver"
                        );
                    }
                    tokio::select! { () = stop.cancelled() => {}, () = sleep(backoff(failures)) => {} }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn stored_accounts(&self) -> Result<Option<Vec<Account>>, CryptoError> {
        let config = &self.shared.config;
        let stored = accounts::all(self.shared.store.db()).await?;
        let Some(bot) = stored.iter().find(|account| account.role == Role::Bot) else { return Ok(None) };
        let server_name = bot.user_id.server_name().to_owned();
        if config.appservice.bot_user_id(Some(&server_name)).as_ref() != Some(&bot.user_id) {
            return Err(CryptoError::Refused(format!(
                "the store belongs to the bot {}, but appservice.bot (COUCOU_APPSERVICE_BOT) is {:?}: use \
                 the bot of this store, or another store for another bot",
                bot.user_id, config.appservice.bot
            )));
        }
        let _ = self.shared.bot.set(bot.user_id.clone());
        let mut accounts = vec![bot.clone()];
        if let Some(owner) = &config.owner {
            let known = |account: &&Account| account.role == Role::Owner && account.user_id == owner.user_id;
            let Some(account) = stored.iter().find(known) else { return Ok(None) };
            accounts.push(account.clone());
        }
        Ok(Some(accounts))
    }

    async fn make_accounts(&self) -> Result<Vec<Account>, CryptoError> {
        let config = &self.shared.config;
        let server_name = self.server_name().await?;
        let bot = config.appservice.bot_user_id(Some(&server_name)).ok_or_else(|| {
            CryptoError::Refused(format!(
                "appservice.bot (COUCOU_APPSERVICE_BOT) is no user of {server_name}: {:?}",
                config.appservice.bot
            ))
        })?;
        let _ = self.shared.bot.set(bot.clone());
        if !self.stands_in() {
            recovery::refuse_second_identity(&self.shared, &bot).await?;
        }
        let mut accounts = vec![self.ensure(&bot, Role::Bot).await?];
        if let Some(owner) = &config.owner {
            accounts.push(self.ensure(&owner.user_id, Role::Owner).await?);
        }
        Ok(accounts)
    }

    async fn ensure(&self, user_id: &OwnedUserId, role: Role) -> Result<Account, CryptoError> {
        let Shared { store, homeserver, clock, config, .. } = &self.shared;
        // The device of the settings is PostgreSQL's: two stores never share one.
        let device =
            config.appservice.device_id.as_deref().filter(|_| role == Role::Bot && !self.stands_in());
        setup::ensure_account(store, homeserver, &self.lease, user_id, role, device, clock.now()).await
    }

    async fn server_name(&self) -> Result<OwnedServerName, CryptoError> {
        // Asked in any case: it is the first thing that tells a wrong token or URL.
        let whoami = self.shared.homeserver.whoami().await?;
        Ok(match self.shared.config.known_server_name() {
            Some(server_name) => server_name,
            None => whoami.server_name().to_owned(),
        })
    }

    /// Deletes keys of rooms that are not relayed, and cuts down deadlines of a clock that was ahead.
    async fn tidy_up(&self) -> Result<(), CryptoError> {
        let mut tx = self.shared.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        rooms::delete_unwanted_keys(&mut tx).await?;
        let cut =
            deadlines::cut(&mut tx, self.shared.clock.now(), self.shared.config.rooms.settle_after).await?;
        tx.commit().await?;
        if cut > 0 {
            tracing::warn!(
                cut,
                "deadlines lay further ahead than they can: a clock was ahead; they are cut down"
            );
        }
        Ok(())
    }

    async fn open(&self, accounts: &[Account]) -> Result<Office, CryptoError> {
        let Shared { store, homeserver, clock, wakes, .. } = &self.shared;
        let (mut engines, mut lanes) = (Vec::new(), Vec::new());
        for account in accounts {
            let (lease, clock) = (self.lease.clone(), Arc::clone(clock));
            let engine = Engine::load(
                account.clone(),
                store.clone(),
                lease.clone(),
                homeserver.clone(),
                clock.clone(),
            );
            engines.push(engine.await?);
            let inbox = Arc::clone(&wakes.inbox);
            let outage = Arc::clone(&wakes.outage);
            let (store, homeserver) = (store.clone(), homeserver.clone());
            let lane = KeyLane::new(store, homeserver, lease, account.clone(), clock, inbox, outage);
            lanes.push(lane.heeding(Arc::clone(&wakes.alive)));
        }
        Ok(Office { engines, lanes })
    }

    /// What wants the homeserver, before the worker starts.
    async fn go_online(&self, office: &mut Office, accounts: &[Account]) -> Result<(), CryptoError> {
        self.publish(&office.engines).await?;
        self.errands(accounts.to_vec()).reconcile().await?;
        for lane in &mut office.lanes {
            lane.drain().await?;
        }
        Ok(())
    }

    /// Compares timelines before the worker takes what was pushed: of a room, it may lack something in the middle.
    /// What fails or takes long is done again beside the work.
    async fn look_first(&self, accounts: &[Account]) -> Result<(), CryptoError> {
        match timeout(FIRST_LOOK, self.outages(accounts).look()).await {
            Ok(Err(error)) if error.ends_the_term() => Err(error),
            Ok(Err(error)) => {
                tracing::debug!(error = &error as &dyn Error, "timelines are compared later");
                Ok(())
            }
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    async fn publish(&self, engines: &[Engine]) -> Result<(), CryptoError> {
        for engine in engines {
            setup::ensure_device(&self.shared.homeserver, engine.account()).await?;
            engine.drain_outgoing().await?;
            engine.publish_again().await?;
            // An owner's identity is the owner's own, and the bot's is in PostgreSQL.
            if engine.account().role == Role::Bot && !self.stands_in() {
                recovery::refuse_unrestored(engine).await?;
                engine.publish_identity().await?;
            }
        }
        Ok(())
    }

    fn worker_parts(&self, engines: &[Engine]) -> WorkerParts {
        let config = &self.shared.config;
        let mut our_users: BTreeSet<OwnedUserId> =
            engines.iter().map(|engine| engine.account().user_id.clone()).collect();
        our_users.extend(config.owner.as_ref().map(|owner| owner.user_id.clone()));
        WorkerParts {
            store: self.shared.store.clone(),
            lease: self.lease.clone(),
            clock: Arc::clone(&self.shared.clock),
            engines: engines.to_vec(),
            policy: self.shared.policy(our_users),
            invite_bot: config.owner.as_ref().is_some_and(|owner| owner.mode == OwnerMode::Invite),
            webhooks: self.webhooks.clone(),
            cautious: self.cautious,
            notify_after: config.undecryptable.notify_after,
            silence: config.silence,
            wakes: self.shared.wakes.clone(),
            turn: Arc::clone(&self.turn),
        }
    }

    fn asker(&self, engines: &[Engine]) -> Asker {
        let Shared { store, clock, wakes, .. } = &self.shared;
        let (lease, wake) = (self.lease.clone(), Arc::clone(&wakes.ledger));
        Asker::new(store.clone(), lease, engines.to_vec(), Arc::clone(clock), wake)
    }

    fn key_bundles(&self, engines: &[Engine]) -> KeyBundles {
        let Shared { store, clock, .. } = &self.shared;
        KeyBundles::new(store.clone(), self.lease.clone(), engines.to_vec(), Arc::clone(clock))
    }

    fn errands(&self, accounts: Vec<Account>) -> Errands {
        let Shared { store, homeserver, clock, wakes, config, .. } = &self.shared;
        let policy = InvitePolicy {
            bot: config.rooms.invite_from.clone(),
            owner: config.owner.as_ref().is_some_and(|owner| owner.accept),
            bridge_bots: config.bridges.iter().map(|bridge| bridge.bot.clone()).collect(),
            bridge_ghosts: config.bridges.iter().flat_map(|bridge| bridge.ghosts.clone()).collect(),
            look_again: config.rooms.relay != Relay::Bridged,
            invite_bot: config.owner.as_ref().is_some_and(|owner| owner.mode == OwnerMode::Invite),
        };
        Errands::new(
            store.clone(),
            homeserver.clone(),
            self.lease.clone(),
            Arc::clone(clock),
            accounts,
            policy,
            Arc::clone(&wakes.rooms),
            Arc::clone(&wakes.inbox),
        )
    }

    fn outages(&self, accounts: &[Account]) -> Outages {
        let Shared { store, homeserver, clock, wakes, config, .. } = &self.shared;
        Outages {
            store: store.clone(),
            homeserver: homeserver.clone(),
            appservice_id: config.appservice.id.clone(),
            accounts: accounts.to_vec(),
            errands: self.errands(accounts.to_vec()),
            missed: Missed::new(
                store.clone(),
                homeserver.clone(),
                self.lease.clone(),
                Arc::clone(clock),
                Arc::clone(&wakes.inbox),
                Arc::clone(&self.turn),
            ),
            wake: Arc::clone(&wakes.outage),
        }
    }

    /// Sends what the machines have to send, as soon as there is something.
    async fn keep_in_touch(
        self: Arc<Self>,
        engines: Vec<Engine>,
        mut online: bool,
        stop: CancellationToken,
    ) -> Result<(), CryptoError> {
        let wake = Arc::clone(&self.shared.wakes.outgoing);
        let mut failures = 0;
        let mut refreshed: Option<Timestamp> = None;
        while !stop.is_cancelled() {
            let now = self.shared.clock.now();
            if refreshed.is_none_or(|at| now.since(at) >= REFRESH) {
                for engine in &engines {
                    engine.refresh_devices().await?;
                }
                refreshed = Some(now);
            }
            let homeserver = &self.shared.homeserver;
            // A device that somebody has deleted is made again, with the keys that it had.
            let is_gone = homeserver.take_device_is_gone();
            online &= !is_gone;
            let sent = if online { drain(&engines).await } else { self.publish(&engines).await };
            match sent {
                Ok(()) => {
                    if is_gone {
                        // The key lanes need not wait any longer.
                        self.shared.wakes.alive.notify_waiters();
                    }
                    online = true;
                    failures = 0;
                    tokio::select! {
                        () = stop.cancelled() => {},
                        () = wake.notified() => {},
                        () = homeserver.device_is_gone() => {}
                        () = sleep(IDLE) => {}
                    }
                }
                Err(error) if error.ends_the_term() => return Err(error),
                Err(error) => {
                    failures += 1;
                    if !is_unknown_token(&error) {
                        tracing::warn!(error = &error as &dyn Error, failures, "outgoing requests failed");
                    }
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = homeserver.device_is_gone(), if online => {}
                        () = sleep(backoff(failures)) => {}
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether the homeserver does not know the token, which is told once, and not as a failure of each request.
fn is_unknown_token(error: &CryptoError) -> bool {
    matches!(error, CryptoError::Homeserver(error) if error.is_unknown_token())
}

async fn drain(engines: &[Engine]) -> Result<(), CryptoError> {
    for engine in engines {
        engine.drain_outgoing().await?;
    }
    Ok(())
}

/// Runs the errands, after a comparison with the homeserver when the start could not make it.
async fn run_errands(errands: Errands, online: bool, stop: CancellationToken) -> Result<(), CryptoError> {
    let mut failures = 0;
    let mut reconciled = online;
    while !reconciled && !stop.is_cancelled() {
        match errands.reconcile().await {
            Ok(()) => reconciled = true,
            Err(RoomsError::Homeserver(_)) => {
                failures += 1;
                tokio::select! { () = stop.cancelled() => {}, () = sleep(backoff(failures)) => {} }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(errands.run(stop).await?)
}
