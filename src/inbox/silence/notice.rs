//! What a bridge says of its logins.
//!
//! Bridges built on mautrix-go tell their user in the management room when a login stops working, or works again
//! (`bridge_status_notices`, by default for errors). The message is for people, and has the same for programs under
//! `fi.mau.bridge_state`: the state that the bridge could also be told to post to an address of its operator's
//! ([states](https://pkg.go.dev/maunium.net/go/mautrix/bridgev2/status)).

use serde_json::{Map, Value};

use crate::model::text::is_id;

/// The key in the content of a message.
const KEY: &str = "fi.mau.bridge_state";

/// What became of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// It does not work.
    Lost,
    /// It works.
    Connected,
}

/// What a bridge says of one of its logins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) health: Health,
    /// The state as it calls it.
    pub(super) status: String,
    /// The code of an error.
    pub(super) error: Option<String>,
    /// The login's id on the network.
    pub(super) login: Option<String>,
    /// Its name there.
    pub(super) name: Option<String>,
}

/// Reads a message of a bridge's bot; `None` when it says nothing of a login, or nothing that lasts.
pub(super) fn read(content: &Map<String, Value>) -> Option<Notice> {
    let state = content.get(KEY)?;
    let text = |key: &str| {
        let text = state.get(key).and_then(Value::as_str)?;
        (!text.is_empty() && is_id(text)).then(|| text.to_owned())
    };
    let status = text("state_event")?;
    // What the bridge itself takes for an error it writes as a text, and the rest as a notice: a connection that was
    // lost a moment ago, with `bridge_status_notices: all`, and that it expects to have back.
    let is_error = content.get("msgtype").and_then(Value::as_str) != Some("m.notice");
    let health = match status.as_str() {
        "CONNECTED" | "BACKFILLING" => Health::Connected,
        "BAD_CREDENTIALS" | "LOGGED_OUT" => Health::Lost,
        "TRANSIENT_DISCONNECT" | "UNKNOWN_ERROR" | "BRIDGE_UNREACHABLE" if is_error => Health::Lost,
        _ => return None,
    };
    Some(Notice { health, status, error: text("error"), login: text("remote_id"), name: text("remote_name") })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn notice(msgtype: &str, state: &Value) -> Option<Notice> {
        let content = json!({"msgtype": msgtype, "body": "State update", "fi.mau.bridge_state": state});
        read(content.as_object().unwrap())
    }

    #[test]
    fn a_lost_login_is_read_with_what_the_bridge_says_of_it() {
        let state = json!({"state_event": "BAD_CREDENTIALS", "timestamp": 1_795_300_000, "ttl": 3600, "source": "bridge",
            "error": "meta-not-logged-in", "message": "Logged out", "remote_id": "1784", "remote_name": "alice",
            "user_id": "@owner:example.org"});
        let expected = Notice {
            health: Health::Lost,
            status: "BAD_CREDENTIALS".to_owned(),
            error: Some("meta-not-logged-in".to_owned()),
            login: Some("1784".to_owned()),
            name: Some("alice".to_owned()),
        };
        assert_eq!(notice("m.text", &state), Some(expected));
    }

    #[test]
    fn what_passes_by_itself_is_nothing_until_the_bridge_calls_it_an_error() {
        let health = |msgtype, state: &str| {
            notice(msgtype, &json!({"state_event": state})).map(|notice| notice.health)
        };
        assert_eq!(health("m.notice", "TRANSIENT_DISCONNECT"), None);
        assert_eq!(health("m.text", "TRANSIENT_DISCONNECT"), Some(Health::Lost));
        assert_eq!(health("m.text", "UNKNOWN_ERROR"), Some(Health::Lost));
        assert_eq!(health("m.notice", "LOGGED_OUT"), Some(Health::Lost));
        assert_eq!(health("m.notice", "CONNECTED"), Some(Health::Connected));
        for other in ["CONNECTING", "STARTING", "RUNNING", "UNCONFIGURED", "", "anything"] {
            assert_eq!(health("m.text", other), None, "{other}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_nothing() {
        assert_eq!(read(json!({"body": "hello"}).as_object().unwrap()), None);
        for state in [json!(null), json!("CONNECTED"), json!({"state_event": 7}), json!([])] {
            assert_eq!(notice("m.text", &state), None, "{state}");
        }
        let odd = json!({"state_event": "CONNECTED", "remote_id": "a\u{0}b", "error": "x".repeat(300)});
        let read = notice("m.notice", &odd).unwrap();
        assert_eq!((read.login, read.error), (None, None));
    }
}
