//! Whether anybody answers where a database should be.

use std::{io, time::Duration};

use sqlx::{
    Connection, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::time::{Instant, sleep, timeout_at};

use super::Location;
use crate::store::Distrust;

/// How long to wait between two attempts.
const AGAIN: Duration = Duration::from_millis(250);

impl Location {
    /// Why a PostgreSQL server cannot be reached, in words without its address, when it could not be for all of
    /// `patience`: the connection is refused or swallowed, or its name is not known. `None` once a server answers, be it
    /// with a refusal, and for SQLite.
    pub async fn unreachable(&self, patience: Duration) -> Option<String> {
        let Self::Postgres { options, .. } = self else { return None };
        let deadline = Instant::now() + patience;
        let mut reason = io::ErrorKind::TimedOut.to_string();
        loop {
            match timeout_at(deadline, PgConnection::connect_with(options)).await {
                Ok(Ok(connection)) => {
                    let _ = timeout_at(deadline, connection.close()).await;
                    return None;
                }
                Ok(Err(error)) => reason = nobody_there(&error, options)?,
                Err(_) => return Some(reason),
            }
            if Instant::now() + AGAIN >= deadline {
                return Some(reason);
            }
            sleep(AGAIN).await;
        }
    }
}

/// Why there was no server at all; `None` when one was there and something else is wrong.
fn nobody_there(error: &sqlx::Error, options: &PgConnectOptions) -> Option<String> {
    if Distrust::of(error).is_some() {
        return None;
    }
    let sqlx::Error::Io(error) = error else { return None };
    match error.kind() {
        // A file of the settings, unless the server is one: a socket.
        io::ErrorKind::NotFound if options.get_socket().is_none() => None,
        // A server that hangs up when it is asked for TLS is there.
        io::ErrorKind::UnexpectedEof if !matches!(options.get_ssl_mode(), PgSslMode::Disable) => None,
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::Unsupported
        | io::ErrorKind::OutOfMemory => None,
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::TimedOut
        | io::ErrorKind::NotFound => Some(error.kind().to_string()),
        // What a name that nobody knows ends in has no kind.
        _ => Some("its name is not known".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::env;

    use tokio::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(600);

    async fn unreachable(url: &str) -> Option<String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Location::postgres(url, 1).unwrap().unreachable(PATIENCE).await
    }

    #[tokio::test]
    async fn only_where_nobody_answers_is_a_server_unreachable() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let refused = unreachable(&format!("postgres://a:b@127.0.0.1:{closed}/c")).await;
        assert_eq!(refused.as_deref(), Some("connection refused"));
        let unknown = unreachable("postgres://a:b@no-such-host.invalid/c").await;
        assert_eq!(unknown.as_deref(), Some("its name is not known"));
        // It takes connections and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let swallowed = unreachable(&format!("postgres://a:b@127.0.0.1:{port}/c")).await;
        assert_eq!(swallowed.as_deref(), Some("timed out"));

        let server = env::var("COUCOU_TEST_DATABASE_URL").expect("COUCOU_TEST_DATABASE_URL names a server");
        assert_eq!(unreachable(&server).await, None);
        let with = |change: &dyn Fn(&mut url::Url)| {
            let mut url = url::Url::parse(&server).unwrap();
            change(&mut url);
            url.to_string()
        };
        let no_database = with(&|url| url.set_path("no_such_database"));
        assert_eq!(unreachable(&no_database).await, None);
        let nobody = with(&|url| url.set_username("no_such_user").unwrap());
        assert_eq!(unreachable(&nobody).await, None);
        let no_tls = with(&|url| url.set_query(Some("sslmode=require")));
        assert_eq!(unreachable(&no_tls).await, None);
        let no_file = with(&|url| url.set_query(Some("sslmode=verify-ca&sslrootcert=/no/such/file")));
        assert_eq!(unreachable(&no_file).await, None);
    }
}
