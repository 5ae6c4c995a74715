//! What a run of the faults came to: what was said, what arrived, and what was done to it meanwhile.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use crate::support::{
    arrival::check_numbers,
    receiver::{Attempt, Receiver},
    synapse::Line,
};

/// Everything that must arrive, and what was done meanwhile.
#[derive(Default)]
pub(super) struct Toll {
    /// By room, in order: text and event id.
    said: BTreeMap<String, Vec<(String, String)>>,
    faults: BTreeMap<&'static str, usize>,
}

/// How far the messages have come.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) messages: usize,
    pub(super) late: usize,
    pub(super) missing: Vec<String>,
}

fn text(message: &Attempt) -> &str {
    message.data()["matrix"]["content"]["body"].as_str().unwrap_or_default()
}

impl Toll {
    /// Notes what was said, in each room in order.
    pub(super) fn say(&mut self, lines: &[Line]) {
        for line in lines {
            let body = line.content["body"].as_str().expect("only texts are said").to_owned();
            self.said.entry(line.room_id.clone()).or_default().push((body, line.event_id.clone()));
        }
    }

    /// Notes something that was done.
    pub(super) fn count(&mut self, fault: &'static str, times: usize) {
        *self.faults.entry(fault).or_default() += times;
    }

    pub(super) fn total(&self) -> usize {
        self.said.values().map(Vec::len).sum()
    }

    pub(super) fn rooms(&self) -> usize {
        self.said.len()
    }

    /// Looks at what has arrived so far. Panics when anything came twice, under two ids, out of order without
    /// saying so, or with a gap in its numbers.
    ///
    /// Messages are told by their text: a sender that lost the answer to its request sends the same
    /// ciphertext again, and either of the two events may be the one that counts.
    pub(super) fn check(&self, receiver: &Receiver) -> Arrived {
        let taken = receiver.taken();
        check_numbers(&taken);
        let taken: Vec<Attempt> = taken.into_iter().filter(Attempt::is_message).collect();
        let mut ids = HashMap::new();
        let mut rooms: BTreeMap<&str, Vec<&Attempt>> = BTreeMap::new();
        for message in &taken {
            let place = (message.room_id(), text(message));
            let other = ids.insert(place, &message.id);
            assert!(other.is_none(), "{place:?} came as {other:?} and as {}", message.id);
            rooms.entry(message.room_id()).or_default().push(message);
        }
        assert_eq!(ids.values().collect::<HashSet<_>>().len(), ids.len(), "an id stands for two messages");
        let (mut late, mut missing) = (0, Vec::new());
        for (room_id, said) in &self.said {
            let told = rooms.get(room_id.as_str()).map(Vec::as_slice).unwrap_or_default();
            late += self.check_room(room_id, told);
            let there: HashSet<&str> = told.iter().map(|message| text(message)).collect();
            let absent = said.iter().filter(|(text, _)| !there.contains(&**text));
            missing.extend(absent.map(|(text, event_id)| format!("{room_id} {text:?} {event_id}")));
        }
        Arrived { messages: taken.len(), late, missing }
    }

    /// Checks the order of what one room told; answers how many were late.
    fn check_room(&self, room_id: &str, told: &[&Attempt]) -> usize {
        let places: HashMap<&str, usize> =
            self.said[room_id].iter().enumerate().map(|(at, (text, _))| (&**text, at)).collect();
        let (mut newest, mut late) = (None, 0);
        for (at, message) in told.iter().enumerate() {
            // What is being said is not noted yet.
            let Some(place) = places.get(text(message)).copied() else { continue };
            if message.data()["late"] == true {
                late += 1;
                continue;
            }
            assert!(
                newest < Some(place),
                "{room_id}: {:?} came after its followers without being late; so far: {:?}",
                text(message),
                told[..=at].iter().map(|message| text(message)).collect::<Vec<_>>()
            );
            newest = Some(place);
        }
        late
    }

    /// How many of these were never in a transaction that was taken.
    pub(super) fn never_pushed(lines: &[Line], was_pushed: impl Fn(&str) -> bool) -> usize {
        lines.iter().filter(|line| !was_pushed(&line.event_id)).count()
    }
}

impl fmt::Display for Toll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages in {} rooms", self.total(), self.rooms())?;
        self.faults.iter().try_for_each(|(fault, times)| write!(f, "; {fault}: {times}"))
    }
}
