use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::*;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_reference_is_what_the_program_has() {
    let path = repository().join("docs/metrics.md");
    if env::var_os("COUCOU_TEST_UPDATE_DOCS").is_some() {
        fs::write(&path, reference()).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        page == reference(),
        "docs/metrics.md: COUCOU_TEST_UPDATE_DOCS=1 cargo test --lib metrics writes it"
    );
}

#[test]
fn every_metric_is_told_once_it_is_known() {
    let metrics = Metrics::new();
    metrics.transactions.inc(&["new"]);
    metrics.transactions.add(&["new"], 2);
    metrics.pending.count(&["default \"x\""], 7);
    metrics.key_wait.observe(&[], Duration::from_secs(20));
    process::measure(&metrics);
    let text = metrics.text();
    for line in [
        "coucou_inbox_transactions_total{outcome=\"new\"} 3",
        "coucou_outbox_pending{webhook=\"default \\\"x\\\"\"} 7.0",
        "coucou_crypto_key_wait_seconds_bucket{le=\"15.0\"} 0",
        "coucou_crypto_key_wait_seconds_bucket{le=\"60.0\"} 1",
        "coucou_crypto_room_keys_total 0",
        "# TYPE process_resident_memory_bytes gauge",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}: {text}");
    }
    assert!(text.ends_with("# EOF\n"));
    metrics.pending.clear();
    assert!(!metrics.text().contains("default"));
}

#[test]
fn names_follow_the_rules() {
    let mut seen = BTreeSet::new();
    for Definition { name, kind, labels, help } in DEFINITIONS {
        // A counter's family is called without its suffix, and no other may be called so.
        assert!(seen.insert(name.trim_end_matches("_total")), "{name} twice");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert!(*kind != Kind::Histogram || name.ends_with("_seconds"), "{name}");
        assert!(name.starts_with("coucou_") || name.starts_with("process_"), "{name}");
        assert!(help.ends_with('.') && labels.len() <= 3, "{name}");
    }
}

/// The names of metrics in a text: words that begin as ours do.
fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    let ours = words.filter(|word| word.starts_with("coucou_") || word.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

/// What a name in a query is of: histograms have three series.
fn is_known(name: &str) -> bool {
    DEFINITIONS.iter().any(|definition| {
        definition.name == name
            || (definition.kind == Kind::Histogram
                && ["_bucket", "_count", "_sum"]
                    .iter()
                    .any(|suffix| name.strip_suffix(suffix) == Some(definition.name)))
    })
}

/// Everything under `expr:` of the rules, and in the dashboard's queries.
fn queries(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_what_there_is() {
    for (file, least) in [("deploy/grafana/dashboard.json", 15), ("deploy/grafana/alerts.yaml", 10)] {
        let names = mentioned(&queries(&repository().join(file)));
        assert!(names.len() >= least, "{file} asks for {names:?}");
        let unknown: Vec<_> = names.iter().filter(|name| !is_known(name)).collect();
        assert!(unknown.is_empty(), "{file} asks for metrics that are not there: {unknown:?}");
    }
    let dashboard = queries(&repository().join("deploy/grafana/dashboard.json"));
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() >= 10));
    let rules: serde_json::Value =
        serde_saphyr::from_str(&queries(&repository().join("deploy/grafana/alerts.yaml"))).unwrap();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let says = |key: &str| rule["annotations"][key].as_str().unwrap_or_default().len() > 10;
        assert!(says("summary") && says("runbook") && rule["labels"]["severity"].is_string(), "{rule}");
    }
    assert!(!is_known("coucou_inbox_transactions") && is_known("coucou_crypto_key_wait_seconds_bucket"));
}
