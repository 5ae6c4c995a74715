//! What is said of a setting that is missing or malformed.

use super::*;

#[test]
fn a_missing_setting_is_named_with_its_variable_and_an_example() {
    refused(
        ("COUCOU_HOMESERVER_URL", ""),
        "homeserver.url is missing: set it in coucou.yaml or as COUCOU_HOMESERVER_URL, for example \
         COUCOU_HOMESERVER_URL=https://matrix.example.org",
    );
    refused(
        ("COUCOU_APPSERVICE_AS_TOKEN", ""),
        "appservice.as_token is missing, and there is no registration.yaml (`coucou registration` makes one): \
         set it in coucou.yaml or as COUCOU_APPSERVICE_AS_TOKEN, for example \
         COUCOU_APPSERVICE_AS_TOKEN=0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978",
    );
    refused(
        ("COUCOU_APPSERVICE_HS_TOKEN", ""),
        "appservice.hs_token is missing, and there is no registration.yaml (`coucou registration` makes one): \
         set it in coucou.yaml or as COUCOU_APPSERVICE_HS_TOKEN, for example \
         COUCOU_APPSERVICE_HS_TOKEN=f0e1d2c3b4a5968778695a4b3c2d1e0ff0e1d2c3b4a59687",
    );
    refused(
        ("COUCOU_STORE_URL", "postgres://localhost/coucou"),
        "store.pickle_key is missing, and with PostgreSQL it is required (openssl rand -base64 32): set it in \
         coucou.yaml or as COUCOU_STORE_PICKLE_KEY, for example \
         COUCOU_STORE_PICKLE_KEY=dGhpcyBpcyBhbiBleGFtcGxlIG9mIGEgcGlja2xlIGs=",
    );
    refused(
        ("COUCOU_WEBHOOK_SECRET", "whsec_dGhpcyBpcyBhbiBleGFtcGxlIHNlY3JldCE="),
        "webhooks[].url is missing, while COUCOU_WEBHOOK_SECRET is set: set it in coucou.yaml or as \
         COUCOU_WEBHOOK_URL, for example COUCOU_WEBHOOK_URL=https://hooks.example.org/coucou",
    );
    assert_eq!(
        message("webhooks:\n  - url: https://example.org", &[]),
        "webhooks[].name is missing in coucou.yaml line 2: set it in coucou.yaml, for example name: default"
    );
}

/// A value that each setting with a variable must refuse, and what is said. Free text has none.
const MALFORMED: &[(&str, &str, &str)] = &[
    (
        "COUCOU_HOMESERVER_URL",
        "matrix.example.org",
        "homeserver.url must be an http or https URL without user, query or fragment, but \
         COUCOU_HOMESERVER_URL has \"matrix.example.org\": set it in coucou.yaml or as COUCOU_HOMESERVER_URL, \
         for example COUCOU_HOMESERVER_URL=https://matrix.example.org",
    ),
    (
        "COUCOU_HOMESERVER_SERVER_NAME",
        "https://example.org",
        "homeserver.server_name must be a server name, without scheme or path, but \
         COUCOU_HOMESERVER_SERVER_NAME has \"https://example.org\": set it in coucou.yaml or as \
         COUCOU_HOMESERVER_SERVER_NAME, for example COUCOU_HOMESERVER_SERVER_NAME=example.org",
    ),
    (
        "COUCOU_APPSERVICE_REGISTRATION",
        "absent.yaml",
        "appservice.registration must be a file that can be read, but COUCOU_APPSERVICE_REGISTRATION names \
         absent.yaml: No such file or directory (os error 2): set it in coucou.yaml or as \
         COUCOU_APPSERVICE_REGISTRATION, for example COUCOU_APPSERVICE_REGISTRATION=registration.yaml",
    ),
    (
        "COUCOU_APPSERVICE_AS_TOKEN",
        "hushhush with space",
        "appservice.as_token must be of visible ASCII characters without spaces, but the value of \
         COUCOU_APPSERVICE_AS_TOKEN is not: set it in coucou.yaml or as COUCOU_APPSERVICE_AS_TOKEN, for \
         example COUCOU_APPSERVICE_AS_TOKEN=0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978",
    ),
    (
        "COUCOU_APPSERVICE_HS_TOKEN",
        "hushhushü",
        "appservice.hs_token must be of visible ASCII characters without spaces, but the value of \
         COUCOU_APPSERVICE_HS_TOKEN is not: set it in coucou.yaml or as COUCOU_APPSERVICE_HS_TOKEN, for \
         example COUCOU_APPSERVICE_HS_TOKEN=f0e1d2c3b4a5968778695a4b3c2d1e0ff0e1d2c3b4a59687",
    ),
    (
        "COUCOU_APPSERVICE_BOT",
        "coucou:example.org",
        "appservice.bot must be a localpart such as coucou, or a user id such as @coucou:example.org, but \
         COUCOU_APPSERVICE_BOT has \"coucou:example.org\": set it in coucou.yaml or as COUCOU_APPSERVICE_BOT, \
         for example COUCOU_APPSERVICE_BOT=coucou",
    ),
    (
        "COUCOU_APPSERVICE_DEVICE_ID",
        "MY PHONE",
        "appservice.device_id must be one word of letters, digits and . _ = - /, but \
         COUCOU_APPSERVICE_DEVICE_ID has \"MY PHONE\": set it in coucou.yaml or as \
         COUCOU_APPSERVICE_DEVICE_ID, for example COUCOU_APPSERVICE_DEVICE_ID=COUCOU01",
    ),
    (
        "API_HOST",
        "all",
        "http.host must be an IP address, but API_HOST has \"all\": set it in coucou.yaml or as \
         COUCOU_HTTP_HOST, for example COUCOU_HTTP_HOST=0.0.0.0",
    ),
    (
        "PORT",
        "65536",
        "http.port must be a number from 0 to 65535, but PORT has \"65536\": set it in coucou.yaml or as \
         COUCOU_HTTP_PORT, for example COUCOU_HTTP_PORT=8080",
    ),
    (
        "DATABASE_URL",
        "mysql://root:hushhush@localhost/db",
        "store.url must be postgres://user:password@host:port/database or sqlite:path, a file, but the value \
         of DATABASE_URL is not: set it in coucou.yaml or as COUCOU_STORE_URL, for example \
         COUCOU_STORE_URL=postgres://coucou:password@localhost:5432/coucou",
    ),
    (
        "COUCOU_STORE_POOL_SIZE",
        "0",
        "store.pool_size must be a number from 1 to 100, but COUCOU_STORE_POOL_SIZE has \"0\": set it in \
         coucou.yaml or as COUCOU_STORE_POOL_SIZE, for example COUCOU_STORE_POOL_SIZE=10",
    ),
    (
        "COUCOU_STORE_FALLBACK",
        "mysql",
        "store.fallback must be sqlite or off, but COUCOU_STORE_FALLBACK has \"mysql\": set it in coucou.yaml or as \
         COUCOU_STORE_FALLBACK, for example COUCOU_STORE_FALLBACK=sqlite",
    ),
    (
        "COUCOU_STORE_FALLBACK_FILE",
        "data/",
        "store.fallback_file must be the path of a file, but COUCOU_STORE_FALLBACK_FILE has \"data/\": set it in \
         coucou.yaml or as COUCOU_STORE_FALLBACK_FILE, for example \
         COUCOU_STORE_FALLBACK_FILE=coucou-fallback.db",
    ),
    (
        "COUCOU_WEBHOOK_URL",
        "ftp://hushhush@example.org",
        "webhooks[].url must be an http or https URL, but the value of COUCOU_WEBHOOK_URL is not: set it in \
         coucou.yaml or as COUCOU_WEBHOOK_URL, for example \
         COUCOU_WEBHOOK_URL=https://hooks.example.org/coucou",
    ),
    (
        "COUCOU_WEBHOOK_SECRET",
        "hushhush",
        "webhooks[].secret must be whsec_ and base64 of 24 to 64 bytes (whsec_$(openssl rand -base64 32)), or a \
         text of 16 to 64 bytes, but the value of COUCOU_WEBHOOK_SECRET is not: set it in coucou.yaml or as \
         COUCOU_WEBHOOK_SECRET, for example COUCOU_WEBHOOK_SECRET=whsec_dGhpcyBpcyBhbiBleGFtcGxlIHNlY3JldCE=",
    ),
    (
        "API_TOKEN",
        "hushhush hushhush",
        "api.tokens must be of visible ASCII characters without spaces, but the value of API_TOKEN is not: set \
         it in coucou.yaml or as COUCOU_API_TOKEN, for example \
         COUCOU_API_TOKEN=c0ffee00c0ffee00c0ffee00c0ffee00",
    ),
    (
        "ETKE_USERNAME",
        "owner",
        "owner must be a whole user id, but ETKE_USERNAME has \"owner\": set it in coucou.yaml or as \
         COUCOU_OWNER, for example COUCOU_OWNER=@owner:example.org",
    ),
    (
        "COUCOU_OWNER_MODE",
        "write",
        "owner_mode must be read or invite, but COUCOU_OWNER_MODE has \"write\": set it in coucou.yaml or as \
         COUCOU_OWNER_MODE, for example COUCOU_OWNER_MODE=read",
    ),
    (
        "COUCOU_OWNER_ACCEPT",
        "perhaps",
        "owner_accept must be true or false, but COUCOU_OWNER_ACCEPT has \"perhaps\": set it in coucou.yaml or \
         as COUCOU_OWNER_ACCEPT, for example COUCOU_OWNER_ACCEPT=true",
    ),
    (
        "COUCOU_ROOMS_RELAY",
        "bridged,all",
        "rooms.relay must be bridged, all, or room ids, or a list of these, in which -!room leaves a room out, but \
         COUCOU_ROOMS_RELAY has \"all\": set it in coucou.yaml or as COUCOU_ROOMS_RELAY, for example COUCOU_ROOMS_RELAY=bridged",
    ),
    (
        "COUCOU_ROOMS_INVITE_FROM",
        "@friend",
        "rooms.invite_from must be server names and user ids, in which * stands for anything, but \
         COUCOU_ROOMS_INVITE_FROM has \"@friend\": set it in coucou.yaml or as COUCOU_ROOMS_INVITE_FROM, for \
         example COUCOU_ROOMS_INVITE_FROM=example.org",
    ),
    (
        "COUCOU_UNDECRYPTABLE_NOTIFY_AFTER",
        "soon",
        "undecryptable.notify_after must be a number with a unit (s, m, h, d or w), such as 90s, 12h or 30d, or 0, \
         or off, but COUCOU_UNDECRYPTABLE_NOTIFY_AFTER has \"soon\": set it in coucou.yaml or as \
         COUCOU_UNDECRYPTABLE_NOTIFY_AFTER, for example COUCOU_UNDECRYPTABLE_NOTIFY_AFTER=5m",
    ),
    (
        "COUCOU_TRUST_NEW_BRIDGES",
        "maybe",
        "trust.new_bridges must be pin or refuse, but COUCOU_TRUST_NEW_BRIDGES has \"maybe\": set it in \
         coucou.yaml or as COUCOU_TRUST_NEW_BRIDGES, for example COUCOU_TRUST_NEW_BRIDGES=pin",
    ),
    (
        "COUCOU_MESSAGES_RETENTION",
        "a month",
        "messages.retention must be a number with a unit (s, m, h, d or w), such as 90s, 12h or 30d, or 0; a \
         hundred years at most, but COUCOU_MESSAGES_RETENTION has \"a month\": set it in coucou.yaml or as \
         COUCOU_MESSAGES_RETENTION, for example COUCOU_MESSAGES_RETENTION=30d",
    ),
    (
        "COUCOU_RECOVERY_KEY",
        "EsTb ZLfa Puin 6xGD j2oC VWwD Kpb1 fx5E 91Ct Mcb6 UQ8v HPQb",
        "recovery.key must be a recovery key without a slip (48 letters and digits from Es), or a passphrase, but \
         the value of COUCOU_RECOVERY_KEY is not: set it in coucou.yaml or as COUCOU_RECOVERY_KEY, for example \
         COUCOU_RECOVERY_KEY=EsTb ZLfa Puin 6xGD j2oC VWwD Kpb1 fx5E 91Ct Mcb6 UQ8v HPQa",
    ),
    (
        "COUCOU_OWNER_RECOVERY_KEY",
        "EsTb ZLfa Puin 6xGD j2oC VWwD Kpb1 fx5E 91Ct Mcb6 UQ8v HPQa1",
        "owner_recovery_key must be a recovery key without a slip (48 letters and digits from Es), or a passphrase, \
         but the value of COUCOU_OWNER_RECOVERY_KEY is not: set it in coucou.yaml or as COUCOU_OWNER_RECOVERY_KEY, \
         for example COUCOU_OWNER_RECOVERY_KEY=EsTb ZLfa Puin 6xGD j2oC VWwD Kpb1 fx5E 91Ct Mcb6 UQ8v HPQa",
    ),
    (
        "COUCOU_LOG_FORMAT",
        "xml",
        "log.format must be text or json, but COUCOU_LOG_FORMAT has \"xml\": set it in coucou.yaml or as \
         COUCOU_LOG_FORMAT, for example COUCOU_LOG_FORMAT=json",
    ),
    (
        "COUCOU_LOG_FILTER",
        "a=b=c",
        "log.filter must be a level (error, warn, info, debug, trace), or module=level with commas between, but \
         COUCOU_LOG_FILTER has \"a=b=c\": set it in coucou.yaml or as COUCOU_LOG_FILTER, for example \
         COUCOU_LOG_FILTER=info,coucou::outbox=debug",
    ),
];

/// What can be known of a device, and what is done by default.
const TRUST: &[(&str, &str)] = &[
    ("bridge", "deliver"),
    ("verified", "deliver"),
    ("cross_signed", "deliver"),
    ("unverified", "flag"),
    ("mismatched_sender", "hold"),
    ("unknown_device", "hold"),
    ("imported", "deliver"),
];

/// A policy of trust that there is not: the variable, its value, and what is said of it.
fn untrusted(value: &str, example: &str) -> (String, &'static str, String) {
    let name = format!("COUCOU_TRUST_{}", value.to_uppercase());
    let expected = format!(
        "trust.{value} must be deliver, flag or hold, but {name} has \"drop\": set it in coucou.yaml or as {name}, \
         for example {name}={example}"
    );
    (name, "drop", expected)
}

#[test]
fn a_malformed_setting_is_named_with_its_variable_and_an_example() {
    let tables = MALFORMED.iter().chain(media::MALFORMED).chain(silence::MALFORMED).chain(rooms::MALFORMED);
    let tables = tables.map(|&(name, value, expected)| (name.to_owned(), value, expected.to_owned()));
    let malformed: Vec<_> =
        tables.chain(TRUST.iter().map(|(value, example)| untrusted(value, example))).collect();
    for (name, value, expected) in &malformed {
        refused((name, value), expected);
        assert!(!expected.contains("hushhush") && !expected.contains('\n'));
    }
    let refuses = |setting: &Setting| {
        let names = || setting.env.into_iter().chain(setting.aliases.iter().copied());
        malformed.iter().any(|(name, ..)| names().any(|known| known == name))
    };
    let free: Vec<_> = SETTINGS.iter().filter(|setting| setting.env.is_some() && !refuses(setting)).collect();
    let free: Vec<_> = free.into_iter().map(|setting| setting.path).collect();
    // The tests of the metrics have theirs.
    let free: Vec<_> = free.into_iter().filter(|path| !path.starts_with("metrics.")).collect();
    assert_eq!(free, ["appservice.id", "appservice.sender_localpart", "store.pickle_key", "media.folder"]);
}

#[test]
fn a_wrong_place_in_the_file_is_named_with_its_line() {
    let cases = [
        ("http:\n  prot: 1", "coucou.yaml line 2: there is no setting http.prot; did you mean http.port?"),
        ("nonsense_at_all: 1", "coucou.yaml line 1: there is no setting nonsense_at_all"),
        ("store: {failover: sqlite}", "coucou.yaml line 1: there is no setting store.failover"),
        (
            "webhooks:\n  - name: x\n    ulr: y",
            "coucou.yaml line 3: there is no setting webhooks[].ulr; did you mean webhooks[].url?",
        ),
        ("http: 8080", "coucou.yaml: line 1: http must be a mapping of settings, key: value"),
        ("- a", "coucou.yaml: line 1: the file must be a mapping of settings, key: value"),
        ("webhooks: {name: x}", "coucou.yaml: line 1: webhooks must be a list"),
        ("webhooks: [x]", "coucou.yaml: line 1: webhooks must be a mapping of settings, key: value"),
        (
            "http:\n  port: [1]",
            "http.port must be a single value, but coucou.yaml line 2 has a list: set it in coucou.yaml or as \
             COUCOU_HTTP_PORT, for example COUCOU_HTTP_PORT=8080",
        ),
        (
            "\n\nhttp:\n  port: abc",
            "http.port must be a number from 0 to 65535, but coucou.yaml line 4 has \"abc\": set it in \
             coucou.yaml or as COUCOU_HTTP_PORT, for example COUCOU_HTTP_PORT=8080",
        ),
        (
            "webhooks: [{name: x, url: 'http://a'}, {name: x, url: 'http://b'}]",
            "webhooks[].name must be unique, but coucou.yaml line 1 has \"x\": set it in coucou.yaml, for \
             example name: default",
        ),
        (
            "bridges: [{bot: instagrambot}]",
            "bridges[].bot must be a whole user id, but coucou.yaml line 1 has \"instagrambot\": set it in \
             coucou.yaml, for example bot: @instagrambot:example.org",
        ),
        (
            "bridges: [{bot: '@bridge:a.org'}]",
            "bridges[].ghosts is missing in coucou.yaml line 1, and the name of @bridge:a.org does not tell them: \
             set it in coucou.yaml, for example ghosts: @instagram_*:example.org",
        ),
        (
            "bridges: [{bot: '@igbot:a.org', puppets: owner}]",
            "bridges[].puppets must be a user id, in which * stands for anything, but coucou.yaml line 1 has \
             \"owner\": set it in coucou.yaml, for example puppets: @*:example.org",
        ),
        (
            "bridges: [{bot: '@igbot:a.org'}, {bot: '@igbot:a.org'}]",
            "bridges[].bot must be unique, but coucou.yaml line 1 has \"@igbot:a.org\": set it in coucou.yaml, for \
             example bot: @instagrambot:example.org",
        ),
        (
            "networks: {x: Insta Gram}",
            "networks must be mapped to names of small letters, digits, - and _, but coucou.yaml line 1 has \
             \"Insta Gram\": set it in coucou.yaml, for example networks: instagramgo: instagram",
        ),
    ];
    for (file, expected) in cases {
        assert_eq!(message(file, &[]), expected, "{file}");
    }
}

#[test]
fn what_is_no_yaml_is_refused_in_one_line_with_the_place() {
    for file in ["http:\n  port: 1\n  port: 2", "http: [", "a: b: c", "api: {tokens: [hushhush", "http: 'x"] {
        let message = message(file, &[]);
        assert!(message.starts_with("coucou.yaml: ") && message.contains("line "), "{message}");
        assert!(!message.contains('\n') && !message.contains("hushhush"), "{message}");
    }
    assert!(message("http:\n  port: 1\n  port: 2", &[]).contains("line 3"));
}
