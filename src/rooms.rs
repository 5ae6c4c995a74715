//! The errands that rooms give: answering invites, reading state, inviting the bot for the owner.
//!
//! What is to be done is a `due_at` in the store, written with what gave rise to it. What a room's state is
//! goes through the inbox like everything else that comes in, so that one worker alone changes rooms. Every
//! errand can run twice: joining again changes nothing, and a state read twice is the same state.

pub mod compare;
mod inviters;
pub mod missed;
mod reading;

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use rand::Rng;
use ruma::{OwnedUserId, RoomId, ServerName, UserId};
use serde_json::json;
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{SharedClock, Timestamp},
    homeserver::{Homeserver, HomeserverError},
    model::{Account, Inviter, Membership, Pattern, Role},
    store::{
        Lease, Store, StoreError, inbox, leases,
        memberships::{self, DueInvite, MembershipChange},
        readings,
        rooms::{self, DueRoom},
    },
};

/// Errands taken at once, and run side by side.
const MOST: i64 = 64;
const SIDE_BY_SIDE: usize = 4;

/// How often the store is asked for errands that nobody announced.
const IDLE: Duration = Duration::from_secs(2);

/// The name under which a restored bot's store keeps since when rooms are read back: milliseconds, as text.
pub const HISTORY_SINCE: &str = "coucou.history_since";

/// The longest time between two attempts at the same errand.
const LONGEST: Duration = Duration::from_mins(5);

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum RoomsError {
    /// The store failed, or the lease is lost.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// The homeserver could not be reached.
    #[error("the homeserver failed")]
    Homeserver(#[from] HomeserverError),
}

/// Whose invites are accepted.
#[derive(Clone, Debug)]
pub struct InvitePolicy {
    /// For the bot: these users and servers; `None` for everybody on its own server, and the owner.
    pub bot: Option<Vec<Inviter>>,
    /// For the owner: whether invites of known bridge bots are accepted.
    pub owner: bool,
    /// Bridge bots that are configured; those of relayed rooms that the owner has joined are known as well.
    pub bridge_bots: Vec<OwnedUserId>,
    /// The ghosts of those bridges.
    pub bridge_ghosts: Vec<Pattern>,
    /// Whether rooms that are not relayed are read anew at the start, because the settings may have changed
    /// to relay them.
    pub look_again: bool,
    /// Whether the owner invites the bot to every bridged room.
    pub invite_bot: bool,
}

impl InvitePolicy {
    /// Whether the bot, of `own_server`, accepts an invite of `inviter`.
    fn bot_accepts(&self, own_server: &ServerName, inviter: &UserId) -> bool {
        match &self.bot {
            None => inviter.server_name() == own_server,
            Some(inviters) => inviters.iter().any(|known| known.matches(inviter)),
        }
    }
}

/// Runs the errands, for whoever holds the crypto lease.
#[derive(Debug)]
pub struct Errands {
    store: Store,
    homeserver: Homeserver,
    lease: Lease,
    clock: SharedClock,
    accounts: Vec<Account>,
    policy: InvitePolicy,
    wake: Arc<Notify>,
    inbox: Arc<Notify>,
    /// The homeserver asked to be left alone until then, in milliseconds as [`Timestamp`].
    quiet_until: AtomicI64,
}

impl Errands {
    /// Errands for these accounts, the bot's first; `wake` announces new ones, `inbox` is woken by states.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "each is a part of its own")]
    pub fn new(
        store: Store,
        homeserver: Homeserver,
        lease: Lease,
        clock: SharedClock,
        accounts: Vec<Account>,
        policy: InvitePolicy,
        wake: Arc<Notify>,
        inbox: Arc<Notify>,
    ) -> Self {
        let quiet_until = AtomicI64::new(0);
        Self { store, homeserver, lease, clock, accounts, policy, wake, inbox, quiet_until }
    }

    /// Compares the store's view of who is where with the homeserver's: at the start, for rooms that were
    /// joined and invites that were made while nobody listened, or before coucou was there.
    ///
    /// # Errors
    /// When the homeserver or the store fails.
    pub async fn reconcile(&self) -> Result<(), RoomsError> {
        let now = self.clock.now();
        for account in &self.accounts {
            let joined = self.homeserver.joined_rooms(&account.user_id).await?;
            let known = memberships::joined(self.store.db(), account.id).await?;
            let new: Vec<&RoomId> =
                joined.iter().filter(|room_id| !known.contains(room_id)).map(|id| &**id).collect();
            let invites = self.homeserver.pending_invites(&account.user_id).await?;
            let change = |room_id: &RoomId, membership, inviter| MembershipChange {
                room_id: room_id.to_owned(),
                account_id: account.id,
                membership,
                inviter,
            };
            let left = known.iter().filter(|room_id| !joined.contains(room_id));
            let mut changes: Vec<_> = left.map(|room_id| change(room_id, Membership::Leave, None)).collect();
            changes.extend(new.iter().map(|room_id| change(room_id, Membership::Join, None)));
            changes.extend(
                invites.into_iter().map(|invite| change(&invite.room_id, Membership::Invite, invite.inviter)),
            );
            if changes.is_empty() {
                continue;
            }
            tracing::info!(account.user_id = %account.user_id, rooms = changes.len(), "rooms to look at");
            let mut tx = self.store.begin().await?;
            leases::check(&mut tx, &self.lease).await?;
            rooms::ensure(&mut tx, &new, now).await?;
            rooms::set_due_unless_relayed(&mut tx, &new, now).await?;
            memberships::put(&mut tx, &changes, now).await?;
            tx.commit().await?;
        }
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        if let Some(bot) = self.bot().filter(|_| self.policy.invite_bot) {
            memberships::want_bridged(&mut tx, bot.id, now).await?;
        }
        if self.policy.look_again {
            rooms::look_again(&mut tx, now).await?;
        }
        rooms::look_again_for(&mut tx, &self.policy.bridge_bots, now).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    /// When the store fails or the lease is lost; the homeserver's failures are waited out.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RoomsError> {
        while !stop.is_cancelled() {
            if self.step().await? {
                continue;
            }
            let idle = IDLE.mul_f64(rand::rng().random_range(0.8..1.2));
            tokio::select! {
                () = stop.cancelled() => {}, () = self.wake.notified() => {}, () = sleep(idle) => {}
            }
        }
        Ok(())
    }

    /// Runs what is due; answers whether there was anything.
    ///
    /// # Errors
    /// When the store fails or the lease is lost.
    pub async fn step(&self) -> Result<bool, RoomsError> {
        let now = self.clock.now();
        let invites = memberships::due_invites(self.store.db(), now, MOST).await?;
        let unread = rooms::due(self.store.db(), now, MOST).await?;
        let readings = readings::due(self.store.db(), now, MOST).await?;
        let any = !(invites.is_empty() && unread.is_empty() && readings.is_empty());
        let answers: Vec<_> = invites.into_iter().map(|invite| self.settle_invite(invite)).collect();
        let mut answers = stream::iter(answers).buffer_unordered(SIDE_BY_SIDE);
        while let Some(answered) = answers.next().await {
            answered?;
        }
        let reads: Vec<_> = unread.into_iter().map(|room| self.read(room)).collect();
        let mut reads = stream::iter(reads).buffer_unordered(SIDE_BY_SIDE);
        while let Some(read) = reads.next().await {
            read?;
        }
        let pages: Vec<_> = readings.into_iter().map(|reading| self.read_on(reading)).collect();
        let mut pages = stream::iter(pages).buffer_unordered(SIDE_BY_SIDE);
        while let Some(page) = pages.next().await {
            page?;
        }
        Ok(any)
    }

    fn bot(&self) -> Option<&Account> {
        self.accounts.iter().find(|account| account.role == Role::Bot)
    }

    fn owner(&self) -> Option<&Account> {
        self.accounts.iter().find(|account| account.role == Role::Owner)
    }

    /// Does what one row of invites asks for, and notes how it went.
    async fn settle_invite(&self, invite: DueInvite) -> Result<(), RoomsError> {
        let room_id = &invite.room_id;
        let account = self.accounts.iter().find(|account| account.id == invite.account_id);
        let Some(account) = account else { return self.put_off(&invite, None).await };
        if let Some(until) = self.quiet_until() {
            // It would refuse this one as well, and count it against us.
            return self.postpone(&invite, until).await;
        }
        let became = match invite.membership {
            Membership::Wanted => match self.owner() {
                Some(owner) => {
                    let invited = self.homeserver.invite(&owner.user_id, room_id, &account.user_id).await;
                    invited.map(|()| Some((Membership::Invite, Some(owner.user_id.clone()))))
                }
                None => Ok(None),
            },
            Membership::Invite if self.accepts(account, invite.inviter.as_deref()).await? => {
                let joined = self.homeserver.join(&account.user_id, room_id).await;
                joined.map(|()| Some((Membership::Join, None)))
            }
            Membership::Invite => {
                let inviter = invite.inviter.as_ref().map(|inviter| inviter.as_str());
                tracing::info!(room.id = %room_id, account.user_id = %account.user_id, inviter,
                    "invite left unanswered");
                Ok(None)
            }
            Membership::Join | Membership::Leave => Ok(None),
        };
        match became {
            Ok(Some((membership, inviter))) => self.note(&invite, membership, inviter).await,
            Ok(None) => self.put_off(&invite, None).await,
            Err(error @ HomeserverError::Status { status: 429, .. }) => {
                let until = self.keep_quiet(&error, invite.tries);
                tracing::warn!(room.id = %room_id, %until, "the homeserver asks for patience with invites");
                self.put_off(&invite, Some(until)).await
            }
            Err(error) => {
                let transient = error.is_transient() || invite.tries < 5;
                let next = transient.then(|| self.next_try(invite.tries));
                tracing::warn!(room.id = %room_id, account.user_id = %account.user_id,
                    error = &error as &dyn Error, gave_up = next.is_none(), "could not answer an invite");
                self.put_off(&invite, next).await
            }
        }
    }

    /// Notes a membership that the homeserver has just confirmed, without waiting for its push.
    async fn note(
        &self,
        invite: &DueInvite,
        membership: Membership,
        inviter: Option<OwnedUserId>,
    ) -> Result<(), RoomsError> {
        let now = self.clock.now();
        let change = MembershipChange {
            room_id: invite.room_id.clone(),
            account_id: invite.account_id,
            membership,
            inviter,
        };
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        memberships::put(&mut tx, &[change], now).await?;
        if membership == Membership::Join {
            rooms::ensure(&mut tx, &[&invite.room_id], now).await?;
            rooms::set_due_unless_relayed(&mut tx, &[&invite.room_id], now).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// When to ask the homeserver again for anything, if not now.
    fn quiet_until(&self) -> Option<Timestamp> {
        let until = Timestamp(self.quiet_until.load(Ordering::Relaxed));
        (until > self.clock.now()).then_some(until)
    }

    /// Takes in that the homeserver asks to be left alone, and answers until when.
    fn keep_quiet(&self, error: &HomeserverError, tries: i64) -> Timestamp {
        let asked = error.retry_after().map(|wish| self.clock.now().plus(wish));
        let until = asked.unwrap_or_else(|| self.next_try(tries));
        self.quiet_until.fetch_max(until.0, Ordering::Relaxed);
        until
    }

    async fn postpone(&self, invite: &DueInvite, until: Timestamp) -> Result<(), RoomsError> {
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        memberships::postpone_invite(&mut tx, &invite.room_id, invite.account_id, until).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn put_off(&self, invite: &DueInvite, next: Option<Timestamp>) -> Result<(), RoomsError> {
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        memberships::reschedule_invite(&mut tx, &invite.room_id, invite.account_id, next).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Reads a room's state as the first account that may, and hands it to the inbox.
    async fn read(&self, room: DueRoom) -> Result<(), RoomsError> {
        let room_id = &room.room_id;
        if let Some(until) = self.quiet_until() {
            return self.put_off_reading(&room, until).await;
        }
        let mut readers = memberships::members(self.store.db(), room_id).await?;
        let should_be_readable = !readers.is_empty();
        // An account whose membership was missed may still be in.
        readers.extend(self.accounts.iter().map(|account| account.id));
        let (mut state, mut begin) = (None, None);
        for id in readers {
            let Some(account) = self.accounts.iter().find(|account| account.id == id) else { continue };
            match self.homeserver.room_state(&account.user_id, room_id).await {
                Ok(events) => {
                    match self.beginning(&room, &events).await {
                        Ok(found) => begin = found,
                        Err(RoomsError::Homeserver(error)) => {
                            tracing::warn!(room.id = %room_id, error = &error as &dyn Error, "could not read back");
                            return self.put_off_reading(&room, self.next_try(room.tries)).await;
                        }
                        Err(error) => return Err(error),
                    }
                    state = Some(events);
                    break;
                }
                Err(HomeserverError::Status { status: 403 | 404, .. }) => {}
                Err(error @ HomeserverError::Status { status: 429, .. }) => {
                    let until = self.keep_quiet(&error, room.tries);
                    return self.put_off_reading(&room, until).await;
                }
                Err(error) => {
                    tracing::warn!(room.id = %room_id, error = &error as &dyn Error, "could not read a room");
                    return self.put_off_reading(&room, self.next_try(room.tries)).await;
                }
            }
        }
        if state.is_none() && should_be_readable && room.tries < 5 {
            // A member may always read: the homeserver has not caught up with the join yet.
            return self.put_off_reading(&room, self.next_try(room.tries)).await;
        }
        let body = json!({ "room_id": room_id, "state": state, "reading": begin }).to_string();
        let body = inbox::seal_body(self.store.seal()?, body.as_bytes())?;
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        inbox::accept_state(&mut tx, body, self.clock.now()).await?;
        rooms::reschedule(&mut tx, &room, None).await?;
        tx.commit().await?;
        self.inbox.notify_one();
        Ok(())
    }

    async fn put_off_reading(&self, room: &DueRoom, next: Timestamp) -> Result<(), RoomsError> {
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        rooms::reschedule(&mut tx, room, Some(next)).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Two seconds, doubled with each try.
    fn next_try(&self, tries: i64) -> Timestamp {
        let doublings = u32::try_from(tries.clamp(0, 10)).unwrap_or(10);
        self.clock.now().plus(Duration::from_secs(2 << doublings).min(LONGEST))
    }

    /// Whether there is a bot to invite for: for logs at the start.
    #[must_use]
    pub fn has_bot(&self) -> bool {
        self.bot().is_some()
    }
}

#[cfg(test)]
mod tests {
    use ruma::{server_name, user_id};

    use super::*;
    use crate::model::Pattern;

    #[test]
    fn the_bot_accepts_its_own_server_or_who_is_named() {
        let own = server_name!("example.org");
        let policy = |bot| InvitePolicy {
            bot,
            owner: false,
            bridge_bots: Vec::new(),
            bridge_ghosts: Vec::new(),
            look_again: false,
            invite_bot: false,
        };
        let (here, there) = (user_id!("@a:example.org"), user_id!("@a:elsewhere.org"));
        assert!(policy(None).bot_accepts(own, here));
        assert!(!policy(None).bot_accepts(own, there));
        let named = policy(Some(vec![
            Inviter::Server(Pattern::new("*where.org")),
            Inviter::User(Pattern::new("@b*:example.org")),
        ]));
        assert!(named.bot_accepts(own, there));
        assert!(named.bot_accepts(own, user_id!("@bob:example.org")));
        assert!(!named.bot_accepts(own, here));
        assert!(!policy(Some(Vec::new())).bot_accepts(own, here));
    }
}
