//! The dashboard and the alert rules on a real Prometheus, which reads a real coucou as `deploy/docker` has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    process::Command,
    time::Duration,
};

use reqwest::Url;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::support::{
    coucou::Coucou,
    fake_homeserver::{FakeBridge, FakeHomeserver, event},
    free_port, http,
    postgres::Database,
    process::Process,
    receiver::{Answer, Receiver},
    repository, run, until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);

fn script(verb: &str) -> Command {
    let mut command = Command::new(repository().join("tests/prometheus/prometheus.sh"));
    command.arg(verb);
    command
}

fn deployed(file: &str) -> String {
    fs::read_to_string(repository().join("deploy").join(file)).unwrap()
}

/// coucou with two webhooks, one of which is told of Messenger alone.
struct Scene {
    coucou: Coucou,
    homeserver: FakeHomeserver,
    instagram: FakeBridge,
    facebook: FakeBridge,
    /// Portals, of which the first is encrypted.
    rooms: [String; 2],
    metrics: String,
    all: Receiver,
    crm: Receiver,
    _database: Database,
}

impl Scene {
    async fn set() -> Self {
        let (database, all, crm) =
            (Database::create().await, Receiver::start().await, Receiver::start().await);
        let port = free_port();
        let coucou = Coucou::new().await.store(&database.url()).set("COUCOU_METRICS_PORT", &port.to_string());
        let homeserver = FakeHomeserver::start(&coucou).await;
        let entry = |name: &str, receiver: &Receiver, more: &str| {
            let (url, secret) = (receiver.url(), receiver.secret());
            format!("  - {{name: {name}, url: \"{url}\", secret: {secret}, schedule: [1s], {more}}}\n")
        };
        let webhooks = entry("all", &all, "")
            + &entry("crm", &crm, "filter: {networks: [messenger], types: [message.created]}");
        fs::write(coucou.path("coucou.yaml"), format!("webhooks:\n{webhooks}")).unwrap();
        let mut coucou = coucou.homeserver(&homeserver.url());
        coucou.start().await;
        let device_id = homeserver.wait_for_device(BOT, SOON).await;
        let (mut instagram, facebook) =
            (FakeBridge::new(&homeserver, "instagram"), FakeBridge::new(&homeserver, "facebook"));
        let rooms = [
            instagram.create_portal(&homeserver, "1", "Alice"),
            facebook.create_room(&homeserver, "2", "Bob", false),
        ];
        for (room, bridge) in rooms.iter().zip([&instagram, &facebook]) {
            homeserver.invite(room, &bridge.bot(), BOT).await;
            homeserver.wait_for_join(room, BOT, SOON).await;
        }
        let key = instagram.share_key(&homeserver, &rooms[0], BOT, &device_id);
        homeserver.push_until_taken(&[], &key).await;
        let metrics = format!("127.0.0.1:{port}");
        Self { coucou, homeserver, instagram, facebook, rooms, metrics, all, crm, _database: database }
    }

    /// Has so many texts said in the encrypted room.
    async fn say(&mut self, count: usize) {
        let say = |at| self.instagram.say(&self.rooms[0], "1", &format!("number {at}"));
        let events: Vec<Value> = (0..count).map(say).collect();
        self.homeserver.push_until_taken(&events, &[]).await;
    }

    /// Has something said that both webhooks are told of.
    async fn say_in_clear(&self) {
        let text = json!({"msgtype": "m.text", "body": "hello"});
        let said = event(&self.rooms[1], &self.facebook.ghost("2"), "m.room.message", &text);
        self.homeserver.push_until_taken(&[said], &[]).await;
    }

    async fn told(&self) -> String {
        let url = format!("http://{}/metrics", self.metrics);
        http().get(url).send().await.unwrap().text().await.unwrap()
    }
}

/// A Prometheus with the configuration, and the rules, of `deploy`; it looks every second.
struct Prometheus {
    url: String,
    _process: Process,
    // After the process, which writes into it.
    _folder: TempDir,
}

impl Prometheus {
    async fn start(metrics: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("coucou-prometheus-").tempdir().unwrap();
        let config = deployed("docker/prometheus.yaml");
        let here = config
            .replace("scrape_interval: 15s", "scrape_interval: 1s\n  evaluation_interval: 1s")
            .replace("coucou:9100", metrics);
        assert!(here.contains("evaluation_interval") && here.contains(metrics), "{here}");
        fs::write(folder.path().join("prometheus.yaml"), here).unwrap();
        fs::write(folder.path().join("alerts.yaml"), deployed("grafana/alerts.yaml")).unwrap();
        let mut check = script("promtool");
        check.args(["check", "config"]).arg(folder.path().join("prometheus.yaml"));
        run(check).await;
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = script("prometheus");
        command.current_dir(&folder).args(["--config.file=prometheus.yaml", "--storage.tsdb.path=data"]);
        command.arg(format!("--web.listen-address={address}"));
        let process = Process::start("prometheus", command, &folder.path().join("log"));
        Self { url: format!("http://{address}/api/v1"), _process: process, _folder: folder }
    }

    /// Answers the data of a valid request; nothing while it does not answer.
    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Option<Value> {
        let url = Url::parse_with_params(&format!("{}/{path}", self.url), parameters).unwrap();
        let answer = http().get(url).send().await.ok()?.text().await.ok()?;
        let answer: Value = serde_json::from_str(&answer).ok()?;
        assert_eq!(answer["status"], "success", "{path} {parameters:?}: {answer}");
        Some(answer["data"].clone())
    }

    /// The values that an expression has now, but for those that are no number.
    async fn values(&self, expression: &str) -> Vec<f64> {
        let Some(data) = self.ask("query", &[("query", expression)]).await else { return Vec::new() };
        let series = data["result"].as_array().unwrap().iter();
        let values = series.map(|series| series["value"][1].as_str().unwrap().parse::<f64>().unwrap());
        values.filter(|value| !value.is_nan()).collect()
    }

    /// The alert rules by name: how their evaluation went, and what they say.
    async fn alerts(&self) -> BTreeMap<String, (String, String)> {
        let Some(data) = self.ask("rules", &[("type", "alert")]).await else { return BTreeMap::new() };
        let groups = data["groups"].as_array().unwrap().iter();
        let word = |rule: &Value, key: &str| rule[key].as_str().unwrap().to_owned();
        let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
        rules.map(|rule| (word(rule, "name"), (word(rule, "health"), word(rule, "state")))).collect()
    }

    /// Waits until every panel shows something, but for these.
    async fn shows_all_but(&self, empty: &[&str]) {
        for (title, expression) in panels().iter().filter(|(title, _)| !empty.contains(&&**title)) {
            let shows = async || (!self.values(expression).await.is_empty()).then_some(());
            until(&format!("something of {expression} in the panel {title:?}"), SOON, shows).await;
        }
    }

    /// Waits until an alert is pending, or firing.
    async fn alarm(&self, name: &str, state: &str) {
        let is_so = async || (self.alerts().await.get(name)?.1 == state).then_some(());
        until(&format!("{name} to be {state}"), SOON, is_so).await;
    }
}

/// The names of the rules in the file.
fn rules() -> BTreeSet<String> {
    let file: Value = serde_saphyr::from_str(&deployed("grafana/alerts.yaml")).unwrap();
    let rules =
        file["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    rules.map(|rule| rule["alert"].as_str().unwrap().to_owned()).collect()
}

/// The queries of the dashboard with the names of their panels, for the one job that there is.
fn panels() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&deployed("grafana/dashboard.json")).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap().replace("$job", "coucou");
            assert!(!expression.contains('$'), "a variable that is not known: {expression}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), expression));
        }
    }
    queries
}

/// Panels of what is wrong and what cannot be read: there is nothing then.
const EMPTY_WHILE_ALL_IS_WELL: [&str; 3] =
    ["Alerts", "Undecryptable, waiting", "Undecryptable, new in an hour"];

/// Asserts that promtool has nothing to say about these metrics, but for counters: it reads the format that was before
/// `OpenMetrics`, in which their help bears their full name.
async fn assert_linted(told: &str) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("metrics");
    fs::write(&file, told).unwrap();
    let mut check = script("promtool");
    check.args(["check", "metrics"]).stdin(File::open(file).unwrap());
    let said = spawn_blocking(move || check.output()).await.unwrap().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    let wrong: Vec<&str> = said.lines().filter(|line| !line.ends_with("_total no help text")).collect();
    assert!(said.lines().count() > 5 && wrong.is_empty(), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_shows_and_the_alerts_tell_what_is() {
    let mut scene = Scene::set().await;
    let prometheus = Prometheus::start(&scene.metrics).await;
    until("a first look", SOON, async || {
        (!prometheus.values("coucou_build_info").await.is_empty()).then_some(())
    })
    .await;

    // All is well: a webhook has failed once, which happens.
    scene.all.answer_next([Answer::Status(500)]);
    scene.say(10).await;
    scene.all.wait_for(10, SOON).await;
    prometheus.shows_all_but(&EMPTY_WHILE_ALL_IS_WELL).await;
    assert_linted(&scene.told().await).await;
    let names = rules();
    until("all rules to be evaluated, and to say nothing", SOON, async || {
        let alerts = prometheus.alerts().await;
        let is_quiet = |(health, state): &(String, String)| health == "ok" && state == "inactive";
        (alerts.keys().eq(&names) && alerts.values().all(is_quiet)).then_some(())
    })
    .await;

    // One webhook is broken from its first delivery on, and somebody's keys do not come.
    scene.crm.answer_always(Some(Answer::Status(500)));
    scene.instagram.rotate(&scene.rooms[0]);
    scene.say(7).await;
    scene.say_in_clear().await;
    prometheus.alarm("CoucouDeadDeliveries", "firing").await;
    prometheus.alarm("CoucouWebhookFailing", "pending").await;
    prometheus.alarm("CoucouUndecryptable", "pending").await;
    prometheus.shows_all_but(&[]).await;
    scene.coucou.kill9();
    prometheus.alarm("CoucouDown", "pending").await;
}

#[tokio::test]
async fn each_alert_fires_at_what_it_is_for_and_at_nothing_else() {
    let rules = repository().join("tests/prometheus/alerts.yaml");
    let scenes = fs::read_to_string(&rules).unwrap();
    for name in self::rules() {
        assert!(scenes.contains(&format!("\"{name}\"")), "no scene for {name}");
    }
    let mut check = script("promtool");
    check.args(["check", "rules"]).arg(repository().join("deploy/grafana/alerts.yaml"));
    run(check).await;
    let mut test = script("promtool");
    test.args(["test", "rules"]).arg(rules);
    run(test).await;
}
