//! The registration file: what the homeserver knows about us.
//!
//! Read leniently, for it may have been written by another program or by hand: only the tokens, the id, the
//! address, the sender and the user namespaces matter here.

use regex::Regex;
use ruma::UserId;
use secrecy::SecretString;
use serde::Deserialize;

/// What matters of a registration file.
#[derive(Debug)]
pub struct Registration {
    /// `id`.
    pub id: Option<String>,
    /// `url`.
    pub url: Option<String>,
    /// `as_token`.
    pub as_token: Option<SecretString>,
    /// `hs_token`.
    pub hs_token: Option<SecretString>,
    /// `sender_localpart`.
    pub sender_localpart: Option<String>,
    /// `namespaces`.
    pub namespaces: Namespaces,
}

/// The user namespaces of a registration.
#[derive(Clone, Debug)]
pub struct Namespaces {
    users: Vec<Regex>,
}

impl Namespaces {
    /// Whether the homeserver lets us act as `user_id`.
    ///
    /// As Synapse does, a pattern must match from the first character on, but not to the last one.
    #[must_use]
    pub fn contains(&self, user_id: &UserId) -> bool {
        self.users.iter().any(|regex| regex.is_match(user_id.as_str()))
    }
}

#[derive(Deserialize)]
struct Raw {
    id: Option<String>,
    url: Option<String>,
    as_token: Option<String>,
    hs_token: Option<String>,
    sender_localpart: Option<String>,
    #[serde(default)]
    namespaces: RawNamespaces,
}

#[derive(Default, Deserialize)]
struct RawNamespaces {
    users: Option<Vec<RawNamespace>>,
}

#[derive(Deserialize)]
struct RawNamespace {
    regex: String,
}

impl Registration {
    /// Parses a registration file.
    ///
    /// # Errors
    /// What is wrong with it, in a few words without any of its values but a namespace.
    pub fn parse(text: &str) -> Result<Self, String> {
        let raw: Raw = serde_saphyr::from_str(text).map_err(|error| super::file::describe(&error))?;
        let users = raw.namespaces.users.unwrap_or_default().into_iter().map(|namespace| {
            Regex::new(&format!("^(?:{})", namespace.regex))
                .map_err(|_| format!("the user namespace {:?} is not a valid pattern", namespace.regex))
        });
        let users = users.collect::<Result<_, _>>()?;
        let secret = |token: Option<String>| token.filter(|token| !token.is_empty()).map(SecretString::from);
        Ok(Self {
            id: raw.id,
            url: raw.url,
            as_token: secret(raw.as_token),
            hs_token: secret(raw.hs_token),
            sender_localpart: raw.sender_localpart,
            namespaces: Namespaces { users },
        })
    }
}
