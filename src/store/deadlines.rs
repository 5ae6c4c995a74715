//! Stored deadlines that lie further ahead than coucou itself sets them.
//!
//! A machine whose clock ran hours ahead leaves deadlines that nothing waits for once the clock is right again: rooms,
//! invites, requests and look-ups would stand still for that long. They are cut down to the longest wait that their
//! kind has. Doing so twice changes nothing, and nothing is done early: a deadline within its bound stays.

use std::time::Duration;

use super::{StoreError, Tx, db::values};
use crate::clock::Timestamp;

/// The longest wait of a room or an invite that was tried before: a homeserver's wish to be left alone is granted for
/// an hour at most.
pub const MAX_ERRAND_WAIT: Duration = Duration::from_hours(1);

/// The longest wait between two requests for a room key.
pub const MAX_REQUEST_WAIT: Duration = Duration::from_hours(24);

/// The longest wait between two look-ups in the key backups.
pub const MAX_LOOKUP_WAIT: Duration = Duration::from_hours(6);

pub(super) const ROOMS: &str = "UPDATE rooms SET due_at = CASE WHEN tries > 0 THEN $1 ELSE $2 END \
     WHERE due_at > $1 AND (tries > 0 OR due_at > $2)";

pub(super) const INVITES: &str = "UPDATE room_accounts SET due_at = $1 WHERE due_at > $1";

pub(super) const REQUESTS: &str = "UPDATE key_requests SET next_at = $1 WHERE next_at > $1";

const READINGS: &str = "UPDATE room_readings SET due_at = $1 WHERE due_at > $1";

const LOOKUPS: &str = "UPDATE backup_lookups SET due_at = $1 WHERE due_at > $1";

/// Cuts down what rooms, invites, key requests and look-ups in backups wait for. A room that was not tried yet may wait
/// for its second reading, `settle_after` its first. Returns how many it changed.
///
/// # Errors
/// When the database fails.
pub async fn cut(tx: &mut Tx, now: Timestamp, settle_after: Duration) -> Result<u64, StoreError> {
    let errand = now.plus(MAX_ERRAND_WAIT);
    let first = now.plus(settle_after.max(MAX_ERRAND_WAIT));
    let mut count = tx.execute(ROOMS, values![errand, first]).await?;
    count += tx.execute(INVITES, values![errand]).await?;
    count += tx.execute(READINGS, values![errand]).await?;
    count += tx.execute(REQUESTS, values![now.plus(MAX_REQUEST_WAIT)]).await?;
    count += tx.execute(LOOKUPS, values![now.plus(MAX_LOOKUP_WAIT)]).await?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, START};

    const DUE: &str = "SELECT due_at FROM rooms WHERE room_id = $1";

    async fn room(tx: &mut Tx, room_id: &str, tries: i64, due_at: Timestamp) {
        let sql = "INSERT INTO rooms (room_id, relay, last_sequence, due_at, tries, created_at) \
                   VALUES ($1, 'unknown', 0, $2, $3, $4)";
        tx.execute(sql, values![room_id, due_at, tries, START]).await.unwrap();
    }

    #[tokio::test]
    async fn deadlines_of_a_clock_that_was_ahead_are_cut_down_and_others_stay() {
        let hours = |count| START.plus(Duration::from_hours(count));
        let rooms = [
            ("!a", 1, hours(2), hours(1)),
            ("!b", 1, hours(1), hours(1)),
            ("!c", 0, hours(24), hours(24)),
            ("!d", 0, hours(48), hours(25)),
            ("!e", 3, START, START),
        ];
        for test in testing::both().await {
            let mut tx = test.store.begin().await.unwrap();
            for (room_id, tries, due_at, _) in rooms {
                room(&mut tx, room_id, tries, due_at).await;
            }
            let lookup =
                "INSERT INTO backup_lookups (room_id, session_id, tries, due_at) VALUES ('!a', 's', 1, $1)";
            tx.execute(lookup, values![hours(7)]).await.unwrap();
            let reading = "INSERT INTO room_readings (room_id, account_id, cause, read_count, missing_count, due_at, \
                           tries, created_at) VALUES ('!a', 1, 'gap', 0, 0, $1, 1, 0)";
            tx.execute(reading, values![hours(2)]).await.unwrap();
            assert_eq!(cut(&mut tx, START, Duration::from_hours(25)).await.unwrap(), 4);
            assert_eq!(cut(&mut tx, START, Duration::from_hours(25)).await.unwrap(), 0);
            for (room_id, _, _, expected) in rooms {
                let due: Option<(i64,)> = tx.fetch_optional(DUE, values![room_id]).await.unwrap();
                assert_eq!(due, Some((expected.0,)), "{room_id}");
            }
            let due: Option<(i64,)> =
                tx.fetch_optional("SELECT due_at FROM backup_lookups", vec![]).await.unwrap();
            assert_eq!(due, Some((hours(6).0,)));
        }
    }

    #[tokio::test]
    async fn looking_for_deadlines_reads_none_that_are_right() {
        for test in testing::both().await {
            let mut tx = test.store.begin().await.unwrap();
            for n in 0..3000 {
                room(&mut tx, &format!("!{n}:x"), 1, START).await;
            }
            tx.execute("ANALYZE", vec![]).await.unwrap();
            let plan = tx.explain(ROOMS, values![START, START], vec![]).await;
            assert!(plan.contains("rooms_due"), "{plan}");
        }
    }
}
