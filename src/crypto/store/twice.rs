//! Several keys of one session in one save.
//!
//! The SDK merges each room key with what is stored, but not with the other keys of the same answer: without this the
//! last would win, a worse ratchet or a less known device included.

use matrix_sdk_crypto::{
    olm::{InboundGroupSession, SenderData},
    vodozemac::megolm::SessionOrdering,
};

use super::{Result, codec};

/// Leaves one session of each id: the earliest ratchet, and of the devices the one that is known best, or came first.
pub(super) async fn merge(sessions: Vec<InboundGroupSession>) -> Result<Vec<InboundGroupSession>> {
    let mut merged = Vec::<InboundGroupSession>::with_capacity(sessions.len());
    for session in sessions {
        let is_same = |known: &&mut InboundGroupSession| {
            known.room_id() == session.room_id() && known.session_id() == session.session_id()
        };
        match merged.iter_mut().find(is_same) {
            Some(known) => *known = better(known, session).await?,
            None => merged.push(session),
        }
    }
    Ok(merged)
}

async fn better(first: &InboundGroupSession, second: InboundGroupSession) -> Result<InboundGroupSession> {
    let has_better_ratchet = match second.compare_ratchet(first).await {
        SessionOrdering::Unconnected => return Ok(first.clone()),
        SessionOrdering::Better => true,
        SessionOrdering::Equal | SessionOrdering::Worse => false,
    };
    let is_known_better = rank(&second.sender_data) > rank(&first.sender_data);
    match (has_better_ratchet, is_known_better) {
        (true, true) => Ok(second),
        (false, false) => Ok(first.clone()),
        (true, false) => with_ratchet(first, &second).await,
        (false, true) => with_ratchet(&second, first).await,
    }
}

/// How well a device is known, as the SDK ranks it.
fn rank(sender: &SenderData) -> u8 {
    match sender {
        SenderData::UnknownDevice { .. } => 0,
        SenderData::DeviceInfo { .. } => 1,
        SenderData::VerificationViolation(_) => 2,
        SenderData::SenderUnverified(_) => 3,
        SenderData::SenderVerified(_) => 4,
    }
}

/// The session of one with the ratchet of another.
async fn with_ratchet(
    session: &InboundGroupSession,
    of: &InboundGroupSession,
) -> Result<InboundGroupSession> {
    let mut pickle = session.pickle().await;
    pickle.pickle = of.pickle().await.pickle;
    pickle.backed_up = false;
    codec::unpickled(pickle)
}

#[cfg(test)]
mod tests {
    use matrix_sdk_crypto::vodozemac::megolm::{GroupSession, InboundGroupSession as Inbound, SessionConfig};
    use ruma::device_id;
    use serde_json::json;

    use super::*;

    /// The key of a session from a message on, by a device of which so much is known.
    fn key(session: &GroupSession, from: u32, sender_data: SenderData) -> InboundGroupSession {
        let mut inbound = Inbound::new(&session.session_key(), SessionConfig::version_1());
        let exported = json!({
            "algorithm": "m.megolm.v1.aes-sha2", "room_id": "!room:example.org", "session_id": session.session_id(),
            "session_key": inbound.export_at(from).unwrap().to_base64(),
            "sender_key": "WJ6Ce7U67a6jqkHYHd8o0+5H4bqdi9hInZdk0+swuXs",
            "sender_claimed_keys": {}, "forwarding_curve25519_key_chain": [],
        });
        let exported = serde_json::from_value(exported).unwrap();
        let mut session = InboundGroupSession::from_export(&exported).unwrap();
        session.sender_data = sender_data;
        session
    }

    fn known(name: &str) -> SenderData {
        let user_id = ruma::UserId::parse(format!("@{name}:example.org")).unwrap();
        let master_key = matrix_sdk_crypto::vodozemac::Ed25519SecretKey::new().public_key();
        SenderData::sender_unverified(&user_id, device_id!("D"), master_key)
    }

    #[tokio::test]
    async fn of_two_keys_the_earlier_ratchet_and_the_better_known_device_stay() {
        let session = GroupSession::new(SessionConfig::version_1());
        let nobody = SenderData::unknown;
        let (alice, mallory) = (known("alice"), known("mallory"));
        for (first, second, from, by) in [
            ((0, alice.clone()), (5, mallory.clone()), 0, alice.clone()),
            ((5, alice.clone()), (0, mallory.clone()), 0, alice.clone()),
            ((5, nobody()), (0, mallory.clone()), 0, mallory.clone()),
            ((0, nobody()), (5, alice.clone()), 0, alice.clone()),
            ((0, alice.clone()), (0, nobody()), 0, alice.clone()),
            ((0, alice.clone()), (0, mallory.clone()), 0, alice.clone()),
        ] {
            let keys = [first, second].map(|(from, data)| key(&session, from, data));
            let other = key(&GroupSession::new(SessionConfig::version_1()), 0, nobody());
            let merged = merge([keys.to_vec(), vec![other]].concat()).await.unwrap();
            assert_eq!(merged.len(), 2);
            assert_eq!(merged[0].first_known_index(), from);
            assert_eq!(merged[0].sender_data, by);
        }
    }
}
