//! What is pending, for people and metrics.

use super::super::{Db, StoreError};
use crate::{clock::Timestamp, model::WebhookId};

/// What a webhook has not taken yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// The webhook.
    pub webhook_id: WebhookId,
    /// Deliveries that are pending.
    pub pending_count: u64,
    /// Rooms that have some; with no order, requests that failed, and one for what waits to be sent first.
    pub room_count: u64,
    /// When the oldest of them was stored.
    pub oldest_at: Option<Timestamp>,
}

pub(super) const BACKLOGS: &str = "SELECT q.webhook_id, CAST(SUM(q.pending_count) AS BIGINT), COUNT(*), \
         MIN(CASE WHEN q.room_id = '*' THEN (SELECT d.created_at FROM deliveries AS d \
                  WHERE d.webhook_id = q.webhook_id AND d.queue = '*' AND d.state = 'pending' \
                  ORDER BY d.delivery_id LIMIT 1) \
              ELSE (SELECT d.created_at FROM deliveries AS d \
                  WHERE d.webhook_id = q.webhook_id AND COALESCE(d.queue, d.room_id) = q.room_id \
                      AND d.state = 'pending' ORDER BY d.sequence LIMIT 1) END) \
     FROM room_queues AS q WHERE q.pending_count > 0 GROUP BY q.webhook_id ORDER BY q.webhook_id";

/// What is pending, by webhook. Costs one index lookup for each room that has something pending.
///
/// # Errors
/// When the database fails.
pub async fn backlogs(db: &Db) -> Result<Vec<Backlog>, StoreError> {
    let rows: Vec<(i64, i64, i64, Option<i64>)> = db.fetch_all(BACKLOGS, vec![]).await?;
    let backlog = |(webhook_id, pending, rooms, oldest): (i64, i64, i64, Option<i64>)| Backlog {
        webhook_id: WebhookId(webhook_id),
        pending_count: u64::try_from(pending).unwrap_or(0),
        room_count: u64::try_from(rooms).unwrap_or(0),
        oldest_at: oldest.map(Timestamp),
    };
    Ok(rows.into_iter().map(backlog).collect())
}

pub(super) const DEAD: &str =
    "SELECT webhook_id, COUNT(*) FROM deliveries WHERE state = 'dead' GROUP BY webhook_id";

/// How many deliveries are given up, by webhook.
///
/// # Errors
/// When the database fails.
pub async fn dead(db: &Db) -> Result<Vec<(WebhookId, u64)>, StoreError> {
    let rows: Vec<(i64, i64)> = db.fetch_all(DEAD, vec![]).await?;
    Ok(rows.into_iter().map(|(id, count)| (WebhookId(id), u64::try_from(count).unwrap_or(0))).collect())
}
