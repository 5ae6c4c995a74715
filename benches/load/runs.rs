//! The measurements, one function each.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{
    baseline::{self, Beside},
    fill,
    measure::{Spread, cpu_seconds, memory},
    report::{Figure, Report},
    scene::{BATCH, Backend, Scene, Traffic},
};
use crate::Options;

/// Raw decryptions beside each load: what a core does changes from one minute to the next on a shared machine.
const RAW: usize = 5_000;

/// Processor time of a raw decryption, in seconds.
struct Raw {
    /// Just before and just after a load, while nothing else is done.
    alone: f64,
    /// During the load, on the same busy cores.
    beside: f64,
}

impl Raw {
    /// Measures it around and during a load.
    async fn around<T>(load: impl AsyncFnOnce() -> T) -> (Self, T) {
        let before = baseline::run(RAW);
        let beside = Beside::begin();
        let done = load().await;
        let beside = beside.end();
        (Self { alone: f64::midpoint(before, baseline::run(RAW)), beside }, done)
    }

    /// What a message cost, beside what its decryption alone would have.
    fn figures(&self, cpu_per_message: f64) -> [Figure; 4] {
        [
            Figure::new("raw decryptions/s of one core, alone", 1.0 / self.alone),
            Figure::new("raw decryptions/s of one core, during it", 1.0 / self.beside),
            Figure::new("CPU of coucou, × raw decryption alone", cpu_per_message / self.alone),
            Figure::new("CPU of coucou, × raw decryption during it", cpu_per_message / self.beside),
        ]
    }
}

/// What a load came to.
struct Load {
    seconds: f64,
    cpu_per_message: f64,
    raw: Raw,
    acknowledged: Spread,
    resident: f64,
    peak: f64,
}

/// Pushes messages as fast as they are taken, and waits until the last one is at the webhook.
async fn load(scene: &mut Scene, messages: usize) -> Load {
    scene.warm_up().await;
    let traffic = scene.traffic(messages, BATCH);
    let (raw, (seconds, cpu, acknowledged)) = Raw::around(async || {
        let (cpu, began) = (scene.cpu_seconds(), Instant::now());
        let (acknowledged, _) = scene.push(&traffic, None).await;
        let (_, repeats) = scene.sink.all().await;
        assert_eq!(repeats, 0, "nothing failed, so nothing may come again");
        (began.elapsed().as_secs_f64(), scene.cpu_seconds() - cpu, acknowledged)
    })
    .await;
    let cpu_per_message = cpu / messages as f64;
    let (resident, peak) = memory(scene.pid());
    Load { seconds, cpu_per_message, raw, acknowledged: Spread::of(acknowledged), resident, peak }
}

pub(crate) async fn throughput(backend: Backend, options: &Options, report: &mut Report) {
    let mut scene = Scene::set(backend, options.rooms, Duration::ZERO, 0).await;
    let done = load(&mut scene, options.messages).await;
    let what = format!("throughput, {} messages in {} rooms", options.messages, options.rooms);
    let mut figures = vec![Figure::new("messages/s", options.messages as f64 / done.seconds)];
    figures.extend(done.raw.figures(done.cpu_per_message));
    figures.extend([
        Figure::new("acknowledged p50, ms", done.acknowledged.percentile(50)),
        Figure::new("acknowledged p99, ms", done.acknowledged.percentile(99)),
        Figure::new("resident, MiB", done.resident),
        Figure::new("resident at most, MiB", done.peak),
    ]);
    report.add(backend, &what, figures);
}

pub(crate) async fn steady(backend: Backend, options: &Options, report: &mut Report) {
    let mut scene = Scene::set(backend, options.rooms, Duration::ZERO, 0).await;
    scene.warm_up().await;
    let messages = usize::try_from(options.seconds * 100).unwrap();
    let traffic = scene.traffic(messages, 1);
    let (acknowledged, begun) = scene.push(&traffic, Some(Duration::from_millis(10))).await;
    let (arrived, _) = scene.sink.all().await;
    let (latency, acknowledged) = (latencies(&traffic, &begun, &arrived), Spread::of(acknowledged));
    report.add(
        backend,
        "steady, 100 messages/s",
        vec![
            Figure::new("push → webhook p50, ms", latency.percentile(50)),
            Figure::new("push → webhook p99, ms", latency.percentile(99)),
            Figure::new("acknowledged p99, ms", acknowledged.percentile(99)),
        ],
    );
}

/// As many messages a second as are aimed at, in transactions of a hundred: how soon they are acknowledged, and told.
pub(crate) async fn paced(backend: Backend, options: &Options, report: &mut Report) {
    const RATE: usize = 5_000;
    let mut scene = Scene::set(backend, options.rooms, Duration::ZERO, 0).await;
    scene.warm_up().await;
    let messages = usize::try_from(options.seconds).unwrap() * RATE;
    let traffic = scene.traffic(messages, BATCH);
    let every = Duration::from_secs(1) * u32::try_from(BATCH).unwrap() / u32::try_from(RATE).unwrap();
    let (raw, (seconds, cpu, acknowledged, latency)) = Raw::around(async || {
        let (cpu, began) = (scene.cpu_seconds(), Instant::now());
        let (acknowledged, begun) = scene.push(&traffic, Some(every)).await;
        let (arrived, _) = scene.sink.all().await;
        let (seconds, cpu) = (began.elapsed().as_secs_f64(), scene.cpu_seconds() - cpu);
        (seconds, cpu, Spread::of(acknowledged), latencies(&traffic, &begun, &arrived))
    })
    .await;
    let mut figures = vec![Figure::new("messages/s", messages as f64 / seconds)];
    figures.extend(raw.figures(cpu / messages as f64));
    figures.extend([
        Figure::new("acknowledged p50, ms", acknowledged.percentile(50)),
        Figure::new("acknowledged p99, ms", acknowledged.percentile(99)),
        Figure::new("push → webhook p50, ms", latency.percentile(50)),
        Figure::new("push → webhook p99, ms", latency.percentile(99)),
        Figure::new("resident at most, MiB", memory(scene.pid()).1),
    ]);
    report.add(backend, &format!("{RATE} messages/s for {} s", options.seconds), figures);
}

/// From the push of each message to its arrival.
fn latencies(traffic: &Traffic, begun: &[Instant], arrived: &HashMap<String, Instant>) -> Spread {
    let latencies = traffic.event_ids().zip(begun).flat_map(|(ids, begun)| {
        ids.map(|id| arrived[id].saturating_duration_since(*begun)).collect::<Vec<_>>()
    });
    Spread::of(latencies.collect())
}

pub(crate) async fn keys(backend: Backend, options: &Options, report: &mut Report) {
    let mut scene = Scene::set(backend, 1, Duration::ZERO, 0).await;
    scene.warm_up().await;
    // As they are made, the key lane would bring them before they are pushed.
    scene.homeserver.hold_lane(true);
    let keys = scene.keys(options.keys);
    // Encrypted with the last of the keys: it arrives when all of them are in.
    let last = scene.traffic(1, 1);
    let pid = scene.pid();
    let (cpu, began) = (cpu_seconds(pid), Instant::now());
    scene.homeserver.hold_lane(false);
    scene.push(&keys, None).await;
    scene.push(&last, None).await;
    scene.sink.all().await;
    let seconds = began.elapsed().as_secs_f64();
    report.add(
        backend,
        &format!("{} room keys", options.keys),
        vec![
            Figure::new("keys/s", options.keys as f64 / seconds),
            Figure::new("CPU, ms each", (cpu_seconds(pid) - cpu) * 1_000.0 / options.keys as f64),
            Figure::new("resident at most, MiB", memory(pid).1),
        ],
    );
}

pub(crate) async fn growth(backend: Backend, options: &Options, report: &mut Report) {
    let messages = options.messages / 2;
    let mut costs = Vec::new();
    for stored in [1_000, options.stored / 10, options.stored] {
        let mut scene = Scene::set(backend, options.rooms, Duration::ZERO, stored).await;
        let done = load(&mut scene, messages).await;
        // Against raw decryptions, so that a slower minute is no growth.
        costs.push(done.cpu_per_message / done.raw.beside);
        report.add(
            backend,
            &format!("{stored} sessions and messages stored"),
            vec![
                Figure::new("messages/s", messages as f64 / done.seconds),
                Figure::new("CPU of coucou, × raw decryption during it", costs[costs.len() - 1]),
                Figure::new("× the CPU with 1,000 stored", costs[costs.len() - 1] / costs[0]),
                Figure::new("resident at most, MiB", done.peak),
            ],
        );
    }
}

/// As many rooms as sessions are kept in memory, each in turn, so that all caches are full.
pub(crate) async fn wide(backend: Backend, options: &Options, report: &mut Report) {
    let mut scene = Scene::set(backend, options.wide, Duration::ZERO, options.stored / 10).await;
    let done = load(&mut scene, options.messages).await;
    report.add(
        backend,
        &format!("{} rooms in turn, {} sessions stored", options.wide, options.stored / 10),
        vec![
            Figure::new("messages/s", options.messages as f64 / done.seconds),
            Figure::new("CPU of coucou, × raw decryption during it", done.cpu_per_message / done.raw.beside),
            Figure::new("resident, MiB", done.resident),
            Figure::new("resident at most, MiB", done.peak),
        ],
    );
}

/// The same load on one process and on two of them, which share a store: only PostgreSQL can be shared.
pub(crate) async fn instances(backend: Backend, options: &Options, report: &mut Report) {
    if backend == Backend::Sqlite {
        return;
    }
    let mut rates = Vec::new();
    for count in [1, 2] {
        let mut scene = Scene::set(backend, options.rooms, Duration::ZERO, 0).await;
        for _ in 1..count {
            scene.add_instance().await;
        }
        let done = load(&mut scene, options.messages).await;
        rates.push(options.messages as f64 / done.seconds);
        report.add(
            backend,
            if count == 1 { "one instance" } else { "two instances" },
            vec![
                Figure::new("messages/s", rates[rates.len() - 1]),
                Figure::new("× the rate of one", rates[rates.len() - 1] / rates[0]),
                Figure::new("CPU of all, × raw decryption during it", done.cpu_per_message / done.raw.beside),
                Figure::new("acknowledged p99, ms", done.acknowledged.percentile(99)),
            ],
        );
    }
}

pub(crate) async fn idle(backend: Backend, report: &mut Report) {
    const WATCHED: Duration = Duration::from_secs(20);
    let mut scene = Scene::set(backend, 10, Duration::ZERO, 0).await;
    // Not after a load: what a start leaves behind is what an idle process holds.
    sleep(Duration::from_secs(3)).await;
    let pid = scene.pid();
    let cpu = cpu_seconds(pid);
    sleep(WATCHED).await;
    let share = (cpu_seconds(pid) - cpu) / WATCHED.as_secs_f64() * 100.0;
    report.add(
        backend,
        "idle",
        vec![Figure::new("CPU, % of a core", share), Figure::new("resident, MiB", memory(pid).0)],
    );
}

pub(crate) async fn slow(backend: Backend, options: &Options, report: &mut Report) {
    const PAUSE: Duration = Duration::from_millis(50);
    let messages = options.messages / 4;
    let mut scene = Scene::set(backend, options.rooms, PAUSE, 0).await;
    let done = load(&mut scene, messages).await;
    let rate = messages as f64 / done.seconds;
    // One delivery at a time in each room.
    let possible = options.rooms as f64 / PAUSE.as_secs_f64();
    report.add(
        backend,
        "a webhook that takes 50 ms",
        vec![
            Figure::new("messages/s", rate),
            Figure::new("× what order allows", rate / possible),
            Figure::new("acknowledged p99, ms", done.acknowledged.percentile(99)),
        ],
    );
}

/// Asks for statistics and for metrics, no more often than a token may.
pub(crate) async fn stats(backend: Backend, options: &Options, report: &mut Report) {
    const ASKED: u32 = 300;
    const EVERY: Duration = Duration::from_millis(25);
    /// What `stats` must stay below, in milliseconds, however much is stored.
    const MOST: f64 = 20.0;
    let scene = Scene::set(backend, 10, Duration::ZERO, 0).await;
    fill::fill_for_operators(scene.coucou.store_url(), options.told).await;
    let (mut figures, mut slowest) = (Vec::new(), 0_f64);
    for path in ["api/v1/stats", "metrics"] {
        let mut took = Vec::new();
        let start = tokio::time::Instant::now();
        for number in 0..ASKED {
            tokio::time::sleep_until(start + EVERY * number).await;
            let began = Instant::now();
            let answer = scene.ask(path).await;
            // The first ones open connections and prepare statements.
            if number >= ASKED / 10 {
                took.push(began.elapsed());
            }
            assert!(
                answer.contains(if path == "metrics" { "coucou_store_up" } else { "inbound_sessions" }),
                "{answer}"
            );
        }
        let took = Spread::of(took);
        figures.push(Figure::new(&format!("/{path} p50, ms"), took.percentile(50)));
        figures.push(Figure::new(&format!("/{path} p99, ms"), took.percentile(99)));
        slowest = slowest.max(took.percentile(50));
    }
    let what = format!("statistics, {} messages and {} sessions stored", options.told, options.told / 10);
    report.add(backend, &what, figures);
    assert!(slowest < MOST, "half of the answers take longer than {slowest} ms");
}
