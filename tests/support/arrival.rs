//! What must hold of every stream of messages, whatever broke on the way.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::{
    receiver::{Attempt, Receiver},
    synapse::{Line, Sent},
};

/// Waits until everything that was sent has arrived, and panics unless it did so once, under one id, as it was
/// sent, numbered without gaps and in order in each room; and nothing else did.
pub(crate) async fn assert_arrives(receiver: &Receiver, sent: &[&Sent], deadline: Duration) {
    arrives(receiver, sent, deadline, |_| false).await;
}

/// As [`assert_arrives`], but what says that it is late may have lost its place: Synapse can leave out what is said in
/// the moment in which it takes up pushing again, and it is then found in the room's timeline.
pub(crate) async fn assert_arrives_late_at_worst(receiver: &Receiver, sent: &[&Sent], deadline: Duration) {
    arrives(receiver, sent, deadline, |message| message.data()["late"] == true).await;
}

/// As [`assert_arrives`], but for the order in each room. Returns the rooms whose order is another one than that of what
/// was said.
pub(crate) async fn assert_arrives_in_any_order(
    receiver: &Receiver,
    sent: &[&Sent],
    deadline: Duration,
) -> Vec<String> {
    let lines: Vec<&Line> = sent.iter().flat_map(|sent| sent.messages()).collect();
    let taken = wait_for_all(receiver, &lines, deadline).await;
    check_numbers(&receiver.taken());
    assert_eq!(taken.len(), lines.len(), "something that was not said, or something twice");
    let mut rooms: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in lines {
        rooms.entry(&line.room_id).or_default().push(&line.event_id);
        let message = taken.iter().find(|message| message.event_id() == line.event_id).unwrap();
        assert_eq!(message.data()["matrix"]["content"], line.content);
    }
    let told = |room_id: &str| -> Vec<&str> {
        let of_room = taken.iter().filter(|message| message.room_id() == room_id);
        of_room.map(Attempt::event_id).collect()
    };
    let differs =
        |(room_id, said): (&&str, &Vec<&str>)| (told(room_id) != *said).then(|| (*room_id).to_owned());
    rooms.iter().filter_map(differs).collect()
}

async fn arrives(
    receiver: &Receiver,
    sent: &[&Sent],
    deadline: Duration,
    may_lose_its_place: fn(&Attempt) -> bool,
) {
    let sent: Vec<&Line> = sent.iter().flat_map(|sent| sent.messages()).collect();
    let taken = wait_for_all(receiver, &sent, deadline).await;
    check_numbers(&receiver.taken());
    let mut ids: HashMap<&str, &str> = HashMap::new();
    for message in &taken {
        let other = ids.insert(message.event_id(), &message.id);
        assert!(other.is_none(), "{} came as {other:?} and as {}", message.event_id(), message.id);
    }
    let mut rooms: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in sent {
        rooms.entry(&line.room_id).or_default().push(line);
    }
    let mut strangers = taken.iter().filter(|message| !rooms.contains_key(message.room_id()));
    assert!(strangers.next().is_none(), "a message of a room where nothing was said");
    for (room_id, lines) in &rooms {
        let mut told: Vec<&Attempt> = taken.iter().filter(|message| message.room_id() == *room_id).collect();
        if told.iter().any(|message| may_lose_its_place(message)) {
            let place = |id: &str| lines.iter().position(|line| line.event_id == id);
            let (mut late, in_order): (Vec<_>, Vec<_>) =
                told.into_iter().partition(|message| may_lose_its_place(message));
            assert!(in_order.is_sorted_by_key(|message| place(message.event_id())), "the order of {room_id}");
            late.extend(in_order);
            late.sort_by_key(|message| place(message.event_id()));
            told = late;
        }
        let order = |ids: Vec<&str>| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            order(lines.iter().map(|line| &*line.event_id).collect()),
            order(told.iter().map(|message| message.event_id()).collect()),
            "the order of {room_id}"
        );
        for (line, message) in lines.iter().zip(&told) {
            assert_eq!(message.data()["matrix"]["content"], line.content);
            assert_eq!(message.data()["encryption"]["session_id"].as_str(), line.session_id.as_deref());
        }
    }
}

async fn wait_for_all(receiver: &Receiver, sent: &[&Line], deadline: Duration) -> Vec<Attempt> {
    let began = Instant::now();
    loop {
        let taken = receiver.messages();
        let missing: Vec<usize> = (0..sent.len())
            .filter(|at| taken.iter().all(|message| message.event_id() != sent[*at].event_id))
            .collect();
        if missing.is_empty() {
            return taken;
        }
        assert!(
            began.elapsed() < deadline,
            "{} of {} did not arrive within {deadline:?}: numbers {missing:?}",
            missing.len(),
            sent.len()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Panics unless the numbers of each room, which count everything that is told of it, have no gaps.
pub(crate) fn check_numbers(taken: &[Attempt]) {
    let mut numbers = HashMap::new();
    for told in taken {
        let Some(number) = told.data()["sequence"].as_u64() else { continue };
        let last = numbers.entry(told.room_id()).or_insert(0);
        assert_eq!(number, *last + 1, "a gap in {}", told.room_id());
        *last = number;
    }
}
