//! What must hold between settings that are fine alone.

use ruma::{OwnedServerName, UserId};

use super::{Appservice, ConfigError, Homeserver, Owner};

/// Checks the bot and the owner against the registration and each other.
///
/// # Errors
/// The first contradiction, with what to do about it.
pub(super) fn check(
    homeserver: &Homeserver,
    appservice: &Appservice,
    owner: Option<&Owner>,
) -> Result<(), ConfigError> {
    let conflict = |text: String| Err(ConfigError::Conflict(text));
    let bot_localpart = appservice.bot.trim_start_matches('@');
    let bot_localpart = bot_localpart.split_once(':').map_or(bot_localpart, |(localpart, _)| localpart);
    if appservice.sender_localpart.as_deref() == Some(bot_localpart) {
        return conflict(format!(
            "appservice.bot (COUCOU_APPSERVICE_BOT) is {bot_localpart}, which is the registration's \
             sender_localpart: Synapse fails on /sync for that user, so set another one, for example \
             COUCOU_APPSERVICE_BOT=coucou, or make a registration whose sender_localpart differs \
             (`coucou registration`)"
        ));
    }
    let Some(server_name) = known_server_name(homeserver, appservice, owner) else { return Ok(()) };
    let bot = appservice.bot_user_id(Some(&server_name));
    let owner = owner.map(|owner| &owner.user_id);
    let of_owner =
        owner.map(|owner| format!("or make a new registration with `coucou registration --owner {owner}`"));
    let of_bot =
        "for example COUCOU_APPSERVICE_BOT=coucou, or make a new registration with `coucou registration`";
    for (user_id, setting, remedy) in [
        (owner, "owner (COUCOU_OWNER)", of_owner.as_deref().unwrap_or_default()),
        (bot.as_ref(), "appservice.bot (COUCOU_APPSERVICE_BOT)", of_bot),
    ] {
        let Some(user_id) = user_id else { continue };
        if user_id.server_name() != server_name {
            return conflict(format!(
                "{setting} is {user_id}, but the homeserver is {server_name}: an application service acts \
                 for users of its own homeserver only; correct one of {setting} and \
                 homeserver.server_name (COUCOU_HOMESERVER_SERVER_NAME)"
            ));
        }
        appservice.check_namespace(user_id, setting, remedy)?;
    }
    if owner.is_some() && owner == bot.as_ref() {
        return conflict(format!(
            "owner (COUCOU_OWNER) and appservice.bot (COUCOU_APPSERVICE_BOT) are the same user, {server_name}'s \
             {bot_localpart}: the bot must be a user of its own, for example COUCOU_APPSERVICE_BOT=coucou"
        ));
    }
    Ok(())
}

/// The server's name as far as the settings tell it: set, or the owner's, or the bot's.
pub(super) fn known_server_name(
    homeserver: &Homeserver,
    appservice: &Appservice,
    owner: Option<&Owner>,
) -> Option<OwnedServerName> {
    let owner = || Some(owner?.user_id.server_name().to_owned());
    let bot = || Some(appservice.bot_user_id(None)?.server_name().to_owned());
    homeserver.server_name.clone().or_else(owner).or_else(bot)
}

impl Appservice {
    /// Checks that the registration, when it is known, lets us act as `user_id`; `setting` names the user's
    /// role in the error: `appservice.bot (COUCOU_APPSERVICE_BOT)`, and `remedy` what to do but to correct it.
    ///
    /// For the bot this cannot be done before the server's name is known.
    ///
    /// # Errors
    /// [`ConfigError::Conflict`] when it does not.
    fn check_namespace(&self, user_id: &UserId, setting: &str, remedy: &str) -> Result<(), ConfigError> {
        if self.namespaces.as_ref().is_none_or(|namespaces| namespaces.contains(user_id)) {
            return Ok(());
        }
        Err(ConfigError::Conflict(format!(
            "{setting} is {user_id}, but no entry of namespaces.users in the registration matches it: correct \
             the setting, {remedy} and give it to the homeserver's administrator"
        )))
    }
}
