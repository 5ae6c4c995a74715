//! Why an event waits on the ledger of undecryptable events, and what would help: the words for the
//! operator, in one place for the command line, the REST API and the documentation.

use std::fmt;

/// Why an event could not be relayed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The key of its session has not come.
    NoKey,
    /// The sender told that it withholds the key: the code of `m.room_key.withheld`
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#mroom_keywithheld)).
    Withheld(String),
    /// It was sent before an account of ours had joined, and its key was never shared with us.
    BeforeJoin,
    /// The key is there, but begins at a later message of the session.
    UnknownIndex,
    /// The ciphertext is damaged, or was not made with the session that it names.
    BadCiphertext,
    /// Its ciphertext was used before under another event id, or belongs to another room.
    Replay,
    /// Encrypted by somebody who is neither the sender nor the room's bridge.
    UntrustedSender,
    /// Encrypted with an algorithm that this version does not know.
    UnsupportedAlgorithm,
    /// It is not what an encrypted event must be, so that there is nothing to relay.
    Malformed(Malformed),
    /// Not on the ledger: it waits in its room's order behind another event.
    Order,
    /// Not on the ledger: the room's state has not been read.
    RoomState,
    /// A word of another version of coucou.
    Other(String),
}

const WITHHELD: &str = "withheld:";
const MALFORMED: &str = "malformed:";

/// What an encrypted event lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Malformed {
    /// It has no ciphertext, or names no algorithm.
    NotEncrypted,
    /// It names no session, or one whose name nothing can be kept under.
    NoSession,
    /// It was decrypted, and what came out is no JSON object.
    NotJson,
    /// It was decrypted, and what came out names no room, so that it may have been said in another.
    NoRoom,
}

impl Malformed {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::NotEncrypted, Self::NoSession, Self::NotJson, Self::NoRoom];

    /// Returns the word that follows `malformed:`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotEncrypted => "not_encrypted",
            Self::NoSession => "no_session",
            Self::NotJson => "not_json",
            Self::NoRoom => "no_room",
        }
    }

    /// Returns the lack of that word.
    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == word)
    }

    /// Returns what would fix it, in plain words for the operator.
    fn next_step(self) -> &'static str {
        match self {
            Self::NotEncrypted => {
                "nothing: the event says that it is encrypted and has no ciphertext. See what its sender's program is"
            }
            Self::NoSession => {
                "nothing: the event does not name the session that it was encrypted in. See what its sender's program is"
            }
            Self::NotJson => {
                "nothing: it was decrypted, and what was encrypted is no JSON. Ask the sender to send it again with another \
                 program"
            }
            Self::NoRoom => {
                "nothing: it was decrypted, and what was encrypted names no room, so that it may have been copied from another \
                 one. Ask the sender to send it again with another program"
            }
        }
    }
}

impl Reason {
    /// Every word that [`class`](Self::class) answers.
    pub const CLASSES: [&str; 12] = [
        "no_key",
        "withheld",
        "before_join",
        "unknown_index",
        "bad_ciphertext",
        "replay",
        "untrusted_sender",
        "unsupported_algorithm",
        "malformed",
        "order",
        "room_state",
        "other",
    ];

    /// Reads the word that tables, payloads and logs use.
    #[must_use]
    pub fn parse(word: &str) -> Self {
        match word {
            "no_key" => Self::NoKey,
            "before_join" => Self::BeforeJoin,
            "unknown_index" => Self::UnknownIndex,
            "bad_ciphertext" => Self::BadCiphertext,
            "replay" => Self::Replay,
            "untrusted_sender" => Self::UntrustedSender,
            "unsupported_algorithm" => Self::UnsupportedAlgorithm,
            "order" => Self::Order,
            "room_state" => Self::RoomState,
            other => {
                match (other.strip_prefix(WITHHELD), other.strip_prefix(MALFORMED).and_then(Malformed::parse))
                {
                    (Some(code), _) => Self::Withheld(code.to_owned()),
                    (None, Some(lack)) => Self::Malformed(lack),
                    (None, None) => Self::Other(other.to_owned()),
                }
            }
        }
    }

    /// One of a fixed set of words: what somebody else may have chosen is left out.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Self::NoKey => "no_key",
            Self::Withheld(_) => "withheld",
            Self::BeforeJoin => "before_join",
            Self::UnknownIndex => "unknown_index",
            Self::BadCiphertext => "bad_ciphertext",
            Self::Replay => "replay",
            Self::UntrustedSender => "untrusted_sender",
            Self::UnsupportedAlgorithm => "unsupported_algorithm",
            Self::Malformed(_) => "malformed",
            Self::Order => "order",
            Self::RoomState => "room_state",
            Self::Other(_) => "other",
        }
    }

    /// Whether a key that comes can mend it.
    #[must_use]
    pub fn wants_key(&self) -> bool {
        matches!(self, Self::NoKey | Self::Withheld(_) | Self::BeforeJoin | Self::UnknownIndex)
    }

    /// Whether a webhook is told of it, once: somebody said something that cannot be read. Of a replay or
    /// a forgery nothing is known to have been said by anybody, so of those only the ledger tells.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.wants_key()
            || matches!(self, Self::BadCiphertext | Self::UnsupportedAlgorithm | Self::Malformed(_))
    }
}

/// The word that tables, payloads and logs use.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoKey => "no_key",
            Self::Withheld(code) => return write!(f, "{WITHHELD}{code}"),
            Self::BeforeJoin => "before_join",
            Self::UnknownIndex => "unknown_index",
            Self::BadCiphertext => "bad_ciphertext",
            Self::Replay => "replay",
            Self::UntrustedSender => "untrusted_sender",
            Self::UnsupportedAlgorithm => "unsupported_algorithm",
            Self::Malformed(lack) => return write!(f, "{MALFORMED}{}", lack.as_str()),
            Self::Order => "order",
            Self::RoomState => "room_state",
            Self::Other(word) => word,
        })
    }
}

/// What else decides on the next step; all `false` when nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that are found out one by one, not states of one thing"
)]
pub struct Facts {
    /// The key was asked for, of the own devices or of the device that made it, and no answer came yet.
    pub requested: bool,
    /// Whoever was asked for the key refused or does not answer such requests.
    pub refused: bool,
    /// A key backup is connected, so that keys which it has are fetched.
    pub backup: bool,
    /// A key of the session is stored by now.
    pub key_is_here: bool,
    /// The room has a bridge, or somebody claims that it has.
    pub is_bridged: bool,
}

/// What would fix an event on the ledger, in plain words for the operator.
#[must_use]
pub fn next_step(reason: &Reason, facts: &Facts) -> String {
    match reason {
        Reason::NoKey => missing(*facts, "its key was never received"),
        Reason::BeforeJoin => missing(*facts, "it was sent before coucou joined the room"),
        Reason::UnknownIndex => missing(*facts, "the key that is here begins at a later message"),
        Reason::Withheld(code) => withheld(code, facts.is_bridged),
        Reason::BadCiphertext => "nothing: the ciphertext is damaged, or was not made with the session it \
                                  names. Ask the sender to send it again"
            .to_owned(),
        Reason::Replay => "nothing: the same ciphertext was sent before as another event, or belongs to \
                           another room. Look at who sent this one, and treat it as an attack"
            .to_owned(),
        Reason::UntrustedSender if !facts.is_bridged => "nothing: who encrypted it is not its sender, which is what a \
                                                         forgery looks like. Set trust.mismatched_sender to flag to be \
                                                         told of such messages"
            .to_owned(),
        Reason::UntrustedSender => "nothing if it is a forgery: who encrypted it is neither its sender nor \
                                    the room's bridge. If it is a bridge of yours, name its bot and ghosts \
                                    under bridges: in the settings"
            .to_owned(),
        Reason::UnsupportedAlgorithm => "wait for a version of coucou that knows the algorithm".to_owned(),
        Reason::Malformed(lack) => lack.next_step().to_owned(),
        Reason::Order => {
            "wait: it follows an event whose key may still come, for some seconds at most".to_owned()
        }
        Reason::RoomState => "wait: the state of its room is being read. If it stays, see in the log why \
                              the homeserver does not answer"
            .to_owned(),
        Reason::Other(word) => format!("unknown to this version ({word}): see the version that wrote it"),
    }
}

fn missing(facts: Facts, why: &str) -> String {
    if facts.key_is_here && !why.starts_with("the key that is here") {
        return "nothing: its key has come, and it is about to be tried again".to_owned();
    }
    let by_hand = "import the key (coucou keys import)";
    match facts {
        Facts { refused: true, backup, .. } => {
            let backup = if backup { "" } else { ", or restore it from the key backup (coucou restore)" };
            format!("{why}, and who was asked for the key does not give it: {by_hand}{backup}")
        }
        Facts { requested: true, is_bridged: true, .. } => format!(
            "wait: {why}, and the key was asked for. If no answer comes, {by_hand}, or make coucou an admin \
             of the bridge, which answers nobody else"
        ),
        Facts { requested: true, .. } => {
            format!("wait: {why}, and the key was asked for. If no answer comes, {by_hand}")
        }
        Facts { backup: true, .. } => format!("{why}, and the key backup does not have the key: {by_hand}"),
        Facts { .. } => {
            format!("{why}: {by_hand}, or restore it from a key backup (coucou restore)")
        }
    }
}

/// By the code of `m.room_key.withheld`.
fn withheld(code: &str, is_bridged: bool) -> String {
    match code {
        "m.unverified" if !is_bridged => "the sender gives keys to verified or cross-signed devices only: verify \
                                          coucou's device there, or see that the homeserver shows the device as \
                                          signed (coucou check)"
            .to_owned(),
        "m.unverified" => "the sender gives keys to verified or cross-signed devices only: let the bridge \
                           send to coucou's device (encryption.verification_levels of mautrix bridges), or \
                           see that the homeserver shows the device as signed (coucou check)"
            .to_owned(),
        "m.blacklisted" => "the sender has blocked coucou's device: unblock it there".to_owned(),
        "m.unauthorised" | "m.history_not_shared" => {
            "the sender says that coucou may not read this message: \
                                                      import the key from who may (coucou keys import)"
                .to_owned()
        }
        "m.no_olm" => {
            "the sender could not reach coucou's device: it tries again with the next message. See \
                       that the homeserver has one-time keys for the device (coucou check)"
                .to_owned()
        }
        "m.unavailable" => {
            "the sender no longer has the key: import it from who has it (coucou keys import)".to_owned()
        }
        code => format!("the sender withholds the key ({code}): import it (coucou keys import)"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all() -> Vec<Reason> {
        vec![
            Reason::NoKey,
            Reason::Withheld("m.unverified".to_owned()),
            Reason::Withheld(String::new()),
            Reason::BeforeJoin,
            Reason::UnknownIndex,
            Reason::BadCiphertext,
            Reason::Replay,
            Reason::UntrustedSender,
            Reason::UnsupportedAlgorithm,
            Reason::Malformed(Malformed::NotEncrypted),
            Reason::Malformed(Malformed::NoSession),
            Reason::Malformed(Malformed::NotJson),
            Reason::Malformed(Malformed::NoRoom),
            Reason::Order,
            Reason::RoomState,
            Reason::Other("of_tomorrow".to_owned()),
        ]
    }

    #[test]
    fn a_reason_is_read_as_it_is_written() {
        for reason in all() {
            assert_eq!(Reason::parse(&reason.to_string()), reason);
        }
        assert_eq!(Reason::parse("withheld:m.no_olm"), Reason::Withheld("m.no_olm".to_owned()));
        assert_eq!(Reason::parse("malformed:of_tomorrow"), Reason::Other("malformed:of_tomorrow".to_owned()));
    }

    #[test]
    fn the_classes_are_those_of_all_reasons() {
        let classes: BTreeSet<_> = all().iter().map(Reason::class).collect();
        assert_eq!(classes, BTreeSet::from(Reason::CLASSES));
    }

    #[test]
    fn every_reason_has_a_next_step_in_words() {
        for reason in all() {
            for bits in 0..32_u8 {
                let facts = Facts {
                    requested: bits & 1 != 0,
                    refused: bits & 2 != 0,
                    backup: bits & 4 != 0,
                    key_is_here: bits & 8 != 0,
                    is_bridged: bits & 16 != 0,
                };
                let step = next_step(&reason, &facts);
                assert!(facts.is_bridged || !step.contains("bridge"), "there is none: {reason}: {step}");
                assert!(step.len() > 20 && !step.contains("  ") && !step.ends_with('.'), "{reason}: {step}");
            }
        }
    }

    #[test]
    fn what_was_done_already_is_not_advised_again() {
        let step = |facts| next_step(&Reason::NoKey, &facts);
        assert!(step(Facts::default()).contains("coucou restore"));
        assert!(!step(Facts { backup: true, ..Facts::default() }).contains("coucou restore"));
        assert!(step(Facts { requested: true, ..Facts::default() }).starts_with("wait"));
        assert!(!step(Facts { refused: true, requested: true, ..Facts::default() }).starts_with("wait"));
        assert!(step(Facts { key_is_here: true, ..Facts::default() }).starts_with("nothing"));
        let better = Facts { key_is_here: true, ..Facts::default() };
        assert!(next_step(&Reason::UnknownIndex, &better).contains("import"));
    }

    #[test]
    fn only_what_somebody_said_is_told() {
        let told: Vec<_> =
            all().into_iter().filter(Reason::is_told).map(|reason| reason.to_string()).collect();
        let expected = ["no_key", "withheld:m.unverified", "withheld:", "before_join", "unknown_index"];
        assert_eq!(told[..5], expected);
        assert_eq!(told[5..7], ["bad_ciphertext", "unsupported_algorithm"]);
        let malformed =
            ["not_encrypted", "no_session", "not_json", "no_room"].map(|lack| format!("malformed:{lack}"));
        assert_eq!(told[7..], malformed);
    }
}
