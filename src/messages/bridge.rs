//! What is told of bridges themselves: `bridge.silent`, `bridge.disconnected`, `bridge.resumed`.
//!
//! These belong to no event. What is about a room is numbered with its messages; the rest has a queue of its own.

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{ids, payload::VERSION};
use crate::model::{Alarm, AlarmReason, Direction, Message, MessageId, MessageType};

/// The room under which stands what is about no room. No homeserver has one of that name.
const NO_ROOM: &str = "!coucou-bridges";

/// The room in whose order an alarm is told.
///
/// # Errors
/// Never: the name is a constant.
pub fn room_of(alarm: &Alarm) -> Result<OwnedRoomId, ruma::IdParseError> {
    match &alarm.room_id {
        Some(room_id) => Ok(room_id.clone()),
        None => OwnedRoomId::try_from(NO_ROOM),
    }
}

/// An alarm, or its end, to be told.
#[derive(Clone, Debug)]
pub struct Tidings {
    /// What is so now. Its `message_id` is the one of what was told of it before, if anything was.
    pub alarm: Alarm,
    /// The room's name.
    pub room_name: Option<String>,
    /// How the login calls itself on the network.
    pub login_name: Option<String>,
}

/// The body of a webhook call about a bridge.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BridgePayload<'a> {
    /// `bridge.silent`, `bridge.disconnected` or `bridge.resumed`.
    #[serde(rename = "type")]
    #[cfg_attr(test, schemars(extend("enum" = ["bridge.silent", "bridge.disconnected", "bridge.resumed"])))]
    pub message_type: MessageType,
    /// When coucou noticed it, RFC 3339, UTC.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub timestamp: String,
    /// The version of the schema, 1.
    #[cfg_attr(test, schemars(extend("const" = 1)))]
    pub version: u32,
    /// What it is about.
    pub data: BridgeData<'a>,
}

/// `data` of what is told about a bridge.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BridgeData<'a> {
    /// Its id, equal to the `webhook-id` header.
    pub id: &'a MessageId,
    /// Its number: among the messages of the room when it is about one, else among those about none.
    #[cfg_attr(test, schemars(range(min = 1)))]
    pub sequence: u64,
    /// Why. The end of something has the same reason as its beginning.
    pub reason: AlarmReason,
    /// The network, e.g. `instagram`; null when it is about none, or that is not known.
    pub network: Option<&'a str>,
    /// Since when it is so, or was, RFC 3339, UTC: of a silence, when something last came.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub since: String,
    /// The id of the message that told of what is over now; null for a beginning.
    pub resumes: Option<&'a str>,
    /// The bridge's bot; null when it is about none.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub bot: Option<&'a UserId>,
    /// Only `bot_left`: the Matrix room.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub room_id: Option<&'a RoomId>,
    /// Only `bot_left`: the conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<BridgeRoom<'a>>,
    /// Only `login_lost`: which login, and what the bridge says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login: Option<BridgeLogin<'a>>,
    /// Only `messages_held`: the line of coucou's settings with which the bridge would be believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<String>,
    /// The same in words, to be shown to people.
    pub text: String,
}

/// `data.room` of what is told about a bridge's bot in a room.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BridgeRoom<'a> {
    /// The name to show; null when it has none. Chosen by others: not to be trusted.
    pub name: Option<&'a str>,
}

/// `data.login` of what is told about a bridge's login.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BridgeLogin<'a> {
    /// The login's id on the network; null when the bridge does not say.
    pub id: Option<&'a str>,
    /// The login's name on the network; null when it is not known.
    pub name: Option<&'a str>,
    /// The state as the bridge calls it, e.g. `BAD_CREDENTIALS`.
    pub status: Option<&'a str>,
    /// The code of the error as the bridge calls it; null when it states none.
    pub error: Option<&'a str>,
}

impl Tidings {
    /// The message to store, with its number, from `us` when it is about no bot.
    ///
    /// # Errors
    /// None that is known; the caller still must not store half a payload.
    pub fn into_message(
        self,
        sequence: u64,
        us: &UserId,
    ) -> Result<Message, Box<dyn std::error::Error + Send + Sync>> {
        let Self { alarm, .. } = &self;
        let is_over = !alarm.is_active();
        let message_type = if is_over { MessageType::BridgeResumed } else { alarm.reason.message_type() };
        let message_id = self.id();
        let payload = serde_json::to_vec(&self.payload(&message_id, sequence, message_type))?;
        let sender: OwnedUserId = alarm.bot.clone().unwrap_or_else(|| us.to_owned());
        Ok(Message {
            event_id: OwnedEventId::try_from(format!("${message_id}"))?,
            room_id: room_of(alarm)?,
            message_id,
            sequence,
            message_type,
            network: alarm.network.clone(),
            direction: Direction::In,
            sender,
            origin_server_ts: alarm.told_at,
            replaces: None,
            kind: None,
            encrypted: false,
            trust: None,
            payload,
        })
    }

    /// Made of what was told of the same thing before, so that no two are the same.
    fn id(&self) -> MessageId {
        let Alarm { reason, subject, message_id, told_at, ended_at, .. } = &self.alarm;
        let state = if ended_at.is_some() { "over" } else { "begun" };
        let parts = ["bridge", reason.as_str(), subject, message_id, &told_at.0.to_string(), state];
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
            hash.update([0]);
        }
        ids::written(&hash.finalize())
    }

    fn payload<'a>(
        &'a self,
        id: &'a MessageId,
        sequence: u64,
        message_type: MessageType,
    ) -> BridgePayload<'a> {
        let Self { alarm, room_name, login_name } = self;
        let is_over = message_type == MessageType::BridgeResumed;
        let login = (alarm.reason == AlarmReason::LoginLost).then_some(BridgeLogin {
            id: alarm.login.as_deref(),
            name: login_name.as_deref(),
            status: alarm.status.as_deref(),
            error: alarm.error.as_deref(),
        });
        BridgePayload {
            message_type,
            timestamp: alarm.told_at.rfc3339(),
            version: VERSION,
            data: BridgeData {
                id,
                sequence,
                reason: alarm.reason,
                network: alarm.network.as_deref(),
                since: alarm.since.rfc3339(),
                resumes: is_over.then_some(&*alarm.message_id),
                bot: alarm.bot.as_deref(),
                room_id: alarm.room_id.as_deref(),
                room: alarm.room_id.is_some().then_some(BridgeRoom { name: room_name.as_deref() }),
                login,
                settings: alarm.settings_line(),
                text: words(alarm, is_over),
            },
        }
    }
}

/// An alarm in words.
fn words(alarm: &Alarm, is_over: bool) -> String {
    let Alarm { reason, network, bot, status, since, .. } = alarm;
    let network = network.as_deref().unwrap_or("its network");
    let bot = bot.as_ref().map_or("the bot", |bot| bot.as_str());
    match (reason, is_over) {
        (AlarmReason::NoMessages, false) => {
            format!("Nothing of {network} has come since {since}, which is longer than usual.")
        }
        (AlarmReason::NoMessages, true) => format!("Messages of {network} come again."),
        (AlarmReason::NoTransactions, false) => format!(
            "The homeserver has pushed nothing since {since}, while keys or messages come by other ways."
        ),
        (AlarmReason::NoTransactions, true) => "The homeserver pushes again.".to_owned(),
        (AlarmReason::BotLeft, false) => {
            format!("The bridge's bot {bot} is no longer in the room, so nothing of {network} comes in it.")
        }
        (AlarmReason::BotLeft, true) => format!("The bridge's bot {bot} is in the room again."),
        (AlarmReason::LoginLost, false) => {
            let status = status.as_deref().unwrap_or("no state");
            format!("The bridge {bot} says that its login to {network} does not work: {status}.")
        }
        (AlarmReason::LoginLost, true) => format!("The bridge {bot} is connected to {network} again."),
        (AlarmReason::MessagesHeld, false) => {
            let users = alarm.held_users().map_or(String::new(), |users| format!(" for {users}"));
            format!(
                "Messages of {network} are held: the bridge {bot} says them{users}, and nothing tells that it may. \
                 If it may, say so in the settings of coucou: {}",
                alarm.settings_line().unwrap_or_default(),
            )
        }
        (AlarmReason::MessagesHeld, true) => format!("What the bridge {bot} says is no longer held."),
    }
}

#[cfg(test)]
mod tests {
    use ruma::{owned_room_id, owned_user_id, user_id};
    use serde_json::Value;

    use super::*;
    use crate::clock::Timestamp;

    fn alarm(reason: AlarmReason) -> Alarm {
        let is_room = reason == AlarmReason::BotLeft;
        let has_bot =
            matches!(reason, AlarmReason::BotLeft | AlarmReason::LoginLost | AlarmReason::MessagesHeld);
        let is_login = reason == AlarmReason::LoginLost;
        Alarm {
            reason,
            subject: match reason {
                AlarmReason::MessagesHeld => "@instagrambot:localhost @ig_*:localhost".to_owned(),
                _ => "subject".to_owned(),
            },
            network: (reason != AlarmReason::NoTransactions).then(|| "instagram".to_owned()),
            room_id: is_room.then(|| owned_room_id!("!portal")),
            bot: has_bot.then(|| owned_user_id!("@instagrambot:localhost")),
            login: is_login.then(|| "17841400000000000".to_owned()),
            status: is_login.then(|| "BAD_CREDENTIALS".to_owned()),
            error: is_login.then(|| "meta-not-logged-in".to_owned()),
            since: Timestamp(1_795_300_000_000),
            told_at: Timestamp(1_795_330_000_000),
            message_id: String::new(),
            ended_at: None,
        }
    }

    fn told(alarm: Alarm) -> Message {
        let room_name = alarm.room_id.is_some().then(|| "Alice".to_owned());
        let login_name = alarm.login.is_some().then(|| "alice".to_owned());
        Tidings { alarm, room_name, login_name }.into_message(3, user_id!("@coucou:localhost")).unwrap()
    }

    #[test]
    fn what_is_told_of_bridges_is_as_documented() {
        for reason in AlarmReason::ALL {
            let message = told(alarm(reason));
            insta::assert_snapshot!(format!("bridge_{}", reason.as_str()), pretty(&message.payload));
        }
        let over = Alarm {
            ended_at: Some(Timestamp(1_795_340_000_000)),
            told_at: Timestamp(1_795_340_000_000),
            message_id: told(alarm(AlarmReason::NoMessages)).message_id.0,
            ..alarm(AlarmReason::NoMessages)
        };
        insta::assert_snapshot!("bridge_resumed", pretty(&told(over).payload));
    }

    #[test]
    fn the_example_is_a_real_payload() {
        let alarm = alarm(AlarmReason::LoginLost);
        let tidings = Tidings { alarm, room_name: None, login_name: Some("alice".to_owned()) };
        let (id, kind) = (tidings.id(), MessageType::BridgeDisconnected);
        let example = serde_json::to_string_pretty(&tidings.payload(&id, 3, kind)).unwrap();
        assert!(include_str!("../../docs/webhook.md").contains(&example), "{example}");
    }

    fn pretty(payload: &[u8]) -> String {
        serde_json::to_string_pretty(&serde_json::from_slice::<Value>(payload).unwrap()).unwrap()
    }

    #[test]
    fn no_two_have_the_same_id() {
        let first = alarm(AlarmReason::NoMessages);
        let begun = told(first.clone()).message_id;
        let over = Alarm { message_id: begun.0.clone(), ended_at: Some(first.told_at), ..first.clone() };
        let over_id = told(over).message_id;
        let again = Alarm { message_id: over_id.0.clone(), ..first };
        let again = told(again).message_id;
        assert!(begun != over_id && over_id != again && begun != again, "all in the same millisecond");
    }

    #[test]
    fn what_is_about_no_room_has_a_queue_of_its_own() {
        let message = told(alarm(AlarmReason::NoTransactions));
        assert_eq!((message.room_id.as_str(), message.sender.as_str()), (NO_ROOM, "@coucou:localhost"));
        let message = told(alarm(AlarmReason::BotLeft));
        assert_eq!(
            (message.room_id.as_str(), message.sender.as_str()),
            ("!portal", "@instagrambot:localhost")
        );
    }
}
