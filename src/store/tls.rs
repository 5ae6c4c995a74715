//! Why a connection that is to be encrypted is not made, with the part of the settings to look at.

use std::{error::Error, fmt, io};

use rustls::{CertificateError, Error as TlsError};

/// What is wrong with TLS; its text is for everybody to read, without addresses or names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// The server lets nobody of that name in from here, or not without TLS: it does not say which.
    NotLetIn,
    /// The server does not speak TLS.
    NotOffered,
    /// The certificate is of a CA that nobody named.
    Issuer,
    /// The certificate is for another host.
    Host,
    /// The certificate's time is over, or has not begun.
    Time,
    /// Anything else.
    Other,
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotLetIn => {
                "the database does not let this user in from here, or only with TLS (sslmode in store.url)"
            }
            Self::NotOffered => "the database does not offer TLS, which sslmode in store.url wants",
            Self::Issuer => {
                "the database's certificate is not signed by a CA that sslrootcert in store.url names or the system knows"
            }
            Self::Host => {
                "the database's certificate is for another host than store.url names, which sslmode=verify-full refuses"
            }
            Self::Time => "the database's certificate is not valid now: look at it, and at the clocks",
            Self::Other => {
                "the encrypted connection to the database cannot be made: look at sslmode, sslrootcert, sslcert and \
                 sslkey in store.url"
            }
        })
    }
}

impl Distrust {
    /// What an error says of TLS; `None` when it is about something else.
    pub(in crate::store) fn of(error: &sqlx::Error) -> Option<Self> {
        match error {
            sqlx::Error::Tls(cause) => Some(match cause.downcast_ref::<TlsError>() {
                Some(error) => Self::of_tls(error),
                // The one text of sqlx's own.
                None if cause.to_string() == "server does not support TLS" => Self::NotOffered,
                None => Self::Other,
            }),
            sqlx::Error::Io(error) => inside(error).map(Self::of_tls),
            // invalid_authorization_specification.
            sqlx::Error::Database(error) if error.code().as_deref() == Some("28000") => Some(Self::NotLetIn),
            _ => None,
        }
    }

    fn of_tls(error: &TlsError) -> Self {
        match error {
            TlsError::InvalidCertificate(CertificateError::UnknownIssuer) => Self::Issuer,
            TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => Self::Host,
            TlsError::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ) => Self::Time,
            _ => Self::Other,
        }
    }
}

/// The error of TLS that a failed read or write was.
fn inside(error: &io::Error) -> Option<&TlsError> {
    let mut cause: &(dyn Error + 'static) = error.get_ref()?;
    loop {
        if let Some(error) = cause.downcast_ref() {
            return Some(error);
        }
        cause = cause.source()?;
    }
}
