//! `coucou check`: looks at everything that coucou needs, and says what is wrong and what to do.
//!
//! It takes no lease and changes nothing that lasts, so it can run at any time: beside a running coucou, whose store
//! tells it how keys come in, or without one, when it answers the homeserver itself for as long as it takes. What it
//! sends is a to-device message to our own device, and a `webhook.test` to each webhook.

mod bridges;
mod device;
mod door;
mod homeserver;
mod rooms;
mod store;
mod timelines;
mod trip;
mod webhooks;
mod words;

use std::{error::Error, sync::Arc};

use ruma::OwnedUserId;

use crate::{
    clock::{SharedClock, SystemClock},
    config::{Config, ConfigError},
    homeserver::Homeserver,
    model::Account,
    store::Store,
};

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works, and somebody may want to do something about it.
    Warn,
    /// Messages are not relayed, or will not be.
    Fail,
}

impl Status {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What was found out about one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: a word that stays.
    pub check: &'static str,
    /// How it is.
    pub status: Status,
    /// What was seen.
    pub says: String,
    /// What to do; `None` when there is nothing to do.
    pub remedy: Option<String>,
}

/// What a webhook is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its name in the settings.
    pub name: String,
    /// In words.
    pub receives: String,
}

/// What a check found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One after the other.
    pub findings: Vec<Finding>,
    /// What each webhook of the settings is told.
    pub webhooks: Vec<Told>,
}

impl Report {
    /// The report of settings that cannot be used, in which case nothing else can be looked at.
    #[must_use]
    pub fn of_bad_settings(error: &ConfigError) -> Self {
        let mut report = Self::default();
        report.fail("settings", said(error), "correct the setting; docs/coucou.example.yaml lists them all");
        report
    }

    /// How many findings are of a status.
    #[must_use]
    pub fn count(&self, status: Status) -> usize {
        self.findings.iter().filter(|finding| finding.status == status).count()
    }

    /// The worst of all.
    #[must_use]
    pub fn worst(&self) -> Status {
        self.findings.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok)
    }

    fn ok(&mut self, check: &'static str, says: impl Into<String>) {
        self.findings.push(Finding { check, status: Status::Ok, says: says.into(), remedy: None });
    }

    fn warn(&mut self, check: &'static str, says: impl Into<String>, remedy: impl Into<String>) {
        let remedy = Some(remedy.into());
        self.findings.push(Finding { check, status: Status::Warn, says: says.into(), remedy });
    }

    fn fail(&mut self, check: &'static str, says: impl Into<String>, remedy: impl Into<String>) {
        let remedy = Some(remedy.into());
        self.findings.push(Finding { check, status: Status::Fail, says: says.into(), remedy });
    }
}

/// An error and its causes in one line.
fn said(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        // Some libraries repeat the cause in their own text.
        if parts.last().is_none_or(|last| !last.ends_with(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}

/// What the parts of a check look at.
struct Scene<'a> {
    config: &'a Config,
    clock: SharedClock,
    homeserver: Homeserver,
    /// The store, when it can be read.
    store: Option<Store>,
    /// What coucou reads as, as the store has it.
    accounts: Vec<Account>,
    /// Whether a process works the crypto.
    is_led: bool,
    /// The bot, once it is known.
    bot: Option<OwnedUserId>,
}

/// Looks at everything, the nearest first.
pub async fn check(config: &Config) -> Report {
    let mut report = Report::default();
    settings(config, &mut report);
    let homeserver = match Homeserver::new(&config.homeserver.url, config.appservice.as_token.clone()) {
        Ok(homeserver) => homeserver,
        Err(error) => {
            report.fail("settings", said(&error), "correct homeserver.url and appservice.as_token");
            return report;
        }
    };
    let bot = config.appservice.bot_user_id(config.known_server_name().as_deref());
    let clock: SharedClock = Arc::new(SystemClock);
    let mut scene =
        Scene { config, clock, homeserver, store: None, accounts: Vec::new(), is_led: false, bot };
    store::look(&mut scene, &mut report).await;
    let mut door = door::knock(&scene, &mut report).await;
    if homeserver::look(&mut scene, &mut report).await {
        let is_reached = homeserver::ping(&scene, &mut door, &mut report).await;
        let devices = device::look(&scene, &mut report).await;
        for account in &devices {
            trip::make(&scene, account, is_reached, &mut door, &mut report).await;
        }
        rooms::look(&scene, &mut report).await;
    }
    rooms::look_at_messages(&scene, &mut report).await;
    bridges::look(&scene, &mut report).await;
    webhooks::look(&scene, &mut report).await;
    door.close().await;
    if let Some(store) = &scene.store {
        store.close().await;
    }
    report
}

/// Compares the timelines of all relayed rooms with what is known of them, telling after each how many of how many are done.
/// With `mend` what is missing is read, by whoever works the crypto; without, nothing is changed.
pub async fn compare_rooms(config: &Config, mend: bool, progress: impl FnMut(usize, usize)) -> Report {
    let mut report = Report::default();
    let homeserver = match Homeserver::new(&config.homeserver.url, config.appservice.as_token.clone()) {
        Ok(homeserver) => homeserver,
        Err(error) => {
            report.fail("settings", said(&error), "correct homeserver.url and appservice.as_token");
            return report;
        }
    };
    let clock: SharedClock = Arc::new(SystemClock);
    let mut scene =
        Scene { config, clock, homeserver, store: None, accounts: Vec::new(), is_led: false, bot: None };
    store::look(&mut scene, &mut report).await;
    timelines::compare(&scene, mend, progress, &mut report).await;
    if let Some(store) = &scene.store {
        store.close().await;
    }
    report
}

fn settings(config: &Config, report: &mut Report) {
    for warning in &config.warnings {
        report.warn("settings", warning, "change the setting that it names");
    }
    let bot = &config.appservice.bot;
    let owner =
        config.owner.as_ref().map_or("no owner".to_owned(), |owner| format!("owner {}", owner.user_id));
    let count = config.webhooks.len();
    report.ok("settings", format!("bot {bot}, {owner}, {count} webhooks"));
    if config.api.tokens.is_empty() {
        let remedy = "set COUCOU_API_TOKEN, for example to what `openssl rand -hex 24` prints";
        report.warn("settings", "no API token is set: the REST API and its stats answer 403", remedy);
    }
}
