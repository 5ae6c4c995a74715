//! What the decryption alone costs: vodozemac on one thread, with nothing around it.

use std::time::Instant;

use serde_json::json;
use vodozemac::megolm::{GroupSession, InboundGroupSession, MegolmMessage, SessionConfig};

/// Sessions that the messages are spread over, as rooms would.
const SESSIONS: usize = 50;

/// Seconds of one core that one message takes to be read from base64, decrypted and parsed as an event's JSON.
pub(crate) fn run(messages: usize) -> f64 {
    let mut outbound: Vec<_> = (0..SESSIONS).map(|_| GroupSession::new(SessionConfig::version_1())).collect();
    let mut inbound: Vec<_> = outbound
        .iter()
        .map(|session| InboundGroupSession::new(&session.session_key(), SessionConfig::version_1()))
        .collect();
    let sealed: Vec<(usize, String)> = (0..messages)
        .map(|number| {
            let at = number % SESSIONS;
            let event = json!({
                "type": "m.room.message", "room_id": "!a-room-id-of-the-usual-length:localhost",
                "content": {"msgtype": "m.text", "body": format!("message {number}")},
            });
            (at, outbound[at].encrypt(event.to_string()).to_base64())
        })
        .collect();
    let began = Instant::now();
    for (at, ciphertext) in &sealed {
        let message = MegolmMessage::from_base64(ciphertext).unwrap();
        let clear = inbound[*at].decrypt(&message).unwrap();
        let event: serde_json::Value = serde_json::from_slice(&clear.plaintext).unwrap();
        assert_eq!(event["type"], "m.room.message");
    }
    began.elapsed().as_secs_f64() / messages as f64
}
