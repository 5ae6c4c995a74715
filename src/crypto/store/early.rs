//! Olm sessions that the SDK saves ahead of what came with them.
//!
//! While it takes in to-device messages, `matrix-sdk-crypto` saves a new Olm session at once, and the room key that its
//! first message brought only with all the others. The session has moved on by then: should the process or the database
//! end in between, the message is refused when it comes again, and the room key is lost. So such sessions are held back
//! until the save that has the room keys, and both are in one transaction.

use std::{cell::RefCell, mem};

use matrix_sdk_crypto::{
    olm::Session,
    store::types::{Changes, DeviceChanges},
};
use tokio::task_local;

use super::save;

task_local! {
    /// The sessions that are held back in the work under way, and the devices that were saved with them.
    static HELD: RefCell<(Vec<Session>, DeviceChanges)>;
}

/// Runs work whose early sessions are held back, and returns besides those that no later save has taken along.
pub async fn hold_back<T>(work: impl Future<Output = T>) -> (T, Changes) {
    HELD.scope(RefCell::default(), async { (work.await, with_held(Changes::default())) }).await
}

/// Returns what to save now: nothing where a session is saved ahead, and with everything else what was held back before.
pub(super) fn admit(mut changes: Changes) -> Option<Changes> {
    let (sessions, devices) = (mem::take(&mut changes.sessions), mem::take(&mut changes.devices));
    let is_early = !sessions.is_empty() && save::is_empty(&changes) && HELD.try_with(|_| ()).is_ok();
    (changes.sessions, changes.devices) = (sessions, devices);
    if !is_early {
        return Some(with_held(changes));
    }
    let _ = HELD.try_with(|held| {
        let (sessions, devices) = &mut *held.borrow_mut();
        sessions.append(&mut changes.sessions);
        append(devices, changes.devices);
    });
    None
}

/// Returns the sessions with that key which are held back.
pub(super) fn sessions_of(sender_key: &str) -> Vec<Session> {
    let of_key = |held: &RefCell<(Vec<Session>, DeviceChanges)>| {
        let held = held.borrow();
        held.0.iter().filter(|session| session.sender_key().to_base64() == sender_key).cloned().collect()
    };
    HELD.try_with(of_key).unwrap_or_default()
}

/// Returns changes with what was held back, which comes first: it is older.
fn with_held(mut changes: Changes) -> Changes {
    if let Ok((mut sessions, mut devices)) = HELD.try_with(RefCell::take) {
        sessions.append(&mut changes.sessions);
        append(&mut devices, mem::take(&mut changes.devices));
        (changes.sessions, changes.devices) = (sessions, devices);
    }
    changes
}

fn append(devices: &mut DeviceChanges, mut more: DeviceChanges) {
    devices.new.append(&mut more.new);
    devices.changed.append(&mut more.changed);
    devices.deleted.append(&mut more.deleted);
}
