//! The dispatcher against sinks that do what a test tells them to, on both databases.

mod database;
mod flow;
mod outages;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use rand::{SeedableRng, rngs::StdRng};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use url::Url;

use super::{
    Body, Config, Destination, Dispatcher, Outcome, Progress, SendError, Signers, Sink, WebhookRequest,
    WebhookSink,
};
use crate::{
    clock::{Clock, ManualClock, SharedClock, SystemClock},
    lifecycle::Lifecycle,
    model::{Schedule, WebhookId},
    store::{
        Location, Store,
        outbox::tests::{counts, put, webhook},
    },
    testing::{self, START},
};

/// What a test lets the sink answer to one call.
#[derive(Clone, Copy)]
enum Answer {
    Take,
    Refuse(Option<Duration>),
    Hang,
}

type Plan = Box<dyn Fn(&str, usize) -> Answer + Send + Sync>;

/// A sink that keeps what it gets and answers by id and number of the call for that id, from 1.
struct Recorder {
    calls: Mutex<Vec<(String, Vec<u8>)>>,
    plan: Plan,
    /// Calls begun, for tests that wait for one.
    begun: Semaphore,
}

impl Recorder {
    fn new(plan: impl Fn(&str, usize) -> Answer + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { calls: Mutex::default(), plan: Box::new(plan), begun: Semaphore::new(0) })
    }

    fn ids(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|(id, _)| id.clone()).collect()
    }

    /// The ids of one room.
    fn room(&self, room: &str) -> Vec<String> {
        self.ids().into_iter().filter(|id| id.starts_with(room)).collect()
    }

    /// The different bodies that came under an id.
    fn bodies(&self, id: &str) -> BTreeSet<Vec<u8>> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| call.0 == id).map(|call| call.1.clone()).collect()
    }

    /// Waits until `count` more calls have begun.
    async fn begun(&self, count: u32) {
        let begun = timeout(Duration::from_secs(10), self.begun.acquire_many(count)).await;
        begun.expect("a call in time").unwrap().forget();
    }
}

#[async_trait]
impl Sink for Recorder {
    async fn deliver(&self, request: WebhookRequest<'_>) -> Outcome {
        let number = {
            let mut calls = self.calls.lock().unwrap();
            let Body::One(body) = request.body else { panic!("one message") };
            calls.push((request.id.to_owned(), body.to_vec()));
            calls.iter().filter(|(id, _)| id == request.id).count()
        };
        self.begun.add_permits(1);
        match (self.plan)(request.id, number) {
            Answer::Take => Outcome::Delivered { status: Some(200) },
            Answer::Refuse(after) => Outcome::Retry { after, why: SendError::Status(500) },
            Answer::Hang => std::future::pending().await,
        }
    }
}

fn dispatcher(
    store: &Store,
    clock: &Arc<ManualClock>,
    sinks: &[(WebhookId, &Arc<Recorder>)],
    config: Config,
) -> Dispatcher {
    let destination = |sink: &Arc<Recorder>| Destination {
        schedule: schedule(),
        ..Destination::new("main", Arc::clone(sink) as _)
    };
    let sinks: BTreeMap<_, _> = sinks.iter().map(|(id, sink)| (*id, destination(sink))).collect();
    let (clock, wake) = (Arc::clone(clock), Arc::new(Notify::new()));
    Dispatcher::new(store.clone(), clock, sinks, StdRng::seed_from_u64(1), wake, config)
}

/// A schedule that tests can wait for.
fn schedule() -> Schedule {
    Schedule::new([1, 2, 5, 10].map(Duration::from_secs).to_vec())
}

fn config() -> Config {
    Config { poll: Duration::from_millis(20), ..Config::default() }
}

/// Steps until nothing is due.
async fn settle(dispatcher: &mut Dispatcher) {
    for _ in 0..1000 {
        if dispatcher.step().await.unwrap() == Progress::Idle {
            return;
        }
    }
    panic!("the dispatcher does not come to rest");
}

fn numbered(room: &str, numbers: impl IntoIterator<Item = i64>) -> Vec<String> {
    numbers.into_iter().map(|number| format!("{room}:x_{number}")).collect()
}

#[tokio::test]
async fn every_message_goes_to_every_webhook_in_order() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let (main, audit) = (webhook(store, "main").await, webhook(store, "audit").await);
        let left = webhook(store, "no longer set").await;
        let (one, two) = (Recorder::new(|_, _| Answer::Take), Recorder::new(|_, _| Answer::Take));
        for sequence in 1..=40 {
            let rooms = [("!a:x", sequence), ("!b:x", sequence)];
            put(store, &[main, audit, left], &rooms, START).await;
        }
        let config = Config { per_run: 7, ..config() };
        settle(&mut dispatcher(store, &clock, &[(main, &one), (audit, &two)], config)).await;
        for sink in [one, two] {
            assert_eq!(sink.room("a"), numbered("a", 1..=40));
            assert_eq!(sink.room("b"), numbered("b", 1..=40));
        }
        let pending: i64 = counts(store).await.iter().map(|(_, count, _)| count).sum();
        assert_eq!(pending, 80, "deliveries of a webhook that is not set wait");
    }
}

#[tokio::test]
async fn a_room_that_fails_is_retried_in_order_and_delays_no_other() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        // The second message of room a fails three times.
        let sink =
            Recorder::new(
                |id, number| {
                    if id == "a:x_2" && number <= 3 { Answer::Refuse(None) } else { Answer::Take }
                },
            );
        put(store, &[main], &[("!a:x", 1), ("!a:x", 2), ("!a:x", 3), ("!b:x", 1)], START).await;
        let mut dispatcher = dispatcher(store, &clock, &[(main, &sink)], config());
        settle(&mut dispatcher).await;
        assert_eq!(sink.room("a"), numbered("a", [1, 2]));
        assert_eq!(sink.room("b"), numbered("b", [1]));

        put(store, &[main], &[("!a:x", 4), ("!b:x", 2)], clock.now()).await;
        settle(&mut dispatcher).await;
        assert_eq!(sink.room("a"), numbered("a", [1, 2]));
        assert_eq!(sink.room("b"), numbered("b", [1, 2]));

        // 1 s, 2 s and 5 s, and up to a quarter more.
        for (early, late, calls, other) in [(999, 1250, 3, 3), (1999, 2500, 4, 4), (4999, 6250, 7, 5)] {
            let before = sink.room("a").len();
            clock.advance(Duration::from_millis(early));
            settle(&mut dispatcher).await;
            assert_eq!(sink.room("a").len(), before);
            clock.advance(Duration::from_millis(late - early));
            settle(&mut dispatcher).await;
            assert_eq!(sink.room("a").len(), calls);
            // While nothing else succeeds it would be tried between, to see whether the webhook is back.
            put(store, &[main], &[("!b:x", other)], clock.now()).await;
            settle(&mut dispatcher).await;
        }
        assert_eq!(sink.room("a"), numbered("a", [1, 2, 2, 2, 2, 3, 4]));
        assert_eq!(sink.bodies("a:x_2").len(), 1, "every attempt has the same body");
        let rows: Vec<(i64, i64, String)> = store
            .db()
            .fetch_all(
                "SELECT attempts, last_status, state FROM deliveries WHERE message_id = 'a:x_2'",
                vec![],
            )
            .await
            .unwrap();
        assert_eq!(rows, [(4, 200, "delivered".to_owned())]);
        assert!(counts(store).await.iter().all(|(_, count, real)| (*count, *real) == (0, 0)));
    }
}

#[tokio::test]
async fn a_retry_after_is_respected() {
    let test = testing::sqlite().await;
    let (store, clock) = (&test.store, ManualClock::at(START));
    let main = webhook(store, "main").await;
    let sink = Recorder::new(|_, number| match number {
        1 => Answer::Refuse(Some(Duration::from_mins(10))),
        _ => Answer::Take,
    });
    put(store, &[main], &[("!a:x", 1)], START).await;
    let mut dispatcher = dispatcher(store, &clock, &[(main, &sink)], config());
    settle(&mut dispatcher).await;
    clock.advance(Duration::from_secs(599));
    settle(&mut dispatcher).await;
    assert_eq!(sink.ids().len(), 1);
    clock.advance(Duration::from_secs(152));
    settle(&mut dispatcher).await;
    assert_eq!(sink.ids().len(), 2);
}

#[tokio::test]
async fn a_room_and_a_webhook_that_hang_delay_no_other() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let (main, stuck) = (webhook(store, "main").await, webhook(store, "stuck").await);
        let sink = Recorder::new(|id, _| if id.starts_with("hang") { Answer::Hang } else { Answer::Take });
        let dead = Recorder::new(|_, _| Answer::Hang);
        put(store, &[main, stuck], &[("!hang:x", 1), ("!a:x", 1), ("!b:x", 1), ("!c:x", 1)], START).await;
        let config = Config { max_in_flight: 2, ..config() };
        let mut dispatcher = dispatcher(store, &clock, &[(main, &sink), (stuck, &dead)], config);
        for sequence in 2..=20 {
            put(store, &[main], &[("!a:x", sequence), ("!b:x", sequence)], clock.now()).await;
            dispatcher.step().await.unwrap();
        }
        for _ in 0..40 {
            dispatcher.step().await.unwrap();
        }
        assert_eq!(sink.room("hang"), numbered("hang", [1]));
        assert_eq!(sink.room("a"), numbered("a", 1..=20));
        assert_eq!(sink.room("b"), numbered("b", 1..=20));
        assert_eq!(dead.ids().len(), 2, "no more rooms in flight than allowed");
    }
}

#[tokio::test]
async fn an_attempt_that_never_ends_is_given_up() {
    let test = testing::sqlite().await;
    let (store, clock) = (&test.store, ManualClock::at(START));
    let main = webhook(store, "main").await;
    let sink = Recorder::new(|_, number| if number == 1 { Answer::Hang } else { Answer::Take });
    put(store, &[main], &[("!a:x", 1)], START).await;
    let config = Config { attempt_limit: Duration::from_millis(30), ..config() };
    let mut dispatcher = dispatcher(store, &clock, &[(main, &sink)], config);
    settle(&mut dispatcher).await;
    clock.advance(Duration::from_secs(2));
    settle(&mut dispatcher).await;
    assert_eq!(sink.ids(), numbered("a", [1, 1]));
}

/// Two instances on one database, each message stored while they work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_dispatchers_lose_nothing_and_keep_the_order() {
    const ROOMS: [&str; 6] = ["!a:x", "!b:x", "!c:x", "!d:x", "!e:x", "!f:x"];
    for test in testing::both().await {
        let clock = ManualClock::at(START);
        let main = webhook(&test.store, "main").await;
        // One in seven calls fails the first time; the manual clock is moved on below.
        let sink = Recorder::new(|id, number| {
            let refuse = number == 1 && id.bytes().map(usize::from).sum::<usize>().is_multiple_of(7);
            if refuse { Answer::Refuse(None) } else { Answer::Take }
        });
        let (lifecycle, stop) = (Lifecycle::default(), CancellationToken::new());
        for _ in 0..2 {
            let store = testing::open(&test.location, "test pickle key");
            store.prepare(START).await.unwrap();
            // The clock runs a hundred times too fast here.
            let lease = Duration::from_mins(10);
            let config = Config { per_run: 3, max_in_flight: 4, lease, ..config() };
            let dispatcher = dispatcher(&store, &clock, &[(main, &sink)], config);
            lifecycle.spawn(dispatcher.run(stop.clone()));
        }
        for sequence in 1..=30 {
            let numbers = ROOMS.map(|room| (room, sequence));
            put(&test.store, &[main], &numbers, clock.now()).await;
        }
        let finished = timeout(Duration::from_secs(30), async {
            while counts(&test.store).await.iter().any(|(_, _, real)| *real > 0) {
                clock.advance(Duration::from_secs(1));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        finished.await.expect("all is delivered in time");
        stop.cancel();
        assert!(lifecycle.stopped(Duration::from_secs(10)).await);
        for room in ROOMS {
            let mut ids = sink.room(&room[1..2]);
            // A failed attempt is followed by the same message.
            ids.dedup();
            assert_eq!(ids, numbered(&room[1..2], 1..=30));
        }
        assert!(counts(&test.store).await.iter().all(|(_, count, real)| (*count, *real) == (0, 0)));
    }
}

#[tokio::test]
async fn what_a_killed_dispatcher_had_in_flight_is_sent_again_after_its_lease() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let sink = Recorder::new(
            |id, number| if id == "a:x_2" && number == 1 { Answer::Hang } else { Answer::Take },
        );
        put(store, &[main], &[("!a:x", 1), ("!a:x", 2)], START).await;
        let killed = dispatcher(store, &clock, &[(main, &sink)], config());
        let running =
            AbortOnDropHandle::new(Lifecycle::default().spawn(killed.run(CancellationToken::new())));
        sink.begun(2).await;
        drop(running);

        let mut next = dispatcher(store, &clock, &[(main, &sink)], config());
        settle(&mut next).await;
        assert_eq!(sink.ids(), numbered("a", [1, 2]));
        clock.advance(Duration::from_secs(12));
        settle(&mut next).await;
        assert_eq!(sink.ids(), numbered("a", [1, 2, 1, 2]), "not recorded, so sent again");
        let calls = sink.calls.lock().unwrap();
        assert_eq!((&calls[0], &calls[1]), (&calls[2], &calls[3]));
    }
}

#[tokio::test]
async fn an_attempt_that_outlasts_the_lease_keeps_its_room() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let sink = Recorder::new(|_, _| Answer::Hang);
        put(store, &[main], &[("!a:x", 1), ("!b:x", 1)], START).await;
        let mut busy = dispatcher(store, &clock, &[(main, &sink)], config());
        let mut other = dispatcher(store, &clock, &[(main, &sink)], config());
        busy.step().await.unwrap();
        sink.begun(2).await;
        for _ in 0..10 {
            clock.advance(Duration::from_secs(4));
            busy.step().await.unwrap();
            assert_eq!(other.step().await.unwrap(), Progress::Idle);
        }
        assert_eq!(sink.ids().len(), 2, "one attempt at a time in a room");
        // Without its renewals the rooms move on.
        clock.advance(Duration::from_secs(12));
        other.step().await.unwrap();
        sink.begun(2).await;
        // And the first dispatcher, once it is back, breaks off what another has now.
        busy.step().await.unwrap();
        for _ in 0..10 {
            busy.step().await.unwrap();
        }
        let rows = "SELECT lease_token FROM room_queues ORDER BY room_id";
        let tokens: Vec<(i64,)> = store.db().fetch_all(rows, vec![]).await.unwrap();
        assert_eq!(tokens, [(2,), (2,)], "what came late is not recorded, and nothing claimed twice");
        assert_eq!(sink.ids().len(), 4);
    }
}

#[tokio::test]
async fn a_claim_that_cannot_be_renewed_ends_its_attempt() {
    let test = testing::sqlite().await;
    let (store, clock) = (&test.store, ManualClock::at(START));
    let main = webhook(store, "main").await;
    let sink = Recorder::new(|_, number| if number == 1 { Answer::Hang } else { Answer::Take });
    put(store, &[main], &[("!a:x", 1)], START).await;
    let config = Config { lease: Duration::from_millis(40), ..config() };
    let mut dispatcher = dispatcher(store, &clock, &[(main, &sink)], config);
    // The clock stands still, so nothing is renewed, while the machine's time goes on.
    let sent = timeout(Duration::from_secs(10), async {
        while sink.ids().len() < 2 {
            dispatcher.step().await.unwrap();
        }
    });
    sent.await.expect("the attempt that hangs is broken off");
}

#[tokio::test]
async fn a_stop_ends_after_the_attempt_in_flight_and_gives_the_queue_back() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let stop = CancellationToken::new();
        let stopper = stop.clone();
        let sink = Recorder::new(move |id, _| {
            if id == "a:x_2" {
                stopper.cancel();
            }
            Answer::Take
        });
        put(store, &[main], &[("!a:x", 1), ("!a:x", 2), ("!a:x", 3)], START).await;
        let run = dispatcher(store, &clock, &[(main, &sink)], config()).run(stop);
        timeout(Duration::from_secs(10), run).await.expect("the dispatcher stops");
        assert_eq!(sink.ids(), numbered("a", [1, 2]));
        assert_eq!(counts(store).await, [("!a:x".to_owned(), 1, 1)]);
        settle(&mut dispatcher(store, &clock, &[(main, &sink)], config())).await;
        assert_eq!(sink.ids(), numbered("a", [1, 2, 3]), "sent on at once, without waiting for a lease");
    }
}

#[tokio::test]
async fn a_receiver_gets_verifiable_calls_and_a_failed_one_again() {
    use axum::http::{HeaderMap, StatusCode};
    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    // The verifying library reads the real time.
    let clock = ManualClock::at(SystemClock.now());
    let verified = Arc::new(Mutex::new(Vec::new()));
    let received = Arc::clone(&verified);
    let receive = async move |headers: HeaderMap, body: String| {
        standardwebhooks::Webhook::new(SECRET).unwrap().verify(body.as_bytes(), &headers).unwrap();
        let mut received = received.lock().unwrap();
        received.push((headers["webhook-id"].to_str().unwrap().to_owned(), body));
        if received.len() == 2 { StatusCode::BAD_GATEWAY } else { StatusCode::ACCEPTED }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}/hook", listener.local_addr().unwrap())).unwrap();
    let router = axum::Router::new().fallback(receive);
    let _server =
        AbortOnDropHandle::new(Lifecycle::default().spawn(async { axum::serve(listener, router).await }));

    let test = testing::sqlite().await;
    let main = webhook(&test.store, "main").await;
    put(&test.store, &[main], &[("!a:x", 1), ("!a:x", 2), ("!a:x", 3)], clock.now()).await;
    let signers = Signers::new("main", &[secrecy::SecretString::from(SECRET).into()]).unwrap();
    let sink = WebhookSink::new(super::client().unwrap(), "main", &url, signers).unwrap();
    let mut dispatcher = Dispatcher::new(
        test.store.clone(),
        Arc::clone(&clock) as SharedClock,
        BTreeMap::from([(main, Destination::new("main", Arc::new(sink)))]),
        StdRng::seed_from_u64(1),
        Arc::new(Notify::new()),
        config(),
    );
    settle(&mut dispatcher).await;
    clock.advance(Duration::from_secs(2));
    settle(&mut dispatcher).await;
    let verified = verified.lock().unwrap();
    let ids: Vec<_> = verified.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(ids, numbered("a", [1, 2, 2, 3]));
    assert_eq!(verified[1], verified[2]);
    assert_eq!(verified[3].1, "{\"n\":3,\"id\":\"a:x_3\"}");
}

/// A sink that takes a message once it is told to.
struct Gate {
    release: Arc<Notify>,
    begun: Arc<Notify>,
}

#[async_trait]
impl Sink for Gate {
    async fn deliver(&self, _: WebhookRequest<'_>) -> Outcome {
        self.begun.notify_one();
        self.release.notified().await;
        Outcome::Delivered { status: Some(200) }
    }
}
