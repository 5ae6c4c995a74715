//! Rooms that are read on page by page, with a homeserver that pushes what it is told to and forgets the rest.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{
    arrival::check_numbers,
    coucou::Coucou,
    fake_homeserver::{FakeBridge, FakeHomeserver, event},
    postgres::Database,
    receiver::{Attempt, Receiver},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);

/// More than a comparison holds.
const MANY: usize = 2_150;

struct Scene {
    coucou: Coucou,
    homeserver: FakeHomeserver,
    bridge: FakeBridge,
    receiver: Receiver,
    _database: Option<Database>,
}

impl Scene {
    async fn set(database: Option<Database>) -> Self {
        let coucou = Coucou::new().await;
        let homeserver = FakeHomeserver::start(&coucou).await;
        let receiver = Receiver::start().await;
        let coucou = coucou.homeserver(&homeserver.url()).webhook(&receiver);
        let mut coucou = match &database {
            Some(database) => coucou.store(&database.url()),
            None => coucou,
        };
        coucou.start().await;
        homeserver.wait_for_device(BOT, SOON).await;
        let bridge = FakeBridge::new(&homeserver, "instagram");
        Self { coucou, homeserver, bridge, receiver, _database: database }
    }

    /// A room that coucou has joined, without encryption.
    async fn room(&self, name: &str) -> String {
        let room_id = self.bridge.create_room(&self.homeserver, "1", name, false);
        self.homeserver.invite(&room_id, &self.bridge.bot(), BOT).await;
        self.homeserver.wait_for_join(&room_id, BOT, SOON).await;
        self.receiver
            .wait_until("the room", SOON, |taken| taken.iter().any(|told| told.room_id() == room_id))
            .await;
        room_id
    }

    fn say(&self, room_id: &str, text: &str) -> Value {
        let content = json!({"msgtype": "m.text", "body": text});
        event(room_id, &self.bridge.ghost("1"), "m.room.message", &content)
    }

    /// Says something that is in the room's timeline, and pushed.
    async fn push(&self, room_id: &str, text: &str) {
        let said = self.say(room_id, text);
        self.homeserver.remember(std::slice::from_ref(&said));
        self.homeserver.push_until_taken(&[said], &[]).await;
    }

    /// Says so much that is in the room's timeline, and never pushed.
    fn forget(&self, room_id: &str, count: usize) -> Vec<String> {
        let texts: Vec<_> = (0..count).map(|number| format!("number {number}")).collect();
        let said: Vec<_> = texts.iter().map(|text| self.say(room_id, text)).collect();
        self.homeserver.remember(&said);
        texts
    }

    /// Waits until so many messages of a room are told, and returns their texts and which of them are late.
    async fn told(&self, room_id: &str, count: usize) -> (Vec<String>, Vec<String>) {
        let of_room = |taken: &[Attempt]| {
            let said = taken.iter().filter(|told| told.is_message() && told.room_id() == room_id);
            said.cloned().collect::<Vec<_>>()
        };
        let what = format!("{count} messages");
        let enough = async || (of_room(&self.receiver.taken()).len() >= count).then_some(());
        until(&what, SOON, enough).await;
        let taken = self.receiver.taken();
        check_numbers(&taken);
        let text = |told: &Attempt| told.data()["content"]["text"].as_str().unwrap_or_default().to_owned();
        let told = of_room(&taken);
        let late = told.iter().filter(|told| told.data()["late"] == true).map(text).collect();
        (told.iter().map(text).collect(), late)
    }

    /// How many pages were asked for forwards.
    fn pages(&self) -> usize {
        self.homeserver.requests("/messages").len()
    }
}

async fn a_gap_is_read_whole(database: Option<Database>) {
    let mut scene = Scene::set(database).await;
    let (gone, other) = (scene.room("Gone").await, scene.room("Other").await);
    scene.push(&gone, "before").await;
    scene.told(&gone, 1).await;
    scene.coucou.kill9();
    let mut expected = vec!["before".to_owned()];
    expected.extend(scene.forget(&gone, MANY));
    scene.coucou.start().await;
    scene.push(&gone, "after").await;
    scene.push(&other, "beside").await;
    expected.push("after".to_owned());
    assert_eq!(scene.told(&other, 1).await.0, ["beside"]);
    let (told, late) = scene.told(&gone, expected.len()).await;
    assert_eq!((told, late), (expected, vec![]));
    assert!(scene.coucou.log().contains("suspended and read on"), "{}", scene.coucou.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_of_more_than_two_thousand_events_is_read_whole_and_in_order_with_postgres() {
    a_gap_is_read_whole(Some(Database::create().await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_of_more_than_two_thousand_events_is_read_whole_and_in_order_with_sqlite() {
    a_gap_is_read_whole(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_cannot_be_read_for_a_while_delays_no_other() {
    let mut scene = Scene::set(None).await;
    let (gone, other) = (scene.room("Gone").await, scene.room("Other").await);
    scene.coucou.kill9();
    let mut expected = scene.forget(&gone, 600);
    scene.coucou.start().await;
    until("the room to be suspended", SOON, async || {
        scene.coucou.log().contains("suspended and read on").then_some(())
    })
    .await;
    scene.homeserver.fail("/messages", 500, 3);
    let began = Instant::now();
    scene.push(&gone, "after").await;
    for number in 0..5 {
        scene.push(&other, &number.to_string()).await;
    }
    assert_eq!(scene.told(&other, 5).await.0, ["0", "1", "2", "3", "4"]);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    expected.push("after".to_owned());
    assert_eq!(scene.told(&gone, 601).await, (expected, vec![]));
}

async fn killed_while_reading(database: Option<Database>) {
    let mut scene = Scene::set(database).await;
    let gone = scene.room("Gone").await;
    scene.push(&gone, "before").await;
    scene.told(&gone, 1).await;
    scene.coucou.kill9();
    let mut expected = vec!["before".to_owned()];
    expected.extend(scene.forget(&gone, MANY));
    let mut kills = Vec::new();
    for _ in 0..2 {
        scene.coucou.spawn();
        scene.coucou.ready().await;
        // The comparison that finds the gap has asked for the first pages.
        until("the room to be suspended", SOON, async || {
            scene.coucou.log().contains("suspended and read on").then_some(())
        })
        .await;
        let before = scene.pages();
        let deadline = Instant::now() + SOON;
        while scene.pages() < before + 6 && Instant::now() < deadline {
            sleep(Duration::from_millis(1)).await;
        }
        scene.coucou.kill9();
        kills.push(scene.pages() - before);
    }
    let before = scene.pages();
    println!("killed after {kills:?} pages");
    scene.coucou.start().await;
    scene.push(&gone, "after").await;
    expected.push("after".to_owned());
    assert_eq!(scene.told(&gone, expected.len()).await, (expected, vec![]));
    assert!(scene.coucou.log().contains("they were read from its timeline"), "{}", scene.coucou.log());
    let last = scene.pages() - before;
    assert!(last < MANY / 100, "{last} pages after {kills:?}: it did not go on where it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_a_reading_loses_and_doubles_nothing_with_postgres() {
    killed_while_reading(Some(Database::create().await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_a_reading_loses_and_doubles_nothing_with_sqlite() {
    killed_while_reading(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seven_hundred_events_of_an_unknown_room_keep_their_order_behind_what_was_said_before_the_join() {
    let mut scene = Scene::set(None).await;
    let device_id = scene.homeserver.devices(BOT).remove(0);
    let room_id = scene.bridge.create_room(&scene.homeserver, "1", "New", true);
    scene.homeserver.fail("/state", 503, 1_000);
    scene.bridge.rotate(&room_id);
    let key = scene.bridge.room_key(&room_id);
    scene.homeserver.invite(&room_id, &scene.bridge.bot(), BOT).await;
    // Said before coucou is in, so not pushed; its key comes late, and it holds up the room meanwhile.
    let first = scene.bridge.say(&room_id, "1", "first");
    scene.homeserver.remember(std::slice::from_ref(&first));
    scene.homeserver.wait_for_join(&room_id, BOT, SOON).await;
    let texts: Vec<_> = (0..700).map(|number| format!("number {number}")).collect();
    let said: Vec<_> = texts.iter().map(|text| scene.say(&room_id, text)).collect();
    for part in said.chunks(100) {
        scene.homeserver.remember(part);
        scene.homeserver.push_until_taken(part, &[]).await;
    }
    scene.homeserver.mend();
    scene
        .receiver
        .wait_until("the room", SOON, |taken| taken.iter().any(|told| told.room_id() == room_id))
        .await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(scene.receiver.message_count(), 0, "all of it waits for the first");
    let pushed = scene.bridge.send_key(&scene.homeserver, &key, BOT, &device_id);
    scene.homeserver.push_until_taken(&[], &pushed).await;
    let (told, late) = scene.told(&room_id, 701).await;
    assert_eq!(told[0], "first");
    assert_eq!((&told[1..], late), (&texts[..], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn coucou_check_rooms_names_what_is_missing_and_has_it_read() {
    let scene = Scene::set(None).await;
    let room_id = scene.room("One").await;
    scene.push(&room_id, "pushed").await;
    scene.told(&room_id, 1).await;
    let check = async |args: &[&str]| {
        let output = scene.coucou.run(args).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (told, progress) = check(&["check", "--rooms"]).await;
    assert!(told.contains("nothing is missing"), "{told}");
    assert!(progress.contains("1 of 1 rooms compared"), "{progress}");
    let lost = scene.say(&room_id, "lost");
    scene.homeserver.remember(&[lost]);
    scene.push(&room_id, "pushed as well").await;
    scene.told(&room_id, 2).await;
    let (told, _) = check(&["check", "--rooms"]).await;
    assert!(told.contains(&format!("1 of 3 events of {room_id} are missing")), "{told}");
    assert_eq!(scene.receiver.message_count(), 2, "it only looks");
    let (told, _) = check(&["check", "--rooms", "--mend"]).await;
    assert!(told.contains("they are read"), "{told}");
    let (told, late) = scene.told(&room_id, 3).await;
    assert_eq!(
        (told, late),
        (vec!["pushed".into(), "pushed as well".into(), "lost".into()], vec!["lost".into()])
    );
    let (told, _) = check(&["check", "--rooms"]).await;
    assert!(told.contains("nothing is missing"), "{told}");
}
