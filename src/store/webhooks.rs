//! The destinations: numbers for the names in the settings, and the secrets that coucou made itself.

pub mod secrets;

use base64::{Engine, engine::general_purpose::STANDARD};
use rand::CryptoRng;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Db, Seal, StoreError, Tx, db::values};
use crate::{clock::Timestamp, model::WebhookId};

/// Bytes of a generated secret; Standard Webhooks allows 24 to 64.
const SECRET_BYTES: usize = 32;

/// The number of the webhook with that name, made when it is new.
///
/// # Errors
/// When the database fails.
pub async fn ensure(tx: &mut Tx, name: &str, now: Timestamp) -> Result<WebhookId, StoreError> {
    let row: Option<(i64,)> = tx
        .fetch_optional(
            // An update that changes nothing, because DO NOTHING would return no row.
            "INSERT INTO webhooks (name, created_at) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING webhook_id",
            values![name, now],
        )
        .await?;
    row.map(|(id,)| WebhookId(id)).ok_or(StoreError::Corrupt("webhooks"))
}

/// Every webhook that ever was in the settings, by name.
///
/// # Errors
/// When the database fails.
pub async fn all(db: &Db) -> Result<Vec<(WebhookId, String)>, StoreError> {
    let rows: Vec<(i64, String)> =
        db.fetch_all("SELECT webhook_id, name FROM webhooks ORDER BY name", vec![]).await?;
    Ok(rows.into_iter().map(|(id, name)| (WebhookId(id), name)).collect())
}

/// Makes whoever else locks this webhook wait until `tx` ends.
///
/// # Errors
/// When the database fails.
pub async fn lock(tx: &mut Tx, id: WebhookId) -> Result<(), StoreError> {
    // An update that changes nothing locks the row on both databases.
    tx.execute("UPDATE webhooks SET name = name WHERE webhook_id = $1", values![id.0]).await?;
    Ok(())
}

/// A webhook that gets nothing until it is enabled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disabled {
    /// The webhook.
    pub webhook_id: WebhookId,
    /// Its name in the settings.
    pub name: String,
    /// Since when.
    pub at: Timestamp,
    /// Why, one word: `gone` (it answered 410) or `paused`.
    pub reason: String,
}

/// The webhooks that are disabled, by name.
///
/// # Errors
/// When the database fails.
pub async fn disabled(db: &Db) -> Result<Vec<Disabled>, StoreError> {
    let rows: Vec<(i64, String, i64, Option<String>)> = db
        .fetch_all(
            "SELECT webhook_id, name, disabled_at, disabled_reason FROM webhooks \
             WHERE disabled_at IS NOT NULL ORDER BY name",
            vec![],
        )
        .await?;
    let disabled = |(id, name, at, reason): (i64, String, i64, Option<String>)| Disabled {
        webhook_id: WebhookId(id),
        name,
        at: Timestamp(at),
        reason: reason.unwrap_or_default(),
    };
    Ok(rows.into_iter().map(disabled).collect())
}

/// Sends a webhook nothing more; its queue stays. Answers whether it was not disabled before.
///
/// # Errors
/// When the database fails.
pub async fn disable(tx: &mut Tx, id: WebhookId, reason: &str, now: Timestamp) -> Result<bool, StoreError> {
    let sql = "UPDATE webhooks SET disabled_at = $2, disabled_reason = $3 \
               WHERE webhook_id = $1 AND disabled_at IS NULL";
    Ok(tx.execute(sql, values![id.0, now, reason]).await? > 0)
}

/// Sends a webhook what is queued, and what comes, again. Answers whether it was disabled.
///
/// # Errors
/// When the database fails.
pub async fn enable(tx: &mut Tx, id: WebhookId) -> Result<bool, StoreError> {
    let sql = "UPDATE webhooks SET disabled_at = NULL, disabled_reason = NULL \
               WHERE webhook_id = $1 AND disabled_at IS NOT NULL";
    Ok(tx.execute(sql, values![id.0]).await? > 0)
}

/// Notes the address of a webhook; one that answered 410 under another address is enabled. Answers whether that
/// was so. One that somebody has paused stays so.
///
/// # Errors
/// When the database fails.
pub async fn at_address(tx: &mut Tx, id: WebhookId, url: &str) -> Result<bool, StoreError> {
    // Not the address itself: receivers put tokens into it.
    let digest = STANDARD.encode(Sha256::digest(url));
    let known: Option<(Option<String>,)> =
        tx.fetch_optional("SELECT url_digest FROM webhooks WHERE webhook_id = $1", values![id.0]).await?;
    if known.as_ref().is_some_and(|(known,)| known.as_ref() == Some(&digest)) {
        return Ok(false);
    }
    tx.execute("UPDATE webhooks SET url_digest = $2 WHERE webhook_id = $1", values![id.0, digest]).await?;
    let sql = "UPDATE webhooks SET disabled_at = NULL, disabled_reason = NULL \
               WHERE webhook_id = $1 AND disabled_reason = 'gone'";
    Ok(tx.execute(sql, values![id.0]).await? > 0)
}

/// `whsec_` and base64 of random bytes.
fn fresh_secret<R: CryptoRng + ?Sized>(rng: &mut R) -> Zeroizing<String> {
    let mut key = Zeroizing::new([0_u8; SECRET_BYTES]);
    rng.fill_bytes(&mut *key);
    Zeroizing::new(format!("whsec_{}", Zeroizing::new(STANDARD.encode(*key)).as_str()))
}

/// The secret that was made for a webhook; `None` when none was yet.
///
/// # Errors
/// When the database fails, or the secret does not open.
pub async fn find_secret(db: &Db, seal: &Seal, id: WebhookId) -> Result<Option<SecretString>, StoreError> {
    let row: Option<(Option<Vec<u8>>,)> =
        db.fetch_optional("SELECT secret FROM webhooks WHERE webhook_id = $1", values![id.0]).await?;
    let Some((Some(sealed),)) = row else { return Ok(None) };
    open_secret(seal, id, &sealed).map(Some)
}

fn open_secret(seal: &Seal, id: WebhookId, sealed: &[u8]) -> Result<SecretString, StoreError> {
    let secret = String::from_utf8(seal.open("webhooks", &id.0.to_string(), sealed)?);
    Ok(SecretString::from(secret.map_err(|_| StoreError::Corrupt("webhooks"))?))
}

/// The secret of a webhook whose settings give none: `whsec_` and base64, made at the first call and the
/// same ever after, for every instance.
///
/// # Errors
/// When the database fails, there is no such webhook, or the secret does not open.
pub async fn generated_secret<R: CryptoRng + ?Sized>(
    tx: &mut Tx,
    seal: &Seal,
    id: WebhookId,
    rng: &mut R,
) -> Result<SecretString, StoreError> {
    let row = id.0.to_string();
    let fresh = seal.seal("webhooks", &row, fresh_secret(rng).as_bytes())?;
    let kept: Option<(Vec<u8>,)> = tx
        .fetch_optional(
            // One statement, so that of two instances at once both get what the first one made.
            "UPDATE webhooks SET secret = COALESCE(secret, $2) WHERE webhook_id = $1 RETURNING secret",
            values![id.0, fresh],
        )
        .await?;
    let (sealed,) = kept.ok_or(StoreError::Corrupt("webhooks"))?;
    open_secret(seal, id, &sealed)
}
