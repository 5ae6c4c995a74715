//! The silence detector: what is wrong with bridges, and that nothing comes any more.
//!
//! Five things are noticed, each told once when it begins and once when it is over:
//!
//! - a network is quiet for longer than is [usual] for it;
//! - a bridge's bot leaves a room;
//! - a bridge says that one of its logins does not work ([notice]);
//! - messages of a bridge are [held], because nothing tells for whom it may speak;
//! - the homeserver pushes nothing, while keys or messages come by other ways.
//!
//! It is part of the worker, so it runs under the crypto lease and sees what comes where it is worked through. What is
//! told is written in the step's transaction together with the fact that it was, so that neither a crash nor a change
//! of hands tells it twice; all that it knows is loaded with the worker.

mod bots;
mod held;
mod notice;
mod numbers;
mod overheard;
mod pushes;
mod usual;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use ruma::OwnedUserId;
use serde_json::{Map, Value};

use self::{
    notice::Health,
    pushes::Pushes,
    usual::{KEPT, Traffic, hour_of},
};
use super::{
    batch::Arrival,
    commit::Outcome,
    event::WireEvent,
    worker::{Worker, WorkerParts},
};
use crate::{
    clock::Timestamp,
    crypto::CryptoError,
    messages::{BACKFILL_AGE, bridge::Tidings, network::network_id},
    model::{Alarm, AlarmReason, Encryption, SilenceSettings},
    store::{
        StoreError, Tx, leases,
        silence::{self, Hour, WATCHED},
        stats,
    },
};

/// How often it is looked whether something has become silent, at least.
const LOOK: Duration = Duration::from_mins(1);

/// Between two looks that are further apart coucou was not there to hear: the machine slept.
const LONGEST_GAP: Duration = Duration::from_hours(2);

/// Networks that are followed at most: bridges choose their names.
const MOST_NETWORKS: usize = 100;

/// How long alarms that are over are remembered, so that an old notice of a bridge's is known for old.
const REMEMBERED: Duration = Duration::from_hours(30 * 24);

/// What one step has to write.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// By network and hour: how much came, and when the last of it.
    hours: BTreeMap<(String, i64), (i64, Timestamp)>,
    /// What is told, in order.
    told: Vec<(Tidings, Option<u64>)>,
    /// What is so no more without a word: nobody can see how it is.
    dropped: Vec<Alarm>,
    /// Whether to forget what is old.
    prune: bool,
}

impl Changes {
    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.hours.is_empty() && self.told.is_empty() && self.dropped.is_empty() && !self.prune
    }

    fn hear(&mut self, network: &str, hour: i64, at: Timestamp) {
        let (count, last_at) = self.hours.entry((network.to_owned(), hour)).or_default();
        *count += 1;
        *last_at = at.max(*last_at);
    }
}

type Key = (AlarmReason, String);

/// What the detector knows.
#[derive(Debug)]
pub(super) struct Silence {
    settings: Option<SilenceSettings>,
    networks: BTreeMap<String, Traffic>,
    /// The hours during which somebody was there to hear.
    watched: BTreeSet<i64>,
    /// Those that are over, too.
    alarms: HashMap<Key, Alarm>,
    /// When somebody last looked: since then nobody was away.
    looked_at: Option<Timestamp>,
    look_at: Timestamp,
    pushes: Pushes,
}

impl Silence {
    /// What is known from before. Without settings nothing is noticed, and what was is dropped.
    ///
    /// # Errors
    /// When the store fails or the lease is lost.
    pub(super) async fn load(parts: &WorkerParts, now: Timestamp) -> Result<Self, CryptoError> {
        let mut known = Self {
            settings: parts.silence,
            networks: BTreeMap::new(),
            watched: BTreeSet::new(),
            alarms: HashMap::new(),
            looked_at: Some(now),
            look_at: now,
            pushes: Pushes::since(stats::last_row(parts.store.db(), "push").await?),
        };
        if known.settings.is_none() {
            let mut tx = parts.store.begin().await?;
            leases::check(&mut tx, &parts.lease).await?;
            silence::drop_all(&mut tx, now).await?;
            tx.commit().await?;
            return Ok(known);
        }
        for Hour { network, hour, last_at, .. } in silence::hours(parts.store.db()).await? {
            if network == WATCHED {
                known.watched.insert(hour);
            } else {
                known.networks.entry(network).or_default().heard(hour, last_at);
            }
        }
        for alarm in silence::alarms(parts.store.db()).await? {
            known.alarms.insert((alarm.reason, alarm.subject.clone()), alarm);
        }
        Ok(known)
    }

    fn active(&self, reason: AlarmReason, subject: &str) -> Option<&Alarm> {
        self.alarms.get(&(reason, subject.to_owned())).filter(|alarm| alarm.is_active())
    }

    fn active_keys(&self, reason: AlarmReason) -> Vec<Key> {
        let active = self.alarms.iter().filter(|((of, _), alarm)| *of == reason && alarm.is_active());
        active.map(|(key, _)| key.clone()).collect()
    }

    /// Begins an alarm; one that is over may begin anew.
    fn begin(
        &mut self,
        mut alarm: Alarm,
        room_name: Option<String>,
        login_name: Option<String>,
        changes: &mut Changes,
    ) {
        tracing::warn!(
            reason = alarm.reason.as_str(),
            network = alarm.network.as_deref(),
            room.id = alarm.room_id.as_ref().map(|room_id| room_id.as_str()),
            bot = alarm.bot.as_ref().map(|bot| bot.as_str()),
            status = alarm.status.as_deref(),
            since = %alarm.since,
            remedy = alarm.settings_line(),
            "{}", begun(alarm.reason),
        );
        let key = (alarm.reason, alarm.subject.clone());
        if let Some(before) = self.alarms.get(&key) {
            alarm.message_id.clone_from(&before.message_id);
        }
        self.alarms.insert(key, alarm.clone());
        changes.told.push((Tidings { alarm, room_name, login_name }, None));
    }

    /// Ends an alarm, when there is one.
    fn end(
        &mut self,
        key: &Key,
        now: Timestamp,
        room_name: Option<String>,
        login_name: Option<String>,
        changes: &mut Changes,
    ) {
        let Some(alarm) = self.alarms.get_mut(key).filter(|alarm| alarm.is_active()) else { return };
        (alarm.ended_at, alarm.told_at) = (Some(now), now);
        tracing::info!(reason = alarm.reason.as_str(), subject = alarm.subject, "a bridge works again");
        changes.told.push((Tidings { alarm: alarm.clone(), room_name, login_name }, None));
    }

    /// Forgets an alarm without a word.
    fn drop_alarm(&mut self, key: &Key, now: Timestamp, changes: &mut Changes) {
        let Some(alarm) = self.alarms.get_mut(key).filter(|alarm| alarm.is_active()) else { return };
        alarm.ended_at = Some(now);
        changes.dropped.push(alarm.clone());
    }

    /// Notes the hours since the last look as hours during which somebody was there.
    fn watch(&mut self, now: Timestamp, changes: &mut Changes) {
        let before = self.looked_at.replace(now).filter(|before| now.since(*before) <= LONGEST_GAP);
        for hour in before.map_or(0..0, |before| hour_of(before)..hour_of(now)) {
            if self.watched.insert(hour) {
                changes.hear(WATCHED, hour, now);
                changes.prune = true;
            }
        }
        if changes.prune {
            let before = hour_of(now) - KEPT;
            self.watched = self.watched.split_off(&before);
            self.networks.values_mut().for_each(|traffic| traffic.forget(before));
            self.alarms
                .retain(|_, alarm| alarm.ended_at.is_none_or(|ended_at| now.since(ended_at) < REMEMBERED));
        }
    }
}

fn begun(reason: AlarmReason) -> &'static str {
    match reason {
        AlarmReason::NoMessages => "nothing of a network has come for longer than usual",
        AlarmReason::NoTransactions => {
            "the homeserver pushes nothing, while keys or messages come by other ways; `coucou check` says why"
        }
        AlarmReason::BotLeft => "a bridge's bot has left a room",
        AlarmReason::LoginLost => "a bridge says that one of its logins does not work",
        AlarmReason::MessagesHeld => {
            "messages of a bridge are held, because nothing tells for whom it may speak"
        }
    }
}

/// An alarm that begins now, of which nothing but what it is about is known.
fn bare(reason: AlarmReason, subject: &str, since: Timestamp, now: Timestamp) -> Alarm {
    Alarm {
        reason,
        subject: subject.to_owned(),
        network: None,
        room_id: None,
        bot: None,
        login: None,
        status: None,
        error: None,
        since,
        told_at: now,
        message_id: String::new(),
        ended_at: None,
    }
}

impl Worker {
    /// Looks whether something has become silent, when it is time and nothing waits to be worked through.
    pub(super) async fn look_for_silence(&mut self, now: Timestamp) -> Result<Changes, CryptoError> {
        let mut changes = Changes::default();
        let Some(settings) = self.silence.settings.filter(|_| now >= self.silence.look_at) else {
            return Ok(changes);
        };
        self.silence.look_at = now.plus(LOOK.min(settings.transactions_after / 2));
        self.silence.watch(now, &mut changes);
        let db = self.parts.store.db().clone();
        let mut quiet = Vec::new();
        for (network, traffic) in &self.silence.networks {
            let is_told = self.silence.active(AlarmReason::NoMessages, network).is_some();
            let is_silent = || traffic.quiet(&self.silence.watched, now, settings.after).is_silent();
            // While it is silent nothing but a message, or the last room's end, changes that.
            if (is_told || is_silent()) && is_told != silence::is_read(&db, network).await? {
                quiet.push((network.clone(), traffic.last_at(), is_told));
            }
        }
        for (network, last_at, is_told) in quiet {
            if is_told {
                self.silence.drop_alarm(&(AlarmReason::NoMessages, network), now, &mut changes);
                continue;
            }
            let alarm = bare(AlarmReason::NoMessages, &network, last_at, now);
            let alarm = Alarm { network: Some(network), ..alarm };
            self.silence.begin(alarm, None, None, &mut changes);
        }
        self.end_alarms_of_replaced_rooms(now, &mut changes).await?;
        self.look_for_held(now, &mut changes).await?;
        let key = (AlarmReason::NoTransactions, String::new());
        let pushes = self.silence.pushes;
        match (self.silence.active(key.0, &key.1), pushes.stopped(settings.transactions_after)) {
            (Some(alarm), _) if pushes.pushed_at().is_some_and(|pushed_at| pushed_at > alarm.since) => {
                self.silence.end(&key, now, None, None, &mut changes);
            }
            (None, Some(since)) => {
                let alarm = bare(AlarmReason::NoTransactions, "", since, now);
                self.silence.begin(alarm, None, None, &mut changes);
            }
            _ => {}
        }
        Ok(changes)
    }

    /// Takes in by which ways a step's rows came.
    pub(super) fn note_arrivals(&mut self, arrivals: &[Arrival]) {
        for arrival in arrivals {
            self.silence.pushes.note(*arrival);
        }
    }

    /// Takes an event of a relayed room that was not known for a sign of life, when a bridge's ghost sent it. Whether
    /// it can be decrypted does not matter.
    pub(super) fn hear(&mut self, event: &WireEvent, outcome: &mut Outcome) {
        if self.silence.settings.is_none() {
            return;
        }
        let Some(room) = self.rooms.get(&event.room_id) else { return };
        let Some(speaker) = self.rooms.speaker(event, &Map::new(), &Encryption::default()) else { return };
        let Some(network) = speaker.context.network.clone() else { return };
        let is_ghost = network_id(speaker.context, &event.sender).is_some()
            || self.rooms.pins.is_ghost(&event.sender, &room.state);
        let is_full = self.silence.networks.len() >= MOST_NETWORKS;
        // What the owner writes is no sign of others.
        if !is_ghost || speaker.is_owners || (is_full && !self.silence.networks.contains_key(&network)) {
            return;
        }
        let receiver = speaker.bridge.and_then(|bridge| bridge.receiver.clone());
        let bot = speaker.context.bridge_bot.clone();
        let (at, hour) = (event.received_at, hour_of(event.received_at));
        let (silence, changes) = (&mut self.silence, &mut outcome.silence);
        silence.networks.entry(network.clone()).or_default().heard(hour, at);
        changes.hear(&network, hour, at);
        let is_after = |alarm: &Alarm| at > alarm.since;
        if silence.active(AlarmReason::NoMessages, &network).is_some_and(is_after) {
            silence.end(&(AlarmReason::NoMessages, network), at, None, None, changes);
        }
        // A login that brings news works, whatever the bridge said last. History says nothing.
        let is_news = at.since(event.origin_server_ts) <= BACKFILL_AGE;
        for key in silence.active_keys(AlarmReason::LoginLost) {
            let brings = |alarm: &Alarm| {
                let same = receiver.as_ref().zip(alarm.login.as_ref()).is_none_or(|(is, of)| is == of);
                alarm.bot == bot && same && event.origin_server_ts > alarm.since
            };
            if is_news && silence.alarms.get(&key).is_some_and(brings) {
                silence.end(&key, at, None, None, changes);
            }
        }
    }

    /// Reads what a bridge's bot says of its logins, in whatever room.
    pub(super) fn read_notice(
        &mut self,
        event: &WireEvent,
        content: &Map<String, Value>,
        outcome: &mut Outcome,
    ) {
        let is_bot = self.silence.settings.is_some() && self.rooms.pins.is_bot(&event.sender);
        let Some(notice) = is_bot.then(|| notice::read(content)).flatten() else { return };
        let (now, at, bot) = (self.parts.clock.now(), event.origin_server_ts, &event.sender);
        let subject = match &notice.login {
            Some(login) => format!("{bot} {login}"),
            None => bot.to_string(),
        };
        let key = (AlarmReason::LoginLost, subject);
        let known = self.silence.alarms.get(&key);
        // A notice may come twice, and late.
        if known.is_some_and(|alarm| at <= alarm.since) {
            return;
        }
        let is_same = |alarm: &Alarm| {
            alarm.is_active() && alarm.status.as_ref() == Some(&notice.status) && alarm.error == notice.error
        };
        match notice.health {
            Health::Connected => self.silence.end(&key, now, None, notice.name, &mut outcome.silence),
            Health::Lost if known.is_some_and(is_same) => {}
            Health::Lost => {
                let alarm = Alarm {
                    bot: Some(bot.clone()),
                    login: notice.login,
                    status: Some(notice.status),
                    error: notice.error,
                    ..bare(key.0, &key.1, at, now)
                };
                self.silence.begin(alarm, None, notice.name, &mut outcome.silence);
            }
        }
    }

    /// Numbers what is told of rooms, before the rooms' numbers are written.
    pub(super) fn number_tidings(&mut self, outcome: &mut Outcome) {
        for (tidings, sequence) in &mut outcome.silence.told {
            if let Some(room_id) = &tidings.alarm.room_id {
                *sequence = Some(self.rooms.next_sequence(room_id));
            }
        }
    }

    /// Writes what the detector noticed, and makes messages of what is told.
    pub(super) async fn write_silence(
        &mut self,
        tx: &mut Tx,
        outcome: &mut Outcome,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let changes = std::mem::take(&mut outcome.silence);
        if changes.is_empty() {
            return Ok(());
        }
        let hours = changes.hours.into_iter();
        let hours: Vec<Hour> =
            hours.map(|((network, hour), (count, last_at))| Hour { network, hour, count, last_at }).collect();
        silence::add_hours(tx, &hours).await?;
        let mut alarms = BTreeMap::<Key, Alarm>::new();
        for alarm in changes.dropped {
            alarms.insert((alarm.reason, alarm.subject.clone()), alarm);
        }
        let mut next = None;
        for (mut tidings, sequence) in changes.told {
            let key = (tidings.alarm.reason, tidings.alarm.subject.clone());
            if let Some(before) = alarms.get(&key) {
                // Two in one step: the second follows the first.
                tidings.alarm.message_id.clone_from(&before.message_id);
            }
            if let (None, Some(bot)) = (&tidings.alarm.network, &tidings.alarm.bot) {
                tidings.alarm.network = silence::network_of(tx, bot).await?;
            }
            let message = numbers::numbered(tx, tidings.clone(), sequence, &mut next, &self.us()).await?;
            let alarm = Alarm { message_id: message.message_id.0.clone(), ..tidings.alarm };
            outcome.messages.push(message);
            self.silence.alarms.insert(key.clone(), alarm.clone());
            alarms.insert(key, alarm);
        }
        let alarms: Vec<Alarm> = alarms.into_values().collect();
        silence::put_alarms(tx, &alarms).await?;
        if changes.prune {
            silence::prune(tx, hour_of(now) - KEPT, now.minus(REMEMBERED)).await?;
        }
        Ok(())
    }

    /// The user in whose name is told what no bridge's bot is the sender of.
    fn us(&self) -> OwnedUserId {
        let bot = self.decrypter.engines().first().map(|engine| engine.account().user_id.clone());
        bot.unwrap_or_else(|| ruma::owned_user_id!("@coucou:localhost"))
    }
}

#[cfg(test)]
mod tests;
