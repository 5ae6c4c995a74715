//! Secrets that a rotation made, beside those of the settings.
//!
//! The newest one signs until the next rotation, what it replaced until the end of the overlap that was asked for. A
//! change of the settings' own secrets ends it all: they are what somebody wants now.

use std::time::Duration;

use rand::CryptoRng;
use secrecy::SecretString;

use super::fresh_secret;
use crate::{
    clock::Timestamp,
    model::WebhookId,
    store::{Db, Seal, StoreError, Tx, db::values},
};

const TABLE: &str = "webhook_secrets";

/// So many of them sign at once; of more, the oldest ends early.
const MOST: i64 = 8;

/// A secret, and until when it signs.
#[derive(Clone, Debug)]
pub struct Signing {
    /// The secret: `whsec_` and base64.
    pub secret: SecretString,
    /// Until when; `None` is until something else is said.
    pub until: Option<Timestamp>,
    /// Whether a rotation made it.
    pub is_rotated: bool,
}

impl From<SecretString> for Signing {
    fn from(secret: SecretString) -> Self {
        Self { secret, until: None, is_rotated: false }
    }
}

/// What rotations have made of a webhook's secrets.
#[derive(Clone, Debug, Default)]
pub struct Rotated {
    /// The newest first; none when nothing was rotated.
    secrets: Vec<Signing>,
    /// Until when the settings' secrets sign as well.
    settings_until: Timestamp,
}

impl Rotated {
    /// What signs at a time, the newest first, when the settings have these.
    #[must_use]
    pub fn signing(self, settings: &[SecretString], now: Timestamp) -> Vec<Signing> {
        let until = (!self.secrets.is_empty()).then_some(self.settings_until);
        let settings =
            settings.iter().map(|secret| Signing { secret: secret.clone(), until, is_rotated: false });
        let all = self.secrets.into_iter().chain(settings);
        all.filter(|signing| signing.until.is_none_or(|until| until > now)).collect()
    }
}

/// The secrets that rotations made for a webhook and that are not forgotten; none when they were beside other
/// secrets of the settings than those of this digest.
///
/// # Errors
/// When the database fails, or a secret does not open.
pub async fn rotated(db: &Db, seal: &Seal, id: WebhookId, digest: &[u8]) -> Result<Rotated, StoreError> {
    let rows: Vec<(i64, Vec<u8>, Option<i64>)> = db
        .fetch_all(
            "SELECT rotation, secret, retires_at FROM webhook_secrets WHERE webhook_id = $1 ORDER BY rotation DESC",
            values![id.0],
        )
        .await?;
    let beside: Option<(Option<Vec<u8>>, Option<i64>)> = db
        .fetch_optional(
            "SELECT settings_digest, settings_until FROM webhooks WHERE webhook_id = $1",
            values![id.0],
        )
        .await?;
    let (known, until) = beside.unwrap_or_default();
    if !is_known(seal, id, known.as_deref(), digest)? {
        return Ok(Rotated::default());
    }
    let open = |(rotation, sealed, retires_at): (i64, Vec<u8>, Option<i64>)| {
        let text = String::from_utf8(seal.open(TABLE, &row(id, rotation), &sealed)?);
        let secret = SecretString::from(text.map_err(|_| StoreError::Corrupt(TABLE))?);
        Ok(Signing { secret, until: retires_at.map(Timestamp), is_rotated: true })
    };
    Ok(Rotated {
        secrets: rows.into_iter().map(open).collect::<Result<_, StoreError>>()?,
        settings_until: Timestamp(until.unwrap_or_default()),
    })
}

/// Makes a new secret for a webhook, which signs from now on; what signed so far, the settings' secrets included,
/// ends when `overlap` is over, if not before.
///
/// # Errors
/// When the database fails.
pub async fn rotate<R: CryptoRng + ?Sized>(
    tx: &mut Tx,
    seal: &Seal,
    id: WebhookId,
    overlap: Duration,
    now: Timestamp,
    rng: &mut R,
) -> Result<SecretString, StoreError> {
    // Of two rotations at once the second waits for the first, and replaces what it made.
    super::lock(tx, id).await?;
    let ends = now.plus(overlap);
    let newest: Option<(Option<i64>,)> = tx
        .fetch_optional("SELECT MAX(rotation) FROM webhook_secrets WHERE webhook_id = $1", values![id.0])
        .await?;
    let rotation = newest.and_then(|(newest,)| newest).unwrap_or(0) + 1;
    tx.execute(
        "UPDATE webhooks SET settings_until = CASE WHEN settings_until < $2 THEN settings_until ELSE $2 END \
         WHERE webhook_id = $1",
        values![id.0, ends],
    )
    .await?;
    tx.execute(
        "UPDATE webhook_secrets SET retires_at = $2 \
         WHERE webhook_id = $1 AND (retires_at IS NULL OR retires_at > $2)",
        values![id.0, ends],
    )
    .await?;
    tx.execute(
        "DELETE FROM webhook_secrets WHERE webhook_id = $1 AND (retires_at <= $2 OR rotation <= $3)",
        values![id.0, now, rotation - MOST],
    )
    .await?;
    let secret = fresh_secret(rng);
    let sealed = seal.seal(TABLE, &row(id, rotation), secret.as_bytes())?;
    tx.execute(
        "INSERT INTO webhook_secrets (webhook_id, rotation, secret, created_at) VALUES ($1, $2, $3, $4)",
        values![id.0, rotation, sealed, now],
    )
    .await?;
    Ok(SecretString::from(secret.as_str()))
}

/// Notes what secrets the settings have, by a digest. When they are not what they were, all rotations end hereby;
/// answers whether there were any.
///
/// # Errors
/// When the database fails.
pub async fn with_settings(
    tx: &mut Tx,
    seal: &Seal,
    id: WebhookId,
    digest: &[u8],
) -> Result<bool, StoreError> {
    super::lock(tx, id).await?;
    let known: Option<(Option<Vec<u8>>,)> = tx
        .fetch_optional("SELECT settings_digest FROM webhooks WHERE webhook_id = $1", values![id.0])
        .await?;
    if is_known(seal, id, known.and_then(|(known,)| known).as_deref(), digest)? {
        return Ok(false);
    }
    let digest = seal.seal(TABLE, &id.0.to_string(), digest)?;
    let ended = tx.execute("DELETE FROM webhook_secrets WHERE webhook_id = $1", values![id.0]).await?;
    tx.execute(
        "UPDATE webhooks SET settings_digest = $2, settings_until = NULL WHERE webhook_id = $1",
        values![id.0, digest],
    )
    .await?;
    Ok(ended > 0)
}

/// Whether a digest is the one that is kept; sealed, because a plain text could be guessed by it.
fn is_known(seal: &Seal, id: WebhookId, kept: Option<&[u8]>, digest: &[u8]) -> Result<bool, StoreError> {
    let Some(kept) = kept else { return Ok(false) };
    Ok(seal.open(TABLE, &id.0.to_string(), kept)? == digest)
}

fn row(id: WebhookId, rotation: i64) -> String {
    format!("{}/{rotation}", id.0)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};
    use secrecy::ExposeSecret;

    use super::*;
    use crate::{
        store::{Store, webhooks},
        testing::{self, START},
    };

    async fn rotate_now(store: &Store, id: WebhookId, overlap: Duration, now: Timestamp) -> String {
        let mut rng = StdRng::from_os_rng();
        let mut tx = store.begin().await.unwrap();
        let secret = rotate(&mut tx, store.seal().unwrap(), id, overlap, now, &mut rng).await.unwrap();
        tx.commit().await.unwrap();
        secret.expose_secret().to_owned()
    }

    async fn settings(store: &Store, id: WebhookId, digest: &str) -> bool {
        let mut tx = store.begin().await.unwrap();
        let ended = with_settings(&mut tx, store.seal().unwrap(), id, digest.as_bytes()).await.unwrap();
        tx.commit().await.unwrap();
        ended
    }

    /// What signs, when the settings have one secret and that digest.
    async fn signing_by(store: &Store, id: WebhookId, digest: &str, now: Timestamp) -> Vec<String> {
        let rotated = rotated(store.db(), store.seal().unwrap(), id, digest.as_bytes()).await.unwrap();
        let signing = rotated.signing(&[SecretString::from("set")], now);
        signing.iter().map(|one| one.secret.expose_secret().to_owned()).collect()
    }

    async fn signing(store: &Store, id: WebhookId, now: Timestamp) -> Vec<String> {
        signing_by(store, id, "one", now).await
    }

    #[tokio::test]
    async fn what_was_replaced_signs_until_its_overlap_is_over() {
        const HOUR: Duration = Duration::from_hours(1);
        for test in testing::both().await {
            let store = &test.store;
            let mut tx = store.begin().await.unwrap();
            let id = webhooks::ensure(&mut tx, "main", START).await.unwrap();
            let other = webhooks::ensure(&mut tx, "other", START).await.unwrap();
            tx.commit().await.unwrap();
            assert!(!settings(store, id, "one").await);
            assert_eq!(signing(store, id, START).await, ["set"]);

            let first = rotate_now(store, id, HOUR, START).await;
            assert!(first.starts_with("whsec_"));
            assert_eq!(signing(store, id, START).await, [first.as_str(), "set"]);
            assert_eq!(signing(store, id, START.plus(HOUR)).await, [first.as_str()]);
            assert_eq!(signing(store, other, START).await, ["set"]);

            let half = START.plus(HOUR / 2);
            let second = rotate_now(store, id, HOUR, half).await;
            let both = [second.as_str(), first.as_str()];
            assert_eq!(signing(store, id, half).await, [both[0], both[1], "set"]);
            assert_eq!(signing(store, id, START.plus(HOUR)).await, both, "no end is put off");
            assert_eq!(signing(store, id, half.plus(HOUR)).await, [second.as_str()]);

            // A secret that has leaked ends at once, with all before it.
            let third = rotate_now(store, id, Duration::ZERO, half).await;
            assert_eq!(signing(store, id, half).await, [third.as_str()]);

            assert!(!settings(store, id, "one").await, "a restart changes nothing");
            assert_eq!(signing(store, id, half).await, [third.as_str()]);
            assert!(settings(store, id, "two").await);
            assert_eq!(
                signing_by(store, id, "two", half).await,
                ["set"],
                "the settings win when they change"
            );
            rotate_now(store, id, HOUR, half).await;
            assert_eq!(
                signing(store, id, half).await,
                ["set"],
                "an instance with the old ones keeps to them"
            );
            assert_eq!(signing_by(store, id, "two", half).await.len(), 2);
        }
    }

    #[tokio::test]
    async fn secrets_are_sealed_and_few() {
        for test in testing::both().await {
            let store = &test.store;
            let mut tx = store.begin().await.unwrap();
            let id = webhooks::ensure(&mut tx, "main", START).await.unwrap();
            tx.commit().await.unwrap();
            settings(store, id, "one").await;
            let mut made = Vec::new();
            for _ in 0..12 {
                made.push(rotate_now(store, id, Duration::from_hours(1), START).await);
            }
            let rows: Vec<(Vec<u8>,)> =
                store.db().fetch_all("SELECT secret FROM webhook_secrets", vec![]).await.unwrap();
            assert_eq!(rows.len(), 8);
            for (row,) in rows {
                let text = String::from_utf8_lossy(&row).into_owned();
                assert!(!made.iter().any(|secret| text.contains(secret.trim_start_matches("whsec_"))));
            }
            let newest: Vec<_> = made.into_iter().rev().take(8).chain(["set".to_owned()]).collect();
            assert_eq!(signing(store, id, START).await, newest);
        }
    }
}
