//! What `deploy/docker` names is there, and its files agree with each other. No engine is at hand to run them on.

use std::{collections::BTreeSet, fs};

use regex::Regex;
use serde_json::Value;

use crate::support::repository;

fn text(file: &str) -> String {
    let path = repository().join("deploy").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(file: &str) -> Value {
    serde_saphyr::from_str(&text(file)).unwrap()
}

fn strings<'a>(list: &'a Value, key: &str) -> Vec<&'a str> {
    list[key].as_array().into_iter().flatten().map(|entry| entry.as_str().unwrap()).collect()
}

/// What is mounted from the repository: where it is, from `deploy/docker` on, and where it appears.
fn mounts(service: &Value) -> Vec<(&str, &str)> {
    let volumes = strings(service, "volumes").into_iter().map(|volume| volume.split_once(':').unwrap());
    let of_files = volumes.filter(|(source, _)| source.starts_with('.'));
    of_files
        .map(|(source, target)| (source, target.strip_suffix(":ro").expect("is not written to")))
        .collect()
}

#[test]
fn what_compose_names_is_there_or_made_by_the_commands_above_it() {
    let (compose, file) = (yaml("docker/compose.yaml"), text("docker/compose.yaml"));
    let commands: String = file.lines().take_while(|line| line.starts_with('#')).collect();
    let volumes: BTreeSet<&String> = compose["volumes"].as_object().unwrap().keys().collect();
    let mut mounted = 0;
    for (name, service) in compose["services"].as_object().unwrap() {
        for (source, _) in mounts(service) {
            assert!(repository().join("deploy/docker").join(source).is_file(), "{name} mounts {source}");
            mounted += 1;
        }
        for volume in strings(service, "volumes").iter().filter(|volume| !volume.starts_with('.')) {
            assert!(volumes.iter().any(|name| volume.starts_with(&format!("{name}:"))), "{name}: {volume}");
        }
        let made = service["env_file"].as_str().into_iter();
        let made: Vec<&str> = made.chain(strings(service, "secrets")).collect();
        for made in made {
            assert!(commands.contains(made), "{name} needs {made}");
            let ignored = |list: &str| fs::read_to_string(repository().join(list)).unwrap();
            assert!(ignored(".gitignore").lines().any(|line| line == made), "git takes {made}");
            assert!(ignored(".dockerignore").lines().any(|line| line == format!("**/{made}")), "{made}");
        }
    }
    assert!(mounted > 4, "{mounted}");
    for variable in Regex::new(r"\$\{([A-Z_]+)").unwrap().captures_iter(&file) {
        assert!(commands.contains(&format!("{}=", &variable[1])), "{} is not set", &variable[1]);
    }
    let build = &compose["services"]["coucou"]["build"];
    assert_eq!(build["context"], "../..");
    assert!(repository().join(build["dockerfile"].as_str().unwrap()).is_file());
}

#[test]
fn prometheus_and_grafana_find_what_they_are_given() {
    let compose = yaml("docker/compose.yaml");
    let service = |name: &str| compose["services"][name].clone();
    let of_file = |name: &str, file: &str| {
        let service = service(name);
        let mounts = mounts(&service);
        let found = mounts.iter().find(|(source, _)| source.ends_with(file));
        found.unwrap_or_else(|| panic!("{name} has no {file}")).1.to_owned()
    };
    let prometheus = yaml("docker/prometheus.yaml");
    let config = of_file("prometheus", "prometheus.yaml");
    assert!(
        strings(&service("prometheus"), "command").contains(&&*format!("--config.file={config}")),
        "{config}"
    );
    // Rules are looked for beside the configuration.
    let folder = config.rsplit_once('/').unwrap().0;
    let rules = strings(&prometheus, "rule_files");
    assert_eq!(
        rules.iter().map(|rule| format!("{folder}/{rule}")).collect::<Vec<_>>(),
        [of_file("prometheus", "alerts.yaml")]
    );
    let port = &service("coucou")["environment"]["COUCOU_METRICS_PORT"];
    let targets = &prometheus["scrape_configs"][0]["static_configs"][0];
    assert_eq!(strings(targets, "targets"), [format!("coucou:{port}")]);

    let source = &yaml("docker/grafana.yaml")["datasources"][0];
    assert_eq!((&source["type"], &source["isDefault"]), (&"prometheus".into(), &true.into()));
    let published = service("prometheus");
    let own = strings(&published, "ports")[0].rsplit_once(':').unwrap().1.to_owned();
    assert_eq!(source["url"], format!("http://prometheus:{own}"));
    let provisioning = "/etc/grafana/provisioning";
    assert!(of_file("grafana", "grafana.yaml").starts_with(&format!("{provisioning}/datasources/")));
    assert!(of_file("grafana", "dashboards.yaml").starts_with(&format!("{provisioning}/dashboards/")));
    let path = yaml("docker/dashboards.yaml")["providers"][0]["options"]["path"].clone();
    assert!(of_file("grafana", "dashboard.json").starts_with(path.as_str().unwrap()));
    // Of whichever Prometheus is chosen above the panels, at first the default one.
    let dashboard: Value = serde_json::from_str(&text("grafana/dashboard.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array().unwrap().iter();
        for of in targets.chain([panel]) {
            assert_eq!(of["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
}

#[test]
fn the_image_is_built_from_all_that_cargo_needs() {
    let file = text("docker/Dockerfile");
    let copied: Vec<&str> = file
        .lines()
        .filter_map(|line| line.strip_prefix("COPY ").filter(|rest| !rest.starts_with("--from")))
        .flat_map(|rest| rest.rsplit_once(' ').unwrap().0.split(' '))
        .collect();
    for name in &copied {
        assert!(repository().join(name).exists(), "{name} is not there");
    }
    for needed in ["Cargo.toml", "Cargo.lock", "src", "migrations", "docs", "benches", "tests"] {
        assert!(copied.contains(&needed), "{needed} is not copied");
    }
    let manifest = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let version =
        Regex::new(r#"rust-version = "([0-9.]+)""#).unwrap().captures(&manifest).unwrap()[1].to_owned();
    assert!(file.contains(&format!("/rust:{version}-")), "built by another Rust than {version}");
}

#[test]
fn no_panels_of_the_dashboard_overlap() {
    let dashboard: Value = serde_json::from_str(&text("grafana/dashboard.json")).unwrap();
    let (mut cells, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64()), "{}", panel["title"]);
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{} is too far right", panel["title"]);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(cells.insert((x, y)), "{} lies on another panel", panel["title"]);
            }
        }
    }
}
