//! Files of the content repository, through the authenticated API
//! ([spec](https://spec.matrix.org/latest/client-server-api/#content-repository),
//! [MSC3916](https://github.com/matrix-org/matrix-spec-proposals/pull/3916)).

use std::{fmt, time::Duration};

use reqwest::Response;
use ruma::{ServerName, UserId};
use tokio::time::timeout;

use super::{Call, Homeserver, HomeserverError, Identity, SMALL_ANSWER, error, read};

/// How long a file may stand still while it comes.
const SILENCE: Duration = Duration::from_secs(30);

/// A file that is coming, piece by piece.
pub struct Download {
    response: Response,
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").field("announced", &self.announced()).finish_non_exhaustive()
    }
}

impl Download {
    /// How many bytes the homeserver says there are.
    #[must_use]
    pub fn announced(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// [`HomeserverError::Unreachable`] when the connection breaks, and when the file takes too long;
    /// [`HomeserverError::Stalled`] when nothing comes any more.
    pub async fn chunk(&mut self) -> Result<Option<impl AsRef<[u8]> + Send + use<>>, HomeserverError> {
        let chunk = timeout(SILENCE, self.response.chunk()).await.map_err(|_| HomeserverError::Stalled)?;
        chunk.map_err(HomeserverError::unreachable)
    }
}

impl Homeserver {
    /// Begins to download a file as `user_id`, which may take `limit` to the end
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#get_matrixclientv1mediadownloadservernamemediaid)).
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses; 404 when it does not have the file.
    pub async fn download(
        &self,
        user_id: &UserId,
        server_name: &ServerName,
        media_id: &str,
        limit: Duration,
    ) -> Result<Download, HomeserverError> {
        let identity = Identity::user(user_id);
        let path = ["_matrix", "client", "v1", "media", "download", server_name.as_str(), media_id];
        let mut call = Call::get(&path).with_identity(&identity);
        call.timeout = limit;
        let response =
            self.client.execute(self.request(call)?).await.map_err(HomeserverError::unreachable)?;
        let status = response.status();
        if status.is_success() {
            return Ok(Download { response });
        }
        let retry_after = error::retry_after(response.headers());
        // What cannot be read of a refusal does not make it less of one.
        let body = read(response, SMALL_ANSWER).await.unwrap_or_default();
        Err(HomeserverError::refused(status.as_u16(), retry_after, &body, &self.as_token))
    }
}
