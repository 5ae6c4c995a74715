//! The documentation: a book without loose ends, and commands that run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use regex::Regex;
use serde_json::Value;

use crate::support::repository;

mod commands;

/// Every page of the book and the README, by its path from the repository on.
pub(crate) fn pages() -> BTreeMap<PathBuf, String> {
    fn under(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                under(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    let mut files = vec![repository().join("README.md")];
    under(&repository().join("docs"), &mut files);
    let text = |file: &PathBuf| fs::read_to_string(file).unwrap();
    let shown = |file: &PathBuf| file.strip_prefix(repository()).unwrap().to_owned();
    files.iter().map(|file| (shown(file), text(file))).collect()
}

fn page(path: &str) -> String {
    pages().remove(Path::new(path)).unwrap_or_else(|| panic!("no {path}"))
}

/// A page without its code.
fn prose(page: &str) -> String {
    let mut is_code = false;
    let lines = page.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let prose = prose(page);
    let headings = prose
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')));
    headings.map(anchor).collect()
}

fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|char| char.is_alphanumeric() || " -_".contains(*char));
    kept.flat_map(char::to_lowercase).map(|char| if char == ' ' { '-' } else { char }).collect()
}

#[test]
fn every_page_is_in_the_book() {
    let summary = page("docs/SUMMARY.md");
    let link = Regex::new(r"\]\(([^)]+\.md)\)").unwrap();
    let listed: Vec<PathBuf> =
        link.captures_iter(&summary).map(|found| Path::new("docs").join(&found[1])).collect();
    let once: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(once.len(), listed.len(), "a page is there twice");
    let is_page = |path: &PathBuf| path.starts_with("docs") && !path.ends_with("SUMMARY.md");
    let there: BTreeSet<_> = pages().into_keys().filter(is_page).collect();
    assert_eq!(once, there);
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let (mut loose, mut count) = (Vec::new(), 0);
    for (path, text) in &pages {
        for found in link.captures_iter(&prose(text)) {
            let target = &found[1];
            if target.starts_with("https://") || target.starts_with("http://") {
                continue;
            }
            count += 1;
            if let Some(why) = loose_end(&pages, path, target) {
                loose.push(format!("{}: {target}: {why}", path.display()));
            }
        }
    }
    assert!(loose.is_empty(), "{loose:#?}");
    assert!(count > 100, "{count}");
}

/// Why a link of a page leads nowhere.
fn loose_end(pages: &BTreeMap<PathBuf, String>, from: &Path, target: &str) -> Option<&'static str> {
    let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { from.to_owned() } else { resolved(&from.parent().unwrap().join(file)) };
    if !repository().join(&path).exists() {
        return Some("there is no such file");
    }
    if from.starts_with("docs") && !path.starts_with("docs") {
        return Some("it leads out of the book, whose site has nothing else");
    }
    let known = pages.get(&path).map(|page| anchors(page)).unwrap_or_default();
    (!fragment.is_empty() && !known.contains(fragment)).then_some("there is no such heading")
}

/// A path without `..`.
fn resolved(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => assert!(parts.pop(), "{}", path.display()),
            part => parts.push(part),
        }
    }
    parts
}

/// The runbook has an entry for whatever can be seen: alerts, lines of `coucou check`, fields of the statistics.
#[test]
fn the_runbook_knows_every_symptom() {
    let runbook = page("docs/runbook.md");
    let entries = anchors(&runbook);
    let rules = fs::read_to_string(repository().join("deploy/grafana/alerts.yaml")).unwrap();
    let rules: Value = serde_saphyr::from_str(&rules).unwrap();
    let groups = rules["groups"].as_array().unwrap().iter();
    let alerts: Vec<&Value> = groups.flat_map(|group| group["rules"].as_array().unwrap()).collect();
    assert!(alerts.len() > 10);
    for alert in alerts {
        let name = alert["alert"].as_str().unwrap();
        assert!(entries.contains(&anchor(name)), "docs/runbook.md has no heading {name}");
        let expected = format!("docs/runbook.md#{}", anchor(name));
        assert_eq!(alert["annotations"]["runbook_entry"], expected, "runbook_entry of {name}");
    }
    let checks = checks();
    assert!(checks.len() > 12, "{checks:?}");
    for check in checks {
        assert!(entries.contains(&check), "docs/runbook.md has no heading {check}");
        assert!(page("docs/check.md").contains(&format!("`{check}`")), "docs/check.md does not say {check}");
    }
    for field in fields_of_stats() {
        assert!(
            runbook.contains(&format!("| `{field}`")),
            "docs/runbook.md does not say what `{field}` of stats shows"
        );
    }
}

/// The words with which lines of `coucou check` begin, from its code.
fn checks() -> BTreeSet<String> {
    let call = Regex::new(r#"report\s*\.(?:ok|warn|fail)\(\s*"([a-z_]+)""#).unwrap();
    let folder = fs::read_dir(repository().join("src/app/check")).unwrap();
    let files = folder.map(|entry| entry.unwrap().path()).chain([repository().join("src/app/check.rs")]);
    let mut checks = BTreeSet::from(["bot".to_owned(), "owner".to_owned()]);
    for file in files {
        let code = fs::read_to_string(file).unwrap();
        checks.extend(call.captures_iter(&code).map(|found| found[1].to_owned()));
    }
    checks
}

/// What the store says in the statistics, from the description of the API.
fn fields_of_stats() -> Vec<String> {
    let path = repository().join("src/http/api/snapshots/coucou__http__api__tests__openapi.snap");
    let text = fs::read_to_string(path).unwrap();
    let description: Value = serde_json::from_str(&text[text.find("\n{").unwrap()..]).unwrap();
    let fields = description["components"]["schemas"]["Stored"]["properties"].as_object().unwrap();
    assert!(fields.len() > 5);
    fields.keys().cloned().collect()
}
