//! `webhooks`: where messages go, and what each destination is told.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue};
use secrecy::SecretString;
use url::Url;

use super::{
    ConfigError, Webhook, duration,
    file::{Node, Value},
    load::{boolean, http_url, missing},
    settings::{self, Setting},
    source::{Given, Reader},
};
use crate::model::{
    Batch, Detail, Direction, Filter, Flow, Format, MessageType, Ordering, Pattern, Schedule, Trust,
};

/// How long an answer may take unless told otherwise; Standard Webhooks advises 15 to 30 seconds.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The longest that it may be set to.
const LONGEST_TIMEOUT: Duration = Duration::from_mins(2);
/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_hours(24 * 7);
/// Rooms that are sent at once, at most and unless told otherwise.
const CONCURRENCY: usize = 64;
/// Messages in one request, at most and unless told otherwise; all of them are held in memory at once.
const MOST_IN_BATCH: u16 = 100;
/// How long a message waits for others unless told otherwise, and at most.
const BATCH_WAIT: Duration = Duration::from_secs(1);
const LONGEST_BATCH_WAIT: Duration = Duration::from_mins(1);
/// The most secrets that sign at once.
const MOST_SECRETS: usize = 8;

/// Headers that are coucou's own, or the connection's.
const RESERVED: [&str; 9] = [
    "host",
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
];

impl Webhook {
    /// One with the defaults.
    pub(super) fn new(name: String, url: Url) -> Self {
        Self {
            name,
            url,
            secrets: Vec::new(),
            filter: Filter::default(),
            headers: Vec::new(),
            timeout: TIMEOUT,
            concurrency: CONCURRENCY,
            schedule: Schedule::default(),
            detail: Detail::default(),
            format: Format::default(),
            flow: Flow::default(),
            max_queue: 100_000,
        }
    }
}

/// Reads all webhooks: those of the file, and the one of the environment.
pub(super) fn webhooks(reader: &Reader<'_>, warnings: &mut Vec<String>) -> Result<Vec<Webhook>, ConfigError> {
    let mut webhooks: Vec<Webhook> = Vec::new();
    let mut has_secret = false;
    for node in reader.entries("webhooks") {
        let entry = Entry { reader, node };
        let place = format!(" in {}", reader.origin(node.line));
        let name = entry.text("name", &settings::WEBHOOK_NAME)?;
        let name = name.ok_or_else(|| missing(&settings::WEBHOOK_NAME, &place))?;
        if webhooks.iter().any(|webhook| webhook.name == name.text) {
            return Err(name.invalid(&settings::WEBHOOK_NAME, "must be unique"));
        }
        let url = entry.text("url", &settings::WEBHOOK_URL)?;
        let url = webhook_url(&url.ok_or_else(|| missing(&settings::WEBHOOK_URL, &place))?)?;
        let mut webhook = Webhook::new(name.text, url);
        entry.read(&mut webhook, warnings)?;
        if webhook.name == "default" {
            has_secret = entry.text("secret", &settings::WEBHOOK_SECRET)?.is_some();
        }
        webhooks.push(webhook);
    }
    let url = reader.in_environment(&settings::WEBHOOK_URL)?;
    let url = url.as_ref().map(webhook_url).transpose()?;
    let secret = reader.in_environment(&settings::WEBHOOK_SECRET)?;
    let secret = secret.map(|secret| webhook_secret(&secret, "default", warnings)).transpose()?;
    let at = webhooks.iter().position(|webhook| webhook.name == "default");
    let webhook = match (at.and_then(|at| webhooks.get_mut(at)), url) {
        (Some(webhook), url) => {
            webhook.url = url.unwrap_or_else(|| webhook.url.clone());
            Some(webhook)
        }
        (None, Some(url)) => {
            webhooks.push(Webhook::new("default".to_owned(), url));
            webhooks.last_mut()
        }
        (None, None) => None,
    };
    match (webhook, secret) {
        // It stands for `secret`; what `secrets` has goes on signing.
        (Some(webhook), Some(secret)) => {
            webhook.secrets.splice(..usize::from(has_secret), [secret]);
        }
        (None, Some(_)) => {
            return Err(missing(&settings::WEBHOOK_URL, ", while COUCOU_WEBHOOK_SECRET is set"));
        }
        (_, None) => {}
    }
    Ok(webhooks)
}

/// One entry of the list.
struct Entry<'a> {
    reader: &'a Reader<'a>,
    node: &'a Node,
}

impl Entry<'_> {
    fn text(&self, key: &str, setting: &'static Setting) -> Result<Option<Given>, ConfigError> {
        self.node.get(key).map_or(Ok(None), |node| self.reader.text(node, setting))
    }

    /// A value that `parse` understands.
    fn parsed<T>(
        &self,
        key: &str,
        setting: &'static Setting,
        must: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(given) = self.text(key, setting)? else { return Ok(None) };
        parse(&given.text).map(Some).ok_or_else(|| given.invalid(setting, must))
    }

    /// The values of a list, each of which `parse` understands; a single value is a list of one.
    fn list<T>(
        &self,
        node: Option<&Node>,
        setting: &'static Setting,
        must: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<T>, ConfigError> {
        let Some(node) = node else { return Ok(Vec::new()) };
        let nodes = if let Value::List(nodes) = &node.value { nodes.iter().collect() } else { vec![node] };
        let given = nodes.into_iter().filter_map(|node| self.reader.text(node, setting).transpose());
        given
            .map(|given| {
                let given = given?;
                parse(&given.text).ok_or_else(|| given.invalid(setting, must))
            })
            .collect()
    }

    fn read(&self, webhook: &mut Webhook, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
        webhook.secrets = self.secrets(&webhook.name, warnings)?;
        webhook.filter = self.filter()?;
        webhook.headers = self.headers()?;
        let must = "must be a duration from 1s to 2m";
        let timeout = self.parsed("timeout", &settings::WEBHOOK_TIMEOUT, must, |text| {
            duration::parse(text)
                .filter(|timeout| (Duration::from_secs(1)..=LONGEST_TIMEOUT).contains(timeout))
        })?;
        webhook.timeout = timeout.unwrap_or(webhook.timeout);
        let must = "must be a number from 1 to 64";
        let concurrency = self.parsed("concurrency", &settings::WEBHOOK_CONCURRENCY, must, |text| {
            text.parse().ok().filter(|rooms| (1..=CONCURRENCY).contains(rooms))
        })?;
        webhook.concurrency = concurrency.unwrap_or(webhook.concurrency);
        webhook.schedule = self.schedule()?.unwrap_or_default();
        let detail = self.parsed(
            "content",
            &settings::WEBHOOK_CONTENT,
            "must be full or metadata",
            |text| match text {
                "full" => Some(Detail::Full),
                "metadata" => Some(Detail::Metadata),
                _ => None,
            },
        )?;
        webhook.detail = detail.unwrap_or_default();
        let must = "must be standard or cloudevents";
        let format = self.parsed("format", &settings::WEBHOOK_FORMAT, must, |text| match text {
            "standard" => Some(Format::Standard),
            "cloudevents" => Some(Format::CloudEvents),
            _ => None,
        })?;
        webhook.format = format.unwrap_or_default();
        webhook.flow = self.flow()?;
        let must = "must be a number from 1 to 10000000";
        let most = self.parsed("max_queue", &settings::WEBHOOK_MAX_QUEUE, must, |text| {
            text.parse().ok().filter(|most| (1..=10_000_000).contains(most))
        })?;
        webhook.max_queue = most.unwrap_or(webhook.max_queue);
        Ok(())
    }

    /// `ordering` and `batch`.
    fn flow(&self) -> Result<Flow, ConfigError> {
        let must = "must be strict or none";
        let ordering = self.parsed("ordering", &settings::WEBHOOK_ORDERING, must, |text| match text {
            "strict" => Some(Ordering::Strict),
            "none" => Some(Ordering::None),
            _ => None,
        })?;
        let mut flow = Flow { ordering: ordering.unwrap_or_default(), batch: None };
        let Some(node) = self.node.get("batch") else { return Ok(flow) };
        let entry = Entry { reader: self.reader, node };
        let must = "must be a number from 1 to 100";
        let most = entry.parsed("max", &settings::BATCH_MAX, must, |text| {
            text.parse().ok().filter(|most| (1..=MOST_IN_BATCH).contains(most))
        })?;
        let must = "must be a duration up to 1m, such as 500ms or 2s, or 0";
        let wait = entry.parsed("wait", &settings::BATCH_WAIT, must, |text| {
            duration::parse_short(text).filter(|wait| *wait <= LONGEST_BATCH_WAIT)
        })?;
        if !matches!(node.value, Value::Null) {
            let most = most.unwrap_or(MOST_IN_BATCH);
            flow.batch = Some(Batch { most, wait: wait.unwrap_or(BATCH_WAIT) });
        }
        Ok(flow)
    }

    /// `secret` and `secrets`, in this order.
    fn secrets(&self, name: &str, warnings: &mut Vec<String>) -> Result<Vec<SecretString>, ConfigError> {
        let mut secrets = Vec::new();
        if let Some(secret) = self.text("secret", &settings::WEBHOOK_SECRET)? {
            secrets.push(webhook_secret(&secret, name, warnings)?);
        }
        let setting = &settings::WEBHOOK_SECRETS;
        let Some(node) = self.node.get("secrets") else { return Ok(secrets) };
        let wrong = |must: &str| ConfigError::Invalid {
            setting,
            must: must.to_owned(),
            found: format!("{} has something else", self.reader.origin(node.line)),
        };
        let Value::List(nodes) = &node.value else { return Err(wrong("must be a list")) };
        if nodes.is_empty() || nodes.len() > MOST_SECRETS {
            return Err(wrong("must be a list of 1 to 8 secrets"));
        }
        for node in nodes {
            let given = self.reader.text(node, setting)?;
            let given = given.ok_or_else(|| wrong("must be a list of secrets"))?;
            secrets.push(webhook_secret(&given, name, warnings)?);
        }
        Ok(secrets)
    }

    fn filter(&self) -> Result<Filter, ConfigError> {
        let Some(filter) = self.node.get("filter") else { return Ok(Filter::default()) };
        let pattern = |text: &str| Some(Pattern::new(text));
        let of = |key| filter.get(key);
        let user = |text: &str| text.starts_with(['@', '*']).then(|| Pattern::new(text));
        let room = |text: &str| text.starts_with(['!', '*']).then(|| Pattern::new(text));
        let kinds = format!("must be of {}", Filter::KINDS.join(", "));
        let types = format!("must be of {}", MessageType::ALL.map(MessageType::as_str).join(", "));
        let trust = format!("must be of none, {}", Trust::ALL.map(Trust::as_str).join(", "));
        let must_encrypted = "must be true or false";
        let encrypted_only = match of("encrypted_only") {
            Some(node) => self.list(Some(node), &settings::FILTER_ENCRYPTED, must_encrypted, boolean)?,
            None => Vec::new(),
        };
        Ok(Filter {
            networks: self.list(of("networks"), &settings::FILTER_NETWORKS, "must be names", pattern)?,
            rooms: self.list(
                of("rooms"),
                &settings::FILTER_ROOMS,
                "must be room ids, which begin with !",
                room,
            )?,
            senders: self.list(
                of("senders"),
                &settings::FILTER_SENDERS,
                "must be user ids, which begin with @",
                user,
            )?,
            directions: self.list(
                of("directions"),
                &settings::FILTER_DIRECTIONS,
                "must be of in, out",
                Direction::parse,
            )?,
            kinds: self.list(of("kinds"), &settings::FILTER_KINDS, &kinds, |text| {
                Filter::KINDS.contains(&text).then(|| text.to_owned())
            })?,
            types: self.list(of("types"), &settings::FILTER_TYPES, &types, MessageType::parse)?,
            trust: self.list(of("trust"), &settings::FILTER_TRUST, &trust, |text| match text {
                "none" => Some(None),
                text => Trust::parse(text).map(Some),
            })?,
            encrypted_only: encrypted_only.contains(&true),
        })
    }

    fn headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, ConfigError> {
        let setting = &settings::WEBHOOK_HEADERS;
        let Some(node) = self.node.get("headers") else { return Ok(Vec::new()) };
        let wrong = |line: u64, must: &str, what: &str| ConfigError::Invalid {
            setting,
            must: must.to_owned(),
            found: format!("{} has {what}", self.reader.origin(line)),
        };
        let map = match &node.value {
            Value::Map(map) => map,
            Value::Null => return Ok(Vec::new()),
            _ => return Err(wrong(node.line, "must be a mapping of names to values", "something else")),
        };
        let mut headers = Vec::new();
        for (name, node) in map {
            let must = "must have names that HTTP allows, and none that are coucou's own (webhook-…, content-type, …)";
            let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
            let own = |name: &HeaderName| {
                RESERVED.contains(&name.as_str()) || name.as_str().starts_with("webhook-")
            };
            let shown = format!("{name:?}");
            let parsed = parsed.filter(|name| !own(name)).ok_or_else(|| wrong(node.line, must, &shown))?;
            let must = "must have values of visible ASCII characters";
            let value = self.reader.text(node, setting)?.map(|given| given.text).unwrap_or_default();
            let value = HeaderValue::from_str(value.trim()).ok().filter(|_| value.is_ascii());
            let shown = format!("another value for {name}");
            let mut value = value.ok_or_else(|| wrong(node.line, must, &shown))?;
            value.set_sensitive(true);
            headers.push((parsed, value));
        }
        Ok(headers)
    }

    fn schedule(&self) -> Result<Option<Schedule>, ConfigError> {
        let setting = &settings::WEBHOOK_SCHEDULE;
        let Some(node) = self.node.get("schedule") else { return Ok(None) };
        let must = "must be a list of 1 to 100 durations from 1s to 7d, such as [5s, 5m, 2h]";
        let waits = self.list(Some(node), setting, must, |text| {
            duration::parse(text).filter(|wait| (Duration::from_secs(1)..=LONGEST_WAIT).contains(wait))
        })?;
        if waits.is_empty() || waits.len() > Schedule::MOST {
            let found = format!("{} has {}", self.reader.origin(node.line), waits.len());
            return Err(ConfigError::Invalid { setting, must: must.to_owned(), found });
        }
        Ok(Some(Schedule::new(waits)))
    }
}

fn webhook_url(given: &Given) -> Result<Url, ConfigError> {
    http_url(&given.text).ok_or_else(|| {
        // Not the value: receivers put tokens into it.
        let found = format!("the value of {} is not", given.origin);
        ConfigError::Invalid {
            setting: &settings::WEBHOOK_URL,
            must: "must be an http or https URL".to_owned(),
            found,
        }
    })
}

/// A secret in the form that the libraries of Standard Webhooks take.
///
/// Operators have plain-text secrets from before. Any text would do as a key, but the libraries take base64
/// alone, so such a one is turned into it, and the operator told.
fn webhook_secret(
    given: &Given,
    webhook: &str,
    warnings: &mut Vec<String>,
) -> Result<SecretString, ConfigError> {
    let text = given.text.trim();
    let key = text.strip_prefix("whsec_");
    let is_base64 = STANDARD.decode(key.unwrap_or(text)).is_ok_and(|key| (24..=64).contains(&key.len()));
    if is_base64 {
        return Ok(SecretString::from(text));
    }
    if key.is_none() && (16..=64).contains(&text.len()) {
        warnings.push(format!(
            "the secret of the webhook {webhook} ({}) is plain text, which the libraries of Standard Webhooks \
             cannot be given: they need the base64 of its bytes with whsec_ before it, as `coucou webhooks \
             --show-secrets` prints it",
            given.origin
        ));
        return Ok(SecretString::from(format!("whsec_{}", STANDARD.encode(text))));
    }
    let must = "must be whsec_ and base64 of 24 to 64 bytes (whsec_$(openssl rand -base64 32)), or a text of 16 \
                to 64 bytes";
    Err(given.invalid(&settings::WEBHOOK_SECRET, must))
}
