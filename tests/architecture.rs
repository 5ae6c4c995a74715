//! The rules of the source tree: which room may import which, and that SQL stays in the store.
//!
//! A room is a file of `src/` together with the folder of its name. `STYLE.md`'s arrows are [`ARROWS`].

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::support::repository;

mod source;

use source::{Import, Source};

/// What every room may import: plain data, time, numbers, and how things stop.
const BASE: &[&str] = &["model", "clock", "metrics", "lifecycle"];

/// What each room may import beside itself and [`BASE`]. A room that is not here may import nothing else.
const ARROWS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("cli", &["app", "config", "telemetry"]),
    (
        "app",
        &[
            "config",
            "crypto",
            "homeserver",
            "http",
            "inbox",
            "links",
            "media",
            "messages",
            "outbox",
            "rooms",
            "store",
            "telemetry",
        ],
    ),
    // The settings are read into what they are settings of.
    ("config", &["links", "store"]),
    ("telemetry", &["config"]),
    ("http", &["inbox", "links", "media", "store"]),
    ("inbox", &["crypto", "messages", "store"]),
    ("crypto", &["homeserver", "store"]),
    ("outbox", &["links", "store"]),
    ("rooms", &["homeserver", "store"]),
    ("media", &["homeserver", "store"]),
    ("links", &[]),
    ("homeserver", &[]),
    ("messages", &[]),
    ("store", &[]),
    // What unit tests run on; built for them alone.
    ("testing", &["store", "crypto", "homeserver", "inbox", "media", "messages", "outbox"]),
    ("schema", &["messages", "outbox"]),
];

/// How statements begin, and what nothing else contains.
const SQL: &[&str] = &[
    "SELECT ",
    "INSERT INTO ",
    "UPDATE ",
    "DELETE FROM ",
    "CREATE TABLE ",
    "CREATE INDEX ",
    "CREATE DATABASE ",
    "ALTER TABLE ",
    "DROP TABLE ",
    "DROP DATABASE ",
    "ON CONFLICT ",
    "WITH RECURSIVE ",
    "PRAGMA ",
    " RETURNING ",
    " ORDER BY ",
    "LOCK TABLE ",
    "TRUNCATE ",
];

#[test]
fn imports_follow_the_arrows() {
    let wrong: Vec<String> =
        files().iter().flat_map(|(path, room, text)| wrong_imports(path, room, text)).collect();
    assert!(wrong.is_empty(), "imports against STYLE.md's arrows:\n{}", wrong.join("\n"));
}

#[test]
fn sql_stays_in_the_store() {
    let wrong: Vec<String> =
        files().iter().flat_map(|(path, room, text)| stray_sql(path, room, text)).collect();
    assert!(wrong.is_empty(), "SQL outside src/store:\n{}", wrong.join("\n"));
}

#[test]
fn texts_reach_the_database_through_the_gate_alone() {
    let gate = Path::new("src/store/db/value.rs");
    let is_test = |path: &Path| path.iter().any(|part| part == "tests" || part == "tests.rs");
    let past: Vec<_> = files()
        .into_iter()
        .filter(|(path, ..)| path != gate && !is_test(path))
        .filter(|(.., text)| text.matches(".bind(").count() > text.matches(".bind(MIGRATION_LOCK)").count())
        .map(|(path, ..)| path)
        .collect();
    assert!(past.is_empty(), "values bound elsewhere than in {gate:?}: {past:?}");
}

#[test]
fn every_room_has_its_arrows() {
    let known: BTreeSet<&str> = ARROWS.iter().map(|(room, _)| *room).chain(BASE.iter().copied()).collect();
    let rooms: BTreeSet<String> =
        files().into_iter().map(|(_, room, _)| room).filter(|room| room != "lib").collect();
    let unknown: Vec<_> = rooms.iter().filter(|room| !known.contains(room.as_str())).collect();
    assert!(unknown.is_empty(), "rooms that ARROWS does not place: {unknown:?}");
}

#[test]
fn a_planted_wrong_arrow_is_found() {
    let planted = [
        ("src/outbox/worker.rs", "use crate::crypto::engine;"),
        ("src/outbox/worker.rs", "use crate::{clock::Clock, store::{Db, outbox}, http};"),
        ("src/outbox/worker.rs", "fn f() { let x = <crate::homeserver::Client>::new(); }"),
        ("src/outbox/worker.rs", "use super::super::inbox;"),
        ("src/outbox.rs", "use super::inbox;"),
        ("src/outbox.rs", "mod a { mod b { use super::super::super::inbox; } }"),
        ("src/messages/payload.rs", "pub use crate :: /* down */ store as s;"),
        ("src/store/db.rs", "use crate::inbox::{self};"),
        ("src/http/api.rs", "use crate::config::Config;"),
        ("src/clock.rs", "use crate::store::Tx;"),
        ("src/main.rs", "fn main() { coucou::app::run() }"),
    ];
    for (path, text) in planted {
        assert!(
            !wrong_imports(Path::new(path), &room_of(Path::new(path)), text).is_empty(),
            "missed in {path}: {text}"
        );
    }
    let fine = [
        ("src/outbox/worker.rs", "use crate::{clock::Clock, store::{Db, crypto}, outbox::retry};"),
        (
            "src/outbox/worker.rs",
            "// use crate::crypto\nconst A: &str = \"crate::crypto\"; const B: &str = r#\"crate::\"http\"#;",
        ),
        (
            "src/outbox.rs",
            "mod tests { use super::inbox; fn f<'a>(c: char) -> bool { c == '{' || c == '\\'' } }",
        ),
        ("src/crypto/store.rs", "use super::store; use self::inbox::x;"),
        ("src/inbox.rs", "use crate::messages::http; use ruma::http;"),
        ("src/main.rs", "fn main() { coucou::cli::run() }"),
    ];
    for (path, text) in fine {
        let found = wrong_imports(Path::new(path), &room_of(Path::new(path)), text);
        assert!(found.is_empty(), "{path}: {text}: {found:?}");
    }
}

#[test]
fn planted_sql_is_found() {
    let planted = "const A: &str = \"SELECT 1\"; const B: &str = r\"x\n DELETE FROM y\";";
    assert_eq!(stray_sql(Path::new("src/inbox.rs"), "inbox", planted).len(), 2);
    assert!(stray_sql(Path::new("src/store/inbox.rs"), "store", planted).is_empty());
    assert!(stray_sql(Path::new("src/inbox/tests.rs"), "inbox", planted).is_empty());
    let fine = "/// SELECT 1\nconst A: &str = \"select what you like; an UPDATE\";";
    assert!(stray_sql(Path::new("src/inbox.rs"), "inbox", fine).is_empty());
}

/// Every source file: its path from the crate's folder, its room, its text.
fn files() -> Vec<(PathBuf, String, String)> {
    fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push(path);
            }
        }
    }
    let root = repository();
    let mut paths = Vec::new();
    walk(&root.join("src"), &mut paths);
    assert!(paths.len() > 5, "found the sources");
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(&root).unwrap().to_owned();
            let room = room_of(&path);
            (path, room, text)
        })
        .collect()
}

/// The room of `src/room.rs` and of `src/room/anything.rs`.
fn room_of(path: &Path) -> String {
    let below = path.strip_prefix("src").unwrap().with_extension("");
    below.iter().next().unwrap().to_string_lossy().into_owned()
}

fn wrong_imports(path: &Path, room: &str, text: &str) -> Vec<String> {
    let allowed = ARROWS.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, allowed)| *allowed);
    let depth = if matches!(room, "main" | "lib") { 0 } else { path.iter().count() - 1 };
    let rooms: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).chain(BASE.iter().copied()).collect();
    let fine = |target: &str| {
        // lib.rs declares the rooms, and may name what each exports.
        room == "lib"
            || target == room
            || matches!(target, "testing" | "schema")
            || BASE.contains(&target)
            || allowed.contains(&target)
    };
    Source::read(text)
        .imports(depth)
        .into_iter()
        .filter(|Import { target, .. }| rooms.contains(target.as_str()) && !fine(target))
        .map(|Import { target, line }| format!("{}:{line}: {room} → {target}", path.display()))
        .collect()
}

fn stray_sql(path: &Path, room: &str, text: &str) -> Vec<String> {
    // Unit tests look into the tables themselves.
    let tests = path.iter().any(|part| part == "tests" || part == "tests.rs");
    if tests || matches!(room, "store" | "testing") {
        return Vec::new();
    }
    let is_sql = |literal: &str| {
        let starts = |line: &str| SQL.iter().any(|word| line.trim_start().starts_with(word.trim_start()));
        literal.lines().any(starts) || SQL.iter().any(|word| word.starts_with(' ') && literal.contains(word))
    };
    let literals = Source::read(text).literals();
    let stray = literals.into_iter().filter(|(literal, _)| is_sql(literal));
    stray.map(|(literal, line)| format!("{}:{line}: {literal}", path.display())).collect()
}
