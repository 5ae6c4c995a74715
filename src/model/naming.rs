//! How bridges name their bots and ghosts, as they are installed.
//!
//! The names in `INSTALLED` are those of mautrix-go's `example-config.yaml` (`<network>bot` and `<network>_<id>`), of
//! the older bridges, and of matrix-docker-ansible-deploy's templates. A registered bridge has them in an exclusive
//! namespace of its homeserver, so no one else can take such a name there
//! ([spec](https://spec.matrix.org/latest/application-service-api/#registration)).

use ruma::UserId;

use super::Pattern;

/// Localparts of bots, with the prefixes of their ghosts; the prefix that the bot's own name tells comes first.
///
/// `messengerbot` is matrix-docker-ansible-deploy's name for mautrix-meta whatever its mode is, and the ghosts are named
/// after the mode.
const INSTALLED: [(&str, &[&str]); 36] = [
    ("_discord_bot", &["_discord_"]),
    ("_discordpuppet_bot", &["_discordpuppet_"]),
    ("_groupmepuppet_bot", &["_groupmepuppet_"]),
    ("_instagrampuppet_bot", &["_instagrampuppet_"]),
    ("_slackpuppet_bot", &["_slackpuppet_"]),
    ("_steampuppet_bot", &["_steampuppet_"]),
    ("_twitterpuppet_bot", &["_twitterpuppet_"]),
    ("androidsmsbot", &["androidsms_"]),
    ("appservice-irc", &["irc_"]),
    ("blueskybot", &["bluesky_"]),
    ("discordbot", &["discord_"]),
    ("facebookbot", &["facebook_"]),
    ("gmessagesbot", &["gmessages_"]),
    ("googlechatbot", &["googlechat_"]),
    ("gvoicebot", &["gvoice_"]),
    ("hangoutsbot", &["hangouts_"]),
    ("heisenbridge", &["hbirc_"]),
    ("imessagebot", &["imessage_"]),
    ("instagrambot", &["instagram_"]),
    ("ircbot", &["irc_"]),
    ("kakaotalkbot", &["kakaotalk_"]),
    ("linebot", &["line_"]),
    ("linkedinbot", &["linkedin_"]),
    ("messengerbot", &["messenger_", "facebook_"]),
    ("metabot", &["meta_"]),
    ("rustpushbot", &["rustpush_"]),
    ("signalbot", &["signal_"]),
    ("skypebridgebot", &["skype-"]),
    ("slackbot", &["slack_"]),
    ("smsbot", &["sms_"]),
    ("steambot", &["steam_"]),
    ("telegrambot", &["telegram_"]),
    ("twitterbot", &["twitter_"]),
    ("wechatbot", &["_wechat_"]),
    ("whatsappbot", &["whatsapp_"]),
    ("zulipbot", &["zulip_"]),
];

/// The strength of a bridge's claim to a name, the strongest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Strength {
    /// The bot's name suggests it, but anybody may bear such a name.
    Guessed,
    /// Bridges are installed with this pair of names.
    Installed,
    /// As [`Strength::Installed`], and the bridge's state key names this one of several pairs.
    Keyed,
    /// The settings say so.
    Configured,
}

/// The ghosts of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ghosts {
    /// Their user ids.
    pub pattern: Pattern,
    /// The strength of the bridge's claim to them.
    pub strength: Strength,
}

/// Returns the ghosts of a bridge by the name of its bot and the state keys of its claims, the likeliest first.
///
/// A bot that is not in `INSTALLED` has the ghosts that mautrix bridges would have: `@igbot:example.org` speaks for
/// `@ig_*:example.org`. A name without such a form tells none.
#[must_use]
pub fn ghosts_of<'a>(bot: &UserId, state_keys: impl IntoIterator<Item = &'a str>) -> Vec<Ghosts> {
    let Some(prefixes) = installed(bot) else {
        let guessed = Pattern::ghosts_of(bot).into_iter();
        return guessed.map(|pattern| Ghosts { pattern, strength: Strength::Guessed }).collect();
    };
    let ghosts = |prefix: &str, strength| Ghosts {
        pattern: Pattern::new(&format!("@{prefix}*:{}", bot.server_name())),
        strength,
    };
    if let [only] = prefixes {
        return vec![ghosts(only, Strength::Installed)];
    }
    for state_key in state_keys {
        let id = appservice_id(state_key);
        if let Some(named) = prefixes.iter().find(|prefix| names(prefix, id)) {
            return vec![ghosts(named, Strength::Keyed)];
        }
    }
    let own = prefixes.iter().take(1).map(|prefix| ghosts(prefix, Strength::Installed));
    own.chain(prefixes.iter().skip(1).map(|prefix| ghosts(prefix, Strength::Guessed))).collect()
}

/// Returns whether a bot bears the name of an installed bridge's.
#[must_use]
pub fn is_installed(bot: &UserId) -> bool {
    installed(bot).is_some()
}

/// Returns whether a bot bears the name of an installed bridge's which has that state key: `example.org/instagram` is
/// `@instagrambot`'s.
#[must_use]
pub fn is_installed_as(bot: &UserId, state_key: &str) -> bool {
    let id = appservice_id(state_key);
    installed(bot).is_some_and(|prefixes| prefixes.iter().any(|prefix| names(prefix, id)))
}

/// Returns whether a user id has the form of a ghost's: a word, a separator and an id.
#[must_use]
pub fn looks_like_ghost(user: &UserId) -> bool {
    prefix_of(user.localpart()).is_some()
}

/// Returns the ghosts of which this user seems to be one; only the user where the name tells no others.
#[must_use]
pub fn ghosts_like(user: &UserId) -> Pattern {
    match prefix_of(user.localpart()) {
        Some(prefix) => Pattern::new(&format!("@{prefix}*:{}", user.server_name())),
        None => Pattern::new(user.as_str()),
    }
}

/// Returns a placeholder for ghosts of which nothing is known.
#[must_use]
pub fn unknown_ghosts(bot: &UserId) -> Pattern {
    Pattern::new(&format!("@NAME_*:{}", bot.server_name()))
}

/// Returns the line of the settings that says for whom a bridge speaks.
#[must_use]
pub fn settings_line(bot: &UserId, ghosts: Option<&Pattern>, puppets: Option<&Pattern>) -> String {
    let part = |key: &str, pattern: Option<&Pattern>| match pattern {
        Some(pattern) => format!(", {key}: \"{pattern}\""),
        None => String::new(),
    };
    format!("bridges: [{{bot: \"{bot}\"{}{}}}]", part("ghosts", ghosts), part("puppets", puppets))
}

/// Returns whether the ghost of that id stands for the user of a login.
///
/// Most networks call both alike. mautrix-go escapes what user ids may not hold; Slack writes the ghost in lower case;
/// Bluesky's `did:plc:x` is the ghost `plc-x`.
#[must_use]
pub fn is_of_login(protocol: Option<&str>, ghost_id: &str, login: &str) -> bool {
    if ghost_id == login {
        return true;
    }
    let decoded = decode_localpart(ghost_id);
    match protocol {
        Some("slackgo" | "slack") => {
            decoded.eq_ignore_ascii_case(login) || ghost_id.eq_ignore_ascii_case(login)
        }
        Some("bluesky") => login.strip_prefix("did:").is_some_and(|did| decoded == did.replacen(':', "-", 1)),
        // Google Messages numbers the people of a conversation: the first is the phone's owner.
        Some("gmessages") => ghost_id.split_once('.').is_some_and(|(_, participant)| participant == "1"),
        _ => decoded == login,
    }
}

fn installed(bot: &UserId) -> Option<&'static [&'static str]> {
    INSTALLED.iter().find(|(name, _)| *name == bot.localpart()).map(|(_, prefixes)| *prefixes)
}

/// The application service's id, with which mautrix-go ends its state keys.
fn appservice_id(state_key: &str) -> &str {
    state_key.rsplit('/').next().unwrap_or_default()
}

fn names(prefix: &str, appservice_id: &str) -> bool {
    let word = prefix.trim_matches(['_', '-']);
    // The mode `facebook-tor` has the ghosts of `facebook`.
    appservice_id.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// The part of a ghost's localpart before its id, the separator included.
fn prefix_of(localpart: &str) -> Option<&str> {
    let start = localpart.len() - localpart.trim_start_matches('_').len();
    let at = start + localpart.get(start..)?.find(['_', '-', '.', '='])?;
    let prefix = localpart.get(..=at)?;
    (at > start && at + 1 < localpart.len()).then_some(prefix)
}

/// Undoes the [escapes](https://spec.matrix.org/latest/appendices/#mapping-from-other-character-sets) with which a
/// localpart holds any text: `_a` for `A`, `__` for `_` and `=3a` for `:`.
fn decode_localpart(localpart: &str) -> String {
    let mut decoded = Vec::with_capacity(localpart.len());
    let mut rest = localpart.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let escaped = match (byte, after) {
            (b'_', [next, after @ ..]) => Some((next.to_ascii_uppercase(), after)),
            (b'=', [high, low, after @ ..]) => hex(*high, *low).map(|escaped| (escaped, after)),
            _ => None,
        };
        let (byte, after) = escaped.unwrap_or((*byte, after));
        decoded.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use ruma::{UserId, user_id};

    use super::*;

    fn told(bot: &UserId, keys: &[&str]) -> Vec<(String, Strength)> {
        let ghosts = ghosts_of(bot, keys.iter().copied()).into_iter();
        ghosts.map(|ghosts| (ghosts.pattern.as_str().to_owned(), ghosts.strength)).collect()
    }

    #[test]
    fn installed_bridges_are_known_by_their_bots() {
        let one = |pattern: &str, strength| vec![(pattern.to_owned(), strength)];
        let installed = Strength::Installed;
        assert_eq!(told(user_id!("@instagrambot:a.org"), &[]), one("@instagram_*:a.org", installed));
        assert_eq!(told(user_id!("@wechatbot:a.org"), &[]), one("@_wechat_*:a.org", installed));
        assert_eq!(told(user_id!("@skypebridgebot:a.org"), &[]), one("@skype-*:a.org", installed));
        assert_eq!(told(user_id!("@_discord_bot:a.org"), &[]), one("@_discord_*:a.org", installed));
        assert_eq!(told(user_id!("@igbot:a.org"), &[]), one("@ig_*:a.org", Strength::Guessed));
        assert_eq!(told(user_id!("@jane:a.org"), &[]), []);
    }

    #[test]
    fn the_state_key_tells_after_which_mode_a_bridges_ghosts_are_named() {
        let bot = user_id!("@messengerbot:a.org");
        let (messenger, facebook) = ("@messenger_*:a.org".to_owned(), "@facebook_*:a.org".to_owned());
        let both = vec![(messenger.clone(), Strength::Installed), (facebook.clone(), Strength::Guessed)];
        for keys in [&[][..], &["a.org/other"], &["net.maunium.facebook://facebook/1"]] {
            assert_eq!(told(bot, keys), both, "{keys:?}");
        }
        for key in ["a.org/facebook", "a.org/facebook-tor"] {
            assert_eq!(told(bot, &["odd", key]), [(facebook.clone(), Strength::Keyed)]);
        }
        assert_eq!(told(bot, &["a.org/messenger"]), [(messenger, Strength::Keyed)]);
        assert!(is_installed_as(bot, "a.org/facebook") && is_installed(bot));
        assert!(!is_installed_as(bot, "a.org/instagram") && !is_installed(user_id!("@igbot:a.org")));
    }

    #[test]
    fn a_line_of_the_settings_is_yaml() {
        let (bot, ghosts) = (user_id!("@messengerbot:a.org"), Pattern::new("@facebook_*:a.org"));
        let line = settings_line(bot, Some(&ghosts), Some(&Pattern::new("@jane:a.org")));
        let read: serde_json::Value = serde_saphyr::from_str(&line).unwrap();
        let expected = serde_json::json!({"bridges": [{
            "bot": "@messengerbot:a.org", "ghosts": "@facebook_*:a.org", "puppets": "@jane:a.org"}]});
        assert_eq!(read, expected, "{line}");
        assert_eq!(settings_line(bot, None, None), "bridges: [{bot: \"@messengerbot:a.org\"}]");
        assert!(unknown_ghosts(bot).as_str().ends_with(":a.org"));
    }

    #[test]
    fn a_ghost_tells_what_its_kind_is_called() {
        for (user, like, is_ghost) in [
            ("@facebook_1000:a.org", "@facebook_*:a.org", true),
            ("@_wechat_wxid_1:a.org", "@_wechat_*:a.org", true),
            ("@skype-live-jane:a.org", "@skype-*:a.org", true),
            ("@slack_t1-u2:a.org", "@slack_*:a.org", true),
            ("@mallory:a.org", "@mallory:a.org", false),
            ("@_mallory:a.org", "@_mallory:a.org", false),
            ("@mallory_:a.org", "@mallory_:a.org", false),
        ] {
            let user = <&UserId>::try_from(user).unwrap();
            assert_eq!((ghosts_like(user).as_str(), looks_like_ghost(user)), (like, is_ghost));
        }
    }

    #[test]
    fn a_logins_ghost_is_known_however_its_id_is_written() {
        for (protocol, ghost_id, login) in [
            ("instagramgo", "17841400000000000", "17841400000000000"),
            ("signal", "c4f2b0aa-0000-4000-8000-000000000000", "c4f2b0aa-0000-4000-8000-000000000000"),
            ("linkedin", "_a_coab__c=3d", "ACoab_c="),
            ("slackgo", "t01-u02", "T01-U02"),
            ("bluesky", "plc-abc", "did:plc:abc"),
            ("gmessages", "7.1", "1f0e"),
        ] {
            assert!(is_of_login(Some(protocol), ghost_id, login), "{protocol}: {ghost_id}");
        }
        for (protocol, ghost_id, login) in [
            ("instagramgo", "17841400000000001", "17841400000000000"),
            ("instagramgo", "", "17841400000000000"),
            ("linkedin", "acoab", "ACoab"),
            ("bluesky", "plc-abd", "did:plc:abc"),
            ("gmessages", "7.11", "1f0e"),
        ] {
            assert!(!is_of_login(Some(protocol), ghost_id, login), "{protocol}: {ghost_id}");
        }
        assert!(is_of_login(None, "a=", "a=") && !is_of_login(None, "a=zz", "a"));
        assert!(!is_of_login(None, "_", "a") && !is_of_login(None, "é=", "e"));
    }
}
