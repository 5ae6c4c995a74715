//! How the homeserver is.

/// How the homeserver is towards coucou, as the last request to it has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HomeserverState {
    /// Nothing was asked of it yet, as by a process that stands by.
    #[default]
    Unasked,
    /// It answers.
    Ok,
    /// It cannot be reached, or a proxy answers in its place.
    Away,
    /// It answers and will do nothing for coucou.
    Refuses {
        /// Why, in words for the operator; without addresses or secrets, as everybody may read them.
        why: &'static str,
    },
}

impl HomeserverState {
    /// The word for it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unasked => "unasked",
            Self::Ok => "ok",
            Self::Away => "away",
            Self::Refuses { .. } => "refuses",
        }
    }

    /// Why it refuses, if it does.
    #[must_use]
    pub fn why(&self) -> Option<&'static str> {
        match self {
            Self::Refuses { why } => Some(why),
            _ => None,
        }
    }
}
