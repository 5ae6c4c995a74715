//! The settings that `deploy/` speaks of are settings, and those that it sets load.

use std::{collections::BTreeSet, fs, path::PathBuf};

use regex::Regex;

use super::*;
use crate::config::settings::other;

const CLEVER: &str = include_str!("../../../docs/clever-cloud.md");

fn files_under(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_under(&path, found) } else { found.push(path) }
    }
}

#[test]
fn every_setting_that_is_spoken_of_is_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("README.md")];
    files_under(&root.join("deploy"), &mut files);
    files_under(&root.join("docs"), &mut files);
    let name = Regex::new(r"\bCOUCOU_[A-Z][A-Z_]*[A-Z]\b").unwrap();
    let mut unknown = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for found in name.find_iter(&text).map(|found| found.as_str()) {
            let plain = found.strip_suffix("_FILE").unwrap_or(found);
            let is_setting = SETTINGS.iter().any(|setting| setting.env == Some(plain));
            if !is_setting && !other::is_foreign(found) {
                unknown.insert(format!("{found} in {}", file.strip_prefix(root).unwrap().display()));
            }
        }
    }
    assert_eq!(unknown, BTreeSet::new());
}

#[test]
fn what_clever_cloud_is_told_to_set_loads_beside_what_it_sets_itself() {
    let line = Regex::new(r"(?m)^clever env set (\S+) (.+)$").unwrap();
    let command = Regex::new(r"\$\([^)]*\)").unwrap();
    // What the commands in the page print: each another secret.
    let secret = |at: usize| format!("dGhpcyBpcyBhbiBleGFtcGxlIHNlY3JldCBvZiAz{at:04}");
    let mut variables: Vec<(String, String)> = line
        .captures_iter(CLEVER)
        .enumerate()
        .map(|(at, found)| {
            let value = command.replace_all(&found[2], secret(at)).trim_matches('"').to_owned();
            (found[1].to_owned(), value)
        })
        .collect();
    assert!(variables.len() > 10, "the page sets variables");
    let injected = [
        ("PORT", "8080"),
        ("INSTANCE_NUMBER", "0"),
        ("POSTGRESQL_ADDON_URI", "postgresql://u:p@b-postgresql.services.clever-cloud.com:50013/b"),
        ("POSTGRESQL_ADDON_HOST", "b-postgresql.services.clever-cloud.com"),
        ("POSTGRESQL_ADDON_PORT", "50013"),
        ("POSTGRESQL_ADDON_DB", "b"),
        ("POSTGRESQL_ADDON_USER", "u"),
        ("POSTGRESQL_ADDON_PASSWORD", "p"),
        ("CC_METRICS_PROMETHEUS_PORT", "8080"),
    ];
    variables.extend(injected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let folder = tempfile::tempdir().unwrap();
    let pairs: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let config = load_in(folder.path(), &pairs).unwrap();
    assert_eq!((config.http.host.to_string(), config.http.port), ("0.0.0.0".to_owned(), 8080));
    assert!(matches!(&config.store.location, Location::Postgres { pool_size: 2, .. }));
    assert_eq!((config.webhooks.len(), config.api.tokens.len()), (1, 1));
    assert!(config.owner.is_some());
}
