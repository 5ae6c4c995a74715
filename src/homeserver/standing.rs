//! What every answer tells of how the homeserver is: there, away, or refusing coucou.
//!
//! Each request notes its outcome here, so that the state is never older than the last one; the key lane alone makes
//! one every half a minute. Two refusals concern all requests: of the token, which a person must mend and which is an
//! error in the log once, and of a device that somebody has deleted, which is made again.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{Notify, watch};

use super::{Homeserver, HomeserverError};
use crate::model::HomeserverState;

const UNKNOWN_TOKEN: &str = "the homeserver does not know the as_token";

/// How the homeserver is; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: watch::Sender<HomeserverState>,
    device_is_gone: AtomicBool,
    device_went: Notify,
}

impl Standing {
    /// Notes what came of a request.
    pub(super) fn note<T>(&self, answer: &Result<T, HomeserverError>) {
        let state = match answer {
            Ok(_) => HomeserverState::Ok,
            Err(HomeserverError::Client(_)) => return,
            Err(
                HomeserverError::Unreachable(_)
                | HomeserverError::Stalled
                | HomeserverError::Status { status: 502..=504, .. },
            ) => HomeserverState::Away,
            Err(error) if error.is_unknown_token() => HomeserverState::Refuses { why: UNKNOWN_TOKEN },
            Err(error) => {
                if error.is_unknown_device() {
                    self.0.device_is_gone.store(true, Ordering::SeqCst);
                    self.0.device_went.notify_one();
                }
                HomeserverState::Ok
            }
        };
        self.0.state.send_if_modified(|current| {
            if *current == state {
                return false;
            }
            match (&*current, &state) {
                (_, HomeserverState::Refuses { why }) => tracing::error!(
                    why,
                    "the homeserver refuses coucou: appservice.as_token (COUCOU_APPSERVICE_AS_TOKEN) must be the as_token \
                     of the registration that the homeserver has read; it reads that when it starts"
                ),
                (HomeserverState::Refuses { .. }, HomeserverState::Ok) => {
                    tracing::info!("the homeserver takes coucou's requests again");
                }
                _ => {}
            }
            *current = state;
            true
        });
    }
}

impl Homeserver {
    /// How the homeserver is, as the last request has shown.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<HomeserverState> {
        self.standing.0.state.subscribe()
    }

    /// Returns whether a device of ours was refused as unknown since this was last asked.
    #[must_use]
    pub fn take_device_is_gone(&self) -> bool {
        self.standing.0.device_is_gone.swap(false, Ordering::SeqCst)
    }

    /// Waits until a device of ours is refused as unknown.
    pub async fn device_is_gone(&self) {
        self.standing.0.device_went.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, errcode: &str, message: &str) -> Result<(), HomeserverError> {
        let (errcode, message) = (errcode.to_owned(), message.to_owned());
        Err(HomeserverError::Status { status, errcode, message, retry_after: None })
    }

    #[test]
    fn the_last_answer_tells_how_the_homeserver_is() {
        let standing = Standing::default();
        let after = |answer: Result<(), HomeserverError>| {
            standing.note(&answer);
            standing.0.state.borrow().as_str()
        };
        assert_eq!(HomeserverState::default().as_str(), "unasked");
        assert_eq!(after(Ok(())), "ok");
        assert_eq!(after(Err(HomeserverError::Stalled)), "away");
        assert_eq!(after(refused(404, "M_NOT_FOUND", "no such room")), "ok", "it is there");
        assert_eq!(after(refused(502, "M_UNKNOWN", "no Matrix error in the answer")), "away");
        assert_eq!(after(refused(401, "M_UNKNOWN_TOKEN", "Invalid access token passed.")), "refuses");
        assert_eq!(standing.0.state.borrow().why(), Some(UNKNOWN_TOKEN));
        assert_eq!(after(refused(401, "M_MISSING_TOKEN", "Invalid Authorization header.")), "refuses");
        assert_eq!(after(Ok(())), "ok");
        assert!(!standing.0.device_is_gone.load(Ordering::SeqCst));
    }

    #[test]
    fn a_deleted_device_is_known_by_the_refusal() {
        for (errcode, message) in [
            ("M_UNKNOWN_DEVICE", "Application service trying to use a device that doesn't exist"),
            ("M_EXCLUSIVE", "Application service trying to use a device that doesn't exist ('D' for @a:b)"),
        ] {
            let standing = Standing::default();
            standing.note(&refused(400, errcode, message));
            assert_eq!(standing.0.state.borrow().as_str(), "ok");
            assert!(standing.0.device_is_gone.load(Ordering::SeqCst), "{errcode}");
        }
        let standing = Standing::default();
        standing.note(&refused(400, "M_EXCLUSIVE", "not of the namespace"));
        assert!(!standing.0.device_is_gone.load(Ordering::SeqCst));
    }
}
