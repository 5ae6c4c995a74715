//! The webhooks: what each is told, and whether it takes a signed trial now.

use rand::Rng;

use super::{Report, Scene, Told, said, words};
use crate::{
    app::webhooks::in_use,
    config::Webhook,
    messages::render_test,
    model::{MessageId, WebhookId},
    outbox::{self, Body, Outcome, SendError, Signers, Sink, WebhookRequest, WebhookSink},
    store::{
        StoreError, outbox as deliveries,
        webhooks::{
            self as table,
            secrets::{Rotated, Signing},
        },
    },
};

/// Looks at every webhook of the settings.
pub(super) async fn look(scene: &Scene<'_>, report: &mut Report) {
    if scene.config.webhooks.is_empty() {
        let says = "no webhook is set: messages are kept for the REST API";
        return report.warn("webhooks", says, "set COUCOU_WEBHOOK_URL, or webhooks in the settings file");
    }
    let client = match outbox::client() {
        Ok(client) => client,
        Err(error) => return report.fail("webhooks", said(&error), "look at the system's certificates"),
    };
    for webhook in &scene.config.webhooks {
        report.webhooks.push(Told { name: webhook.name.clone(), receives: words::receives(webhook) });
        let id = match find(scene, webhook).await {
            Ok(id) => id,
            Err(error) => {
                report.fail("webhooks", said(&error), "see the line about the store");
                None
            }
        };
        trial(scene, &client, webhook, id, report).await;
        if let Err(error) = queue(scene, webhook, id, report).await {
            report.fail("webhooks", said(&error), "see the line about the store");
        }
    }
}

async fn find(scene: &Scene<'_>, webhook: &Webhook) -> Result<Option<WebhookId>, StoreError> {
    let Some(store) = &scene.store else { return Ok(None) };
    let known = table::all(store.db()).await?;
    Ok(known.into_iter().find(|(_, name)| *name == webhook.name).map(|(id, _)| id))
}

/// The secrets that sign: of the settings, or the one that coucou has made, or what they were rotated to.
async fn secrets(
    scene: &Scene<'_>,
    webhook: &Webhook,
    id: Option<WebhookId>,
) -> Result<Vec<Signing>, StoreError> {
    let now = scene.clock.now();
    let (Some(store), Some(id)) = (&scene.store, id) else {
        return Ok(Rotated::default().signing(&webhook.secrets, now));
    };
    let mut settings = webhook.secrets.clone();
    if settings.is_empty() {
        settings.extend(table::find_secret(store.db(), store.seal()?, id).await?);
    }
    in_use(store, id, &webhook.secrets, &settings, now).await
}

/// Sends a `webhook.test`, beside the queue.
async fn trial(
    scene: &Scene<'_>,
    client: &outbox::Client,
    webhook: &Webhook,
    id: Option<WebhookId>,
    report: &mut Report,
) {
    let name = &webhook.name;
    let secrets = match secrets(scene, webhook, id).await {
        Ok(secrets) if secrets.is_empty() => {
            let says = format!("{name}: its secret is not made yet, so nothing was sent");
            let remedy = "`coucou webhooks --show-secrets` makes it and prints it for the receiver";
            return report.warn("webhooks", says, remedy);
        }
        Ok(secrets) => secrets,
        Err(error) => return report.fail("webhooks", said(&error), "see the line about the store"),
    };
    let sink = Signers::new(name, &secrets)
        .and_then(|signers| WebhookSink::new(client.clone(), name, &webhook.url, signers));
    let sink = match sink {
        Ok(sink) => {
            sink.headers(&webhook.headers).timeout(webhook.timeout).telling(webhook.detail, webhook.format)
        }
        Err(error) => return report.fail("webhooks", said(&error), "correct the setting"),
    };
    let random: [u8; 20] = rand::rng().random();
    let message_id = MessageId(random.iter().fold("msg_".to_owned(), |id, byte| format!("{id}{byte:02x}")));
    let timestamp = scene.clock.now();
    let Ok(body) = render_test(&message_id, timestamp) else { return };
    match sink.deliver(WebhookRequest { id: message_id.as_str(), timestamp, body: Body::One(&body) }).await {
        Outcome::Delivered { status } => {
            let status = status.map(|status| format!(" with {status}")).unwrap_or_default();
            report.ok("webhooks", format!("{name} took a signed webhook.test{status}"));
        }
        Outcome::Retry { why, .. } => {
            report.fail(
                "webhooks",
                format!("{name} did not take a signed webhook.test: {}", said(&why)),
                advice(&why),
            );
        }
    }
}

fn advice(why: &SendError) -> &'static str {
    match why {
        SendError::Status(401 | 403) => {
            "the receiver refuses coucou: compare the secret (`coucou webhooks --show-secrets`), its clock, and the \
             headers that it wants (webhooks[].headers)"
        }
        SendError::Status(404 | 405) => {
            "correct the path in the webhook's URL (webhooks[].url, COUCOU_WEBHOOK_URL)"
        }
        SendError::Status(500..) => {
            "look into the receiver's log: it answers with an error of its own; coucou keeps what it has for it and \
             tries again by the schedule"
        }
        SendError::Status(_) => {
            "look into the receiver's log: only a status of 2xx says that it took a delivery"
        }
        SendError::Gone => "the receiver answers 410, upon which coucou disables a webhook: correct its URL",
        SendError::Redirect(_) => {
            "set the address that the redirect leads to (webhooks[].url, COUCOU_WEBHOOK_URL)"
        }
        SendError::Timeout => "the receiver must answer at once and work later; or raise webhooks[].timeout",
        SendError::Connect(_) | SendError::Broken(_) => {
            "start the receiver, or correct the webhook's URL (webhooks[].url, COUCOU_WEBHOOK_URL), firewall or \
             certificate"
        }
        SendError::Unsendable => "correct the webhook's settings",
    }
}

/// What the store says of the webhook's queue.
async fn queue(
    scene: &Scene<'_>,
    webhook: &Webhook,
    id: Option<WebhookId>,
    report: &mut Report,
) -> Result<(), StoreError> {
    let (Some(store), Some(id)) = (&scene.store, id) else { return Ok(()) };
    let (db, name) = (store.db(), &webhook.name);
    if let Some(disabled) = table::disabled(db).await?.into_iter().find(|one| one.webhook_id == id) {
        let says = format!("{name} is disabled since {}: {}", disabled.at, disabled.reason);
        report.warn("webhooks", says, format!("`coucou webhooks --enable {name}` sends it what is queued"));
    }
    let pending = deliveries::backlogs(db).await?.into_iter().find(|one| one.webhook_id == id);
    if let Some(pending) = pending {
        let since = pending.oldest_at.map(|at| format!(", the oldest since {at}")).unwrap_or_default();
        let says = format!("{name} has {} deliveries pending{since}", pending.pending_count);
        report.ok("webhooks", says);
    }
    let dead =
        deliveries::dead(db).await?.into_iter().find(|(of, _)| *of == id).map_or(0, |(_, count)| count);
    if dead > 0 {
        let says = format!("{name}: {dead} deliveries were given up");
        let remedy = format!(
            "when the receiver works again: POST /api/v1/webhooks/{name}/resend with {{\"since\": …, \"status\": \
             \"dead\"}}"
        );
        report.warn("webhooks", says, remedy);
    }
    Ok(())
}
