//! `webhooks`: what each may be told, and what is refused.

use std::time::Duration;

use super::*;
use crate::model::{Batch, Detail, Direction, Filter, Flow, Format, MessageType, Ordering, Schedule, Trust};

const ONE: &str = "whsec_dGhpcyBpcyBhbiBleGFtcGxlIHNlY3JldCE=";
const TWO: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

fn secrets(webhook: &Webhook) -> Vec<&str> {
    webhook.secrets.iter().map(ExposeSecret::expose_secret).collect()
}

#[test]
fn a_webhook_has_the_documented_defaults() {
    let config = load("webhooks: [{name: a, url: 'http://127.0.0.1'}]", &[]).unwrap();
    let webhook = &config.webhooks[0];
    assert_eq!((webhook.timeout, webhook.concurrency), (Duration::from_secs(15), 64));
    assert_eq!((webhook.detail, webhook.format), (Detail::Full, Format::Standard));
    assert_eq!((&webhook.schedule, webhook.max_queue), (&Schedule::default(), 100_000));
    assert_eq!((&webhook.filter, webhook.secrets.len(), webhook.headers.len()), (&Filter::default(), 0, 0));
}

#[test]
fn a_webhook_can_have_everything() {
    let config = load(
        &format!(
            r#"
webhooks:
  - name: all
    url: https://hooks.example.org
    secret: {ONE}
    secrets: [{TWO}]
    headers: {{Authorization: Bearer hushhush, X-Tenant: 7}}
    timeout: 30s
    concurrency: 8
    schedule: [5s, 1m, 2h, 1d]
    content: metadata
    format: cloudevents
    max_queue: 500
    filter:
      networks: [insta*]
      rooms: "!one:example.org"
      senders: ["@instagram_*:example.org", "*"]
      directions: [in]
      kinds: [text, image]
      types: [message.created]
      trust: [bridge, none]
      encrypted_only: yes
"#
        ),
        &[],
    )
    .unwrap();
    let webhook = &config.webhooks[0];
    assert_eq!(secrets(webhook), [ONE, TWO]);
    let headers: Vec<_> =
        webhook.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(headers, [("authorization", "Bearer hushhush"), ("x-tenant", "7")]);
    assert!(!format!("{:?} {:?}", config, webhook.headers).contains("hushhush"));
    assert_eq!((webhook.timeout, webhook.concurrency), (Duration::from_secs(30), 8));
    assert_eq!(webhook.schedule, Schedule::new([5, 60, 7200, 86_400].map(Duration::from_secs).to_vec()));
    assert_eq!((webhook.detail, webhook.format), (Detail::Metadata, Format::CloudEvents));
    assert_eq!(webhook.max_queue, 500);
    let filter = Filter {
        networks: vec![Pattern::new("insta*")],
        rooms: vec![Pattern::new("!one:example.org")],
        senders: vec![Pattern::new("@instagram_*:example.org"), Pattern::new("*")],
        directions: vec![Direction::In],
        kinds: vec!["text".to_owned(), "image".to_owned()],
        types: vec![MessageType::MessageCreated],
        trust: vec![Some(Trust::Bridge), None],
        encrypted_only: true,
    };
    assert_eq!(webhook.filter, filter);
}

#[test]
fn an_order_and_batches_are_read() {
    let of = |rest: &str| {
        let file = format!("webhooks: [{{name: default, url: 'http://127.0.0.1', {rest}}}]");
        load(&file, &[]).unwrap().webhooks.remove(0).flow
    };
    let batch = |most, wait| Some(Batch { most, wait: Duration::from_millis(wait) });
    assert_eq!(of(""), Flow { ordering: Ordering::Strict, batch: None });
    assert_eq!(of("ordering: none").ordering, Ordering::None);
    assert_eq!(of("batch: {max: 20}").batch, batch(20, 1000));
    assert_eq!(of("batch: {wait: 250ms}").batch, batch(100, 250));
    let both = of("ordering: none, batch: {max: 1, wait: 0}");
    assert_eq!(both, Flow { ordering: Ordering::None, batch: batch(1, 0) });
    assert_eq!(of("batch: {}").batch, batch(100, 1000), "an empty one is one with the defaults");
}

#[test]
fn the_environment_replaces_one_secret_and_the_others_go_on_signing() {
    let variable = [("COUCOU_WEBHOOK_SECRET", TWO)];
    let of = |rest: &str| {
        let file = format!("webhooks: [{{name: default, url: 'http://127.0.0.1', {rest}}}]");
        load(&file, &variable).unwrap().webhooks.remove(0)
    };
    assert_eq!(secrets(&of("")), [TWO]);
    assert_eq!(secrets(&of(&format!("secret: {ONE}"))), [TWO]);
    assert_eq!(secrets(&of(&format!("secrets: [{ONE}]"))), [TWO, ONE]);
    let config = load(
        "webhooks: [{name: other, url: 'http://127.0.0.1'}]",
        &[("COUCOU_WEBHOOK_URL", "http://127.0.0.1:1"), variable[0]],
    );
    assert_eq!(config.unwrap().webhooks.len(), 2);
}

#[test]
fn what_a_webhook_cannot_have_is_named() {
    let cases = [
        ("filter: {networkz: [a]}", "there is no setting webhooks[].filter.networkz; did you mean"),
        ("filter: [a]", "webhooks[].filter must be a mapping"),
        ("filter: {rooms: [general]}", "webhooks[].filter.rooms must be room ids, which begin with !"),
        ("filter: {senders: [alice]}", "webhooks[].filter.senders must be user ids, which begin with @"),
        ("filter: {directions: [up]}", "webhooks[].filter.directions must be of in, out, but"),
        ("filter: {kinds: [texts]}", "webhooks[].filter.kinds must be of text, notice,"),
        ("filter: {types: [created]}", "webhooks[].filter.types must be of message.created,"),
        ("filter: {trust: [everybody]}", "webhooks[].filter.trust must be of none, bridge,"),
        ("filter: {encrypted_only: perhaps}", "webhooks[].filter.encrypted_only must be true or false"),
        ("headers: [a]", "webhooks[].headers must be a mapping"),
        ("headers: {Webhook-Id: hushhush}", "webhooks[].headers must have names"),
        ("headers: {'a b': hushhush}", "webhooks[].headers must have names"),
        ("headers: {a: \"hushhush\\u0007\"}", "webhooks[].headers must have values"),
        ("timeout: 3m", "webhooks[].timeout must be a duration from 1s to 2m"),
        ("timeout: soon", "webhooks[].timeout must be a duration from 1s to 2m"),
        ("concurrency: 0", "webhooks[].concurrency must be a number from 1 to 64"),
        ("schedule: [5s, never]", "webhooks[].schedule must be a list of 1 to 100 durations"),
        ("schedule: []", "webhooks[].schedule must be a list of 1 to 100 durations"),
        ("content: some", "webhooks[].content must be full or metadata"),
        ("format: xml", "webhooks[].format must be standard or cloudevents"),
        ("max_queue: -1", "webhooks[].max_queue must be a number"),
        ("ordering: fifo", "webhooks[].ordering must be strict or none"),
        ("batch: 10", "webhooks[].batch must be a mapping"),
        ("batch: {max: 0}", "webhooks[].batch.max must be a number from 1 to 100"),
        ("batch: {max: 101}", "webhooks[].batch.max must be a number from 1 to 100"),
        ("batch: {wait: 2m}", "webhooks[].batch.wait must be a duration up to 1m"),
        ("batch: {size: 2}", "there is no setting webhooks[].batch.size"),
        ("secrets: whsec_hushhush", "webhooks[].secrets must be a list"),
        ("secrets: [whsec_hushhush]", "webhooks[].secret must be whsec_ and base64"),
    ];
    for (rest, expected) in cases {
        let file = format!("webhooks:\n  - name: a\n    url: https://example.org\n    {rest}");
        let error = message(&file, &[]);
        assert!(error.contains(expected) && error.contains("coucou.yaml"), "{rest}: {error}");
        assert!(!error.contains("hushhush"), "{rest}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
