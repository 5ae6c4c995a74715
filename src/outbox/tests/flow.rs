//! Deliveries without an order, and messages that go together.

use std::collections::HashMap;

use super::*;
use crate::{
    model::{Batch, DeliveryId, Flow, Ordering},
    outbox::Body,
    store::{
        db::values,
        outbox::{admin, tests::put_as},
    },
};

type Requests = Vec<(String, Vec<String>)>;
type Takes = Box<dyn Fn(&[String]) -> Answer + Send + Sync>;

/// A sink that keeps the id and the messages of each request, and answers by the messages.
struct Gatherer {
    requests: Mutex<Requests>,
    takes: Takes,
    begun: Semaphore,
}

impl Gatherer {
    fn new(takes: impl Fn(&[String]) -> Answer + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { requests: Mutex::default(), takes: Box::new(takes), begun: Semaphore::new(0) })
    }

    fn requests(&self) -> Requests {
        self.requests.lock().unwrap().clone()
    }

    /// The messages of each request since `after`, written short.
    fn since(&self, after: usize) -> Vec<String> {
        self.requests().into_iter().skip(after).map(|(_, messages)| messages.join(" ")).collect()
    }

    /// The same id has always had the same messages, and no others have had it.
    fn assert_stable(&self) {
        let mut known = HashMap::new();
        for (id, messages) in self.requests() {
            assert_eq!(known.entry(id.clone()).or_insert_with(|| messages.clone()), &messages, "{id}");
        }
        let different: BTreeSet<_> = known.values().collect();
        assert_eq!(different.len(), known.len(), "the same messages under another id: {known:?}");
    }
}

#[async_trait]
impl Sink for Gatherer {
    async fn deliver(&self, request: WebhookRequest<'_>) -> Outcome {
        let read = |body: &[u8]| {
            let body: serde_json::Value = serde_json::from_slice(body).unwrap();
            body["id"].as_str().unwrap().to_owned()
        };
        let messages: Vec<String> = match request.body {
            Body::One(body) => vec![read(body)],
            Body::Batch(bodies) => bodies.iter().map(|body| read(body)).collect(),
        };
        self.requests.lock().unwrap().push((request.id.to_owned(), messages.clone()));
        self.begun.add_permits(1);
        match (self.takes)(&messages) {
            Answer::Take => Outcome::Delivered { status: Some(200) },
            Answer::Refuse(after) => Outcome::Retry { after, why: SendError::Status(500) },
            Answer::Hang => std::future::pending().await,
        }
    }
}

fn serving(
    store: &Store,
    clock: &Arc<ManualClock>,
    main: WebhookId,
    sink: &Arc<Gatherer>,
    flow: Flow,
) -> Dispatcher {
    let destination =
        Destination { schedule: schedule(), flow, ..Destination::new("main", Arc::clone(sink) as _) };
    let (clock, wake) = (Arc::clone(clock), Arc::new(Notify::new()));
    let sinks = BTreeMap::from([(main, destination)]);
    Dispatcher::new(store.clone(), clock, sinks, StdRng::seed_from_u64(1), wake, config())
}

fn batches(most: u16, wait: Duration) -> Flow {
    Flow { ordering: Ordering::Strict, batch: Some(Batch { most, wait }) }
}

const UNORDERED: Flow = Flow { ordering: Ordering::None, batch: None };

/// Queues that are still there, with what they say is pending and what is.
async fn queues(store: &Store) -> Vec<(String, i64, i64)> {
    let sql = "SELECT q.room_id, q.pending_count, (SELECT COUNT(*) FROM deliveries AS d WHERE d.state = 'pending' \
               AND d.webhook_id = q.webhook_id AND COALESCE(d.queue, d.room_id) = q.room_id) \
               FROM room_queues AS q ORDER BY q.room_id";
    store.db().fetch_all(sql, vec![]).await.unwrap()
}

async fn state(store: &Store, message: &str) -> (i64, String, String) {
    let sql = "SELECT delivery_id, state, COALESCE(last_error, '') FROM deliveries WHERE message_id = $1";
    store.db().fetch_optional(sql, values![message]).await.unwrap().unwrap()
}

#[tokio::test]
async fn without_an_order_what_fails_delays_nothing_else() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let poison = |messages: &[String]| messages.iter().any(|id| id == "a:x_1");
        let sink =
            Gatherer::new(move |messages| if poison(messages) { Answer::Refuse(None) } else { Answer::Take });
        let numbers = [("!a:x", 1), ("!a:x", 2), ("!a:x", 3), ("!b:x", 1)];
        put_as(store, &[main], &numbers, START, UNORDERED).await;
        let mut dispatcher = serving(store, &clock, main, &sink, UNORDERED);
        settle(&mut dispatcher).await;
        let told: BTreeSet<String> = sink.since(0).into_iter().collect();
        assert_eq!(told.len(), 4, "{told:?}");
        assert_eq!(state(store, "a:x_3").await.1, "delivered");
        put_as(store, &[main], &[("!a:x", 4)], clock.now(), UNORDERED).await;
        settle(&mut dispatcher).await;
        assert_eq!(state(store, "a:x_4").await.1, "delivered", "nor what comes later");
        // After 1 s, 2 s, 5 s and 10 s it is dead; nothing else is left.
        for _ in 0..30 {
            clock.advance(Duration::from_secs(1));
            settle(&mut dispatcher).await;
        }
        assert_eq!(state(store, "a:x_1").await.1, "dead");
        assert_eq!(queues(store).await, [("*".to_owned(), 0, 0)], "queues of single requests are gone");
        sink.assert_stable();

        let dead = DeliveryId(state(store, "a:x_1").await.0);
        let mut tx = store.begin().await.unwrap();
        assert_eq!(admin::resend(&mut tx, &[dead], clock.now()).await.unwrap(), 1);
        tx.commit().await.unwrap();
        let before = sink.requests().len();
        settle(&mut dispatcher).await;
        assert_eq!(sink.since(before), ["a:x_1"]);
    }
}

#[tokio::test]
async fn without_an_order_messages_of_one_room_are_under_way_at_once() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let sink = Gatherer::new(|_| Answer::Hang);
        let numbers: Vec<_> = (1..=100).map(|number| ("!a:x", number)).collect();
        put_as(store, &[main], &numbers, START, UNORDERED).await;
        let mut dispatcher = serving(store, &clock, main, &sink, UNORDERED);
        for _ in 0..5 {
            dispatcher.step().await.unwrap();
        }
        let begun = timeout(Duration::from_secs(10), sink.begun.acquire_many(64)).await;
        begun.expect("64 at once").unwrap().forget();
        assert_eq!(sink.requests().len(), 64, "and no more than allowed");
        let waiting: i64 =
            queues(store).await.iter().filter(|queue| queue.0 == "*").map(|queue| queue.1).sum();
        assert_eq!(waiting, 36);
        assert!(queues(store).await.iter().all(|(_, count, real)| count == real));

        // A process that dies leaves requests that are made again as they were.
        drop(dispatcher);
        clock.advance(Duration::from_mins(1));
        let taken = Gatherer::new(|_| Answer::Take);
        settle(&mut serving(store, &clock, main, &taken, UNORDERED)).await;
        let told: BTreeSet<String> = taken.since(0).into_iter().collect();
        assert_eq!((told.len(), taken.requests().len()), (100, 100), "each once, none lost");
    }
}

#[tokio::test]
async fn a_batch_that_failed_is_the_same_when_it_is_sent_again() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let down = Arc::new(Mutex::new(true));
        let is_down = Arc::clone(&down);
        let sink = Gatherer::new(move |messages| {
            let fails = *is_down.lock().unwrap() && messages.iter().any(|id| id == "a:x_2");
            if fails { Answer::Refuse(None) } else { Answer::Take }
        });
        let flow = batches(3, Duration::ZERO);
        let numbers = [("!a:x", 1), ("!a:x", 2), ("!b:x", 1), ("!b:x", 2), ("!b:x", 3), ("!b:x", 4)];
        put_as(store, &[main], &numbers, START, flow).await;
        let mut dispatcher = serving(store, &clock, main, &sink, flow);
        settle(&mut dispatcher).await;
        let told: BTreeSet<String> = sink.since(0).into_iter().collect();
        assert_eq!(told, ["a:x_1 a:x_2", "b:x_1 b:x_2 b:x_3", "b:x_4"].map(str::to_owned).into());
        put_as(store, &[main], &[("!a:x", 3), ("!a:x", 4)], clock.now(), flow).await;
        let before = sink.requests().len();
        clock.advance(Duration::from_secs(2));
        // Another process, to which nothing is known but what is stored.
        drop(dispatcher);
        let mut dispatcher = serving(store, &clock, main, &sink, flow);
        settle(&mut dispatcher).await;
        assert_eq!(sink.since(before), ["a:x_1 a:x_2"], "as it was, whatever has come meanwhile");
        *down.lock().unwrap() = false;
        clock.advance(Duration::from_secs(10));
        settle(&mut dispatcher).await;
        assert_eq!(sink.since(before + 1), ["a:x_1 a:x_2", "a:x_3 a:x_4"]);
        sink.assert_stable();
        assert!(queues(store).await.iter().all(|(_, count, real)| (*count, *real) == (0, 0)));
    }
}

#[tokio::test]
async fn a_message_waits_for_others_until_there_are_enough_or_time_is_up() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let sink = Gatherer::new(|_| Answer::Take);
        for ordering in [Ordering::Strict, Ordering::None] {
            let flow = Flow { ordering, ..batches(3, Duration::from_secs(2)) };
            let room = if ordering == Ordering::Strict { "!a:x" } else { "!b:x" };
            let id = |number: i64| format!("{}_{number}", &room[1..]);
            let mut dispatcher = serving(store, &clock, main, &sink, flow);
            let before = sink.requests().len();
            put_as(store, &[main], &[(room, 1)], clock.now(), flow).await;
            settle(&mut dispatcher).await;
            clock.advance(Duration::from_secs(1));
            put_as(store, &[main], &[(room, 2)], clock.now(), flow).await;
            settle(&mut dispatcher).await;
            assert_eq!(sink.requests().len(), before, "{ordering:?}");
            clock.advance(Duration::from_secs(1));
            settle(&mut dispatcher).await;
            assert_eq!(sink.since(before), [format!("{} {}", id(1), id(2))], "time is up");
            put_as(store, &[main], &[(room, 3), (room, 4)], clock.now(), flow).await;
            settle(&mut dispatcher).await;
            assert_eq!(sink.requests().len(), before + 1);
            put_as(store, &[main], &[(room, 5)], clock.now(), flow).await;
            settle(&mut dispatcher).await;
            let three = format!("{} {} {}", id(3), id(4), id(5));
            assert_eq!(sink.since(before + 1), [three], "{ordering:?}: enough");
        }
        sink.assert_stable();
    }
}

#[tokio::test]
async fn without_an_order_a_batch_is_of_any_rooms_and_fails_alone() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let down = Arc::new(Mutex::new(true));
        let is_down = Arc::clone(&down);
        let sink = Gatherer::new(move |messages| {
            let fails = *is_down.lock().unwrap() && messages.iter().any(|id| id == "b:x_1");
            if fails { Answer::Refuse(None) } else { Answer::Take }
        });
        let flow = Flow { ordering: Ordering::None, ..batches(2, Duration::ZERO) };
        let numbers = [("!a:x", 1), ("!b:x", 1), ("!c:x", 1), ("!d:x", 1), ("!e:x", 1)];
        put_as(store, &[main], &numbers, START, flow).await;
        let mut dispatcher = serving(store, &clock, main, &sink, flow);
        settle(&mut dispatcher).await;
        let told: BTreeSet<String> = sink.since(0).into_iter().collect();
        assert_eq!(told, ["a:x_1 b:x_1", "c:x_1 d:x_1", "e:x_1"].map(str::to_owned).into());
        put_as(store, &[main], &[("!b:x", 2)], clock.now(), flow).await;
        let before = sink.requests().len();
        settle(&mut dispatcher).await;
        assert_eq!(sink.since(before), ["b:x_2"]);
        *down.lock().unwrap() = false;
        clock.advance(Duration::from_secs(2));
        settle(&mut dispatcher).await;
        assert_eq!(sink.since(before + 1), ["a:x_1 b:x_1"]);
        sink.assert_stable();
        assert_eq!(queues(store).await, [("*".to_owned(), 0, 0)]);
    }
}

#[tokio::test]
async fn a_batch_that_is_given_up_is_dead_as_a_whole_and_its_room_goes_on() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let sink = Gatherer::new(|messages| {
            if messages.len() > 1 && messages[0] == "a:x_1" { Answer::Refuse(None) } else { Answer::Take }
        });
        let flow = batches(2, Duration::ZERO);
        put_as(store, &[main], &[("!a:x", 1), ("!a:x", 2), ("!a:x", 3)], START, flow).await;
        let mut dispatcher = serving(store, &clock, main, &sink, flow);
        for _ in 0..30 {
            settle(&mut dispatcher).await;
            clock.advance(Duration::from_secs(1));
        }
        for (message, expected) in [("a:x_1", "dead"), ("a:x_2", "dead"), ("a:x_3", "delivered")] {
            assert_eq!(state(store, message).await.1, expected, "{message}");
        }
        let before = sink.requests().len();
        let mut tx = store.begin().await.unwrap();
        let one = DeliveryId(state(store, "a:x_1").await.0);
        admin::resend(&mut tx, &[one], clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        settle(&mut dispatcher).await;
        assert_eq!(sink.since(before), ["a:x_1"]);
        sink.assert_stable();
    }
}

#[tokio::test]
async fn a_message_that_is_gone_leaves_its_batch() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let main = webhook(store, "main").await;
        let sink = Gatherer::new(|_| Answer::Take);
        let flow = batches(5, Duration::ZERO);
        put_as(store, &[main], &[("!a:x", 1), ("!a:x", 2), ("!a:x", 3), ("!b:x", 1)], START, flow).await;
        let mut tx = store.begin().await.unwrap();
        tx.execute("DELETE FROM messages WHERE message_id IN ('a:x_2', 'b:x_1')", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        settle(&mut serving(store, &clock, main, &sink, flow)).await;
        assert_eq!(sink.since(0), ["a:x_1 a:x_3"]);
        for gone in ["a:x_2", "b:x_1"] {
            let (_, state, error) = state(store, gone).await;
            assert_eq!((state.as_str(), error.as_str()), ("dead", "missing"));
        }
        assert!(queues(store).await.iter().all(|(_, count, real)| (*count, *real) == (0, 0)));
    }
}
