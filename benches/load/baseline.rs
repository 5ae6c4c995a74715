//! What the decryption alone costs: vodozemac on one thread, with nothing around it.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, sleep, spawn},
    time::Duration,
};

use serde_json::json;
use vodozemac::megolm::{GroupSession, InboundGroupSession, MegolmMessage, SessionConfig};

/// Sessions that the messages are spread over, as rooms would.
const SESSIONS: usize = 50;

/// Sessions, and messages of theirs in the order in which they are to be decrypted.
struct Sealed {
    sessions: Vec<InboundGroupSession>,
    messages: Vec<(usize, String)>,
}

impl Sealed {
    fn new(count: usize) -> Self {
        let mut outbound: Vec<_> =
            (0..SESSIONS).map(|_| GroupSession::new(SessionConfig::version_1())).collect();
        let sessions = outbound
            .iter()
            .map(|session| InboundGroupSession::new(&session.session_key(), SessionConfig::version_1()))
            .collect();
        let messages = (0..count)
            .map(|number| {
                let at = number % SESSIONS;
                let event = json!({
                    "type": "m.room.message", "room_id": "!a-room-id-of-the-usual-length:localhost",
                    "content": {"msgtype": "m.text", "body": format!("message {number}")},
                });
                (at, outbound[at].encrypt(event.to_string()).to_base64())
            })
            .collect();
        Self { sessions, messages }
    }

    /// Reads the messages from `from` on, `count` at most, from base64, decrypts them and parses them as events' JSON;
    /// answers how many there were.
    fn open(&mut self, from: usize, count: usize) -> usize {
        let messages = self.messages.iter().skip(from).take(count);
        let mut opened = 0;
        for (at, ciphertext) in messages {
            let message = MegolmMessage::from_base64(ciphertext).unwrap();
            let clear = self.sessions[*at].decrypt(&message).unwrap();
            let event: serde_json::Value = serde_json::from_slice(&clear.plaintext).unwrap();
            assert_eq!(event["type"], "m.room.message");
            opened += 1;
        }
        opened
    }
}

/// Processor time that one message takes, in seconds, while nothing else is done.
pub(crate) fn run(messages: usize) -> f64 {
    let mut sealed = Sealed::new(messages);
    let began = thread_seconds();
    sealed.open(0, messages);
    (thread_seconds() - began) / messages as f64
}

/// A few decryptions now and then while something else is measured: what a core does in a second is less when all of
/// them are busy, and on a shared machine changes from one second to the next.
pub(crate) struct Beside {
    done: Arc<AtomicBool>,
    thread: JoinHandle<f64>,
}

impl Beside {
    /// Decryptions at a time, so many that a thread's first moments on a core do not count for much.
    const AT_ONCE: usize = 100;
    const PAUSE: Duration = Duration::from_millis(400);
    /// Enough for half a minute.
    const MOST: usize = 7_500;

    pub(crate) fn begin() -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let mut sealed = Sealed::new(Self::MOST);
        let stop = Arc::clone(&done);
        let thread = spawn(move || {
            let (began, mut at) = (thread_seconds(), 0);
            while !stop.load(Ordering::Relaxed) && at < Self::MOST {
                at += sealed.open(at, Self::AT_ONCE);
                sleep(Self::PAUSE);
            }
            (thread_seconds() - began) / at as f64
        });
        Self { done, thread }
    }

    /// Processor time that one message took, in seconds.
    pub(crate) fn end(self) -> f64 {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Seconds of processor time that this thread has used.
fn thread_seconds() -> f64 {
    // The kernel counts at its ticks, milliseconds apart, and when a thread pauses.
    sleep(Duration::from_millis(1));
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}
