//! The list of settings: what reading, error messages, the example files and the documentation agree on.

/// What there is to know about one setting beside its type.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// Where it stands in the file: `http.port`; `webhooks[].url` for the entries of a list.
    pub path: &'static str,
    /// Its environment variable; lists and mappings have none.
    pub env: Option<&'static str>,
    /// Environment variables that mean the same, looked at in this order when `env` is not set.
    pub aliases: &'static [&'static str],
    /// Whether its value is never shown, and `<env>_FILE` may name a file that holds it.
    pub secret: bool,
    /// What it is when not set, as text for the documentation.
    pub default: &'static str,
    /// A value that works.
    pub example: &'static str,
    /// What it is for, with its unit, as one sentence for the documentation.
    pub meaning: &'static str,
}

impl Setting {
    /// The variable that names a file with the secret: `COUCOU_API_TOKEN_FILE`.
    #[must_use]
    pub fn file_env(&self) -> Option<String> {
        self.env.filter(|_| self.secret).map(|env| format!("{env}_FILE"))
    }
}

macro_rules! settings {
    ($($(#[$attribute:meta])* $name:ident {
        $path:literal $(, env: $env:literal)? $(, aliases: [$($alias:literal),+])? $(, secret: $secret:literal)?,
        default: $default:literal, example: $example:literal, $meaning:literal $(,)?
    })+) => {
        $(pub(super) const $name: Setting = Setting {
            path: $path,
            env: settings!(@option $($env)?),
            aliases: &[$($($alias),+)?],
            secret: settings!(@flag $($secret)?),
            default: $default,
            example: $example,
            meaning: $meaning,
        };)+

        /// Every setting there is, in the order of the documentation.
        pub const SETTINGS: &[Setting] = &[$($name),+];
    };
    (@option) => { None };
    (@option $value:literal) => { Some($value) };
    (@flag) => { false };
    (@flag $value:literal) => { $value };
}

settings! {
    HOMESERVER_URL {
        "homeserver.url", env: "COUCOU_HOMESERVER_URL", aliases: ["ETKE_HOMESERVER"],
        default: "required", example: "https://matrix.example.org",
        "Base URL of the homeserver's client-server API, http or https.",
    }
    HOMESERVER_SERVER_NAME {
        "homeserver.server_name", env: "COUCOU_HOMESERVER_SERVER_NAME",
        default: "asked of the homeserver", example: "example.org",
        "The part of the homeserver's user ids after the colon.",
    }
    REGISTRATION {
        "appservice.registration", env: "COUCOU_APPSERVICE_REGISTRATION",
        default: "registration.yaml, if present", example: "registration.yaml",
        "Path of the registration file that the homeserver has, too.",
    }
    AS_TOKEN {
        "appservice.as_token", env: "COUCOU_APPSERVICE_AS_TOKEN", aliases: ["AS_TOKEN"], secret: true,
        default: "from the registration", example: "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978",
        "The token with which coucou speaks to the homeserver.",
    }
    HS_TOKEN {
        "appservice.hs_token", env: "COUCOU_APPSERVICE_HS_TOKEN", aliases: ["HS_TOKEN"], secret: true,
        default: "from the registration", example: "f0e1d2c3b4a5968778695a4b3c2d1e0ff0e1d2c3b4a59687",
        "The token with which the homeserver speaks to coucou.",
    }
    APPSERVICE_ID {
        "appservice.id", env: "COUCOU_APPSERVICE_ID",
        default: "from the registration", example: "coucou",
        "The id of the registration; with it coucou can ask the homeserver for a ping.",
    }
    SENDER_LOCALPART {
        "appservice.sender_localpart", env: "COUCOU_APPSERVICE_SENDER_LOCALPART",
        default: "from the registration", example: "_coucou_as",
        "The registration's own user; it cannot be the bot.",
    }
    BOT {
        "appservice.bot", env: "COUCOU_APPSERVICE_BOT",
        default: "coucou", example: "coucou",
        "The bot that is invited to rooms: a localpart, or a whole user id.",
    }
    DEVICE_ID {
        "appservice.device_id", env: "COUCOU_APPSERVICE_DEVICE_ID",
        default: "made at the first start, kept in the store", example: "COUCOU01",
        "The id of the bot's device. A lost store wants a new one.",
    }
    HTTP_HOST {
        "http.host", env: "COUCOU_HTTP_HOST", aliases: ["API_HOST"],
        default: "127.0.0.1", example: "0.0.0.0",
        "IP address to listen on; 0.0.0.0 for all.",
    }
    HTTP_PORT {
        "http.port", env: "COUCOU_HTTP_PORT", aliases: ["PORT", "API_PORT"],
        default: "8080", example: "8080",
        "TCP port to listen on; 0 takes any free one.",
    }
    PUBLIC_URL {
        "http.public_url", env: "COUCOU_HTTP_PUBLIC_URL",
        default: "the registration's url", example: "https://coucou.example.org",
        "Base URL under which consumers reach coucou, http or https; addresses of files begin with it.",
    }
    METRICS_PORT {
        "metrics.port", env: "COUCOU_METRICS_PORT", aliases: ["CC_METRICS_PROMETHEUS_PORT"],
        default: "that of http.port", example: "9100",
        "TCP port of its own, on http.host, at which Prometheus reads metrics.",
    }
    METRICS_PATH {
        "metrics.path", env: "COUCOU_METRICS_PATH", aliases: ["CC_METRICS_PROMETHEUS_PATH"],
        default: "/metrics", example: "/metrics",
        "Path at which Prometheus reads metrics.",
    }
    METRICS_TOKEN {
        "metrics.token", env: "COUCOU_METRICS_TOKEN", aliases: ["CC_METRICS_PROMETHEUS_PASSWORD"], secret: true,
        default: "on the main port the tokens of api.tokens; none on a port of its own",
        example: "c0ffeec0ffeec0ffeec0ffeec0ffee00",
        "Token that Prometheus shows, as a bearer token or as the password of any user.",
    }
    STORE_URL {
        "store.url", env: "COUCOU_STORE_URL", aliases: ["DATABASE_URL", "POSTGRESQL_ADDON_URI"], secret: true,
        default: "sqlite:coucou.db", example: "postgres://coucou:password@localhost:5432/coucou",
        "Where the data is: postgres://user:password@host:port/database (with ?sslmode=… as libpq knows it) \
         or sqlite:path. POSTGRESQL_ADDON_HOST, _PORT, _DB, _USER and _PASSWORD together do as well, and \
         USE_POSTGRES_STORE=false ignores a PostgreSQL that is set by another name than COUCOU_STORE_URL.",
    }
    PICKLE_KEY {
        "store.pickle_key", env: "COUCOU_STORE_PICKLE_KEY", aliases: ["PICKLE_KEY"], secret: true,
        default: "required with PostgreSQL; made beside the file with SQLite",
        example: "dGhpcyBpcyBhbiBleGFtcGxlIG9mIGEgcGlja2xlIGs=",
        "What the secrets in the store are encrypted with. Any long random text: openssl rand -base64 32. \
         Lost, the store cannot be read.",
    }
    POOL_SIZE {
        "store.pool_size", env: "COUCOU_STORE_POOL_SIZE",
        default: "10", example: "10",
        "Most connections to PostgreSQL at once, 1 to 100.",
    }
    FALLBACK {
        "store.fallback", env: "COUCOU_STORE_FALLBACK",
        default: "off", example: "sqlite",
        "What is used when PostgreSQL cannot be reached at the start: off waits for it; sqlite, for development, \
         goes on with a file and a device of its own, which are merged when PostgreSQL is back at a later start.",
    }
    FALLBACK_FILE {
        "store.fallback_file", env: "COUCOU_STORE_FALLBACK_FILE",
        default: "coucou-fallback.db", example: "coucou-fallback.db",
        "Path of that file; it is sealed with store.pickle_key, and no other instance may use it.",
    }
    WEBHOOK_NAME {
        "webhooks[].name",
        default: "required", example: "default",
        "Name of the webhook, unique; the one set by environment is called default.",
    }
    WEBHOOK_URL {
        "webhooks[].url", env: "COUCOU_WEBHOOK_URL", aliases: ["WEBHOOK_URL"],
        default: "none: messages are kept for the REST API", example: "https://hooks.example.org/coucou",
        "Where deliveries are posted, http or https, any address.",
    }
    WEBHOOK_SECRET {
        "webhooks[].secret", env: "COUCOU_WEBHOOK_SECRET", aliases: ["WEBHOOK_SECRET"], secret: true,
        default: "made at the first start, kept in the store",
        example: "whsec_dGhpcyBpcyBhbiBleGFtcGxlIHNlY3JldCE=",
        "Secret that signs deliveries by Standard Webhooks: whsec_ and base64 of 24 to 64 bytes. A plain text of 16 \
         to 64 bytes works, too; `coucou webhooks --show-secrets` prints its whsec_ form for the receiver.",
    }
    WEBHOOK_SECRETS {
        "webhooks[].secrets", secret: true,
        default: "none beside secret", example: "[whsec_dGhpcyBpcyBhbiBleGFtcGxlIHNlY3JldCE=]",
        "More secrets, each of which signs as well: while the receiver changes from one to another.",
    }
    WEBHOOK_HEADERS {
        "webhooks[].headers", secret: true,
        default: "none", example: "{Authorization: Bearer c0ffee}",
        "Headers that are sent along with each delivery, beside coucou's own.",
    }
    WEBHOOK_TIMEOUT {
        "webhooks[].timeout",
        default: "15s", example: "15s",
        "How long an answer may take, 1s to 2m.",
    }
    WEBHOOK_CONCURRENCY {
        "webhooks[].concurrency",
        default: "64", example: "8",
        "Rooms whose deliveries are sent at the same time, 1 to 64; those of one room are sent one after the other.",
    }
    WEBHOOK_SCHEDULE {
        "webhooks[].schedule",
        default: "[5s, 5m, 30m, 2h, 5h, 10h, 14h, 20h, 24h]", example: "[5s, 1m, 10m, 1h]",
        "The waits after failed attempts, 1s to 7d each (s, m, h, d); after the last one a delivery is dead.",
    }
    WEBHOOK_CONTENT {
        "webhooks[].content",
        default: "full", example: "metadata",
        "How much is told: full, or metadata (who wrote what kind of thing where and when, but not what).",
    }
    WEBHOOK_FORMAT {
        "webhooks[].format",
        default: "standard", example: "cloudevents",
        "What a body looks like: standard, or cloudevents (CloudEvents 1.0, structured JSON).",
    }
    WEBHOOK_ORDERING {
        "webhooks[].ordering",
        default: "strict", example: "strict",
        "strict: each room's messages in their order. none: whatever fails delays nothing else.",
    }
    BATCH_MAX {
        "webhooks[].batch.max",
        default: "100, with batch.wait", example: "100",
        "The most messages that go in one request.",
    }
    BATCH_WAIT {
        "webhooks[].batch.wait",
        default: "1s, with batch.max", example: "500ms",
        "How long a message waits for others to go in the same request.",
    }
    WEBHOOK_MAX_QUEUE {
        "webhooks[].max_queue",
        default: "100000", example: "100000",
        "Deliveries that are kept pending while the webhook is disabled; the oldest beyond become dead.",
    }
    FILTER_NETWORKS {
        "webhooks[].filter.networks",
        default: "all", example: "[instagram]",
        "Networks to be told of, in which * stands for anything; with it, rooms without a bridge are left out.",
    }
    FILTER_ROOMS {
        "webhooks[].filter.rooms",
        default: "all", example: "[\"!abc:example.org\"]",
        "Room ids to be told of, in which * stands for anything.",
    }
    FILTER_SENDERS {
        "webhooks[].filter.senders",
        default: "all", example: "[\"@instagram_*:example.org\"]",
        "User ids of the senders to be told of, in which * stands for anything.",
    }
    FILTER_DIRECTIONS {
        "webhooks[].filter.directions",
        default: "all", example: "[in]",
        "Directions to be told of: in, out.",
    }
    FILTER_KINDS {
        "webhooks[].filter.kinds",
        default: "all", example: "[text, image]",
        "Kinds of content to be told of, as docs/webhook.md lists them; with it, what has no content is left out.",
    }
    FILTER_TYPES {
        "webhooks[].filter.types",
        default: "all", example: "[message.created, message.edited]",
        "Types of events to be told of, as docs/webhook.md lists them.",
    }
    FILTER_TRUST {
        "webhooks[].filter.trust",
        default: "all", example: "[bridge, verified]",
        "What the encrypting device must be, as docs/webhook.md lists it; none for what was not encrypted.",
    }
    FILTER_ENCRYPTED {
        "webhooks[].filter.encrypted_only",
        default: "false", example: "true",
        "Whether to be told only of what was end-to-end encrypted.",
    }
    API_TOKEN {
        "api.tokens", env: "COUCOU_API_TOKEN", aliases: ["API_TOKEN"], secret: true,
        default: "none: the REST API answers 403", example: "c0ffee00c0ffee00c0ffee00c0ffee00",
        "Tokens that the REST API lets in: a list in the file, one by environment. An entry is a token, which may \
         do everything, or a mapping of token and scope.",
    }
    API_TOKEN_TOKEN {
        "api.tokens[].token", secret: true,
        default: "required", example: "decaf000decaf000decaf000decaf000",
        "A token, in an entry that says its scope.",
    }
    API_TOKEN_SCOPE {
        "api.tokens[].scope",
        default: "admin", example: "read",
        "What the token may do: read (look at everything) or admin (also resend, pause, test).",
    }
    OWNER {
        "owner", env: "COUCOU_OWNER", aliases: ["ETKE_USERNAME"],
        default: "none", example: "@owner:example.org",
        "The real user whose bridged conversations are relayed, as a whole user id.",
    }
    OWNER_MODE {
        "owner_mode", env: "COUCOU_OWNER_MODE",
        default: "read", example: "read",
        "How: read (through a device of coucou's on the owner's account) or invite (by inviting the bot, as \
         the owner, into bridged rooms).",
    }
    OWNER_ACCEPT {
        "owner_accept", env: "COUCOU_OWNER_ACCEPT",
        default: "true", example: "true",
        "Whether coucou accepts invites of known bridge bots for the owner: of those under bridges, and of those \
         in whose rooms the owner is already. The first invite of any other bridge is the owner's to accept.",
    }
    OWNER_RECOVERY_KEY {
        "owner_recovery_key", env: "COUCOU_OWNER_RECOVERY_KEY", secret: true,
        default: "none", example: "EsTb ZLfa Puin 6xGD j2oC VWwD Kpb1 fx5E 91Ct Mcb6 UQ8v HPQa",
        "The owner's recovery key, or the passphrase of the owner's secret storage: with it coucou's device on \
         the owner's account is signed, and keys that the owner's backup holds of relayed rooms are read.",
    }
    RECOVERY_KEY {
        "recovery.key", env: "COUCOU_RECOVERY_KEY", secret: true,
        default: "made at the first start, kept in the store",
        example: "EsTb ZLfa Puin 6xGD j2oC VWwD Kpb1 fx5E 91Ct Mcb6 UQ8v HPQa",
        "The bot's recovery key, or a passphrase: it brings back the bot's identity and room keys after the \
         database was lost. `coucou recovery-key` prints the one in use.",
    }
    ROOMS_RELAY {
        "rooms.relay", env: "COUCOU_ROOMS_RELAY",
        default: "bridged with an owner, else all", example: "bridged",
        "Which rooms are relayed: bridged, all, or room ids, or a list of these (by environment: with commas), in which \
         -!room leaves a room out.",
    }
    ROOMS_SETTLE_AFTER {
        "rooms.settle_after", env: "COUCOU_ROOMS_SETTLE_AFTER",
        default: "1h", example: "1h",
        "After how long a room that no bridge claims counts as none of a bridge's: until then its room keys and \
         messages are kept, encrypted, in case it becomes one. A number with a unit (s, m, h, d), 1s to 7d.",
    }
    ROOMS_INVITE_FROM {
        "rooms.invite_from", env: "COUCOU_ROOMS_INVITE_FROM",
        default: "the bot's own server", example: "example.org",
        "Whose invites the bot accepts: a list (by environment: with commas) of server names and user ids, in \
         which * stands for anything.",
    }
    UNDECRYPTABLE_NOTIFY_AFTER {
        "undecryptable.notify_after", env: "COUCOU_UNDECRYPTABLE_NOTIFY_AFTER",
        default: "5m", example: "5m",
        "How long after it came the webhooks are told, once, of a message that cannot be decrypted: a number \
         with a unit (s, m, h, d or w), or off.",
    }
    SILENCE_ENABLED {
        "silence.enabled", env: "COUCOU_SILENCE_ENABLED",
        default: "true", example: "true",
        "Whether webhooks, metrics and stats are told when a network is silent, a bridge is disconnected, or the \
         homeserver pushes nothing: true or false.",
    }
    SILENCE_AFTER {
        "silence.after", env: "COUCOU_SILENCE_AFTER",
        default: "6h", example: "6h",
        "After how long without a message a network is silent, at least: a number with a unit (h, d or w), 1h to 30d. \
         Only time counts in which messages usually come, and what is usual for the network is learnt.",
    }
    SILENCE_TRANSACTIONS_AFTER {
        "silence.transactions_after", env: "COUCOU_SILENCE_TRANSACTIONS_AFTER",
        default: "15m", example: "15m",
        "For how long room keys or messages must come by other ways, while the homeserver pushes nothing: a number with a \
         unit (s, m, h), 1s to 1d.",
    }
    BRIDGE_BOT {
        "bridges[].bot",
        default: "required", example: "@instagrambot:example.org",
        "User id of a bridge's bot. Bridges that are not listed are pinned when first seen.",
    }
    BRIDGE_GHOSTS {
        "bridges[].ghosts",
        default: "for @instagrambot:example.org, @instagram_*:example.org; required for a bot whose name tells none",
        example: "@instagram_*:example.org",
        "User ids of the bridge's ghosts, in which * stands for anything. The bridge speaks for nobody else but its \
         puppets.",
    }
    BRIDGE_PUPPETS {
        "bridges[].puppets",
        default: "the owner; without one, users of the bridge's server whom the bridge marks as its puppets",
        example: "@*:example.org",
        "User ids of real users for whom the bridge speaks as well (double puppets), in which * stands for anything.",
    }
    TRUST_NEW_BRIDGES {
        "trust.new_bridges", env: "COUCOU_TRUST_NEW_BRIDGES",
        default: "pin", example: "pin",
        "What is done with a bridge that is not listed under bridges: pin (believe it when first seen, and no \
         other in its place) or refuse.",
    }
    TRUST_BRIDGE {
        "trust.bridge", env: "COUCOU_TRUST_BRIDGE",
        default: "deliver", example: "deliver",
        "What is done with messages that the room's bridge encrypted for its ghosts and puppets: deliver, flag \
         (deliver with encryption.flagged) or hold (keep on the ledger).",
    }
    TRUST_VERIFIED {
        "trust.verified", env: "COUCOU_TRUST_VERIFIED",
        default: "deliver", example: "deliver",
        "The same for messages of devices of verified users.",
    }
    TRUST_CROSS_SIGNED {
        "trust.cross_signed", env: "COUCOU_TRUST_CROSS_SIGNED",
        default: "deliver", example: "deliver",
        "The same for messages of devices that their user signed.",
    }
    TRUST_UNVERIFIED {
        "trust.unverified", env: "COUCOU_TRUST_UNVERIFIED",
        default: "deliver", example: "flag",
        "The same for messages of devices that their user did not sign.",
    }
    TRUST_MISMATCHED_SENDER {
        "trust.mismatched_sender", env: "COUCOU_TRUST_MISMATCHED_SENDER",
        default: "hold", example: "hold",
        "The same for messages that somebody else encrypted who is not the sender's bridge: forgeries.",
    }
    TRUST_UNKNOWN_DEVICE {
        "trust.unknown_device", env: "COUCOU_TRUST_UNKNOWN_DEVICE",
        default: "flag", example: "hold",
        "The same for messages of devices that nobody knows.",
    }
    TRUST_IMPORTED {
        "trust.imported", env: "COUCOU_TRUST_IMPORTED",
        default: "flag", example: "deliver",
        "The same for messages whose key is from a backup, an import or a forward, which proves nobody.",
    }
    NETWORKS {
        "networks",
        default: "none beside the built-in names", example: "instagramgo: instagram",
        "Names of networks by the protocol id that a bridge states.",
    }
    MESSAGES_RETENTION {
        "messages.retention", env: "COUCOU_MESSAGES_RETENTION",
        default: "30d", example: "30d",
        "How long the content of messages is kept, and encrypted events whose key is missing: a number with a \
         unit (s, m, h, d, w). What is still to be delivered is kept until it is. 0 keeps nothing after delivery.",
    }
    MEDIA_URL_LIFETIME {
        "media.url_lifetime", env: "COUCOU_MEDIA_URL_LIFETIME",
        default: "24h", example: "24h",
        "How long the address of a file works at least, 1s to 30d (s, m, h, d, w).",
    }
    MEDIA_MAX_SIZE {
        "media.max_size", env: "COUCOU_MEDIA_MAX_SIZE",
        default: "100MiB", example: "100MiB",
        "Size of the largest file that is handed out (KiB, MiB, GiB).",
    }
    MEDIA_TIMEOUT {
        "media.timeout", env: "COUCOU_MEDIA_TIMEOUT",
        default: "2m", example: "2m",
        "How long a file may take to come from the homeserver, 1s to 1h.",
    }
    MEDIA_CONCURRENCY {
        "media.concurrency", env: "COUCOU_MEDIA_CONCURRENCY",
        default: "4", example: "4",
        "Files that are fetched from the homeserver at the same time, 1 to 64.",
    }
    MEDIA_CACHE_SIZE {
        "media.cache_size", env: "COUCOU_MEDIA_CACHE_SIZE",
        default: "1GiB", example: "1GiB",
        "Size of the cache of files on disk (KiB, MiB, GiB), not less than media.max_size; the least recently used go.",
    }
    MEDIA_FOLDER {
        "media.folder", env: "COUCOU_MEDIA_FOLDER",
        default: "the system's folder for temporary files", example: "/var/cache/coucou",
        "Folder in which the cache has its own, which holds ciphertext only and goes with the process.",
    }
    LOG_FORMAT {
        "log.format", env: "COUCOU_LOG_FORMAT",
        default: "text", example: "json",
        "How a line of the log looks: text or json.",
    }
    LOG_FILTER {
        "log.filter", env: "COUCOU_LOG_FILTER",
        default: "info,matrix_sdk_crypto=warn,sqlx=warn", example: "info,coucou::outbox=debug",
        "Which lines are logged: a level, and levels by module.",
    }
}

/// Environment variables that matter beside those of [`SETTINGS`].
pub(super) mod other {
    /// Whether a PostgreSQL that is set by an alias counts.
    pub(crate) const USE_POSTGRES_STORE: &str = "USE_POSTGRES_STORE";
    /// The parts of a PostgreSQL URL, as Clever Cloud injects them.
    pub(crate) const ADDON_HOST: &str = "POSTGRESQL_ADDON_HOST";
    /// The port.
    pub(crate) const ADDON_PORT: &str = "POSTGRESQL_ADDON_PORT";
    /// The database.
    pub(crate) const ADDON_DB: &str = "POSTGRESQL_ADDON_DB";
    /// The user.
    pub(crate) const ADDON_USER: &str = "POSTGRESQL_ADDON_USER";
    /// The password.
    pub(crate) const ADDON_PASSWORD: &str = "POSTGRESQL_ADDON_PASSWORD";
    /// Set by operators who came from programs that log in as the owner; never read.
    pub(crate) const ETKE_PASSWORD: &str = "ETKE_PASSWORD";
    /// `COUCOU_` variables that are no settings: those of the tests and of the development rig, and the
    /// passphrase of `coucou keys`.
    pub(crate) fn is_foreign(name: &str) -> bool {
        name == "COUCOU_HOMESERVER" || name == "COUCOU_KEYS_PASSPHRASE" || name.starts_with("COUCOU_TEST_")
    }
}
