//! From sources to a [`Config`]: one function a section.

use std::{collections::BTreeMap, fs, io, net::IpAddr, time::Duration};

use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{
    Api, ApiToken, Appservice, Config, ConfigError, Homeserver, Http, LONGEST_RETENTION, Log, LogFormat,
    Messages, Metrics, Owner, OwnerMode, Partial, Registration, Sources, Undecryptable, check, duration,
    file::{Node, Value},
    media, rooms,
    settings::{self, Setting, other},
    source::{Given, Reader},
    store, trust, webhooks,
};
use crate::model::{RecoveryKey, Scope, SilenceSettings};

/// The registration that is read when none is named and it is there.
const DEFAULT_REGISTRATION: &str = "registration.yaml";

/// `messages.retention` when it is not set.
const DEFAULT_RETENTION: Duration = Duration::from_hours(30 * 24);

impl Config {
    /// Reads, checks and completes all settings.
    ///
    /// # Errors
    /// The first thing that is wrong, in one line that shows no secret.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let reader = Reader::open(sources)?;
        let mut warnings = Vec::new();
        if reader.environment.get(other::ETKE_PASSWORD).is_some() {
            warnings.push(format!(
                "{} is not needed, and ignored: coucou never logs in with a password",
                other::ETKE_PASSWORD
            ));
        }
        let homeserver = homeserver(&reader)?;
        let appservice = appservice(&reader)?;
        let owner = owner(&reader, &mut warnings)?;
        check::check(&homeserver, &appservice, owner.as_ref())?;
        let webhooks = webhooks::webhooks(&reader, &mut warnings)?;
        let http = http(&reader)?;
        Ok(Self {
            media: media::media(&reader, appservice.url.as_deref())?,
            homeserver,
            appservice,
            metrics: metrics(&reader, &http)?,
            http,
            messages: messages(&reader, &webhooks, &mut warnings)?,
            webhooks,
            api: api(&reader)?,
            rooms: rooms::rooms(&reader, owner.is_some())?,
            owner_recovery_key: owner_recovery_key(&reader, owner.is_some(), &mut warnings)?,
            recovery_key: recovery_key(&reader, &settings::RECOVERY_KEY)?,
            owner,
            bridges: trust::bridges(&reader)?,
            trust: trust::trust(&reader)?,
            undecryptable: undecryptable(&reader)?,
            silence: silence(&reader)?,
            networks: networks(&reader)?,
            log: log(&reader)?,
            // Last, for it may write the pickle key: nothing is written for settings that are wrong.
            store: store::choose(&reader, &mut warnings)?,
            warnings,
        })
    }
}

impl Partial {
    /// Reads what is set; nothing is required.
    ///
    /// # Errors
    /// As [`Config::load`], for these settings.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let reader = Reader::open(sources)?;
        Ok(Self {
            server_name: server_name(&reader)?,
            id: reader.given(&settings::APPSERVICE_ID)?.map(|given| given.text),
            bot: bot(&reader)?,
            owner: owner(&reader, &mut Vec::new())?.map(|owner| owner.user_id),
            http: http(&reader)?,
        })
    }
}

fn homeserver(reader: &Reader<'_>) -> Result<Homeserver, ConfigError> {
    let must = "must be an http or https URL without user, query or fragment";
    let url = reader.parsed(&settings::HOMESERVER_URL, must, plain_url)?;
    let url = url.ok_or_else(|| missing(&settings::HOMESERVER_URL, ""))?;
    Ok(Homeserver { url, server_name: server_name(reader)? })
}

fn server_name(reader: &Reader<'_>) -> Result<Option<OwnedServerName>, ConfigError> {
    let must = "must be a server name, without scheme or path";
    reader.parsed(&settings::HOMESERVER_SERVER_NAME, must, |text| ServerName::parse(text).ok())
}

fn appservice(reader: &Reader<'_>) -> Result<Appservice, ConfigError> {
    let registration = registration(reader)?;
    let because = if registration.is_some() {
        " and not in the registration, either"
    } else {
        ", and there is no registration.yaml (`coucou registration` makes one)"
    };
    let (id, url, as_token, hs_token, sender_localpart, namespaces) = match registration {
        Some(Registration { id, url, as_token, hs_token, sender_localpart, namespaces }) => {
            (id, url, as_token, hs_token, sender_localpart, Some(namespaces))
        }
        None => (None, None, None, None, None, None),
    };
    let as_token = token(reader, &settings::AS_TOKEN)?.or(as_token);
    let as_token = as_token.ok_or_else(|| missing(&settings::AS_TOKEN, because))?;
    let hs_token = token(reader, &settings::HS_TOKEN)?.or(hs_token);
    let hs_token = hs_token.ok_or_else(|| missing(&settings::HS_TOKEN, because))?;
    if as_token.expose_secret() == hs_token.expose_secret() {
        return Err(ConfigError::Conflict(
            "appservice.as_token and appservice.hs_token (COUCOU_APPSERVICE_AS_TOKEN, \
             COUCOU_APPSERVICE_HS_TOKEN) are the same: they must differ, `coucou registration` makes two"
                .to_owned(),
        ));
    }
    let sender = reader.given(&settings::SENDER_LOCALPART)?.map(|given| given.text);
    let must = "must be one word of letters, digits and . _ = - /";
    let device_id = reader.parsed(&settings::DEVICE_ID, must, |text| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._=-/".contains(&byte)).then(|| text.into())
    })?;
    Ok(Appservice {
        id: reader.given(&settings::APPSERVICE_ID)?.map(|given| given.text).or(id),
        as_token,
        hs_token,
        bot: bot(reader)?,
        sender_localpart: sender.or(sender_localpart),
        device_id,
        namespaces,
        url,
    })
}

/// The registration file, if one is named or there.
fn registration(reader: &Reader<'_>) -> Result<Option<Registration>, ConfigError> {
    let given = reader.given(&settings::REGISTRATION)?;
    let named = given.as_ref().map_or(DEFAULT_REGISTRATION, |given| &given.text);
    match fs::read_to_string(reader.resolve(named)) {
        Ok(text) => Registration::parse(&text)
            .map(Some)
            .map_err(|what| ConfigError::File { path: named.to_owned(), what }),
        Err(error) if error.kind() == io::ErrorKind::NotFound && given.is_none() => Ok(None),
        Err(error) => {
            let setting = &settings::REGISTRATION;
            let origin = given.as_ref().map_or("the default", |given| &given.origin);
            Err(ConfigError::Invalid {
                setting,
                must: "must be a file that can be read".to_owned(),
                found: format!("{origin} names {named}: {error}"),
            })
        }
    }
}

fn bot(reader: &Reader<'_>) -> Result<String, ConfigError> {
    let must = "must be a localpart such as coucou, or a user id such as @coucou:example.org";
    let bot = reader.parsed(&settings::BOT, must, |text| bot_is_valid(text).then(|| text.to_owned()))?;
    Ok(bot.unwrap_or_else(|| settings::BOT.default.to_owned()))
}

/// Whether `text` can be `appservice.bot`: a localpart, or a user id.
pub(super) fn bot_is_valid(text: &str) -> bool {
    let user_id = if text.starts_with('@') { text.to_owned() } else { format!("@{text}:localhost") };
    // A colon in a localpart would move the server name.
    let whole = text.starts_with('@') || !text.contains(':');
    whole && UserId::parse(user_id).is_ok_and(|id| !id.localpart().is_empty() && id.validate_strict().is_ok())
}

fn http(reader: &Reader<'_>) -> Result<Http, ConfigError> {
    let host = reader.parsed(&settings::HTTP_HOST, "must be an IP address", |text| match text {
        "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
        text => text.parse().ok(),
    })?;
    let port =
        reader.parsed(&settings::HTTP_PORT, "must be a number from 0 to 65535", |text| text.parse().ok())?;
    Ok(Http { host: host.unwrap_or(IpAddr::from([127, 0, 0, 1])), port: port.unwrap_or(8080) })
}

fn metrics(reader: &Reader<'_>, main: &Http) -> Result<Metrics, ConfigError> {
    let must = "must be a number from 1 to 65535";
    let port =
        reader.parsed(&settings::METRICS_PORT, must, |text| text.parse().ok().filter(|port| *port != 0))?;
    let must = "must be a path of letters, digits, - and _, such as /metrics, that is none of coucou's own";
    let path = reader.parsed(&settings::METRICS_PATH, must, |text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_".contains(&byte);
        let first = text.strip_prefix('/')?.split('/').next()?;
        let taken = ["", "api", "_matrix", "transactions", "users", "rooms", "media"];
        (text.bytes().all(plain) && !taken.contains(&first)).then(|| text.to_owned())
    })?;
    Ok(Metrics {
        port: port.filter(|port: &u16| *port != main.port),
        path: path.unwrap_or_else(|| settings::METRICS_PATH.default.to_owned()),
        token: token(reader, &settings::METRICS_TOKEN)?,
    })
}

fn api(reader: &Reader<'_>) -> Result<Api, ConfigError> {
    let setting = &settings::API_TOKEN;
    let whole =
        |given: &Given| header_safe(given, setting).map(|token| ApiToken { token, scope: Scope::Admin });
    let by_environment = reader.in_environment(setting)?;
    let entries = match (&by_environment, reader.node(setting).map(|node| &node.value)) {
        (None, Some(Value::List(entries))) => entries,
        (None, _) => {
            return Ok(Api { tokens: reader.given(setting)?.iter().map(whole).collect::<Result<_, _>>()? });
        }
        (Some(given), _) => return Ok(Api { tokens: vec![whole(given)?] }),
    };
    let mut tokens: Vec<ApiToken> = Vec::new();
    for entry in entries {
        let token = match &entry.value {
            Value::Map(_) => Some(scoped_token(reader, entry)?),
            _ => reader.text(entry, setting)?.as_ref().map(whole).transpose()?,
        };
        let Some(token) = token else { continue };
        if tokens.iter().any(|known| known.token.expose_secret() == token.token.expose_secret()) {
            return Err(ConfigError::Conflict(format!(
                "api.tokens has a token twice, again at {}: remove one of the two",
                reader.origin(entry.line)
            )));
        }
        tokens.push(token);
    }
    Ok(Api { tokens })
}

/// An entry of `api.tokens` that says what its token may do.
fn scoped_token(reader: &Reader<'_>, entry: &Node) -> Result<ApiToken, ConfigError> {
    let field = |key: &str, setting: &'static Setting| match entry.get(key) {
        Some(node) => reader.text(node, setting),
        None => Ok(None),
    };
    let token = field("token", &settings::API_TOKEN_TOKEN)?;
    let place = format!(" in {}", reader.origin(entry.line));
    let token = token.ok_or_else(|| missing(&settings::API_TOKEN_TOKEN, &place))?;
    let scope = field("scope", &settings::API_TOKEN_SCOPE)?;
    let parse = |given: Given| {
        let must = "must be read or admin";
        Scope::parse(&given.text).ok_or_else(|| given.invalid(&settings::API_TOKEN_SCOPE, must))
    };
    Ok(ApiToken {
        token: header_safe(&token, &settings::API_TOKEN_TOKEN)?,
        scope: scope.map(parse).transpose()?.unwrap_or(Scope::Admin),
    })
}

fn owner(reader: &Reader<'_>, warnings: &mut Vec<String>) -> Result<Option<Owner>, ConfigError> {
    let must = "must be a whole user id";
    let user_id = reader.parsed(&settings::OWNER, must, user_id)?;
    let mode = reader.parsed(&settings::OWNER_MODE, "must be read or invite", |text| match text {
        "read" => Some(OwnerMode::Read),
        "invite" => Some(OwnerMode::Invite),
        _ => None,
    })?;
    let accept = reader.parsed(&settings::OWNER_ACCEPT, "must be true or false", boolean)?;
    if user_id.is_none() && (mode.is_some() || accept.is_some()) {
        warnings.push("owner_mode and owner_accept do nothing without an owner (COUCOU_OWNER)".to_owned());
    }
    Ok(user_id.map(|user_id| Owner {
        user_id,
        mode: mode.unwrap_or_default(),
        accept: accept.unwrap_or(true),
    }))
}

fn owner_recovery_key(
    reader: &Reader<'_>,
    with_owner: bool,
    warnings: &mut Vec<String>,
) -> Result<Option<RecoveryKey>, ConfigError> {
    let key = recovery_key(reader, &settings::OWNER_RECOVERY_KEY)?;
    if key.is_some() && !with_owner {
        warnings.push("owner_recovery_key does nothing without an owner (COUCOU_OWNER)".to_owned());
    }
    Ok(key)
}

/// A recovery key or a passphrase. A mistyped key is told here, before anything is made with it.
fn recovery_key(reader: &Reader<'_>, setting: &'static Setting) -> Result<Option<RecoveryKey>, ConfigError> {
    let Some(given) = reader.given(setting)? else { return Ok(None) };
    RecoveryKey::parse(&given.text).map(Some).map_err(|_| {
        given.invalid(
            setting,
            "must be a recovery key without a slip (48 letters and digits from Es), or a passphrase",
        )
    })
}

/// How long the webhooks are spared the news of a key that has not come: most that are late come sooner.
const NOTIFY_AFTER: Duration = Duration::from_mins(5);

fn undecryptable(reader: &Reader<'_>) -> Result<Undecryptable, ConfigError> {
    let must = format!("{}, or off", duration::MUST);
    let notify_after = reader.parsed(&settings::UNDECRYPTABLE_NOTIFY_AFTER, &must, |text| match text {
        "off" => Some(None),
        text => duration::parse(text).map(Some),
    })?;
    Ok(Undecryptable { notify_after: notify_after.unwrap_or(Some(NOTIFY_AFTER)) })
}

/// What is worth telling of silences; `None`: nothing.
fn silence(reader: &Reader<'_>) -> Result<Option<SilenceSettings>, ConfigError> {
    let within = |setting, must: &str, shortest: Duration, longest: Duration| {
        let must = format!("{}; {must}", duration::MUST);
        reader.parsed(setting, &must, |text| {
            duration::parse(text).filter(|length| (shortest..=longest).contains(length))
        })
    };
    let (hour, day) = (Duration::from_hours(1), Duration::from_hours(24));
    let after = within(&settings::SILENCE_AFTER, "from 1h to 30d", hour, day * 30)?;
    let second = Duration::from_secs(1);
    let transactions = within(&settings::SILENCE_TRANSACTIONS_AFTER, "from 1s to 1d", second, day)?;
    let enabled = reader.parsed(&settings::SILENCE_ENABLED, "must be true or false", boolean)?;
    Ok(enabled.unwrap_or(true).then_some(SilenceSettings {
        after: after.unwrap_or(hour * 6),
        transactions_after: transactions.unwrap_or(Duration::from_mins(15)),
    }))
}

fn networks(reader: &Reader<'_>) -> Result<BTreeMap<String, String>, ConfigError> {
    let setting = &settings::NETWORKS;
    let Some(node) = reader.node(setting) else { return Ok(BTreeMap::new()) };
    let map = match &node.value {
        Value::Map(map) => map,
        Value::Null => return Ok(BTreeMap::new()),
        Value::Text(_) | Value::List(_) => {
            return Err(ConfigError::Invalid {
                setting,
                must: "must be a mapping of protocol ids to names".to_owned(),
                found: format!("{} has none", reader.origin(node.line)),
            });
        }
    };
    let mut networks = BTreeMap::new();
    for (protocol, node) in map {
        let name = reader.text(node, setting)?;
        let name = name.ok_or_else(|| missing(setting, &format!(" a name for {protocol}")))?;
        let must = "must be mapped to names of small letters, digits, - and _";
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        if !name.text.bytes().all(plain) {
            return Err(name.invalid(setting, must));
        }
        networks.insert(protocol.clone(), name.text);
    }
    Ok(networks)
}

fn messages(
    reader: &Reader<'_>,
    webhooks: &[super::Webhook],
    warnings: &mut Vec<String>,
) -> Result<Messages, ConfigError> {
    let must = format!("{}; a hundred years at most", duration::MUST);
    let retention = reader.parsed(&settings::MESSAGES_RETENTION, &must, |text| {
        duration::parse(text).filter(|retention| *retention <= LONGEST_RETENTION)
    })?;
    let retention = retention.unwrap_or(DEFAULT_RETENTION);
    if retention.is_zero() && webhooks.is_empty() {
        warnings.push(
            "messages.retention (COUCOU_MESSAGES_RETENTION) is 0 and no webhook is configured \
             (COUCOU_WEBHOOK_URL): messages are deleted before anybody can read them"
                .to_owned(),
        );
    }
    Ok(Messages { retention })
}

fn log(reader: &Reader<'_>) -> Result<Log, ConfigError> {
    let format = reader.parsed(&settings::LOG_FORMAT, "must be text or json", |text| match text {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    })?;
    let must = "must be a level (error, warn, info, debug, trace), or module=level with commas between";
    let filter = reader.parsed(&settings::LOG_FILTER, must, |text| {
        tracing_subscriber::EnvFilter::try_new(text).is_ok().then(|| text.to_owned())
    })?;
    Ok(Log {
        format: format.unwrap_or_default(),
        filter: filter.unwrap_or_else(|| settings::LOG_FILTER.default.to_owned()),
    })
}

/// A token that can stand in a header.
fn token(reader: &Reader<'_>, setting: &'static Setting) -> Result<Option<SecretString>, ConfigError> {
    reader.given(setting)?.map(|given| header_safe(&given, setting)).transpose()
}

fn header_safe(given: &Given, setting: &'static Setting) -> Result<SecretString, ConfigError> {
    if given.text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(SecretString::from(given.text.as_str()))
    } else {
        Err(given.invalid(setting, "must be of visible ASCII characters without spaces"))
    }
}

pub(super) fn http_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.host().is_some()).then_some(url)
}

/// An address that something can be put behind.
pub(super) fn plain_url(text: &str) -> Option<Url> {
    let url = http_url(text)?;
    let plain = url.username().is_empty() && url.password().is_none();
    (plain && url.query().is_none() && url.fragment().is_none()).then_some(url)
}

/// A whole user id.
pub(super) fn user_id(text: &str) -> Option<OwnedUserId> {
    UserId::parse(text).ok().filter(|id| !id.localpart().is_empty())
}

/// `true` or `false`, in the ways that people write it.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// The error that a setting is required.
pub(super) fn missing(setting: &'static Setting, because: &str) -> ConfigError {
    ConfigError::Missing { setting, because: because.to_owned() }
}
