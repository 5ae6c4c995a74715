//! `tests/homeserver/client.py`: an ordinary user's own client.

use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use super::{Synapse, python, run};

/// A logged-in client with a cross-signed device of its own.
pub(crate) struct Client {
    folder: TempDir,
    homeserver: String,
    name: String,
    password: String,
    /// Its device.
    pub(crate) device_id: String,
    /// What opens its user's secret storage.
    pub(crate) recovery_key: String,
}

/// Something that was said, encrypted.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Said {
    /// The event.
    pub(crate) event_id: String,
    /// Its Megolm session, new for every event.
    pub(crate) session_id: String,
    /// The content before it was encrypted.
    pub(crate) content: Value,
    /// The devices that got the room key.
    pub(crate) shared_with: Vec<String>,
}

impl Client {
    /// Logs in to an account that exists, and publishes a device and a cross-signing identity.
    pub(crate) async fn log_in(synapse: &Synapse, name: &str, password: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("coucou-client-").tempdir().unwrap();
        let mut client = Self {
            folder,
            homeserver: synapse.url(),
            name: name.to_owned(),
            password: password.to_owned(),
            device_id: String::new(),
            recovery_key: String::new(),
        };
        let answer = client.run(&["setup"]).await;
        let field = |name: &str| answer[name].as_str().expect("a login tells this").to_owned();
        (client.device_id, client.recovery_key) = (field("device_id"), field("recovery_key"));
        client
    }

    /// Joins a room.
    pub(crate) async fn join(&self, room_id: &str) {
        self.run(&["join", room_id]).await;
    }

    /// Makes a private encrypted room for two.
    pub(crate) async fn private_room(&self, invitee: &str) -> String {
        let answer = self.run(&["private", "--invite", invitee]).await;
        answer["room_id"].as_str().expect("a room has an id").to_owned()
    }

    /// Says something in an encrypted room, in a new Megolm session.
    pub(crate) async fn say(&self, room_id: &str, text: &str) -> Said {
        serde_json::from_value(self.run(&["say", room_id, text]).await).unwrap()
    }

    /// Encrypts a text in a new Megolm session of its own, whose key it shares, and answers the content for
    /// somebody else to send.
    pub(crate) async fn encrypt(&self, room_id: &str, text: &str) -> Value {
        self.run(&["encrypt", room_id, text]).await["wire"].take()
    }

    /// Makes a new Megolm session, and gives its key to nobody.
    pub(crate) async fn prepare(&self, room_id: &str) {
        self.run(&["prepare", room_id]).await;
    }

    /// Says something in the session that was prepared.
    pub(crate) async fn say_prepared(&self, room_id: &str, text: &str) -> Said {
        serde_json::from_value(self.run(&["say", room_id, text, "--prepared"]).await).unwrap()
    }

    /// The keys of a room that it has, as clients export them.
    pub(crate) async fn export(&self, room_id: &str) -> Vec<Value> {
        serde_json::from_value(self.run(&["export", room_id]).await["keys"].take()).unwrap()
    }

    /// Whether it can read an encrypted event.
    pub(crate) async fn can_read(&self, room_id: &str, event_id: &str) -> bool {
        self.run(&["read", room_id]).await["said"].get(event_id).is_some()
    }

    async fn run(&self, args: &[&str]) -> Value {
        let state = self.folder.path().to_string_lossy();
        let login = ["--homeserver", &self.homeserver, "--state", &state];
        let account = ["--user", &self.name, "--password", &self.password];
        let args = login.into_iter().chain(account).chain(args.iter().copied());
        serde_json::from_str(&run(python("client.py", args, self.folder.path())).await).unwrap()
    }
}
