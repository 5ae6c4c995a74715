//! Settings from all sources, and what is said about wrong ones.

mod deploy;
mod malformed;
mod media;
mod metrics;
mod reference;
mod rooms;
mod silence;
mod store;
mod webhooks;

use std::{fs, path::Path, time::Duration};

use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::*;

/// The least that loads, by environment.
const LEAST: [(&str, &str); 3] = [
    ("COUCOU_HOMESERVER_URL", "https://matrix.example.org"),
    ("COUCOU_APPSERVICE_AS_TOKEN", "as-secret"),
    ("COUCOU_APPSERVICE_HS_TOKEN", "hs-secret"),
];

const YAML: &str = include_str!("../../docs/coucou.example.yaml");
const ENV: &str = include_str!("../../.env.example");
const REGISTRATION: &str = include_str!("../../registration.yaml.example");

fn load_in(folder: &Path, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let pairs = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    Config::load(&Sources { file: None, folder: folder.to_owned(), environment: pairs.collect() })
}

/// Loads `file` as coucou.yaml, [`LEAST`] and `variables`, which win over `LEAST`.
fn load(file: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("coucou.yaml"), file).unwrap();
    load_in(folder.path(), &[&LEAST, variables].concat())
}

fn message(file: &str, variables: &[(&str, &str)]) -> String {
    load(file, variables).unwrap_err().to_string()
}

fn folder_with(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn the_least_settings_load_with_the_documented_defaults() {
    let config = load("", &[]).unwrap();
    assert_eq!(config.homeserver.url.as_str(), "https://matrix.example.org/");
    assert_eq!(config.appservice.bot, "coucou");
    assert_eq!(config.appservice.as_token.expose_secret(), "as-secret");
    assert_eq!((config.http.host.to_string(), config.http.port), ("127.0.0.1".to_owned(), 8080));
    assert!(matches!(&config.store.location, Location::Sqlite { path } if path.ends_with("coucou.db")));
    assert!(config.webhooks.is_empty() && config.api.tokens.is_empty() && config.owner.is_none());
    assert_eq!(
        config.rooms,
        Rooms { relay: Relay::All, settle_after: Duration::from_hours(1), invite_from: None }
    );
    assert_eq!(config.messages.retention, std::time::Duration::from_hours(30 * 24));
    assert_eq!(config.log.filter, "info,matrix_sdk_crypto=warn,sqlx=warn");
    assert_eq!(config.log.format, LogFormat::Text);
    assert_eq!(config.warnings, [""; 0]);
    assert_eq!(config.known_server_name(), None);
}

#[test]
fn the_environment_wins_over_aliases_and_those_over_the_file() {
    let file = "http: {port: 1}";
    let port = |variables: &[(&str, &str)]| load(file, variables).unwrap().http.port;
    assert_eq!(port(&[("COUCOU_HTTP_PORT", "4"), ("PORT", "3"), ("API_PORT", "2")]), 4);
    assert_eq!(port(&[("PORT", "3"), ("API_PORT", "2")]), 3);
    assert_eq!(port(&[("API_PORT", "2")]), 2);
    assert_eq!(port(&[]), 1);
    // Empty is not set.
    assert_eq!(port(&[("COUCOU_HTTP_PORT", ""), ("PORT", " ")]), 1);
    assert_eq!(load("http: {port: }", &[]).unwrap().http.port, 8080);
}

#[test]
fn every_alias_means_its_setting() {
    let config = load(
        "",
        &[
            ("COUCOU_HOMESERVER_URL", ""),
            ("ETKE_HOMESERVER", "https://etke.example.org"),
            ("COUCOU_APPSERVICE_AS_TOKEN", ""),
            ("AS_TOKEN", "one"),
            ("COUCOU_APPSERVICE_HS_TOKEN", ""),
            ("HS_TOKEN", "two"),
            ("API_HOST", "0.0.0.0"),
            ("PORT", "9"),
            ("PICKLE_KEY", "a pickle key of good length"),
            ("WEBHOOK_URL", "http://127.0.0.1:9000/hook"),
            ("WEBHOOK_SECRET", "whsec_dGhpcyBpcyBhbiBleGFtcGxlIHNlY3JldCE="),
            ("API_TOKEN", "three"),
            ("ETKE_USERNAME", "@owner:example.org"),
            ("ETKE_PASSWORD", "not-to-be-read"),
        ],
    )
    .unwrap();
    assert_eq!(config.homeserver.url.host_str(), Some("etke.example.org"));
    assert_eq!(config.appservice.as_token.expose_secret(), "one");
    assert_eq!(config.appservice.hs_token.expose_secret(), "two");
    assert_eq!((config.http.host.to_string(), config.http.port), ("0.0.0.0".to_owned(), 9));
    assert_eq!(config.store.pickle_key.expose_secret(), "a pickle key of good length");
    let [webhook] = config.webhooks.as_slice() else { panic!("one webhook") };
    assert_eq!((webhook.name.as_str(), webhook.url.as_str()), ("default", "http://127.0.0.1:9000/hook"));
    assert_eq!(webhook.secrets.len(), 1);
    assert_eq!(config.api.tokens[0].token.expose_secret(), "three");
    let owner = config.owner.as_ref().unwrap();
    assert_eq!(
        (owner.user_id.as_str(), owner.mode, owner.accept),
        ("@owner:example.org", OwnerMode::Read, true)
    );
    assert_eq!(config.rooms.relay, Relay::Bridged, "the default with an owner");
    assert_eq!(
        config.warnings,
        ["ETKE_PASSWORD is not needed, and ignored: coucou never logs in with a password"]
    );
    let tested = ["ETKE_HOMESERVER", "AS_TOKEN", "HS_TOKEN", "API_HOST", "PORT", "API_PORT"];
    // These are in a test of their own.
    let metrics = ["PORT", "PATH", "PASSWORD"].map(|name| format!("CC_METRICS_PROMETHEUS_{name}"));
    let tested = tested.into_iter().chain(metrics.iter().map(String::as_str)).chain(["DATABASE_URL"]);
    let tested = tested.chain(["POSTGRESQL_ADDON_URI", "PICKLE_KEY", "WEBHOOK_URL"]);
    let tested: Vec<_> = tested.chain(["WEBHOOK_SECRET", "API_TOKEN", "ETKE_USERNAME"]).collect();
    let all: Vec<_> = SETTINGS.iter().flat_map(|setting| setting.aliases).copied().collect();
    assert_eq!(all, tested, "a new alias belongs into a test");
}

#[test]
fn the_file_can_hold_everything() {
    let config = load(
        r#"
owner: "@owner:example.org"
owner_mode: invite
owner_accept: no
webhooks:
  - {name: first, url: "https://one.example.org/?token=x"}
  - {name: default, url: "https://two.example.org", secret: whsec_dGhpcyBpcyBhbiBleGFtcGxlIHNlY3JldCE=}
api: {tokens: [0123, 1e3, "quoted", {token: 0456, scope: read}, {token: "789"}]}
rooms:
  relay: ["!one:example.org", "!hydrapantzMaxKgBrJyXZ9jZYMdYz_FLdaULfDWEcJ4"]
  invite_from: ["*.example.org", "@friend:example.net"]
bridges:
  - {bot: "@instagrambot:example.org", ghosts: "@instagram_*:example.org"}
  - bot: "@messengerbot:example.org"
networks: {instagramgo: insta}
log: {format: json, filter: debug}
"#,
        &[("COUCOU_WEBHOOK_URL", "http://[::1]:9000"), ("COUCOU_HOMESERVER_SERVER_NAME", "example.org")],
    )
    .unwrap();
    let owner = config.owner.as_ref().unwrap();
    assert_eq!((owner.mode, owner.accept), (OwnerMode::Invite, false));
    let webhooks: Vec<_> =
        config.webhooks.iter().map(|webhook| (webhook.name.as_str(), webhook.url.as_str())).collect();
    assert_eq!(webhooks, [("first", "https://one.example.org/?token=x"), ("default", "http://[::1]:9000/")]);
    assert_eq!(config.webhooks[1].secrets.len(), 1, "the environment replaces the URL alone");
    let tokens = config.api.tokens.iter().map(|entry| (entry.token.expose_secret(), entry.scope));
    let expected = [("0123", Scope::Admin), ("1e3", Scope::Admin), ("quoted", Scope::Admin)];
    let expected = expected.into_iter().chain([("0456", Scope::Read), ("789", Scope::Admin)]);
    assert!(tokens.eq(expected), "tokens are what was written");
    assert!(matches!(&config.rooms.relay, Relay::Only(rooms) if rooms.len() == 2));
    let inviters = config.rooms.invite_from.as_ref().unwrap();
    let accepted = |id: &str| inviters.iter().any(|inviter| inviter.matches(&UserId::parse(id).unwrap()));
    assert!(accepted("@any:a.example.org") && accepted("@friend:example.net"));
    assert!(!accepted("@other:example.net") && !accepted("@any:example.org"));
    assert_eq!(config.bridges.len(), 2);
    assert!(config.bridges[0].ghosts[0].matches("@instagram_1:example.org"));
    assert_eq!(config.networks["instagramgo"], "insta");
    assert_eq!(config.log, Log { format: LogFormat::Json, filter: "debug".to_owned() });
}

#[test]
fn lists_have_commas_in_the_environment() {
    let config = load(
        "rooms: {relay: all}",
        &[
            ("COUCOU_ROOMS_RELAY", "!a:example.org, !b:example.org"),
            ("COUCOU_ROOMS_INVITE_FROM", "example.org,@friend:example.net"),
        ],
    )
    .unwrap();
    assert!(matches!(&config.rooms.relay, Relay::Only(rooms) if rooms.len() == 2));
    assert_eq!(config.rooms.invite_from.unwrap().len(), 2);
}

#[test]
fn the_news_of_an_undecryptable_message_can_be_put_off_or_turned_off() {
    let after =
        |value| load("", &[("COUCOU_UNDECRYPTABLE_NOTIFY_AFTER", value)]).unwrap().undecryptable.notify_after;
    assert_eq!(after(""), Some(Duration::from_mins(5)));
    assert_eq!(after("90s"), Some(Duration::from_secs(90)));
    assert_eq!(after("0"), Some(Duration::ZERO));
    assert_eq!(after("off"), None);
}

#[test]
fn a_secret_can_come_from_a_file() {
    let folder = folder_with(&[("token", "from-a-file\r\n"), ("empty", "\n")]);
    let variables = |more: &[(&'static str, &'static str)]| [&LEAST[..], more].concat();
    let config = load_in(folder.path(), &variables(&[("COUCOU_API_TOKEN_FILE", "token")])).unwrap();
    assert_eq!(config.api.tokens[0].token.expose_secret(), "from-a-file");
    let fails = |more| load_in(folder.path(), &variables(more)).unwrap_err().to_string();
    assert_eq!(
        fails(&[("COUCOU_API_TOKEN_FILE", "token"), ("COUCOU_API_TOKEN", "x")]),
        "api.tokens is set twice, as COUCOU_API_TOKEN and as COUCOU_API_TOKEN_FILE: remove one of the two"
    );
    assert!(fails(&[("COUCOU_API_TOKEN_FILE", "absent")]).starts_with(
        "api.tokens must be a file that can be read, but COUCOU_API_TOKEN_FILE names absent: No such file"
    ));
    assert!(fails(&[("COUCOU_API_TOKEN_FILE", "empty")]).contains("which is empty"));
    // Only secrets have one.
    assert!(fails(&[("COUCOU_HTTP_PORT_FILE", "token")]).starts_with("COUCOU_HTTP_PORT_FILE is set, but"));
}

#[test]
fn a_registration_gives_what_is_not_set() {
    let folder = folder_with(&[("registration.yaml", REGISTRATION)]);
    let url = ("COUCOU_HOMESERVER_URL", "https://matrix.example.org");
    let config =
        load_in(folder.path(), &[url, ("HS_TOKEN", "other"), ("COUCOU_OWNER", "@owner:example.org")]);
    let config = config.unwrap();
    assert_eq!(config.appservice.id.as_deref(), Some("coucou"));
    assert_eq!(config.appservice.sender_localpart.as_deref(), Some("_coucou_as"));
    assert!(config.appservice.as_token.expose_secret().starts_with("0f1e2d3c"));
    assert_eq!(config.appservice.hs_token.expose_secret(), "other");
    assert_eq!(config.known_server_name().unwrap(), "example.org");

    let fails =
        |more: &[(&str, &str)]| load_in(folder.path(), &[&[url][..], more].concat()).unwrap_err().to_string();
    assert_eq!(
        fails(&[("COUCOU_APPSERVICE_BOT", "_coucou_as")]),
        "appservice.bot (COUCOU_APPSERVICE_BOT) is _coucou_as, which is the registration's sender_localpart: \
         Synapse fails on /sync for that user, so set another one, for example COUCOU_APPSERVICE_BOT=coucou, \
         or make a registration whose sender_localpart differs (`coucou registration`)"
    );
    assert!(fails(&[("COUCOU_APPSERVICE_BOT", "@_coucou_as:example.org")]).contains("sender_localpart"));
    assert_eq!(
        fails(&[("COUCOU_APPSERVICE_BOT", "@other:example.org")]),
        "appservice.bot (COUCOU_APPSERVICE_BOT) is @other:example.org, but no entry of namespaces.users in the \
         registration matches it: correct the setting, for example COUCOU_APPSERVICE_BOT=coucou, or make a new \
         registration with `coucou registration` and give it to the homeserver's administrator"
    );
    assert!(
        fails(&[("COUCOU_OWNER", "@stranger:example.org")])
            .starts_with("owner (COUCOU_OWNER) is @stranger:example.org, but no entry of namespaces.users")
    );
    assert!(fails(&[("COUCOU_OWNER", "@stranger:example.org")]).contains(
        "correct the setting, or make a new registration with `coucou registration --owner @stranger"
    ));
    assert!(
        fails(&[("COUCOU_OWNER", "@owner:example.org"), ("COUCOU_HOMESERVER_SERVER_NAME", "other.org")])
            .starts_with("owner (COUCOU_OWNER) is @owner:example.org, but the homeserver is other.org")
    );
    assert!(fails(&[("COUCOU_OWNER", "@coucou:example.org")]).contains("are the same user"));
    assert!(
        fails(&[("COUCOU_APPSERVICE_REGISTRATION", "absent.yaml")])
            .contains("COUCOU_APPSERVICE_REGISTRATION names absent.yaml: No such file")
    );
}

#[test]
fn a_broken_registration_is_named() {
    let fails = |text| {
        let folder = folder_with(&[("registration.yaml", text)]);
        load_in(folder.path(), &LEAST).unwrap_err().to_string()
    };
    assert!(fails("as_token: [").starts_with("registration.yaml: "));
    let bad = fails("namespaces: {users: [{regex: '('}]}");
    assert_eq!(bad, "registration.yaml: the user namespace \"(\" is not a valid pattern");
    assert!(!fails("as_token: [secretive]").contains("secretive"));
}

/// Loads with one variable changed, and expects this one line.
fn refused(variable: (&str, &str), expected: &str) {
    assert_eq!(message("", &[variable]), expected, "{variable:?}");
}

#[test]
fn a_named_file_must_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let environment = Environment::default();
    let sources = Sources { file: Some("other.yaml".into()), folder: folder.path().to_owned(), environment };
    let message = Config::load(&sources).unwrap_err().to_string();
    assert_eq!(message, "other.yaml: cannot be read: No such file or directory (os error 2)");
}

#[test]
fn a_variable_that_is_no_setting_is_refused_but_those_of_the_rig_are_not() {
    refused(
        ("COUCOU_HTTP_PROT", "1"),
        "COUCOU_HTTP_PROT is set, but there is no such setting; did you mean COUCOU_HTTP_PORT?",
    );
    refused(("COUCOU_ZZZ", "1"), "COUCOU_ZZZ is set, but there is no such setting");
    load("", &[("COUCOU_TEST_DATABASE_URL", "x"), ("COUCOU_HOMESERVER", "x"), ("OTHER", "x")]).unwrap();
}

#[test]
fn a_plain_text_signs_in_the_form_that_libraries_take() {
    let webhook = |secret: &str| {
        let url = ("WEBHOOK_URL", "http://127.0.0.1:9000/hook");
        let config = load("", &[url, ("WEBHOOK_SECRET", secret)]).unwrap();
        let secret = config.webhooks[0].secrets[0].expose_secret().to_owned();
        (secret, config.warnings)
    };
    let (secret, warnings) = webhook("correct horse battery");
    assert_eq!(secret, "whsec_Y29ycmVjdCBob3JzZSBiYXR0ZXJ5");
    let [warning] = &warnings[..] else { panic!("one warning: {warnings:?}") };
    for part in ["webhook default (WEBHOOK_SECRET)", "coucou webhooks --show-secrets"] {
        assert!(warning.contains(part), "{warning}");
    }
    assert!(!warning.contains("horse") && !warning.contains("Y29y"), "{warning}");
    // Base64 of too little to be meant as such.
    assert_eq!(webhook("c29tZXRoaW5nIHNob3J0").0, "whsec_YzI5dFpYUm9hVzVuSUhOb2IzSjA=");
    // Hexadecimal is base64 as well, and libraries take it for that.
    let hex = "c0ffee00".repeat(8);
    assert_eq!(webhook(&hex), (hex.clone(), Vec::new()));
    for bad in ["fifteen bytes..", "whsec_correct horse battery", &"x-".repeat(33)] {
        let error = message("", &[("WEBHOOK_URL", "http://127.0.0.1"), ("WEBHOOK_SECRET", bad)]);
        assert!(error.contains("or a text of 16 to 64 bytes") && !error.contains(bad), "{error}");
    }
}

#[test]
fn a_mistyped_recovery_key_is_no_passphrase() {
    let key = "EsTb ZLfa Puin 6xGD j2oC VWwD Kpb1 fx5E 91Ct Mcb6 UQ8v HPQa";
    let mistyped = key.replace("HPQa", "HPQb");
    let with = |name, value| load("", &[&LEAST[..], &[(name, value)]].concat());
    let config = with("COUCOU_RECOVERY_KEY", key).unwrap();
    assert_eq!(config.recovery_key.unwrap().text(), key.replace(' ', ""));
    assert!(with("COUCOU_RECOVERY_KEY", "a passphrase").unwrap().recovery_key.unwrap().is_passphrase());
    for (name, path) in
        [("COUCOU_RECOVERY_KEY", "recovery.key"), ("COUCOU_OWNER_RECOVERY_KEY", "owner_recovery_key")]
    {
        let error = with(name, &mistyped).unwrap_err().to_string();
        assert!(error.starts_with(path) && error.contains(name) && !error.contains("HPQb"), "{error}");
    }
    let config = with("COUCOU_OWNER_RECOVERY_KEY", key).unwrap();
    assert!(
        config.warnings.iter().any(|line| line.starts_with("owner_recovery_key")),
        "{:?}",
        config.warnings
    );
}

#[test]
fn nothing_secret_is_in_the_debug_output() {
    let variables = [
        ("COUCOU_RECOVERY_KEY", "hush-10 is a passphrase"),
        ("COUCOU_APPSERVICE_AS_TOKEN", "hush-1"),
        ("COUCOU_APPSERVICE_HS_TOKEN", "hush-2"),
        ("COUCOU_STORE_URL", "postgres://user:hush-3@localhost/coucou?sslmode=require"),
        ("COUCOU_STORE_PICKLE_KEY", "hush-4-hush-4-hush-4"),
        ("COUCOU_WEBHOOK_URL", "https://hush-5@example.org/hush-6?token=hush-7"),
        ("COUCOU_WEBHOOK_SECRET", "whsec_hushhushhushhushhushhushhushhush"),
        ("COUCOU_API_TOKEN", "hush-8"),
        ("ETKE_PASSWORD", "hush-9"),
    ];
    let config = load("", &variables).unwrap();
    let debug = format!("{config:?} {config:#?}");
    assert!(!debug.contains("hush"), "{debug}");
    assert!(
        debug.contains("PostgreSQL, database coucou on localhost:5432, because COUCOU_STORE_URL names it")
    );
    let pairs = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    assert!(!format!("{:?}", pairs.collect::<Environment>()).contains("hush"));
}

/// A line that begins with # and no space is a setting that is off: turns all of them on.
fn with_all_on(example: &str) -> String {
    let on = |line: &str| match line.trim_start().strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') || rest.starts_with("  ") => line.replacen('#', "", 1),
        _ => line.to_owned(),
    };
    example.lines().map(on).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_file_loads_and_has_every_setting() {
    let all = with_all_on(YAML);
    for text in [YAML, &all] {
        let folder = folder_with(&[("coucou.yaml", text), ("registration.yaml", REGISTRATION)]);
        load_in(folder.path(), &[]).unwrap();
    }
    let tree = file::parse(&all).unwrap();
    for setting in SETTINGS {
        let found = setting.path.split('.').try_fold(&tree, |node, key| match key.strip_suffix("[]") {
            Some(list) => match &node.get(list)?.value {
                file::Value::List(entries) => entries.first(),
                _ => None,
            },
            None => node.get(key),
        });
        assert!(found.is_some(), "{} is not in docs/coucou.example.yaml", setting.path);
    }
}

#[test]
fn the_example_environment_loads_and_has_every_variable() {
    let parse = |text: &str| -> Vec<(String, String)> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(|line| line.split_once('=').unwrap()).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
    };
    let all = parse(&with_all_on(ENV));
    for pairs in [parse(ENV), all.clone()] {
        let folder = folder_with(&[("registration.yaml", REGISTRATION)]);
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        load_in(folder.path(), &pairs).unwrap();
    }
    for setting in SETTINGS {
        let Some(env) = setting.env else { continue };
        assert!(all.iter().any(|(name, _)| name == env), "{env} is not in .env.example");
        assert!(setting.aliases.iter().all(|alias| ENV.contains(alias)), "an alias of {env} is not there");
    }
}

#[test]
fn an_entry_of_the_tokens_that_is_wrong_is_named() {
    for (tokens, expected) in [
        (
            "[{token: x, scope: write}]",
            "api.tokens[].scope must be read or admin, but coucou.yaml line 1 has \"write\"",
        ),
        ("[{scope: read}]", "api.tokens[].token is missing in coucou.yaml line 1"),
        ("[{token: x, scopes: read}]", "api.tokens[].scopes"),
        ("[{token: 'hush hush'}]", "api.tokens[].token must be of visible ASCII characters without spaces"),
        ("[same, {token: same, scope: read}]", "api.tokens has a token twice, again at coucou.yaml line 1"),
        ("[[x]]", "api.tokens must be a single value"),
        ("{token: x}", "api.tokens must be a single value"),
    ] {
        let said = message(&format!("api: {{tokens: {tokens}}}"), &[]);
        assert!(said.contains(expected) && !said.contains("hush"), "{tokens}: {said}");
    }
}

#[test]
fn content_is_kept_for_as_long_as_is_set() {
    use std::time::Duration;
    let load = |file: &str, more: &[(&str, &str)]| load(file, more).unwrap();
    assert_eq!(load("messages: {retention: 12h}", &[]).messages.retention, Duration::from_hours(12));
    assert_eq!(load("messages: {retention: 0}", &[]).messages.retention, Duration::ZERO);
    let nothing = ("COUCOU_MESSAGES_RETENTION", "0");
    let config = load("", &[nothing]);
    let [warning] = config.warnings.as_slice() else { panic!("one warning") };
    assert!(warning.contains("COUCOU_WEBHOOK_URL") && warning.contains("COUCOU_MESSAGES_RETENTION"));
    let webhook = ("COUCOU_WEBHOOK_URL", "http://127.0.0.1:1");
    assert_eq!(load("", &[nothing, webhook]).warnings, [""; 0]);
    assert!(message("messages: {retention: 200000w}", &[]).contains("a hundred years at most"));
}
