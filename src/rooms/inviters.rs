//! The rule for accepting invites.

use ruma::UserId;

use super::Errands;
use crate::{
    model::{
        Account, Role,
        naming::{self, Strength},
    },
    store::{StoreError, bridges, rooms},
};

impl Errands {
    /// Returns whether an account accepts an invite of that user's.
    pub(super) async fn accepts(
        &self,
        account: &Account,
        inviter: Option<&UserId>,
    ) -> Result<bool, StoreError> {
        let Some(inviter) = inviter else { return Ok(false) };
        match account.role {
            Role::Bot => {
                let is_owner = self.owner().is_some_and(|owner| owner.user_id == inviter);
                Ok(is_owner || self.policy.bot_accepts(account.user_id.server_name(), inviter))
            }
            Role::Owner if !self.policy.owner => Ok(false),
            Role::Owner => Ok(self.policy.bridge_bots.iter().any(|bot| bot == inviter)
                || self.policy.bridge_ghosts.iter().any(|ghosts| ghosts.matches(inviter.as_str()))
                || rooms::is_bridge_bot(self.store.db(), inviter, account.id).await?
                || self.is_ghost(account, inviter).await?),
        }
    }

    /// Returns whether a user is a ghost of a bridge that is installed under such names, and is known from a room that the
    /// account has joined. In conversations of two, older bridges let the ghost make the room.
    async fn is_ghost(&self, account: &Account, user: &UserId) -> Result<bool, StoreError> {
        let db = self.store.db();
        if !naming::looks_like_ghost(user) {
            return Ok(false);
        }
        let keys = bridges::keys(db).await?;
        for bridge in bridges::pinned(db).await? {
            let keys = keys.iter().filter(|key| key.bot == bridge.bot).map(|key| &*key.state_key);
            let mut ghosts = naming::ghosts_of(&bridge.bot, keys).into_iter();
            let is_its = ghosts
                .any(|ghosts| ghosts.strength > Strength::Guessed && ghosts.pattern.matches(user.as_str()));
            if is_its && rooms::is_bridge_bot(db, &bridge.bot, account.id).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
