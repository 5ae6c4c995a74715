//! What becomes of deliveries while a webhook, or a room of it, fails: by a clock held in the hand.

use super::*;
use crate::store::webhooks as table;

/// A webhook that is up or down as a test wants, with rooms that never succeed.
struct Moody {
    up: Arc<std::sync::atomic::AtomicBool>,
    why: fn() -> (Option<Duration>, SendError),
    poison: Option<&'static str>,
    calls: Mutex<Vec<(String, bool)>>,
    /// The most calls that were under way at once while it was down.
    at_once: Mutex<(usize, usize)>,
}

impl Moody {
    fn new(why: fn() -> (Option<Duration>, SendError)) -> Arc<Self> {
        Arc::new(Self {
            up: Arc::default(),
            why,
            poison: None,
            calls: Mutex::default(),
            at_once: Mutex::default(),
        })
    }

    fn set(&self, up: bool) {
        self.up.store(up, std::sync::atomic::Ordering::SeqCst);
    }

    fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    fn taken(&self) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|(_, taken)| *taken).map(|(id, _)| id.clone()).collect()
    }
}

#[async_trait]
impl Sink for Moody {
    async fn deliver(&self, request: WebhookRequest<'_>) -> Outcome {
        let up = self.up.load(std::sync::atomic::Ordering::SeqCst);
        let taken = up && self.poison.is_none_or(|poison| !request.id.starts_with(poison));
        self.calls.lock().unwrap().push((request.id.to_owned(), taken));
        {
            let mut at_once = self.at_once.lock().unwrap();
            at_once.0 += 1;
            at_once.1 = at_once.1.max(at_once.0);
        }
        tokio::task::yield_now().await;
        self.at_once.lock().unwrap().0 -= 1;
        if taken {
            return Outcome::Delivered { status: Some(200) };
        }
        let (after, why) = (self.why)();
        Outcome::Retry { after, why }
    }
}

fn refused() -> (Option<Duration>, SendError) {
    (None, SendError::Status(500))
}

fn dispatch(store: &Store, clock: &Arc<ManualClock>, id: WebhookId, sink: &Arc<Moody>) -> Dispatcher {
    dispatch_all(store, clock, &[(id, sink)])
}

fn dispatch_all(store: &Store, clock: &Arc<ManualClock>, sinks: &[(WebhookId, &Arc<Moody>)]) -> Dispatcher {
    let destinations =
        sinks.iter().map(|(id, sink)| (*id, Destination::new("main", Arc::clone(sink) as _))).collect();
    let (clock, wake) = (Arc::clone(clock), Arc::new(Notify::new()));
    Dispatcher::new(store.clone(), clock, destinations, StdRng::seed_from_u64(1), wake, config())
}

async fn pass(dispatcher: &mut Dispatcher, clock: &ManualClock, seconds: u64) {
    for _ in 0..seconds {
        clock.advance(Duration::from_secs(1));
        settle(dispatcher).await;
    }
}

fn rooms(count: usize, sequence: i64) -> Vec<(String, i64)> {
    (0..count).map(|room| (format!("!r{room}:x"), sequence)).collect()
}

async fn put_all(store: &Store, id: WebhookId, numbers: &[(String, i64)], now: crate::clock::Timestamp) {
    let numbers: Vec<_> = numbers.iter().map(|(room, sequence)| (room.as_str(), *sequence)).collect();
    put(store, &[id], &numbers, now).await;
}

async fn states(store: &Store) -> Vec<(String, i64)> {
    let sql = "SELECT state, COUNT(*) FROM deliveries GROUP BY state ORDER BY state";
    store.db().fetch_all(sql, vec![]).await.unwrap()
}

#[tokio::test]
async fn after_an_hour_of_outage_every_room_goes_on_at_once() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let sink = Moody::new(refused);
        for sequence in 1..=3 {
            put_all(store, main, &rooms(40, sequence), START).await;
        }
        let mut one = dispatch(store, &clock, main, &sink);
        settle(&mut one).await;
        assert_eq!(sink.count(), 40, "each room once");
        *sink.at_once.lock().unwrap() = (0, 0);
        pass(&mut one, &clock, 1800).await;
        // A restart in the middle of it knows nothing, and looks.
        let mut two = dispatch(store, &clock, main, &sink);
        drop(one);
        pass(&mut two, &clock, 1800).await;
        let tried = sink.count() - 40;
        assert!((60..200).contains(&tried), "about once a minute, not 40 rooms again and again: {tried}");
        sink.set(true);
        pass(&mut two, &clock, 61).await;
        let taken = sink.taken();
        assert_eq!(taken.len(), 120, "all are sent within a minute of the recovery");
        for room in 0..40 {
            let prefix = format!("r{room}:");
            let ids: Vec<_> = taken.iter().filter(|id| id.starts_with(&prefix)).cloned().collect();
            assert_eq!(ids, numbered(&format!("r{room}"), 1..=3));
        }
        assert_eq!(states(store).await, [("delivered".to_owned(), 120)]);
    }
}

#[tokio::test]
async fn a_message_that_is_never_taken_ends_as_a_dead_letter_and_its_room_goes_on() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let sink = Arc::new(Moody { poison: Some("p:x_1"), ..Arc::into_inner(Moody::new(refused)).unwrap() });
        sink.set(true);
        put(store, &[main], &[("!p:x", 1), ("!p:x", 2), ("!a:x", 1)], START).await;
        let mut dispatcher = dispatch(store, &clock, main, &sink);
        settle(&mut dispatcher).await;
        assert_eq!(sink.taken(), ["a:x_1"]);
        // The standard's schedule takes 75 hours, and a quarter more at most.
        let mut passed = Duration::ZERO;
        let step = Duration::from_mins(30);
        while passed < Duration::from_hours(74) {
            clock.advance(step);
            passed += step;
            settle(&mut dispatcher).await;
        }
        assert_eq!(states(store).await, [("delivered".to_owned(), 1), ("pending".to_owned(), 2)]);
        while passed < Duration::from_hours(100) {
            clock.advance(step);
            passed += step;
            settle(&mut dispatcher).await;
        }
        assert_eq!(sink.taken(), ["a:x_1", "p:x_2"]);
        assert_eq!(states(store).await, [("dead".to_owned(), 1), ("delivered".to_owned(), 2)]);
        let dead: Vec<(String, String, i64, i64)> = store
            .db()
            .fetch_all(
                "SELECT message_id, last_error, last_status, finished_at FROM deliveries WHERE state = 'dead'",
                vec![],
            )
            .await
            .unwrap();
        let (id, error, status, at) = dead[0].clone();
        assert_eq!((id.as_str(), error.as_str(), status), ("p:x_1", "status", 500));
        assert!(clock.now().since(crate::clock::Timestamp(at)) < Duration::from_hours(27));
        assert!(counts(store).await.iter().all(|(_, count, real)| (*count, *real) == (0, 0)));
    }
}

#[tokio::test]
async fn a_room_that_fails_is_not_hammered_while_others_succeed() {
    let test = testing::sqlite().await;
    let (store, clock) = (&test.store, ManualClock::at(START));
    let main = webhook(store, "main").await;
    let sink = Arc::new(Moody { poison: Some("p:"), ..Arc::into_inner(Moody::new(refused)).unwrap() });
    sink.set(true);
    put(store, &[main], &[("!p:x", 1)], START).await;
    let mut dispatcher = dispatch(store, &clock, main, &sink);
    settle(&mut dispatcher).await;
    for sequence in 1..=300 {
        put(store, &[main], &[("!a:x", sequence)], clock.now()).await;
        pass(&mut dispatcher, &clock, 1).await;
    }
    assert_eq!(sink.taken().len(), 300);
    let poison = sink.count() - 300;
    assert!((2..=4).contains(&poison), "as its schedule says: {poison}");
}

#[tokio::test]
async fn a_webhook_that_is_gone_keeps_its_queue_until_it_is_enabled() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let (main, audit) = (webhook(store, "main").await, webhook(store, "audit").await);
        let (sink, other) = (Moody::new(|| (None, SendError::Gone)), Moody::new(refused));
        other.set(true);
        put(store, &[main, audit], &[("!a:x", 1), ("!a:x", 2), ("!b:x", 1)], START).await;
        let mut one = dispatch_all(store, &clock, &[(main, &sink), (audit, &other)]);
        settle(&mut one).await;
        let calls = sink.count();
        assert!((1..=2).contains(&calls), "what was in flight");
        put(store, &[main, audit], &[("!b:x", 2)], clock.now()).await;
        pass(&mut one, &clock, 300).await;
        let mut two = dispatch_all(store, &clock, &[(main, &sink), (audit, &other)]);
        pass(&mut two, &clock, 60).await;
        assert_eq!(sink.count(), calls, "nothing more, also after a restart");
        assert_eq!(other.taken().len(), 4, "another webhook is not concerned");
        let disabled = table::disabled(store.db()).await.unwrap();
        assert_eq!(
            (disabled.len(), disabled[0].name.as_str(), disabled[0].reason.as_str()),
            (1, "main", "gone")
        );

        sink.set(true);
        let mut tx = store.begin().await.unwrap();
        assert!(table::enable(&mut tx, main).await.unwrap());
        tx.commit().await.unwrap();
        pass(&mut two, &clock, 1).await;
        let mut taken = sink.taken();
        taken.sort();
        assert_eq!(taken, ["a:x_1", "a:x_2", "b:x_1", "b:x_2"]);
    }
}

#[tokio::test]
async fn a_webhook_with_another_address_is_no_longer_disabled() {
    for test in testing::both().await {
        let store = &test.store;
        let main = webhook(store, "main").await;
        let at_address = async |url: &str| {
            let mut tx = store.begin().await.unwrap();
            let enabled = table::at_address(&mut tx, main, url).await.unwrap();
            tx.commit().await.unwrap();
            enabled
        };
        assert!(!at_address("https://one.example.org").await);
        let mut tx = store.begin().await.unwrap();
        assert!(table::disable(&mut tx, main, "gone", START).await.unwrap());
        assert!(!table::disable(&mut tx, main, "gone", START).await.unwrap());
        tx.commit().await.unwrap();
        assert!(!at_address("https://one.example.org").await, "a restart alone changes nothing");
        assert_eq!(table::disabled(store.db()).await.unwrap().len(), 1);
        assert!(at_address("https://two.example.org").await);
        assert_eq!(table::disabled(store.db()).await.unwrap(), []);

        let mut tx = store.begin().await.unwrap();
        assert!(table::disable(&mut tx, main, "paused", START).await.unwrap());
        tx.commit().await.unwrap();
        assert!(!at_address("https://three.example.org").await, "what somebody has paused stays so");
        assert_eq!(table::disabled(store.db()).await.unwrap()[0].reason, "paused");
    }
}

#[tokio::test]
async fn the_queue_of_a_disabled_webhook_is_bounded_and_nothing_of_it_is_forgotten() {
    for (test, reason) in testing::both().await.into_iter().zip(["gone", "paused"]) {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let sink = Moody::new(|| (None, SendError::Gone));
        for sequence in 1..=5 {
            put_all(store, main, &rooms(4, sequence), START).await;
        }
        let mut tx = store.begin().await.unwrap();
        table::disable(&mut tx, main, reason, START).await.unwrap();
        tx.commit().await.unwrap();
        let destination = Destination { max_queue: 12, ..Destination::new("main", Arc::clone(&sink) as _) };
        let mut dispatcher = Dispatcher::new(
            store.clone(),
            Arc::clone(&clock) as SharedClock,
            BTreeMap::from([(main, destination)]),
            StdRng::seed_from_u64(1),
            Arc::new(Notify::new()),
            config(),
        );
        settle(&mut dispatcher).await;
        assert_eq!(states(store).await, [("dead".to_owned(), 8), ("pending".to_owned(), 12)]);
        assert!(counts(store).await.iter().all(|(_, count, real)| (*count, *real) == (3, 3)));
        let sql =
            "SELECT DISTINCT sequence FROM deliveries WHERE last_error = 'queue_full' ORDER BY sequence";
        let dead: Vec<(i64,)> = store.db().fetch_all(sql, vec![]).await.unwrap();
        assert_eq!(dead, [(1,), (2,)], "the oldest");
        assert_eq!(sink.count(), 0);
    }
}

#[tokio::test]
async fn a_receiver_that_asks_for_less_is_asked_by_one_room_and_not_before() {
    let test = testing::sqlite().await;
    let (store, clock) = (&test.store, ManualClock::at(START));
    let (main, audit) = (webhook(store, "main").await, webhook(store, "audit").await);
    let sink = Moody::new(|| (Some(Duration::from_secs(100)), SendError::Status(429)));
    let other = Moody::new(refused);
    other.set(true);
    put(store, &[main, audit], &[("!a:x", 1), ("!b:x", 1)], START).await;
    let mut dispatcher = dispatch_all(store, &clock, &[(main, &sink), (audit, &other)]);
    settle(&mut dispatcher).await;
    let first = sink.count();
    for sequence in 2..=99 {
        put(store, &[main, audit], &[("!c:x", sequence)], clock.now()).await;
        pass(&mut dispatcher, &clock, 1).await;
    }
    assert_eq!(sink.count(), first, "no room before the time it asked for");
    assert_eq!(other.taken().len(), 100, "another webhook is not concerned");
    sink.set(true);
    pass(&mut dispatcher, &clock, 5).await;
    assert_eq!(sink.taken().len(), 100);
}

type Row = (String, i64, Option<i64>, Option<String>, Option<i64>, Option<i64>);

#[tokio::test]
async fn an_attempt_leaves_its_status_reason_and_duration() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let sink = Moody::new(|| (None, SendError::Timeout));
        put(store, &[main], &[("!a:x", 1)], START).await;
        let mut dispatcher = dispatch(store, &clock, main, &sink);
        settle(&mut dispatcher).await;
        let row = async || {
            let sql = "SELECT state, attempts, last_status, last_error, last_duration_ms, last_attempt_at \
                       FROM deliveries";
            let rows: Vec<Row> = store.db().fetch_all(sql, vec![]).await.unwrap();
            rows[0].clone()
        };
        let (state, attempts, status, error, duration, at) = row().await;
        assert_eq!(
            (state.as_str(), attempts, status, error.as_deref()),
            ("pending", 1, None, Some("timeout"))
        );
        assert!(duration.is_some_and(|ms| ms < 1000));
        assert_eq!(at, Some(START.0));
        sink.set(true);
        pass(&mut dispatcher, &clock, 10).await;
        let (state, attempts, status, error, _, _) = row().await;
        assert_eq!((state.as_str(), attempts, status, error), ("delivered", 2, Some(200), None));
    }
}
