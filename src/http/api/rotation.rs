//! `POST /api/v1/webhooks/{name}/rotate-secret`: another secret, beside the old ones for a while.

use std::time::Duration;

use axum::{Json, body::Body, extract::State};
use rand::{SeedableRng, rngs::StdRng};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    super::{HttpState, error::Problem},
    openapi::{BodyRefusals, Refusals},
    query::{self, Query, Segment},
    webhooks::find_configured,
};
use crate::store::webhooks::secrets;

/// How long the old secrets sign unless told otherwise, and at most.
const OVERLAP: u64 = 24 * 60 * 60;
const LONGEST_OVERLAP: u64 = 30 * 24 * 60 * 60;

/// How to rotate.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotate {
    /// How long what signs now goes on signing beside the new secret, in seconds: 86400 (a day) when absent, 30 days
    /// at most. 0 ends it at once: for a secret that has leaked.
    #[serde(default)]
    #[schema(maximum = 2_592_000)]
    overlap_seconds: Option<u64>,
}

/// The new secret.
#[derive(Serialize, ToSchema)]
pub(super) struct Rotated {
    /// The webhook.
    name: String,
    /// `whsec_` and base64. It is shown this once.
    secret: String,
    /// Until when the secrets before it sign as well, RFC 3339 in UTC.
    previous_until: String,
}

/// Give a webhook another secret
///
/// It is made here, kept encrypted in the store, and signs from now on, within 15 seconds in every instance; what
/// signed before, the secrets of the settings included, signs beside it until `previous_until`. Rotations end when the
/// settings' own secrets are changed.
#[utoipa::path(
    post, path = "/api/v1/webhooks/{name}/rotate-secret", tag = "webhooks",
    params(("name" = String, Path, description = "The webhook's name.")),
    request_body = Rotate,
    responses(
        (status = 200, description = "The new secret.", body = Rotated),
        BodyRefusals,
        (status = 404, description = "There is no such webhook.", body = super::openapi::Problem,
            content_type = "application/problem+json"),
        Refusals,
    ),
)]
pub(super) async fn rotate(
    State(state): State<HttpState>,
    Segment(name): Segment,
    query: Query,
    body: Body,
) -> Result<Json<Rotated>, Problem> {
    query.finish()?;
    let asked: Rotate = query::body(body).await?;
    let overlap = asked.overlap_seconds.unwrap_or(OVERLAP);
    if overlap > LONGEST_OVERLAP {
        return Err(Problem::bad_body("overlap_seconds must be at most 2592000, 30 days"));
    }
    let webhook_id = find_configured(&state, &name).await?;
    let (store, now) = (&state.api.store, state.api.clock.now());
    let overlap = Duration::from_secs(overlap);
    let mut rng = StdRng::from_os_rng();
    let mut tx = store.begin().await?;
    let secret = secrets::rotate(&mut tx, store.seal()?, webhook_id, overlap, now, &mut rng).await?;
    tx.commit().await?;
    state.api.wake_signers.notify_one();
    tracing::info!(webhook.name = name, overlap_seconds = overlap.as_secs(), "has another secret");
    Ok(Json(Rotated {
        name,
        secret: secret.expose_secret().to_owned(),
        previous_until: now.plus(overlap).rfc3339(),
    }))
}
