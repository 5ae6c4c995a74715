//! Which store is chosen, and where the pickle key comes from.

use std::os::unix::fs::PermissionsExt;

use super::*;

const KEY: (&str, &str) = ("COUCOU_STORE_PICKLE_KEY", "a pickle key of good length");
const ADDON: [(&str, &str); 5] = [
    ("POSTGRESQL_ADDON_HOST", "db.example.org"),
    ("POSTGRESQL_ADDON_PORT", "50013"),
    ("POSTGRESQL_ADDON_DB", "b1"),
    ("POSTGRESQL_ADDON_USER", "u1"),
    ("POSTGRESQL_ADDON_PASSWORD", "p@ss/word"),
];

/// The store that is chosen, without the folder that the test is in.
fn chosen(file: &str, variables: &[(&str, &str)]) -> (String, Vec<String>) {
    let folder = folder_with(&[("coucou.yaml", file)]);
    let config = load_in(folder.path(), &[&LEAST[..], &[KEY], variables].concat()).unwrap();
    let prefix = format!("{}/", folder.path().display());
    (config.store.chosen_because.replace(&prefix, ""), config.warnings)
}

#[test]
fn postgresql_is_chosen_by_any_of_its_names_in_order() {
    let own = ("COUCOU_STORE_URL", "postgres://a:b@own/one");
    let url = ("DATABASE_URL", "postgresql://a:b@two:1234/two?sslmode=require");
    let uri = ("POSTGRESQL_ADDON_URI", "postgres://a:b@three/three");
    let file = "store: {url: 'postgres://a:b@four/four'}";
    let expect = |variables: &[(&str, &str)], expected: &str| {
        let (why, warnings) = chosen(file, &[&ADDON[..], variables].concat());
        assert_eq!((why.as_str(), warnings.as_slice()), (expected, &[] as &[String]));
    };
    expect(&[own, url, uri], "PostgreSQL, database one on own:5432, because COUCOU_STORE_URL names it");
    expect(&[url, uri], "PostgreSQL, database two on two:1234, because DATABASE_URL names it");
    expect(&[uri], "PostgreSQL, database three on three:5432, because POSTGRESQL_ADDON_URI names it");
    expect(&[], "PostgreSQL, database b1 on db.example.org:50013, because POSTGRESQL_ADDON_HOST names it");
    let (why, _) = chosen(file, &[]);
    assert_eq!(why, "PostgreSQL, database four on four:5432, because coucou.yaml line 1 names it");
}

#[test]
fn the_parts_of_an_addon_make_a_connection() {
    let folder = tempfile::tempdir().unwrap();
    let config = load_in(folder.path(), &[&LEAST[..], &[KEY], &ADDON].concat()).unwrap();
    let Location::Postgres { options, pool_size } = &config.store.location else { panic!("PostgreSQL") };
    assert_eq!((options.get_host(), options.get_port()), ("db.example.org", 50013));
    assert_eq!((options.get_username(), options.get_database()), ("u1", Some("b1")));
    assert_eq!(*pool_size, 10);
    for (at, part) in ADDON.iter().enumerate().skip(2) {
        let mut less = ADDON;
        less[at].1 = "";
        let message = message("", &[&[KEY][..], &less].concat());
        let expected = format!(
            "POSTGRESQL_ADDON_HOST is set, but {} is not: set it, or all in one as COUCOU_STORE_URL, for example \
             COUCOU_STORE_URL=postgres://coucou:password@localhost:5432/coucou",
            part.0
        );
        assert_eq!(message, expected);
    }
    assert_eq!(
        message("", &[&ADDON[..], &[KEY, ("POSTGRESQL_ADDON_PORT", "x")]].concat()),
        "POSTGRESQL_ADDON_PORT must be a port number, but is \"x\": for example POSTGRESQL_ADDON_PORT=5432"
    );
}

#[test]
fn use_postgres_store_false_ignores_the_other_names_only() {
    let off = ("USE_POSTGRES_STORE", "false");
    let key_set = "with the pickle key that is set";
    let (why, warnings) = chosen("", &[&ADDON[..], &[off]].concat());
    let ignored = "because USE_POSTGRES_STORE=false ignores POSTGRESQL_ADDON_HOST";
    assert_eq!(why, format!("SQLite, file coucou.db, {key_set}, {ignored}"));
    assert!(warnings.is_empty());
    let (why, _) = chosen("", &[("DATABASE_URL", "postgres://a@b/c"), off]);
    assert!(why.ends_with("because USE_POSTGRES_STORE=false ignores DATABASE_URL"), "{why}");
    let (why, _) = chosen("", &[("DATABASE_URL", "sqlite:other.db"), off]);
    assert_eq!(why, format!("SQLite, file other.db, {key_set}, because DATABASE_URL names it"));
    let (why, warnings) = chosen("", &[("COUCOU_STORE_URL", "postgres://a@b/c"), off]);
    assert_eq!(why, "PostgreSQL, database c on b:5432, because COUCOU_STORE_URL names it");
    assert_eq!(warnings, ["USE_POSTGRES_STORE=false does not count: COUCOU_STORE_URL names PostgreSQL"]);
    assert_eq!(
        message("", &[("USE_POSTGRES_STORE", "maybe")]),
        "USE_POSTGRES_STORE must be true or false, but is \"maybe\": for example USE_POSTGRES_STORE=true"
    );
    assert!(
        message("", &[("USE_POSTGRES_STORE", "true")])
            .starts_with("store.url is missing, and USE_POSTGRES_STORE=true wants PostgreSQL: set it in")
    );
}

#[test]
fn sqlite_is_named_in_the_usual_ways() {
    let (why, _) = chosen("", &[]);
    assert!(why.ends_with("because no PostgreSQL is configured"), "{why}");
    for url in ["sqlite:data.db", "sqlite://data.db"] {
        let (why, _) = chosen(&format!("store: {{url: '{url}'}}"), &[]);
        assert!(why.starts_with("SQLite, file data.db, "), "{why}");
    }
    let (why, _) = chosen("", &[("COUCOU_STORE_URL", "sqlite:///tmp/data.db")]);
    assert!(why.starts_with("SQLite, file /tmp/data.db, "), "{why}");
    for url in ["sqlite:", "sqlite::memory:", "sqlite:a.db?mode=ro", "data.db", "postgres://h/d?sslmode=no"] {
        let message = message("", &[("COUCOU_STORE_URL", url), KEY]);
        assert!(message.starts_with("store.url must be postgres://"), "{url}: {message}");
    }
    let message = message("", &[("COUCOU_STORE_URL", "sqlite:/no/such/folder/a.db")]);
    assert_eq!(
        message,
        "store.url (COUCOU_STORE_URL) names the file /no/such/folder/a.db, but there is no folder \
         /no/such/folder: make it, or name another, for example COUCOU_STORE_URL=sqlite:coucou.db"
    );
}

#[test]
fn a_new_sqlite_store_gets_a_key_of_its_own_that_stays() {
    let folder = tempfile::tempdir().unwrap();
    let config = load_in(folder.path(), &LEAST).unwrap();
    let file = folder.path().join("coucou.db.key");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing temporary is left");
    let key = config.store.pickle_key.expose_secret().to_owned();
    assert_eq!(key.len(), 44);
    assert!(config.store.chosen_because.contains("coucou.db.key, because"));
    let again = load_in(folder.path(), &LEAST).unwrap();
    assert_eq!(again.store.pickle_key.expose_secret(), key);
    // One that is set wins, and nothing is written for it.
    let set = load_in(folder.path(), &[&LEAST[..], &[KEY]].concat()).unwrap();
    assert_eq!(set.store.pickle_key.expose_secret(), KEY.1);
}

#[test]
fn a_sqlite_store_whose_key_is_gone_gets_no_other() {
    let folder = folder_with(&[("coucou.db", "data")]);
    let message = load_in(folder.path(), &LEAST).unwrap_err().to_string();
    assert!(message.starts_with("store.pickle_key is missing: "), "{message}");
    assert!(message.contains("coucou.db.key with its key is not; put that file back"), "{message}");
    assert!(!folder.path().join("coucou.db.key").exists());
}

#[test]
fn wrong_settings_leave_no_key_behind() {
    let folder = tempfile::tempdir().unwrap();
    load_in(folder.path(), &[&LEAST[..], &[("COUCOU_HTTP_PORT", "x")]].concat()).unwrap_err();
    load_in(folder.path(), &[&LEAST[..], &[("COUCOU_LOG_FORMAT", "x")]].concat()).unwrap_err();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_short_pickle_key_is_remarked_on_without_showing_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = load_in(folder.path(), &[&LEAST[..], &[("PICKLE_KEY", "hush")]].concat()).unwrap();
    let [warning] = config.warnings.as_slice() else { panic!("one warning") };
    assert!(warning.starts_with("store.pickle_key is shorter than 16") && !warning.contains("hush"));
}

#[test]
fn the_fallback_stands_in_for_postgresql_alone() {
    let postgres = ("COUCOU_STORE_URL", "postgres://a:b@localhost/c");
    let key = ("COUCOU_STORE_PICKLE_KEY", "a pickle key that is long enough");
    let fallback = |variables: &[(&str, &str)]| {
        load("", &[&[postgres, key], variables].concat()).unwrap().store.fallback
    };
    let off = fallback(&[]).unwrap();
    assert!(!off.is_on && off.file.ends_with("coucou-fallback.db"));
    let on =
        fallback(&[("COUCOU_STORE_FALLBACK", "sqlite"), ("COUCOU_STORE_FALLBACK_FILE", "other.db")]).unwrap();
    assert!(on.is_on && on.file.ends_with("other.db"));
    let sqlite = load("store: {fallback: sqlite}", &[]).unwrap();
    assert_eq!(sqlite.store.fallback, None);
    assert!(sqlite.warnings.iter().any(|warning| warning.starts_with("store.fallback does nothing")));
    let nowhere = message(
        "",
        &[
            postgres,
            key,
            ("COUCOU_STORE_FALLBACK", "sqlite"),
            ("COUCOU_STORE_FALLBACK_FILE", "/nowhere/f.db"),
        ],
    );
    assert!(
        nowhere.starts_with("store.fallback_file (COUCOU_STORE_FALLBACK_FILE) names the file /nowhere/f.db"),
        "{nowhere}"
    );
}
