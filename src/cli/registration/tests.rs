//! The file and the letter that `coucou registration` makes.

use std::{fs, os::unix::fs::PermissionsExt};

use rand::{SeedableRng, rngs::StdRng};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::*;
use crate::config::{Environment, Registration};

fn args() -> Args {
    Args {
        owner: None,
        url: None,
        id: None,
        bot: None,
        server_name: None,
        output: "registration.yaml".into(),
        force: false,
    }
}

fn partial(variables: &[(&str, &str)]) -> Partial {
    let pairs = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    let environment: Environment = pairs.collect();
    // A folder without a coucou.yaml.
    Partial::load(&Sources { file: None, folder: "/no/such/folder".into(), environment }).unwrap()
}

fn document(args: &Args, variables: &[(&str, &str)]) -> Document {
    Document::new(&wishes(args, &partial(variables)).unwrap(), &mut StdRng::seed_from_u64(1))
}

fn owned() -> Args {
    Args {
        owner: Some("@own.er:example.org".try_into().unwrap()),
        url: Some("https://coucou.example.org/".parse().unwrap()),
        ..args()
    }
}

#[test]
fn the_file_has_every_field_and_flag() {
    let document = document(&owned(), &[]);
    let yaml: Value = serde_saphyr::from_str(&document.to_yaml()).unwrap();
    let (as_token, hs_token) = (yaml["as_token"].as_str().unwrap(), yaml["hs_token"].as_str().unwrap());
    assert!(as_token.len() == 64 && hs_token.len() == 64 && as_token != hs_token);
    let expected = json!({
        "id": "coucou",
        "url": "https://coucou.example.org",
        "as_token": as_token,
        "hs_token": hs_token,
        "sender_localpart": "_coucou_as",
        "rate_limited": false,
        "namespaces": {
            "users": [
                {"exclusive": true, "regex": r"^@coucou:example\.org$"},
                {"exclusive": false, "regex": r"^@own\.er:example\.org$"},
            ],
            "aliases": [],
            "rooms": [],
        },
        "receive_ephemeral": true,
        "de.sorunome.msc2409.push_ephemeral": true,
        "org.matrix.msc3202": true,
        "io.element.msc4190": true,
    });
    assert_eq!(yaml, expected);
    // The example at the top of the tree is such a file.
    let example: Value = serde_saphyr::from_str(include_str!("../../../registration.yaml.example")).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&example), keys(&yaml));
    for flag in keys(&yaml).iter().filter(|key| yaml[key.as_str()].is_boolean()) {
        assert_eq!(example[flag], yaml[flag], "{flag}");
    }
}

#[test]
fn coucou_reads_its_own_file() {
    let document = document(&owned(), &[]);
    let registration = Registration::parse(&document.to_yaml()).unwrap();
    assert_eq!(registration.id.as_deref(), Some("coucou"));
    assert_eq!(registration.as_token.unwrap().expose_secret().len(), 64);
    for (user_id, inside) in [
        ("@coucou:example.org", true),
        ("@own.er:example.org", true),
        ("@ownXer:example.org", false),
        ("@coucou:exampleXorg", false),
        ("@coucou:example.org.evil", false),
        ("@coucou2:example.org", false),
    ] {
        let user_id = UserId::parse(user_id).unwrap();
        assert_eq!(registration.namespaces.contains(&user_id), inside, "{user_id}");
    }
}

#[test]
fn arguments_win_over_settings_and_those_over_defaults() {
    let set = [
        ("COUCOU_HOMESERVER_SERVER_NAME", "set.example.org"),
        ("COUCOU_APPSERVICE_BOT", "relay"),
        ("COUCOU_APPSERVICE_ID", "relay-id"),
        ("COUCOU_HTTP_HOST", "0.0.0.0"),
        ("COUCOU_HTTP_PORT", "9"),
    ];
    let by_settings = document(&args(), &set);
    assert_eq!(by_settings.bot, "@relay:set.example.org");
    assert_eq!((by_settings.id.as_str(), by_settings.url.as_str()), ("relay-id", "http://127.0.0.1:9"));
    let by_arguments = Args {
        bot: Some("other".to_owned()),
        id: Some("other-id".to_owned()),
        server_name: Some("arg.example.org".try_into().unwrap()),
        url: Some("http://localhost:1".parse().unwrap()),
        ..args()
    };
    let by_arguments = document(&by_arguments, &set);
    assert_eq!(by_arguments.bot, "@other:arg.example.org");
    assert_eq!((by_arguments.id.as_str(), by_arguments.url.as_str()), ("other-id", "http://localhost:1"));
    let by_owner = document(&args(), &[("ETKE_USERNAME", "@owner:example.org")]);
    assert_eq!(
        (by_owner.bot.as_str(), by_owner.url.as_str()),
        ("@coucou:example.org", "http://127.0.0.1:8080")
    );
    assert_eq!(by_owner.owner.unwrap(), "@owner:example.org");
}

#[test]
fn what_cannot_be_is_refused_with_a_way_out() {
    let fails = |args: &Args| wishes(args, &partial(&[])).unwrap_err().to_string();
    assert_eq!(
        fails(&args()),
        "the homeserver's name is not known: add --owner @owner:example.org or --server-name example.org, or \
         set homeserver.server_name (COUCOU_HOMESERVER_SERVER_NAME=example.org)"
    );
    let bot = |bot: &str| Args { bot: Some(bot.to_owned()), ..owned() };
    assert!(fails(&bot("_coucou_as")).starts_with("--bot cannot be _coucou_as"));
    assert!(fails(&bot("No Localpart")).starts_with("--bot No Localpart is no localpart"));
    assert!(fails(&bot("a:b")).starts_with("--bot a:b is no localpart"));
    assert!(fails(&bot("@coucou:other.org")).contains("is not of the homeserver example.org"));
    assert!(fails(&bot("own.er")).contains("they must be two users"));
    assert!(fails(&Args { id: Some("a b".to_owned()), ..owned() }).starts_with("--id \"a b\" must be"));
}

#[test]
fn a_file_that_is_there_is_replaced_only_by_force() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registration.yaml");
    write(&path, "one", false).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let message = write(&path, "two", false).unwrap_err().to_string();
    assert!(message.contains("is there already") && message.contains("--force"), "{message}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "one");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    write(&path, "two", true).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "two");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(write(Path::new("/no/such/folder/file"), "", false).is_err());
}

fn letter(args: &Args) -> String {
    let mut out = Vec::new();
    letter::print(&mut out, &document(args, &[]), Path::new("registration.yaml")).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn the_letter_names_what_the_homeserver_needs_and_no_token() {
    let text = letter(&owned());
    for needed in [
        "matrix_synapse_app_service_config_files:",
        "matrix_synapse_container_extra_arguments:",
        "matrix_synapse_experimental_features_msc2409_to_device_messages_enabled: true",
        "matrix_synapse_experimental_features_msc3202_transaction_extensions_enabled: true",
        "\n    app_service_config_files:",
        "      msc2409_to_device_messages_enabled: true",
        "      msc3202_transaction_extensions: true",
        "https://coucou.example.org",
        "32 MiB",
        "COUCOU_OWNER=@own.er:example.org",
    ] {
        assert!(text.contains(needed), "{needed} is not in\n{text}");
    }
    let document = document(&owned(), &[]);
    let yaml: Value = serde_saphyr::from_str(&document.to_yaml()).unwrap();
    for token in ["as_token", "hs_token"] {
        assert!(!text.contains(yaml[token].as_str().unwrap()));
    }
    // What is wrapped by a mail program can no longer be pasted.
    let wide = |line: &&str| line.chars().count() > 110 && !line.contains("--mount");
    assert_eq!(text.lines().find(wide), None);
    // Indented by four, for letters; each block is YAML.
    for part in text.split("\n\n").filter(|part| part.starts_with("    ")) {
        serde_saphyr::from_str::<Value>(part).unwrap();
    }
}

#[test]
fn the_letter_fits_a_private_url_and_a_bot_that_is_invited() {
    let args = Args { server_name: Some("example.org".try_into().unwrap()), ..args() };
    let text = letter(&Args { bot: Some("relay".to_owned()), ..args });
    assert!(text.contains("Invite @relay:example.org"));
    assert!(text.contains("COUCOU_APPSERVICE_BOT=relay"));
    assert!(text.contains("needs a public HTTPS URL"));
}
