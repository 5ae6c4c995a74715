//! The registration file.

use std::fmt::Write;

use rand::CryptoRng;
use ruma::OwnedUserId;

use super::{SENDER_LOCALPART, Wishes};

/// A registration with fresh tokens.
pub(super) struct Document {
    pub(super) id: String,
    pub(super) url: String,
    pub(super) bot: OwnedUserId,
    pub(super) owner: Option<OwnedUserId>,
    as_token: String,
    hs_token: String,
}

impl Document {
    /// Makes the tokens: 32 random bytes each.
    pub(super) fn new<R: CryptoRng + ?Sized>(wishes: &Wishes, rng: &mut R) -> Self {
        Self {
            id: wishes.id.clone(),
            url: wishes.url.clone(),
            bot: wishes.bot.clone(),
            owner: wishes.owner.clone(),
            as_token: token(rng),
            hs_token: token(rng),
        }
    }

    /// The file's text.
    pub(super) fn to_yaml(&self) -> String {
        let Self { id, url, as_token, hs_token, .. } = self;
        let (id, url) = (quoted(id), quoted(url));
        let bot = namespace(true, &self.bot, "The bot.");
        let owner = self.owner.as_ref().map(|owner| namespace(false, owner, "The owner, a real user."));
        let owner = owner.unwrap_or_default();
        format!(
            "# The registration of coucou, an application service. The homeserver and coucou have the same file.
id: {id}
url: {url}
as_token: {as_token}
hs_token: {hs_token}
# The registration's own user. It is not the bot: /sync fails for it.
sender_localpart: {SENDER_LOCALPART}
rate_limited: false
namespaces:
  users:
{bot}{owner}  aliases: []
  rooms: []
# Events that are not messages, and to-device messages. Both, for Synapse 1.156 needs the second.
receive_ephemeral: true
de.sorunome.msc2409.push_ephemeral: true
# Device lists and one-time key counts.
org.matrix.msc3202: true
# Devices without a login.
io.element.msc4190: true
"
        )
    }
}

/// One entry of `namespaces.users`, for exactly one user.
fn namespace(exclusive: bool, user_id: &OwnedUserId, comment: &str) -> String {
    let regex = quoted(&format!("^{}$", regex::escape(user_id.as_str())));
    format!("    # {comment}\n    - exclusive: {exclusive}\n      regex: {regex}\n")
}

/// Text in single quotes, in which YAML knows no escapes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn token<R: CryptoRng + ?Sized>(rng: &mut R) -> String {
    let mut bytes = [0_u8; 32];
    rng.fill_bytes(&mut bytes);
    let mut token = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(token, "{byte:02x}");
    }
    token
}
