//! Wrong settings, from outside: `coucou serve` ends with exit code 1 and one line that says which setting it
//! is, how its environment variable is called, and what a good value looks like.

use std::{
    fs,
    net::TcpListener,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::support::{coucou::Coucou, fake_homeserver::FakeHomeserver, postgres::Database};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);

/// The first and only thing that is wrong, and what is to be read about it.
struct Wrong {
    variables: &'static [(&'static str, &'static str)],
    file: &'static str,
    says: &'static [&'static str],
}

const fn variable(
    variables: &'static [(&'static str, &'static str)],
    says: &'static [&'static str],
) -> Wrong {
    Wrong { variables, file: "", says }
}

const fn file(file: &'static str, says: &'static [&'static str]) -> Wrong {
    Wrong { variables: &[], file, says }
}

/// What is wrong on top of settings that are right; an empty variable counts as not set.
const WRONG: &[Wrong] = &[
    variable(
        &[("COUCOU_HOMESERVER_URL", "")],
        &["homeserver.url is missing", "for example COUCOU_HOMESERVER_URL=https://"],
    ),
    variable(
        &[("COUCOU_HOMESERVER_URL", "matrix.example.org")],
        &[
            "homeserver.url must be an http or https URL",
            "\"matrix.example.org\"",
            "COUCOU_HOMESERVER_URL=https://",
        ],
    ),
    variable(
        &[("COUCOU_HOMESERVER_SERVER_NAME", "https://example.org")],
        &["homeserver.server_name must be", "COUCOU_HOMESERVER_SERVER_NAME=example.org"],
    ),
    variable(
        &[("COUCOU_APPSERVICE_REGISTRATION", "nothing.yaml")],
        &["appservice.registration must be a file", "nothing.yaml", "COUCOU_APPSERVICE_REGISTRATION="],
    ),
    variable(
        &[("COUCOU_APPSERVICE_AS_TOKEN", "hush hush")],
        &["appservice.as_token must be", "COUCOU_APPSERVICE_AS_TOKEN="],
    ),
    variable(
        &[("COUCOU_APPSERVICE_AS_TOKEN", "hush"), ("COUCOU_APPSERVICE_HS_TOKEN", "hush")],
        &["appservice.as_token and appservice.hs_token", "COUCOU_APPSERVICE_AS_TOKEN", "must differ"],
    ),
    variable(
        &[("COUCOU_APPSERVICE_BOT", "_coucou_as")],
        &["appservice.bot (COUCOU_APPSERVICE_BOT)", "sender_localpart", "COUCOU_APPSERVICE_BOT=coucou"],
    ),
    variable(
        &[("COUCOU_APPSERVICE_BOT", "@somebody:localhost")],
        &["appservice.bot (COUCOU_APPSERVICE_BOT)", "namespaces.users", "COUCOU_APPSERVICE_BOT=coucou"],
    ),
    variable(
        &[("COUCOU_APPSERVICE_BOT", "Not A Name")],
        &["appservice.bot must be", "COUCOU_APPSERVICE_BOT=coucou"],
    ),
    variable(
        &[("COUCOU_HTTP_PORT", "eighty")],
        &["http.port must be a number", "\"eighty\"", "COUCOU_HTTP_PORT=8080"],
    ),
    variable(&[("COUCOU_HTTP_HOST", "here")], &["http.host must be", "COUCOU_HTTP_HOST=0.0.0.0"]),
    variable(
        &[("COUCOU_STORE_URL", "mysql://hush@db/x")],
        &["store.url must be", "COUCOU_STORE_URL=postgres://"],
    ),
    variable(
        &[("COUCOU_STORE_URL", "sqlite:/nowhere/coucou.db")],
        &["store.url (COUCOU_STORE_URL)", "/nowhere", "COUCOU_STORE_URL=sqlite:"],
    ),
    variable(
        &[("COUCOU_STORE_URL", "postgres://coucou:hush@127.0.0.1:1/coucou"), ("COUCOU_STORE_PICKLE_KEY", "")],
        &["store.pickle_key is missing", "PostgreSQL", "COUCOU_STORE_PICKLE_KEY="],
    ),
    variable(
        &[("COUCOU_STORE_URL", ""), ("POSTGRESQL_ADDON_HOST", "db.example.org")],
        &["POSTGRESQL_ADDON_HOST is set, but POSTGRESQL_ADDON_DB is not", "COUCOU_STORE_URL=postgres://"],
    ),
    variable(&[("COUCOU_STORE_FALLBACK", "on")], &["store.fallback must be", "COUCOU_STORE_FALLBACK="]),
    variable(&[("COUCOU_STORE_POOL_SIZE", "0")], &["store.pool_size must be", "COUCOU_STORE_POOL_SIZE="]),
    variable(&[("COUCOU_OWNER", "alice")], &["owner must be a whole user id", "\"alice\"", "COUCOU_OWNER=@"]),
    variable(
        &[("COUCOU_OWNER", "@alice:localhost"), ("COUCOU_OWNER_MODE", "write")],
        &["owner_mode must be read or invite", "COUCOU_OWNER_MODE="],
    ),
    variable(
        &[("COUCOU_WEBHOOK_URL", "hooks.example.org/hush")],
        &["webhooks[].url must be an http or https URL", "COUCOU_WEBHOOK_URL=https://"],
    ),
    variable(
        &[("COUCOU_WEBHOOK_URL", "https://hooks.example.org"), ("COUCOU_WEBHOOK_SECRET", "hush")],
        &["webhooks[].secret must be whsec_", "openssl", "COUCOU_WEBHOOK_SECRET=whsec_"],
    ),
    variable(
        &[("COUCOU_WEBHOOK_URL", "https://hooks.example.org"), ("WEBHOOK_SECRET", "whsec_hush")],
        &["webhooks[].secret must be whsec_", "value of WEBHOOK_SECRET", "COUCOU_WEBHOOK_SECRET=whsec_"],
    ),
    variable(
        &[("COUCOU_WEBHOOK_SECRET", "whsec_dGhpcyBpcyBhbiBleGFtcGxlIHNlY3JldCE=")],
        &["webhooks[].url is missing, while COUCOU_WEBHOOK_SECRET is set", "COUCOU_WEBHOOK_URL=https://"],
    ),
    variable(&[("COUCOU_ROOMS_RELAY", "some")], &["rooms.relay must be", "COUCOU_ROOMS_RELAY="]),
    variable(&[("COUCOU_LOG_FORMAT", "xml")], &["log.format must be", "COUCOU_LOG_FORMAT="]),
    variable(
        &[("COUCOU_HTTP_PROT", "80")],
        &["COUCOU_HTTP_PROT is set, but there is no such setting; did you mean COUCOU_HTTP_PORT?"],
    ),
    variable(&[("COUCOU_API_TOKEN", "hush hush")], &["api.tokens must be", "COUCOU_API_TOKEN="]),
    file(
        "http:\n  prot: 80\n",
        &["coucou.yaml line 2: there is no setting http.prot; did you mean http.port?"],
    ),
    file("http: [\n", &["coucou.yaml: "]),
    file("http:\n  port: 80\n  port: 81\n", &["coucou.yaml: ", "port"]),
    file("webhooks:\n  - url: https://example.org\n", &["webhooks[].name is missing in coucou.yaml line 2"]),
];

/// Runs `coucou serve`, which shall end by itself.
async fn serve(mut command: Command) -> Output {
    let what = format!("{:?}", command.get_envs().collect::<Vec<_>>());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let began = Instant::now();
    while process.try_wait().unwrap().is_none() {
        if began.elapsed() > SOON {
            process.kill().unwrap();
            let output = process.wait_with_output().unwrap();
            panic!("coucou does not end, with {what}: {}", String::from_utf8_lossy(&output.stderr));
        }
        sleep(Duration::from_millis(20)).await;
    }
    process.wait_with_output().unwrap()
}

/// The one line about what is wrong, `log` lines before it aside.
fn one_line(output: &Output, what: &str) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{what}: {stderr}");
    let mut lines: Vec<_> = stderr.lines().collect();
    let line = lines.pop().unwrap_or_default();
    assert!(line.starts_with("coucou: "), "{what}: the last line of\n{stderr}");
    let is_log = |line: &&str| line.contains("INFO") || line.contains("WARN") || line.contains("ERROR");
    let others: Vec<_> = lines.into_iter().filter(|line| !is_log(line)).collect();
    assert!(others.is_empty(), "{what}: more than one line:\n{stderr}");
    assert!(!stderr.contains("hush"), "{what}: a secret is shown: {stderr}");
    line.to_owned()
}

fn assert_says(output: &Output, what: &str, says: &[&str]) {
    let line = one_line(output, what);
    for part in says {
        assert!(line.contains(part), "{what}: no {part:?} in: {line}");
    }
}

/// Settings that are right, but for a homeserver that does not answer.
async fn right() -> Coucou {
    Coucou::new().await.homeserver("http://127.0.0.1:9")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_setting_stops_the_start() {
    let coucou = right().await;
    for Wrong { variables, file, says } in WRONG {
        let what = format!("{variables:?} {file:?}");
        fs::write(coucou.path("coucou.yaml"), file).unwrap();
        let mut command = coucou.command(&["serve"]);
        command.envs(variables.iter().copied());
        let output = serve(command).await;
        assert_says(&output, &what, says);
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{what}");
        assert!(!coucou.path("coucou.db").exists(), "{what}: a store was made");
    }
    let output = serve(coucou.command(&["serve", "--config", "nothing.yaml"])).await;
    assert_says(&output, "no file", &["nothing.yaml: cannot be read"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_required() {
    let coucou = Coucou::bare().homeserver("http://127.0.0.1:9");
    let output = serve(coucou.command(&["serve"])).await;
    let says =
        ["appservice.as_token is missing", "`coucou registration` makes one", "COUCOU_APPSERVICE_AS_TOKEN="];
    assert_says(&output, "no token", &says);
    let coucou = coucou.set("COUCOU_APPSERVICE_AS_TOKEN", "one");
    let output = serve(coucou.command(&["serve"])).await;
    assert_says(&output, "one token", &["appservice.hs_token is missing", "COUCOU_APPSERVICE_HS_TOKEN="]);
    for (text, what) in [(": [", "registration.yaml: "), ("as_token: a\n", "appservice.hs_token is missing")]
    {
        fs::write(coucou.path("registration.yaml"), text).unwrap();
        assert_says(&serve(coucou.command(&["serve"])).await, text, &[what]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_pickle_key_stops_the_start() {
    let database = Database::create().await;
    for postgres in [false, true] {
        let mut coucou = right().await;
        if postgres {
            coucou = coucou.store(&database.url());
        }
        let migrated = coucou.run(&["migrate"]).await;
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        let coucou = coucou.set("COUCOU_STORE_PICKLE_KEY", "hush hush, another key of good length");
        let says = ["pickle key", "store.pickle_key", "COUCOU_STORE_PICKLE_KEY"];
        for command in ["serve", "migrate"] {
            assert_says(&serve(coucou.command(&[command])).await, command, &says);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_its_key_file_stops_the_start() {
    let coucou = right().await.set("COUCOU_STORE_PICKLE_KEY", "");
    assert!(coucou.run(&["migrate"]).await.status.success());
    let key = coucou.path("coucou.db.key");
    fs::remove_file(&key).unwrap();
    let says = ["store.pickle_key is missing", "coucou.db.key", "COUCOU_STORE_PICKLE_KEY="];
    assert_says(&serve(coucou.command(&["serve"])).await, "no key file", &says);
    assert!(!key.exists(), "no other key takes its place");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_stops_the_start() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let coucou = right().await.set("COUCOU_HTTP_PORT", &port);
    let says = ["cannot listen on 127.0.0.1", &port, "http.port", "COUCOU_HTTP_PORT"];
    assert_says(&serve(coucou.command(&["serve"])).await, "a taken port", &says);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_another_store_stops_the_start() {
    let coucou = Coucou::new().await.set("COUCOU_APPSERVICE_DEVICE_ID", "COUCOU01");
    let homeserver = FakeHomeserver::start(&coucou).await;
    let mut coucou = coucou.homeserver(&homeserver.url());
    coucou.start().await;
    assert_eq!(homeserver.wait_for_device(BOT, SOON).await, "COUCOU01");
    assert!(coucou.terminate().await.success());
    let keys = |homeserver: &FakeHomeserver| homeserver.requests("keys/upload").len();
    let uploads = keys(&homeserver);
    let lost = format!("sqlite:{}", coucou.path("lost.db").display());
    let coucou = coucou.store(&lost);
    let says = ["device COUCOU01", BOT, "store.url (COUCOU_STORE_URL)", "COUCOU_APPSERVICE_DEVICE_ID"];
    assert_says(&serve(coucou.command(&["serve"])).await, "another store", &says);
    assert_eq!(keys(&homeserver), uploads, "the device's keys are left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_of_another_store_stops_the_start() {
    let coucou = Coucou::new().await;
    let homeserver = FakeHomeserver::start(&coucou).await;
    let mut coucou = coucou.homeserver(&homeserver.url());
    coucou.start().await;
    homeserver.wait_for_device(BOT, SOON).await;
    assert!(coucou.terminate().await.success());
    // Another registration, for another bot.
    let registration = fs::read_to_string(coucou.registration()).unwrap();
    fs::write(coucou.registration(), registration.replace("@coucou", "@other")).unwrap();
    let coucou = coucou.set("COUCOU_APPSERVICE_BOT", "other");
    let says = ["belongs to the bot @coucou:localhost", "appservice.bot (COUCOU_APPSERVICE_BOT)", "other"];
    assert_says(&serve(coucou.command(&["serve"])).await, "another bot", &says);
}
